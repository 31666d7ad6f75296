package engine_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// sink is where the apps of a test leave what they did: the first effect of each message.
type sink struct {
	t testing.TB

	mu     sync.Mutex
	seen   map[string]int // by body: how often
	last   map[string]int // by key: number of its last message
	epochs map[engine.Part]uint64
}

func newSink(t testing.TB) *sink {
	return &sink{t: t, seen: map[string]int{}, last: map[string]int{}, epochs: map[engine.Part]uint64{}}
}

// take notes a message; what a former owner brings late is refused, as a fenced store would.
func (s *sink) take(d *engine.Deliver, m *engine.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.Epoch < s.epochs[d.Part] {
		return
	}
	s.epochs[d.Part] = d.Epoch
	body := string(m.Data)
	s.seen[body]++
	n, _ := strconv.Atoi(body)
	if last, ok := s.last[m.Key]; ok && m.Key != "" && n < last && s.seen[body] == 1 {
		s.t.Errorf("key %s: %d took effect first after %d", m.Key, n, last)
	}
	s.last[m.Key] = max(s.last[m.Key], n)
}

func (s *sink) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// await returns when n messages took effect.
func (s *sink) await(n int) {
	s.t.Helper()
	late := time.Now().Add(patience)
	for s.count() < n {
		if time.Now().After(late) {
			s.t.Fatalf("%d of %d messages took effect", s.count(), n)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// working handles messages in goroutines, some of them failing at first.
func working(s *sink, failing float64) func(*app, engine.Deliver) {
	return func(a *app, d engine.Deliver) {
		for i := range d.Messages {
			go func() {
				m := &d.Messages[i]
				time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
				if rand.Float64() < failing {
					_ = a.c.Nack(engine.Refusal{Part: d.Part, Epoch: d.Epoch, Position: m.Position, Delay: time.Millisecond})
					return
				}
				s.take(&d, m)
				_ = a.c.Ack(d.Part, d.Epoch, []engine.Range{{From: m.Position, To: m.Position}})
			}()
		}
	}
}

func forever() engine.Retry { return engine.Retry{First: time.Millisecond, Attempts: -1} }

func TestMembersComeAndGo(t *testing.T) {
	b := newBroker(t, 8)
	s := newSink(t)
	pub := b.engine()
	o := engine.ConsumeOptions{Topics: []string{"t"}, Retry: forever()}
	var apps []*app
	for i := range 3 {
		publish(t, pub, "t", 20, i*500, i*500+500)
		apps = append(apps, consume(t, b.engine(), o, working(s, 0.02)))
		s.await(i*500 + 400)
	}
	for i, a := range apps {
		publish(t, pub, "t", 20, 1500+i*500, 2000+i*500)
		if i < 2 {
			a.close(true)
		}
	}
	s.await(3000)
}

// TestNothingTwice: without failures a message is delivered once, over joins and graceful leaves.
func TestNothingTwice(t *testing.T) {
	b := newBroker(t, 8)
	s := newSink(t)
	pub := b.engine()
	o := engine.ConsumeOptions{Topics: []string{"t"}, AutoRevoke: true}
	first := consume(t, b.engine(), o, working(s, 0))
	publish(t, pub, "t", 50, 0, 1000)
	s.await(100)
	second := consume(t, b.engine(), o, working(s, 0))
	s.await(1000)
	publish(t, pub, "t", 50, 1000, 2000)
	s.await(1200)
	first.close(true)
	s.await(2000)
	second.close(true)
	for body, n := range s.seen {
		if n != 1 {
			t.Errorf("message %s was delivered %d times", body, n)
		}
	}
}

func TestCredit(t *testing.T) {
	b := newBroker(t, 2)
	e := b.engine()
	publish(t, e, "t", 100, 0, 100)
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, Credited: true}, nil)
	a.wait("the assignment", func() bool { return len(a.events) > 0 })
	time.Sleep(50 * time.Millisecond)
	if len(a.got) > 0 {
		t.Errorf("%d messages without credit", len(a.got))
	}
	if err := a.c.Credit(0, 0, nil); fault.Of(err) != fault.Invalid {
		t.Errorf("credit of nothing: %v", err)
	}
	if err := a.c.Credit(7, 0, nil); err != nil {
		t.Fatal(err)
	}
	a.wait("seven messages", func() bool { return len(a.got) >= 7 })
	time.Sleep(50 * time.Millisecond)
	a.mu.Lock()
	if len(a.got) != 7 {
		t.Errorf("%d messages for a credit of 7", len(a.got))
	}
	a.mu.Unlock()
	if err := a.c.Credit(-1, 0, nil); fault.Of(err) != fault.Invalid {
		t.Errorf("negative credit: %v", err)
	}
	if err := a.c.Credit(1, 1, &engine.Part{Topic: "t", ID: 9}); fault.ReasonOf(err) != engine.NotAssigned {
		t.Errorf("credit for a partition of another: %v", err)
	}
	for range 20 {
		_ = a.c.Credit(1000, 10000, nil)
	}
	a.wait("the rest", func() bool { return len(a.got) == 100 })
	plain := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, Group: "other"}, nil)
	if err := plain.c.Credit(1, 1, nil); fault.Of(err) != fault.Invalid {
		t.Errorf("credit where none is wanted: %v", err)
	}
}

// TestCreditOfOnePartition does not hold back the others.
func TestCreditOfOnePartition(t *testing.T) {
	b := newBroker(t, 2)
	e := b.engine()
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, Credited: true}, ackAll)
	a.wait("the partitions", func() bool { return len(owned(a)) == 2 })
	if err := a.c.Credit(1, 1000, &engine.Part{Topic: "t", ID: 0}); err != nil {
		t.Fatal(err)
	}
	_ = a.c.Credit(1000, 1<<20, nil)
	publish(t, e, "t", 100, 0, 100)
	of := func(id int32) (n int) {
		for _, m := range a.got {
			if m.Partition == id {
				n++
			}
		}
		return n
	}
	a.wait("the other partition", func() bool { return of(1) > 20 && of(0) == 1 })
}

// owned is what the app owns by what it was told. a.mu is held.
func owned(a *app) map[engine.Part]uint64 {
	out := map[engine.Part]uint64{}
	for _, ev := range a.events {
		switch ev := ev.(type) {
		case engine.Assigned:
			for _, p := range ev.Parts {
				out[p.Part] = p.Epoch
			}
		case engine.Lost:
			for _, p := range ev.Parts {
				delete(out, p)
			}
		}
	}
	return out
}

func TestAnswersThatCannotBe(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}}, nil)
	publish(t, e, "t", 1, 0, 3)
	a.wait("a message", func() bool { return len(a.got) > 0 })
	part := engine.Part{Topic: "t", ID: 0}
	epoch := owned(a)[part]
	at := a.got[0].Position
	for _, c := range []struct {
		name string
		err  error
		code fault.Code
		want fault.Reason
	}{
		{"ack in a wrong epoch", a.c.Ack(part, epoch+1, []engine.Range{{From: at, To: at}}), fault.Invalid, engine.NotAssigned},
		{"ack in an old epoch", a.c.Ack(part, epoch-1, []engine.Range{{From: at, To: at}}), fault.Conflict, engine.StaleEpoch},
		{"ack of another partition", a.c.Ack(engine.Part{Topic: "u"}, epoch, nil), fault.Invalid, engine.NotAssigned},
		{"ack of what was not delivered", a.c.Ack(part, epoch, []engine.Range{{From: at, To: at + 1}}), fault.Invalid, engine.NotDelivered},
		{"ack of everything", a.c.Ack(part, epoch, []engine.Range{{From: 0, To: 1<<64 - 1}}), fault.Invalid, engine.NotDelivered},
		{"a range that runs backwards", a.c.Ack(part, epoch, []engine.Range{{From: 2, To: 1}}), fault.Invalid, ""},
		{"nack of what was not delivered", a.c.Nack(engine.Refusal{Part: part, Epoch: epoch, Position: at + 1}), fault.Invalid, engine.NotDelivered},
		{"a remedy nobody knows", a.c.Nack(engine.Refusal{Part: part, Epoch: epoch, Position: at, Remedy: 9}), fault.Invalid, ""},
		{"more time for what was not delivered", a.c.Extend(part, epoch, at+1, time.Second), fault.Invalid, engine.NotDelivered},
		{"an answer to no revocation", a.c.RevokeDone(77, nil), fault.Invalid, engine.NoRevoking},
		{"a control of a foreign partition", a.c.Control(engine.Control{Parts: []engine.Part{{Topic: "u"}}, Pause: true}), fault.Invalid, engine.NotAssigned},
		{"pause and resume", a.c.Control(engine.Control{Pause: true, Resume: true}), fault.Invalid, ""},
	} {
		if fault.Of(c.err) != c.code || c.want != "" && fault.ReasonOf(c.err) != c.want {
			t.Errorf("%s: %v (%s), want %v %s", c.name, c.err, fault.ReasonOf(c.err), c.code, c.want)
		}
	}
	if err := a.c.Ack(part, epoch, []engine.Range{{From: 0, To: at}}); err != nil {
		t.Errorf("an ack that begins before all messages: %v", err)
	}
	a.wait("the next", func() bool { return len(a.got) > 1 })
	if err := a.c.Ack(part, epoch, []engine.Range{{From: at, To: at}}); err != nil {
		t.Errorf("an ack that comes twice: %v", err)
	}
}

func TestRevokeWaitsForTheApp(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 5, 0, 5)
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, RevokeTimeout: patience}, nil)
	a.holdOn = true
	a.wait("messages", func() bool { return len(a.got) == 5 })
	part := engine.Part{Topic: "t", ID: 0}
	epoch := owned(a)[part]
	a.c.Close(true)
	var asked engine.Revoking
	a.wait("the revocation", func() bool {
		for _, ev := range a.events {
			if r, is := ev.(engine.Revoking); is {
				asked = r
			}
		}
		return asked.Assignment > 0
	})
	publish(t, e, "t", 5, 5, 6)
	for _, m := range a.got[:3] {
		if err := a.c.Ack(part, epoch, []engine.Range{{From: m.Position, To: m.Position}}); err != nil {
			t.Errorf("Ack while it is revoked: %v", err)
		}
	}
	other := consume(t, b.engine(), engine.ConsumeOptions{Topics: []string{"t"}}, ackAll)
	time.Sleep(100 * time.Millisecond)
	if len(other.got) > 0 {
		t.Error("the next owner got messages before the first let go")
	}
	if err := a.c.RevokeDone(asked.Assignment, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.c.RevokeDone(asked.Assignment, asked.Parts); err != nil {
		t.Errorf("answered again: %v", err)
	}
	if err := a.c.Ack(part, epoch, []engine.Range{{From: a.got[4].Position, To: a.got[4].Position}}); fault.ReasonOf(err) != engine.StaleEpoch {
		t.Errorf("an ack after RevokeDone: %v, want stale_epoch", err)
	}
	other.wait("what was not resolved", func() bool { return len(other.got) == 3 })
	if got := values(other.got); !slices.Equal(sorted(got), []int{3, 4, 5}) {
		t.Errorf("the next owner got %v, want 3 4 5", got)
	}
	if err := <-a.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	a.done <- nil
}

func sorted(in []int) []int {
	out := slices.Clone(in)
	slices.Sort(out)
	return out
}

func TestRevokeTimeout(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 5, 0, 5)
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, RevokeTimeout: 50 * time.Millisecond}, nil)
	a.holdOn = true
	a.wait("messages", func() bool { return len(a.got) == 5 })
	a.close(true)
	lost := false
	for _, ev := range a.events {
		if _, is := ev.(engine.Lost); is {
			lost = true
		}
	}
	if !lost {
		t.Error("the app was not told that it lost what it held on to")
	}
}

func TestSeek(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 3, 0, 10)
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}}, ackAll)
	a.wait("all", func() bool { return len(a.got) == 10 })
	if err := a.c.Control(engine.Control{Seek: &engine.Place{Kind: engine.AtPosition, Position: a.got[4].Position}}); err != nil {
		t.Fatal(err)
	}
	a.wait("the replay", func() bool { return len(a.got) == 16 })
	if got := sorted(values(a.got[10:])); !slices.Equal(got, []int{4, 5, 6, 7, 8, 9}) {
		t.Errorf("replayed %v", got)
	}
	other := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, Group: "late", Start: engine.Place{Kind: engine.Latest}}, ackAll)
	other.wait("its partition", func() bool { return len(owned(other)) == 1 })
	publish(t, e, "t", 3, 10, 11)
	other.wait("what is new", func() bool { return len(other.got) > 0 })
	if got := values(other.got); !slices.Equal(got, []int{10}) {
		t.Errorf("a group that starts at the end got %v", got)
	}
}

func TestPause(t *testing.T) {
	b := newBroker(t, 2)
	e := b.engine()
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}}, ackAll)
	a.wait("the partitions", func() bool { return len(owned(a)) == 2 })
	if err := a.c.Control(engine.Control{Pause: true}); err != nil {
		t.Fatal(err)
	}
	publish(t, e, "t", 10, 0, 10)
	time.Sleep(50 * time.Millisecond)
	if len(a.got) > 0 {
		t.Error("a paused consumer got messages")
	}
	_ = a.c.Control(engine.Control{Resume: true})
	a.wait("all", func() bool { return len(a.got) == 10 })
}

func TestConcurrencyIsLive(t *testing.T) {
	b := newBroker(t, 2)
	e := b.engine()
	publish(t, e, "t", 50, 0, 50)
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, Limits: engine.Limits{Concurrency: 3}}, nil)
	a.wait("three", func() bool { return len(a.got) == 3 })
	time.Sleep(30 * time.Millisecond)
	if len(a.got) != 3 {
		t.Errorf("%d at the app, want 3", len(a.got))
	}
	_ = a.c.Control(engine.Control{Concurrency: 10})
	a.wait("ten", func() bool { return len(a.got) == 10 })
}

func TestParkAndUnpark(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 2, 0, 8)
	var mu sync.Mutex
	broken := true
	handle := func(a *app, d engine.Deliver) {
		for _, m := range d.Messages {
			mu.Lock()
			bad := broken && m.Key == "k0"
			mu.Unlock()
			if bad {
				_ = a.c.Nack(engine.Refusal{Part: d.Part, Epoch: d.Epoch, Position: m.Position, Reason: "bad day"})
			} else {
				_ = a.c.Ack(d.Part, d.Epoch, []engine.Range{{From: m.Position, To: m.Position}})
			}
		}
	}
	o := engine.ConsumeOptions{Topics: []string{"t"}, Retry: engine.Retry{First: time.Millisecond, Attempts: 2, Then: engine.RemedyPark}}
	a := consume(t, e, o, handle)
	ctx := context.Background()
	part := engine.Part{Topic: "t"}
	parked := func(n int) {
		t.Helper()
		late := time.Now().Add(patience)
		for {
			keys, _, err := e.ListParked(ctx, "g", "t", "", 10)
			if err != nil {
				t.Fatal(err)
			}
			got := 0
			for _, k := range keys {
				got += k.Messages
				if k.Key != "k0" || k.Reason != "bad day" || k.Since.IsZero() {
					t.Errorf("parked: %+v", k)
				}
			}
			if got == n {
				return
			}
			if time.Now().After(late) {
				t.Fatalf("%d messages parked, want %d", got, n)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	parked(4)
	if _, err := e.Unpark(ctx, "g", "t", 0, "k1", false); fault.ReasonOf(err) != engine.NotParked {
		t.Errorf("unpark of what is not: %v", err)
	}
	publish(t, e, "t", 2, 8, 10)
	parked(5)
	a.close(true) // the next owner knows
	a = consume(t, e, o, handle)
	mu.Lock()
	broken = false
	mu.Unlock()
	n, err := e.Unpark(ctx, "g", "t", part.ID, "k0", false)
	if err != nil || n != 5 {
		t.Errorf("Unpark: %d, %v", n, err)
	}
	publish(t, e, "t", 2, 10, 12)
	a.wait("what was parked, and what is new", func() bool { return len(a.got) == 7 })
	var got []int
	for _, m := range a.got {
		if m.Key == "k0" {
			got = append(got, values([]engine.Message{m})...)
		}
	}
	if !slices.Equal(got, []int{0, 2, 4, 6, 8, 10}) {
		t.Errorf("of the key came back %v", got)
	}
	parked(0)
}

func TestDeadLetters(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 1, 0, 3)
	a := consume(t, e, engine.ConsumeOptions{Topics: []string{"t"}, Retry: engine.Retry{First: time.Millisecond, Attempts: 2, Then: engine.RemedyDeadLetter}}, func(a *app, d engine.Deliver) {
		for _, m := range d.Messages {
			if string(m.Data) == "1" {
				_ = a.c.Nack(engine.Refusal{Part: d.Part, Epoch: d.Epoch, Position: m.Position, Reason: "odd"})
			} else {
				_ = a.c.Ack(d.Part, d.Epoch, []engine.Range{{From: m.Position, To: m.Position}})
			}
		}
	})
	a.wait("the one behind", func() bool { return len(a.got) == 4 })
	if m := a.got[3]; string(m.Data) != "2" || !m.OrderGap {
		t.Errorf("behind the gap: %s, gap %v", m.Data, m.OrderGap)
	}
	dead := consume(t, e, engine.ConsumeOptions{Topics: []string{"t.dead-letter"}}, ackAll)
	dead.wait("the dead letter", func() bool { return len(dead.got) == 1 })
	if m := dead.got[0]; string(m.Data) != "1" || m.Key != "k0" || m.Metadata["mecha-dead-letter"] != "t" || m.Metadata["mecha-reason"] != "odd" || m.Metadata["mecha-failed"] != "2" {
		t.Errorf("dead letter %+v", m)
	}
}

func TestInstanceIsReplaced(t *testing.T) {
	b := newBroker(t, 2)
	o := engine.ConsumeOptions{Topics: []string{"t"}, Instance: "pod-1"}
	a := consume(t, b.engine(), o, nil)
	a.wait("the partitions", func() bool { return len(owned(a)) == 2 })
	before := owned(a)
	next := consume(t, b.engine(), o, nil)
	next.wait("the partitions", func() bool { return len(owned(next)) == 2 })
	for p, epoch := range owned(next) {
		if epoch <= before[p] {
			t.Errorf("partition %s: epoch %d after %d", p, epoch, before[p])
		}
	}
	select {
	case err := <-a.done:
		a.done <- err
		if fault.ReasonOf(err) != engine.InstanceReplaced {
			t.Errorf("Run: %v, want instance_replaced", err)
		}
	case <-time.After(patience):
		t.Fatal("the first one goes on")
	}
}

func TestResize(t *testing.T) {
	b := newBroker(t, 2)
	s := newSink(t)
	e := b.engine()
	publish(t, e, "t", 20, 0, 200)
	o := engine.ConsumeOptions{Topics: []string{"t"}, Retry: forever()}
	consume(t, b.engine(), o, working(s, 0.05))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 200; i < 2200; i += 20 {
			publish(t, e, "t", 20, i, i+20)
			time.Sleep(20 * time.Millisecond)
		}
	}()
	info, err := b.engine().ResizeTopic(context.Background(), "t", 5)
	if err != nil || len(info.Partitions) != 7 {
		t.Fatalf("ResizeTopic: %+v, %v", info, err)
	}
	<-done
	consume(t, b.engine(), o, working(s, 0.05))
	s.await(2200)
	if _, err := e.ResizeTopic(context.Background(), "t", 0); fault.ReasonOf(err) != engine.BadPartitions {
		t.Errorf("no partitions: %v", err)
	}
	if _, err := e.ResizeTopic(context.Background(), "u", 3); fault.Of(err) != fault.NotFound {
		t.Errorf("a topic that is not there: %v", err)
	}
}

// TestAppendBehindTheEnd: what a publisher that knows nothing of a resize appends to an old partition is nobody's, and
// keeps no new partition closed.
func TestAppendBehindTheEnd(t *testing.T) {
	b := newBroker(t, 2)
	e := b.engine()
	publish(t, e, "t", 1, 0, 1)
	if _, err := e.ResizeTopic(context.Background(), "t", 3); err != nil {
		t.Fatal(err)
	}
	late := b.hub.PubSub()
	defer late.Close(context.Background())
	for id := range int32(2) {
		r := late.Append(context.Background(), []block.LogRecord{{Message: block.Message{Topic: "t", Data: []byte("77")}, Partition: id}})
		if r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	publish(t, e, "t", 5, 1, 20)
	a := consume(t, b.engine(), engine.ConsumeOptions{Topics: []string{"t"}}, ackAll)
	a.wait("all that is somebody's", func() bool { return len(a.got) == 20 })
	if slices.Contains(values(a.got), 77) {
		t.Error("a record behind the end of its partition was delivered")
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	for _, o := range []engine.ConsumeOptions{
		{Group: "g"},
		{Topics: []string{"t"}},
		{Topics: []string{""}, Group: "g"},
		{Topics: []string{"t"}, Group: "g", Ordering: 9},
		{Topics: []string{"t"}, Group: "g", Limits: engine.Limits{Messages: -1}},
		{Topics: []string{"t"}, Group: "g", Manual: []engine.Part{{Topic: "u"}}},
		{Topics: []string{"t"}, Group: "g", Retry: engine.Retry{Then: 9}},
	} {
		if _, err := engine.NewConsumer(o, nil); fault.Of(err) != fault.Invalid {
			t.Errorf("%+v: %v, want invalid", o, err)
		}
	}
	_, err := engine.NewConsumer(engine.ConsumeOptions{Topics: []string{"mecha.parked/g/t"}, Group: "g"}, nil)
	if fault.Of(err) != fault.Denied || fault.ReasonOf(err) != fault.ForbiddenTopic {
		t.Errorf("a topic of the engine's: %v, want denied", err)
	}
}

func TestPublisherHoldsBackAKey(t *testing.T) {
	b := newBroker(t, 4)
	e := b.engine()
	p := engine.NewPublisher(engine.PublishOptions{Topic: "t"})
	entry := func(key string, size int) engine.Entry {
		return engine.Entry{Message: block.Message{Key: key, Data: make([]byte, size)}}
	}
	huge := e.Features().MaxRecord + 1
	if huge == 1 {
		t.Fatal("the broker has no bound")
	}
	batch := []engine.Entry{entry("a", 1), entry("b", 1), entry("a", huge), entry("a", 1), entry("b", 1), entry("", 1)}
	check := func(want ...string) {
		t.Helper()
		receipts := p.Publish(context.Background(), e, batch, false)
		p.Settle(batch, receipts)
		var got []string
		for _, r := range receipts {
			switch {
			case r.Err == nil:
				got = append(got, "ok")
			case fault.ReasonOf(r.Err) == fault.PrecedingFailed:
				got = append(got, "behind")
			default:
				got = append(got, fault.Of(r.Err).String())
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("receipts %v, want %v", got, want)
		}
	}
	check("ok", "ok", "too_large", "behind", "ok", "ok")
	batch = []engine.Entry{entry("a", 1), entry("b", 1)}
	check("behind", "ok")
	if !p.ResumeKey("a") || p.ResumeKey("b") {
		t.Error("ResumeKey: want true for what failed only")
	}
	check("ok", "ok")
	batch = []engine.Entry{entry("c", 1), entry("d", huge)}
	receipts := p.Publish(context.Background(), e, batch, true)
	if receipts[0].Err == nil || receipts[1].Err == nil {
		t.Errorf("an atomic batch with one that cannot be: %+v", receipts)
	}
}

func TestDuplicatesAreKnown(t *testing.T) {
	b := newBroker(t, 4)
	e := b.engine()
	batch := []engine.Entry{{Message: block.Message{Data: []byte("x"), ID: "p/1"}}, {Message: block.Message{Key: "k", Data: []byte("y"), ID: "p/2"}}}
	first := engine.NewPublisher(engine.PublishOptions{Topic: "t"}).Publish(context.Background(), e, batch, false)
	again := engine.NewPublisher(engine.PublishOptions{Topic: "t"}).Publish(context.Background(), b.engine(), batch, false)
	for i := range batch {
		if first[i].Duplicate || !again[i].Duplicate || first[i].Partition != again[i].Partition || first[i].Position != again[i].Position {
			t.Errorf("entry %d: %+v, then %+v", i, first[i], again[i])
		}
	}
}
