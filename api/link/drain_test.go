package link_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/api/link"
	"github.com/mecha-project/mecha/components/fault"
)

func TestDrain(t *testing.T) {
	for _, side := range []string{"of the handler's side", "of the caller's side"} {
		t.Run(side, func(t *testing.T) {
			onEachCarrier(t, func(t *testing.T, pair func(testing.TB) (net.Conn, net.Conn)) {
				release := make(chan struct{})
				c, s := sessions(t, pair, link.Config{Log: testLog(t)}, link.Config{Log: testLog(t), Handler: func(st *link.Stream) { <-release; echo(st) }})
				ctx := background(t)
				st, err := c.Open(ctx, nil, []byte("patience"), true)
				if err != nil {
					t.Fatal(err)
				}
				leaving := s
				if side == "of the caller's side" {
					leaving = c
				}
				drained := make(chan error, 1)
				go func() { drained <- leaving.Drain(ctx) }()
				eventually(t, "the caller's side knows", func() bool { return !c.Usable() })
				if _, err := c.Open(ctx, nil, nil, true); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
					t.Errorf("open while draining: %v (%v)", err, fault.SentOf(err))
				}
				select {
				case err := <-drained:
					t.Fatalf("drained with a stream open: %v", err)
				default:
				}
				close(release)
				if _, body, _, err := st.RecvHead(ctx); err != nil || string(body) != "patience" {
					t.Errorf("%q, %v", body, err)
				}
				if err := <-drained; err != nil {
					t.Error(err)
				}
				<-c.Done()
				<-s.Done()
				if err := leaving.Err(); !errors.Is(err, net.ErrClosed) {
					t.Errorf("the leaving side ended with %v", err)
				}
			})
		})
	}
}

func TestDrainTimeLimit(t *testing.T) {
	c, s := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) { <-st.Context().Done() }})
	st, err := c.Open(background(t), nil, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream arrived", func() bool { return s.Stats().Streams == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Drain(ctx); fault.Of(err) != fault.Deadline {
		t.Errorf("drain: %v", err)
	}
	if _, _, _, err := st.RecvHead(background(t)); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("call: %v (%v)", err, fault.SentOf(err))
	}
	if err := s.Drain(background(t)); err != nil {
		t.Errorf("second drain: %v", err)
	}
}

// host accepts sessions like an edge would.
type host struct {
	l   net.Listener
	cfg link.Config
	wg  sync.WaitGroup

	mu       sync.Mutex
	sessions []*link.Session
	accepted int
}

func newHost(t testing.TB, cfg link.Config) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{l: l, cfg: cfg}
	h.wg.Go(h.accept)
	t.Cleanup(h.stop)
	return h
}

func (h *host) addr() string { return h.l.Addr().String() }

func (h *host) accept() {
	for {
		conn, err := h.l.Accept()
		if err != nil {
			return
		}
		h.wg.Go(func() {
			s, err := link.NewServer(conn, h.cfg)
			if err != nil {
				return
			}
			h.mu.Lock()
			h.sessions = append(h.sessions, s)
			h.accepted++
			h.mu.Unlock()
			s.Wait()
		})
	}
}

// take removes the sessions accepted so far.
func (h *host) take() []*link.Session {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.sessions
	h.sessions = nil
	return s
}

func (h *host) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.accepted
}

func (h *host) stop() {
	_ = h.l.Close()
	for _, s := range h.take() {
		_ = s.Close()
	}
	h.wg.Wait()
}

func newPool(t testing.TB, cfg link.PoolConfig) *link.Pool {
	t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", addr)
		}
	}
	p := link.NewPool(cfg)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Errorf("closing the pool: %v", err)
		}
	})
	return p
}

func poolCall(ctx context.Context, p *link.Pool, addr string, body []byte) ([]byte, error) {
	st, err := p.Open(ctx, addr, nil, body, true)
	if err != nil {
		return nil, err
	}
	_, got, final, err := st.RecvHead(ctx)
	if err == nil && !final {
		var rest []byte
		rest, err = io.ReadAll(st)
		got = append(got, rest...)
	}
	return got, err
}

// TestDrainUnderLoad: a server may leave sessions again and again without one failed call.
func TestDrainUnderLoad(t *testing.T) {
	h := newHost(t, link.Config{Handler: echo})
	p := newPool(t, link.PoolConfig{})
	ctx := background(t)
	var stop atomic.Bool
	var calls atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			body := make([]byte, 1000)
			for !stop.Load() {
				if got, err := poolCall(ctx, p, h.addr(), body); err != nil || len(got) != len(body) {
					t.Errorf("call failed: %v (%v)", err, fault.SentOf(err))
					return
				}
				calls.Add(1)
			}
		})
	}
	for range 20 {
		before := calls.Load()
		eventually(t, "calls flow", func() bool { return calls.Load() > before+500 || t.Failed() })
		for _, s := range h.take() {
			if err := s.Drain(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	stop.Store(true)
	wg.Wait()
	if n := h.count(); n < 15 {
		t.Errorf("only %d sessions were used", n)
	}
}

func TestPoolSharesAndReconnects(t *testing.T) {
	h := newHost(t, link.Config{Handler: echo})
	p := newPool(t, link.PoolConfig{})
	ctx := background(t)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := poolCall(ctx, p, h.addr(), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := h.count(); n != 1 {
		t.Errorf("50 first callers made %d sessions", n)
	}
	if got := p.Stats(); len(got) != 1 || got[h.addr()].Opened != 50 {
		t.Errorf("stats: %+v", got)
	}
	for _, s := range h.take() {
		_ = s.Close()
	}
	// The end may not have been noticed yet: such a call fails, the next ones do not.
	eventually(t, "the pool works again", func() bool {
		_, err := poolCall(ctx, p, h.addr(), nil)
		return err == nil
	})
}

func TestPoolRefused(t *testing.T) {
	h := newHost(t, link.Config{Check: func([]byte) error { return fault.New("test", fault.Denied, "not you") }})
	p := newPool(t, link.PoolConfig{})
	_, err := poolCall(background(t), p, h.addr(), nil)
	if fault.Of(err) != fault.Denied || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "not you") {
		t.Errorf("got %v (%v), want the peer's reason", err, fault.SentOf(err))
	}
}

// network is dialled in simulated time.
type network struct {
	mu    sync.Mutex
	up    bool
	dials []time.Time
	peers []*link.Session
}

func (n *network) dial(ctx context.Context, _ string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dials = append(n.dials, time.Now())
	if !n.up {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	go func() {
		if s, err := link.NewServer(b, link.Config{Handler: echo}); err == nil {
			n.mu.Lock()
			n.peers = append(n.peers, s)
			n.mu.Unlock()
		}
	}()
	return a, nil
}

func (n *network) set(up bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up = up
}

func (n *network) dialled() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.dials)
}

func (n *network) first() *link.Session {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.peers[0]
}

// wait is for the ends of the sessions accepted.
func (n *network) wait() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.peers {
		s.Wait()
	}
}

func TestPoolBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		p := link.NewPool(link.PoolConfig{Dial: n.dial, MinBackoff: time.Second, MaxBackoff: 8 * time.Second})
		ctx := context.Background()
		fail := func() error {
			t.Helper()
			_, err := p.Open(ctx, "peer", nil, nil, true)
			if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "connection refused") {
				t.Fatalf("got %v (%v); want unavailable, never sent, with the cause", err, fault.SentOf(err))
			}
			return err
		}
		fail()
		fail()
		if got := n.dialled(); got != 2 {
			t.Fatalf("%d dials after two calls; the first failure is retried at once", got)
		}
		for _, most := range []time.Duration{1, 2, 4, 8, 8} {
			most *= time.Second
			began, dials := time.Now(), n.dialled()
			var hint *fault.Error
			if err := fail(); !errors.As(err, &hint) || hint.After < most/2 || hint.After > most {
				t.Fatalf("next try in %v, want %s to %s", hint.After, most/2, most)
			}
			if time.Since(began) != 0 || n.dialled() != dials {
				t.Fatal("the call in backoff waited or dialled")
			}
			time.Sleep(hint.After)
			fail() // dials again, in vain
			if n.dialled() != dials+1 {
				t.Fatalf("%d dials after the pause, want %d", n.dialled(), dials+1)
			}
		}
		n.set(true)
		time.Sleep(8 * time.Second)
		if _, err := poolCall(ctx, p, "peer", nil); err != nil {
			t.Error(err)
		}
		_ = p.Close(ctx)
		n.wait()
	})
}

func TestPoolIdleClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{up: true}
		p := link.NewPool(link.PoolConfig{Dial: n.dial, IdleClose: time.Minute})
		ctx := context.Background()
		for range 5 { // used sessions stay
			if _, err := poolCall(ctx, p, "peer", nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Second)
		}
		if got := n.dialled(); got != 1 {
			t.Fatalf("%d dials for a session in use", got)
		}
		time.Sleep(2 * time.Minute)
		select {
		case <-n.first().Done():
		default:
			t.Error("an idle session stays open")
		}
		if _, err := poolCall(ctx, p, "peer", nil); err != nil {
			t.Error(err)
		}
		if got := n.dialled(); got != 2 {
			t.Errorf("%d dials, want 2", got)
		}
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
		if _, err := p.Open(ctx, "peer", nil, nil, true); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
			t.Errorf("open on a closed pool: %v", err)
		}
		n.wait()
	})
}

// TestPoolForgets: addresses that are gone do not pile up.
func TestPoolForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{}
		p := link.NewPool(link.PoolConfig{Dial: n.dial})
		for i := range 5000 {
			_, _ = p.Open(context.Background(), fmt.Sprint("gone-", i), nil, nil, true)
			time.Sleep(time.Second)
		}
		if got := p.Known(); got > 1100 {
			t.Errorf("%d addresses are kept", got)
		}
		_ = p.Close(context.Background())
	})
}

// TestPoolPeerHangsUp: a peer that accepts and hangs up is not dialled in a loop.
func TestPoolPeerHangsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		p := link.NewPool(link.PoolConfig{Dial: func(context.Context, string) (net.Conn, error) {
			dials++
			a, b := net.Pipe()
			go func() {
				if s, err := link.NewServer(b, link.Config{}); err == nil {
					_ = s.Close()
				}
			}()
			return a, nil
		}})
		for range 100 {
			_, _ = poolCall(context.Background(), p, "peer", nil)
			synctest.Wait()
		}
		if dials > 4 {
			t.Errorf("%d dials for 100 calls at one moment", dials)
		}
		_ = p.Close(context.Background())
	})
}

// TestPoolCallerGivesUp: a dial is shared; a caller that leaves does not cancel it for others.
func TestPoolCallerGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{up: true}
		p := link.NewPool(link.PoolConfig{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			time.Sleep(time.Second)
			return n.dial(ctx, addr)
		}})
		short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := poolCall(short, p, "peer", nil); fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentNever {
				t.Errorf("the impatient caller: %v (%v)", err, fault.SentOf(err))
			}
		})
		wg.Go(func() {
			if _, err := poolCall(context.Background(), p, "peer", nil); err != nil {
				t.Errorf("the patient caller: %v", err)
			}
		})
		wg.Wait()
		if n.dialled() != 1 {
			t.Errorf("%d dials", n.dialled())
		}
		_ = p.Close(context.Background())
		n.wait()
	})
}
