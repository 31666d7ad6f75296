package peerapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/mecha-project/mecha/api/link"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Client calls peer sidecars over one multiplexed session each. It implements invoke.Peers
// and is safe for concurrent use.
type Client struct {
	pool *link.Pool
}

// NewClient makes a client. self is shown to peers in the handshake.
func NewClient(self string, log *slog.Logger) *Client {
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}
	return &Client{pool: link.NewPool(link.PoolConfig{Session: sessionConfig(self, log), Dial: dial})}
}

// Close lets calls in flight end until ctx does, then breaks what is left.
func (c *Client) Close(ctx context.Context) error { return c.pool.Close(ctx) }

// Invoke calls the app behind one instance. The answer's body streams from the session; an
// error's fault.Sent tells whether the peer may have seen the request.
func (c *Client) Invoke(ctx context.Context, to block.Instance, req *call.Request) (*call.Response, error) {
	buf := takeHead()
	defer giveHead(buf)
	*buf = appendRequest((*buf)[:0], req)
	st, err := c.pool.Open(ctx, to.Address, *buf, req.Data, req.Stream == nil && req.Upgrade == "")
	if err != nil {
		return nil, err
	}
	var up *upload
	if req.Stream != nil {
		up = startUpload(st, req)
	}
	head, first, final, err := st.RecvHead(ctx)
	if err != nil {
		up.fail(st)
		return nil, up.blame(err)
	}
	resp, streamed, upgrade, err := decodeAnswer(head)
	if err == nil && upgrade && req.Upgrade == "" {
		err = fault.New("peerapi.Invoke", fault.Invalid, "the peer switched protocols, which nobody offered").WithSent(fault.SentMaybe)
	}
	if err != nil {
		up.fail(st)
		st.Reset(fault.Canceled, "the answer could not be used")
		return nil, err
	}
	if req.Upgrade != "" && !upgrade {
		_ = st.CloseWrite(nil) // declined: nothing more comes from us
	}
	switch {
	case upgrade:
		resp.Upgrade = &answer{st: st, first: first, up: up}
	case streamed:
		body := &answer{st: st, first: first, up: up}
		resp.Stream, resp.Trailer = body, body.trailer
	default:
		if !final {
			mem := takeMemory(resp.Length)
			if mem != nil {
				resp.Held = mem
			}
			if first, err = st.ReadRest(mem.start(first), wholeLimit(resp.Length)); err != nil {
				resp.Close()
				up.fail(st)
				st.Reset(fault.Canceled, "the answer could not be used")
				return nil, up.blame(err)
			}
		}
		up.wait()
		return resp, finishWhole(resp, first, st.Trailer())
	}
	return resp, nil
}

// finishWhole completes an answer that is all here.
func finishWhole(resp *call.Response, data, trailer []byte) error {
	tail, err := decodeEnd(trailer)
	if err != nil {
		return err
	}
	resp.Data = data
	if len(data) > 0 { // else it is as announced: an answer to HEAD has a length and no body
		resp.Length = int64(len(data))
	}
	if len(tail) > 0 {
		resp.Trailer = func() call.Fields { return tail }
	}
	return nil
}

// upload sends a streamed request body beside the answer.
type upload struct {
	src    io.ReadCloser
	done   chan struct{}
	over   atomic.Bool           // the call has ended: what the body says from now on is no reason
	failed atomic.Pointer[error] // the body's own error: the caller broke off
}

func startUpload(st *link.Stream, req *call.Request) *upload {
	src, trailer := req.Stream, req.Trailer
	u := &upload{src: src, done: make(chan struct{})}
	go func() {
		defer close(u.done)
		err := copyBody(st, src)
		switch {
		case err == nil:
			var tail []byte
			if trailer != nil {
				tail = appendTrailer(nil, trailer())
			}
			_ = st.CloseWrite(tail) // its failure shows at the answer
		case errors.Is(err, link.ErrStopped):
		default:
			if !u.over.Load() {
				u.failed.Store(&err)
			}
			st.Reset(fault.Canceled, "the request body broke off: "+err.Error())
		}
		src.Close()
	}()
	return u
}

// fail ends an upload whose call failed.
func (u *upload) fail(st *link.Stream) {
	if u == nil {
		return
	}
	u.over.Store(true)
	st.Reset(fault.Canceled, "the call failed")
	u.src.Close()
	<-u.done
}

// blame prefers the reason the request body broke over what its end did to the stream.
func (u *upload) blame(err error) error {
	if u == nil {
		return err
	}
	if own := u.failed.Load(); own != nil {
		return *own
	}
	return err
}

// wait ends the upload: the answer is complete, so the rest of the request is not wanted.
func (u *upload) wait() {
	if u != nil {
		u.src.Close()
		<-u.done
	}
}

// answer is the body of a response.
type answer struct {
	st    *link.Stream
	first []byte
	up    *upload
	ended bool
	tail  call.Fields
	err   error
	once  sync.Once
}

func (a *answer) Read(p []byte) (int, error) {
	if len(a.first) > 0 {
		n := copy(p, a.first)
		a.first = a.first[n:]
		return n, nil
	}
	if a.ended {
		return 0, a.err
	}
	n, err := a.st.Read(p)
	if err == nil {
		return n, nil
	}
	a.ended, a.err = true, err
	if call.Ended(err) {
		tail, broke := decodeEnd(a.st.Trailer())
		if broke != nil {
			a.err = broke
		}
		a.tail = tail
	}
	return n, a.err
}

// Write sends raw bytes on an upgraded call.
func (a *answer) Write(p []byte) (int, error) { return a.st.Write(p) }

// CloseWrite ends our direction of an upgraded call.
func (a *answer) CloseWrite() error { return a.st.CloseWrite(nil) }

func (a *answer) trailer() call.Fields { return a.tail }

// Close gives the stream up; after its end it only frees what it held.
func (a *answer) Close() error {
	a.once.Do(func() {
		a.st.Reset(fault.Canceled, "the caller closed the answer")
		a.up.wait()
	})
	return nil
}
