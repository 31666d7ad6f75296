package grpcapi

import (
	"context"
	"errors"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/config"
)

// Config is the configuration service.
type Config interface {
	Get(ctx context.Context, r config.Request) (map[string]block.ConfigItem, error)
	Follow(ctx context.Context, r config.Request, opened func(id string) error, update func(id string, items map[string]block.ConfigItem) error) error
	Unsubscribe(ctx context.Context, id string) error
}

// GetConfiguration reads items; those that do not exist are left out.
func (s *Server) GetConfiguration(ctx context.Context, in *runtimev1.GetConfigurationRequest) (*runtimev1.GetConfigurationResponse, error) {
	items, err := s.o.Config.Get(ctx, config.Request{Store: in.GetStoreName(), Keys: in.GetKeys(), Metadata: in.GetMetadata()})
	if err != nil {
		return nil, apierr.Config(apierr.ConfigGet, in.GetStoreName(), in.GetKeys(), err).Status().Err()
	}
	return &runtimev1.GetConfigurationResponse{Items: configItems(items)}, nil
}

// GetConfigurationAlpha1 is GetConfiguration by its old name.
func (s *Server) GetConfigurationAlpha1(ctx context.Context, in *runtimev1.GetConfigurationRequest) (*runtimev1.GetConfigurationResponse, error) {
	return s.GetConfiguration(ctx, in)
}

func configItems(items map[string]block.ConfigItem) map[string]*commonv1.ConfigurationItem {
	out := make(map[string]*commonv1.ConfigurationItem, len(items))
	for k, it := range items {
		out[text(k)] = &commonv1.ConfigurationItem{Value: text(it.Value), Version: text(it.Version), Metadata: texts(it.Metadata)}
	}
	return out
}

// SubscribeConfiguration sends changes until the caller ends the stream or unsubscribes. The
// first message has only the subscription's id.
func (s *Server) SubscribeConfiguration(in *runtimev1.SubscribeConfigurationRequest, ss runtimev1.Dapr_SubscribeConfigurationServer) error {
	return s.followConfiguration(in, ss)
}

// SubscribeConfigurationAlpha1 is SubscribeConfiguration by its old name.
func (s *Server) SubscribeConfigurationAlpha1(in *runtimev1.SubscribeConfigurationRequest, ss runtimev1.Dapr_SubscribeConfigurationAlpha1Server) error {
	return s.followConfiguration(in, ss)
}

func (s *Server) followConfiguration(in *runtimev1.SubscribeConfigurationRequest, ss grpc.ServerStreamingServer[runtimev1.SubscribeConfigurationResponse]) error {
	var broken error // the stream itself
	send := func(id string, items map[string]*commonv1.ConfigurationItem) error {
		broken = ss.Send(&runtimev1.SubscribeConfigurationResponse{Id: id, Items: items})
		return broken
	}
	r := config.Request{Store: in.GetStoreName(), Keys: in.GetKeys(), Metadata: in.GetMetadata()}
	err := s.o.Config.Follow(ss.Context(), r, func(id string) error { return send(id, nil) },
		func(id string, items map[string]block.ConfigItem) error { return send(id, configItems(items)) })
	switch {
	case err == nil:
		return nil
	case broken != nil && errors.Is(err, broken):
		return broken
	case ss.Context().Err() != nil:
		return status.FromContextError(ss.Context().Err()).Err()
	}
	return apierr.Config(apierr.ConfigSubscribe, in.GetStoreName(), in.GetKeys(), err).Status().Err()
}

// UnsubscribeConfiguration ends a subscription. An unknown one is an answer, not an error.
func (s *Server) UnsubscribeConfiguration(ctx context.Context, in *runtimev1.UnsubscribeConfigurationRequest) (*runtimev1.UnsubscribeConfigurationResponse, error) {
	err := s.o.Config.Unsubscribe(ctx, in.GetId())
	if err == nil {
		return &runtimev1.UnsubscribeConfigurationResponse{Ok: true}, nil
	}
	return &runtimev1.UnsubscribeConfigurationResponse{
		Message: "failed to unsubscribe to configuration request " + in.GetId() + ": subscription does not exist"}, nil
}

// UnsubscribeConfigurationAlpha1 is UnsubscribeConfiguration by its old name.
func (s *Server) UnsubscribeConfigurationAlpha1(ctx context.Context, in *runtimev1.UnsubscribeConfigurationRequest) (*runtimev1.UnsubscribeConfigurationResponse, error) {
	return s.UnsubscribeConfiguration(ctx, in)
}
