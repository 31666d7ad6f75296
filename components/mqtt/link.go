package mqtt

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/eclipse/paho.mqtt.golang/packets"

	"github.com/mecha-project/mecha/components/fault"
)

// over is the error of a call whose context ended.
func over(op fault.Op, where string, cause error, sent fault.Sent) error {
	code := fault.Canceled
	if errors.Is(cause, context.DeadlineExceeded) {
		code = fault.Deadline
	}
	return fault.New(op, code, "%s", where).Because(cause).WithSent(sent)
}

// refused is the error of an attempt to connect.
func (c *client) refused(op fault.Op, err error) error {
	where := "mqtt broker at " + c.at.target
	var no refusal
	var shake *handshakeError
	code, hint := fault.Unavailable, "is it up, and is the address right?"
	switch {
	case errors.As(err, &no):
		switch byte(no) {
		case packets.ErrRefusedBadUsernameOrPassword:
			code, hint = fault.Unauthenticated, "are the user's name and password in url right?"
		case packets.ErrRefusedNotAuthorised:
			code, hint = fault.Unauthenticated, "are the user's name and password in url right, and may the user connect with this id?"
		case packets.ErrRefusedIDRejected, packets.ErrRefusedBadProtocolVersion:
			code, hint = fault.Invalid, "does it take the id in consumerID, and MQTT 3.1.1?"
		}
		return fault.New(op, code, "%s refuses client %q (%v); %s", where, c.id, no, hint).WithSent(fault.SentNever)
	case errors.Is(err, context.DeadlineExceeded):
		err = errSilent
	case errors.As(err, &shake):
		return fault.New(op, code, "%s", where).Because(err).WithSent(fault.SentNever)
	}
	return fault.New(op, code, "%s: %s", where, hint).Because(err).WithSent(fault.SentNever)
}

// absent tells the error of a broker that is not there, from that of one that is and refuses.
func absent(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial" || errors.Is(err, errSilent) || fault.Of(err) == fault.Deadline
}

// lasting tells an error that connecting again will not mend.
func lasting(err error) bool {
	switch fault.Of(err) {
	case fault.Invalid, fault.Denied, fault.Unauthenticated:
		return true
	}
	return false
}

// link is a connection that is made when it is needed, and again when it is needed after it was
// lost. It is safe for concurrent use.
type link struct {
	client *client
	life   context.Context // ends with close
	end    context.CancelFunc
	work   sync.WaitGroup // attempts

	met atomic.Bool // it was connected once

	mu     sync.Mutex
	now    *session // guarded by mu; nil or lost: there is none
	making *attempt // guarded by mu; nil: nobody connects
	closed bool     // guarded by mu
}

// attempt is a connection in the making, for everybody who waits for it.
type attempt struct {
	done chan struct{}
	s    *session
	err  error
}

func newLink(c *client) *link {
	l := &link{client: c}
	l.life, l.end = context.WithCancel(context.Background())
	return l
}

func (l *link) shut(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "mqtt broker at %s", l.client.at.target).Because(errClosed).WithSent(fault.SentNever)
}

// get is the connection. One that is being made is waited for until ctx ends; it is made all the same.
func (l *link) get(ctx context.Context, op fault.Op) (*session, error) {
	where := "mqtt broker at " + l.client.at.target
	if err := ctx.Err(); err != nil {
		return nil, over(op, where, err, fault.SentNever)
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
		l.work.Go(func() { l.make(a, l.now) })
	}
	l.mu.Unlock()
	select {
	case <-a.done:
	case <-ctx.Done():
		return nil, over(op, where, ctx.Err(), fault.SentNever)
	}
	switch {
	case a.err == nil:
		return a.s, nil
	case l.life.Err() != nil:
		return nil, l.shut(op)
	}
	return nil, l.client.refused(op, a.err)
}

// make settles an attempt, behind the end of the session before.
func (l *link) make(a *attempt, before *session) {
	defer close(a.done)
	if before != nil {
		before.work.Wait()
	}
	ctx, cancel := context.WithTimeout(l.life, connectPatience)
	defer cancel()
	a.s, a.err = l.client.open(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.making = nil
	if a.err == nil {
		l.met.Store(true)
		l.now = a.s // close ends it, for it waits for us
	}
}

// close ends the connection and waits for everything that was started here. It is safe twice.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.end()
	l.work.Wait()
	l.mu.Lock()
	s := l.now
	l.mu.Unlock()
	if s != nil {
		s.close()
	}
}
