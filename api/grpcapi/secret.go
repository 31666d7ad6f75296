package grpcapi

import (
	"context"
	"strings"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"

	"github.com/mecha-project/mecha/api/apierr"
)

// Secret is the secrets service.
type Secret interface {
	Get(ctx context.Context, store, name string, metadata map[string]string) (map[string]string, error)
	GetAll(ctx context.Context, store string, metadata map[string]string) (map[string]map[string]string, error)
}

// GetSecret reads one secret.
func (s *Server) GetSecret(ctx context.Context, in *runtimev1.GetSecretRequest) (*runtimev1.GetSecretResponse, error) {
	values, err := s.o.Secret.Get(ctx, in.GetStoreName(), in.GetKey(), in.GetMetadata())
	if err != nil {
		return nil, apierr.Secret(in.GetStoreName(), in.GetKey(), err)
	}
	return &runtimev1.GetSecretResponse{Data: texts(values)}, nil
}

// GetBulkSecret reads every secret the app may read.
func (s *Server) GetBulkSecret(ctx context.Context, in *runtimev1.GetBulkSecretRequest) (*runtimev1.GetBulkSecretResponse, error) {
	all, err := s.o.Secret.GetAll(ctx, in.GetStoreName(), in.GetMetadata())
	if err != nil {
		return nil, apierr.Secrets(in.GetStoreName(), err)
	}
	out := &runtimev1.GetBulkSecretResponse{Data: make(map[string]*runtimev1.SecretResponse, len(all))}
	for name, values := range all {
		out.Data[text(name)] = &runtimev1.SecretResponse{Secrets: texts(values)}
	}
	return out, nil
}

// texts are values as protobuf takes them: it refuses a message for one byte that is not UTF-8,
// and one odd variable of the environment would hide all others. JSON has the same replacement.
func texts(values map[string]string) map[string]string {
	out := make(map[string]string, len(values))
	for name, v := range values {
		out[text(name)] = text(v)
	}
	return out
}

func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
