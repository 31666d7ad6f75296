package nats

import (
	"context"
	"fmt"
	"strconv"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/fault"
)

// session is a consumer's conversation over one inbox: it asks for messages and reads what
// comes. It lives in the goroutine of Consume.
type session struct {
	c        *consumer
	p        *period
	inbox    string
	messages chan *natsgo.Msg

	due    int       // messages asked for that have not come
	expiry time.Time // when the last request ends at the latest
}

// How long a request for messages waits at the server. Over a Unix socket nothing gets lost
// in silence and an idle sidecar should sleep; elsewhere a request is repeated often enough to
// notice that it got lost.
const (
	waitLocal  = 5 * time.Minute
	waitRemote = 30 * time.Second
	waitGrace  = 5 * time.Second
)

func (s *session) loop(ctx context.Context, closing <-chan struct{}) error {
	renew := time.NewTimer(time.Hour) // runs only while something is held
	renew.Stop()
	defer renew.Stop()
	renewing := false
	expired := time.NewTimer(time.Hour)
	defer expired.Stop()
	for {
		asked, err := s.ask()
		if err != nil {
			return err
		}
		if asked {
			expired.Reset(time.Until(s.expiry) + waitGrace)
		}
		if !renewing && s.c.holds() > 0 {
			renewing = true
			renew.Reset(s.c.b.c.AckWait / 3)
		}
		select {
		case m := <-s.messages:
			if fresh, err := s.read(m); err != nil || fresh {
				return err
			}
		case <-s.c.wake:
		case <-renew.C:
			renewing = s.c.holds() > 0
			if renewing {
				renew.Reset(s.c.renew())
			}
		case <-expired.C:
			return nil // a request got lost; a fresh inbox forgets it
		case <-s.p.over:
			return nil
		case <-ctx.Done():
			return nil
		case <-closing:
			return nil
		}
	}
}

// ask requests as many messages as there is room for, once that is half of the limit: asking
// for each one alone would cost as much as the message.
func (s *session) ask() (bool, error) {
	limit := s.c.opts.MaxInFlight
	room := limit - s.due - s.c.holds()
	if room < (limit+1)/2 && !(s.due == 0 && room > 0) {
		return false, nil
	}
	wait := waitRemote
	if s.p.local {
		wait = waitLocal
	}
	body := fmt.Appendf(nil, `{"batch":%d,"expires":%d}`, room, wait.Nanoseconds())
	subject := "$JS.API.CONSUMER.MSG.NEXT." + s.c.b.stream + "." + s.c.durable
	if err := s.p.nc.PublishRequest(subject, s.inbox, body); err != nil {
		return false, sendError(s.c.op, err)
	}
	s.due += room
	s.expiry = time.Now().Add(wait)
	return true, nil
}

// read handles one message of the inbox. fresh asks for a new session.
func (s *session) read(m *natsgo.Msg) (fresh bool, err error) {
	if m == nil {
		return true, nil // the subscription was closed with the connection
	}
	seq, attempt, ok := place(m.Reply)
	if !ok {
		return s.status(m)
	}
	s.due = max(0, s.due-1)
	if h, is := s.c.take(m, seq); is {
		s.c.deliver(s.c.delivery(m, h, attempt))
	}
	return false, nil
}

// status handles the server's word on a request.
func (s *session) status(m *natsgo.Msg) (fresh bool, err error) {
	switch code := statusOf(m); code {
	case "100": // a heartbeat
		return false, nil
	case "404", "408": // the request is over; the rest of it does not come
		left, err := strconv.Atoi(m.Header.Get("Nats-Pending-Messages"))
		if err != nil {
			return true, nil
		}
		s.due = max(0, s.due-left)
		return false, nil
	default: // the consumer is gone, the server shuts down, …
		return false, fault.New(s.c.op, fault.Unavailable, "the server ended the consumer: %s %s", code, m.Header.Get("Description"))
	}
}

// end closes the inbox. What came and nobody has seen goes back to the group, together with
// what is held if the whole consumer ends; a session that ends alone leaves that in hand.
func (s *session) end(ctx context.Context, sub *natsgo.Subscription) {
	select {
	case <-s.p.over:
		_ = sub.Unsubscribe()
		s.c.mu.Lock()
		s.c.nc = nil
		s.c.mu.Unlock()
		// Nobody can be told that these go back. Left alone they would come again only after
		// AckWait, behind later ones of their keys; so they are taken, and answered later.
		for m := s.next(); m != nil && ctx.Err() == nil; m = s.next() {
			_, _ = s.read(m) // statuses mean nothing any more
		}
		return
	default:
	}
	// Drain tells the server at once that nobody listens, and keeps what is on its way; after
	// the flush everything has arrived.
	_ = sub.Drain()
	_ = s.p.nc.FlushTimeout(endPatience)
	for m := s.next(); m != nil; m = s.next() {
		if seq, _, ok := place(m.Reply); ok {
			s.c.leave(m, seq)
		}
	}
}

// next is what waits in the inbox, or nil.
func (s *session) next() *natsgo.Msg {
	select {
	case m := <-s.messages:
		return m
	default:
		return nil
	}
}

// endPatience bounds how long a consumer's end waits for the server.
const endPatience = 2 * time.Second
