package blocktest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

func logReaders(l *logTest) {
	topic, want := l.name("topic"), numbers("m", 60)
	other := l.client()
	slow := l.reader(l.log, topic, 0, 0)
	fast := l.reader(l.log, topic, 0, 0)
	foreign := l.reader(other, topic, 0, 0)
	at := resultPositions(l.append(records(topic, 0, want...)...))
	l.same("a slow reader", l.next(slow, 1), want[:1], at[:1])
	l.same("a fast reader", l.next(fast, 60), want, at)
	l.same("another client's reader", l.next(foreign, 30), want[:30], at[:30])
	fast.Close()
	l.same("a slow reader after another was closed", l.next(slow, 9), want[1:10], at[1:10])
	closeQuietly(l, other)
	l.same("a slow reader after another client closed", l.next(slow, 50), want[10:], at[10:])
}

// A member of a group reads many partitions at once, with one client.
func logMany(l *logTest) {
	const partitions, each = 48, 40
	topic := l.keep(l.name("topic"))
	other := l.client()
	var readers []block.LogReader
	for p := range partitions {
		readers = append(readers, l.reader(l.log, topic, int32(p), 0))
	}
	var wg sync.WaitGroup
	for p, r := range readers {
		wg.Go(func() {
			l.same(fmt.Sprintf("partition %d", p), l.next(r, each), numbers(fmt.Sprintf("%d/", p), each), nil)
		})
	}
	for i := range each {
		var recs []block.LogRecord
		for p := range partitions {
			recs = append(recs, record(topic, int32(p), fmt.Sprintf("%d/%04d", p, i)))
		}
		for n, r := range other.Append(l.ctx(), recs) {
			if r.Err != nil {
				l.Errorf("Append to partition %d: %v", n, r.Err)
			}
		}
	}
	wg.Wait()
}

// However many append, there is one order, and every reader sees it whole.
func logConcurrent(l *logTest) {
	const appenders, each, batch = 6, 60, 5
	topic := l.keep(l.name("topic"))
	clients := []block.Log{l.log, l.client(), l.client()}
	total := appenders * each
	var mu sync.Mutex
	at := map[string]uint64{} // guarded by mu; what Append said of each record
	seen := make([][]block.LogRecord, 6)
	var wg sync.WaitGroup
	follow := func(i int) {
		r := l.reader(clients[i%len(clients)], topic, 4, 0)
		wg.Go(func() { seen[i] = l.next(r, total) })
	}
	for i := range 4 {
		follow(i)
	}
	var writers sync.WaitGroup
	for w := range appenders {
		writers.Go(func() {
			log := clients[w%len(clients)]
			bodies := numbers(fmt.Sprintf("%d/", w), each)
			for i := 0; i < each; i += batch {
				part := bodies[i : i+batch]
				for n, r := range log.Append(l.ctx(), records(topic, 4, part...)) {
					if r.Err != nil {
						l.Errorf("Append: %v", r.Err)
					}
					mu.Lock()
					at[part[n]] = r.Position
					mu.Unlock()
				}
			}
		})
	}
	writers.Wait()
	follow(4) // late, and all the same
	follow(5)
	wg.Wait()
	if l.Failed() {
		return
	}
	first := seen[0]
	if !growing(positions(first)) {
		l.Errorf("positions %s do not grow", shorten(positions(first)))
	}
	for i := 1; i < len(seen); i++ {
		l.same(fmt.Sprintf("reader %d", i), seen[i], recordBodies(first), positions(first))
	}
	for _, r := range first {
		if at[string(r.Data)] != r.Position {
			l.Errorf("record %q is at %d, Append said %d", r.Data, r.Position, at[string(r.Data)])
		}
	}
	for w := range appenders {
		prefix := fmt.Sprintf("%d/", w)
		mine := slices.DeleteFunc(recordBodies(first), func(b string) bool { return !strings.HasPrefix(b, prefix) })
		if !slices.Equal(mine, numbers(prefix, each)) {
			l.Errorf("records of appender %d are out of order, lost or there twice", w)
		}
	}
}

func withID(r block.LogRecord, id string) block.LogRecord {
	r.ID = id
	return r
}

func logDuplicates(l *logTest) {
	if l.log.LogFeatures().Dedup == 0 {
		notOffered(l.T, "IDs are not remembered")
		return
	}
	topic := l.name("topic")
	with := func(id, topic string, partition int32, body string) block.LogRecord {
		return withID(record(topic, partition, body), id)
	}
	ids := []string{"one", "One", "one ", "*", ">", "a.b", "\r\n", "ünï", "0/one", strings.Repeat("i", 300)}
	var recs []block.LogRecord
	for _, id := range ids {
		recs = append(recs, with(id, topic, 0, id))
	}
	first := l.append(recs...)
	for i, r := range first {
		if r.Duplicate || r.Position == 0 {
			l.Errorf("ID %s, first time: %+v", show(ids[i]), r)
		}
	}
	for range 2 {
		res := l.client().Append(l.ctx(), recs)
		for i, r := range res {
			if r.Err != nil || !r.Duplicate || (r.Position != 0 && r.Position != first[i].Position) {
				l.Errorf("ID %s again: %+v, want a duplicate of position %d (or 0: not known)", show(ids[i]), r, first[i].Position)
			}
		}
	}
	res := l.append(with("two", topic, 0, "two"), with("two", topic, 0, "other content"), with("", topic, 0, "x"), with("", topic, 0, "x"),
		with("one", topic, 1, "another partition"), with("one", topic+"+", 0, "another topic"), with("one", topic, 0, "again"))
	var flags []bool
	for _, r := range res {
		flags = append(flags, r.Duplicate)
	}
	if want := []bool{false, true, false, false, false, false, true}; !slices.Equal(flags, want) {
		l.Errorf("duplicates %v, want %v", flags, want)
	}
	l.append(with("", topic, 0, "end"))
	l.same("the partition", l.read(topic, 0, 0, len(ids)+4), append(slices.Clone(ids), "two", "x", "x", "end"), nil)
	l.same("another partition", l.read(topic, 1, 0, 1), []string{"another partition"}, nil)
	l.same("another topic", l.read(topic+"+", 0, 0, 1), []string{"another topic"}, nil)

	var wg sync.WaitGroup
	var mu sync.Mutex
	taken, clients := 0, []block.Log{l.log, l.client(), l.client()}
	for i := range 12 { // a race of one ID
		wg.Go(func() {
			r := clients[i%3].Append(l.ctx(), []block.LogRecord{with("raced", topic, 2, "raced")})[0]
			mu.Lock()
			defer mu.Unlock()
			if r.Err != nil {
				l.Errorf("Append: %v", r.Err)
			}
			if !r.Duplicate {
				taken++
			}
		})
	}
	wg.Wait()
	if taken != 1 {
		l.Errorf("of 12 records of one ID %d were called new, want 1", taken)
	}
	l.append(record(topic, 2, "end"))
	l.same("a race", l.read(topic, 2, 0, 2), []string{"raced", "end"}, nil)
}

func logBounds(l *logTest) {
	topic := l.name("topic")
	of := func(partitions ...int32) []block.LogBounds {
		l.Helper()
		b, err := l.log.Bounds(l.ctx(), topic, partitions)
		if err != nil || len(b) != len(partitions) {
			l.Fatalf("Bounds(%v) = %v, %v, want as many", partitions, b, err)
		}
		return b
	}
	for _, b := range of(0, 1, 2) {
		if b.First != b.Next {
			l.Errorf("a topic without records has bounds %+v", b)
		}
	}
	of()
	before := of(1)[0]
	a := l.append(records(topic, 1, numbers("m", 20)...)...)
	if a[0].Position < before.Next {
		l.Errorf("the first record is at %d, Bounds had said that the next is at %d or later", a[0].Position, before.Next)
	}
	c := l.append(record(topic, 3, "x"))
	got := of(3, 2, 1, 0)
	for i, p := range []int32{3, 2, 1, 0} {
		b := got[i]
		switch p {
		case 3:
			if b.First != c[0].Position || b.Next <= c[0].Position {
				l.Errorf("one record at %d has bounds %+v", c[0].Position, b)
			}
		case 1:
			if b.First != a[0].Position || b.Next <= a[19].Position {
				l.Errorf("records at %d to %d have bounds %+v", a[0].Position, a[19].Position, b)
			}
		default:
			if b.First != b.Next {
				l.Errorf("partition %d without records has bounds %+v", p, b)
			}
		}
	}
	at := of(1)[0].Next
	more := l.append(record(topic, 3, "y"), record(topic, 1, "more"))
	if more[1].Position < at {
		l.Errorf("a record is at %d, Bounds had said that the next is at %d or later", more[1].Position, at)
	}
	if b := of(1)[0]; b.Next <= more[1].Position || b.First != a[0].Position {
		l.Errorf("after another record at %d bounds are %+v", more[1].Position, b)
	}
}

func logPositionAt(l *logTest) {
	topic := l.name("topic")
	at := func(t time.Time) uint64 {
		l.Helper()
		p, err := l.log.PositionAt(l.ctx(), topic, 0, t)
		if err != nil {
			l.Fatalf("PositionAt(%v): %v", t, err)
		}
		return p
	}
	if p, b := at(time.Now().Add(-time.Hour)), l.bounds(topic, 0); p != b.Next {
		l.Errorf("in an empty partition PositionAt is %d, want %d", p, b.Next)
	}
	const rounds = 4
	for i := range rounds {
		l.append(append(records(topic, 0, numbers(fmt.Sprint(i), 3)...), record(topic, 1, "other"))...)
		time.Sleep(30 * time.Millisecond) // so that their times differ
	}
	recs := l.read(topic, 0, 0, 3*rounds)
	if len(recs) != 3*rounds {
		return
	}
	next := l.bounds(topic, 0).Next
	want := func(t time.Time) uint64 {
		for _, r := range recs {
			if !r.Time.Before(t) {
				return r.Position
			}
		}
		return next
	}
	if !recs[0].Time.Before(recs[3].Time) {
		l.Fatalf("records accepted 30 ms apart have the times %v and %v", recs[0].Time, recs[3].Time)
	}
	for i, r := range recs {
		for _, t := range []time.Time{r.Time, r.Time.Add(time.Nanosecond), r.Time.Add(10 * time.Millisecond), r.Time.Add(-5 * time.Millisecond), r.Time.In(time.FixedZone("", 3600))} {
			if got := at(t); got != want(t) {
				l.Errorf("PositionAt(time of record %d %+v) is %d, want %d", i, t.Sub(r.Time), got, want(t))
			}
		}
	}
	for _, t := range []time.Time{recs[0].Time.Add(-time.Hour), time.Unix(0, 0)} {
		if got := at(t); got != recs[0].Position {
			l.Errorf("PositionAt(%v) is %d, want the first, %d", t, got, recs[0].Position)
		}
	}
	for _, t := range []time.Time{recs[len(recs)-1].Time.Add(time.Nanosecond), time.Now().Add(time.Hour)} {
		if got := at(t); got != next {
			l.Errorf("PositionAt(%v) is %d, want Bounds.Next, %d", t, got, next)
		}
	}
}

func logDelay(l *logTest) {
	if !l.log.LogFeatures().Delay {
		notOffered(l.T, "DeliverAt is not honoured")
		return
	}
	topic := l.name("topic")
	start := time.Now()
	// Some products tell seconds apart and no less.
	const step = 1200 * time.Millisecond
	later := func(body string, n int, key string) block.LogRecord {
		r := record(topic, 0, body)
		r.DeliverAt, r.Key, r.Metadata = start.Add(time.Duration(n)*step), key, map[string]string{"m": body}
		return r
	}
	r := l.reader(l.log, topic, 0, 0)
	results := l.append(later("third", 3, "k3"), record(topic, 0, "now"), later("first", 1, "k1"), later("past", -5, "kp"), later("second", 2, "k2"), record(topic, 0, "now, too"))
	for i, res := range results {
		late := i == 0 || i == 2 || i == 4
		if late && res.Position != 0 && time.Since(start) < step {
			l.Errorf("delayed record %d has position %d before its time", i, res.Position)
		}
		if i != 3 && !late && res.Position == 0 {
			l.Errorf("record %d, which is not delayed, has no position", i)
		}
	}
	// One that was due before it came may take a moment, and with it its place.
	got := l.next(r, 3)
	at := slices.IndexFunc(got, func(r block.LogRecord) bool { return string(r.Data) == "past" })
	if at < 0 {
		l.Fatalf("at once came %q, want the one that was due too", recordBodies(got))
	}
	l.same("what was not delayed", slices.Delete(slices.Clone(got), at, at+1), []string{"now", "now, too"}, nil)
	end := l.bounds(topic, 0).Next
	for n, body := range []string{"first", "second", "third"} {
		due := start.Add(time.Duration(n+1) * step)
		late := l.next(r, 1)
		if len(late) != 1 {
			return
		}
		if now := time.Now(); now.Before(due.Add(-20 * time.Millisecond)) {
			l.Errorf("%s came %v early", body, due.Sub(now))
		}
		rec := late[0]
		if string(rec.Data) != body || rec.Key != fmt.Sprintf("k%d", n+1) || rec.Metadata["m"] != body || len(rec.Metadata) != 1 || rec.Topic != topic {
			l.Errorf("delayed record %d came as %q, key %q, metadata %q", n, rec.Data, rec.Key, rec.Metadata)
		}
		if rec.Position < end || rec.Time.Before(due.Add(-time.Second)) {
			l.Errorf("%s took position %d at %v, want at least %d, and not before %v", body, rec.Position, rec.Time, end, due)
		}
		if n == 0 { // it has its place now, as every other
			b := l.append(record(topic, 0, "between"))
			if b[0].Position <= rec.Position {
				l.Errorf("a record after a delayed one is at %d, want behind %d", b[0].Position, rec.Position)
			}
			l.same("after a delayed one", l.next(r, 1), []string{"between"}, nil)
		}
		end = rec.Position + 1
	}
	all := recordBodies(l.read(topic, 0, 0, 7))
	all = slices.DeleteFunc(all, func(b string) bool { return b == "past" })
	if want := []string{"now", "now, too", "first", "between", "second", "third"}; !slices.Equal(all, want) {
		l.Errorf("the partition holds %q, want %q", all, want)
	}
	l.nothing("when all have come", r)
	if l.log.LogFeatures().Dedup == 0 {
		return
	}
	twice := later("once", 0, "")
	twice.DeliverAt, twice.ID = time.Now().Add(step), "delayed once"
	if res := l.append(twice, twice); res[0].Duplicate || !res[1].Duplicate {
		l.Errorf("a delayed record appended twice: %+v, want the second a duplicate", res)
	}
	l.same("a delayed record with an ID", l.next(r, 1), []string{"once"}, nil)
	l.nothing("after it", r)
}

func logTTL(l *logTest) {
	if !l.log.LogFeatures().TTL {
		notOffered(l.T, "a time to live is left to the readers")
		return
	}
	topic := l.name("topic")
	with := func(body string, ttl time.Duration) block.LogRecord {
		r := record(topic, 0, body)
		r.TTL = ttl
		return r
	}
	// Some products tell seconds apart and no less.
	const ttl = 2 * time.Second
	results := l.append(with("short", ttl), with("forever", 0), with("short, too", ttl), with("long", time.Hour))
	appended := time.Now()
	at := resultPositions(results)
	got := l.read(topic, 0, 0, 4)
	if time.Since(appended) < ttl-time.Second {
		l.same("before", got, []string{"short", "forever", "short, too", "long"}, at)
	}
	only := l.append(block.LogRecord{Message: block.Message{Topic: topic, Data: []byte("gone"), TTL: ttl}, Partition: 1})
	var left []block.LogRecord
	waitFor(l, "records to end", func() bool {
		left = l.read(topic, 0, 0, 2)
		return len(left) == 2 && string(left[0].Data) == "forever" && string(left[1].Data) == "long"
	})
	if took := time.Since(appended); took < ttl-time.Second {
		l.Errorf("records with a time to live of %v were gone after %v", ttl, took)
	}
	l.same("after", left, []string{"forever", "long"}, []uint64{at[1], at[3]})
	if b := l.bounds(topic, 0); b.First != at[1] || b.Next <= at[3] {
		l.Errorf("what is left, %d and %d, has bounds %+v", at[1], at[3], b)
	}
	waitFor(l, "the only record of a partition to end", func() bool { b := l.bounds(topic, 1); return b.First == b.Next })
	if b := l.bounds(topic, 1); b.Next <= only[0].Position {
		l.Errorf("after the end of the only record, at %d, bounds are %+v, want Next not to go back", only[0].Position, b)
	}
	more := l.append(record(topic, 1, "more"))
	l.same("a partition all of which had ended", l.read(topic, 1, 0, 1), []string{"more"}, resultPositions(more))
	if more[0].Position <= only[0].Position {
		l.Errorf("a record is at %d, where one was at %d before", more[0].Position, only[0].Position)
	}
}

func logAtomic(l *logTest) {
	log, ok := l.log.(block.LogAtomic)
	if !ok {
		notOffered(l.T, "records are appended one by one")
		return
	}
	topic, f := l.name("topic"), l.log.LogFeatures()
	if res, err := log.AppendAtomic(l.ctx(), nil); err != nil || len(res) != 0 {
		l.Errorf("AppendAtomic of nothing: %v, %v", res, err)
	}
	before := l.append(record(topic, 0, "before"), record(topic, 1, "before"))
	var batch []block.LogRecord
	for i := range 30 {
		batch = append(batch, record(topic, int32(i%3), fmt.Sprint(i)))
	}
	res, err := log.AppendAtomic(l.ctx(), batch)
	if err != nil || len(res) != len(batch) {
		l.Fatalf("AppendAtomic: %d results, %v", len(res), err)
	}
	refused := map[string]func(r *block.LogRecord){
		"delayed":  func(r *block.LogRecord) { r.DeliverAt = time.Now().Add(time.Hour) },
		"nowhere":  func(r *block.LogRecord) { r.Partition = -1 },
		"too long": func(r *block.LogRecord) { r.Data = make([]byte, f.MaxRecord+1) },
		"known":    func(r *block.LogRecord) { r.ID = "known" },
	}
	codes := map[string]fault.Code{"delayed": fault.Unsupported, "nowhere": fault.Invalid, "too long": fault.TooLarge, "known": fault.Exists}
	if f.MaxRecord == 0 {
		delete(refused, "too long")
	}
	if f.Dedup == 0 {
		delete(refused, "known")
	}
	l.append(withID(record(topic, 1, "known"), "known"))
	for what, spoil := range refused {
		bad := []block.LogRecord{record(topic, 0, what), record(topic, 1, what), record(topic, 2, what)}
		spoil(&bad[1])
		bad[0].ID = what + " 0"
		_, err := log.AppendAtomic(l.ctx(), bad)
		wantCode(l, "AppendAtomic with one record "+what, err, codes[what])
	}
	l.append(record(topic, 0, "end"), record(topic, 1, "end"), record(topic, 2, "end"))
	for p := range 3 {
		want, at := []string{"before"}, []uint64{}
		if p == 2 {
			want = nil
		} else {
			at = append(at, before[p].Position)
		}
		for i := p; i < 30; i += 3 {
			want, at = append(want, fmt.Sprint(i)), append(at, res[i].Position)
		}
		if p == 1 {
			want = append(want, "known")
		}
		got := l.read(topic, int32(p), 0, len(want)+1)
		l.same(fmt.Sprintf("partition %d", p), got, append(want, "end"), nil)
		if n := min(len(at), len(got)); !slices.Equal(positions(got)[:n], at) {
			l.Errorf("partition %d: positions %v, want %v", p, positions(got), at)
		}
	}
	if f.Dedup > 0 { // what was not taken is not known either
		again := record(topic, 0, "again")
		again.ID = "delayed 0"
		if r := l.append(again)[0]; r.Duplicate {
			l.Errorf("a record of a refused batch counts as taken")
		}
		named := records(topic, 4, "n0", "n1", "n2")
		for i := range named {
			named[i].ID = fmt.Sprint("named ", i)
		}
		if _, err := log.AppendAtomic(l.ctx(), named); err != nil {
			l.Fatalf("AppendAtomic of records with IDs: %v", err)
		}
		_, err := log.AppendAtomic(l.ctx(), named)
		wantCode(l, "the same again", err, fault.Exists)
		if r := l.append(named[1])[0]; !r.Duplicate {
			l.Errorf("a record of an accepted batch is not known")
		}
		_, err = log.AppendAtomic(l.ctx(), []block.LogRecord{withID(record(topic, 4, "x"), "twice"), withID(record(topic, 4, "x"), "twice")})
		wantCode(l, "AppendAtomic with one ID twice", err, fault.Exists)
		l.append(record(topic, 4, "end"))
		l.same("a partition of records with IDs", l.read(topic, 4, 0, 4), []string{"n0", "n1", "n2", "end"}, nil)
	}
	_, err = log.AppendAtomic(l.ctx(), []block.LogRecord{record(l.name("x"), 0, "x"), record(l.name("y"), 0, "y")})
	if err != nil {
		wantCode(l, "AppendAtomic to two topics", err, fault.Unsupported)
		for _, t := range []string{l.name("x"), l.name("y")} {
			if b := l.bounds(t, 0); b.First != b.Next {
				l.Errorf("AppendAtomic to two topics was refused, and %s holds %+v", t, b)
			}
		}
	}
}

func logTooLarge(l *logTest) {
	limit := l.log.LogFeatures().MaxRecord
	if limit == 0 {
		notOffered(l.T, "records have no fixed bound")
		return
	}
	topic := l.name("topic")
	big := record(topic, 0, "")
	big.Data = make([]byte, limit+1)
	res := l.log.Append(l.ctx(), []block.LogRecord{record(topic, 0, "before"), big, record(topic, 0, "behind"), record(topic, 1, "elsewhere")})
	if len(res) != 4 || res[0].Err != nil || res[2].Err != nil || res[3].Err != nil {
		l.Fatalf("Append with one record over the limit: %v, want the others accepted", res)
	}
	wantCode(l, "a record over the limit", res[1].Err, fault.TooLarge)
	l.same("around it", l.read(topic, 0, 0, 2), []string{"before", "behind"}, []uint64{res[0].Position, res[2].Position})
	big.Data, big.Partition = big.Data[:limit], 2
	l.append(big)
	if got := l.read(topic, 2, 0, 1); len(got) == 1 && len(got[0].Data) != limit {
		l.Errorf("a record of %d bytes, the limit, came as %d", limit, len(got[0].Data))
	}
}

func logKeeper(l *logTest) {
	k, ok := l.log.(block.LogKeeper)
	if !ok {
		notOffered(l.T, "records stay as long as the broker's own limits say")
		return
	}
	topic, want := l.name("topic"), numbers("m", 50)
	k.Consumed(topic, "early", 0, 0)
	at := resultPositions(l.append(records(topic, 0, want...)...))
	k.Consumed(topic, "early", 0, at[30])
	k.Consumed(topic, "late", 0, 0)
	k.Consumed(topic, "early", 0, at[40])
	k.Consumed(topic, "late", 0, at[10])
	more := numbers("n", 10)
	at = append(at, resultPositions(l.append(records(topic, 0, more...)...))...)
	l.same("what one of two groups has not consumed", l.read(topic, 0, at[10], 50), append(slices.Clone(want[10:]), more...), at[10:])
	k.Consumed(topic, "late", 0, at[59]+1)
	k.Consumed(topic, "early", 0, 1<<60)
	res := l.append(record(topic, 0, "end"))
	l.same("when all is consumed", l.read(topic, 0, res[0].Position, 1), []string{"end"}, nil)
}

func logContext(l *logTest) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	topic := l.name("topic")
	l.append(record(topic, 0, "one"))
	start := time.Now()
	res := l.log.Append(ended, records(topic, 0, "x", "y"))
	if len(res) != 2 {
		l.Fatalf("Append with an ended context = %v, want two results", res)
	}
	for _, r := range res {
		wantCode(l, "Append with an ended context", r.Err, fault.Canceled)
	}
	_, err := l.log.OpenReader(ended, topic, 0, 0, block.ReadOptions{})
	wantCode(l, "OpenReader with an ended context", err, fault.Canceled)
	_, err = l.log.Bounds(ended, topic, []int32{0})
	wantCode(l, "Bounds with an ended context", err, fault.Canceled)
	_, err = l.log.PositionAt(ended, topic, 0, start)
	wantCode(l, "PositionAt with an ended context", err, fault.Canceled)
	wantCode(l, "Ping with an ended context", l.log.Ping(ended), fault.Canceled)
	if a, ok := l.log.(block.LogAtomic); ok {
		_, err = a.AppendAtomic(ended, records(topic, 0, "x", "y"))
		wantCode(l, "AppendAtomic with an ended context", err, fault.Canceled)
	}
	if took := time.Since(start); took > 3*time.Second {
		l.Errorf("calls with an ended context took %v", took)
	}
	l.append(record(topic, 0, "two"))
	l.same("what was appended with a live context", l.read(topic, 0, 0, 2), []string{"one", "two"}, nil)
}

func logClose(l *logTest) {
	c := l.client()
	topic := l.name("topic")
	l.append(record(topic, 0, "one"))
	waiting := l.reader(c, topic, 1, 0)
	idle := l.reader(c, topic, 0, 0)
	done := make(chan error, 1)
	go func() {
		_, err := waiting.Next(l.ctx(), 1, 100)
		done <- err
	}()
	time.Sleep(20 * time.Millisecond) // most likely it waits by now
	for i := range 2 {
		if err := c.Close(l.ctx()); err != nil {
			l.Errorf("Close number %d: %v", i+1, err)
		}
	}
	select {
	case err := <-done:
		wantCode(l, "a Next ended by Close", err, fault.Unavailable)
	case <-time.After(patience):
		l.Fatalf("Next goes on after Close")
	}
	for _, r := range []block.LogReader{waiting, idle} {
		_, err := r.Next(l.ctx(), 1, 100)
		wantCode(l, "Next after Close", err, fault.Unavailable)
		r.Close()
	}
	for _, r := range c.Append(l.ctx(), records(topic, 0, "x", "y")) {
		wantCode(l, "Append after Close", r.Err, fault.Unavailable)
	}
	_, err := c.OpenReader(l.ctx(), topic, 0, 0, block.ReadOptions{})
	wantCode(l, "OpenReader after Close", err, fault.Unavailable)
	_, err = c.Bounds(l.ctx(), topic, []int32{0})
	wantCode(l, "Bounds after Close", err, fault.Unavailable)
	_, err = c.PositionAt(l.ctx(), topic, 0, time.Now())
	wantCode(l, "PositionAt after Close", err, fault.Unavailable)
	wantCode(l, "Ping after Close", c.Ping(l.ctx()), fault.Unavailable)
	if a, ok := c.(block.LogAtomic); ok {
		_, err = a.AppendAtomic(l.ctx(), records(topic, 0, "x"))
		wantCode(l, "AppendAtomic after Close", err, fault.Unavailable)
	}
	if k, ok := c.(block.LogKeeper); ok {
		k.Consumed(topic, "group", 0, 0) // harmless
	}
	c.LogFeatures() // as well
	l.append(record(topic, 0, "two"))
	l.same("what the other client sees", l.read(topic, 0, 0, 2), []string{"one", "two"}, nil)
}
