package peerapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/api/link"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Invocations serves calls for the own app.
type Invocations interface {
	Serve(ctx context.Context, req *call.Request, caller string, out call.Responder) error
}

// Server answers peer sidecars. It is safe for concurrent use.
type Server struct {
	serve Invocations
	cfg   link.Config
	log   *slog.Logger

	mu       sync.Mutex
	sessions map[*link.Session]struct{} // guarded by mu
	raw      map[net.Conn]struct{}      // guarded by mu: connections in handshake
	closing  bool                       // guarded by mu
	entering sync.WaitGroup             // handshakes; none begins once closing is set
	running  sync.WaitGroup
}

// NewServer makes a server for one app. self is shown to peers in the handshake.
func NewServer(serve Invocations, self string, log *slog.Logger) *Server {
	s := &Server{serve: serve, log: log, sessions: map[*link.Session]struct{}{}, raw: map[net.Conn]struct{}{}}
	s.cfg = sessionConfig(self, log)
	s.cfg.Handler = s.handle
	return s
}

// Serve accepts peers on l until Shutdown or Close, then returns nil.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			if s.isClosing() || ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				time.Sleep(20 * time.Millisecond) // out of descriptors: leave room to recover
				continue
			}
			return fault.Wrap("peerapi.Serve", fault.Unavailable, err)
		}
		s.running.Add(1)
		go s.admit(conn)
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// maxPeers bounds the connections of the peer port. Each sidecar that calls us needs one.
const maxPeers = 8192

// admit runs the handshake of one connection.
func (s *Server) admit(conn net.Conn) {
	defer s.running.Done()
	s.mu.Lock()
	if s.closing || len(s.raw)+len(s.sessions) >= maxPeers {
		s.mu.Unlock()
		conn.Close()
		return
	}
	s.raw[conn] = struct{}{}
	s.entering.Add(1)
	s.mu.Unlock()

	// From the moment the peer is accepted it may call, so a shutdown must let its calls end.
	cfg := s.cfg
	cfg.Check = func([]byte) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.raw, conn)
		if s.closing {
			return fault.New("peerapi.admit", fault.Unavailable, "this sidecar is shutting down")
		}
		return nil
	}
	sess, err := link.NewServer(conn, cfg)

	s.mu.Lock()
	delete(s.raw, conn)
	if err == nil {
		s.sessions[sess] = struct{}{}
	}
	s.mu.Unlock()
	s.entering.Done()
	if err != nil {
		conn.Close()
		s.log.Debug("a peer connection was refused", "peer", conn.RemoteAddr().String(), "err", err)
		return
	}
	<-sess.Done()
	sess.Wait()
	s.mu.Lock()
	delete(s.sessions, sess)
	s.mu.Unlock()
}

// Shutdown lets running calls end until ctx does, then breaks the sessions.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	for c := range s.raw {
		c.Close()
	}
	s.mu.Unlock()
	s.entering.Wait() // those just accepted are sessions now
	s.mu.Lock()
	all := make([]*link.Session, 0, len(s.sessions))
	for sess := range s.sessions {
		all = append(all, sess)
	}
	s.mu.Unlock()
	var drains sync.WaitGroup
	for _, sess := range all {
		drains.Add(1)
		go func() {
			defer drains.Done()
			if sess.Drain(ctx) != nil {
				sess.Close()
			}
		}()
	}
	drains.Wait()
	s.running.Wait()
	return ctx.Err()
}

// handle answers one call.
func (s *Server) handle(st *link.Stream) {
	req, streamed, err := decodeRequest(st.Head())
	if err != nil {
		st.Refuse(fault.Invalid, err.Error())
		return
	}
	first, whole := st.First()
	switch {
	case whole && !streamed:
		req.Data, req.Length = first, int64(len(first))
	case req.Upgrade != "": // no body; what follows is for the protocol switched to
	case !streamed: // announced as whole but over one frame: gather it
		mem := takeMemory(req.Length)
		defer mem.Close()
		if req.Data, err = st.ReadRest(mem.start(first), wholeLimit(req.Length)); err != nil {
			st.Refuse(fault.Of(err), err.Error()) // in vain if the stream itself is over
			return
		}
		req.Length = int64(len(req.Data))
	default:
		body := &requestBody{first: first, st: st}
		defer body.over.Store(true)
		req.Stream, req.Trailer = body, body.trailer
	}
	out := &responder{st: st, offered: req.Upgrade != ""}
	err = s.serve.Serve(st.Context(), req, req.Header.Get("dapr-caller-app-id"), out)
	if err == nil {
		return
	}
	if out.begun {
		st.Reset(fault.Of(err), err.Error())
		return
	}
	_ = st.SendHead(appendError(nil, err), nil, true, nil) // the caller may be gone
}

// requestBody is a streamed request body: what came with the head, then the stream.
type requestBody struct {
	first []byte
	st    *link.Stream
	over  atomic.Bool // closed, or its call has ended
}

// errBodyOver is what a body gives that is read after its call. The stream itself would say
// io.EOF there, and an app that answered early would take half a body for a whole one.
var errBodyOver = fault.New("peerapi.body", fault.Canceled, "the request body was closed, or its call has ended")

func (b *requestBody) Read(p []byte) (int, error) {
	if len(b.first) > 0 && !b.over.Load() {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	n, err := b.st.Read(p)
	if call.Ended(err) && b.over.Load() { // set before the stream is told
		err = errBodyOver
	}
	return n, err
}

// trailer is what the caller sent behind the body; one that cannot be read counts as none.
func (b *requestBody) trailer() call.Fields {
	fs, err := decodeEnd(b.st.Trailer())
	if err != nil {
		return nil
	}
	return fs
}

// Close tells the caller that no more of the body is wanted; it is no failure of the call.
func (b *requestBody) Close() error {
	b.over.Store(true)
	b.st.CloseRead()
	return nil
}

// tunnel is a stream after its call was upgraded.
type tunnel struct{ requestBody }

func (t *tunnel) Write(p []byte) (int, error) { return t.st.Write(p) }

// CloseWrite ends our direction.
func (t *tunnel) CloseWrite() error { return t.st.CloseWrite(nil) }

// Close ends both directions; after their end it does nothing.
func (t *tunnel) Close() error {
	t.st.Reset(fault.Canceled, "the upgraded connection was closed")
	return nil
}

// responder sends the app's answer back.
type responder struct {
	st      *link.Stream
	offered bool // the caller would switch protocols
	begun   bool
}

// Respond implements call.Responder.
func (r *responder) Respond(ctx context.Context, resp *call.Response) error {
	if resp.Upgrade != nil && !r.offered {
		return fault.New("peerapi.Respond", fault.Unsupported, "the app answered 101 Switching Protocols, which its caller did not offer")
	}
	r.begun = true
	buf := takeHead()
	defer giveHead(buf)
	*buf = appendResponse((*buf)[:0], resp)
	if resp.Stream == nil && resp.Upgrade == nil {
		var trailer []byte
		if resp.Trailer != nil {
			trailer = appendTrailer(nil, resp.Trailer())
		}
		return ignoreStop(r.st.SendHead(*buf, resp.Data, true, trailer))
	}
	if err := r.st.SendHead(*buf, nil, false, nil); err != nil {
		return ignoreStop(err)
	}
	if resp.Upgrade != nil {
		call.Splice(ctx, &tunnel{requestBody{st: r.st}}, resp.Upgrade)
		return nil
	}
	err := copyBody(r.st, resp.Stream)
	switch {
	case errors.Is(err, link.ErrStopped):
		return nil
	case err != nil:
		// The body broke off at the app: the caller must not take it for whole.
		_ = r.st.CloseWrite(appendError(nil, err))
		return nil
	}
	var trailer []byte
	if resp.Trailer != nil {
		trailer = appendTrailer(nil, resp.Trailer())
	}
	return ignoreStop(r.st.CloseWrite(trailer))
}

func ignoreStop(err error) error {
	if errors.Is(err, link.ErrStopped) {
		return nil
	}
	return err
}

// copyBody sends what src gives as it comes. A src that ends well gives nil.
func copyBody(st *link.Stream, src io.Reader) error {
	buf := takeChunk()
	defer giveChunk(buf)
	for {
		n, err := src.Read(*buf)
		if n > 0 {
			if _, werr := st.Write((*buf)[:n]); werr != nil {
				return werr
			}
		}
		if call.Ended(err) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var (
	heads  = sync.Pool{New: func() any { b := make([]byte, 0, 1<<10); return &b }}
	chunks = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}
)

func takeHead() *[]byte { return heads.Get().(*[]byte) }

func giveHead(b *[]byte) {
	if cap(*b) <= 64<<10 { // a rare huge head is not kept
		heads.Put(b)
	}
}

func takeChunk() *[]byte  { return chunks.Get().(*[]byte) }
func giveChunk(b *[]byte) { chunks.Put(b) }
