package rabbitmq

import (
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mecha-project/mecha/components/conf"
)

// ConnConfig says how to reach RabbitMQ. Names and defaults are Dapr's.
type ConnConfig struct {
	// Host is the server's address, `amqp://user:password@host:5672/vhost`, with `amqps` for TLS.
	// Letters such as `@`, `/` and `%` in the password are escaped as in any URL. Parameters such
	// as `?heartbeat=10` are those of RabbitMQ's clients.
	Host conf.Secret `yaml:"host" alias:"connectionString" required:"true"`
	// ReconnectWait is the longest pause between attempts to connect again; they begin shorter. A
	// bare number is seconds.
	ReconnectWait time.Duration `yaml:"reconnectWaitInSeconds" alias:"reconnectWait,reconnectWaitSeconds" unit:"s"`
	// HeartBeat is how often each side shows that it lives. A connection silent for three times as
	// long is lost. A bare number is seconds.
	HeartBeat time.Duration `yaml:"heartBeat" unit:"s"`
	// ClientName is shown by the server for the connection. Default: the app's id and the
	// component's name.
	ClientName string `yaml:"clientName"`
	// ExternalSASL signs in by the client certificate instead of a password; the server needs the
	// plugin rabbitmq_auth_mechanism_ssl.
	ExternalSASL bool `yaml:"externalSasl" alias:"saslExternal"`
	TLS          conf.TLS
}

func defaultConn() ConnConfig {
	return ConnConfig{ReconnectWait: 5 * time.Second, HeartBeat: 10 * time.Second}
}

// Validate reports every mistake.
func (c *ConnConfig) Validate() error {
	var errs []error
	a, err := c.address()
	if err != nil {
		errs = append(errs, err)
	} else if !a.secure && (c.TLS.CACert != "" || c.TLS.ClientCert != "" || !c.TLS.ClientKey.Empty()) {
		errs = append(errs, conf.Bad("host", "certificates are given, and the address is without TLS; write amqps://"))
	} else if c.ExternalSASL && (!a.secure || c.TLS.ClientCert == "" && a.uri.CertFile == "") {
		errs = append(errs, conf.Bad("externalSasl", "needs an address with amqps:// and clientCert"))
	}
	if c.ReconnectWait <= 0 {
		errs = append(errs, conf.Bad("reconnectWaitInSeconds", "must be more than 0"))
	}
	if c.HeartBeat < time.Second || c.HeartBeat > 65535*time.Second {
		errs = append(errs, conf.Bad("heartBeat", "must be between 1s and 65535s"))
	}
	if len(c.ClientName) > 1024 {
		errs = append(errs, conf.Bad("clientName", "is longer than 1024 bytes"))
	}
	return errors.Join(errs...)
}

// address is the server's, taken apart.
type address struct {
	uri       amqp.URI
	secure    bool
	heartbeat time.Duration // 0: not said
}

// target is host:port.
func (a *address) target() string { return net.JoinHostPort(a.uri.Host, strconv.Itoa(a.uri.Port)) }

// address reads Host. Its errors do not show the text, which has a password in it.
func (c *ConnConfig) address() (address, error) {
	text := strings.TrimSpace(c.Host.Reveal())
	if text == "" {
		return address{}, conf.Bad("host", "required, but not given")
	}
	uri, err := amqp.ParseURI(text)
	if err != nil || uri.Port < 1 || uri.Port > 65535 || len(uri.Vhost) > 255 {
		return address{}, conf.Bad("host", "is no address of RabbitMQ; write amqp://user:password@host:5672/vhost, or amqps:// for TLS, and escape letters like @ / : %% in the password as %%40 %%2F %%3A %%25")
	}
	for _, m := range uri.AuthMechanism {
		switch strings.ToUpper(m) {
		case "PLAIN", "AMQPLAIN", "EXTERNAL":
		default:
			return address{}, conf.Bad("host", "auth_mechanism is none of plain, amqplain, external")
		}
	}
	a := address{uri: uri, secure: uri.Scheme == "amqps"}
	if u, err := url.Parse(text); err == nil { // the library keeps the number to itself
		n, _ := strconv.Atoi(u.Query().Get("heartbeat"))
		a.heartbeat = time.Duration(n) * time.Second
	}
	return a, nil
}

// sasl are the ways to sign in, best first.
func (c *ConnConfig) sasl(a *address) []amqp.Authentication {
	if c.ExternalSASL {
		return []amqp.Authentication{&amqp.ExternalAuth{}}
	}
	var out []amqp.Authentication
	for _, m := range a.uri.AuthMechanism {
		switch strings.ToUpper(m) {
		case "PLAIN":
			out = append(out, a.uri.PlainAuth())
		case "AMQPLAIN":
			out = append(out, a.uri.AMQPlainAuth())
		case "EXTERNAL":
			out = append(out, &amqp.ExternalAuth{})
		}
	}
	if out == nil {
		out = append(out, a.uri.PlainAuth())
	}
	return out
}

// tlsConfig is nil for an address without TLS. What the address says of certificates counts where
// the keys of the component say nothing.
func (c *ConnConfig) tlsConfig(a *address) (*tls.Config, error) {
	if !a.secure {
		return nil, nil
	}
	t := c.TLS
	if t.CACert == "" {
		t.CACert = a.uri.CACertFile
	}
	if t.ClientCert == "" && t.ClientKey.Empty() {
		t.ClientCert, t.ClientKey = a.uri.CertFile, conf.Secret(a.uri.KeyFile)
	}
	if t.ServerName == "" {
		t.ServerName = a.uri.ServerName
	}
	if t.ServerName == "" {
		t.ServerName = a.uri.Host
	}
	return t.Config()
}
