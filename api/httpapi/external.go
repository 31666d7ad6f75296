package httpapi

import (
	"context"
	"crypto/tls"
	"net/url"
	"strings"
	"sync"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/invoke"
)

// External calls plain HTTP services: HTTPEndpoint resources and URLs. It implements
// invoke.External; connections are kept per origin.
type External struct {
	mu      sync.Mutex
	clients map[origin]*h1.Client // guarded by mu
	max     int
}

// origin is what a connection can be shared for. Endpoints with TLS settings of their own
// share none.
type origin struct {
	scheme, addr string
	tls          *tls.Config
}

// NewExternal makes the caller of external services.
func NewExternal() *External { return &External{clients: map[origin]*h1.Client{}, max: 256} }

// Close drops idle connections.
func (e *External) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.clients {
		c.Close()
	}
	clear(e.clients)
}

// Forget drops the connections of an endpoint that share nothing with others: those with TLS
// settings of its own. Calls in progress end first.
func (e *External) Forget(to invoke.Endpoint) {
	cfg, ok := to.TLS.(*tls.Config)
	if !ok {
		return // its connections are their origin's; they end when they are idle
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, c := range e.clients {
		if k.tls == cfg {
			c.Close()
			delete(e.clients, k)
		}
	}
}

const opExternal fault.Op = "httpapi.external"

// Invoke sends the request to the endpoint's base URL with the method path appended.
func (e *External) Invoke(ctx context.Context, to invoke.Endpoint, req *call.Request) (*call.Response, error) {
	base, err := url.Parse(to.BaseURL)
	if err != nil || base.Host == "" || (base.Scheme != "http" && base.Scheme != "https") {
		closeStream(req)
		return nil, fault.New(opExternal, fault.Invalid, "%q is not an http or https URL", to.BaseURL)
	}
	if req.Protocol == call.GRPC {
		closeStream(req)
		return nil, fault.New(opExternal, fault.Unsupported, "a gRPC call cannot be proxied to the HTTP endpoint %s", to.BaseURL)
	}
	out, err := appRequest(req)
	if err != nil {
		closeStream(req)
		return nil, err
	}
	if prefix := strings.TrimSuffix(base.EscapedPath(), "/"); prefix != "" {
		out.Target = prefix + out.Target
	}
	out.Host = base.Host
	out.Fields = append(out.Fields, to.Header...)
	resp, err := e.client(base, to.TLS).Do(ctx, out)
	if err != nil {
		return nil, err
	}
	return appResponse(resp), nil
}

// client finds or makes the connection pool of an origin. Callers choose URLs, so the number
// of pools is bounded: beyond it an arbitrary one makes room.
func (e *External) client(base *url.URL, settings any) *h1.Client {
	addr := base.Host
	if base.Port() == "" {
		port := "80"
		if base.Scheme == "https" {
			port = "443"
		}
		addr = base.Hostname() + ":" + port
	}
	cfg, _ := settings.(*tls.Config)
	key := origin{base.Scheme, addr, cfg}
	e.mu.Lock()
	defer e.mu.Unlock()
	if c, ok := e.clients[key]; ok {
		return c
	}
	if len(e.clients) >= e.max {
		for k, c := range e.clients {
			c.Close()
			delete(e.clients, k)
			break
		}
	}
	if cfg == nil {
		cfg = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	c := &h1.Client{Addr: addr, Dial: dialer(addr, base.Scheme == "https", cfg)}
	e.clients[key] = c
	return c
}
