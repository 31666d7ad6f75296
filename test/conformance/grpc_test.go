//go:build unix

package conformance_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// rpc is a client of the gRPC API.
type rpc struct {
	*life
	conn *grpc.ClientConn
	api  runtimev1.DaprClient
}

func newRPC(t *testing.T, target string) *rpc {
	t.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	c := &rpc{life: newLife(), conn: conn, api: runtimev1.NewDaprClient(conn)}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func (c *rpc) state(component string) block.State { return &rpcState{c, component} }
func (c *rpc) lock(component string) block.Lock   { return &rpcLock{c, component} }
func (c *rpc) configuration(component string) block.Configuration {
	return &rpcConfiguration{c, component}
}

func (c *rpc) Ping(ctx context.Context) error {
	_, err := c.api.GetMetadata(ctx, &runtimev1.GetMetadataRequest{})
	return c.fault(ctx, "grpc.Ping", err)
}

func (c *rpc) Close(context.Context) error { return c.close(func() { _ = c.conn.Close() }) }

// fault reads a status as apierr writes it.
func (c *rpc) fault(ctx context.Context, op fault.Op, err error) error {
	if err != nil {
		code := fault.Internal
		switch status.Code(err) {
		case codes.Aborted:
			code = fault.Conflict
		case codes.InvalidArgument:
			code = fault.Invalid
		case codes.Unimplemented:
			code = fault.Unsupported
		case codes.Unavailable:
			code = fault.Unavailable
		}
		err = fault.Wrap(op, code, err)
	}
	return c.judge(ctx, op, err)
}

// rpcState is a state store behind the gRPC API. It is no block.StateBatch: of several writes the
// wire says that one failed and not which.
type rpcState struct {
	*rpc
	store string
}

var (
	_ block.StateTx  = (*rpcState)(nil)
	_ block.StateTTL = (*rpcState)(nil)
)

func (s *rpcState) ExpiresItems() {}
func (s *rpcState) MaxOps() int   { return 0 }

func (s *rpcState) Get(ctx context.Context, key string, opts block.StateRead) (block.StateItem, error) {
	in := &runtimev1.GetStateRequest{StoreName: s.store, Key: wireKey(key)}
	if opts.Strong {
		in.Consistency = commonv1.StateOptions_CONSISTENCY_STRONG
	}
	out, err := s.api.GetState(ctx, in)
	if err := s.fault(ctx, "grpc.state.Get", err); err != nil {
		return block.StateItem{}, err
	}
	item := block.StateItem{Key: key, Value: out.GetData(), ETag: out.GetEtag(), Exists: out.GetEtag() != ""} // the wire's sign of a missing key
	if at, ok := out.GetMetadata()["ttlExpireTime"]; ok {
		if item.Expires, err = time.Parse(time.RFC3339, at); err != nil {
			return block.StateItem{}, fault.Wrap("grpc.state.Get", fault.Internal, err)
		}
	}
	return item, nil
}

func rpcItem(w block.StateWrite) *commonv1.StateItem {
	item := &commonv1.StateItem{Key: wireKey(w.Key), Value: w.Value, Options: &commonv1.StateOptions{}}
	if w.ETag != "" {
		item.Etag = &commonv1.Etag{Value: w.ETag}
	}
	if w.FirstWrite {
		item.Options.Concurrency = commonv1.StateOptions_CONCURRENCY_FIRST_WRITE
	}
	if w.Strong {
		item.Options.Consistency = commonv1.StateOptions_CONSISTENCY_STRONG
	}
	if w.TTL > 0 {
		item.Metadata = map[string]string{"ttlInSeconds": strconv.FormatInt(seconds(w.TTL), 10)}
	}
	return item
}

func (s *rpcState) Set(ctx context.Context, w block.StateWrite) error {
	_, err := s.api.SaveState(ctx, &runtimev1.SaveStateRequest{StoreName: s.store, States: []*commonv1.StateItem{rpcItem(w)}})
	return badEtag(w.ETag, s.fault(ctx, "grpc.state.Set", err))
}

func (s *rpcState) Delete(ctx context.Context, d block.StateDelete) error {
	in := &runtimev1.DeleteStateRequest{StoreName: s.store, Key: wireKey(d.Key)}
	if d.ETag != "" {
		in.Etag = &commonv1.Etag{Value: d.ETag}
	}
	_, err := s.api.DeleteState(ctx, in)
	return badEtag(d.ETag, s.fault(ctx, "grpc.state.Delete", err))
}

// badEtag is the error of a write with a version: both wires say "invalid" of one that the store
// cannot have issued.
func badEtag(etag string, err error) error {
	if etag != "" && fault.Of(err) == fault.Invalid {
		return fault.Wrap("state", fault.BadEtag, err)
	}
	return err
}

func (s *rpcState) Transact(ctx context.Context, ops []block.StateOp) error {
	const op fault.Op = "grpc.state.Transact"
	in := &runtimev1.ExecuteStateTransactionRequest{StoreName: s.store}
	for _, o := range ops {
		kind := "upsert"
		if o.Delete {
			kind = "delete"
		}
		in.Operations = append(in.Operations, &runtimev1.TransactionalStateOperation{OperationType: kind, Request: rpcItem(o.StateWrite)})
	}
	_, err := s.api.ExecuteStateTransaction(ctx, in)
	if err := s.fault(ctx, op, err); fault.Of(err) != fault.Internal {
		return err
	}
	return refused(ctx, s, op, ops, s.fault(ctx, op, err))
}

// rpcLock is a lock store behind the gRPC API, which neither renews locks nor numbers grants.
type rpcLock struct {
	*rpc
	store string
}

func (l *rpcLock) TryLock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	out, err := l.api.TryLockAlpha1(ctx, &runtimev1.TryLockRequest{StoreName: l.store, ResourceId: wireKey(name), LockOwner: owner, ExpiryInSeconds: int32(seconds(ttl))})
	return out.GetSuccess(), l.fault(ctx, "grpc.lock.TryLock", err)
}

func (l *rpcLock) Unlock(ctx context.Context, name, owner string) (block.UnlockStatus, error) {
	out, err := l.api.UnlockAlpha1(ctx, &runtimev1.UnlockRequest{StoreName: l.store, ResourceId: wireKey(name), LockOwner: owner})
	return block.UnlockStatus(out.GetStatus()), l.fault(ctx, "grpc.lock.Unlock", err)
}

// rpcConfiguration is a configuration store behind the gRPC API.
type rpcConfiguration struct {
	*rpc
	store string
}

func rpcItems(in map[string]*commonv1.ConfigurationItem) map[string]block.ConfigItem {
	out := make(map[string]block.ConfigItem, len(in))
	for k, it := range in {
		out[k] = block.ConfigItem{Value: it.GetValue(), Version: it.GetVersion(), Metadata: it.GetMetadata()}
	}
	return out
}

func (c *rpcConfiguration) Get(ctx context.Context, keys []string, metadata map[string]string) (map[string]block.ConfigItem, error) {
	out, err := c.api.GetConfiguration(ctx, &runtimev1.GetConfigurationRequest{StoreName: c.store, Keys: keys, Metadata: metadata})
	return rpcItems(out.GetItems()), c.fault(ctx, "grpc.configuration.Get", err)
}

func (c *rpcConfiguration) Subscribe(ctx context.Context, keys []string, metadata map[string]string, started func(), changed func(map[string]block.ConfigItem)) error {
	const op fault.Op = "grpc.configuration.Subscribe"
	stream, err := c.api.SubscribeConfiguration(ctx, &runtimev1.SubscribeConfigurationRequest{StoreName: c.store, Keys: keys, Metadata: metadata})
	if err != nil {
		return c.fault(ctx, op, err)
	}
	for first := true; ; first = false {
		out, err := stream.Recv()
		if err != nil {
			return c.fault(ctx, op, err)
		}
		switch {
		case !first:
			changed(rpcItems(out.GetItems()))
		case out.GetId() == "" || len(out.GetItems()) > 0:
			return fault.New(op, fault.Internal, "the first message is %v, want an id alone", out)
		default:
			started()
		}
	}
}
