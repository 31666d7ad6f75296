package mecha_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/block"
	mecha "github.com/mecha-project/mecha/sdk/go"
	"github.com/mecha-project/mecha/test/fakeengine"
)

// history is what handlers did. It complains when two have one key in hand.
type history struct {
	t  testing.TB
	mu sync.Mutex

	now, most int
	busy      map[string]int
	seen      map[string][]string // values by key, in the order in which handlers ended well
	attempts  map[string]int
}

func newHistory(t testing.TB) *history {
	return &history{t: t, busy: map[string]int{}, seen: map[string][]string{}, attempts: map[string]int{}}
}

func (h *history) begin(m *mecha.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.now++; h.now > h.most {
		h.most = h.now
	}
	if h.busy[m.Key]++; h.busy[m.Key] > 1 && m.Key != "" {
		h.t.Errorf("two handlers have key %s in hand", m.Key)
	}
	h.attempts[string(m.Value)] = m.Attempt
}

func (h *history) end(m *mecha.Message, err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now--
	h.busy[m.Key]--
	if err == nil {
		h.seen[m.Key] = append(h.seen[m.Key], string(m.Value))
	}
	return err
}

// complete reports whether every key has its n values, each for the first time in order.
func (h *history) complete(keys, n int) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for k := range keys {
		next := 0
		for _, v := range h.seen["k"+strconv.Itoa(k)] {
			i, _ := strconv.Atoi(v[len(fmt.Sprintf("k%d-", k)):])
			if i > next {
				h.t.Fatalf("key k%d: %d before %d: %v", k, i, next, h.seen["k"+strconv.Itoa(k)])
			}
			if i == next {
				next++
			}
		}
		if next < n {
			return false
		}
	}
	return true
}

func put(e *fakeengine.Engine, keys, from, to int) {
	for i := from; i < to; i++ {
		for k := range keys {
			e.Put("orders", fmt.Sprintf("k%d", k), fmt.Sprintf("k%d-%d", k, i))
		}
	}
}

func committed(t testing.TB, c *mecha.Client) bool {
	g, err := c.DescribeGroup(t.Context(), orders, "")
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(g.GetPartitions(), func(p *mechav1.GroupPartition) bool { return p.GetLag() != 0 })
}

func TestConsumeKeepsOrderAndRunsAtOnce(t *testing.T) {
	e, _, c := start(t)
	const keys, n = 20, 30
	put(e, keys, 0, n)
	h := newHistory(t)
	var held atomic.Int32
	gate := make(chan struct{})
	r := consume(t, c, mecha.ConsumeOptions{Concurrency: 8}, func(_ context.Context, m *mecha.Message) error {
		h.begin(m)
		if held.Add(1) <= 8 { // the first ones wait for each other
			if held.Load() == 8 {
				close(gate)
			}
			<-gate
		}
		return h.end(m, nil)
	})
	eventually(t, "all messages", func() bool { return h.complete(keys, n) })
	eventually(t, "all to be committed", func() bool { return committed(t, c) })
	r.leave()
	if h.most != 8 {
		t.Errorf("at most %d handlers ran at once, want 8", h.most)
	}
}

// The barrier: a partition moves when its handlers have ended, with everything acknowledged.
func TestBarrier(t *testing.T) {
	e, _, c := start(t)
	for p := range int32(4) {
		e.PutRecord("orders", p, block.Message{Key: fmt.Sprint("k", p), Data: []byte(fmt.Sprint("v", p))})
	}
	started, release := make(chan uint32, 8), make(chan struct{})
	var ended atomic.Int32
	a := consume(t, c, mecha.ConsumeOptions{Instance: "a"}, func(_ context.Context, m *mecha.Message) error {
		started <- m.Partition
		<-release
		ended.Add(1)
		return nil
	})
	for range 4 {
		<-started
	}
	moved := make(chan *mechav1.Assigned, 8)
	second := make(chan *mecha.Message, 8)
	b := consume(t, c, mecha.ConsumeOptions{Instance: "b", OnFrame: func(f *mechav1.BrokerFrame) {
		if a := f.GetAssigned(); a != nil {
			if ended.Load() < 4 && len(a.GetPartitions()) > 0 {
				t.Errorf("partitions moved while handlers ran: %v", a)
			}
			moved <- a
		}
	}}, func(_ context.Context, m *mecha.Message) error {
		second <- m
		return nil
	})
	eventually(t, "both members", func() bool {
		g, err := c.DescribeGroup(t.Context(), orders, "")
		return err == nil && len(g.GetMembers()) == 2
	})
	close(release)
	for got := 0; got < 2; {
		got += len((<-moved).GetPartitions())
	}
	eventually(t, "all to be committed", func() bool { return committed(t, c) })
	for p := range int32(4) {
		e.PutRecord("orders", p, block.Message{Key: "n", Data: []byte("new")})
	}
	for range 2 {
		if m := <-second; m.Attempt != 1 || string(m.Value) != "new" || m.Epoch != 2 {
			t.Errorf("the new owner got %+v", m)
		}
	}
	b.leave()
	a.leave()
}

// Past the deadline a partition is lost: the handler is told, and what it says counts no more.
func TestLost(t *testing.T) {
	e, _, c := start(t)
	for p := range int32(4) {
		e.PutRecord("orders", p, block.Message{Key: "k", Data: []byte("v")})
	}
	causes := make(chan error, 4)
	started := make(chan struct{}, 8)
	a := consume(t, c, mecha.ConsumeOptions{Instance: "a", RevokeTimeout: 50 * time.Millisecond}, func(ctx context.Context, m *mecha.Message) error {
		started <- struct{}{}
		<-ctx.Done()
		causes <- context.Cause(ctx)
		return nil
	})
	for range 4 {
		<-started
	}
	again := make(chan *mecha.Message, 4)
	b := consume(t, c, mecha.ConsumeOptions{Instance: "b"}, func(_ context.Context, m *mecha.Message) error {
		again <- m
		return nil
	})
	for range 2 {
		if err := <-causes; !errors.Is(err, mecha.ErrLost) {
			t.Errorf("the handler's context ended with %v", err)
		}
		if m := <-again; m.Attempt != 2 || m.Epoch != 2 {
			t.Errorf("the new owner got %+v", m)
		}
	}
	b.leave()
	a.leave()
}

// A consumer whose connections break goes on: nothing is lost, order is kept, and no two handlers have a key.
func TestReconnect(t *testing.T) {
	e, s, c := start(t)
	const keys, n = 12, 60
	h := newHistory(t)
	r := consume(t, c, mecha.ConsumeOptions{Concurrency: 16}, func(ctx context.Context, m *mecha.Message) error {
		h.begin(m)
		select {
		case <-time.After(time.Duration(m.Position%3) * time.Millisecond):
		case <-ctx.Done():
			return h.end(m, ctx.Err())
		}
		return h.end(m, nil)
	})
	for i := range 6 {
		put(e, keys, i*n/6, (i+1)*n/6)
		if i < 5 {
			time.Sleep(10 * time.Millisecond)
			s.cut()
		}
	}
	eventually(t, "all messages", func() bool { return h.complete(keys, n) })
	eventually(t, "all to be committed", func() bool { return committed(t, c) })
	r.leave()
}

// Another stream delivers when the handlers of the last one have ended, however long that takes.
func TestReconnectWaitsForHandlers(t *testing.T) {
	e, s, c := start(t)
	e.Put("orders", "k", "1")
	started, release := make(chan *mecha.Message, 2), make(chan struct{})
	h := newHistory(t)
	r := consume(t, c, mecha.ConsumeOptions{}, func(_ context.Context, m *mecha.Message) error {
		h.begin(m)
		started <- m
		<-release // deaf to its context
		return h.end(m, nil)
	})
	first := <-started
	s.cut()
	eventually(t, "the member to be gone", func() bool {
		g, err := c.DescribeGroup(t.Context(), orders, "")
		return err == nil && len(g.GetMembers()) == 0
	})
	select {
	case m := <-started:
		t.Errorf("%+v was handled while %+v was", m, first)
	case <-time.After(100 * time.Millisecond):
	}
	close(release)
	if m := <-started; m.Attempt != 2 || m.Epoch <= first.Epoch {
		t.Errorf("then came %+v", m)
	}
	r.leave()
}

func TestVerdicts(t *testing.T) {
	e, _, c := start(t)
	failure := errors.New("no stock")
	var mu sync.Mutex
	got := map[string][]string{}
	var retried time.Duration
	var last time.Time
	r := consume(t, c, mecha.ConsumeOptions{Retry: &mechav1.RetryPolicy{FirstDelay: durationpb.New(time.Millisecond)}}, func(_ context.Context, m *mecha.Message) error {
		mu.Lock()
		defer mu.Unlock()
		got[m.Key] = append(got[m.Key], fmt.Sprintf("%s/%d/%v", m.Value, m.Attempt, m.OrderGap))
		if string(m.Value) != "1" {
			return nil
		}
		switch m.Key {
		case "retry":
			if m.Attempt < 3 {
				return failure
			}
		case "after":
			if m.Attempt == 1 {
				last = time.Now()
				return mecha.RetryAfter(80*time.Millisecond, failure)
			}
			retried = time.Since(last)
		case "dead":
			return mecha.DeadLetter(failure)
		case "drop":
			return fmt.Errorf("around: %w", mecha.Drop(nil))
		case "park":
			return mecha.Park(failure)
		}
		return nil
	})
	keys := []string{"retry", "after", "dead", "drop", "park"}
	for _, k := range keys {
		e.Put("orders", k, "1")
		e.Put("orders", k, "2")
	}
	eventually(t, "all to be committed", func() bool { return committed(t, c) })
	want := map[string][]string{"retry": {"1/1/false", "1/2/false", "1/3/false", "2/1/false"}, "after": {"1/1/false", "1/2/false", "2/1/false"},
		"dead": {"1/1/false", "2/1/true"}, "drop": {"1/1/false", "2/1/true"}, "park": {"1/1/false"}}
	mu.Lock()
	for _, k := range keys {
		if !slices.Equal(got[k], want[k]) {
			t.Errorf("%s: %v, want %v", k, got[k], want[k])
		}
	}
	if retried < 80*time.Millisecond {
		t.Errorf("again after %v, want 80ms", retried)
	}
	mu.Unlock()
	if dead := e.Values("orders.dead-letter")[0]; len(dead) != 1 || dead[0] != "1" {
		t.Errorf("dead letters: %v", dead)
	}
	var parked []*mechav1.ParkedKey
	for k, err := range c.Parked(t.Context(), orders, "") {
		if err != nil {
			t.Fatal(err)
		}
		parked = append(parked, k)
	}
	if len(parked) != 1 || parked[0].GetKey() != "park" || parked[0].GetMessages() != 2 || parked[0].GetReason() != "no stock" {
		t.Fatalf("parked: %v", parked)
	}
	if n, err := c.DropParked(t.Context(), orders, "", parked[0].GetPartition(), "park"); n != 2 || err != nil {
		t.Errorf("dropped %d, %v", n, err)
	}
	if _, err := c.Unpark(t.Context(), orders, "", parked[0].GetPartition(), "park"); mecha.ReasonOf(err) != mecha.ReasonNotParked {
		t.Errorf("unpark: %v", err)
	}
	r.leave()
}

// The end of ctx is an orderly leave: what runs ends, and is acknowledged.
func TestLeave(t *testing.T) {
	e, _, c := start(t)
	e.Put("orders", "a", "1")
	started, release := make(chan struct{}), make(chan struct{})
	r := consume(t, c, mecha.ConsumeOptions{}, func(ctx context.Context, _ *mecha.Message) error {
		close(started)
		<-release
		return ctx.Err()
	})
	<-started
	r.cancel()
	eventually(t, "the member to leave", func() bool {
		g, err := c.DescribeGroup(t.Context(), orders, "")
		return err == nil && len(g.GetMembers()) == 1 && g.GetMembers()[0].GetLeaving()
	})
	close(release)
	r.leave()
	if !committed(t, c) {
		t.Error("what the last handler did is not committed")
	}
}

// A handler that does not end is given up when Consume is to.
func TestLeaveCutsOff(t *testing.T) {
	e, _, c := start(t)
	e.Put("orders", "a", "1")
	started, cause := make(chan struct{}), make(chan error, 1)
	r := consume(t, c, mecha.ConsumeOptions{RevokeTimeout: 20 * time.Millisecond}, func(ctx context.Context, _ *mecha.Message) error {
		close(started)
		<-ctx.Done()
		cause <- context.Cause(ctx)
		return ctx.Err()
	})
	<-started
	r.leave()
	if err := <-cause; !errors.Is(err, mecha.ErrLost) {
		t.Errorf("the handler's context ended with %v", err)
	}
}

func TestConsumeRefused(t *testing.T) {
	_, _, c := start(t)
	never := func(context.Context, *mecha.Message) error { return nil }
	for reason, o := range map[string]mecha.ConsumeOptions{
		"NO_SUCH_COMPONENT":           {PubSub: "none"},
		"FORBIDDEN_TOPIC":             {Topics: []string{fakeengine.Forbidden}},
		mecha.ReasonMissingCapability: {Require: []mechav1.Capability{99}},
		"NO_SUCH_PARTITION":           {Manual: []*mechav1.Partition{{Topic: "orders", Partition: 99}}},
		mecha.ReasonInstanceReplaced:  {Instance: "pod"},
	} {
		r := consume(t, c, o, never)
		if reason == mecha.ReasonInstanceReplaced {
			eventually(t, "the member", func() bool {
				g, err := c.DescribeGroup(t.Context(), orders, "")
				return err == nil && len(g.GetMembers()) == 1
			})
			defer consume(t, c, o, never).leave()
		}
		if err := r.wait(); mecha.ReasonOf(err) != reason {
			t.Errorf("%s: Consume ended with %v", reason, err)
		}
	}
}

// A consumer waits for a sidecar that is not there yet, and ends when it is told to.
func TestConsumeWaitsForTheSidecar(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	c, err := mecha.Dial(mecha.WithAddress("unix://" + socket))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got := make(chan struct{})
	r := consume(t, c, mecha.ConsumeOptions{}, func(context.Context, *mecha.Message) error { close(got); return nil })
	e := fakeengine.New()
	s, err := listen(e, socket, "", 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	e.Put("orders", "", "x")
	<-got
	r.leave()
}

func TestExtend(t *testing.T) {
	e, _, c := start(t)
	e.Put("orders", "a", "1")
	r := consume(t, c, mecha.ConsumeOptions{HandlerTimeout: -1, OnFrame: func(f *mechav1.BrokerFrame) {
		if f.GetFault() != nil {
			t.Errorf("fault %v", f)
		}
	}}, func(_ context.Context, m *mecha.Message) error {
		m.Extend(time.Minute)
		if e := m.IfEpoch(); e.GetEpoch() != 1 || e.GetTopic() != "orders" {
			t.Errorf("epoch %v", e)
		}
		return nil
	})
	eventually(t, "all to be committed", func() bool { return committed(t, c) })
	r.leave()
}
