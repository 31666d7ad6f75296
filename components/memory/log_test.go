package memory_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/memory"
)

func TestLog(t *testing.T) {
	blocktest.Log(t, func(*testing.T) func() block.Log {
		limits := memory.DefaultPubSubConfig()
		limits.MaxBytes = 16 * conf.MiB // the suite appends one that is larger
		hub := memory.NewHub(limits)
		return func() block.Log { return hub.PubSub() }
	})
}

func openLog(t testing.TB, change func(*memory.PubSubConfig)) (*memory.Hub, *memory.PubSub) {
	c := memory.DefaultPubSubConfig()
	if change != nil {
		change(c)
	}
	h := memory.NewHub(c)
	p := h.PubSub()
	t.Cleanup(func() { _ = p.Close(context.Background()) })
	return h, p
}

func rec(topic string, partition int, body string) block.LogRecord {
	return block.LogRecord{Message: block.Message{Topic: topic, Data: []byte(body)}, Partition: int32(partition)}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 20 s", what)
		}
	}
}

// add appends one record.
func add(p *memory.PubSub, r block.LogRecord) block.AppendResult {
	return p.Append(context.Background(), []block.LogRecord{r})[0]
}

// held is what a partition holds, by reading it; in a synctest bubble it takes no time.
func held(t testing.TB, p *memory.PubSub, topic string, partition int) (bodies []string, positions []uint64) {
	t.Helper()
	bounds, err := p.Bounds(context.Background(), topic, []int32{int32(partition)})
	if err != nil {
		t.Fatal(err)
	}
	if b := bounds[0]; b.First < b.Next {
		r, err := p.OpenReader(context.Background(), topic, int32(partition), 0, block.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		recs, err := r.Next(context.Background(), 1<<20, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		for _, rec := range recs {
			bodies, positions = append(bodies, string(rec.Data)), append(positions, rec.Position)
		}
		if positions[0] != b.First || positions[len(positions)-1] >= b.Next {
			t.Errorf("partition %d has bounds %+v and holds %v", partition, b, positions)
		}
	}
	return bodies, positions
}

func wantHeld(t testing.TB, p *memory.PubSub, topic string, partition int, want string) {
	t.Helper()
	bodies, _ := held(t, p, topic, partition)
	if got := strings.Join(bodies, " "); got != want {
		t.Errorf("partition %d holds %q, want %q", partition, got, want)
	}
}

func TestLogFeaturesAreTheConfiguration(t *testing.T) {
	_, p := openLog(t, func(c *memory.PubSubConfig) { c.Partitions, c.SessionTTL = 5, 3*time.Second })
	if f := p.LogFeatures(); f.Partitions != 5 || f.SessionTTL != 3*time.Second {
		t.Errorf("features %+v", f)
	}
	opened, err := memory.NewPubSub(block.Env{}, memory.DefaultPubSubConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = opened.Close(t.Context()) }()
	if f := opened.(block.Log).LogFeatures(); f.Partitions != 32 || f.SessionTTL != 6*time.Second || f.MaxRecord != 64<<20 {
		t.Errorf("features of the defaults: %+v", f)
	}
	// Each component has a hub of its own, unless they are made from one.
	add(p, rec("t", 0, "x"))
	if b, _ := opened.(block.Log).Bounds(t.Context(), "t", []int32{0}); b[0].First != b[0].Next {
		t.Errorf("another hub holds %+v", b)
	}
}

// Without groups a topic keeps its last records, whichever partitions they are in.
func TestLogHistory(t *testing.T) {
	h, p := openLog(t, func(c *memory.PubSubConfig) { c.History = 4 })
	for i := range 20 {
		add(p, rec("t", i%3, fmt.Sprint(i)))
	}
	wantHeld(t, p, "t", 0, "18")
	wantHeld(t, p, "t", 1, "16 19")
	wantHeld(t, h.PubSub(), "t", 2, "17")
	for i := range 4 { // 20 and on: one partition only
		add(p, rec("t", 0, fmt.Sprint(20+i)))
	}
	wantHeld(t, p, "t", 0, "20 21 22 23")
	wantHeld(t, p, "t", 1, "")
	if b, _ := p.Bounds(t.Context(), "t", []int32{1}); b[0].First != 8 || b[0].Next != 8 {
		t.Errorf("a partition all of which is gone has bounds %+v, want 8 and 8", b[0])
	}
	if k := memory.Kept(p, "t"); k.Records != 4 {
		t.Errorf("%+v are kept, want 4 records", k)
	}
	_, p = openLog(t, func(c *memory.PubSubConfig) { c.History = 0 })
	add(p, rec("t", 0, "a"))
	add(p, rec("t", 1, "b"))
	wantHeld(t, p, "t", 0, "")
	wantHeld(t, p, "t", 1, "b") // the last one stays, or nobody would ever see one
}

// What a group has not consumed stays, and then room is refused; the others' partitions go on.
func TestLogKeepsWhatAGroupNeeds(t *testing.T) {
	_, p := openLog(t, func(c *memory.PubSubConfig) { c.History, c.MaxMessages = 2, 10 })
	p.Consumed("t", "slow", 0, 0)
	p.Consumed("t", "fast", 1, 0)
	for i := range 5 {
		add(p, rec("t", 0, fmt.Sprint("a", i)))
		add(p, rec("t", 1, fmt.Sprint("b", i)))
	}
	err := add(p, rec("t", 2, "no")).Err
	if fault.Of(err) != fault.Exhausted || !strings.Contains(err.Error(), "maxMessages") || !strings.Contains(err.Error(), `"fast"`) {
		t.Errorf("a full topic answers %v, want exhausted, the group that is behind and what to do", err)
	}
	if r := p.Append(t.Context(), []block.LogRecord{rec("t", 2, "no"), rec("other", 2, "yes"), rec("t", 0, "no")}); r[0].Err == nil || r[1].Err != nil || r[2].Err == nil {
		t.Errorf("another topic suffers with a full one: %v", r)
	}
	p.Consumed("t", "fast", 0, 100)
	p.Consumed("t", "fast", 1, 4)
	if err := add(p, rec("t", 2, "no")).Err; fault.Of(err) != fault.Exhausted || !strings.Contains(err.Error(), `"slow"`) {
		t.Errorf("a full topic answers %v, want exhausted and the group that is behind", err)
	}
	p.Consumed("t", "slow", 1, 4)
	wantHeld(t, p, "t", 0, "a0 a1 a2 a3 a4")
	wantHeld(t, p, "t", 1, "b3 b4")
	for i := range 3 {
		if r := add(p, rec("t", 1, fmt.Sprint("c", i))); r.Err != nil || r.Position != uint64(6+i) {
			t.Errorf("with room again: %+v", r)
		}
	}
	if r := add(p, rec("t", 1, "no")); fault.Of(r.Err) != fault.Exhausted {
		t.Errorf("a full topic answers %+v", r)
	}
	// A group that goes back keeps what is still there.
	p.Consumed("t", "slow", 1, 100)
	p.Consumed("t", "slow", 1, 5)
	p.Consumed("t", "fast", 1, 100)
	wantHeld(t, p, "t", 1, "b4 c0 c1 c2")
	p.Consumed("t", "slow", 0, 100)
	p.Consumed("t", "slow", 1, 100)
	wantHeld(t, p, "t", 0, "")
	wantHeld(t, p, "t", 1, "c1 c2") // the last two of the topic
	// What lags is let go also when there is no history behind it.
	_, q := openLog(t, func(c *memory.PubSubConfig) { c.History, c.MaxMessages = 1, 5 })
	q.Consumed("t", "g", 0, 0)
	for range 4 {
		add(q, rec("t", 0, "x"))
	}
	q.Consumed("t", "g", 1, 100)
	add(q, rec("t", 1, "x"))
	if r := q.Append(t.Context(), []block.LogRecord{rec("t", 0, "x"), rec("t", 0, "no")}); r[0].Err != nil || r[1].Err == nil {
		t.Errorf("with room for one more: %v", r)
	} else if strings.Contains(r[1].Err.Error(), "due") {
		t.Errorf("nothing is delayed, and the error says %v", r[1].Err)
	}
	wantHeld(t, q, "t", 1, "")
	_, err = q.AppendAtomic(t.Context(), []block.LogRecord{rec("t", 0, "x")})
	if fault.Of(err) != fault.Exhausted {
		t.Errorf("a full topic answers %v", err)
	}
	q.Consumed("t", "g", 0, 100)
	wantHeld(t, q, "t", 0, "x")
	for range 5 {
		late := rec("t", 0, "late")
		late.DeliverAt = time.Now().Add(time.Hour)
		err = add(q, late).Err
	}
	if fault.Of(err) != fault.OK {
		t.Errorf("delayed records for a topic all of which is consumed: %v", err)
	}
	if err := add(q, rec("t", 0, "no")).Err; fault.Of(err) != fault.Exhausted || !strings.Contains(err.Error(), "not due yet") {
		t.Errorf("a topic full of delayed records answers %v", err)
	}
	// All of the history may have gone, and something that lags is left before it.
	synctest.Test(t, func(t *testing.T) {
		_, q := openLog(t, func(c *memory.PubSubConfig) { c.History = 1 })
		q.Consumed("t", "g", 0, 0)
		add(q, rec("t", 0, "lags"))
		short := rec("t", 0, "short")
		short.TTL = time.Second
		add(q, short)
		time.Sleep(2 * time.Second)
		wantHeld(t, q, "t", 0, "lags")
		q.Consumed("t", "g", 0, 3)
		wantHeld(t, q, "t", 0, "")
	})
	// A group that comes late has what is there, and keeps it.
	p.Consumed("t", "late", 3, 0)
	for i := range 8 {
		add(p, rec("t", 3, fmt.Sprint("d", i)))
	}
	wantHeld(t, p, "t", 1, "c1 c2")
	if r := add(p, rec("t", 3, "no")); fault.Of(r.Err) != fault.Exhausted {
		t.Errorf("a full topic answers %+v", r)
	}
}

func TestLogIsBoundedInBytes(t *testing.T) {
	_, p := openLog(t, func(c *memory.PubSubConfig) { c.MaxBytes = 10_000 })
	big := strings.Repeat("x", 2000)
	for i := range 20 {
		if r := add(p, rec("t", 0, big)); r.Err != nil {
			t.Fatalf("record %d: %v", i, r.Err)
		}
	}
	if k := memory.Kept(p, "t"); k.Bytes > 10_000 || k.Records != 4 {
		t.Errorf("%+v are kept", k)
	}
	p.Consumed("t", "g", 0, 0)
	if r := add(p, rec("t", 0, big)); fault.Of(r.Err) != fault.Exhausted || !strings.Contains(r.Err.Error(), "maxBytes") {
		t.Errorf("a full topic answers %v", r.Err)
	}
	if r := add(p, rec("t", 0, "small")); r.Err != nil {
		t.Errorf("a small one: %v", r.Err)
	}
	atomic := func(n int, body string) error {
		recs := slices.Repeat([]block.LogRecord{rec("t", 1, body)}, n)
		_, err := p.AppendAtomic(context.Background(), recs)
		return err
	}
	if err := atomic(2, big); fault.Of(err) != fault.Exhausted {
		t.Errorf("a batch for a full topic: %v", err)
	}
	p.Consumed("t", "g", 0, 100)
	if err := atomic(6, big); fault.Of(err) != fault.TooLarge {
		t.Errorf("a batch that never fits: %v", err)
	}
	if err := atomic(4, big); err != nil {
		t.Errorf("a batch that fits when all else goes: %v", err)
	}
	wantHeld(t, p, "t", 0, "")
	p.Consumed("t", "g", 1, 100)
	// One of the largest size is taken, whatever the bookkeeping for it.
	if r := add(p, rec("t", 2, strings.Repeat("x", 10_000))); r.Err != nil {
		t.Errorf("a record of the limit's size: %v", r.Err)
	}
	if r := add(p, rec("t", 2, strings.Repeat("x", 10_001))); fault.Of(r.Err) != fault.TooLarge {
		t.Errorf("a record over the limit: %v", r.Err)
	}
}

// Delays and times to live are kept to the moment, and without a timer when nothing is due.
func TestLogTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, p := openLog(t, nil)
		other := h.PubSub()
		start := time.Now()
		with := func(body string, delay, ttl time.Duration) block.LogRecord {
			r := rec("t", 0, body)
			r.TTL = ttl
			if delay != 0 {
				r.DeliverAt = start.Add(delay)
			}
			return r
		}
		p.Append(t.Context(), []block.LogRecord{with("always", 0, 0), with("10s", 0, 10*time.Second), with("at 20s", 20*time.Second, 0),
			with("at 5s for 10s", 5*time.Second, 10*time.Second), with("b", 20*time.Second, 0), with("far", 1<<62, 1<<62), with("past", -time.Hour, 0)})
		for at, want := range []string{
			0: "always|10s|past", 4: "always|10s|past", 5: "always|10s|past|at 5s for 10s", 9: "always|10s|past|at 5s for 10s",
			10: "always|past|at 5s for 10s", 14: "always|past|at 5s for 10s", 15: "always|past", 19: "always|past", 20: "always|past|at 20s|b", 21: "always|past|at 20s|b"} {
			if want == "" {
				continue
			}
			if d := time.Until(start.Add(time.Duration(at) * time.Second)); d > 0 {
				time.Sleep(d - 1)
				synctest.Wait()
				time.Sleep(time.Nanosecond)
			}
			if bodies, _ := held(t, p, "t", 0); strings.Join(bodies, "|") != want {
				t.Errorf("after %d s: %q, want %q", at, strings.Join(bodies, "|"), want)
			}
		}
		// One that is too late to be dropped by its topic is dropped by its time: the timer has it.
		add(p, with("short", 0, time.Second))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if k := memory.Kept(p, "t"); k.Records != 5 || k.Due != 1 {
			t.Errorf("%+v are kept, want 5 records, one of them delayed by far", k)
		}
		// A reader is woken by a record that becomes visible.
		r, err := p.OpenReader(t.Context(), "t", 3, 0, block.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		late := rec("t", 3, "late")
		late.DeliverAt, late.ID = time.Now().Add(time.Minute), "late"
		if res := add(p, late); res.Position != 0 || res.Err != nil {
			t.Errorf("a delayed record: %+v", res)
		}
		slept := time.Now()
		recs, err := r.Next(t.Context(), 10, 1000)
		if err != nil || len(recs) != 1 || time.Since(slept) != time.Minute || !recs[0].Time.Equal(slept.Add(time.Minute)) {
			t.Errorf("a reader was given %v, %v after %v", recs, err, time.Since(slept))
		}
		if res := add(p, late); !res.Duplicate || res.Position != 1 {
			t.Errorf("the same again: %+v, want a duplicate of position 1", res)
		}
		// Once it is visible it is not delayed any more, for those who ask why a topic is full either.
		_, full := openLog(t, func(c *memory.PubSubConfig) { c.MaxMessages = 1 })
		full.Consumed("t", "g", 0, 0)
		visible := rec("t", 0, "x")
		visible.DeliverAt = time.Now().Add(time.Second)
		add(full, visible)
		time.Sleep(time.Second)
		if err := add(full, rec("t", 0, "x")).Err; fault.Of(err) != fault.Exhausted || strings.Contains(err.Error(), "due") {
			t.Errorf("a topic full of a record that was delayed answers %v", err)
		}
		// While no component is open nothing runs, and nothing is lost.
		late.DeliverAt, late.ID = time.Now().Add(time.Minute), ""
		add(p, late)
		_ = p.Close(t.Context())
		if !memory.Kept(p, "t").Timer {
			t.Errorf("another component is open and no timer runs")
		}
		_ = other.Close(t.Context())
		if memory.Kept(p, "t").Timer {
			t.Errorf("no component is open and a timer runs")
		}
		time.Sleep(time.Hour)
		p = h.PubSub()
		wantHeld(t, p, "t", 3, "late late")
		late.DeliverAt = time.Now().Add(time.Minute)
		add(p, late)
		_ = p.Close(t.Context())
		p = h.PubSub()
		if r, err = p.OpenReader(t.Context(), "t", 3, 3, block.ReadOptions{}); err != nil {
			t.Fatal(err)
		}
		if recs, err := r.Next(t.Context(), 1, 1); err != nil || recs[0].Position != 3 {
			t.Errorf("a delayed record after a new start: %v, %v", recs, err)
		}
		// Of one time, the order is that in which they came.
		var want []string
		for i := range 50 {
			late := rec("order", 0, fmt.Sprint(i))
			late.DeliverAt = start.Add(3 * time.Hour)
			add(p, late)
			want = append(want, fmt.Sprint(i))
		}
		time.Sleep(2 * time.Hour)
		wantHeld(t, p, "order", 0, strings.Join(want, " "))
		_ = p.Close(t.Context())
	})
}

func TestLogWithoutTimesHasNoTimer(t *testing.T) {
	_, p := openLog(t, nil)
	add(p, rec("t", 0, "x"))
	if k := memory.Kept(p, "t"); k.Timer {
		t.Errorf("a timer runs for %+v", k)
	}
	// What was consumed is not minded until its time to live ends.
	_, p = openLog(t, func(c *memory.PubSubConfig) { c.History = 10 })
	for i := range 1000 {
		r := rec("t", i%7, "x")
		r.TTL = time.Hour
		add(p, r)
	}
	if k := memory.Kept(p, "t"); k.Due != 10 {
		t.Errorf("%+v, want as many due as there are records", k)
	}
}

// IDs are remembered so long and so many.
func TestLogForgetsIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, p := openLog(t, nil)
		id := func(n int) block.LogRecord {
			r := rec("t", n%3, "x")
			r.ID = fmt.Sprint(n)
			return r
		}
		add(p, id(1))
		time.Sleep(time.Minute)
		add(p, id(2))
		if r := add(p, id(1)); !r.Duplicate {
			t.Errorf("after a minute: %+v", r)
		}
		time.Sleep(time.Minute)
		if r := add(p, id(1)); r.Duplicate {
			t.Errorf("after two minutes: %+v", r)
		}
		if r := add(p, id(2)); !r.Duplicate {
			t.Errorf("after a minute: %+v", r)
		}
		for i := range 1<<16 - 1 {
			add(p, id(10+i))
		}
		if k := memory.Kept(p, "t"); k.IDs != 1<<16 {
			t.Errorf("%+v, want %d IDs", k, 1<<16)
		}
		if r := add(p, id(10)); !r.Duplicate {
			t.Errorf("one of the last 65536: %+v", r)
		}
		if r := add(p, id(2)); r.Duplicate {
			t.Errorf("one before the last 65536: %+v", r)
		}
		time.Sleep(2 * time.Minute)
		if add(p, id(1)); memory.Kept(p, "t").IDs != 1 {
			t.Errorf("%+v, want the last ID only", memory.Kept(p, "t"))
		}
		// One that was refused is not known.
		_, p = openLog(t, func(c *memory.PubSubConfig) { c.MaxMessages = 1 })
		p.Consumed("t", "g", 0, 0)
		add(p, rec("t", 0, "x"))
		if r := add(p, id(3)); r.Err == nil {
			t.Errorf("a full topic took %+v", r)
		}
		p.Consumed("t", "g", 0, 2)
		if r := add(p, id(3)); r.Duplicate || r.Err != nil {
			t.Errorf("after it was refused: %+v", r)
		}
	})
}

// Readers hear of their own partition only.
func TestLogWakesOnlyItsReaders(t *testing.T) {
	_, p := openLog(t, nil)
	var readers []block.LogReader
	for i := range 6 {
		r, err := p.OpenReader(t.Context(), "t", int32(i%3), 0, block.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if !memory.Wait(r) {
			t.Fatalf("reader %d found something", i)
		}
		readers = append(readers, r)
	}
	add(p, rec("t", 9, "x"))
	add(p, rec("other", 0, "x"))
	add(p, rec("t", 2, "x"))
	for i, r := range readers {
		if got, want := memory.Poked(r), i%3 == 2; got != want {
			t.Errorf("reader %d of partition %d was woken: %v, want %v", i, i%3, got, want)
		}
	}
}

// A clock that is set back does not set back the times of records.
func TestLogTimesDoNotGoBack(t *testing.T) {
	_, p := openLog(t, nil)
	ahead := time.Now().Add(time.Hour)
	add(p, rec("t", 0, "a"))
	memory.SetClock(p, "t", 0, ahead)
	add(p, rec("t", 0, "b"))
	add(p, rec("t", 0, "c"))
	if n, err := p.PositionAt(t.Context(), "t", 0, ahead); err != nil || n != 2 {
		t.Errorf("PositionAt is %d, %v, want 2", n, err)
	}
	if n, _ := p.PositionAt(t.Context(), "t", 0, ahead.Add(1)); n != 4 {
		t.Errorf("PositionAt is %d, want 4", n)
	}
}

// Readers that gave up leave nothing behind.
func TestLogForgetsReaders(t *testing.T) {
	_, p := openLog(t, nil)
	var readers []block.LogReader
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	for i := range 8 {
		r, err := p.OpenReader(ctx, "t", int32(i%4), 0, block.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
		if i < 4 {
			wg.Go(func() {
				_, err := r.Next(ctx, 1, 1)
				if fault.Of(err) != fault.Canceled {
					t.Errorf("Next: %v", err)
				}
			})
		}
	}
	eventually(t, "readers to wait", func() bool { return memory.Kept(p, "t").Waiting == 4 })
	stop()
	wg.Wait()
	if k := memory.Kept(p, "t"); k.Waiting != 0 {
		t.Errorf("%+v, want nobody to wait", k)
	}
	for _, r := range readers[4:] {
		wg.Go(func() { _, _ = r.Next(t.Context(), 1, 1) })
	}
	eventually(t, "readers to wait", func() bool { return memory.Kept(p, "t").Waiting == 4 })
	readers[4].Close()
	readers[5].Close()
	eventually(t, "closed readers to be forgotten", func() bool { return memory.Kept(p, "t").Waiting == 2 })
	_ = p.Close(t.Context())
	wg.Wait()
	if k := memory.Kept(p, "t"); k.Waiting != 0 {
		t.Errorf("%+v, want nobody to wait", k)
	}
}

// A record that stays does not keep the places of all that ended behind it.
func TestLogGapsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, p := openLog(t, nil)
		p.Consumed("t", "g", 0, 0)
		add(p, rec("t", 0, "first"))
		r, err := p.OpenReader(t.Context(), "t", 0, 5, block.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		last := uint64(0)
		for i := range 2000 {
			for n := range 100 {
				e := rec("t", 0, "x")
				if e.TTL = time.Second; i%100 == 99 && n == 0 {
					e.TTL, e.Data = 0, []byte("stays")
				}
				last = add(p, e).Position
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if k := memory.Kept(p, "t"); k.Records != 21 || k.Slots > 1000 {
			t.Errorf("%+v are kept for 21 records", k)
		}
		bodies, positions := held(t, p, "t", 0)
		if len(bodies) != 21 || bodies[0] != "first" || positions[1] != 2+99*100 || last != 200_001 {
			t.Errorf("%d records at %v, last %d", len(bodies), positions, last)
		}
		for range 3 {
			recs, err := r.Next(t.Context(), 3, 1000)
			if err != nil || len(recs) != 3 || string(recs[2].Data) != "stays" {
				t.Fatalf("Next: %v, %v", recs, err)
			}
		}
		if n, err := p.PositionAt(t.Context(), "t", 0, time.Now().Add(-100*time.Second)); err != nil || n != positions[20] {
			t.Errorf("PositionAt is %d, %v, want %d", n, err, positions[20])
		}
	})
}

// One that never comes back for more does not keep ever more memory, and then hears all there is.
func TestSlowLedgerWatchBeginsAnew(t *testing.T) {
	_, p := openLog(t, nil)
	ctx, stop := context.WithCancel(t.Context())
	blocked, goOn := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	calls := make(chan []block.LedgerEntry, 4)
	go func() {
		n := 0
		done <- p.LedgerWatch(ctx, "a||", func(entries []block.LedgerEntry, reset bool) {
			if n++; n == 2 {
				close(blocked)
				<-goOn
			}
			if reset != (n != 2) {
				t.Errorf("call %d: reset is %v", n, reset)
			}
			calls <- entries
		})
	}()
	put := func(key string, revision uint64, remove bool) uint64 {
		t.Helper()
		r := p.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Revision: revision, Remove: remove}})[0]
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		return r.Revision
	}
	if first := <-calls; len(first) != 0 {
		t.Errorf("at first %v", first)
	}
	put("a||stays", 0, false)
	<-blocked
	for i := range 70_000 {
		key := fmt.Sprint("a||", i)
		put(key, put(key, 0, false), true)
	}
	put("b||other", 0, false)
	close(goOn)
	<-calls
	if again := <-calls; len(again) != 1 || again[0].Key != "a||stays" {
		t.Errorf("when changes were missed %d entries were told, want all there is: one", len(again))
	}
	stop()
	if err := <-done; fault.Of(err) != fault.Canceled {
		t.Errorf("LedgerWatch: %v", err)
	}
	if r := p.LedgerPut(t.Context(), []block.LedgerWrite{{Key: ""}})[0]; fault.Of(r.Err) != fault.Invalid {
		t.Errorf("an entry without key: %+v", r)
	}
}
