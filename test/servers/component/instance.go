package main

import (
	"context"
	"sync"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/memory"
	"github.com/mecha-project/mecha/test/servers/queue"
)

// component is the process: one instance per component resource.
type component struct {
	features []string
	bulk     bool
	maxOps   int64

	mu        sync.Mutex
	instances map[string]*instance // by x-component-instance
}

type instance struct {
	properties map[string]string
	state      *memory.State
	hub        *queue.Broker
	pubsub     block.Queue
	events     chan string // what an output binding was told, for the input binding
}

func nameOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("x-component-instance"); len(v) == 1 {
		return v[0]
	}
	return ""
}

// open is Init. The same component may come again over another connection.
func (c *component) open(ctx context.Context, meta *proto.MetadataRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := nameOf(ctx)
	if name == "" {
		return status.Error(codes.InvalidArgument, "no instance")
	}
	if why := meta.GetProperties()["fail"]; why != "" {
		return status.Error(codes.InvalidArgument, why)
	}
	if c.instances[name] != nil {
		return nil
	}
	s, err := memory.NewState(block.Env{}, memory.DefaultStateConfig())
	if err != nil {
		return err
	}
	hub := queue.New()
	c.instances[name] = &instance{properties: meta.GetProperties(), state: s.(*memory.State), hub: hub, pubsub: hub.Client(), events: make(chan string, 100)}
	return nil
}

// of finds the instance of a call; one that never saw its Init is refused.
func (c *component) of(ctx context.Context) (*instance, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := c.instances[nameOf(ctx)]; i != nil {
		return i, nil
	}
	return nil, status.Errorf(codes.FailedPrecondition, "component %q was not initialised", nameOf(ctx))
}

// told turns a fault into the protocol's words.
func told(err error) error {
	code, field := codes.Internal, ""
	switch fault.Of(err) {
	case fault.OK:
		return nil
	case fault.Conflict:
		code, field = codes.FailedPrecondition, "etag"
	case fault.BadEtag:
		code, field = codes.InvalidArgument, "etag"
	case fault.Canceled:
		code = codes.Canceled
	}
	st := status.New(code, err.Error())
	if field != "" {
		st, _ = st.WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: err.Error()}}})
	}
	return st.Err()
}
