package postgres

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// pool keeps connections. It starts nothing by itself: connections are made by the callers
// that need them, and a timer runs only while some are idle.
type pool struct {
	config poolConfig
	slots  chan struct{} // a token per connection in use

	mu     sync.Mutex
	idle   []idle      // guarded by mu; the most recently used last
	reaper *time.Timer // guarded by mu; nil while nothing is idle
	closed bool        // guarded by mu

	leaving sync.WaitGroup // connections that are being closed
}

type poolConfig struct {
	conn *pgx.ConnConfig
	max  int
	idle time.Duration // after which an unused connection is closed
	life time.Duration // after which a connection is closed when it comes back; 0 means never
}

// address makes connections go to an IP address whatever the host's name is.
func (p *poolConfig) address(ip string) {
	p.conn.LookupFunc = func(context.Context, string) ([]string, error) { return []string{ip}, nil }
}

// idle is a connection nobody uses.
type idle struct {
	*lent
	since time.Time
}

// lent is a connection somebody uses.
type lent struct {
	*pgx.Conn
	born time.Time
}

// errClosed is what callers get after close.
var errClosed = errors.New("the pool is closed")

// stale is how long a connection may be idle without a look at whether it still lives.
const stale = time.Second

func newPool(c *poolConfig) *pool { return &pool{config: *c, slots: make(chan struct{}, c.max)} }

// get lends a connection. Nothing has been asked of the server for the caller when it fails.
func (p *pool) get(ctx context.Context) (*lent, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for {
		c, age, err := p.pop()
		if err != nil {
			<-p.slots
			return nil, err
		}
		if c == nil {
			break
		}
		//lint:ignore SA1019 a look at the socket without a round trip; what it misses fails as any lost connection does
		if c.IsClosed() || age > stale && c.PgConn().CheckConn() != nil {
			p.discard(c)
			continue
		}
		return c, nil
	}
	conn, err := pgx.ConnectConfig(ctx, p.config.conn.Copy())
	if err != nil {
		<-p.slots
		return nil, err
	}
	return &lent{conn, time.Now()}, nil
}

func (p *pool) pop() (*lent, time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, 0, errClosed
	}
	if len(p.idle) == 0 {
		return nil, 0, nil
	}
	last := p.idle[len(p.idle)-1]
	p.idle = p.idle[:len(p.idle)-1]
	return last.lent, time.Since(last.since), nil
}

// put takes a connection back.
func (p *pool) put(c *lent) {
	defer func() { <-p.slots }()
	now := time.Now()
	p.mu.Lock()
	// A connection in the middle of something is not fit for the next caller.
	fit := !p.closed && !c.IsClosed() && !c.PgConn().IsBusy() && c.PgConn().TxStatus() == 'I' &&
		(p.config.life <= 0 || now.Sub(c.born) < p.config.life)
	if fit {
		p.idle = append(p.idle, idle{c, now})
		if p.reaper == nil {
			p.reaper = time.AfterFunc(p.config.idle, p.reap)
		}
	}
	p.mu.Unlock()
	if !fit {
		p.discard(c)
	}
}

// discard closes a connection, without making the caller wait for the server.
func (p *pool) discard(c *lent) {
	p.leaving.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(ctx) // the server notices in any case
		<-c.PgConn().CleanupDone()
	})
}

// reap closes connections that were idle for too long.
func (p *pool) reap() {
	var old []idle
	p.mu.Lock()
	limit := time.Now().Add(-p.config.idle)
	for len(p.idle) > 0 && !p.idle[0].since.After(limit) {
		old = append(old, p.idle[0])
		p.idle = p.idle[1:]
	}
	p.reaper = nil
	if len(p.idle) > 0 && !p.closed {
		p.reaper = time.AfterFunc(p.idle[0].since.Sub(limit), p.reap)
	}
	for _, c := range old { // under mu, so that close does not wait before these are counted
		p.discard(c.lent)
	}
	p.mu.Unlock()
}

// rest closes what is idle.
func (p *pool) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.idle {
		p.discard(c.lent)
	}
	p.idle = nil
}

// close closes what is idle and waits, within ctx, until every connection has left. Those in
// use leave when they come back.
func (p *pool) close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	for _, c := range p.idle {
		p.discard(c.lent)
	}
	p.idle = nil
	if p.reaper != nil {
		p.reaper.Stop()
		p.reaper = nil
	}
	p.mu.Unlock()
	for range cap(p.slots) { // all slots are ours when nobody holds a connection
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for range cap(p.slots) {
		<-p.slots // for callers who come too late: they find the pool closed
	}
	done := make(chan struct{})
	go func() { p.leaving.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
