package grpcapi_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/call"
)

func info(t testing.TB, err error) *errdetails.ErrorInfo {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if i, ok := d.(*errdetails.ErrorInfo); ok {
			return i
		}
	}
	return nil
}

func TestToken(t *testing.T) {
	var seen []string
	invoke := invokeFunc(func(ctx context.Context, req *call.Request, out call.Responder) error {
		if v, ok := req.Header.Lookup("dapr-api-token"); ok {
			seen = append(seen, v)
		}
		return out.Respond(ctx, &call.Response{Status: 200, Data: []byte{}, Trailer: func() call.Fields { return fields("grpc-status", "0") }})
	})
	k := newKit(t, grpcapi.Options{Token: "secret", Invoke: invoke})
	tests := []struct {
		name, token string
		text        string // of the refusal
	}{
		{"none", "", "missing api token in request metadata"},
		{"wrong", "Secret", "authentication error: api token mismatch"},
		{"a prefix", "secre", "authentication error: api token mismatch"},
		{"right", "secret", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := metadata.AppendToOutgoingContext(within(t), "dapr-app-id", "x")
			if tt.token != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "dapr-api-token", tt.token)
			}
			_, unary := k.GetMetadata(ctx, &runtimev1.GetMetadataRequest{})
			proxied := k.conn.Invoke(ctx, "/a.B/C", &runtimev1.GetMetadataRequest{}, &runtimev1.GetMetadataResponse{})
			for what, err := range map[string]error{"unary": unary, "proxied": proxied} {
				if tt.text == "" {
					if what == "unary" && err != nil {
						t.Errorf("%s: %v", what, err)
					}
					continue
				}
				i := info(t, err)
				if status.Code(err) != codes.Unauthenticated || status.Convert(err).Message() != "Unauthorized" || i == nil || i.Metadata["http.error_message"] != tt.text {
					t.Errorf("%s: %v, %v", what, err, i)
				}
			}
		})
	}
	if len(seen) != 0 {
		t.Errorf("the token travelled on: %q", seen)
	}
}

func TestHiddenMethods(t *testing.T) {
	k := newKit(t, grpcapi.Options{Allow: &grpcapi.Rules{Denied: []grpcapi.Rule{{Name: "metadata", Version: "v1", Protocol: "grpc"}}}})
	_, err := k.GetMetadata(within(t), &runtimev1.GetMetadataRequest{})
	i := info(t, err)
	if status.Code(err) != codes.Unimplemented || status.Convert(err).Message() != "Not Implemented" || i == nil || i.Reason != "Not Implemented" ||
		i.Metadata["http.code"] != "501" || i.Metadata["http.error_message"] != "requested endpoint is not available" {
		t.Errorf("got %v, %v", err, i)
	}
	if _, err := k.Shutdown(within(t), &runtimev1.ShutdownRequest{}); err != nil {
		t.Errorf("another method: %v", err)
	}
}

func TestAPanicIsOneCallsError(t *testing.T) {
	k := newKit(t, grpcapi.Options{Invoke: invokeFunc(func(context.Context, *call.Request, call.Responder) error { panic("boom") })})
	_, err := k.InvokeService(within(t), invokeRequest("x", "m", nil))
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "boom") {
		t.Errorf("unary: %v", err)
	}
	err = k.conn.Invoke(metadata.AppendToOutgoingContext(within(t), "dapr-app-id", "x"), "/a.B/C", &runtimev1.GetMetadataRequest{}, &runtimev1.GetMetadataResponse{})
	if status.Code(err) != codes.Internal {
		t.Errorf("proxied: %v", err)
	}
	if _, err := k.GetMetadata(within(t), &runtimev1.GetMetadataRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	want := []string{"/dapr.proto.runtime.v1.Dapr/InvokeService Internal", "/a.B/C Internal", "/dapr.proto.runtime.v1.Dapr/GetMetadata OK"}
	if d := cmp.Diff(want, k.served.all()); d != "" {
		t.Errorf("observed (-want +got):\n%s", d)
	}
}

func TestAboutTheSidecar(t *testing.T) {
	k := newKit(t, grpcapi.Options{})
	k.about.Describe(func() about.Document {
		return about.Document{RuntimeVersion: "1.2", EnabledFeatures: []string{"f"}, Components: []about.Component{{Name: "c", Type: "state.x", Version: "v1", Capabilities: []string{"ETAG"}}},
			Extended: map[string]string{"daprRuntimeVersion": "1.2"}, HTTPEndpoints: []about.Endpoint{{Name: "e"}},
			Subscriptions: []about.Subscription{{PubSubName: "p", Topic: "t", DeadLetterTopic: "d", Type: "STREAMING", Rules: []about.Rule{{Match: "m", Path: "/x"}}}},
			AppConnection: about.AppConnection{Port: 3000, Protocol: "http", ChannelAddress: "127.0.0.1", MaxConcurrency: 5,
				Health: &about.AppHealth{Path: "/h", Interval: "5s", Timeout: "500ms", Threshold: 3}},
			ActorRuntime: about.ActorRuntime{RuntimeStatus: "DISABLED", Placement: "p"}}
	})
	if _, err := k.SetMetadata(within(t), &runtimev1.SetMetadataRequest{Key: "color", Value: "blue"}); err != nil {
		t.Fatal(err)
	}
	got, err := k.GetMetadata(within(t), &runtimev1.GetMetadataRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := &runtimev1.GetMetadataResponse{Id: "app", RuntimeVersion: "1.2", EnabledFeatures: []string{"f"},
		RegisteredComponents: []*runtimev1.RegisteredComponents{{Name: "c", Type: "state.x", Version: "v1", Capabilities: []string{"ETAG"}}},
		ExtendedMetadata:     map[string]string{"daprRuntimeVersion": "1.2", "color": "blue"},
		HttpEndpoints:        []*runtimev1.MetadataHTTPEndpoint{{Name: "e"}},
		Subscriptions: []*runtimev1.PubsubSubscription{{PubsubName: "p", Topic: "t", DeadLetterTopic: "d", Type: runtimev1.PubsubSubscriptionType_STREAMING,
			Rules: &runtimev1.PubsubSubscriptionRules{Rules: []*runtimev1.PubsubSubscriptionRule{{Match: "m", Path: "/x"}}}}},
		AppConnectionProperties: &runtimev1.AppConnectionProperties{Port: 3000, Protocol: "http", ChannelAddress: "127.0.0.1", MaxConcurrency: 5,
			Health: &runtimev1.AppConnectionHealthProperties{HealthCheckPath: "/h", HealthProbeInterval: "5s", HealthProbeTimeout: "500ms", HealthThreshold: 3}},
		ActorRuntime: &runtimev1.ActorRuntime{RuntimeStatus: runtimev1.ActorRuntime_DISABLED, Placement: "p"}, Workflows: &runtimev1.MetadataWorkflows{}}
	if !proto.Equal(want, got) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestShutdownOverTheAPI(t *testing.T) {
	for _, force := range []string{"", "TRUE", "no"} {
		k := newKit(t, grpcapi.Options{})
		ctx := within(t)
		if force != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "dapr-force-shutdown", force)
		}
		if _, err := k.Shutdown(ctx, &runtimev1.ShutdownRequest{}); err != nil {
			t.Fatal(err)
		}
		select {
		case stop := <-k.about.Stops():
			if stop.Force != (force == "TRUE") {
				t.Errorf("header %q: force is %v", force, stop.Force)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("nobody was asked to stop")
		}
	}
}

// Every method answers. Those of blocks that are not there say so in the words Dapr has for a
// block that is not configured, so that SDKs handle it.
func TestMethodsOfBlocksThatAreNotThere(t *testing.T) {
	k := newKit(t, grpcapi.Options{})
	here := map[string]bool{"EncryptAlpha1": true, "DecryptAlpha1": true, "SubtleGetKeyAlpha1": true, "SubtleEncryptAlpha1": true, "SubtleDecryptAlpha1": true,
		"SubtleWrapKeyAlpha1": true, "SubtleUnwrapKeyAlpha1": true, "SubtleSignAlpha1": true, "SubtleVerifyAlpha1": true, "InvokeService": true, "GetState": true, "GetBulkState": true, "SaveState": true, "QueryStateAlpha1": true, "DeleteState": true,
		"DeleteBulkState": true, "ExecuteStateTransaction": true, "PublishEvent": true, "BulkPublishEventAlpha1": true, "BulkPublishEvent": true,
		"SubscribeTopicEventsAlpha1": true, "GetSecret": true, "GetBulkSecret": true, "TryLockAlpha1": true, "UnlockAlpha1": true,
		"GetConfiguration": true, "GetConfigurationAlpha1": true, "SubscribeConfiguration": true, "SubscribeConfigurationAlpha1": true,
		"UnsubscribeConfiguration": true, "UnsubscribeConfigurationAlpha1": true, "InvokeBinding": true, "GetMetadata": true, "SetMetadata": true, "Shutdown": true}
	methods := runtimev1.File_dapr_proto_runtime_v1_dapr_proto.Services().ByName("Dapr").Methods()
	var b strings.Builder
	for i := range methods.Len() {
		m := methods.Get(i)
		if here[string(m.Name())] {
			continue
		}
		st := status.Convert(ask(t, k.conn, m))
		fmt.Fprintf(&b, "%s: %v %q", m.Name(), st.Code(), st.Message())
		for _, d := range st.Details() {
			if i, ok := d.(*errdetails.ErrorInfo); ok {
				fmt.Fprintf(&b, " %s/%s", i.Domain, i.Reason)
			}
		}
		b.WriteByte('\n')
	}
	golden(t, "not_there.txt", b.String())
}

// ask calls a method with an empty message and returns how it ends.
func ask(t *testing.T, conn *grpc.ClientConn, m protoreflect.MethodDescriptor) error {
	t.Helper()
	path := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
	cs, err := conn.NewStream(within(t), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
	if err != nil {
		t.Fatal(err)
	}
	_ = cs.SendMsg(dynamicpb.NewMessage(m.Input())) // fails if the answer was quicker
	_ = cs.CloseSend()
	err = cs.RecvMsg(dynamicpb.NewMessage(m.Output()))
	if err == nil {
		t.Errorf("%s succeeded", m.Name())
	}
	return err
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s; if that is meant, run with -update (-want +got):\n%s", path, d)
	}
}

func TestDrainLetsCallsEndOrBreaksThem(t *testing.T) {
	for _, patient := range []bool{true, false} {
		started, release := make(chan struct{}), make(chan struct{})
		k := newKit(t, grpcapi.Options{Invoke: invokeFunc(func(ctx context.Context, _ *call.Request, out call.Responder) error {
			close(started)
			select {
			case <-release:
				return out.Respond(ctx, &call.Response{Status: 200, Data: []byte("ok")})
			case <-ctx.Done():
				return ctx.Err()
			}
		})})
		got := make(chan error, 1)
		go func() {
			_, err := k.InvokeService(context.Background(), invokeRequest("x", "m", nil))
			got <- err
		}()
		<-started
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if patient {
			time.AfterFunc(50*time.Millisecond, func() { close(release) })
		} else {
			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
		}
		err := k.drain(ctx)
		if patient && err != nil || !patient && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("patient %v: drain: %v", patient, err)
		}
		if err := <-got; (err == nil) != patient {
			t.Errorf("patient %v: the call ended with %v", patient, err)
		}
		cancel()
	}
}
