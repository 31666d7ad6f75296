package blocktest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Queue checks a message broker that keeps groups itself. open prepares a broker and returns a way to open components
// on it: each call is another client, as another sidecar would be. Topics and groups are
// unique to the subtest, so the server behind may be shared; the suite closes what it opens.
func Queue(t *testing.T, open func(t *testing.T) func() block.Queue) {
	t.Helper()
	suite(t, block.KindPubSub)
	groups := []struct {
		name string
		run  func(*pubsubTest)
	}{
		{"publish order", pubsubOrder},
		{"content round trip", pubsubContent},
		{"large messages", pubsubLarge},
		{"topic names are literal", pubsubTopics},
		{"members share, groups repeat", pubsubGroups},
		{"a new group starts at the oldest", pubsubOldest},
		{"a group goes on where it stopped", pubsubResume},
		{"nack redelivers", pubsubNack},
		{"unanswered come back", pubsubUnanswered},
		{"in-flight limit", pubsubInFlight},
		{"answers count once", pubsubAnswers},
		{"consumers restart under load", pubsubRestart},
		{"concurrent publishers", pubsubConcurrent},
		{"an ended context", pubsubContext},
		{"close", pubsubClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			client := open(t)
			p := &pubsubTest{T: t, prefix: unique(), client: func() block.Queue {
				c := client()
				t.Cleanup(func() { closeQuietly(t, c) })
				return c
			}}
			p.broker = p.client()
			g.run(p)
		})
	}
}

type pubsubTest struct {
	*testing.T
	client func() block.Queue // opens another client of the same broker
	broker block.Queue        // the first client
	prefix string
}

func (p *pubsubTest) ctx() context.Context    { return patiently(p.T) }
func (p *pubsubTest) name(part string) string { return p.prefix + "-" + part }

func (p *pubsubTest) publish(topic string, bodies ...string) {
	p.Helper()
	msgs := make([]block.Message, len(bodies))
	for i, b := range bodies {
		msgs[i] = block.Message{Topic: topic, Data: []byte(b)}
	}
	if errs := p.broker.Publish(p.ctx(), msgs); errs != nil {
		p.Fatalf("Publish: %v, want nil", errs)
	}
}

// consumer is a running Consume and what it delivered.
type consumer struct {
	t    testing.TB
	stop context.CancelFunc
	done chan struct{}

	mu  sync.Mutex
	err error            // guarded by mu; what Consume returned
	got []block.Delivery // guarded by mu
	new chan struct{}
}

// consume starts a consumer; each, when not nil, answers every delivery from the delivering
// goroutine.
func (p *pubsubTest) consume(c block.Queue, topic, group string, inFlight int, each func(block.Delivery)) *consumer {
	ctx, cancel := context.WithCancel(context.Background())
	k := &consumer{t: p.T, stop: cancel, done: make(chan struct{}), new: make(chan struct{}, 1)}
	go func() {
		defer close(k.done)
		err := c.Consume(ctx, block.ConsumeOptions{Topic: topic, Group: group, MaxInFlight: inFlight}, func(d block.Delivery) {
			k.mu.Lock()
			k.got = append(k.got, d)
			k.mu.Unlock()
			select {
			case k.new <- struct{}{}:
			default:
			}
			if each != nil {
				each(d)
			}
		})
		k.mu.Lock()
		k.err = err
		k.mu.Unlock()
	}()
	p.Cleanup(func() {
		cancel()
		select {
		case <-k.done:
		case <-time.After(patience):
			p.Errorf("Consume did not return after its context ended")
		}
	})
	return k
}

func ack(d block.Delivery) { d.Ack() }

func (k *consumer) deliveries() []block.Delivery {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.got)
}

// wait returns once n deliveries have arrived.
func (k *consumer) wait(n int) []block.Delivery {
	k.t.Helper()
	deadline := time.After(patience)
	for {
		if got := k.deliveries(); len(got) >= n {
			return got
		}
		select {
		case <-k.new:
		case <-k.done:
			if got := k.deliveries(); len(got) >= n {
				return got
			}
			k.t.Fatalf("Consume returned %v after %d deliveries, want %d", k.result(), len(k.deliveries()), n)
		case <-deadline:
			k.t.Fatalf("%d deliveries after %v, want %d", len(k.deliveries()), patience, n)
		}
	}
}

func (k *consumer) result() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.err
}

// end stops the consumer and returns Consume's error.
func (k *consumer) end() error {
	k.t.Helper()
	k.stop()
	select {
	case <-k.done:
	case <-time.After(patience):
		k.t.Fatalf("Consume did not return after its context ended")
	}
	return k.result()
}

func bodies(ds []block.Delivery) []string {
	out := make([]string, len(ds))
	for i, d := range ds {
		out[i] = string(d.Data)
	}
	return out
}

func numbers(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s%04d", prefix, i)
	}
	return out
}

func pubsubOrder(p *pubsubTest) {
	if err := p.broker.Ping(p.ctx()); err != nil {
		p.Fatalf("Ping: %v", err)
	}
	if errs := p.broker.Publish(p.ctx(), nil); errs != nil {
		p.Errorf("Publish of nothing: %v", errs)
	}
	topic, want := p.name("topic"), numbers("m", 500)
	p.publish(topic, want[:300]...)
	k := p.consume(p.broker, topic, p.name("group"), 64, ack)
	for _, b := range want[300:350] {
		p.publish(topic, b)
	}
	p.publish(topic, want[350:]...)
	if got := bodies(k.wait(len(want))); !slices.Equal(got, want) {
		p.Errorf("%d messages arrived out of order or more than once (%d sent)", len(got), len(want))
	}
	for i, d := range k.deliveries() {
		if d.Attempt != 1 && d.Attempt != 0 {
			p.Errorf("delivery %d: attempt %d, want 1 (or 0: unknown)", i, d.Attempt)
			break
		}
	}
}

func pubsubContent(p *pubsubTest) {
	topic := p.name("topic")
	meta := map[string]string{
		"plain": "value", "Case": "Kept", "case": "other", "empty": "", "unicode": "äöü 键 🙂", "": "no name",
		"with space": " padded ", "crlf": "a\r\nNats-Rollup: all\r\n\r\nb", "col:on": "a:b", "percent%25": "100%", "umläut": "x",
	}
	long := map[string]string{"long": strings.Repeat("v", 4000), strings.Repeat("n", 200): "v"}
	msgs := []block.Message{
		{Topic: topic, Data: []byte("plain")},
		{Topic: topic},
		{Topic: topic, Data: []byte{0, 1, 255, '\r', '\n'}, Key: "key"},
		{Topic: topic, Data: []byte("meta"), Metadata: meta, Key: "ünï code/*>\r\n", ID: "an id\r\n"},
		{Topic: topic, Data: []byte("long"), Metadata: long, Key: strings.Repeat("k", 512), ID: unique()},
	}
	mine := slices.Clone(msgs[2].Data)
	msgs[2].Data = slices.Clone(mine)
	if errs := p.broker.Publish(p.ctx(), msgs); errs != nil {
		p.Fatalf("Publish: %v", errs)
	}
	msgs[2].Data[0] = 'X' // the broker must not have kept it
	meta["plain"] = "changed"
	k := p.consume(p.broker, topic, p.name("group"), 8, ack)
	got := k.wait(len(msgs))
	meta["plain"], msgs[2].Data = "value", mine
	for i, d := range got[:len(msgs)] {
		want := msgs[i]
		if d.Topic != topic || !bytes.Equal(d.Data, want.Data) || d.Key != want.Key {
			p.Errorf("message %d came as topic %q, key %q, %d bytes; want %q, %q, %d", i, d.Topic, d.Key, len(d.Data), topic, want.Key, len(want.Data))
		}
		if !maps.Equal(d.Metadata, want.Metadata) {
			p.Errorf("message %d came with metadata %q, want %q", i, d.Metadata, want.Metadata)
		}
		if d.Ack == nil || d.Nack == nil {
			p.Errorf("message %d came without Ack or Nack", i)
		}
	}
	if len(msgs[0].Metadata) == 0 && len(got[0].Metadata) != 0 {
		p.Errorf("a message without metadata came with %q", got[0].Metadata)
	}
}

func pubsubLarge(p *pubsubTest) {
	topic := p.name("topic")
	sizes := []int{1 << 20, 1, 300 << 10, 64 << 10}
	var msgs []block.Message
	for _, n := range sizes {
		msgs = append(msgs, block.Message{Topic: topic, Data: noise(n)})
	}
	if errs := p.broker.Publish(p.ctx(), msgs); errs != nil {
		p.Fatalf("Publish: %v", errs)
	}
	for i, d := range p.consume(p.broker, topic, p.name("group"), 2, ack).wait(len(msgs)) {
		if !bytes.Equal(d.Data, msgs[i].Data) {
			p.Errorf("message %d came as %d other bytes, want %d", i, len(d.Data), len(msgs[i].Data))
		}
	}
}

func pubsubTopics(p *pubsubTest) {
	names := []string{"a", "A", "a.b", "a..b", ".a", "a.", "a/b", "a b", "*", ">", "a.*", "a.>", "#", "+", "a+", "a/#",
		"ünï", "键", "🙂", "%41", "=41", "a:b", "a||b", "$SYS", "_", "a\tb", strings.Repeat("t", 200)}
	var ks []*consumer
	for _, n := range names {
		ks = append(ks, p.consume(p.broker, p.name(n), p.name("group."+n+"*"), 4, ack))
	}
	for _, n := range names {
		p.publish(p.name(n), n)
	}
	for i, n := range names {
		got := ks[i].wait(1)
		if len(got) != 1 || string(got[0].Data) != n || got[0].Topic != p.name(n) {
			p.Errorf("topic %q delivered %q of topic %q", n, bodies(got), got[0].Topic)
		}
	}
	time.Sleep(100 * time.Millisecond) // time for what must not come
	for i, n := range names {
		if got := ks[i].deliveries(); len(got) != 1 {
			p.Errorf("topic %q delivered %q, want its own message only", n, bodies(got))
		}
	}
}

func pubsubGroups(p *pubsubTest) {
	topic, want := p.name("topic"), numbers("m", 200)
	other := p.client()
	slow := func(d block.Delivery) {
		time.Sleep(200 * time.Microsecond)
		d.Ack()
	}
	a1 := p.consume(p.broker, topic, p.name("a"), 4, slow)
	a2 := p.consume(other, topic, p.name("a"), 4, slow)
	b1 := p.consume(other, topic, p.name("b"), 16, ack)
	p.publish(topic, want...)
	if got := bodies(b1.wait(len(want))); !slices.Equal(got, want) {
		p.Errorf("the only member of group b got %d messages or another order", len(got))
	}
	waitFor(p, "group a to get all", func() bool { return len(a1.deliveries())+len(a2.deliveries()) >= len(want) })
	got := append(bodies(a1.deliveries()), bodies(a2.deliveries())...)
	if len(a1.deliveries()) == 0 || len(a2.deliveries()) == 0 {
		p.Errorf("the members of group a got %d and %d messages, want both some", len(a1.deliveries()), len(a2.deliveries()))
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		p.Errorf("group a got %d messages, want each of %d once", len(got), len(want))
	}
}

func pubsubOldest(p *pubsubTest) {
	topic, want := p.name("topic"), numbers("m", 20)
	p.publish(topic, want[:10]...)
	first := p.consume(p.broker, topic, p.name("first"), 4, ack)
	first.wait(10)
	p.publish(topic, want[10:]...)
	first.wait(20)
	late := p.consume(p.broker, topic, p.name("late"), 4, ack)
	if got := bodies(late.wait(20)); !slices.Equal(got, want) {
		p.Errorf("a late group got %q, want all from the oldest", got)
	}
}

func pubsubResume(p *pubsubTest) {
	topic, want := p.name("topic"), numbers("m", 30)
	p.publish(topic, want[:10]...)
	k := p.consume(p.broker, topic, p.name("group"), 16, ack)
	k.wait(10)
	if err := k.end(); fault.Of(err) != fault.Canceled {
		p.Errorf("Consume returned %v, want its context's error", err)
	}
	p.publish(topic, want[10:20]...) // while nobody consumes
	k = p.consume(p.client(), topic, p.name("group"), 16, ack)
	p.publish(topic, want[20:]...)
	if got := bodies(k.wait(20)); !slices.Equal(got, want[10:]) {
		p.Errorf("a resumed group got %q, want %q", got, want[10:])
	}
}

func pubsubNack(p *pubsubTest) {
	topic := p.name("topic")
	const delay = 300 * time.Millisecond
	var mu sync.Mutex
	var nacked time.Time
	attempts := map[string][]int{}
	var back time.Duration
	done := make(chan struct{})
	p.consume(p.broker, topic, p.name("group"), 1, func(d block.Delivery) {
		mu.Lock()
		defer mu.Unlock()
		b := string(d.Data)
		attempts[b] = append(attempts[b], d.Attempt)
		switch n := len(attempts[b]); {
		case b == "at once" && n < 4:
			d.Nack(0)
		case b == "delayed" && n == 1:
			nacked = time.Now()
			d.Nack(delay)
		case b == "delayed":
			back = time.Since(nacked)
			d.Ack()
			close(done)
		default:
			d.Ack()
		}
	})
	p.publish(topic, "at once", "delayed", "fine")
	select {
	case <-done:
	case <-time.After(patience):
		p.Fatalf("the delayed message did not come back; attempts so far %v", attempts)
	}
	waitFor(p, "all messages", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(attempts["at once"]) == 4 && len(attempts["fine"]) == 1
	})
	mu.Lock()
	defer mu.Unlock()
	if back < delay-20*time.Millisecond {
		p.Errorf("a delay of %v ended after %v", delay, back)
	}
	for body, want := range map[string][]int{"at once": {1, 2, 3, 4}, "delayed": {1, 2}, "fine": {1}} {
		if got := attempts[body]; got[0] != 0 && !slices.Equal(got, want) {
			p.Errorf("message %q had attempts %v, want %v", body, got, want)
		}
	}
}

func pubsubUnanswered(p *pubsubTest) {
	topic, want := p.name("topic"), numbers("m", 6)
	p.publish(topic, want...)
	forgetful := p.consume(p.broker, topic, p.name("group"), 4, nil)
	held := forgetful.wait(4)
	held[0].Ack()
	forgetful.wait(5)
	if err := forgetful.end(); fault.Of(err) != fault.Canceled {
		p.Errorf("Consume returned %v, want its context's error", err)
	}
	held[1].Ack() // too late: it went back already; must be harmless
	k := p.consume(p.client(), topic, p.name("group"), 16, ack)
	waitFor(p, "the unanswered messages", func() bool {
		got := bodies(k.deliveries())
		slices.Sort(got)
		return len(slices.Compact(got)) >= 5
	})
	for _, d := range k.deliveries() {
		if string(d.Data) == want[0] {
			p.Errorf("an acknowledged message came again")
		}
		if d.Attempt == 1 && string(d.Data) != want[5] {
			p.Errorf("message %q came again with attempt 1", d.Data)
		}
	}
}

func pubsubInFlight(p *pubsubTest) {
	topic, want := p.name("topic"), numbers("m", 12)
	p.publish(topic, want...)
	k := p.consume(p.broker, topic, p.name("group"), 3, nil)
	for answered := range want {
		limit := min(answered+3, len(want))
		got := k.wait(limit)
		if answered%4 == 0 {
			time.Sleep(60 * time.Millisecond) // time for what must not come
			got = k.deliveries()
		}
		if len(got) != limit {
			p.Fatalf("%d deliveries with %d answered, want %d (at most 3 unanswered)", len(got), answered, limit)
		}
		go got[answered].Ack() // from another goroutine, as the service does
	}
	waitFor(p, "the last", func() bool { return len(k.deliveries()) == len(want) })
	err := p.broker.Consume(p.ctx(), block.ConsumeOptions{Topic: topic, Group: p.name("none")}, func(block.Delivery) {})
	wantCode(p, "Consume with MaxInFlight 0", err, fault.Invalid)
}

func pubsubAnswers(p *pubsubTest) {
	topic := p.name("topic")
	p.publish(topic, "one", "two", "three")
	k := p.consume(p.broker, topic, p.name("group"), 1, nil)
	d := k.wait(1)[0]
	d.Ack()
	d.Ack()
	d.Nack(0) // ignored
	d = k.wait(2)[1]
	d.Nack(0)
	d.Nack(0)
	d.Ack() // ignored: it comes again, before or after the next
	third := k.wait(3)[2]
	time.Sleep(60 * time.Millisecond) // time for what must not come
	if n := len(k.deliveries()); n != 3 {
		p.Fatalf("%d deliveries although one is unanswered and one may be, want 3", n)
	}
	third.Ack()
	fourth := k.wait(4)[3]
	fourth.Ack()
	time.Sleep(60 * time.Millisecond)
	got := bodies(k.deliveries())
	slices.Sort(got)
	if !slices.Equal(got, []string{"one", "three", "two", "two"}) {
		p.Errorf("deliveries %q, want two twice and the others once", got)
	}
}

func pubsubRestart(p *pubsubTest) {
	topic, want := p.name("topic"), numbers("m", 240)
	var mu sync.Mutex
	acked := map[string]bool{}
	count := 0
	handle := func(d block.Delivery) {
		mu.Lock()
		count++
		skip := count%7 == 0 // never answered by this member
		if !skip {
			acked[string(d.Data)] = true
		}
		mu.Unlock()
		if !skip {
			d.Ack()
		}
	}
	published := make(chan struct{})
	go func() {
		defer close(published)
		for _, b := range want {
			p.publish(topic, b)
			time.Sleep(time.Millisecond)
		}
	}()
	all := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(acked) == len(want)
	}
	deadline := time.Now().Add(2 * patience)
	for !all() {
		if time.Now().After(deadline) {
			p.Fatalf("%d of %d messages processed", len(acked), len(want))
		}
		c := p.client()
		k := p.consume(c, topic, p.name("group"), 16, handle)
		time.Sleep(40 * time.Millisecond)
		_ = k.end()
		closeQuietly(p, c)
	}
	<-published
}

func pubsubConcurrent(p *pubsubTest) {
	topic := p.name("topic")
	const publishers, each = 6, 40
	k := p.consume(p.broker, topic, p.name("group"), 32, ack)
	var wg sync.WaitGroup
	for w := range publishers {
		wg.Go(func() {
			for _, b := range numbers(fmt.Sprintf("%d/", w), each) {
				if errs := p.broker.Publish(p.ctx(), []block.Message{{Topic: topic, Data: []byte(b)}}); errs != nil {
					p.Errorf("Publish: %v", errs)
				}
			}
		})
	}
	wg.Wait()
	got := bodies(k.wait(publishers * each))
	for w := range publishers {
		prefix := fmt.Sprintf("%d/", w)
		mine := slices.DeleteFunc(slices.Clone(got), func(b string) bool { return !strings.HasPrefix(b, prefix) })
		if !slices.Equal(mine, numbers(prefix, each)) {
			p.Errorf("messages of publisher %d came out of order or more than once", w)
		}
	}
}

func pubsubContext(p *pubsubTest) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	topic := p.name("topic")
	errs := p.broker.Publish(ended, []block.Message{{Topic: topic, Data: []byte("x")}})
	if len(errs) != 1 {
		p.Fatalf("Publish with an ended context = %v, want one error", errs)
	}
	wantCode(p, "Publish with an ended context", errs[0], fault.Canceled)
	opts := block.ConsumeOptions{Topic: topic, Group: p.name("group"), MaxInFlight: 1}
	wantCode(p, "Consume with an ended context", p.broker.Consume(ended, opts, func(block.Delivery) {}), fault.Canceled)

	k := p.consume(p.broker, topic, p.name("group"), 1, nil)
	time.Sleep(20 * time.Millisecond)
	start := time.Now()
	wantCode(p, "idle Consume", k.end(), fault.Canceled)
	if took := time.Since(start); took > 3*time.Second {
		p.Errorf("Consume returned %v after its context ended", took)
	}
}

func pubsubClose(p *pubsubTest) {
	c := p.client()
	topic := p.name("topic")
	k := p.consume(c, topic, p.name("group"), 1, nil)
	p.publish(topic, "held")
	k.wait(1)
	for i := range 2 {
		if err := c.Close(p.ctx()); err != nil {
			p.Errorf("Close number %d: %v", i+1, err)
		}
	}
	select {
	case <-k.done:
		wantCode(p, "Consume ended by Close", k.result(), fault.Unavailable)
	case <-time.After(patience):
		p.Fatalf("Consume goes on after Close")
	}
	errs := c.Publish(p.ctx(), []block.Message{{Topic: topic, Data: []byte("x")}})
	if len(errs) != 1 {
		p.Fatalf("Publish after Close = %v, want one error", errs)
	}
	wantCode(p, "Publish after Close", errs[0], fault.Unavailable)
	opts := block.ConsumeOptions{Topic: topic, Group: p.name("group"), MaxInFlight: 1}
	wantCode(p, "Consume after Close", c.Consume(p.ctx(), opts, func(block.Delivery) {}), fault.Unavailable)
	wantCode(p, "Ping after Close", c.Ping(p.ctx()), fault.Unavailable)
	k.deliveries()[0].Ack() // late answers are harmless
	if again := p.consume(p.broker, topic, p.name("group"), 1, ack).wait(1); string(again[0].Data) != "held" {
		p.Errorf("after Close of its holder %q came, want the held message", again[0].Data)
	}
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}
