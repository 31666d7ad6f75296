// Package httpbinding calls an HTTP server for the app: one URL, any verb.
//
// Here are the configuration and the component; exchange.go is one request and its answer.
package httpbinding

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

const doc = "Calls to an HTTP server."

// Backend lists the parts: an output binding.
func Backend() block.Backend {
	return block.Backend{Name: "httpbinding", Doc: doc, Parts: []block.Part{block.BindingPart("http", doc, DefaultConfig, New)}}
}

// Config configures the server and how it is called.
type Config struct {
	// URL is where requests go; a request may add a path to it. It is a secret, as it may hold
	// credentials.
	URL conf.Secret `yaml:"url" required:"true"`
	// MTLSRootCA is the authority trusted to sign the server's certificate, PEM or path. Empty
	// means the system's.
	MTLSRootCA string `yaml:"MTLSRootCA"`
	// MTLSClientCert is this side's certificate, PEM or path. Needs MTLSClientKey.
	MTLSClientCert string `yaml:"MTLSClientCert"`
	// MTLSClientKey is the certificate's private key, PEM or path.
	MTLSClientKey conf.Secret `yaml:"MTLSClientKey"`
	// MTLSRenegotiation is how often the server may ask for another handshake.
	MTLSRenegotiation string `yaml:"MTLSRenegotiation" enum:"RenegotiateNever,RenegotiateOnceAsClient,RenegotiateFreelyAsClient"`
	// SecurityToken is sent with every request, in the header SecurityTokenHeader.
	SecurityToken conf.Secret `yaml:"securityToken"`
	// SecurityTokenHeader names the header of SecurityToken.
	SecurityTokenHeader string `yaml:"securityTokenHeader"`
	// ResponseTimeout bounds a request with its answer. 0 means no bound but the caller's.
	ResponseTimeout time.Duration `yaml:"responseTimeout" unit:"s"`
	// MaxResponseBodySize bounds an answer's body; a longer one is an error.
	MaxResponseBodySize conf.ByteSize `yaml:"maxResponseBodySize"`
	// ErrorIfNot2XX makes answers with other statuses errors. A request's metadata entry of the
	// name decides for itself.
	ErrorIfNot2XX bool `yaml:"errorIfNot2XX"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() *Config {
	return &Config{MaxResponseBodySize: 100 * conf.MiB, ErrorIfNot2XX: true}
}

// Validate reports what cannot work. It reads no file.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if text := c.URL.Reveal(); text != "" {
		u, err := url.Parse(text) // err quotes the text
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			bad("url", "is no URL of an HTTP server; want http://host/path or https://host/path")
		}
	}
	switch {
	case c.MTLSClientCert != "" && c.MTLSClientKey.Empty():
		bad("MTLSClientKey", "required with MTLSClientCert")
	case c.MTLSClientCert == "" && !c.MTLSClientKey.Empty():
		bad("MTLSClientCert", "required with MTLSClientKey")
	}
	switch {
	case !c.SecurityToken.Empty() && c.SecurityTokenHeader == "":
		bad("securityTokenHeader", "required with securityToken: the name of the header that carries it")
	case c.SecurityTokenHeader != "" && c.SecurityToken.Empty():
		bad("securityToken", "required with securityTokenHeader")
	}
	if c.ResponseTimeout < 0 {
		bad("responseTimeout", "must not be negative; 0 means no bound")
	}
	if c.MaxResponseBodySize < 0 {
		bad("maxResponseBodySize", "must not be negative")
	}
	return errors.Join(errs...)
}

var _ block.Output = (*output)(nil)

// output calls one server.
type output struct {
	c         Config
	base      string // URL without a slash at its end
	host      string // of URL, for messages
	transport *http.Transport
	client    *http.Client
	closed    atomic.Bool
}

// New makes the client. It connects with the first request.
func New(_ block.Env, c *Config) (block.Component, error) {
	const op fault.Op = "httpbinding.New"
	secure, err := c.tls()
	if err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	u, err := url.Parse(c.URL.Reveal())
	if err != nil || u.Host == "" {
		return nil, fault.New(op, fault.Invalid, "url is no URL of an HTTP server")
	}
	o := &output{c: *c, base: strings.TrimRight(c.URL.Reveal(), "/"), host: u.Host}
	o.transport = &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: secure, ForceAttemptHTTP2: true,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second}
	o.client = &http.Client{Transport: o.transport, CheckRedirect: o.redirect}
	return o, nil
}

// tls makes the TLS settings, reading files where paths were given. Errors name our own keys.
func (c *Config) tls() (*tls.Config, error) {
	t := conf.TLS{CACert: c.MTLSRootCA, ClientCert: c.MTLSClientCert, ClientKey: c.MTLSClientKey}
	cfg, err := t.Config()
	if fe, ok := errors.AsType[*conf.FieldError](err); ok {
		ours := map[string]string{"caCert": "MTLSRootCA", "clientCert": "MTLSClientCert", "clientKey": "MTLSClientKey"}
		return nil, conf.Bad(ours[fe.Key], "%s", fe.Msg)
	}
	if err != nil {
		return nil, err
	}
	switch c.MTLSRenegotiation {
	case "RenegotiateOnceAsClient":
		cfg.Renegotiation = tls.RenegotiateOnceAsClient
	case "RenegotiateFreelyAsClient":
		cfg.Renegotiation = tls.RenegotiateFreelyAsClient
	}
	return cfg, nil
}

// maxRedirects is how many are followed.
const maxRedirects = 10

// redirect keeps the token from going to a host it was not meant for.
func (o *output) redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errRedirects
	}
	if first := via[0].URL; o.c.SecurityTokenHeader != "" && (req.URL.Host != first.Host || first.Scheme == "https" && req.URL.Scheme != "https") {
		req.Header.Del(o.c.SecurityTokenHeader)
	}
	return nil
}

var errRedirects = errors.New("the server redirects in circles")

// Ping succeeds until Close: a server that is away must not keep a sidecar from starting, and
// what it would answer to a request of ours is not known.
func (o *output) Ping(ctx context.Context) error { return o.usable(ctx, "httpbinding.Ping") }

// Close drops idle connections.
func (o *output) Close(context.Context) error {
	o.closed.Store(true)
	o.transport.CloseIdleConnections()
	return nil
}

func (o *output) usable(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	if o.closed.Load() {
		return fault.New(op, fault.Unavailable, "the HTTP binding is closed").WithSent(fault.SentNever)
	}
	return nil
}

// create is Dapr's word for post.
const create = "create"

var operations = []string{create, "get", "head", "post", "put", "patch", "delete", "options", "trace"}

// Operations are the verbs.
func (o *output) Operations() []string { return slices.Clone(operations) }
