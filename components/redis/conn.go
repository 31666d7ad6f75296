package redis

import (
	"context"
	"crypto/tls"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// conn is a component's way to Redis: the client library's pool of connections, made at first use.
type conn struct {
	config ConnConfig
	addrs  []string
	tls    *tls.Config // nil: none

	mu     sync.Mutex
	client goredis.UniversalClient // guarded by mu; nil until first use
	calls  int                     // guarded by mu; exchanges and lanes under way, abandoned ones too
	queue  queue                   // commands that share exchanges
	closed bool                    // guarded by mu
	idle   chan struct{}           // guarded by mu; closed when closed and calls is 0

	large atomic.Int64 // when an answer was last large, in nanoseconds
}

// quiet silences the client library: it prints what its calls return anyway, to standard error.
var quiet = sync.OnceFunc(logging.Disable)

// newConn prepares a connection. It reads the certificates and does no other I/O.
func newConn(c ConnConfig) (*conn, error) {
	quiet()
	addrs, err := c.addresses()
	if err != nil {
		return nil, err
	}
	if len(addrs) == 0 {
		return nil, conf.Bad("redisHost", "required, but not given")
	}
	n := &conn{config: c, addrs: addrs, idle: make(chan struct{})}
	if c.EnableTLS {
		if n.tls, err = c.TLS.Config(); err != nil {
			return nil, fault.New("redis.Connect", fault.Invalid, "TLS to %s", n.where()).Because(err)
		}
	}
	return n, nil
}

func (n *conn) where() string { return "redis at " + strings.Join(n.addrs, ",") }

func (n *conn) repeat() bool { return n.config.MaxRetries > 0 }

// dial makes the client. It connects by itself, when it has something to send; greet, which may be
// nil, is called with each new connection.
func (n *conn) dial(greet func(context.Context, *goredis.Conn) error) goredis.UniversalClient {
	c := &n.config
	// Without the user's word the library repeats nothing, but its client of a cluster looks for
	// another server a few times when it cannot connect, or is sent elsewhere: after short pauses.
	retries, least, most := -1, 8*time.Millisecond, 64*time.Millisecond
	if n.repeat() {
		retries, least, most = c.MaxRetries, c.MinRetryInterval, max(c.MaxRetryInterval, c.MinRetryInterval)
	}
	read, write, idle := c.ReadTimeout, c.WriteTimeout, c.IdleTimeout
	for _, d := range []*time.Duration{&read, &write, &idle} {
		if *d < 0 {
			*d = -1
		}
	}
	o := goredis.Options{
		Protocol:  2, // there is nothing in 3 we use, and its push messages cost a look before each command
		OnConnect: greet,
		Username:  c.Username, Password: c.Password.Reveal(), DB: c.DB, TLSConfig: n.tls,
		MaxRetries: retries, MinRetryBackoff: least, MaxRetryBackoff: most,
		DialTimeout: c.DialTimeout, DialerRetries: 1, ReadTimeout: read, WriteTimeout: write, ContextTimeoutEnabled: true,
		PoolSize: c.PoolSize, PoolTimeout: c.PoolTimeout, MinIdleConns: c.MinIdleConns, PipelinePoolSize: -1,
		ConnMaxLifetime: c.MaxConnAge, ConnMaxIdleTime: idle, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	switch {
	case c.Type == typeCluster:
		return goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: n.addrs, DisableRoutingPolicies: true,
			OnConnect: greet, Protocol: o.Protocol, Username: o.Username, Password: o.Password, TLSConfig: o.TLSConfig,
			MaxRetries: o.MaxRetries, MinRetryBackoff: o.MinRetryBackoff, MaxRetryBackoff: o.MaxRetryBackoff, MaxRedirects: max(3, retries),
			DialTimeout: o.DialTimeout, DialerRetries: o.DialerRetries, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
			ContextTimeoutEnabled: true, PoolSize: o.PoolSize, PoolTimeout: o.PoolTimeout, MinIdleConns: o.MinIdleConns,
			PipelinePoolSize: o.PipelinePoolSize, ConnMaxLifetime: o.ConnMaxLifetime, ConnMaxIdleTime: o.ConnMaxIdleTime, DisableIdentity: true,
			MaintNotificationsConfig: o.MaintNotificationsConfig})
	case c.Failover:
		return goredis.NewFailoverClient(&goredis.FailoverOptions{MasterName: c.SentinelMaster, SentinelAddrs: n.addrs,
			SentinelUsername: c.SentinelUsername, SentinelPassword: c.SentinelPassword.Reveal(),
			OnConnect: greet, Protocol: o.Protocol, Username: o.Username, Password: o.Password, DB: o.DB, TLSConfig: o.TLSConfig,
			MaxRetries: o.MaxRetries, MinRetryBackoff: o.MinRetryBackoff, MaxRetryBackoff: o.MaxRetryBackoff,
			DialTimeout: o.DialTimeout, DialerRetries: o.DialerRetries, ReadTimeout: o.ReadTimeout, WriteTimeout: o.WriteTimeout,
			ContextTimeoutEnabled: true, PoolSize: o.PoolSize, PoolTimeout: o.PoolTimeout, MinIdleConns: o.MinIdleConns,
			PipelinePoolSize: o.PipelinePoolSize, ConnMaxLifetime: o.ConnMaxLifetime, ConnMaxIdleTime: o.ConnMaxIdleTime, DisableIdentity: true})
	}
	o.Addr = n.addrs[0]
	return goredis.NewClient(&o)
}

// begin admits an exchange; end must follow.
func (n *conn) begin(op fault.Op) (goredis.UniversalClient, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	client, err := n.ready(op)
	if err == nil {
		n.calls++
	}
	return client, err
}

// use is the client for what Close does not wait for.
func (n *conn) use(op fault.Op) (goredis.UniversalClient, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready(op)
}

// ready is the client, unless the component is closed; mu is held.
func (n *conn) ready(op fault.Op) (goredis.UniversalClient, error) {
	if n.closed {
		return nil, fault.New(op, fault.Unavailable, "%s: the component is closed", n.where()).WithSent(fault.SentNever)
	}
	if n.client == nil {
		n.client = n.dial(nil)
	}
	return n.client, nil
}

func (n *conn) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.calls--; n.closed && n.calls == 0 {
		close(n.idle)
	}
}

// exchange runs send, which performs cmds with the client. When it returns nil, cmds are settled
// and their results may be read. After an error they belong to send still, which the caller has
// not waited for; the error then speaks for all of them that were sent, and unsent ones stay so.
func (n *conn) exchange(ctx context.Context, op fault.Op, cmds []*command, send func(context.Context, goredis.UniversalClient)) error {
	if err := ctx.Err(); err != nil {
		return ended(op, n.where(), err, false)
	}
	client, err := n.begin(op)
	if err != nil {
		return err
	}
	if ctx.Done() == nil {
		defer n.end()
		send(ctx, client)
		return nil
	}
	// The library looks at ctx before it sends but not while it waits for an answer, so that has
	// to happen elsewhere. It ends by readTimeout, and Close waits for it.
	done := make(chan struct{})
	go func() {
		defer n.end()
		send(ctx, client)
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	sent := false
	for _, c := range cmds {
		sent = c.abandon() || sent
	}
	return ended(op, n.where(), ctx.Err(), sent)
}

// one performs a single command.
func (n *conn) one(ctx context.Context, op fault.Op, cmd *command) error {
	err := n.exchange(ctx, op, []*command{cmd}, func(ctx context.Context, client goredis.UniversalClient) {
		_ = client.Process(ctx, cmd)
	})
	if err != nil {
		return err
	}
	return n.failure(ctx, op, cmd)
}

// ping asks for a sign of life.
func (n *conn) ping(ctx context.Context, op fault.Op) error {
	return n.one(ctx, op, newCommand(false, 0, "ping", "mecha"))
}

// close ends the client and waits for exchanges under way, whose connections it cuts.
func (n *conn) close(ctx context.Context, op fault.Op) error {
	n.mu.Lock()
	client := n.client
	if !n.closed {
		n.closed = true
		if n.calls == 0 {
			close(n.idle)
		}
	}
	n.client = nil
	n.mu.Unlock()
	if client != nil {
		_ = client.Close() // its only error is that it was closed before
	}
	select {
	case <-n.idle:
		return nil
	case <-ctx.Done():
		return ended(op, n.where(), ctx.Err(), true)
	}
}
