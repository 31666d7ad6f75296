package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"sync"
	"time"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// h2client calls an app that speaks HTTP/2 with prior knowledge (h2c). Few apps do, so the
// standard transport serves. Request trailers do not travel: it wants their names beforehand.
type h2client struct {
	addr string
	wire http.Transport
}

func newH2Client(addr string, maxHeader int) *h2client {
	c := &h2client{addr: addr}
	c.wire.Protocols = new(http.Protocols)
	c.wire.Protocols.SetUnencryptedHTTP2(true)
	c.wire.DialContext = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	c.wire.DisableCompression = true
	c.wire.MaxResponseHeaderBytes = int64(maxHeader)
	return c
}

// do sends a request and returns when the head of its answer is there.
func (c *h2client) do(ctx context.Context, in *h1.Request) (*call.Response, error) {
	interim := interim{to: in.Inform}
	req, err := c.request(ctx, in, &interim)
	if err != nil {
		return nil, err
	}
	resp, err := c.wire.RoundTrip(req)
	interim.end()
	if err != nil {
		return nil, h2Failure(err)
	}
	out := &call.Response{Status: resp.StatusCode, Header: fieldsOf(resp.Header), Type: resp.Header.Get("Content-Type"), Length: resp.ContentLength}
	if in.Method == http.MethodHead || resp.ContentLength == 0 {
		return out, resp.Body.Close()
	}
	out.Stream = resp.Body
	out.Trailer = func() call.Fields { return fieldsOf(resp.Trailer) }
	return out, nil
}

// interim passes interim answers on while their call lasts. The transport reports them from a
// goroutine that does not wait for a call given up, when the one they go to may be gone.
type interim struct {
	mu sync.Mutex
	to func(status int, fields call.Fields) // guarded by mu; nil once the call is over
}

func (i *interim) pass(status int, fields call.Fields) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.to != nil {
		i.to(status, fields)
	}
}

func (i *interim) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.to = nil
}

func (c *h2client) request(ctx context.Context, in *h1.Request, interim *interim) (*http.Request, error) {
	u, err := url.Parse("http://" + c.addr + in.Target)
	if err != nil {
		return nil, fault.New(opChannel, fault.Invalid, "the method path %q is no URL path", in.Target)
	}
	if in.Inform != nil {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
			if status != http.StatusContinue {
				interim.pass(status, fieldsOf(http.Header(h)))
			}
			return nil
		}})
	}
	req := (&http.Request{Method: in.Method, URL: u, Host: c.addr, Header: make(http.Header, len(in.Fields)+1)}).WithContext(ctx)
	for _, f := range in.Fields {
		if !h1.HopByHop(f.Name) {
			req.Header.Add(f.Name, f.Value)
		}
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "") // else the transport names itself
	}
	req.Header.Del("Content-Length")
	req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(in.Body)), int64(len(in.Body))
	switch s := in.Stream.(type) {
	case nil:
		if len(in.Body) == 0 {
			req.Body = http.NoBody
		}
	case io.ReadCloser:
		req.Body, req.ContentLength = s, in.Length
	default:
		req.Body, req.ContentLength = io.NopCloser(s), in.Length
	}
	return req, nil
}

func (c *h2client) close() error {
	c.wire.CloseIdleConnections()
	return nil
}

// h2Failure gives a failure of the transport its code and tells how far the request got.
func h2Failure(err error) error {
	sent := fault.SentMaybe
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		sent = fault.SentNever
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fault.Wrap(opChannel, fault.Canceled, err)
	}
	return fault.New(opChannel, fault.Unavailable, "HTTP/2 call to the app").WithSent(sent).Because(err)
}
