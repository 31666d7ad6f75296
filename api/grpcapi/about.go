package grpcapi

import (
	"context"
	"strings"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/runtime/about"
)

// GetMetadata describes the sidecar. Some SDKs use it as a health check.
func (s *Server) GetMetadata(context.Context, *runtimev1.GetMetadataRequest) (*runtimev1.GetMetadataResponse, error) {
	d := s.o.About.Metadata()
	out := &runtimev1.GetMetadataResponse{Id: d.ID, RuntimeVersion: d.RuntimeVersion, EnabledFeatures: d.EnabledFeatures, ExtendedMetadata: d.Extended,
		Workflows: &runtimev1.MetadataWorkflows{},
		ActorRuntime: &runtimev1.ActorRuntime{RuntimeStatus: runtimev1.ActorRuntime_ActorRuntimeStatus(runtimev1.ActorRuntime_ActorRuntimeStatus_value[d.ActorRuntime.RuntimeStatus]),
			HostReady: d.ActorRuntime.HostReady, Placement: d.ActorRuntime.Placement},
		AppConnectionProperties: appConnection(d.AppConnection)}
	for _, c := range d.Components {
		out.RegisteredComponents = append(out.RegisteredComponents, &runtimev1.RegisteredComponents{Name: c.Name, Type: c.Type, Version: c.Version, Capabilities: c.Capabilities})
	}
	for _, e := range d.HTTPEndpoints {
		out.HttpEndpoints = append(out.HttpEndpoints, &runtimev1.MetadataHTTPEndpoint{Name: e.Name})
	}
	for i := range d.Subscriptions {
		out.Subscriptions = append(out.Subscriptions, subscription(&d.Subscriptions[i]))
	}
	return out, nil
}

func appConnection(c about.AppConnection) *runtimev1.AppConnectionProperties {
	out := &runtimev1.AppConnectionProperties{Port: int32(c.Port), Protocol: c.Protocol, ChannelAddress: c.ChannelAddress, MaxConcurrency: int32(c.MaxConcurrency)}
	if h := c.Health; h != nil {
		out.Health = &runtimev1.AppConnectionHealthProperties{HealthCheckPath: h.Path, HealthProbeInterval: h.Interval, HealthProbeTimeout: h.Timeout, HealthThreshold: int32(h.Threshold)}
	}
	return out
}

func subscription(d *about.Subscription) *runtimev1.PubsubSubscription {
	rules := &runtimev1.PubsubSubscriptionRules{}
	for _, r := range d.Rules {
		rules.Rules = append(rules.Rules, &runtimev1.PubsubSubscriptionRule{Match: r.Match, Path: r.Path})
	}
	return &runtimev1.PubsubSubscription{PubsubName: d.PubSubName, Topic: d.Topic, Metadata: d.Metadata, Rules: rules, DeadLetterTopic: d.DeadLetterTopic,
		Type: runtimev1.PubsubSubscriptionType(runtimev1.PubsubSubscriptionType_value[d.Type])}
}

// SetMetadata adds an extended attribute, kept in memory only.
func (s *Server) SetMetadata(_ context.Context, in *runtimev1.SetMetadataRequest) (*emptypb.Empty, error) {
	s.o.About.SetAttribute(in.GetKey(), in.GetValue())
	return &emptypb.Empty{}, nil
}

// Shutdown asks the sidecar to end; the metadata dapr-force-shutdown makes it end at once.
func (s *Server) Shutdown(ctx context.Context, _ *runtimev1.ShutdownRequest) (*emptypb.Empty, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.o.About.Shutdown(strings.EqualFold(first(md, "dapr-force-shutdown"), "true"))
	return &emptypb.Empty{}, nil
}
