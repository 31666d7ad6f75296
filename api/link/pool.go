package link

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// PoolConfig says how a Pool reaches peers. Dial is required; other zero fields take defaults.
type PoolConfig struct {
	// Dial makes the connection to an address: TCP, TLS, a Unix socket, as the edge decides.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// Session is the configuration of every session.
	Session Config
	// DialTimeout bounds Dial. Default 5 s. The handshake has its own limit.
	DialTimeout time.Duration
	// MinBackoff is the pause after the second failure in a row, doubled up to MaxBackoff by
	// further ones, each pause shortened by up to half at random. After a first failure the
	// next call dials at once. Defaults 100 ms and 10 s.
	MinBackoff, MaxBackoff time.Duration
	// IdleClose is how long a session may have no stream before it is closed: between once and
	// twice that long. Default 3 min; negative means never.
	IdleClose time.Duration
	// DrainTimeout bounds the end of a session closed for idleness or by Close's ctx, and of
	// one whose peer leaves. Default 30 s.
	DrainTimeout time.Duration
}

// Pool keeps one session per peer address: dialled at first use, shared by all callers,
// replaced when it ends or its peer leaves, closed when idle. Safe for concurrent use.
type Pool struct {
	cfg    PoolConfig
	ctx    context.Context // of dials, which outlive the caller that started them
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	mu     sync.Mutex
	closed bool
	peers  map[string]*peer
}

// peer is the state of one address. Guarded by Pool.mu.
type peer struct {
	addr     string
	session  *Session      // nil, usable, or just gone
	born     time.Time     // of session
	dialling chan struct{} // closed when the dial under way is over; nil if none is
	failures int           // in a row
	err      error         // of the last dial, nil if it succeeded
	next     time.Time     // no dial before
	idle     *time.Timer
	opened   uint64 // streams the session had opened when idle last fired
}

const opPool fault.Op = "link.pool"

// NewPool makes a pool without connections.
func NewPool(cfg PoolConfig) *Pool {
	or(&cfg.DialTimeout, 5*time.Second)
	or(&cfg.MinBackoff, 100*time.Millisecond)
	or(&cfg.MaxBackoff, 10*time.Second)
	or(&cfg.IdleClose, 3*time.Minute)
	or(&cfg.DrainTimeout, 30*time.Second)
	p := &Pool{cfg: cfg, peers: make(map[string]*peer)}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Open opens a stream to addr; see Session.Open. If the session turned out to be over or
// leaving before the call was sent, the call goes to a new session, once.
func (p *Pool) Open(ctx context.Context, addr string, head, first []byte, end bool) (*Stream, error) {
	for again := false; ; again = true {
		s, err := p.Session(ctx, addr)
		if err != nil {
			return nil, err
		}
		st, err := s.Open(ctx, head, first, end)
		if err == nil || again || s.Usable() || fault.SentOf(err) != fault.SentNever || ctx.Err() != nil {
			return st, err
		}
	}
}

// Session returns the usable session to addr, dialling if there is none; callers share one
// dial, each waiting no longer than its ctx. While the address is in backoff the answer is
// fault.Unavailable at once, with the last cause and, in After, the time to the next try. All
// errors carry fault.SentNever.
func (p *Pool) Session(ctx context.Context, addr string) (*Session, error) {
	for {
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			return nil, fault.New(opPool, fault.Unavailable, "link: not dialling %s: this side is shutting down", addr).WithSent(fault.SentNever)
		}
		e := p.peers[addr]
		if e == nil {
			e = &peer{addr: addr}
			p.sweep()
			p.peers[addr] = e
		}
		if s := e.session; s != nil {
			if s.Usable() {
				p.mu.Unlock()
				return s, nil
			}
			p.drop(e)
		}
		if e.dialling == nil {
			if wait := time.Until(e.next); wait > 0 {
				err := fault.New(opPool, fault.Unavailable, "link: not dialling %s for another %s after %d failures", addr, wait.Round(time.Millisecond), e.failures)
				err.After = wait
				p.mu.Unlock()
				return nil, err.Because(e.err).WithSent(fault.SentNever)
			}
			p.dial(e)
		}
		dialling := e.dialling
		p.mu.Unlock()
		select {
		case <-dialling:
		case <-ctx.Done():
			return nil, fault.New(opPool, fault.Of(ctx.Err()), "link: still dialling %s", addr).Because(ctx.Err()).WithSent(fault.SentNever)
		}
		p.mu.Lock()
		err := e.err
		p.mu.Unlock()
		if err != nil {
			code := fault.Of(err)
			if code == fault.Internal || code == fault.Canceled || code == fault.Deadline {
				code = fault.Unavailable // the dial's own limits, not the caller's
			}
			return nil, fault.New(opPool, code, "link: no session with %s", addr).Because(err).WithSent(fault.SentNever)
		}
	}
}

// sweepAbove is how many addresses may be known before those that are gone are looked for.
const sweepAbove = 1024

// sweep forgets addresses that failed and were not tried again for long. Locked.
func (p *Pool) sweep() {
	if len(p.peers) < sweepAbove {
		return
	}
	for addr, e := range p.peers {
		if e.session == nil && e.dialling == nil && time.Since(e.next) > p.cfg.MaxBackoff {
			delete(p.peers, addr)
		}
	}
}

// quick is the life below which a session counts as a failed attempt, so that a peer that
// accepts and hangs up does not make us dial in a loop.
const quick = time.Second

// drop forgets a session that takes no more streams. What is left on it goes on. Locked.
func (p *Pool) drop(e *peer) {
	s := e.session
	e.session = nil
	if e.idle != nil {
		e.idle.Stop()
	}
	if err := s.Err(); err == nil {
		p.tasks.Add(1)
		go p.retire(s) // its peer is leaving
	} else if time.Since(e.born) < quick && !errors.Is(err, net.ErrClosed) {
		p.failed(e, err)
	} else {
		e.failures = 0
	}
}

// retire lets a session's streams end, and closes it.
func (p *Pool) retire(s *Session) {
	defer p.tasks.Done()
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DrainTimeout)
	defer cancel()
	_ = s.Drain(ctx) // streams cut off have their own error
	s.Wait()
}

// failed notes a failure and when to try again. Locked.
func (p *Pool) failed(e *peer, err error) {
	e.err = err
	e.failures++
	if e.failures == 1 {
		e.next = time.Time{}
		return
	}
	pause := p.cfg.MaxBackoff
	if shift := e.failures - 2; shift < 20 {
		pause = min(pause, p.cfg.MinBackoff<<shift)
	}
	e.next = time.Now().Add(pause - rand.N(pause/2+1))
}

// dial starts connecting. Locked.
func (p *Pool) dial(e *peer) {
	done := make(chan struct{})
	e.dialling = done
	p.tasks.Add(1)
	go func() {
		defer p.tasks.Done()
		s, err := p.connect(e.addr)
		p.mu.Lock()
		defer p.mu.Unlock()
		e.dialling = nil
		close(done)
		switch {
		case err != nil:
			p.failed(e, err)
		case p.closed:
			_ = s.Close()
			e.err = fmt.Errorf("link: shutting down")
		default:
			e.session, e.born, e.err, e.next, e.opened = s, time.Now(), nil, time.Time{}, 0
			p.watchIdle(e, s)
		}
	}()
}

func (p *Pool) connect(addr string) (*Session, error) {
	ctx, cancel := context.WithTimeout(p.ctx, p.cfg.DialTimeout)
	defer cancel()
	conn, err := p.cfg.Dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	// The handshake's only other limit is its own time: Close must not wait for it.
	stop := context.AfterFunc(p.ctx, func() { _ = conn.Close() })
	defer stop()
	return NewClient(conn, p.cfg.Session)
}

// watchIdle arms the idle timer of a new session. Locked.
func (p *Pool) watchIdle(e *peer, s *Session) {
	if p.cfg.IdleClose < 0 {
		return
	}
	e.idle = time.AfterFunc(p.cfg.IdleClose, func() { p.checkIdle(e, s) })
}

func (p *Pool) checkIdle(e *peer, s *Session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.session != s || p.closed {
		return
	}
	now := s.Stats()
	used := now.Opened + now.Accepted
	if now.Streams > 0 || used != e.opened {
		e.opened = used
		e.idle.Reset(p.cfg.IdleClose)
		return
	}
	e.session = nil
	delete(p.peers, e.addr)
	p.tasks.Add(1)
	go p.retire(s)
}

// Stats returns the figures of every live session by its address.
func (p *Pool) Stats() map[string]Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]Stats, len(p.peers))
	for addr, e := range p.peers {
		if e.session != nil {
			all[addr] = e.session.Stats()
		}
	}
	return all
}

// Close drains every session, cuts off what is left when ctx ends, and waits for all of the
// pool's goroutines, handlers of Session.Handler included. Later calls fail with
// fault.Unavailable. The error is that of streams cut off.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	var sessions []*Session
	for _, e := range p.peers {
		if e.idle != nil {
			e.idle.Stop()
		}
		if e.session != nil {
			sessions = append(sessions, e.session)
			e.session = nil
		}
	}
	p.mu.Unlock()

	var drains sync.WaitGroup
	errs := make([]error, len(sessions))
	for i, s := range sessions {
		drains.Go(func() {
			errs[i] = s.Drain(ctx)
			s.Wait()
		})
	}
	drains.Wait()
	p.cancel()
	p.tasks.Wait()
	return errors.Join(errs...)
}
