package httpapi

import (
	"context"
	"crypto/subtle"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/call"
)

// Invoker is service invocation.
type Invoker interface {
	Invoke(ctx context.Context, req *call.Request, out call.Responder) error
}

// Observer measures and logs finished API requests. Methods are on the hot path.
type Observer interface {
	// HTTPServed is called after the answer was written. route is the operation's name
	// ("GetState", "InvokeService/orders"), path the cleaned request path.
	HTTPServed(r Served)
}

// Served describes one answered API request.
type Served struct {
	Method, Path, Route, UserAgent string
	Status                         int
	BytesIn, BytesOut              int64
	Took                           time.Duration
	Health                         bool // a health probe of the sidecar
}

// Tracing gives each request its span. A nil Tracing leaves trace headers alone.
type Tracing interface {
	// HTTPBegin reads the caller's trace headers and starts the request's span. The span's
	// context is in the returned context. refused is a text for a 400 answer when the
	// caller's headers are unacceptable.
	HTTPBegin(ctx context.Context, method, path string, header call.Fields) (next context.Context, span Span, refused string)
}

// Span is a request's span.
type Span interface {
	// Response appends the headers that tell the caller about the trace.
	Response(h call.Fields) call.Fields
	// Request puts the trace context into the headers of a call made for the request.
	Request(h call.Fields) call.Fields
	// End closes the span with the answer's status.
	End(status int)
}

// Options make a Server. The zero value of an optional field turns its feature off.
type Options struct {
	AppID   string
	Token   string // DAPR_API_TOKEN; empty means none is asked for
	MaxBody int64  // bytes of a request body; below zero means no limit
	// MaxHeader bounds the request line and headers in bytes.
	MaxHeader int
	Origins   []string // CORS; empty means no CORS handling
	Allow     *Rules   // API allow and deny lists
	Pipeline  []Middleware
	H2C       bool // answer HTTP/2 with prior knowledge on the same port

	Invoke  Invoker
	State   State
	PubSub  PubSub
	Secret  Secret
	Lock    Lock
	Config  Config
	Crypto  Crypto
	Binding Binding
	// Native registers services of our own, whose unary methods are answered as JSON; may be nil.
	Native  func(grpc.ServiceRegistrar)
	About   *about.Sidecar
	Observe Observer
	Tracing Tracing
	Log     *slog.Logger
}

// Server answers Dapr's HTTP API. It is safe for concurrent use.
type Server struct {
	o      Options
	wire   *h1.Server
	public *h1.Server
	h2     *h2server
	chain  Handler
	spare  sync.Pool
	own    natives
}

// Handler answers one request.
type Handler func(*Request)

// Middleware wraps API requests (httpPipeline) or calls to the app (appHttpPipeline).
type Middleware func(next Handler) Handler

// New makes a server. Serve it on any number of listeners.
func New(o Options) *Server {
	s := &Server{o: o}
	s.spare.New = func() any { return new(Request) }
	if o.Native != nil {
		o.Native(&s.own)
	}
	s.chain = s.dispatch
	for i := len(o.Pipeline) - 1; i >= 0; i-- {
		s.chain = o.Pipeline[i](s.chain)
	}
	s.wire = &h1.Server{Handler: func(x *h1.Exchange) { s.handle(x, s.api) }, MaxHeaderBytes: o.MaxHeader, Log: o.Log}
	s.public = &h1.Server{Handler: func(x *h1.Exchange) { s.handle(x, s.publicOnly) }, MaxHeaderBytes: o.MaxHeader, Log: o.Log}
	if o.H2C {
		s.h2 = newH2Server(o, func(x exchange) { s.handle(x, s.api) })
		s.wire.H2 = s.h2.serve
	}
	return s
}

// Serve answers the whole API on l until Shutdown, then returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.wire.Serve(ctx, l) }

// ServePublic answers only metadata and health on l.
func (s *Server) ServePublic(ctx context.Context, l net.Listener) error {
	return s.public.Serve(ctx, l)
}

// Shutdown stops accepting and lets running requests finish until ctx ends. What is left then
// breaks when the context of Serve ends.
func (s *Server) Shutdown(ctx context.Context) error {
	var h2 sync.WaitGroup
	if s.h2 != nil {
		h2.Go(func() { s.h2.shutdown(ctx) })
	}
	err := s.wire.Shutdown(ctx)
	if e := s.public.Shutdown(ctx); err == nil {
		err = e
	}
	h2.Wait()
	return err
}

// handle runs one exchange: request context, tracing, measuring, then the rest.
func (s *Server) handle(x exchange, next Handler) {
	r := s.spare.Get().(*Request)
	r.begin(s, x)
	defer s.finish(r)
	if r.badPath {
		r.Text(400, "400 Bad Request")
		return
	}
	if s.o.Tracing == nil || r.health() {
		next(r)
		return
	}
	ctx, span, refused := s.o.Tracing.HTTPBegin(x.Context(), r.Method, r.Path, r.Header)
	if refused != "" {
		r.Text(400, refused)
		return
	}
	r.ctx, r.span = ctx, span
	next(r)
}

// finish reports the request and makes a panic an answer instead of a dead connection.
func (s *Server) finish(r *Request) {
	if p := recover(); p != nil {
		s.o.Log.Error("a request handler panicked", "method", r.Method, "path", r.Path, "err", call.Panicked(p))
		if r.status == 0 {
			r.Fail(apierr.Internal.Because("internal error; see the sidecar's log"))
		} else {
			r.x.Abort()
		}
	}
	if r.status == 0 {
		r.Fail(apierr.Internal.Because("the request was not answered"))
	}
	if r.span != nil {
		r.span.End(r.status)
	}
	if s.o.Observe != nil {
		s.o.Observe.HTTPServed(Served{Method: r.Method, Path: r.Path, Route: r.route, UserAgent: r.Header.Get("User-Agent"),
			Status: r.status, BytesIn: r.in, BytesOut: r.out, Took: time.Since(r.start), Health: r.health()})
	}
	r.reset()
	s.spare.Put(r)
}

// api is the order of what the API port does before a route sees the request: CORS, token,
// pipeline.
func (s *Server) api(r *Request) {
	if len(s.o.Origins) > 0 && s.cors(r) {
		return
	}
	if s.o.Token != "" && !s.admitted(r) {
		r.Text(401, "invalid api token")
		return
	}
	s.chain(r)
}

// admitted checks the API token and removes it, so that it never travels to an app.
func (s *Server) admitted(r *Request) bool {
	if r.Method == "GET" && r.health() {
		return true
	}
	got := r.Header.Get(tokenHeader)
	if subtle.ConstantTimeCompare([]byte(got), []byte(s.o.Token)) != 1 {
		return false
	}
	r.Header.Del(tokenHeader)
	return true
}

const tokenHeader = "dapr-api-token"

// publicOnly is the public port: metadata and health, nothing else.
func (s *Server) publicOnly(r *Request) {
	op, args := lookup(r)
	switch op.group {
	case groupMetadata, groupHealth:
		r.route = op.name
		op.handle(s, r, args)
		return
	}
	r.Text(404, "404 page not found\n")
}

// dispatch finds the route.
func (s *Server) dispatch(r *Request) {
	op, args := lookup(r)
	if op.handle != nil && s.o.Allow.HTTP(op) {
		r.route = op.name
		op.handle(s, r, args)
		return
	}
	if !s.o.Allow.HTTP(opInvoke) {
		r.Text(404, "404 page not found\n")
		return
	}
	s.invokeFallback(r)
}

// exchange is what the edge needs from a connection: an HTTP/1.1 exchange, or an HTTP/2
// stream behind the same methods.
type exchange interface {
	Method() string
	Target() string
	Host() string
	Header() call.Fields
	ContentLength() int64
	Body() io.ReadCloser
	ReadBody(max int64) ([]byte, error)
	RequestTrailer() call.Fields
	Context() context.Context
	RemoteAddr() net.Addr

	Respond(status int, fields call.Fields, body []byte) error
	Start(status int, fields call.Fields, length int64) error
	Write(p []byte) (int, error)
	Flush() error
	End(trailer call.Fields) error
	Inform(status int, fields call.Fields) error
	Abort()
}

// limited refuses to read more than n bytes.
type limited struct {
	r io.Reader
	n int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.n < 0 {
		return 0, errTooLarge(0)
	}
	if int64(len(p)) > l.n+1 {
		p = p[:l.n+1]
	}
	n, err := l.r.Read(p)
	l.n -= int64(n)
	if l.n < 0 {
		return n, errTooLarge(0)
	}
	return n, err
}

func errTooLarge(limit int64) error {
	e := fault.New("httpapi.body", fault.TooLarge, "stream too large")
	if limit > 0 {
		e.Msg = "stream too large: the limit is " + itoa(limit) + " bytes (--max-body-size)"
	}
	return e
}

// isHealth reports the paths of the health routes, exactly: they need no token, and anything
// else below them may be a call to an app.
func isHealth(path string) bool {
	rest, ok := strings.CutPrefix(path, "/v1.0/healthz")
	return ok && (rest == "" || rest == "/" || rest == "/outbound" || rest == "/outbound/")
}
