package pluggable

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Words of the protocol.
const (
	featureETag = "ETAG"
	featureTTL  = "TTL"
	metaTTL     = "ttlInSeconds"
	metaExpires = "ttlExpireTime"
)

// state is a state store behind a socket.
type state struct {
	*instance
	// single notes that the component has no bulk calls, which only a call tells.
	single atomic.Bool
}

// txState is one that has transactions.
type txState struct{ *state }

var (
	_ block.StateBatch = (*state)(nil)
	_ block.StateTx    = (*txState)(nil)
	_ block.Late       = (*state)(nil)
)

func openState(env block.Env, socket string, c *Config, tx, limited bool) block.State {
	s := &state{instance: newInstance(env, socket, c)}
	s.ping = func(ctx context.Context, s *session, opts ...grpc.CallOption) error {
		_, err := proto.NewStateStoreClient(s.cc).Ping(ctx, &proto.PingRequest{}, opts...)
		return err
	}
	s.init = func(ctx context.Context, s *session, meta *proto.MetadataRequest) error {
		client := proto.NewStateStoreClient(s.cc)
		if _, err := client.Init(ctx, &proto.InitRequest{Metadata: meta}); err != nil {
			return err
		}
		answer, err := client.Features(ctx, &proto.FeaturesRequest{})
		if err != nil {
			return err
		}
		s.features = answer.GetFeatures()
		if !tx || !limited {
			return nil
		}
		size, err := proto.NewTransactionalStoreMultiMaxSizeClient(s.cc).MultiMaxSize(ctx, &proto.MultiMaxSizeRequest{})
		s.maxOps = int(size.GetMaxSize())
		return err
	}
	if tx {
		return &txState{s}
	}
	return s
}

// Get implements block.State.
func (s *state) Get(ctx context.Context, key string, opts block.StateRead) (block.StateItem, error) {
	const op fault.Op = "pluggable.state.Get"
	var out block.StateItem
	err := s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		a, err := proto.NewStateStoreClient(now.cc).Get(ctx, getRequest(key, opts), o...)
		if err == nil {
			out = item(key, a.GetData(), a.GetEtag(), a.GetMetadata())
		}
		return err
	})
	return out, err
}

// Set implements block.State.
func (s *state) Set(ctx context.Context, w block.StateWrite) error {
	const op fault.Op = "pluggable.state.Set"
	return s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		if err := now.expressible(op, &w); err != nil {
			return err
		}
		_, err := proto.NewStateStoreClient(now.cc).Set(ctx, setRequest(&w), o...)
		return err
	})
}

// Delete implements block.State.
func (s *state) Delete(ctx context.Context, d block.StateDelete) error {
	const op fault.Op = "pluggable.state.Delete"
	return s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		if err := now.conditional(op, d.ETag != ""); err != nil {
			return err
		}
		_, err := proto.NewStateStoreClient(now.cc).Delete(ctx, deleteRequest(d.Key, d.ETag), o...)
		return err
	})
}

// Transact implements block.StateTx.
func (s *txState) Transact(ctx context.Context, ops []block.StateOp) error {
	const op fault.Op = "pluggable.state.Transact"
	return s.do(ctx, op, func(ctx context.Context, now *session, o ...grpc.CallOption) error {
		if now.maxOps > 0 && len(ops) > now.maxOps {
			return fault.New(op, fault.Invalid, "%d operations in a transaction; the component takes at most %d", len(ops), now.maxOps).
				With(fault.TooManyOps).WithSent(fault.SentNever)
		}
		r := &proto.TransactionalStateRequest{}
		for n := range ops {
			one := &ops[n]
			if one.Delete {
				if err := now.conditional(op, one.ETag != ""); err != nil {
					return err
				}
				r.Operations = append(r.Operations, &proto.TransactionalStateOperation{Request: &proto.TransactionalStateOperation_Delete{Delete: deleteRequest(one.Key, one.ETag)}})
				continue
			}
			if err := now.expressible(op, &one.StateWrite); err != nil {
				return err
			}
			r.Operations = append(r.Operations, &proto.TransactionalStateOperation{Request: &proto.TransactionalStateOperation_Set{Set: setRequest(&one.StateWrite)}})
		}
		_, err := proto.NewTransactionalStateStoreClient(now.cc).Transact(ctx, r, o...)
		return err
	})
}

// MaxOps implements block.StateTx. Before the component has answered it is unknown: no limit.
func (s *txState) MaxOps() int {
	if now := s.now.Load(); now != nil && now.maxOps > 0 {
		return now.maxOps
	}
	return 0
}

// expressible refuses what the component says it cannot do, because it would pass over it.
func (s *session) expressible(op fault.Op, w *block.StateWrite) error {
	if w.TTL > 0 && !s.has(featureTTL) {
		return fault.New(op, fault.Unsupported, "the component has no expiry: %s is not among its features", featureTTL).WithSent(fault.SentNever)
	}
	return s.conditional(op, w.ETag != "" || w.FirstWrite)
}

func (s *session) conditional(op fault.Op, is bool) error {
	if is && !s.has(featureETag) {
		return fault.New(op, fault.Unsupported, "the component has no versions: %s is not among its features", featureETag).WithSent(fault.SentNever)
	}
	return nil
}

func getRequest(key string, opts block.StateRead) *proto.GetRequest {
	r := &proto.GetRequest{Key: key}
	if opts.Strong {
		r.Consistency = proto.StateOptions_CONSISTENCY_STRONG
	}
	return r
}

func setRequest(w *block.StateWrite) *proto.SetRequest {
	r := &proto.SetRequest{Key: w.Key, Value: w.Value, Etag: etag(w.ETag), Options: &proto.StateOptions{}}
	if w.FirstWrite {
		r.Options.Concurrency = proto.StateOptions_CONCURRENCY_FIRST_WRITE
	}
	if w.Strong {
		r.Options.Consistency = proto.StateOptions_CONSISTENCY_STRONG
	}
	if w.TTL > 0 { // whole seconds, never fewer than asked for
		r.Metadata = map[string]string{metaTTL: strconv.FormatInt(int64((w.TTL+time.Second-1)/time.Second), 10)}
	}
	return r
}

func deleteRequest(key, tag string) *proto.DeleteRequest {
	return &proto.DeleteRequest{Key: key, Etag: etag(tag), Options: &proto.StateOptions{}}
}

func etag(text string) *proto.Etag {
	if text == "" {
		return nil
	}
	return &proto.Etag{Value: text}
}

// item reads an answer. The protocol has no word for "missing": it is no data and no etag.
func item(key string, data []byte, tag *proto.Etag, meta map[string]string) block.StateItem {
	out := block.StateItem{Key: key, Value: data, ETag: tag.GetValue()}
	out.Exists = len(data) > 0 || out.ETag != ""
	if at, err := time.Parse(time.RFC3339, meta[metaExpires]); err == nil && out.Exists {
		out.Expires = at
	}
	return out
}
