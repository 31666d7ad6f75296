package nats

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats/embedded"
)

// NodeConfig says which embedded node a component uses.
type NodeConfig struct {
	// DataDir is the node's directory. Default: the sidecar's data directory, ~/.mecha/embedded.
	DataDir string `yaml:"dataDir"`
	// Durability is what an acknowledged write survives: os (the death of any process) or strict
	// (also of the machine: synced before it is acknowledged). A directory keeps what it was
	// created with. Default: what the directory has, os for a new one.
	Durability string `yaml:"durability" enum:"os,strict"`
	// Linger is how long a node started by this component stays after its last client has left.
	Linger time.Duration `yaml:"linger" unit:"s"`
}

func defaultNode() NodeConfig { return NodeConfig{Linger: embedded.DefaultLinger} }

// Validate reports what cannot work.
func (c *NodeConfig) Validate() error {
	if c.Linger <= 0 {
		return conf.Bad("linger", "must be longer than 0")
	}
	return nil
}

func (c *NodeConfig) dialer(env block.Env) dialer {
	o := embedded.Options{DataDir: c.DataDir, Durability: embedded.Durability(c.Durability), Linger: c.Linger, Log: logger(env)}
	if o.DataDir == "" {
		o.DataDir = env.DataDir
	}
	return func(ctx context.Context) (*dialed, error) {
		c, err := embedded.Connect(ctx, o)
		if err != nil {
			return nil, err
		}
		return &dialed{nc: c.NATS(), away: c.Err, close: c.Close, local: true}, nil
	}
}

func logger(env block.Env) *slog.Logger {
	if env.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return env.Log
}

// ConnConfig says how to reach a NATS server.
type ConnConfig struct {
	// URL lists the servers: nats://host:4222, tls://host:4222; several separated by commas.
	URL string `yaml:"natsURL" alias:"url" required:"true"`
	// Name is the connection's name in the server's lists. Default: the app and component.
	Name string `yaml:"name"`
	// User and Password authenticate by password.
	User     string      `yaml:"user"`
	Password conf.Secret `yaml:"password"`
	// Token authenticates by token.
	Token conf.Secret `yaml:"token"`
	// JWT and SeedKey authenticate by a user token and the key that signs its challenge.
	JWT     conf.Secret `yaml:"jwt"`
	SeedKey conf.Secret `yaml:"seedKey"`
	// TLS, when any of its keys is set, applies to tls:// URLs.
	TLS conf.TLS
}

// Validate reports what cannot work.
func (c *ConnConfig) Validate() error {
	var errs []error
	if c.JWT.Empty() != c.SeedKey.Empty() {
		errs = append(errs, conf.Bad("seedKey", "jwt and seedKey go together; give both or none"))
	}
	if c.User == "" && !c.Password.Empty() {
		errs = append(errs, conf.Bad("password", "needs user"))
	}
	return errors.Join(errs...)
}

func (c *ConnConfig) dialer(env block.Env) dialer {
	return func(ctx context.Context) (*dialed, error) {
		opts, err := c.options(env)
		if err != nil {
			return nil, fault.New("nats.Connect", fault.Invalid, "configuration of the NATS connection").Because(err)
		}
		first := &firstDial{ctx: ctx}
		nc, err := natsgo.Connect(c.URL, append(opts, natsgo.SetCustomDialer(first))...)
		if err != nil {
			return nil, connectError(c.URL, err)
		}
		first.done.Store(true)
		return &dialed{nc: nc, away: nc.LastError, close: nc.Close}, nil
	}
}

// firstDial dials as the library would. Until done, it ends with the attempt to connect; later
// calls repair a lost connection, which lives longer.
type firstDial struct {
	ctx  context.Context
	done atomic.Bool
}

// Dial connects to one server.
func (d *firstDial) Dial(network, address string) (net.Conn, error) {
	ctx := d.ctx
	if d.done.Load() {
		ctx = context.Background()
	}
	return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, address)
}

// redacted is urls without credentials, for messages.
func redacted(urls string) string {
	parts := strings.Split(urls, ",")
	for i, u := range parts {
		at := strings.LastIndexByte(u, '@')
		if at < 0 {
			continue
		}
		scheme, _, ok := strings.Cut(u, "://")
		if !ok {
			scheme = "nats"
			if i > 0 { // a comma in the password is what cut it off, perhaps
				parts[i-1] = "***"
			}
		}
		parts[i] = scheme + "://***@" + u[at+1:]
	}
	return strings.Join(parts, ",")
}

func connectError(address string, err error) error {
	code := fault.Unavailable
	if _, unreadable := errors.AsType[*url.Error](err); unreadable {
		// Its words quote the address, or the part of a password that looks wrong.
		return fault.New("nats.Connect", fault.Invalid, "NATS at %s: the address cannot be read; special characters in user and password must be escaped (%%40 for @), or give user and password by their own keys", redacted(address)).WithSent(fault.SentNever)
	}
	switch {
	case errors.Is(err, natsgo.ErrAuthorization), errors.Is(err, natsgo.ErrAuthExpired), errors.Is(err, natsgo.ErrAuthRevoked):
		code = fault.Unauthenticated
	case errors.Is(err, natsgo.ErrBadHeaderMsg), strings.Contains(err.Error(), "parse"):
		code = fault.Invalid
	}
	return fault.New("nats.Connect", code, "NATS at %s: is the server up, and are address and credentials right?", redacted(address)).Because(err).WithSent(fault.SentNever)
}

func (c *ConnConfig) options(env block.Env) ([]natsgo.Option, error) {
	name := c.Name
	if name == "" {
		name = fmt.Sprintf("mecha %s %s", env.AppID, env.Component)
	}
	log := logger(env)
	opts := []natsgo.Option{
		natsgo.Name(name),
		natsgo.Timeout(5 * time.Second),
		natsgo.MaxReconnects(-1),
		natsgo.ReconnectWait(250 * time.Millisecond),
		natsgo.ReconnectBufSize(-1), // see embedded: a late write could overtake a newer one
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { log.Warn("nats", "error", err) }),
		natsgo.DisconnectErrHandler(func(_ *natsgo.Conn, err error) {
			if err != nil {
				log.Warn("nats connection lost; reconnecting", "error", err)
			}
		}),
		natsgo.ReconnectHandler(func(nc *natsgo.Conn) { log.Info("nats connection is back", "server", nc.ConnectedServerName()) }),
	}
	if c.User != "" {
		opts = append(opts, natsgo.UserInfo(c.User, c.Password.Reveal()))
	}
	if !c.Token.Empty() {
		opts = append(opts, natsgo.Token(c.Token.Reveal()))
	}
	if !c.JWT.Empty() {
		opts = append(opts, natsgo.UserJWTAndSeed(c.JWT.Reveal(), c.SeedKey.Reveal()))
	}
	if c.TLS != (conf.TLS{}) {
		t, err := c.TLS.Config()
		if err != nil {
			return nil, err
		}
		opts = append(opts, natsgo.Secure(t))
	}
	return opts, nil
}
