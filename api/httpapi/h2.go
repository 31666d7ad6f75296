package httpapi

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// h2server answers connections that speak HTTP/2 with prior knowledge. It is not the hot
// path, so the standard server runs behind the exchange interface, fed one connection at a
// time.
type h2server struct {
	srv   http.Server
	conns chan net.Conn
	once  sync.Once // starts srv
	stop  sync.Once // closes done
	done  chan struct{}
}

func newH2Server(o Options, handle func(exchange)) *h2server {
	s := &h2server{conns: make(chan net.Conn), done: make(chan struct{})}
	s.srv.MaxHeaderBytes = o.MaxHeader
	s.srv.Protocols = new(http.Protocols)
	s.srv.Protocols.SetUnencryptedHTTP2(true)
	s.srv.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1000}
	s.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		x := &h2exchange{w: w, req: req}
		handle(x)
		if x.aborted {
			panic(http.ErrAbortHandler) // resets the stream, unlogged
		}
	})
	return s
}

// serve answers one connection and returns when it is over.
func (s *h2server) serve(c net.Conn) {
	s.once.Do(func() { go s.srv.Serve(handover{s}) })
	held := &heldConn{Conn: c, closed: make(chan struct{})}
	select {
	case s.conns <- held:
	case <-s.done:
		return
	}
	<-held.closed
}

// shutdown tells every connection to finish what it has and to begin nothing new, waits for
// that until ctx ends, and then breaks what is left.
func (s *h2server) shutdown(ctx context.Context) {
	handover{s}.Close() // a server that never served has not been given its listener
	if s.srv.Shutdown(ctx) != nil {
		s.srv.Close()
	}
}

// handover is a listener whose connections come from another one.
type handover struct{ s *h2server }

func (l handover) Accept() (net.Conn, error) {
	select {
	case c := <-l.s.conns:
		return c, nil
	case <-l.s.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; shutting the server down waits for that.
func (l handover) Close() error {
	l.s.stop.Do(func() { close(l.s.done) })
	return nil
}

func (handover) Addr() net.Addr { return &net.TCPAddr{} }

// heldConn tells when its user has closed it.
type heldConn struct {
	net.Conn
	once   sync.Once
	closed chan struct{}
}

func (c *heldConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.closed) })
	return err
}

// h2exchange is one HTTP/2 stream in the shape of an HTTP/1.1 exchange.
type h2exchange struct {
	w      http.ResponseWriter
	req    *http.Request
	fields call.Fields

	aborted bool
}

func (x *h2exchange) Method() string { return x.req.Method }
func (x *h2exchange) Target() string { return x.req.URL.RequestURI() }
func (x *h2exchange) Host() string   { return x.req.Host }

func (x *h2exchange) Header() call.Fields {
	if x.fields == nil {
		x.fields = fieldsOf(x.req.Header)
	}
	return x.fields
}

func (x *h2exchange) ContentLength() int64 { return x.req.ContentLength }
func (x *h2exchange) Body() io.ReadCloser  { return x.req.Body }

func (x *h2exchange) ReadBody(limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(x.req.Body, limit+1))
	if int64(len(b)) > limit {
		return nil, errTooLarge(limit)
	}
	return b, fault.Wrap("httpapi.h2.ReadBody", fault.Canceled, err)
}

func (x *h2exchange) RequestTrailer() call.Fields { return fieldsOf(x.req.Trailer) }
func (x *h2exchange) Context() context.Context    { return x.req.Context() }

func (x *h2exchange) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", x.req.RemoteAddr)
	if err != nil {
		return nil
	}
	return a
}

func (x *h2exchange) Respond(status int, fields call.Fields, body []byte) error {
	if len(body) > 0 || (status >= 200 && status != 204 && status != 304) {
		fields.Set("Content-Length", strconv.Itoa(len(body)))
	}
	x.head(status, fields)
	_, err := x.w.Write(body)
	return err
}

func (x *h2exchange) Start(status int, fields call.Fields, length int64) error {
	if length >= 0 {
		fields.Set("Content-Length", itoa(length))
	}
	x.head(status, fields)
	return x.Flush()
}

func (x *h2exchange) head(status int, fields call.Fields) {
	h := x.w.Header()
	clear(h)
	for _, f := range fields {
		if !h1.HopByHop(f.Name) {
			h.Add(f.Name, f.Value)
		}
	}
	x.w.WriteHeader(status)
}

func (x *h2exchange) Write(p []byte) (int, error) { return x.w.Write(p) }
func (x *h2exchange) Flush() error                { return http.NewResponseController(x.w).Flush() }

func (x *h2exchange) End(trailer call.Fields) error {
	for _, f := range trailer {
		x.w.Header().Add(http.TrailerPrefix+f.Name, f.Value)
	}
	return nil
}

func (x *h2exchange) Inform(status int, fields call.Fields) error {
	x.head(status, fields)
	return nil
}

// Abort resets the stream when the handler returns.
func (x *h2exchange) Abort() { x.aborted = true }

func fieldsOf(h http.Header) call.Fields {
	fs := make(call.Fields, 0, len(h)+2)
	for name, values := range h {
		for _, v := range values {
			fs = append(fs, call.Field{Name: name, Value: v})
		}
	}
	return fs
}
