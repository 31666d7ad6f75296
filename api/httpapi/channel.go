package httpapi

import (
	"context"
	"crypto/tls"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/call"
)

// ChannelOptions say how to reach an HTTP app.
type ChannelOptions struct {
	Address    string // host:port
	TLS        bool   // https; the app's certificate is not verified, as in Dapr
	H2C        bool   // HTTP/2 with prior knowledge, without TLS
	MaxHeader  int    // bytes of a response head
	HealthPath string // of the health probe
	Pipeline   []CallMiddleware
	Observe    ClientObserver
}

// ClientObserver measures calls into the app. path is the app's.
type ClientObserver interface {
	HTTPCalled(method, path string, status int, sent, received int64, took time.Duration)
	HTTPProbed(status int, took time.Duration)
}

// CallMiddleware wraps calls to the app (appHttpPipeline).
type CallMiddleware func(next CallHandler) CallHandler

// CallHandler sends a call to the app.
type CallHandler func(ctx context.Context, req *call.Request) (*call.Response, error)

// AppChannel calls an app over HTTP/1.1, or HTTP/2 where the app speaks that. It implements
// app.Channel.
type AppChannel struct {
	o     ChannelOptions
	do    func(context.Context, *h1.Request) (*call.Response, error)
	close func() error
	send  CallHandler
}

var _ app.Channel = (*AppChannel)(nil)

// NewAppChannel makes a channel. It connects on first use.
func NewAppChannel(o ChannelOptions) *AppChannel {
	c := &AppChannel{o: o}
	if o.H2C {
		wire := newH2Client(o.Address, o.MaxHeader)
		c.do, c.close = wire.do, wire.close
	} else {
		wire := &h1.Client{Addr: o.Address, MaxHeaderBytes: o.MaxHeader,
			Dial: dialer(o.Address, o.TLS, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})}
		c.close = wire.Close
		c.do = func(ctx context.Context, req *h1.Request) (*call.Response, error) {
			resp, err := wire.Do(ctx, req)
			if err != nil {
				return nil, err
			}
			return appResponse(resp), nil
		}
	}
	c.send = c.invoke
	for i := len(o.Pipeline) - 1; i >= 0; i-- {
		c.send = o.Pipeline[i](c.send)
	}
	return c
}

// dialer makes an h1 Dial function for an address.
func dialer(addr string, secure bool, cfg *tls.Config) func(context.Context) (net.Conn, error) {
	d := &net.Dialer{Timeout: 10 * time.Second}
	if !secure {
		return func(ctx context.Context) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	cfg = cfg.Clone()
	if cfg.ServerName == "" {
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
	}
	t := &tls.Dialer{NetDialer: d, Config: cfg}
	return func(ctx context.Context) (net.Conn, error) { return t.DialContext(ctx, "tcp", addr) }
}

// Close drops idle connections.
func (c *AppChannel) Close() error { return c.close() }

// Invoke calls the app.
func (c *AppChannel) Invoke(ctx context.Context, req *call.Request) (*call.Response, error) {
	return c.send(ctx, req)
}

const opChannel fault.Op = "httpapi.channel"

func (c *AppChannel) invoke(ctx context.Context, req *call.Request) (*call.Response, error) {
	if req.Protocol == call.GRPC {
		closeStream(req)
		return nil, fault.New(opChannel, fault.Unavailable, "app %s speaks HTTP (--app-protocol); a gRPC call cannot be proxied to it", c.o.Address).
			With(fault.AppUnreachable)
	}
	out, err := appRequest(req)
	if err != nil {
		closeStream(req)
		return nil, err
	}
	start := time.Now()
	resp, err := c.do(ctx, out)
	if err != nil {
		return nil, unreached(err)
	}
	if c.o.Observe != nil {
		c.o.Observe.HTTPCalled(req.Verb, "/"+req.Path, resp.Status, max(req.Length, 0), max(resp.Length, 0), time.Since(start))
	}
	return resp, nil
}

func closeStream(req *call.Request) {
	if req.Stream != nil {
		req.Stream.Close()
	}
}

// unreached marks failures to reach the app, so that callers do not take them for a peer's.
func unreached(err error) error {
	if fault.SentOf(err) != fault.SentNever || fault.Of(err) != fault.Unavailable {
		return err
	}
	return fault.New(opChannel, fault.Unavailable, "the app cannot be reached; is it listening, and is --app-port right?").
		With(fault.AppUnreachable).WithSent(fault.SentNever).Because(err)
}

// appRequest builds the HTTP request for the app.
func appRequest(req *call.Request) (*h1.Request, error) {
	if req.Verb == "" || req.Verb == "NONE" || req.Verb == "CONNECT" {
		return nil, fault.New(opChannel, fault.Invalid, "rpc error: code = InvalidArgument desc = invalid HTTP verb")
	}
	target, err := appTarget(req.Path, req.Query)
	if err != nil {
		return nil, err
	}
	out := &h1.Request{Method: req.Verb, Target: target, Body: req.Data, Length: req.Length, Inform: req.Inform}
	if req.Stream != nil {
		out.Stream = req.Stream
		if req.Trailer != nil {
			out.Trailer = func() call.Fields { return withoutBinary(req.Trailer()) }
		}
	}
	out.Fields = appFields(req)
	if req.Upgrade != "" {
		out.Upgrade = true
		out.Fields.Set("Upgrade", req.Upgrade)
	}
	return out, nil
}

// appFields are the headers the app sees. The request's own slice is used where it can be, and
// only room behind its end is written: a retry sends the same request again.
func appFields(req *call.Request) call.Fields {
	if req.Protocol == call.Unary {
		return unaryFields(req)
	}
	fs := req.Header
	if slices.ContainsFunc(fs, func(f call.Field) bool { return binary(f.Name) }) {
		fs = withoutBinary(append(make(call.Fields, 0, len(fs)+4), fs...))
	}
	if req.Type != "" && fs.Get("Content-Type") == "" {
		fs.Add("Content-Type", req.Type)
	}
	return fs
}

// unaryFields turns a gRPC caller's metadata into headers: "-bin" entries stay behind, pseudo
// headers and grpc-* get the prefix "dapr-".
func unaryFields(req *call.Request) call.Fields {
	fs := make(call.Fields, 0, len(req.Header)+1)
	for _, f := range req.Header {
		switch name := f.Name; {
		case binary(name) || h1.HopByHop(name) || strings.EqualFold(name, "content-type"):
		case strings.HasPrefix(name, ":"):
			fs.Add("dapr-"+name[1:], f.Value)
		case strings.HasPrefix(name, "grpc-"):
			fs.Add("dapr-"+name, f.Value)
		default:
			fs.Add(name, f.Value)
		}
	}
	if req.Type != "" {
		fs.Add("Content-Type", req.Type)
	}
	return fs
}

// appResponse turns the wire's answer into the house's.
func appResponse(resp *h1.Response) *call.Response {
	out := &call.Response{Status: resp.Status, Header: resp.Fields, Type: resp.Fields.Get("Content-Type"),
		Data: resp.Data, Length: resp.Length, Held: resp}
	if resp.Stream != nil {
		out.Stream = resp.Stream
		out.Trailer = resp.Trailer
		return out
	}
	if resp.Upgrade != nil {
		out.Upgrade = resp.Upgrade
	}
	if t := resp.Trailer(); len(t) > 0 {
		out.Trailer = resp.Trailer
	}
	return out
}

// Probe asks the health path; 2xx is healthy.
func (c *AppChannel) Probe(ctx context.Context) error {
	start := time.Now()
	resp, err := c.do(ctx, &h1.Request{Method: "GET", Target: c.o.HealthPath})
	if err != nil {
		return err
	}
	defer resp.Close()
	if c.o.Observe != nil {
		c.o.Observe.HTTPProbed(resp.Status, time.Since(start))
	}
	if resp.Status < 200 || resp.Status > 299 {
		return &app.StatusError{Text: "status code: " + strconv.Itoa(resp.Status)}
	}
	return nil
}
