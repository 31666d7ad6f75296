package nats

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/fault"
)

// dialer makes the connection of a component.
type dialer func(ctx context.Context) (*dialed, error)

// dialed is a connection as its maker hands it over.
type dialed struct {
	nc    *natsgo.Conn
	away  func() error // why it is not connected, if anybody knows
	close func()
	local bool // over a Unix socket: an end is noticed at once
	lanes lanes
}

// conn is a component's view of its connection: made on first use, watched from then on.
//
// The client library repairs a lost connection by itself, but leaves requests in flight to
// their timeouts. So conn cuts time into periods, each one uninterrupted connection, and a
// request belongs to one: when its period ends it fails, at once, with "may have happened".
type conn struct {
	dial dialer
	log  *slog.Logger

	now atomic.Pointer[period] // nil while there is no connection

	life context.Context // ends with close
	end  context.CancelFunc
	work sync.WaitGroup

	mu      sync.Mutex
	d       *dialed       // guarded by mu
	dialing bool          // guarded by mu
	changed chan struct{} // guarded by mu; closed and replaced when now or fail changes
	fail    error         // guarded by mu; how the last attempt failed
	closed  bool          // guarded by mu
}

// period is one uninterrupted connection.
type period struct {
	nc    *natsgo.Conn
	js    jetstream.JetStream
	local bool
	over  chan struct{} // closed when the connection is lost
	lanes *lanes        // outlive the period: the library subscribes them again
}

// dialTimeout bounds one attempt to connect; it goes on when its caller gives up.
const dialTimeout = 25 * time.Second

// awayPatience is how long a call waits for a lost connection to come back before it is
// Unavailable. A killed embedded node is back in less.
const awayPatience = 2 * time.Second

func newConn(dial dialer, log *slog.Logger) *conn {
	c := &conn{dial: dial, log: log, changed: make(chan struct{})}
	c.life, c.end = context.WithCancel(context.Background())
	return c
}

// acquire returns the current period. It connects on first use, and waits for a lost
// connection up to awayPatience.
func (c *conn) acquire(ctx context.Context, op fault.Op) (*period, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(op, fault.Canceled, err)
	}
	if p := c.now.Load(); p != nil {
		return p, nil
	}
	return c.wait(ctx, op)
}

func (c *conn) wait(ctx context.Context, op fault.Op) (*period, error) {
	var late <-chan time.Time
	for tried := false; ; tried = true {
		p, changed, connected, err := c.look(tried)
		if p != nil {
			return p, nil
		}
		if err != nil {
			return nil, wrapf(op, fault.Of(err), "cannot connect", err)
		}
		if connected && late == nil {
			t := time.NewTimer(c.patience())
			defer t.Stop()
			late = t.C
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fault.Wrap(op, fault.Canceled, ctx.Err())
		case <-late:
			return nil, fault.New(op, fault.Unavailable, "the connection is lost and not back yet").Because(c.why()).WithSent(fault.SentNever)
		}
	}
}

// look tells how things stand, and starts an attempt to connect if none runs. tried means the
// caller has waited for an attempt already: its failure is the answer then.
func (c *conn) look(tried bool) (p *period, changed chan struct{}, connected bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, changed, connected = c.now.Load(), c.changed, c.d != nil
	switch {
	case c.closed:
		return nil, nil, false, closedError("")
	case p != nil || connected || c.dialing:
	case tried && c.fail != nil:
		return nil, nil, false, c.fail
	default:
		c.dialing = true
		c.work.Go(c.connect)
	}
	return p, changed, connected, nil
}

func closedError(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the component is closed").WithSent(fault.SentNever)
}

// patience is none when a node could not be started: that does not pass within seconds.
func (c *conn) patience() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.d != nil && c.d.local && c.d.away() != nil {
		return 0
	}
	return awayPatience
}

func (c *conn) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.d == nil || c.d.away == nil {
		return c.fail
	}
	return c.d.away()
}

// connect is one attempt. Whoever waits is told by changed.
func (c *conn) connect() {
	ctx, cancel := context.WithTimeout(c.life, dialTimeout)
	defer cancel()
	d, err := c.dial(ctx)
	if err != nil {
		c.mu.Lock()
		c.dialing, c.fail = false, err
		c.announce(nil)
		c.mu.Unlock()
		return
	}
	states := d.nc.StatusChanged(natsgo.CONNECTED, natsgo.RECONNECTING, natsgo.CLOSED)
	c.mu.Lock()
	if c.closed { // close has not seen d
		c.mu.Unlock()
		d.nc.RemoveStatusListener(states)
		d.close()
		return
	}
	c.d, c.dialing, c.fail = d, false, nil
	if d.nc.IsConnected() {
		c.announce(c.d)
	}
	c.mu.Unlock()
	c.work.Go(func() { c.watch(d, states) })
}

// announce begins a period on d, or ends the current one when d is nil. mu is held.
func (c *conn) announce(d *dialed) {
	if old := c.now.Load(); old != nil {
		close(old.over)
	}
	var p *period
	if d != nil {
		js, err := jetstream.New(d.nc)
		if err == nil {
			p = &period{nc: d.nc, js: js, local: d.local, over: make(chan struct{}), lanes: &d.lanes}
		}
	}
	c.now.Store(p)
	close(c.changed)
	c.changed = make(chan struct{})
}

// watch follows the library's reports until the connection is closed.
func (c *conn) watch(d *dialed, states chan natsgo.Status) {
	defer d.nc.RemoveStatusListener(states)
	for {
		var s natsgo.Status
		select {
		case s = <-states:
		case <-c.life.Done():
			return
		}
		c.mu.Lock()
		switch p := c.now.Load(); {
		case s == natsgo.CLOSED:
			c.announce(nil)
			c.fail = errors.New("the connection was closed for good")
			c.d = nil // the next call makes another
			c.mu.Unlock()
			d.close()
			return
		case s == natsgo.CONNECTED && p == nil:
			c.announce(d)
		case s == natsgo.RECONNECTING && p != nil:
			c.announce(nil)
		}
		c.mu.Unlock()
	}
}

// close ends everything. Calls in flight fail.
func (c *conn) close() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	d := c.d
	c.announce(nil)
	c.mu.Unlock()
	c.end()
	c.work.Wait()
	if d != nil {
		d.lanes.drop()
		d.close()
	}
}
