package embedded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/fault"
)

// Options say which node to connect to and how to start it when it is not running.
type Options struct {
	DataDir    string        // empty: DefaultDir
	Durability Durability    // empty: what the directory has, os for a new one
	Linger     time.Duration // of a node started here; zero: DefaultLinger
	LogLevel   slog.Level    // of a node started here

	// Executable and Args start a node; --data-dir and the rest are appended to Args. Empty:
	// this executable with the argument "embedded".
	Executable string
	Args       []string
	// Log gets life events of the connection; nil: nobody does.
	Log *slog.Logger
}

// Conn is a share of this process's connection to a node. Close gives the share back; the
// connection ends with the last one.
type Conn struct {
	link *link
	once sync.Once
}

// NATS is the connection. It reconnects for ever, and starts the node again if it is gone;
// while it is away it buffers nothing: publishing fails. It must not be closed by the caller.
func (c *Conn) NATS() *nats.Conn { return c.link.nc }

// Err says why the node is away, or nil when it is there as far as known.
func (c *Conn) Err() error {
	c.link.mu.Lock()
	defer c.link.mu.Unlock()
	return c.link.err
}

// Close gives the share back. It is safe twice.
func (c *Conn) Close() {
	c.once.Do(func() {
		links.mu.Lock()
		c.link.shares--
		last := c.link.shares == 0
		if last && links.open[c.link.dir] == c.link {
			delete(links.open, c.link.dir)
		}
		links.mu.Unlock()
		if last {
			c.link.end()
		}
	})
}

// links are the connections of this process, one per directory. It is the one thing here that
// cannot be handed in: components opened far from one another have to find each other.
var links = struct {
	mu   sync.Mutex
	open map[dir]*link // guarded by mu
}{open: map[dir]*link{}}

// link is one shared connection.
type link struct {
	dir    dir
	o      Options
	shares int // guarded by links.mu

	ready chan struct{} // closed when nc or failed is set
	nc    *nats.Conn
	fail  error

	life context.Context // ends with the last share: no node is started after that
	stop context.CancelFunc

	mu  sync.Mutex
	err error // guarded by mu; why the node is away
}

// connectPatience bounds finding, starting and greeting a node.
const connectPatience = 20 * time.Second

// Connect returns a connection to the node of a directory, started if it is not running.
// Callers of one process and directory share one connection; its log and the way to start the
// node are those of the first.
//
// A directory that cannot be served is reported with the node's own words and the end of its
// log. When ctx ends first its error is returned; the attempt goes on for whoever asks next.
func Connect(ctx context.Context, o Options) (*Conn, error) {
	if err := o.Durability.check(); err != nil {
		return nil, err
	}
	d, err := openDir(opConnect, o.DataDir)
	if err != nil {
		return nil, err
	}
	// A running node would not be asked, so the directory is.
	f, err := d.readFormat(opConnect)
	if err == nil && f != nil {
		err = f.accepts(opConnect, d, o.Durability)
	}
	if err != nil {
		return nil, err
	}
	c := &Conn{link: join(d, o)}
	select {
	case <-c.link.ready:
		if c.link.fail != nil {
			c.Close()
			return nil, c.link.fail
		}
		return c, nil
	case <-ctx.Done():
		c.Close()
		return nil, fault.Wrap(opConnect, fault.Unavailable, ctx.Err())
	}
}

func join(d dir, o Options) *link {
	links.mu.Lock()
	defer links.mu.Unlock()
	l := links.open[d]
	if l == nil {
		l = &link{dir: d, o: o, ready: make(chan struct{})}
		l.life, l.stop = context.WithCancel(context.Background())
		links.open[d] = l
		l.shares++ // held by connect until it is done
		go l.connect()
	}
	l.shares++
	return l
}

// connect makes the first connection. On failure the link leaves the table, so that the next
// Connect tries afresh.
func (l *link) connect() {
	ctx, cancel := context.WithTimeout(l.life, connectPatience)
	defer cancel()
	nc, err := l.greet(ctx)
	l.nc, l.fail = nc, err
	if err != nil {
		links.mu.Lock()
		if links.open[l.dir] == l {
			delete(links.open, l.dir)
		}
		links.mu.Unlock()
	}
	close(l.ready)
	(&Conn{link: l}).Close()
}

func (l *link) greet(ctx context.Context) (*nats.Conn, error) {
	for {
		nc, err := nats.Connect("nats://embedded", l.options()...)
		if err == nil {
			return nc, nil
		}
		// The node's own word is final. A connection lost while being made means that we met a
		// node on its way out.
		var f *fault.Error
		if errors.As(err, &f) {
			return nil, f
		}
		select {
		case <-ctx.Done():
			return nil, fault.New(opConnect, fault.Unavailable, "the embedded node of %s does not answer; see %s", l.dir, l.dir.file(logName)).Because(err).WithSent(fault.SentNever)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (l *link) options() []nats.Option {
	log := l.o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return []nats.Option{
		nats.Name(fmt.Sprintf("mecha %d", os.Getpid())),
		nats.InProcessServer(l),
		nats.Timeout(5 * time.Second),
		nats.MaxReconnects(-1),
		nats.CustomReconnectDelay(reconnectDelay),
		// What cannot be sent now is refused now: a write that surfaces later, after its caller
		// was told it failed, could overtake a newer one.
		nats.ReconnectBufSize(-1),
		nats.IgnoreDiscoveredServers(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("embedded node lost; reconnecting", "dir", string(l.dir), "error", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("embedded node is back", "dir", string(l.dir)) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			log.Warn("embedded node", "error", err)
		}),
	}
}

// reconnectDelay waits hardly at all at first, for a killed node is back in milliseconds, and
// up to five seconds when it does not come.
func reconnectDelay(attempts int) time.Duration {
	if attempts <= 1 {
		return time.Millisecond
	}
	return min(5*time.Second, 5*time.Millisecond<<min(attempts, 10))
}

// InProcessConn gives the NATS client its connection: the node's socket, after starting the
// node if nobody is there.
func (l *link) InProcessConn() (net.Conn, error) {
	c, err := l.dial()
	l.mu.Lock()
	l.err = err
	l.mu.Unlock()
	return c, err
}

func (l *link) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(l.life, connectPatience)
	defer cancel()
	deaths := 0 // of nodes that were killed as they started
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		c, err := net.DialTimeout("unix", l.dir.socket(), 5*time.Second)
		if err == nil {
			return c, nil
		}
		if l.life.Err() != nil { // nobody waits for it any more
			return nil, fault.New(opConnect, fault.Unavailable, "the connection to the node of %s is closed", l.dir).WithSent(fault.SentNever)
		}
		started, err := l.start(ctx)
		if _, killed := errors.AsType[killedError](err); killed && deaths < 3 {
			deaths++
			err = nil
		}
		if err != nil {
			return nil, err
		}
		if started {
			continue // at once: it is ready
		}
		select { // another one is being started, or is leaving
		case <-ctx.Done():
			return nil, fault.New(opConnect, fault.Unavailable, "no node of %s could be started or reached in %v; see %s", l.dir, connectPatience, l.dir.file(logName)).WithSent(fault.SentNever)
		case <-time.After(wait):
		}
	}
}

func (l *link) end() {
	l.stop()
	<-l.ready
	if l.nc != nil {
		l.nc.Close()
	}
}
