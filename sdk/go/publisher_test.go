package mecha_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
	mecha "github.com/mecha-project/mecha/sdk/go"
	"github.com/mecha-project/mecha/test/fakeengine"
)

func publisher(t testing.TB, c *mecha.Client, o mecha.PublisherOptions) *mecha.Publisher {
	t.Helper()
	if o.Log == nil {
		o.Log = quiet
	}
	p, err := c.NewPublisher(orders, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = p.Close(ctx)
	})
	return p
}

// results gathers what PublishAsync tells.
type results struct {
	mu  sync.Mutex
	err map[string]error
	dup int
}

func (r *results) of(value string) func(mecha.Receipt, error) {
	return func(got mecha.Receipt, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.err == nil {
			r.err = map[string]error{}
		}
		if _, twice := r.err[value]; twice {
			err = errors.New("told twice")
		}
		if got.Duplicate {
			r.dup++
		}
		r.err[value] = err
	}
}

func TestPublish(t *testing.T) {
	e, _, c := start(t)
	p := publisher(t, c, mecha.PublisherOptions{Require: []mechav1.Capability{mechav1.Capability_CAPABILITY_DEDUPLICATION}})
	ctx := limited(t)
	first, err := p.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("0"), Headers: map[string]string{"h": "v"}, TTL: time.Hour})
	if err != nil || first.Position != 1 {
		t.Fatalf("got %+v, %v", first, err)
	}
	var got results
	want := []string{"0"}
	for i := 1; i < 1000; i++ {
		v := fmt.Sprint(i)
		want = append(want, v)
		p.PublishAsync(ctx, mecha.Entry{Key: "k", Value: []byte(v)}, got.of(v))
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if v := e.Values("orders")[int32(first.Partition)]; !slices.Equal(v, want) {
		t.Errorf("published %v", v)
	}
	for v, err := range got.err {
		if err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
	one := uint32(1)
	if r, err := p.Publish(ctx, mecha.Entry{Partition: &one, Value: []byte("x"), DedupID: "me"}); err != nil || r.Partition != 1 {
		t.Errorf("to a partition: %+v, %v", r, err)
	}
	if r, err := p.Publish(ctx, mecha.Entry{Partition: &one, Value: []byte("x"), DedupID: "me"}); err != nil || !r.Duplicate {
		t.Errorf("twice: %+v, %v", r, err)
	}
	if rs, err := p.PublishAtomic(ctx, []mecha.Entry{{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}}); err != nil || rs[1].Position != rs[0].Position+1 {
		t.Errorf("atomic: %+v, %v", rs, err)
	}
	for what, entry := range map[string]mecha.Entry{"a key": {Key: "\xff"}, "a header": {Headers: map[string]string{"a": "\xff"}}, "an id": {DedupID: "\xff"}, "a ttl": {TTL: -1}} {
		if _, err := p.Publish(ctx, entry); err == nil {
			t.Errorf("%s that cannot be was published", what)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Error(err)
	}
	if _, err := p.Publish(ctx, mecha.Entry{}); !errors.Is(err, mecha.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Connections that break at any time: every message is there once, in order, and answered once.
func TestPublishIsResent(t *testing.T) {
	e, s, c := start(t)
	var calls int
	e.Append = func(engine.Batch) {
		if calls++; calls%5 == 0 && calls <= 100 { // an end to it, for what is appended may never be answered otherwise
			s.cut()
		}
	}
	p := publisher(t, c, mecha.PublisherOptions{})
	ctx := limited(t)
	var got results
	const n = 3000
	for i := range n {
		v := fmt.Sprintf("%d-%d", i%10, i)
		p.PublishAsync(ctx, mecha.Entry{Key: fmt.Sprint("k", i%10), Value: []byte(v)}, got.of(v))
		if i%300 == 0 {
			time.Sleep(time.Millisecond) // so that there are several batches
		}
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	total, last := 0, map[string]int{}
	for _, log := range e.Values("orders") {
		for _, v := range log {
			var key, i int
			fmt.Sscanf(v, "%d-%d", &key, &i)
			k := fmt.Sprint(key)
			if prev, ok := last[k]; ok && i <= prev {
				t.Errorf("key %s: %d behind %d", k, i, prev)
			}
			last[k] = i
			total++
		}
	}
	if total != n || len(got.err) != n {
		t.Errorf("%d messages, %d answers; want %d", total, len(got.err), n)
	}
	for v, err := range got.err {
		if err != nil {
			t.Errorf("%s: %v", v, err)
		}
	}
	if got.dup == 0 {
		t.Error("nothing was sent twice: the test cuts nothing off")
	}
}

// What follows a failed message of its key fails, over reconnections too, until ResumeKey.
func TestPrecedingFailed(t *testing.T) {
	for _, reconnect := range []bool{false, true} {
		t.Run(fmt.Sprint("reconnect=", reconnect), func(t *testing.T) {
			e, s, c := start(t)
			fails, hold := true, make(chan struct{})
			e.Fail = func(n engine.Entry) error {
				if string(n.Data) == "bad" && fails {
					return fault.New("test", fault.Unavailable, "not now")
				}
				return nil
			}
			first := true
			e.Append = func(engine.Batch) {
				if first {
					first = false
					return
				}
				<-hold
			}
			p := publisher(t, c, mecha.PublisherOptions{})
			ctx := limited(t)
			_, err := p.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("bad")})
			if mecha.ReasonOf(err) != "UNAVAILABLE" {
				t.Fatalf("the failing one: %v", err)
			}
			if _, err := p.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("next")}); mecha.ReasonOf(err) != mecha.ReasonPrecedingFailed {
				t.Errorf("behind it: %v", err)
			}
			other := make(chan error, 1)
			p.PublishAsync(ctx, mecha.Entry{Key: "other", Value: []byte("o")}, func(_ mecha.Receipt, err error) { other <- err })
			if reconnect {
				s.cut()
			}
			close(hold)
			if err := <-other; err != nil {
				t.Errorf("another key: %v", err)
			}
			if _, err := p.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("later")}); mecha.ReasonOf(err) != mecha.ReasonPrecedingFailed {
				t.Errorf("later: %v", err)
			}
			fails = false
			p.ResumeKey("k")
			if _, err := p.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("again")}); err != nil {
				t.Errorf("resumed: %v", err)
			}
			for _, log := range e.Values("orders") {
				for _, v := range log {
					if v != "o" && v != "again" {
						t.Errorf("%q was published", v)
					}
				}
			}
		})
	}
}

// With ordering by partition a failed message holds its partition back, and what may belong to it.
func TestPrecedingFailedOfPartition(t *testing.T) {
	e, s, c := start(t)
	e.Fail = func(n engine.Entry) error {
		if string(n.Data) == "bad" {
			return fault.New("test", fault.Unavailable, "not now")
		}
		return nil
	}
	p := publisher(t, c, mecha.PublisherOptions{Ordering: mechav1.Ordering_ORDERING_PARTITION})
	ctx := limited(t)
	failed, err := p.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("bad")})
	if mecha.ReasonOf(err) != "UNAVAILABLE" {
		t.Fatalf("the failing one: %v", err)
	}
	other := (failed.Partition + 1) % 4
	for _, cut := range []bool{false, true} {
		if cut {
			s.cut() // the sidecar forgets; the publisher must not
		}
		for what, e := range map[string]mecha.Entry{"its key": {Key: "k"}, "its partition": {Partition: &failed.Partition}, "another key": {Key: "o"}} {
			if _, err := p.Publish(ctx, e); mecha.ReasonOf(err) != mecha.ReasonPrecedingFailed {
				t.Errorf("%s: %v", what, err)
			}
		}
		if _, err := p.Publish(ctx, mecha.Entry{Partition: &other}); err != nil {
			t.Errorf("another partition: %v", err)
		}
	}
	p.ResumePartition(failed.Partition)
	for what, e := range map[string]mecha.Entry{"its key": {Key: "k"}, "its partition": {Partition: &failed.Partition}, "another key": {Key: "o"}} {
		if _, err := p.Publish(ctx, e); err != nil {
			t.Errorf("resumed, %s: %v", what, err)
		}
	}
}

// A stream that breaks with a failure told and the messages behind it under way: they fail too, though
// the sidecar knows nothing of the failure on the next stream.
func TestPrecedingFailedOnTheWay(t *testing.T) {
	e, s, c := start(t)
	e.Fail = func(n engine.Entry) error {
		if string(n.Data) == "bad" {
			return fault.New("test", fault.Unavailable, "not now")
		}
		return nil
	}
	told := make(chan struct{})
	n := 0
	e.Append = func(engine.Batch) {
		if n++; n == 2 { // the batch behind the failed one: cut off before it is appended
			<-told
			s.cut()
		}
	}
	p := publisher(t, c, mecha.PublisherOptions{})
	ctx := limited(t)
	var got results
	p.PublishAsync(ctx, mecha.Entry{Key: "k", Value: []byte("bad")}, func(r mecha.Receipt, err error) { got.of("bad")(r, err); close(told) })
	eventually(t, "the first batch to be on its way", func() bool {
		got.mu.Lock()
		defer got.mu.Unlock()
		return got.err["bad"] != nil
	})
	for i := range 5 {
		v := fmt.Sprint(i)
		p.PublishAsync(ctx, mecha.Entry{Key: "k", Value: []byte(v)}, got.of(v))
		p.PublishAsync(ctx, mecha.Entry{Key: "o", Value: []byte("o" + v)}, got.of("o"+v))
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := got.err[fmt.Sprint(i)]; mecha.ReasonOf(err) != mecha.ReasonPrecedingFailed {
			t.Errorf("%d: %v", i, err)
		}
		if err := got.err["o"+fmt.Sprint(i)]; err != nil {
			t.Errorf("o%d: %v", i, err)
		}
	}
}

// Too much that is not answered makes PublishAsync wait.
func TestPublishBackPressure(t *testing.T) {
	e, _, c := start(t)
	hold := make(chan struct{})
	e.Append = func(engine.Batch) { <-hold }
	p := publisher(t, c, mecha.PublisherOptions{MaxPending: 10})
	ctx := limited(t)
	var got results
	for i := range 10 {
		p.PublishAsync(ctx, mecha.Entry{Value: []byte("x")}, got.of(fmt.Sprint(i)))
	}
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	p.PublishAsync(short, mecha.Entry{Value: []byte("x")}, func(_ mecha.Receipt, err error) { done <- err })
	if err := <-done; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beyond the bound: %v", err)
	}
	if _, err := p.Publish(short, mecha.Entry{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("beyond the bound: %v", err)
	}
	close(hold)
	if _, err := p.Publish(ctx, mecha.Entry{Value: []byte("x")}); err != nil {
		t.Error(err)
	}
	if n := len(e.Values("orders")); n == 0 {
		t.Error("nothing was published")
	}
}

// A message that no frame can carry fails, and nothing else does.
func TestPublishTooLarge(t *testing.T) {
	e := fakeengine.New()
	hold := make(chan struct{})
	e.Append = func(engine.Batch) { <-hold }
	_, c := serve(t, e, 64<<10)
	p := publisher(t, c, mecha.PublisherOptions{})
	ctx := limited(t)
	var got results
	send := func(key string, size int) {
		p.PublishAsync(ctx, mecha.Entry{Key: key, Value: []byte(strings.Repeat(key, size))}, got.of(key))
	}
	send("0", 1)
	for i := 1; i < 9; i++ { // together more than a frame
		send(fmt.Sprint(i), 20<<10)
	}
	send("z", 200<<10)
	send("y", 10)
	close(hold)
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	for k, err := range got.err {
		if k == "z" && mecha.ReasonOf(err) != mecha.ReasonTooLarge || k != "z" && err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	if len(got.err) != 11 {
		t.Errorf("%d answers", len(got.err))
	}
	if _, err := p.Publish(ctx, mecha.Entry{Key: "z", Value: []byte("small")}); mecha.ReasonOf(err) != mecha.ReasonPrecedingFailed {
		t.Errorf("behind it: %v", err)
	}
}

func TestPublisherRefused(t *testing.T) {
	_, _, c := start(t)
	ctx := limited(t)
	for reason, tt := range map[string]struct {
		t mecha.Topic
		o mecha.PublisherOptions
	}{
		"NO_SUCH_COMPONENT":           {mecha.Topic{PubSub: "none", Name: "orders"}, mecha.PublisherOptions{}},
		"FORBIDDEN_TOPIC":             {mecha.Topic{PubSub: "pubsub", Name: fakeengine.Forbidden}, mecha.PublisherOptions{}},
		mecha.ReasonMissingCapability: {orders, mecha.PublisherOptions{Require: []mechav1.Capability{99}}},
	} {
		p, err := c.NewPublisher(tt.t, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := p.Publish(ctx, mecha.Entry{}); mecha.ReasonOf(err) != reason {
				t.Errorf("%s: %v", reason, err)
			}
		}
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.NewPublisher(orders, mecha.PublisherOptions{Producer: "me"}); err == nil {
		t.Error("a producer without a sequence was taken")
	}
}

// A name that outlives the process: what the last one published is not taken twice.
func TestProducerOverRestarts(t *testing.T) {
	e, _, c := start(t)
	ctx := limited(t)
	p := publisher(t, c, mecha.PublisherOptions{Producer: "me", Sequence: 1})
	if _, err := p.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	next := p.Sequence()
	q := publisher(t, c, mecha.PublisherOptions{Producer: "me", Sequence: next - 1})
	if r, err := q.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("1")}); err != nil || !r.Duplicate {
		t.Errorf("again: %+v, %v", r, err)
	}
	if r, err := q.Publish(ctx, mecha.Entry{Key: "k", Value: []byte("2")}); err != nil || r.Duplicate || r.Position != 2 {
		t.Errorf("then: %+v, %v", r, err)
	}
	if n := len(e.Values("orders")); n != 1 {
		t.Errorf("%d partitions have messages", n)
	}
}

// Close gives up what is not answered when its time is over.
func TestCloseGivesUp(t *testing.T) {
	e, _, c := start(t)
	hold := make(chan struct{})
	defer close(hold)
	e.Append = func(engine.Batch) { <-hold }
	p := publisher(t, c, mecha.PublisherOptions{})
	done := make(chan error, 1)
	p.PublishAsync(t.Context(), mecha.Entry{}, func(_ mecha.Receipt, err error) { done <- err })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Close: %v", err)
	}
	if err := <-done; !errors.Is(err, mecha.ErrClosed) {
		t.Errorf("the message: %v", err)
	}
}
