package embedded

import (
	"io"
	"net"
	"sync"
	"time"
)

// gate accepts clients on the socket, joins each to a connection of the server, and knows
// when the last one has left.
type gate struct {
	listener net.Listener
	dial     func() (net.Conn, error) // a connection of the server
	sent     func(bytes int)          // told of what a client sends, before the server is
	linger   time.Duration            // 0: for ever

	mu      sync.Mutex
	clients map[net.Conn]struct{} // guarded by mu
	idle    *time.Timer           // guarded by mu; runs while nobody is connected
	closed  bool                  // guarded by mu
	left    chan struct{}         // closed when nobody came back in time
	work    sync.WaitGroup
}

func newGate(l net.Listener, linger time.Duration, dial func() (net.Conn, error), sent func(int)) *gate {
	g := &gate{listener: l, dial: dial, sent: sent, linger: linger, clients: map[net.Conn]struct{}{}, left: make(chan struct{})}
	if linger > 0 {
		g.idle = time.AfterFunc(linger, g.giveUp)
	}
	g.work.Go(g.accept)
	return g
}

func (g *gate) accept() {
	for {
		c, err := g.listener.Accept()
		if err != nil {
			g.mu.Lock()
			closed := g.closed
			g.mu.Unlock()
			if closed {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely: let some go
			continue
		}
		if g.enter(c) {
			g.work.Go(func() { g.serve(c) })
		} else {
			_ = c.Close() // too late; the client starts another node
		}
	}
}

func (g *gate) enter(c net.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.clients[c] = struct{}{}
	if g.idle != nil {
		g.idle.Stop()
	}
	return true
}

func (g *gate) leave(c net.Conn) {
	_ = c.Close()
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.clients, c)
	if len(g.clients) == 0 && g.idle != nil && !g.closed {
		g.idle.Reset(g.linger)
	}
}

// giveUp is the end of the linger time. From here on nobody is let in, so the node can go
// without dropping a client that just arrived.
func (g *gate) giveUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.clients) == 0 && !g.closed {
		g.closed = true
		close(g.left)
	}
}

// serve splices one client. Each direction has its goroutine; the first to end closes both.
func (g *gate) serve(c net.Conn) {
	defer g.leave(c)
	s, err := g.dial()
	if err != nil {
		return
	}
	defer s.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		splice(c, s)
		_ = c.Close()
	}()
	splice(s, told{c, g.sent})
	_ = s.Close()
	_ = c.Close()
	<-done
}

// told passes on what it reads after telling how much it is.
type told struct {
	from io.Reader
	sent func(int)
}

func (t told) Read(p []byte) (int, error) {
	n, err := t.from.Read(p)
	if n > 0 {
		t.sent(n)
	}
	return n, err
}

// splice copies until one side ends. Reads are as large as the server's own buffer grows.
// The wrappers hide ReadFrom and WriteTo, whose detours gain nothing on a pipe.
func splice(to io.Writer, from io.Reader) {
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 32<<10))
}

// close lets nobody in, drops everybody, and waits for their goroutines.
func (g *gate) close() {
	g.mu.Lock()
	g.closed = true
	if g.idle != nil {
		g.idle.Stop()
	}
	clients := g.clients
	g.clients = map[net.Conn]struct{}{}
	g.mu.Unlock()
	_ = g.listener.Close()
	for c := range clients {
		_ = c.Close()
	}
	g.work.Wait()
}
