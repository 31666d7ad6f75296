//go:build unix

package nats_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// killServing kills the node once it serves: right after a kill there may be none yet.
func killServing(t testing.TB, dir string, l block.Log) {
	t.Helper()
	waitFor(t, "a node", func() bool { return l.Ping(t.Context()) == nil })
	killNode(t, dir)
}

// killAmid kills the node several times, each time once as much more was done as says.
func killAmid(t testing.TB, dir string, times int, done *atomic.Int64, enough int64) {
	t.Helper()
	for range times {
		from := done.Load()
		waitFor(t, "some more work", func() bool { return done.Load() >= from+enough })
		killNode(t, dir)
	}
	from := done.Load()
	waitFor(t, "work after the last kill", func() bool { return done.Load() >= from+enough })
}

// Nothing acknowledged is lost when the node is killed while records are appended and read, and a
// reader goes on by itself without a gap and without a repetition.
func TestKilledNodeLosesNoRecords(t *testing.T) {
	dir := nodeDir(t)
	l := embeddedLog(t, dir, "pubsub")
	defer l.Close(context.Background())
	other := embeddedLog(t, dir, "pubsub") // reads over its own connection
	defer other.Close(context.Background())
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	const partitions = 3
	stop := make(chan struct{})
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	acked := make([]map[string]uint64, partitions) // position of each record known to be stored
	var done atomic.Int64
	var writing sync.WaitGroup
	for p := range partitions {
		acked[p] = map[string]uint64{}
		writing.Go(func() {
			for n := 0; running(); n += 5 {
				batch := make([]block.LogRecord, 5)
				for i := range batch {
					batch[i] = rec("t", int32(p), strconv.Itoa(n+i))
				}
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				for i, res := range l.Append(ctx, batch) {
					switch {
					case res.Err == nil:
						acked[p][string(batch[i].Data)] = res.Position
						done.Add(1)
					case fault.Of(res.Err) != fault.Unavailable:
						t.Errorf("Append: %v (%v), want success or unavailable", res.Err, fault.Of(res.Err))
					}
				}
				cancel()
				time.Sleep(time.Millisecond)
			}
		})
	}
	var reading sync.WaitGroup
	got := make([][]block.LogRecord, partitions)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for p := range partitions {
		r := reader(t, other, "t", int32(p), 0, block.ReadOptions{Messages: 16})
		reading.Go(func() {
			for {
				recs, err := r.Next(ctx, 7, 1<<20)
				if err != nil {
					t.Errorf("Next of partition %d: %v", p, err)
					return
				}
				got[p] = append(got[p], recs...)
				if string(recs[len(recs)-1].Data) == "end" {
					return
				}
			}
		})
	}
	killAmid(t, dir, 4, &done, 300)
	close(stop)
	writing.Wait()
	killServing(t, dir, l)
	for p := range partitions {
		waitFor(t, "the last record", func() bool {
			return l.Append(t.Context(), []block.LogRecord{rec("t", int32(p), "end")})[0].Err == nil
		})
	}
	reading.Wait()
	for p := range partitions {
		seen := map[string]uint64{}
		var before uint64
		for _, r := range got[p] {
			if r.Position <= before {
				t.Fatalf("partition %d: position %d came after %d", p, r.Position, before)
			}
			before = r.Position
			seen[string(r.Data)] = r.Position
		}
		for data, at := range acked[p] {
			if seen[data] != at {
				t.Errorf("partition %d: record %s was acknowledged at %d and read at %d", p, data, at, seen[data])
			}
		}
		// What another reader finds is the same.
		all := read(t, reader(t, l, "t", int32(p), 0, block.ReadOptions{}), len(got[p]))
		for i, r := range all {
			if r.Position != got[p][i].Position || string(r.Data) != string(got[p][i].Data) {
				t.Fatalf("partition %d: record %d was read as %s at %d, and is %s at %d", p, i, got[p][i].Data, got[p][i].Position, r.Data, r.Position)
			}
		}
	}
}

// Delayed records and what is known of IDs outlive the node.
func TestKilledNodeKeepsDelayedRecordsAndIDs(t *testing.T) {
	dir := nodeDir(t)
	l := embeddedLog(t, dir, "pubsub")
	defer l.Close(context.Background())
	retry := func(recs ...block.LogRecord) []block.AppendResult {
		t.Helper()
		var out []block.AppendResult
		waitFor(t, "an answer", func() bool { // calls under way fail when the node is killed
			out = l.Append(t.Context(), recs)
			return !slices.ContainsFunc(out, func(r block.AppendResult) bool { return r.Err != nil })
		})
		return out
	}
	start := time.Now()
	var recs []block.LogRecord
	for i := range 8 {
		r := rec("t", 0, strconv.Itoa(i))
		r.DeliverAt, r.ID, r.Key = start.Add(time.Duration(i)*400*time.Millisecond+600*time.Millisecond), "id"+strconv.Itoa(i), "k"
		recs = append(recs, r)
	}
	retry(recs...)
	plain := rec("t", 1, "plain")
	plain.ID = "x"
	first := retry(plain)[0]
	r := reader(t, l, "t", 0, 0, block.ReadOptions{})
	for i := range 8 {
		if i%2 == 0 {
			killServing(t, dir, l)
		}
		if again := retry(plain)[0]; !again.Duplicate || again.Position != first.Position {
			t.Errorf("the same ID again: %+v, want a duplicate of the one at %d", again, first.Position)
		}
		got := read(t, r, 1)[0]
		if string(got.Data) != strconv.Itoa(i) || got.Key != "k" || time.Now().Before(recs[i].DeliverAt) {
			t.Fatalf("record %d came as %q with key %q, %v after it was due", i, got.Data, got.Key, time.Since(recs[i].DeliverAt))
		}
	}
	late := recs[0]
	late.ID, late.DeliverAt = "late", time.Now().Add(time.Hour)
	retry(late)
	killServing(t, dir, l)
	if again := retry(late)[0]; !again.Duplicate {
		t.Errorf("a delayed record again: %+v, want a duplicate", again)
	}
	end := retry(rec("t", 0, "end"))
	if got := read(t, r, 1)[0]; got.Position != end[0].Position {
		t.Errorf("after all delayed records came %q", got.Data)
	}
}

// A batch is there wholly or not at all, wherever the node is killed.
func TestKilledNodeKeepsBatchesWhole(t *testing.T) {
	dir := nodeDir(t)
	l := embeddedLog(t, dir, "pubsub")
	defer l.Close(context.Background())
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	const size = 20
	stop := make(chan struct{})
	var acked atomic.Int64
	var writing sync.WaitGroup
	writing.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			batch := make([]block.LogRecord, size)
			for i := range batch {
				batch[i] = rec("t", 0, fmt.Sprint(n, "/", i))
			}
			if _, err := l.(block.LogAtomic).AppendAtomic(t.Context(), batch); err == nil {
				acked.Add(1)
			}
		}
	})
	killAmid(t, dir, 4, &acked, 5)
	close(stop)
	writing.Wait()
	waitFor(t, "the end", func() bool { return l.Append(t.Context(), []block.LogRecord{rec("t", 0, "end")})[0].Err == nil })
	r := reader(t, l, "t", 0, 0, block.ReadOptions{})
	var whole int64
	for {
		got := read(t, r, 1)
		if string(got[0].Data) == "end" {
			break
		}
		n, _, _ := strings.Cut(string(got[0].Data), "/")
		got = append(got, read(t, r, size-1)...)
		for i, rec := range got {
			if string(rec.Data) != fmt.Sprint(n, "/", i) {
				t.Fatalf("in place of record %d of batch %s came %q: a batch is there in part", i, n, rec.Data)
			}
		}
		whole++
	}
	if whole < acked.Load() {
		t.Errorf("%d batches were acknowledged and %d are there", acked.Load(), whole)
	}
}

// Of several who count up one ledger entry, each success is one step, whatever is killed meanwhile.
func TestKilledNodeKeepsLedger(t *testing.T) {
	dir := nodeDir(t)
	key := block.LedgerKey("group", "owner")
	stop := make(chan struct{})
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	var mu sync.Mutex
	winners := map[uint64]string{} // by revision, what its writer wrote
	var done atomic.Int64
	var writing, watching sync.WaitGroup
	for w := range 3 {
		l := embeddedLog(t, dir, "pubsub")
		defer l.Close(context.Background())
		writing.Go(func() {
			for n := 0; running(); n++ {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				e, err := l.LedgerGet(ctx, key)
				if err == nil {
					value := fmt.Sprintf("%d/%d", w, n)
					res := l.LedgerPut(ctx, []block.LedgerWrite{{Key: key, Value: []byte(value), Revision: e.Revision}})[0]
					mu.Lock()
					if res.Err == nil {
						if was, taken := winners[res.Revision]; taken || res.Revision <= e.Revision {
							t.Errorf("revision %d on top of %d was given to %s, and before to %q", res.Revision, e.Revision, value, was)
						}
						winners[res.Revision] = value
						done.Add(1)
					} else if c := fault.Of(res.Err); c != fault.Conflict && c != fault.Unavailable {
						t.Errorf("LedgerPut: %v (%v)", res.Err, c)
					}
					mu.Unlock()
				}
				cancel()
			}
		})
	}
	l := embeddedLog(t, dir, "pubsub")
	defer l.Close(context.Background())
	var told struct {
		sync.Mutex
		resets int
		now    block.LedgerEntry
	}
	ctx, end := context.WithCancel(t.Context())
	defer end()
	watching.Go(func() {
		err := l.LedgerWatch(ctx, block.LedgerPrefix("group"), func(entries []block.LedgerEntry, reset bool) {
			told.Lock()
			defer told.Unlock()
			if reset {
				told.resets++
				told.now = block.LedgerEntry{}
			}
			for _, e := range entries {
				if e.Revision <= told.now.Revision {
					t.Errorf("revision %d was told after %d", e.Revision, told.now.Revision)
				}
				told.now = e
			}
		})
		if fault.Of(err) != fault.Canceled {
			t.Errorf("LedgerWatch: %v", err)
		}
	})
	waitFor(t, "the watch to begin", func() bool {
		told.Lock()
		defer told.Unlock()
		return told.resets > 0
	})
	killAmid(t, dir, 4, &done, 20)
	close(stop)
	writing.Wait()
	var now block.LedgerEntry
	waitFor(t, "the watch to be told of the last write", func() bool {
		e, err := l.LedgerGet(t.Context(), key)
		told.Lock()
		defer told.Unlock()
		now = e
		return err == nil && e.Revision != 0 && e.Revision == told.now.Revision && string(e.Value) == string(told.now.Value)
	})
	end()
	watching.Wait()
	mu.Lock()
	defer mu.Unlock()
	told.Lock()
	defer told.Unlock()
	for revision := range winners {
		if revision > now.Revision {
			t.Errorf("revision %d was acknowledged and the entry is at %d", revision, now.Revision)
		}
	}
	if was, mine := winners[now.Revision]; mine && was != string(now.Value) {
		t.Errorf("the entry is %q, and %q was acknowledged at its revision", now.Value, was)
	}
	if told.resets < 2 {
		t.Errorf("the watch began %d times, want it to begin anew", told.resets)
	}
}
