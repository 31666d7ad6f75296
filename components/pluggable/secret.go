package pluggable

import (
	"context"
	"strings"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const featureManyValues = "MULTIPLE_KEY_VALUES_PER_SECRET"

// secret is a secret store behind a socket.
type secret struct{ *instance }

var (
	_ block.Secret     = (*secret)(nil)
	_ block.SecretMany = (*secret)(nil)
)

func openSecret(env block.Env, socket string, c *Config) block.Secret {
	s := &secret{newInstance(env, socket, c)}
	s.ping = func(ctx context.Context, s *session, opts ...grpc.CallOption) error {
		_, err := proto.NewSecretStoreClient(s.cc).Ping(ctx, &proto.PingRequest{}, opts...)
		return err
	}
	s.init = func(ctx context.Context, s *session, meta *proto.MetadataRequest) error {
		client := proto.NewSecretStoreClient(s.cc)
		if _, err := client.Init(ctx, &proto.SecretStoreInitRequest{Metadata: meta}); err != nil {
			return err
		}
		answer, err := client.Features(ctx, &proto.FeaturesRequest{})
		s.features = answer.GetFeatures()
		return err
	}
	return s
}

// Get implements block.Secret.
func (s *secret) Get(ctx context.Context, name string, meta map[string]string) (map[string]string, error) {
	const op fault.Op = "pluggable.secret.Get"
	var out map[string]string
	err := s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		a, err := proto.NewSecretStoreClient(now.cc).Get(ctx, &proto.GetSecretRequest{Key: name, Metadata: meta}, o...)
		if err == nil && len(a.GetData()) == 0 {
			return fault.New(op, fault.NotFound, "the component has no secret %q", name)
		}
		out = a.GetData()
		return err
	})
	return out, err
}

// GetAll implements block.Secret.
func (s *secret) GetAll(ctx context.Context, meta map[string]string) (map[string]map[string]string, error) {
	const op fault.Op = "pluggable.secret.GetAll"
	out := map[string]map[string]string{}
	err := s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		a, err := proto.NewSecretStoreClient(now.cc).BulkGet(ctx, &proto.BulkGetSecretRequest{Metadata: meta}, o...)
		for name, values := range a.GetData() {
			out[name] = values.GetSecrets()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ManyValues implements block.SecretMany.
func (s *secret) ManyValues() bool {
	for _, f := range s.Features() {
		if strings.EqualFold(f, featureManyValues) {
			return true
		}
	}
	return false
}
