package rabbitmq

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mecha-project/mecha/components/fault"
)

const (
	// connectPatience bounds connecting with TLS and signing in. The callers' own deadlines come first.
	connectPatience = 10 * time.Second
	// closePatience bounds saying goodbye to a server that may be gone.
	closePatience = time.Second
)

// link is a connection to the server: made when it is needed, and again when it is needed after it
// was lost. Nobody repeats an attempt here: who needs the connection asks again. It is safe for
// concurrent use.
type link struct {
	c    ConnConfig
	at   address
	tls  *tls.Config // nil: none
	name string      // shown by the server

	life context.Context // ends with close
	end  context.CancelFunc
	work sync.WaitGroup // goroutines; added to by spawn only

	met atomic.Bool // it was connected once

	mu     sync.Mutex
	now    *session // guarded by mu; nil or lost: there is none
	making *attempt // guarded by mu; nil: nobody connects
	closed bool     // guarded by mu
}

// session is a connection that was made. It ends once.
type session struct {
	conn    *amqp.Connection
	gone    chan struct{}          // closed when the connection is lost or closed
	why     *amqp.Error            // set before gone is closed; nil: closed by us
	blocked atomic.Pointer[string] // why the server takes no messages; nil: it does
}

// attempt is a connection in the making, for everybody who waits for it.
type attempt struct {
	done chan struct{}
	s    *session
	err  error
}

// newLink prepares a connection. It reads the certificates and does no other I/O.
func newLink(c ConnConfig, name string) (*link, error) {
	at, err := c.address()
	if err != nil {
		return nil, err
	}
	secure, err := c.tlsConfig(&at)
	if err != nil {
		return nil, err
	}
	l := &link{c: c, at: at, tls: secure, name: name}
	l.life, l.end = context.WithCancel(context.Background())
	return l, nil
}

func (l *link) where() string {
	if l.at.uri.Vhost == "/" {
		return "rabbitmq at " + l.at.target()
	}
	return "rabbitmq at " + l.at.target() + "/" + l.at.uri.Vhost
}

// spawn runs f beside; close waits for it. It reports false, and does nothing, after close.
func (l *link) spawn(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.work.Go(f)
	return true
}

// get is the connection. One that is being made is waited for until ctx ends; it is made all the same.
func (l *link) get(ctx context.Context, op fault.Op) (*session, error) {
	if err := ctx.Err(); err != nil {
		return nil, ended(op, l.where(), err, fault.SentNever)
	}
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, l.shut(op)
	}
	if s := l.now; s != nil && !s.lost() {
		l.mu.Unlock()
		return s, nil
	}
	a := l.making
	if a == nil {
		a = &attempt{done: make(chan struct{})}
		l.making = a
		l.work.Go(func() { l.make(a) })
	}
	l.mu.Unlock()
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, ended(op, l.where(), ctx.Err(), fault.SentNever)
	}
	if a.err != nil {
		return nil, l.refused(op, a.err)
	}
	return a.s, nil
}

// make settles an attempt.
func (l *link) make(a *attempt) {
	defer close(a.done)
	a.s, a.err = l.connect()
	l.mu.Lock()
	l.making = nil
	if a.err == nil && !l.closed {
		l.met.Store(true)
		l.now = a.s
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	if a.err == nil {
		_ = a.s.conn.CloseDeadline(time.Now().Add(closePatience))
		a.s, a.err = nil, amqp.ErrClosed
	}
}

// connect makes a connection. It ends by connectPatience, or when the component is closed.
func (l *link) connect() (*session, error) {
	patience := connectPatience
	if ms := l.at.uri.ConnectionTimeout; ms > 0 {
		patience = time.Duration(ms) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(l.life, patience)
	defer cancel()
	sock, err := (&net.Dialer{}).DialContext(ctx, "tcp", l.at.target())
	if err != nil {
		return nil, err
	}
	release := context.AfterFunc(ctx, func() { _ = sock.Close() }) // the library knows no context
	if l.tls != nil {
		secure := tls.Client(sock, l.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			_ = sock.Close()
			return nil, &handshakeError{err}
		}
		sock = secure
	}
	heartbeat := l.c.HeartBeat
	if l.at.heartbeat > 0 {
		heartbeat = l.at.heartbeat
	}
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(l.name)
	conn, err := amqp.Open(sock, amqp.Config{SASL: l.c.sasl(&l.at), Vhost: l.at.uri.Vhost, ChannelMax: l.at.uri.ChannelMax, FrameSize: frameSize,
		Heartbeat: heartbeat, Properties: properties, Locale: "en_US"})
	if err != nil {
		_ = sock.Close()
		if ctx.Err() != nil && l.life.Err() == nil {
			return nil, context.DeadlineExceeded
		}
		return nil, err
	}
	if !release() {
		_ = sock.Close()
		return nil, ctx.Err()
	}
	s := &session{conn: conn, gone: make(chan struct{})}
	closes, blocks := conn.NotifyClose(make(chan *amqp.Error, 1)), conn.NotifyBlocked(make(chan amqp.Blocking, 8))
	l.work.Go(func() { s.watch(closes, blocks) }) // the attempt itself is one that close waits for
	return s, nil
}

// frameSize is the largest frame to agree on: RabbitMQ's own default.
const frameSize = 128 << 10

// watch follows what the server says of the connection until it ends.
func (s *session) watch(closes chan *amqp.Error, blocks chan amqp.Blocking) {
	for {
		select {
		case b, ok := <-blocks:
			switch {
			case !ok:
				blocks = nil
			case b.Active:
				s.blocked.Store(&b.Reason)
			default:
				s.blocked.Store(nil)
			}
		case s.why = <-closes:
			close(s.gone)
			return
		}
	}
}

// lost tells whether the connection has ended.
func (s *session) lost() bool { return s.conn.IsClosed() }

// channel opens a channel and lets prepare set it up. The library's calls know no context, so
// when ctx ends the channel is left to itself, and closed when it is there.
func (l *link) channel(ctx context.Context, op fault.Op, s *session, prepare func(*amqp.Channel) error) (*amqp.Channel, error) {
	type outcome struct {
		ch  *amqp.Channel
		err error
	}
	ready, left := make(chan outcome, 1), make(chan struct{})
	if !l.spawn(func() {
		ch, err := s.conn.Channel()
		if err == nil {
			if err = prepare(ch); err != nil {
				_ = ch.Close()
			}
		}
		ready <- outcome{ch, err}
		select {
		case <-left:
			if err == nil {
				_ = ch.Close()
			}
		default:
		}
	}) {
		return nil, l.shut(op)
	}
	select {
	case o := <-ready:
		if o.err != nil {
			return nil, l.broken(op, s, o.err, fault.SentNever)
		}
		return o.ch, nil
	case <-ctx.Done():
		close(left)
		select {
		case o := <-ready: // both at once
			if o.err == nil {
				l.drop(o.ch)
			}
		default:
		}
		return nil, ended(op, l.where(), ctx.Err(), fault.SentNever)
	}
}

// drop closes a channel without waiting for the server.
func (l *link) drop(ch *amqp.Channel) { l.spawn(func() { _ = ch.Close() }) }

// close ends the connection, and waits for everything that was started here. It is safe twice.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	s := l.now
	l.mu.Unlock()
	l.end()
	if s != nil {
		// An error means that it was closed already, or that the server did not answer in time.
		_ = s.conn.CloseDeadline(time.Now().Add(closePatience))
	}
	l.work.Wait()
}
