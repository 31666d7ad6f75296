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

// Log checks a broker whose topics are partitioned logs. open prepares a broker and returns a way
// to open components on it: each call is another client, as another sidecar would be. Topics and
// the keys of the ledger are unique to the subtest, so the server behind may be shared; the suite
// closes what it opens. A broker that bounds its records should bound them below 128 MiB here.
func Log(t *testing.T, open func(t *testing.T) func() block.Log) {
	t.Helper()
	suite(t, block.KindPubSub)
	groups := []struct {
		name string
		run  func(*logTest)
	}{
		{"features", logFeatures},
		{"append and read in order", logOrder},
		{"content round trip", logContent},
		{"large records", logLarge},
		{"topic names are literal", logTopics},
		{"partition numbers", logPartitions},
		{"where a reader starts", logStarts},
		{"a reader waits and wakes", logWaits},
		{"how much a reader returns", logLimits},
		{"a reader and its context", logReaderContext},
		{"closing a reader", logReaderClose},
		{"small windows ahead", logAhead},
		{"readers do not disturb each other", logReaders},
		{"many partitions at once", logMany},
		{"append while reading", logConcurrent},
		{"duplicates", logDuplicates},
		{"bounds", logBounds},
		{"position at a time", logPositionAt},
		{"delayed records", logDelay},
		{"time to live", logTTL},
		{"append all or none", logAtomic},
		{"a record over the limit", logTooLarge},
		{"consumed records", logKeeper},
		{"an ended context", logContext},
		{"close", logClose},
		{"ledger: write, read, remove", ledgerRoundTrip},
		{"ledger: keys of every shape", ledgerKeys},
		{"ledger: values of every size", ledgerValues},
		{"ledger: only one of many writers wins", ledgerRace},
		{"ledger: writes of one call are independent", ledgerBatch},
		{"ledger: counters", ledgerCounters},
		{"ledger: watch", ledgerWatch},
		{"ledger: watch of a prefix", ledgerPrefix},
		{"ledger: watch under load", ledgerLoad},
		{"ledger: an ended context", ledgerContext},
		{"ledger: close", ledgerClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			client := open(t)
			l := &logTest{T: t, prefix: unique(), client: func() block.Log {
				c := client()
				t.Cleanup(func() { closeQuietly(t, c) })
				return c
			}}
			l.log = l.client()
			g.run(l)
		})
	}
}

type logTest struct {
	*testing.T
	client func() block.Log // opens another client of the same broker
	log    block.Log        // the first client
	prefix string
}

func (l *logTest) ctx() context.Context    { return patiently(l.T) }
func (l *logTest) name(part string) string { return l.prefix + "-" + part }

// soon is a context that ends after d: for a Next that must not find anything.
func (l *logTest) soon(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	l.Cleanup(cancel)
	return ctx
}

// quiet is how long what must not come is waited for.
const quiet = 100 * time.Millisecond

func record(topic string, partition int32, body string) block.LogRecord {
	return block.LogRecord{Message: block.Message{Topic: topic, Data: []byte(body)}, Partition: partition}
}

func records(topic string, partition int32, bodies ...string) []block.LogRecord {
	out := make([]block.LogRecord, len(bodies))
	for i, b := range bodies {
		out[i] = record(topic, partition, b)
	}
	return out
}

// append appends with the first client; no record may be refused.
func (l *logTest) append(recs ...block.LogRecord) []block.AppendResult {
	l.Helper()
	results := l.log.Append(l.ctx(), recs)
	if len(results) != len(recs) {
		l.Fatalf("Append of %d records gave %d results", len(recs), len(results))
	}
	for i, r := range results {
		if r.Err != nil {
			l.Fatalf("Append: record %d of %d: %v", i, len(recs), r.Err)
		}
	}
	return results
}

// keep has a broker that asks for it keep the records of a topic, however many.
func (l *logTest) keep(topic string) string {
	if k, ok := l.log.(block.LogKeeper); ok {
		k.Consumed(topic, "keep", 0, 0)
	}
	return topic
}

// reader opens a reader with the client; it is closed with the subtest.
func (l *logTest) reader(log block.Log, topic string, partition int32, from uint64) block.LogReader {
	l.Helper()
	r, err := log.OpenReader(l.ctx(), topic, partition, from, block.ReadOptions{})
	if err != nil {
		l.Fatalf("OpenReader(%s, %d, %d): %v", show(topic), partition, from, err)
	}
	l.Cleanup(r.Close)
	return r
}

// next returns n records of a reader, which may take it several calls. It is Error, not Fatal, that
// it fails with, for readers run in goroutines of their own; it then returns fewer.
func (l *logTest) next(r block.LogReader, n int) []block.LogRecord {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out []block.LogRecord
	for len(out) < n {
		got, err := r.Next(ctx, n-len(out), 64<<20)
		if err != nil {
			l.Errorf("Next after %d of %d records: %v", len(out), n, err)
			return out
		}
		if len(got) == 0 || len(got) > n-len(out) {
			l.Errorf("Next returned %d records, want 1 to %d", len(got), n-len(out))
			return out
		}
		out = append(out, got...)
	}
	return out
}

// read returns the first n records from a position on, with a reader of its own.
func (l *logTest) read(topic string, partition int32, from uint64, n int) []block.LogRecord {
	l.Helper()
	r := l.reader(l.log, topic, partition, from)
	defer r.Close()
	return l.next(r, n)
}

// nothing checks that a reader has nothing to return.
func (l *logTest) nothing(what string, r block.LogReader) {
	l.Helper()
	got, err := r.Next(l.soon(quiet), 10, 1<<20)
	if err == nil {
		l.Errorf("%s: Next returned %q, want nothing", what, recordBodies(got))
		return
	}
	wantCode(l, what, err, fault.Deadline)
}

func (l *logTest) bounds(topic string, partition int32) block.LogBounds {
	l.Helper()
	b, err := l.log.Bounds(l.ctx(), topic, []int32{partition})
	if err != nil || len(b) != 1 {
		l.Fatalf("Bounds of %s/%d: %v, %v, want one", show(topic), partition, b, err)
	}
	return b[0]
}

func recordBodies(recs []block.LogRecord) []string {
	out := make([]string, len(recs))
	for i, r := range recs {
		out[i] = string(r.Data)
	}
	return out
}

func positions(recs []block.LogRecord) []uint64 {
	out := make([]uint64, len(recs))
	for i, r := range recs {
		out[i] = r.Position
	}
	return out
}

func resultPositions(results []block.AppendResult) []uint64 {
	out := make([]uint64, len(results))
	for i, r := range results {
		out[i] = r.Position
	}
	return out
}

// growing tells whether every position is greater than the one before, and than 0.
func growing(ps []uint64) bool {
	last := uint64(0)
	for _, p := range ps {
		if p <= last {
			return false
		}
		last = p
	}
	return true
}

// same checks that records are what was appended, in the same order and the same places.
func (l *logTest) same(what string, got []block.LogRecord, want []string, at []uint64) {
	l.Helper()
	if !slices.Equal(recordBodies(got), want) {
		l.Errorf("%s: got %s, want %s", what, shorten(recordBodies(got)), shorten(want))
	}
	if at != nil && !slices.Equal(positions(got), at) {
		l.Errorf("%s: positions %s, want those of Append, %s", what, shorten(positions(got)), shorten(at))
	}
}

func shorten[T any](list []T) string {
	if len(list) > 12 {
		return fmt.Sprintf("%v… (%d)", list[:12], len(list))
	}
	return fmt.Sprint(list)
}

func logFeatures(l *logTest) {
	f := l.log.LogFeatures()
	if f.Partitions < 1 || f.MaxEntry < 4<<10 || f.SessionTTL < time.Second || f.MaxRecord < 0 || f.Dedup < 0 {
		l.Errorf("features %+v; want at least one partition, 4 KiB for an entry, 1 s for a session, nothing negative", f)
	}
	if _, atomic := l.log.(block.LogAtomic); atomic != f.Atomic {
		l.Errorf("features say atomic=%v, the component says %v", f.Atomic, atomic)
	}
	if err := l.log.Ping(l.ctx()); err != nil {
		l.Fatalf("Ping: %v", err)
	}
	if after := l.log.LogFeatures(); after != f {
		l.Errorf("features changed from %+v to %+v once the server had answered", f, after)
	}
	if other := l.client().LogFeatures(); other != f {
		l.Errorf("another client has features %+v, want %+v", other, f)
	}
}

// The records of one call go to their own topics and partitions, and those of one partition keep
// their order.
func logOrder(l *logTest) {
	if got := l.log.Append(l.ctx(), nil); len(got) != 0 {
		l.Errorf("Append of nothing gave %d results", len(got))
	}
	type place struct {
		topic     string
		partition int32
	}
	l.keep(l.name("a"))
	l.keep(l.name("b"))
	places := []place{{l.name("a"), 0}, {l.name("a"), 1}, {l.name("a"), 2}, {l.name("b"), 0}, {l.name("b"), 7}}
	bodies, at := map[place][]string{}, map[place][]uint64{}
	n := 0
	for _, size := range []int{1, 17, 300, 2, 180} {
		var recs []block.LogRecord
		var to []place
		for range size {
			p := places[(n*n+n/3)%len(places)]
			body := fmt.Sprintf("%s/%d #%d", p.topic[len(p.topic)-1:], p.partition, n)
			recs, to = append(recs, record(p.topic, p.partition, body)), append(to, p)
			bodies[p] = append(bodies[p], body)
			n++
		}
		for i, r := range l.append(recs...) {
			at[to[i]] = append(at[to[i]], r.Position)
			if r.Duplicate {
				l.Errorf("a record without ID is called a duplicate")
			}
		}
	}
	for _, p := range places {
		if !growing(at[p]) {
			l.Errorf("%v: Append gave positions %v, want growing ones from 1", p, at[p])
		}
		for range 2 { // what was read once stays as it is
			got := l.read(p.topic, p.partition, 0, len(bodies[p]))
			l.same(fmt.Sprint(p), got, bodies[p], at[p])
			last := time.Time{}
			for _, r := range got {
				if r.Topic != p.topic || r.Partition != p.partition {
					l.Fatalf("a record of %v came as one of %s/%d", p, r.Topic, r.Partition)
				}
				if r.Time.Before(last) || r.Time.IsZero() {
					l.Fatalf("%v: time %v after %v", p, r.Time, last)
				}
				last = r.Time
			}
		}
	}
}

func logContent(l *logTest) {
	topic := l.name("topic")
	meta := map[string]string{
		"plain": "value", "Case": "Kept", "case": "other", "empty": "", "unicode": "äöü 键 🙂", "": "no name",
		"with space": " padded ", "crlf": "a\r\nNats-Rollup: all\r\n\r\nb", "col:on": "a:b", "percent%25": "100%", "umläut": "x",
		"bytes": "\x00\xff\xfe\t\x7f", "Nats-Msg-Id": "x", "data": "y", "key": "z",
	}
	long := map[string]string{"long": strings.Repeat("v", 4000), strings.Repeat("n", 200): "v"}
	binary := make([]byte, 256)
	for i := range binary {
		binary[i] = byte(i)
	}
	msgs := []block.Message{
		{Data: []byte("plain")},
		{},
		{Data: []byte{}, Key: "only a key"},
		{Data: binary, Key: "key"},
		{Data: []byte("meta"), Metadata: meta, Key: "ünï code/*>\r\n\x00\xff", ID: "an id\r\n"},
		{Data: []byte("long"), Metadata: long, Key: strings.Repeat("k", 512), ID: unique()},
	}
	var recs []block.LogRecord
	for _, m := range msgs {
		m.Topic, m.Data, m.Metadata = topic, bytes.Clone(m.Data), maps.Clone(m.Metadata)
		// Position and Time are the broker's.
		recs = append(recs, block.LogRecord{Message: m, Partition: 3, Position: 77, Time: time.Unix(1, 0)})
	}
	results := l.append(recs...)
	for i := range recs { // the broker must not have kept what is ours
		for n := range recs[i].Data {
			recs[i].Data[n] = '?'
		}
		if recs[i].Metadata != nil {
			recs[i].Metadata["plain"] = "changed"
		}
	}
	for range 2 {
		for i, r := range l.read(topic, 3, 0, len(msgs)) {
			want := msgs[i]
			if r.Topic != topic || !bytes.Equal(r.Data, want.Data) || r.Key != want.Key {
				l.Errorf("record %d came as topic %q, key %q, data %q; want %q, %q, %q", i, r.Topic, r.Key, show(string(r.Data)), topic, want.Key, show(string(want.Data)))
			}
			if !maps.Equal(r.Metadata, want.Metadata) {
				l.Errorf("record %d came with metadata %q, want %q", i, r.Metadata, want.Metadata)
			}
			if r.Position != results[i].Position || r.Partition != 3 || time.Since(r.Time) > time.Hour {
				l.Errorf("record %d came as %d/%d of %v, want 3/%d of now", i, r.Partition, r.Position, r.Time, results[i].Position)
			}
			for n := range r.Data { // and what is given is ours as well
				r.Data[n] = '?'
			}
			if r.Metadata != nil {
				r.Metadata["plain"] = "changed"
			}
		}
	}
}

func logLarge(l *logTest) {
	topic := l.name("topic")
	limit := l.log.LogFeatures().MaxRecord
	var recs []block.LogRecord
	var want []string
	for _, n := range []int{1 << 20, 1, 300 << 10, 64 << 10, 1 << 20} {
		if limit > 0 {
			n = min(n, limit)
		}
		data := noise(n)
		want = append(want, string(data))
		recs = append(recs, block.LogRecord{Message: block.Message{Topic: topic, Data: data}})
	}
	results := l.append(recs...)
	for i, r := range l.read(topic, 0, 0, len(recs)) {
		if string(r.Data) != want[i] || r.Position != results[i].Position {
			l.Errorf("record %d came as %d other bytes at %d, want %d at %d", i, len(r.Data), r.Position, len(want[i]), results[i].Position)
		}
	}
}

func logTopics(l *logTest) {
	names := []string{"a", "A", "a.b", "a..b", ".a", "a.", "a/b", "a b", "*", ">", "a.*", "a.>", "#", "+", "a+", "a/#",
		"ünï", "键", "🙂", "%41", "=41", "a:b", "a||b", "$SYS", "_", "a\tb", "p0", "a.0", strings.Repeat("t", 200)}
	for i, n := range names {
		l.append(records(l.name(n), int32(i%2), n, n)...)
	}
	for i, n := range names {
		r := l.reader(l.log, l.name(n), int32(i%2), 0)
		got := l.next(r, 2)
		for _, rec := range got {
			if string(rec.Data) != n || rec.Topic != l.name(n) {
				l.Errorf("topic %s gave %q of topic %s", show(n), rec.Data, show(rec.Topic))
			}
		}
		if b := l.bounds(l.name(n), int32(i%2)); len(got) == 2 && (b.First != got[0].Position || b.Next <= got[1].Position) {
			l.Errorf("topic %s holds %+v, want from %d to beyond %d", show(n), b, got[0].Position, got[1].Position)
		}
		if b := l.bounds(l.name(n), int32(1-i%2)); b.First != b.Next {
			l.Errorf("topic %s holds %+v in a partition never used", show(n), b)
		}
		r.Close()
	}
}

// Any number from 0 is a partition; that there are few is the house's agreement.
func logPartitions(l *logTest) {
	topic := l.name("topic")
	numbers := []int32{0, 1, 9, 10, 11, 100, int32(l.log.LogFeatures().Partitions), 4095}
	for _, p := range numbers {
		l.append(record(topic, p, fmt.Sprint(p)))
	}
	for _, p := range numbers {
		r := l.reader(l.log, topic, p, 0)
		if got := l.next(r, 1); len(got) == 1 && (string(got[0].Data) != fmt.Sprint(p) || got[0].Partition != p) {
			l.Errorf("partition %d gave %q of partition %d", p, got[0].Data, got[0].Partition)
		}
	}
	got := l.log.Append(l.ctx(), []block.LogRecord{record(topic, 1, "before"), record(topic, -1, "refused"), record(topic, 1, "behind")})
	if len(got) != 3 || got[0].Err != nil || got[2].Err != nil {
		l.Fatalf("Append with a negative partition among others = %v", got)
	}
	wantCode(l, "Append to a negative partition", got[1].Err, fault.Invalid)
	l.same("partition 1", l.read(topic, 1, 0, 3), []string{"1", "before", "behind"}, nil)
	_, err := l.log.OpenReader(l.ctx(), topic, -1, 0, block.ReadOptions{})
	wantCode(l, "OpenReader of a negative partition", err, fault.Invalid)
}

func logStarts(l *logTest) {
	topic, want := l.name("topic"), numbers("m", 40)
	// Records of another partition between them make positions that are not dense, where the broker has such.
	var at []uint64
	for _, b := range want {
		res := l.append(record(topic, 1, "other"), record(topic, 0, b))
		at = append(at, res[1].Position)
	}
	for _, i := range []int{0, 1, 20, 39} {
		l.same(fmt.Sprintf("a reader from record %d", i), l.read(topic, 0, at[i], len(want)-i), want[i:], at[i:])
	}
	l.same("a reader from 0", l.read(topic, 0, 0, len(want)), want, at)
	l.same("a reader from 1", l.read(topic, 0, 1, len(want)), want, at)
	l.same("a reader behind record 20", l.read(topic, 0, at[20]+1, 19), want[21:], at[21:])

	end := l.reader(l.log, topic, 0, at[39]+1)
	next := l.reader(l.log, topic, 0, l.bounds(topic, 0).Next)
	ahead := at[39] + 6
	beyond := l.reader(l.log, topic, 0, ahead)
	far := l.reader(l.log, topic, 0, 1<<40)
	empty := l.reader(l.log, topic, 5, 0)
	l.nothing("a reader at the end", end)
	l.nothing("a reader beyond the end", beyond)
	l.nothing("a reader of an empty partition", empty)
	more := numbers("n", 30)
	moreAt := resultPositions(l.append(records(topic, 0, more...)...))
	l.same("a reader at the end", l.next(end, len(more)), more, moreAt)
	l.same("a reader at Bounds.Next", l.next(next, len(more)), more, moreAt)
	skip, _ := slices.BinarySearch(moreAt, ahead)
	l.same("a reader beyond the end", l.next(beyond, len(more)-skip), more[skip:], moreAt[skip:])
	l.nothing("a reader far beyond the end", far)
	first := l.append(record(topic, 5, "first"))
	l.same("a reader of a partition once empty", l.next(empty, 1), []string{"first"}, resultPositions(first))
}

func logWaits(l *logTest) {
	topic := l.name("topic")
	r := l.reader(l.log, topic, 2, 0)
	other := l.client()
	for i := range 20 {
		type answer struct {
			recs []block.LogRecord
			err  error
		}
		got := make(chan answer, 1)
		go func() {
			recs, err := r.Next(l.ctx(), 10, 1<<20)
			got <- answer{recs, err}
		}()
		if i%5 == 0 {
			select {
			case a := <-got:
				l.Fatalf("Next of a partition without new records returned %q, %v", recordBodies(a.recs), a.err)
			case <-time.After(quiet / 4):
			}
		}
		if res := other.Append(l.ctx(), []block.LogRecord{record(topic, 1, "elsewhere"), record(topic, 2, fmt.Sprint(i))}); res[0].Err != nil || res[1].Err != nil {
			l.Fatalf("Append: %v", res)
		}
		a := <-got
		if a.err != nil || len(a.recs) != 1 || string(a.recs[0].Data) != fmt.Sprint(i) {
			l.Fatalf("a waiting Next returned %q, %v, want %d", recordBodies(a.recs), a.err, i)
		}
	}
}

func logLimits(l *logTest) {
	topic := l.name("topic")
	sizes := []int{10, 10, 10, 50, 5, 200, 1, 0, 0, 99, 1, 100, 101, 3}
	var want []string
	for i, n := range sizes {
		want = append(want, strings.Repeat(string(rune('a'+i)), n))
	}
	at := resultPositions(l.append(records(topic, 0, want...)...))
	for _, max := range []int{1, 2, 3, 100} {
		for _, limit := range []int{1, 30, 100, 1000} {
			what := fmt.Sprintf("max %d, %d bytes", max, limit)
			r := l.reader(l.log, topic, 0, 0)
			var all []block.LogRecord
			for len(all) < len(want) {
				got, err := r.Next(l.ctx(), max, limit)
				if err != nil || len(got) == 0 || len(got) > max {
					l.Fatalf("%s: Next returned %d records, %v", what, len(got), err)
				}
				size := 0
				for _, rec := range got {
					size += len(rec.Data)
				}
				if size > limit && len(got) > 1 {
					l.Errorf("%s: Next returned %d records of %d bytes", what, len(got), size)
				}
				all = append(all, got...)
			}
			l.same(what, all, want, at)
			r.Close()
		}
	}
	r := l.reader(l.log, topic, 0, 0)
	if got, err := r.Next(l.ctx(), 0, 0); err != nil || len(got) != 1 || string(got[0].Data) != want[0] {
		l.Errorf("Next of 0 records in 0 bytes returned %q, %v, want one all the same", recordBodies(got), err)
	}
}

func logReaderContext(l *logTest) {
	topic := l.name("topic")
	opening, cancel := context.WithCancel(l.ctx())
	r, err := l.log.OpenReader(opening, topic, 0, 0, block.ReadOptions{})
	if err != nil {
		l.Fatalf("OpenReader: %v", err)
	}
	l.Cleanup(r.Close)
	cancel() // the reader lives on
	l.append(records(topic, 0, "one", "two")...)
	l.same("a reader whose opening's context ended", l.next(r, 1), []string{"one"}, nil)

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = r.Next(ended, 1, 100)
	wantCode(l, "Next with an ended context", err, fault.Canceled)
	l.same("after it", l.next(r, 1), []string{"two"}, nil)

	var raced sync.WaitGroup
	defer raced.Wait()
	for i := range 10 { // a Next that gave up has taken nothing with it
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		var got []block.LogRecord
		var err error
		go func() {
			defer close(done)
			got, err = r.Next(ctx, 10, 1<<20)
		}()
		if i == 0 {
			time.Sleep(20 * time.Millisecond) // most likely it waits by now
		}
		start := time.Now()
		if i%2 == 1 {
			raced.Go(func() { // a race of the two
				if res := l.log.Append(l.ctx(), records(topic, 0, fmt.Sprint(i))); len(res) != 1 || res[0].Err != nil {
					l.Errorf("Append: %v", res)
				}
			})
		}
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			l.Fatalf("Next goes on after its context ended")
		}
		if took := time.Since(start); took > 3*time.Second {
			l.Errorf("Next returned %v after its context ended", took)
		}
		if err != nil {
			wantCode(l, "a Next whose context ended", err, fault.Canceled)
			if len(got) != 0 {
				l.Errorf("Next returned %d records and an error", len(got))
			}
		}
		if i%2 == 1 {
			if err != nil {
				got = l.next(r, 1)
			}
			l.same("after a Next that gave up", got, []string{fmt.Sprint(i)}, nil)
		}
	}
	if _, err := r.Next(l.soon(20*time.Millisecond), 1, 100); fault.Of(err) != fault.Deadline {
		l.Errorf("a Next whose deadline passed: %v, want deadline", err)
	}
}

func logReaderClose(l *logTest) {
	topic := l.name("topic")
	for i := range 6 {
		r := l.reader(l.log, topic, 0, 0)
		done := make(chan error, 1)
		go func() {
			_, err := r.Next(l.ctx(), 1, 100)
			done <- err
		}()
		if i%2 == 0 {
			time.Sleep(20 * time.Millisecond) // most likely it waits by now
		}
		start := time.Now()
		r.Close()
		select {
		case err := <-done:
			wantCode(l, "Next of a reader that was closed", err, fault.Unavailable)
		case <-time.After(patience):
			l.Fatalf("Next goes on after Close of its reader")
		}
		if took := time.Since(start); took > 3*time.Second {
			l.Errorf("Next returned %v after Close", took)
		}
		r.Close()
	}
	l.append(record(topic, 0, "one"))
	r := l.reader(l.log, topic, 0, 0)
	r.Close()
	_, err := r.Next(l.ctx(), 1, 100)
	wantCode(l, "Next of a closed reader", err, fault.Unavailable)
	l.same("another reader", l.read(topic, 0, 0, 1), []string{"one"}, nil)
}

func logAhead(l *logTest) {
	topic, want := l.keep(l.name("topic")), numbers(strings.Repeat("x", 100), 300)
	at := resultPositions(l.append(records(topic, 0, want...)...))
	for _, opts := range []block.ReadOptions{{Messages: 1}, {Messages: 3, Bytes: 150}, {Bytes: 1}, {Messages: 10_000, Bytes: 64 << 20}} {
		r, err := l.log.OpenReader(l.ctx(), topic, 0, 0, opts)
		if err != nil {
			l.Fatalf("OpenReader: %v", err)
		}
		l.Cleanup(r.Close)
		l.same(fmt.Sprintf("%+v", opts), l.next(r, len(want)), want, at)
		r.Close()
	}
}
