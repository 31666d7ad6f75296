package kafka

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// conn is how a component's clients reach Kafka. It holds no connection itself.
type conn struct {
	config ConnConfig
	addrs  []string
	tls    *tls.Config // nil: none
	id     string
	log    *slog.Logger
	health health
}

// newConn prepares clients. It reads the certificates and does no other I/O.
func newConn(env block.Env, c ConnConfig) (*conn, error) {
	const op fault.Op = "kafka.Connect"
	addrs, err := c.addresses()
	if err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	n := &conn{config: c, addrs: addrs, id: c.ClientID, log: env.Log}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.health.log = n.log
	if n.id == "" {
		n.id = env.AppID
	}
	if n.id == "" {
		n.id = "mecha"
	}
	if c.secure() {
		if n.tls, err = c.TLS.Config(); err != nil {
			return nil, fault.New(op, fault.Invalid, "TLS to %s", n.where()).Because(err)
		}
	}
	n.warn()
	return n, nil
}

func (n *conn) where() string { return "Kafka at " + strings.Join(n.addrs, ",") }

// warn tells of settings that have no effect, or another one than may be thought.
func (n *conn) warn() {
	c := &n.config
	if c.auth() == authNone && (c.SASLUsername != "" || !c.SASLPassword.Empty()) {
		n.log.Warn("saslUsername and saslPassword are not used with authType none")
	}
	if c.auth() == authPassword && n.tls == nil && c.SASLMechanism == "PLAINTEXT" && !loopback(n.addrs) {
		n.log.Warn("the password goes to the brokers without encryption; set saslMechanism SHA-512, or leave disableTls out")
	}
	if n.tls != nil && c.TLS.SkipVerify {
		n.log.Warn("skipVerify takes any broker's certificate")
	}
	if c.Schemas.RegistryURL != "" {
		n.log.Warn("schemas are not offered: schemaRegistryURL has no effect, and requests with valueSchemaType are refused")
	}
}

func loopback(addrs []string) bool {
	for _, a := range addrs {
		host, _, _ := net.SplitHostPort(a)
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
}

// client makes a client of the library, which connects by itself and goes on trying.
func (n *conn) client(more ...kgo.Opt) (*kgo.Client, error) {
	c := &n.config
	opts := append([]kgo.Opt{
		kgo.SeedBrokers(n.addrs...), kgo.ClientID(n.id), kgo.SoftwareNameAndVersion("mecha", "1"), kgo.Dialer(n.dial),
		kgo.RequestTimeoutOverhead(c.ReadTimeout), kgo.MetadataMaxAge(c.MetadataRefresh), kgo.MetadataMinAge(metadataPause),
		kgo.WithLogger(logger{n.log}), kgo.WithHooks(&n.health), kgo.DisableClientMetrics(),
		// A broker that may create topics does so on first use, as with Dapr.
		kgo.AllowAutoTopicCreation(),
	}, more...)
	if m := c.mechanism(); m != nil {
		opts = append(opts, kgo.SASL(m))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fault.Wrap("kafka.Connect", fault.Invalid, err)
	}
	return client, nil
}

// metadataPause is the least time between questions for topics and brokers. It bounds how soon a
// client finds its way after a broker has moved or come back.
const metadataPause = 250 * time.Millisecond

func (c *ConnConfig) mechanism() sasl.Mechanism {
	if c.auth() != authPassword {
		return nil
	}
	user, password := c.SASLUsername, c.SASLPassword.Reveal()
	switch c.SASLMechanism {
	case "SHA-256":
		return scram.Auth{User: user, Pass: password}.AsSha256Mechanism()
	case "SHA-512":
		return scram.Auth{User: user, Pass: password}.AsSha512Mechanism()
	}
	return plain.Auth{User: user, Pass: password}.AsMechanism()
}

// dial connects to one broker.
func (n *conn) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: n.config.DialTimeout, KeepAlive: n.config.KeepAlive}
	if n.tls == nil {
		return plain.DialContext(ctx, network, addr)
	}
	// The dialer's timeout bounds the handshake too.
	return (&tls.Dialer{NetDialer: plain, Config: n.tls}).DialContext(ctx, network, addr)
}

// health remembers how connecting went last, and tells once when that changes.
type health struct {
	log  *slog.Logger
	last atomic.Pointer[error] // of the last attempt; nil when it succeeded
}

var _ kgo.HookBrokerConnect = (*health)(nil)

// OnBrokerConnect implements kgo.HookBrokerConnect. Signing in is part of connecting.
func (h *health) OnBrokerConnect(broker kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err == nil {
		if h.last.Swap(nil) != nil {
			h.log.Info("connected to Kafka again", "broker", brokerName(broker))
		}
		return
	}
	if h.last.Swap(&err) == nil {
		h.log.Warn("cannot connect to Kafka; trying again", "broker", brokerName(broker), "error", err)
	}
}

// why is the error of the last attempt to connect, nil when it succeeded.
func (h *health) why() error {
	if err := h.last.Load(); err != nil {
		return *err
	}
	return nil
}

func brokerName(b kgo.BrokerMetadata) string { return net.JoinHostPort(b.Host, fmt.Sprint(b.Port)) }

// logger passes the library's warnings on as details: what an operator is to know is told here.
type logger struct{ log *slog.Logger }

// Level implements kgo.Logger.
func (l logger) Level() kgo.LogLevel {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		return kgo.LogLevelWarn
	}
	return kgo.LogLevelNone
}

// Log implements kgo.Logger.
func (l logger) Log(_ kgo.LogLevel, msg string, keyvals ...any) {
	l.log.Debug("kafka client: "+msg, keyvals...)
}
