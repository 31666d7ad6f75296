package mqtt

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/url"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/websocket"

	"github.com/mecha-project/mecha/components/conf"
)

// ConnConfig says how to reach an MQTT broker. Names and defaults are Dapr's.
type ConnConfig struct {
	// URL is the broker's address, `tcp://user:password@host:1883`. `mqtt` is the same as `tcp`;
	// `ssl`, `tls`, `mqtts` and `tcps` are with TLS, `ws` and `wss` through a web socket. Letters such
	// as `@`, `/` and `%` in the password are escaped as in any URL.
	URL conf.Secret `yaml:"url" required:"true"`
	// ConsumerID is what the broker knows this client by, with `-consumer` or `-producer` added. No two
	// running clients may have the same. Default: the app's id and the component's name.
	ConsumerID string `yaml:"consumerID"`
	// CleanSession makes the broker forget the subscription and what waits for it when the connection
	// ends.
	CleanSession bool `yaml:"cleanSession"`
	TLS          conf.TLS
}

// Validate reports every mistake.
func (c *ConnConfig) Validate() error {
	var errs []error
	a, err := c.address()
	if err != nil {
		errs = append(errs, err)
	} else if !a.secure && (c.TLS.CACert != "" || c.TLS.ClientCert != "" || !c.TLS.ClientKey.Empty()) {
		errs = append(errs, conf.Bad("url", "certificates are given, and the address is without TLS; write ssl:// or wss://"))
	}
	if err := text("consumerID", c.ConsumerID); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// text judges what goes to the broker as a string.
func text(key, s string) error {
	if len(s) > 60_000 || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return conf.Bad(key, "is longer than 60000 bytes, or no text that MQTT can carry")
	}
	return nil
}

// address is the broker's, taken apart.
type address struct {
	target   string // host:port
	host     string
	user     string
	password conf.Secret
	secure   bool
	path     string // of a web socket; else empty
}

var schemes = map[string]struct {
	port           string
	secure, socket bool
}{
	"tcp": {"1883", false, false}, "mqtt": {"1883", false, false},
	"ssl": {"8883", true, false}, "tls": {"8883", true, false}, "mqtts": {"8883", true, false}, "tcps": {"8883", true, false},
	"ws": {"80", false, true}, "wss": {"443", true, true},
}

// address reads URL. Its errors do not show the text, which has a password in it.
func (c *ConnConfig) address() (address, error) {
	wrong := conf.Bad("url", "is no address of an MQTT broker; write tcp://user:password@host:1883 or ssl:// for TLS, ws:// or wss:// for a web socket, and escape letters like @ / : %% in the password as %%40 %%2F %%3A %%25")
	given := strings.TrimSpace(c.URL.Reveal())
	if given == "" {
		return address{}, conf.Bad("url", "required, but not given")
	}
	u, err := url.Parse(given)
	if err != nil || u.Hostname() == "" || u.Port() == "0" {
		return address{}, wrong
	}
	s, ok := schemes[u.Scheme]
	if !ok {
		return address{}, wrong
	}
	a := address{host: u.Hostname(), secure: s.secure, user: u.User.Username()}
	if p, ok := u.User.Password(); ok {
		a.password = conf.Secret(p)
	}
	if text("", a.user) != nil || len(a.password) > 60_000 {
		return address{}, wrong
	}
	port := u.Port()
	if port == "" {
		port = s.port
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return address{}, wrong
	}
	a.target = net.JoinHostPort(a.host, port)
	if h, _, err := net.SplitHostPort(a.target); err != nil || h != a.host { // a bracket, for one
		return address{}, wrong
	}
	if s.socket {
		if a.path = u.RequestURI(); u.Path == "" {
			a.path = "/" + a.path
			a.path = strings.Replace(a.path, "//", "/", 1)
		}
	}
	return a, nil
}

// tlsConfig is nil for an address without TLS.
func (c *ConnConfig) tlsConfig(a *address) (*tls.Config, error) {
	if !a.secure {
		return nil, nil
	}
	t := c.TLS
	if t.ServerName == "" {
		t.ServerName = a.host
	}
	return t.Config()
}

// handshakeError is a failure of TLS or of the web socket, before MQTT began.
type handshakeError struct {
	of  string
	err error
}

func (e *handshakeError) Error() string { return e.of + ": " + e.err.Error() }
func (e *handshakeError) Unwrap() error { return e.err }

// dial connects, up to where MQTT begins, before ctx ends.
func (a *address) dial(ctx context.Context, secure *tls.Config) (net.Conn, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.target)
	if err != nil {
		return nil, err
	}
	if secure != nil {
		t := tls.Client(c, secure)
		if err := t.HandshakeContext(ctx); err != nil {
			_ = c.Close()
			return nil, &handshakeError{"TLS", err}
		}
		c = t
	}
	if a.path == "" {
		return c, nil
	}
	scheme, origin := "ws://", "http://"
	if a.secure {
		scheme, origin = "wss://", "https://"
	}
	o, err := websocket.NewConfig(scheme+a.target+a.path, origin+a.target)
	if err == nil {
		o.Protocol = []string{"mqtt"}
		defer context.AfterFunc(ctx, func() { _ = c.Close() })() // the library knows no context
		var w *websocket.Conn
		if w, err = websocket.NewClient(o, c); err == nil {
			w.PayloadType = websocket.BinaryFrame
			return w, nil
		}
	}
	_ = c.Close()
	return nil, &handshakeError{"web socket", err}
}
