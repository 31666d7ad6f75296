package pluggable

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	proto "github.com/dapr/dapr/pkg/proto/components/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// instanceKey names the component on every call, because one socket may serve several.
const instanceKey = "x-component-instance"

// maxMessage is the largest message taken from a component. Its process is as trusted as the
// sidecar's own backends; the bound is against accidents.
const maxMessage = 64 << 20

var (
	errLost = errors.New("the connection to the component is lost")
	errOver = errors.New("the component is closed")
)

// session is one connection to the process, on which Init was answered. A process that restarted
// has forgotten its Init, and nothing but the connection tells: so a session never reconnects. Its
// end is the end of what was set up on it.
type session struct {
	cc   *grpc.ClientConn
	lost atomic.Bool

	// What the component said of itself, filled before the session is in use.
	features   []string
	operations []string
	maxOps     int
}

// has tells whether the component claims a feature.
func (s *session) has(feature string) bool {
	return slices.ContainsFunc(s.features, func(f string) bool { return strings.EqualFold(f, feature) })
}

func (s *session) end() { _ = s.cc.Close() }

// dial prepares a session on a socket for calls of one component. It connects at the first call.
func dial(socket, component string) (*session, error) {
	s := &session{}
	var once atomic.Bool
	connect := func(ctx context.Context, _ string) (net.Conn, error) {
		if once.Swap(true) {
			s.lost.Store(true)
			return nil, errLost
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", socket)
		if err != nil {
			s.lost.Store(true)
			return nil, err
		}
		return &watched{c, s}, nil
	}
	named := func(ctx context.Context) context.Context {
		if component == "" {
			return ctx
		}
		return metadata.AppendToOutgoingContext(ctx, instanceKey, component)
	}
	cc, err := grpc.NewClient("passthrough:///localhost", grpc.WithContextDialer(connect),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0),
		grpc.WithDisableRetry(), // what was not sent is sent again all the same; see do
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: 5 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(named(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(named(ctx), desc, cc, method, opts...)
		}))
	s.cc = cc
	return s, err
}

// watched is a connection whose end marks its session as lost. gRPC reads it all the time, so the
// end is seen without a call.
type watched struct {
	net.Conn
	s *session
}

// Read implements net.Conn.
func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	if err != nil {
		w.s.lost.Store(true)
	}
	return n, err
}

// Close implements net.Conn.
func (w *watched) Close() error {
	w.s.lost.Store(true)
	return w.Conn.Close()
}

// instance is one component of a socket: its metadata, and the session that serves it now. It is
// what all blocks are built on.
type instance struct {
	name, socket string
	env          block.Env
	properties   map[string]string
	// init tells the process about the component and asks what it can do.
	init func(ctx context.Context, s *session, meta *proto.MetadataRequest) error
	ping func(ctx context.Context, s *session, opts ...grpc.CallOption) error

	now  atomic.Pointer[session] // the last session; may be lost
	turn chan struct{}           // held while a session is made
	over chan struct{}           // closed by Close
	end  sync.Once
}

func newInstance(env block.Env, socket string, c *Config) *instance {
	return &instance{name: env.Component, socket: socket, env: env, properties: c.properties, turn: make(chan struct{}, 1), over: make(chan struct{})}
}

// session gives the session in use, or makes one. Who makes it does so in its own time; the others
// wait in theirs. A process that does not answer holds up nobody but its callers.
func (i *instance) session(ctx context.Context, op fault.Op) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, never(fault.Wrap(op, fault.Canceled, err))
	}
	if s := i.now.Load(); s != nil && !s.lost.Load() && !i.closed() {
		return s, nil
	}
	select {
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return nil, never(fault.Wrap(op, fault.Canceled, ctx.Err()))
	case <-i.over:
		return nil, i.gone(op, errOver).WithSent(fault.SentNever)
	}
	if i.closed() {
		return nil, i.gone(op, errOver).WithSent(fault.SentNever)
	}
	old := i.now.Load()
	if old != nil && !old.lost.Load() {
		return old, nil
	}
	s, err := i.open(ctx, op)
	if err != nil {
		return nil, err
	}
	if old != nil {
		old.end()
	}
	i.now.Store(s)
	return s, nil
}

// open connects and calls Init. Whatever fails, the caller's own request was not sent.
func (i *instance) open(ctx context.Context, op fault.Op) (*session, error) {
	s, err := dial(i.socket, i.name)
	if err != nil {
		return nil, i.gone(op, err).WithSent(fault.SentNever)
	}
	// Close ends an Init in progress.
	initCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-i.over:
			cancel()
		case <-stop:
		}
	}()
	if err := i.init(initCtx, s, &proto.MetadataRequest{Properties: i.properties}); err != nil {
		s.end()
		if i.closed() && ctx.Err() == nil {
			err = errOver
		}
		return nil, never(i.failure(ctx, op, "Init", err, peer.Peer{}))
	}
	return s, nil
}

// do makes one call of a component. A call that certainly was not sent because its session had
// ended goes out once more on the next one.
func (i *instance) do(ctx context.Context, op fault.Op, call func(ctx context.Context, s *session, opts ...grpc.CallOption) error) error {
	for first := true; ; first = false {
		s, err := i.session(ctx, op)
		if err != nil {
			return err
		}
		var at peer.Peer // has an address if the request was given to a connection
		err = call(ctx, s, grpc.Peer(&at))
		if err == nil {
			return nil
		}
		if first && at.Addr == nil && s.lost.Load() && status.Code(err) == codes.Unavailable && ctx.Err() == nil {
			continue
		}
		return i.failure(ctx, op, "", err, at)
	}
}

// Ping implements block.Component. A component without Ping answers by having been initialised.
func (i *instance) Ping(ctx context.Context) error {
	const op fault.Op = "pluggable.Ping"
	err := i.do(ctx, op, i.ping)
	if fault.Of(err) == fault.Unsupported {
		return nil
	}
	return err
}

// Close implements block.Component.
func (i *instance) Close(ctx context.Context) error {
	i.end.Do(func() { close(i.over) })
	select { // a session that is being made ends by itself
	case i.turn <- struct{}{}:
		defer func() { <-i.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if s := i.now.Load(); s != nil {
		s.end()
	}
	return nil
}

func (i *instance) closed() bool {
	select {
	case <-i.over:
		return true
	default:
		return false
	}
}

// Features implements block.Late.
func (i *instance) Features() []string {
	if s := i.now.Load(); s != nil {
		return slices.Clone(s.features)
	}
	return nil
}
