package grpcapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/config"
)

// lockService keeps what it was asked and answers as told.
type lockService struct {
	asked  string
	ok     bool
	status block.UnlockStatus
	err    error
}

func (l *lockService) TryLock(_ context.Context, store, resource, owner string, seconds int32) (bool, error) {
	l.asked = fmt.Sprintf("lock %s %s %s %d", store, resource, owner, seconds)
	return l.ok, l.err
}

func (l *lockService) Unlock(_ context.Context, store, resource, owner string) (block.UnlockStatus, error) {
	l.asked = fmt.Sprintf("unlock %s %s %s", store, resource, owner)
	return l.status, l.err
}

func TestLock(t *testing.T) {
	l := &lockService{ok: true, status: block.LockOfAnother}
	k := newKit(t, grpcapi.Options{Lock: l})
	lock := &runtimev1.TryLockRequest{StoreName: "s", ResourceId: "r", LockOwner: "o", ExpiryInSeconds: 5}
	if got, err := k.TryLockAlpha1(within(t), lock); err != nil || !got.GetSuccess() || l.asked != "lock s r o 5" {
		t.Errorf("got %v, %v, asked %s", got, err, l.asked)
	}
	unlock := &runtimev1.UnlockRequest{StoreName: "s", ResourceId: "r", LockOwner: "o"}
	if got, err := k.UnlockAlpha1(within(t), unlock); err != nil || got.GetStatus() != runtimev1.UnlockResponse_LOCK_BELONGS_TO_OTHERS || l.asked != "unlock s r o" {
		t.Errorf("got %v, %v, asked %s", got, err, l.asked)
	}
	for _, tt := range []struct {
		err  error
		code codes.Code
	}{
		{fault.New("op", fault.NotReady, "x").With(fault.NoComponents), codes.FailedPrecondition},
		{fault.New("op", fault.NotFound, "x").With(fault.NoSuchComponent), codes.InvalidArgument},
		{fault.New("op", fault.Invalid, "x").With(fault.EmptyName), codes.InvalidArgument},
		{fault.New("op", fault.Invalid, "x").With(fault.IllegalKey), codes.Internal},
		{fault.New("op", fault.Unavailable, "x"), codes.Internal},
	} {
		l.err = tt.err
		_, err := k.TryLockAlpha1(within(t), lock)
		_, err2 := k.UnlockAlpha1(within(t), unlock)
		if status.Code(err) != tt.code || status.Code(err2) != tt.code || len(status.Convert(err).Details()) != 0 {
			t.Errorf("%v: got %v and %v, want %v without details", tt.err, err, err2, tt.code)
		}
	}
}

// configService follows what the test does.
type configService struct {
	asked  string
	items  map[string]block.ConfigItem
	err    error
	follow func(ctx context.Context, opened func(id string) error, update func(id string, items map[string]block.ConfigItem) error) error
}

func (c *configService) Get(_ context.Context, r config.Request) (map[string]block.ConfigItem, error) {
	c.asked = fmt.Sprintf("get %s %q %v", r.Store, r.Keys, r.Metadata)
	return c.items, c.err
}

func (c *configService) Follow(ctx context.Context, r config.Request, opened func(id string) error, update func(id string, items map[string]block.ConfigItem) error) error {
	c.asked = fmt.Sprintf("follow %s %q %v", r.Store, r.Keys, r.Metadata)
	return c.follow(ctx, opened, update)
}

func (c *configService) Unsubscribe(_ context.Context, id string) error {
	c.asked = "unsubscribe " + id
	return c.err
}

func TestConfiguration(t *testing.T) {
	c := &configService{items: map[string]block.ConfigItem{"a": {Value: "1", Version: "7", Metadata: map[string]string{"m": "x"}}, "odd": {Value: "x\xffy"}}}
	k := newKit(t, grpcapi.Options{Config: c})
	in := &runtimev1.GetConfigurationRequest{StoreName: "s", Keys: []string{"a", "odd"}, Metadata: map[string]string{"x": "y"}}
	want := &runtimev1.GetConfigurationResponse{Items: map[string]*commonv1.ConfigurationItem{"a": {Value: "1", Version: "7", Metadata: map[string]string{"m": "x"}}, "odd": {Value: "x\uFFFDy"}}}
	for name, get := range map[string]func() (*runtimev1.GetConfigurationResponse, error){
		"stable": func() (*runtimev1.GetConfigurationResponse, error) { return k.GetConfiguration(within(t), in) },
		"alpha":  func() (*runtimev1.GetConfigurationResponse, error) { return k.GetConfigurationAlpha1(within(t), in) },
	} {
		if got, err := get(); err != nil || !proto.Equal(got, want) || c.asked != `get s ["a" "odd"] map[x:y]` {
			t.Errorf("%s: got %v, %v; asked %s", name, got, err, c.asked)
		}
	}
	for _, tt := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{fault.New("op", fault.NotReady, "x").With(fault.NoComponents), codes.FailedPrecondition, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED"},
		{fault.New("op", fault.NotFound, "x").With(fault.NoSuchComponent), codes.InvalidArgument, "ERR_CONFIGURATION_STORE_NOT_FOUND"},
		{fault.New("op", fault.Unavailable, "x"), codes.Internal, "ERR_CONFIGURATION_GET"},
	} {
		c.err = tt.err
		_, err := k.GetConfiguration(within(t), in)
		info, _ := status.Convert(err).Details()[0].(*errdetails.ErrorInfo)
		if status.Code(err) != tt.code || info.GetReason() != tt.reason {
			t.Errorf("got %v with %v, want %v with %s", err, info, tt.code, tt.reason)
		}
	}
	c.err = fault.New("op", fault.NotFound, "subscription with id x does not exist").With(config.NoSubscription)
	got, err := k.UnsubscribeConfiguration(within(t), &runtimev1.UnsubscribeConfigurationRequest{StoreName: "unknown", Id: "x"})
	if err != nil || got.GetOk() || got.GetMessage() != "failed to unsubscribe to configuration request x: subscription does not exist" {
		t.Errorf("an unknown id: %v, %v", got, err)
	}
	c.err = nil
	if got, err := k.UnsubscribeConfigurationAlpha1(within(t), &runtimev1.UnsubscribeConfigurationRequest{Id: "x"}); err != nil || !got.GetOk() || c.asked != "unsubscribe x" {
		t.Errorf("got %v, %v; asked %s", got, err, c.asked)
	}
}

func TestConfigurationStream(t *testing.T) {
	left := make(chan error, 1)
	leave := make(chan struct{})
	c := &configService{follow: func(ctx context.Context, opened func(string) error, update func(string, map[string]block.ConfigItem) error) error {
		if err := errors.Join(opened("an-id"), update("an-id", map[string]block.ConfigItem{"a": {Value: "1"}}), update("an-id", map[string]block.ConfigItem{"a": {}})); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			left <- ctx.Err()
			return fault.Wrap("op", fault.Canceled, ctx.Err())
		case <-leave:
			return nil
		}
	}}
	k := newKit(t, grpcapi.Options{Config: c})
	in := &runtimev1.SubscribeConfigurationRequest{StoreName: "s", Keys: []string{"a"}}
	ctx, cancel := context.WithCancel(within(t))
	stream, err := k.SubscribeConfiguration(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []*runtimev1.SubscribeConfigurationResponse{{Id: "an-id"}, {Id: "an-id", Items: map[string]*commonv1.ConfigurationItem{"a": {Value: "1"}}},
		{Id: "an-id", Items: map[string]*commonv1.ConfigurationItem{"a": {}}}} {
		if got, err := stream.Recv(); err != nil || !proto.Equal(got, want) {
			t.Fatalf("message %d: %v, %v; want %v", i, got, err, want)
		}
	}
	cancel() // the end of the stream is the end of the subscription
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("the service was told %v", err)
	}
	again, err := k.SubscribeConfigurationAlpha1(within(t), in)
	for range 3 {
		if err == nil {
			_, err = again.Recv()
		}
	}
	close(leave) // unsubscribed
	if _, end := again.Recv(); err != nil || !errors.Is(end, io.EOF) {
		t.Errorf("got %v and then %v, want the end with OK", err, end)
	}
	c.follow = func(context.Context, func(string) error, func(string, map[string]block.ConfigItem) error) error {
		return fault.New("op", fault.Unavailable, "store down")
	}
	broken, err := k.SubscribeConfiguration(within(t), in)
	if err == nil {
		_, err = broken.Recv()
	}
	if status.Code(err) != codes.InvalidArgument || status.Convert(err).Message() != "failed to subscribe [a] from Configuration store s: store down" {
		t.Errorf("a store that is down: %v", err)
	}
}
