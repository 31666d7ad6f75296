//go:build unix

package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/faults/messaging/history"

	mecha "github.com/mecha-project/mecha/sdk/go"
)

// sdk consumes with the Go SDK: a handler, and the barrier, acknowledgements and reconnection are
// the SDK's.
func (w *worker) sdk(ctx context.Context) error {
	conn, err := w.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	c := newConsumer(w)
	return mecha.New(conn).Consume(ctx, mecha.ConsumeOptions{PubSub: w.PubSub, Topics: []string{w.Topic}, Group: w.Group, Instance: w.Instance,
		Concurrency: w.MaxInFlight, Limits: &mechav1.ConsumeLimits{Messages: uint32(w.MaxInFlight)}, StatusInterval: 200 * time.Millisecond,
		Retry:   &mechav1.RetryPolicy{Attempts: -1, Then: mechav1.Remedy_REMEDY_RETRY},
		OnFrame: c.saw, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, c.handled)
}

// saw notes what the SDK was told.
func (c *consumer) saw(f *mechav1.BrokerFrame) {
	note := func(k history.Kind, topic string, partition uint32, e history.Event) {
		e.Kind, e.Group, e.Topic, e.Part = k, c.Group, topic, int32(partition)
		c.note(e)
	}
	switch f := f.Frame.(type) {
	case *mechav1.BrokerFrame_Opened:
		c.note(history.Event{Kind: history.Opened, Group: c.Group, Part: history.NoPart})
	case *mechav1.BrokerFrame_Assigned:
		for _, p := range f.Assigned.Partitions {
			note(history.Assigned, p.Partition.Topic, p.Partition.Partition, history.Event{Epoch: p.Partition.Epoch, Next: p.Next})
		}
	case *mechav1.BrokerFrame_Revoking:
		for _, p := range f.Revoking.Partitions {
			note(history.Revoking, p.Topic, p.Partition, history.Event{What: f.Revoking.Reason})
		}
	case *mechav1.BrokerFrame_Lost:
		for _, p := range f.Lost.Partitions {
			note(history.Lost, p.Topic, p.Partition, history.Event{Epoch: p.Epoch, What: f.Lost.Reason})
		}
	case *mechav1.BrokerFrame_Status:
		for _, p := range f.Status.Partitions {
			note(history.Status, p.Partition.Topic, p.Partition.Partition, history.Event{Epoch: p.Partition.Epoch, Committed: p.Committed})
		}
	}
}

// handled is the handler.
func (c *consumer) handled(_ context.Context, m *mecha.Message) error {
	b := c.read(m.Value)
	e := history.Event{Group: c.Group, Topic: m.Topic, Part: int32(m.Partition), Pos: m.Position, Epoch: m.Epoch, ID: b.ID, Key: b.Key, Seq: b.Seq, Attempt: m.Attempt, Gap: m.OrderGap}
	tell := func(k history.Kind) {
		e.Kind = k
		c.note(e)
	}
	e.Queued = true // it waited for a handler
	tell(history.Delivered)
	e.Queued = false
	time.Sleep(c.takes(b))
	if c.refuses(b) {
		e.Remedy = history.Retry
		tell(history.Nacked)
		return errors.New("poison")
	}
	done := e
	done.Kind = history.Effect
	c.must(c.sink.Add(done))
	tell(history.Acked)
	return nil
}

// answer is what became of a message.
type answer struct {
	e   *entry
	r   mecha.Receipt
	err error
}

// sdkPublisher publishes with the Go SDK, several messages of a key at a time.
func (w *worker) sdkPublisher(ctx context.Context) error {
	conn, err := w.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	p, err := mecha.New(conn).NewPublisher(mecha.Topic{PubSub: w.PubSub, Name: w.Topic}, mecha.PublisherOptions{Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		return err
	}
	s := &sending{worker: w, p: p, answers: make(chan answer, 1<<12)}
	for _, key := range w.Keys {
		s.lanes = append(s.lanes, &lane{key: key})
	}
	return s.run(ctx)
}

type sending struct {
	*worker
	p       *mecha.Publisher
	lanes   []*lane
	answers chan answer
	resumed int
}

func (s *sending) run(ctx context.Context) error {
	late, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer s.p.Close(late)
	tick := time.NewTicker(s.Pause)
	defer tick.Stop()
	stop := ctx.Done()
	for {
		select {
		case <-stop:
			stop = nil
			tick.Stop()
			time.AfterFunc(lastTries, cancel)
		case <-tick.C:
			for _, l := range s.lanes {
				if len(l.queue) < 8 {
					e := l.add()
					if q := s.Poison[l.key]; q.Seq == l.seq {
						e.Fails = q.Fails
					}
				}
			}
		case a := <-s.answers:
			s.answered(a)
		case <-late.Done():
			return nil
		}
		open := 0
		for _, l := range s.lanes {
			s.flush(late, l)
			open += len(l.queue)
		}
		if stop == nil && open == 0 {
			return nil
		}
	}
}

func (s *sending) flush(ctx context.Context, l *lane) {
	if l.failed {
		if l.flying() > 0 {
			return
		}
		s.resumed++
		s.note(history.Event{Kind: history.ResumeKey, Key: l.key, Stream: s.Proc, Part: history.NoPart})
		s.p.ResumeKey(l.key)
		l.failed = false
	}
	for _, e := range l.queue {
		if e.flying {
			continue
		}
		e.flying, e.since = true, history.Now()
		s.note(history.Event{Kind: history.Publishing, ID: e.ID, Key: e.Key, Seq: e.Seq, Stream: s.Proc, Part: history.NoPart})
		value, err := json.Marshal(e.body)
		s.must(err)
		s.p.PublishAsync(ctx, mecha.Entry{Key: e.Key, Value: value}, func(r mecha.Receipt, err error) { s.answers <- answer{e, r, err} })
	}
}

func (s *sending) answered(a answer) {
	e := a.e
	e.flying = false
	ev := history.Event{Kind: history.Published, ID: e.ID, Key: e.Key, Seq: e.Seq, Stream: s.Proc, Part: history.NoPart, From: e.since, Outcome: history.OK}
	switch {
	case a.err == nil:
		ev.Part, ev.Pos = int32(a.r.Partition), a.r.Position
		e.lane.drop(e)
	case mecha.ReasonOf(a.err) == "PRECEDING_FAILED":
		ev.Outcome, e.lane.failed = history.Preceding, true
	default:
		ev.Outcome, ev.What, e.lane.failed = history.Unknown, fmt.Sprint(a.err), true
	}
	s.note(ev)
}
