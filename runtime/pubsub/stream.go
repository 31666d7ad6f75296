package pubsub

import (
	"context"
	"sync"

	"github.com/mecha-project/mecha/components/fault"
)

// StreamOptions are what a client asks for when it opens a stream of events.
type StreamOptions struct {
	PubSub, Topic   string
	DeadLetterTopic string
	Metadata        map[string]string
}

// Stream is a subscription whose app end is a stream the app opened. Open it with OpenStream,
// tell the client that it is subscribed, then Run it.
type Stream struct {
	s     *Service
	route *route

	sending sync.Mutex // one send at a time
	send    func(*Event) error

	mu      sync.Mutex // guards pending
	pending map[string][]chan Answer
}

// streamPath is the route events of a stream carry, for the SDKs' sake.
const streamPath = "/"

// OpenStream checks what a client asks for and makes its stream. An unknown pub/sub is
// fault.NoSuchComponent, a topic the scopes refuse fault.ForbiddenTopic.
func (s *Service) OpenStream(opts StreamOptions) (*Stream, error) {
	const op fault.Op = "pubsub.OpenStream"
	sub := Subscription{PubSub: opts.PubSub, Topic: opts.Topic, DeadLetterTopic: opts.DeadLetterTopic,
		Metadata: opts.Metadata, Rules: []Rule{{Path: streamPath}}, Source: Streaming}
	switch {
	case sub.PubSub == "":
		return nil, fault.New(op, fault.Invalid, "pubsubName is required").With(fault.EmptyName)
	case sub.Topic == "":
		return nil, fault.New(op, fault.Invalid, "topic is required").With(fault.NoTopic)
	}
	h, err := s.lookup(sub.PubSub, sub.Topic)
	if err != nil {
		return nil, err
	}
	if !s.rulesOf(h).maySubscribe(s.self.App, sub.Topic) {
		return nil, notAllowed(&sub)
	}
	r, err := compile(sub)
	if err != nil {
		return nil, err
	}
	return &Stream{s: s, route: r, pending: map[string][]chan Answer{}}, nil
}

// Run delivers events through send, one at a time, until ctx ends or the service drains; then
// it returns, and send is not called again. Many events may wait for their Answer at once;
// those that wait when the client is gone go back to the group. The error is ctx's, or nil
// after a drain. Run it once.
func (st *Stream) Run(ctx context.Context, send func(*Event) error) error {
	m := &st.s.manager
	st.send = send
	// Deliveries end with the client, and when Drain's patience does.
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.work, cancel)()
	e := &entry{route: st.route, sink: st, work: work}
	if err := st.s.attach(e); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case <-m.draining:
		m.wait(e)
	}
	cancel()
	st.s.detach(e)
	return ctx.Err()
}

// Answer tells the stream what the app says of the event with that id. It reports whether an
// event was waiting for it. Two events with one id are answered in the order they were sent.
func (st *Stream) Answer(id string, a Answer) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	waiting := st.pending[id]
	if len(waiting) == 0 {
		return false
	}
	waiting[0] <- a // has room for one, and is taken out here
	st.drop(id, waiting[0])
	return true
}

// Deliver sends one event and waits for its answer.
func (st *Stream) Deliver(ctx context.Context, e *Event) (Answer, error) {
	answer := make(chan Answer, 1)
	if err := st.post(ctx, e, answer); err != nil {
		return Retry, err
	}
	select {
	case a := <-answer:
		return a, nil
	case <-ctx.Done():
		st.mu.Lock()
		defer st.mu.Unlock()
		st.drop(e.ID, answer)
		return Retry, fault.Wrap("pubsub.stream", fault.Canceled, ctx.Err())
	}
}

// post sends the event. The wait begins before the event leaves, and in the order events
// leave, so that an answer always finds it.
func (st *Stream) post(ctx context.Context, e *Event, answer chan Answer) error {
	id := e.ID
	st.sending.Lock()
	defer st.sending.Unlock()
	if err := ctx.Err(); err != nil {
		return fault.Wrap("pubsub.stream", fault.Canceled, err)
	}
	st.mu.Lock()
	st.pending[id] = append(st.pending[id], answer)
	st.mu.Unlock()
	err := st.send(e)
	if err != nil {
		st.mu.Lock()
		defer st.mu.Unlock()
		st.drop(id, answer)
	}
	return fault.Wrap("pubsub.stream", fault.Unavailable, err)
}

// drop takes a wait out of the list. st.mu is held.
func (st *Stream) drop(id string, answer chan Answer) {
	waiting := st.pending[id]
	for i, w := range waiting {
		if w == answer {
			waiting = append(waiting[:i:i], waiting[i+1:]...)
			break
		}
	}
	if len(waiting) == 0 {
		delete(st.pending, id)
	} else {
		st.pending[id] = waiting
	}
}

// DeliverBulk completes EventSink; streams have no batches.
func (st *Stream) DeliverBulk(context.Context, *Batch) ([]Answer, error) {
	return nil, fault.New("pubsub.stream", fault.Unsupported, "a stream takes no batches")
}
