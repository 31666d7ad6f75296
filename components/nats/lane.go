package nats

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/fault"
)

// lane carries requests one after another, or a window of them at once. It is an inbox whose
// answers the library's reader puts straight into a channel: the library's own requests take
// one goroutine more on the way. A lane belongs to one exchange at a time.
type lane struct {
	inbox   string // with the final dot
	sub     *natsgo.Subscription
	answers chan *natsgo.Msg
	asked   uint64 // requests so far
}

// window is how many requests an exchange has in flight at most. The channel holds as many, so
// the reader never meets a full one.
const window = 64

// lanes are the idle ones of a connection.
type lanes struct {
	mu   sync.Mutex
	idle []*lane // guarded by mu
}

// maxIdleLanes bounds what a burst of callers leaves behind.
const maxIdleLanes = 128

func (p *period) lane(op fault.Op) (*lane, error) {
	p.lanes.mu.Lock()
	if n := len(p.lanes.idle); n > 0 {
		l := p.lanes.idle[n-1]
		p.lanes.idle = p.lanes.idle[:n-1]
		p.lanes.mu.Unlock()
		return l, nil
	}
	p.lanes.mu.Unlock()
	l := &lane{inbox: p.nc.NewInbox() + ".", answers: make(chan *natsgo.Msg, window)}
	var err error
	if l.sub, err = p.nc.ChanSubscribe(l.inbox+"*", l.answers); err != nil {
		return nil, sendError(op, err)
	}
	return l, nil
}

// release takes a lane back. One that may still get answers to given-up requests is dropped.
func (ls *lanes) release(l *lane, clean bool) {
	ls.mu.Lock()
	if clean && len(ls.idle) < maxIdleLanes {
		ls.idle = append(ls.idle, l)
		l = nil
	}
	ls.mu.Unlock()
	if l != nil {
		_ = l.sub.Unsubscribe()
	}
}

func (ls *lanes) drop() {
	ls.mu.Lock()
	idle := ls.idle
	ls.idle = nil
	ls.mu.Unlock()
	for _, l := range idle {
		_ = l.sub.Unsubscribe()
	}
}

// ask sends the requests in order and returns the answers in the order of the requests. It
// fails as a whole when ctx ends, the connection is lost or a request cannot be sent;
// answers got so far are returned with the error, nil for the rest. A request that is too
// large fails alone, with the server's code for it.
func (p *period) ask(ctx context.Context, op fault.Op, msgs ...*natsgo.Msg) ([]*natsgo.Msg, error) {
	l, err := p.lane(op)
	if err != nil {
		return make([]*natsgo.Msg, len(msgs)), err
	}
	answers := make([]*natsgo.Msg, len(msgs))
	first := l.asked
	sent, got := 0, 0
	for got < sent || err == nil && sent < len(msgs) {
		for err == nil && sent < len(msgs) && sent-got < window {
			l.asked++
			msgs[sent].Reply = l.inbox + strconv.FormatUint(l.asked, 36)
			switch err = p.nc.PublishMsg(msgs[sent]); {
			case err == nil:
				sent++
			case errors.Is(err, natsgo.ErrMaxPayload): // concerns this one only
				answers[sent], err = tooLarge(p.nc.MaxPayload()), nil
				sent++
				got++
			default:
				err = sendError(op, err) // what was sent may have been acted on: wait for it
			}
		}
		if got == sent {
			continue
		}
		m, lost := p.answer(ctx, op, l)
		if lost != nil {
			err = lost
			break
		}
		n, bad := strconv.ParseUint(m.Subject[len(l.inbox):], 36, 64)
		if i := n - first - 1; bad == nil && i < uint64(len(msgs)) && answers[i] == nil {
			answers[i] = m
			got++
		}
	}
	p.lanes.release(l, err == nil)
	return answers, err
}

// tooLarge is what the server would answer to a message the library does not even send.
func tooLarge(limit int64) *natsgo.Msg {
	return &natsgo.Msg{Data: fmt.Appendf(nil, `{"error":{"code":400,"err_code":%d,"description":"the message is larger than %d bytes"}}`, codeMaxPayload, limit)}
}

// answer waits for the next answer on the lane.
func (p *period) answer(ctx context.Context, op fault.Op, l *lane) (*natsgo.Msg, error) {
	select {
	case m, ok := <-l.answers:
		if ok {
			return m, nil
		}
		return nil, closedError(op)
	case <-ctx.Done():
		e := fault.Wrap(op, fault.Canceled, ctx.Err())
		if f, ok := e.(*fault.Error); ok { //nolint:errorlint // Wrap returns this very type
			f.Sent = fault.SentMaybe
		}
		return nil, e
	case <-p.over:
		return nil, fault.New(op, fault.Unavailable, "the connection was lost while waiting for the answer").WithSent(fault.SentMaybe)
	}
}

// nobody tells the server's note that nobody listens on the request's subject: for JetStream,
// that the stream does not exist (or is being recovered). Such a request was not acted upon.
func nobody(m *natsgo.Msg) bool {
	return len(m.Data) == 0 && len(m.Header) > 0 && statusOf(m) == "503"
}

// statusOf is the status of a message without content, "404", or empty.
func statusOf(m *natsgo.Msg) string {
	if v := m.Header["Status"]; len(v) > 0 {
		return v[0]
	}
	return ""
}
