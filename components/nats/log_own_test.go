package nats_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats"
)

func appended(t testing.TB, l block.Log, recs ...block.LogRecord) []block.AppendResult {
	t.Helper()
	out := l.Append(t.Context(), recs)
	for i, r := range out {
		if r.Err != nil {
			t.Fatalf("Append of record %d: %v (%v)", i, r.Err, fault.Of(r.Err))
		}
	}
	return out
}

// numbered are records with the numbers from first on.
func numbered(topic string, partition int32, first, n int) []block.LogRecord {
	out := make([]block.LogRecord, n)
	for i := range out {
		out[i] = rec(topic, partition, strconv.Itoa(first+i))
	}
	return out
}

func wantBodies(t testing.TB, what string, got []block.LogRecord, want ...string) {
	t.Helper()
	var bodies []string
	for _, r := range got {
		bodies = append(bodies, string(r.Data))
	}
	if fmt.Sprint(bodies) != fmt.Sprint(want) {
		t.Fatalf("%s: read %q, want %q", what, bodies, want)
	}
}

func put(t testing.TB, l block.Log, key, value string, revision uint64) uint64 {
	t.Helper()
	r := l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Value: []byte(value), Revision: revision}})[0]
	if r.Err != nil {
		t.Fatalf("LedgerPut of %q: %v", key, r.Err)
	}
	return r.Revision
}

func TestLogConfigIsValidated(t *testing.T) {
	for key, value := range map[string]string{"partitions": "0", "sessionTTL": "999ms"} {
		if f := conf.Decode(conf.Items(key, value), nats.DefaultEmbeddedPubSubConfig()); len(f) != 1 || f[0].Key != key {
			t.Errorf("%s %s: findings %v, want one", key, value, f)
		}
	}
	if f := conf.Decode(conf.Items("partitions", "1025"), nats.DefaultEmbeddedPubSubConfig()); len(f) != 1 {
		t.Errorf("1025 partitions: findings %v, want one", f)
	}
	l := serverLog(t, "nats://127.0.0.1:1", "c", "partitions", "7", "sessionTTL", "9s", "dedupWindow", "5s")
	defer l.Close(t.Context())
	if f := l.LogFeatures(); f.Partitions != 7 || f.SessionTTL != 9*time.Second || f.Dedup != 5*time.Second || f.MaxRecord != 0 {
		t.Errorf("features %+v are not those of the configuration", f)
	}
}

// Readers go on after connections were cut, without a gap or a repetition, however small what they
// fetch ahead is, and however soon they park.
func TestReadersSurviveCutConnections(t *testing.T) {
	for _, park := range []time.Duration{time.Minute, 40 * time.Millisecond} {
		t.Run(park.String(), func(t *testing.T) { cutConnections(t, park) })
	}
}

func cutConnections(t *testing.T, park time.Duration) {
	srv := startServer(t)
	writer := serverLog(t, srv.ClientURL(), "pubsub")
	defer writer.Close(context.Background())
	g := newGate(t, srv.Addr().String())
	l := serverLog(t, "nats://"+g.l.Addr().String(), "pubsub")
	defer l.Close(context.Background())
	nats.ParkAfter(l, park)
	const readers, all = 8, 400
	var wg sync.WaitGroup
	for i := range readers {
		r := reader(t, l, "t", 0, 0, block.ReadOptions{Messages: 1 + 5*i, Bytes: 1 + 500*i})
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			for next := 0; next < all; {
				got, err := r.Next(ctx, 1+i, 1<<20)
				if err != nil {
					t.Errorf("reader %d at record %d: %v", i, next, err)
					return
				}
				for _, rec := range got {
					if string(rec.Data) != strconv.Itoa(next) {
						t.Errorf("reader %d was given %s, want %d", i, rec.Data, next)
						return
					}
					next++
				}
			}
		})
	}
	for n := 0; n < all; n += 20 {
		appended(t, writer, numbered("t", 0, n, 20)...)
		if n%160 == 0 {
			time.Sleep(100 * time.Millisecond) // long enough to park
		}
		if n%80 == 40 {
			g.set(false)
			appended(t, writer, rec("t", 1, "another partition's"))
			g.set(true)
		}
		time.Sleep(5 * time.Millisecond)
	}
	wg.Wait()
}

// A message the client lost (it drops what finds no room) is noticed and read again, and so is a
// consumer that somebody removed.
func TestReaderRepairsItself(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub")
	defer l.Close(context.Background())
	appended(t, l, numbered("t", 0, 0, 20)...)
	r := reader(t, l, "t", 0, 0, block.ReadOptions{})
	wantBodies(t, "at first", read(t, r, 1), "0")
	nats.LoseOne(t, r)
	wantBodies(t, "after a loss", read(t, r, 4), "1", "2", "3", "4")
	read(t, r, 15)

	js := admin(t, url)
	stream, err := js.Stream(t.Context(), "MECHA_LOG_pubsub")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan []block.LogRecord, 1)
	go func() {
		got, err := r.Next(t.Context(), 1, 100)
		if err != nil {
			t.Errorf("Next: %v", err)
		}
		done <- got
	}()
	names := stream.ConsumerNames(t.Context())
	for name := range names.Name() {
		if err := stream.DeleteConsumer(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	appended(t, l, rec("t", 0, "20"))
	select {
	case got := <-done:
		wantBodies(t, "after its consumer was removed", got, "20")
	case <-time.After(patience):
		t.Fatal("the reader waits although its consumer is gone")
	}
}

// The next records of a reader may go before it gets there: it goes on at the oldest kept.
func TestReaderSurvivesRetention(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub")
	defer l.Close(context.Background())
	at := appended(t, l, numbered("t", 0, 0, 100)...)
	other := appended(t, l, rec("t", 1, "other"))
	r := reader(t, l, "t", 0, 0, block.ReadOptions{Messages: 2})
	wantBodies(t, "at first", read(t, r, 2), "0", "1")
	stream, err := admin(t, url).Stream(t.Context(), "MECHA_LOG_pubsub")
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Purge(t.Context(), jetstream.WithPurgeSequence(at[50].Position)); err != nil {
		t.Fatal(err)
	}
	got := read(t, r, 1)
	for string(got[0].Data) != "50" { // what it had fetched may come still
		if n, _ := strconv.Atoi(string(got[0].Data)); n > 3 {
			t.Fatalf("read %s, want what was fetched, then 50", got[0].Data)
		}
		got = read(t, r, 1)
	}
	wantBodies(t, "behind", read(t, r, 2), "51", "52")
	wantBodies(t, "another reader", read(t, reader(t, l, "t", 0, at[3].Position, block.ReadOptions{}), 1), "50")
	b, err := l.Bounds(t.Context(), "t", []int32{1, 0, 2})
	if err != nil || b[1].First != at[50].Position || b[1].Next != at[99].Position+1 || b[0].First != other[0].Position || b[2].First != b[2].Next {
		t.Errorf("bounds are %+v, %v", b, err)
	}
	// All goes, and the reader waits for what comes.
	if err := stream.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	end := appended(t, l, rec("t", 0, "end"))
	for got = read(t, r, 1); string(got[0].Data) != "end"; got = read(t, r, 1) {
		if n, _ := strconv.Atoi(string(got[0].Data)); n > 55 {
			t.Fatalf("read %s after all was purged", got[0].Data)
		}
	}
	if b, err := l.Bounds(t.Context(), "t", []int32{0}); err != nil || b[0].First != end[0].Position {
		t.Errorf("bounds are %+v, %v; want them to begin at %d", b, err, end[0].Position)
	}
}

// A stream that was removed is made anew by whoever needs it; a reader of the old one says that it
// cannot go on, for the positions begin again.
func TestRemovedStreams(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub")
	defer l.Close(context.Background())
	js := admin(t, url)
	drop := func(names ...string) {
		t.Helper()
		for _, n := range names {
			if err := js.DeleteStream(t.Context(), n); err != nil {
				t.Fatal(err)
			}
		}
	}
	appended(t, l, numbered("t", 0, 0, 5)...)
	r := reader(t, l, "t", 0, 0, block.ReadOptions{})
	read(t, r, 5)
	key := block.LedgerKey("a", "b")
	revision := put(t, l, key, "old", 0)
	told := make(chan string, 16)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- l.LedgerWatch(ctx, block.LedgerPrefix("a"), func(entries []block.LedgerEntry, reset bool) {
			told <- fmt.Sprint(reset, len(entries))
		})
	}()
	hear := func(want ...string) {
		t.Helper()
		for {
			select {
			case got := <-told:
				if slices.Contains(want, got) {
					return
				}
			case <-time.After(patience):
				t.Fatalf("the watch was not told %q", want)
			}
		}
	}
	hear("true 1")
	drop("MECHA_LOG_pubsub", "MECHA_LEDGER_pubsub")
	hear("true 0")
	wantBodies(t, "anew", read(t, reader(t, l, "t", 0, 0, block.ReadOptions{}), len(appended(t, l, rec("t", 0, "new")))), "new")
	if _, err := r.Next(t.Context(), 1, 1); fault.Of(err) != fault.Lost {
		t.Errorf("a reader of the removed stream: %v (%v), want lost", err, fault.Of(err))
	}
	drop("MECHA_LEDGER_pubsub")
	if res := l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Value: []byte("x"), Revision: revision + 7}})[0]; fault.Of(res.Err) != fault.Conflict {
		t.Errorf("a write over what is gone: %+v, want conflict", res)
	}
	put(t, l, key, "new", 0)
	hear("false 1", "true 1") // perhaps it began anew only now
	drop("MECHA_LEDGER_pubsub")
	// A busy server that has just removed a stream was seen to answer a read from it.
	if _, err := l.LedgerGet(t.Context(), key); err != nil {
		t.Errorf("LedgerGet of what is gone: %v", err)
	}
	for _, call := range map[string]func() error{
		"Bounds":     func() error { _, err := l.Bounds(t.Context(), "t", []int32{0}); return err },
		"PositionAt": func() error { _, err := l.PositionAt(t.Context(), "t", 0, time.Now()); return err },
		"AppendAtomic": func() error {
			_, err := l.(block.LogAtomic).AppendAtomic(t.Context(), numbered("t", 0, 0, 3))
			return err
		},
	} {
		drop("MECHA_LOG_pubsub")
		if err := call(); err != nil {
			t.Errorf("%v", err)
		}
	}
	cancel()
	if err := <-done; fault.Of(err) != fault.Canceled {
		t.Errorf("LedgerWatch: %v", err)
	}
}

// Several records of one call find the stream removed: all are there once, in their order.
func TestAppendToRemovedStreamKeepsOrder(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub")
	defer l.Close(context.Background())
	appended(t, l, rec("t", 0, "old"))
	if err := admin(t, url).DeleteStream(t.Context(), "MECHA_LOG_pubsub"); err != nil {
		t.Fatal(err)
	}
	appended(t, l, numbered("t", 0, 0, 300)...)
	got := read(t, reader(t, l, "t", 0, 0, block.ReadOptions{}), 300)
	for i, r := range got {
		if string(r.Data) != strconv.Itoa(i) || r.Position != uint64(i+1) {
			t.Fatalf("record %d is %s at %d", i, r.Data, r.Position)
		}
	}
}

// The server's own message for a delayed record is never read and does not stay, whatever the
// stream's maxAge is; a TTL counts from when the record is seen.
func TestDelayedRecords(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub", "maxAge", "1s", "dedupWindow", "500ms")
	defer l.Close(context.Background())
	r := reader(t, l, "t", 0, 0, block.ReadOptions{})
	start := time.Now()
	late, mortal := rec("t", 0, "late"), rec("t", 1, "mortal")
	late.DeliverAt, mortal.DeliverAt, mortal.TTL = start.Add(2500*time.Millisecond), start.Add(200*time.Millisecond), time.Second
	appended(t, l, late, mortal)
	b, err := l.Bounds(t.Context(), "t", []int32{0, 1})
	if err != nil || b[0].First != b[0].Next || b[1].First != b[1].Next {
		t.Errorf("before they are due, partitions have bounds %+v, %v", b, err)
	}
	got := read(t, reader(t, l, "t", 1, 0, block.ReadOptions{}), 1)
	wantBodies(t, "in the other partition", got, "mortal")
	got = read(t, r, 1)
	wantBodies(t, "when it was due", got, "late")
	if d := got[0].Time.Sub(late.DeliverAt); d < 0 || d > 5*time.Second {
		t.Errorf("it became visible %v after it was due", d)
	}
	if got[0].Metadata != nil {
		t.Errorf("it has metadata %q, want none", got[0].Metadata)
	}
	waitFor(t, "the stream to forget all", func() bool {
		info, err := admin(t, url).Stream(t.Context(), "MECHA_LOG_pubsub")
		return err == nil && info.CachedInfo().State.Msgs == 0
	})
}

// The position of a record's order is not told as the record's.
func TestDuplicateOfDelayedRecord(t *testing.T) {
	l := serverLog(t, startServer(t).ClientURL(), "pubsub")
	defer l.Close(context.Background())
	plain := rec("t", 0, "x")
	plain.ID = "id"
	late := plain
	late.DeliverAt = time.Now().Add(400 * time.Millisecond)
	appended(t, l, rec("t", 0, "first"), late)
	for range 2 { // before it has come, and after
		if res := appended(t, l, plain, late); !res[0].Duplicate || !res[1].Duplicate || res[0].Position != 0 || res[1].Position != 0 {
			t.Errorf("the ID again: %+v, want duplicates whose positions nobody knows", res)
		}
		wantBodies(t, "the partition", read(t, reader(t, l, "t", 0, 0, block.ReadOptions{}), 2), "first", "x")
	}
	plain.ID = "other"
	first := appended(t, l, plain)
	if res := appended(t, l, plain, late); res[0].Position != first[0].Position || !res[0].Duplicate {
		t.Errorf("a plain ID again: %+v, want a duplicate of the one at %d", res[0], first[0].Position)
	}
}

// Records that are larger than what a reader fetches ahead come one by one, among others.
func TestReaderOfLargeRecords(t *testing.T) {
	l := serverLog(t, startServer(t).ClientURL(), "pubsub")
	defer l.Close(context.Background())
	var sizes []int
	var recs []block.LogRecord
	for i := range 40 {
		sizes = append(sizes, []int{10, 5000, 100, 300_000, 2000}[i%5])
		recs = append(recs, rec("t", 0, strings.Repeat("x", sizes[i])))
	}
	appended(t, l, recs...)
	for _, opts := range []block.ReadOptions{{Messages: 1, Bytes: 1}, {Messages: 4, Bytes: 4000}, {Messages: 7, Bytes: 100_000}, {}} {
		for i, r := range read(t, reader(t, l, "t", 0, 0, opts), len(recs)) {
			if len(r.Data) != sizes[i] {
				t.Fatalf("with %+v record %d has %d bytes, want %d", opts, i, len(r.Data), sizes[i])
			}
		}
	}
}

// What a foreign client put into a partition is read too.
func TestForeignRecords(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub")
	defer l.Close(context.Background())
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := natsgo.NewMsg("mecha.log.pubsub.t.0")
	m.Data, m.Header = []byte("x"), natsgo.Header{"Content-Type": {"text/plain"}}
	if _, err := admin(t, url).PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	got := read(t, reader(t, l, "t", 0, 0, block.ReadOptions{}), 1)
	if string(got[0].Data) != "x" || got[0].Metadata["Content-Type"] != "text/plain" {
		t.Errorf("read %+v", got[0])
	}
}

// Streams that cannot do what is promised are named, with what they lack.
func TestUnsuitableStreams(t *testing.T) {
	for name, tc := range map[string]struct {
		config jetstream.StreamConfig
		says   string
	}{
		"no schedules":     {jetstream.StreamConfig{Name: "MECHA_LOG_pubsub", Subjects: []string{"mecha.log.pubsub.>"}, Discard: jetstream.DiscardNew, AllowDirect: true}, "schedules"},
		"a work queue":     {jetstream.StreamConfig{Name: "MECHA_LOG_pubsub", Subjects: []string{"mecha.log.pubsub.*.*", "mecha.log.pubsub.*.*.at.*"}, Retention: jetstream.WorkQueuePolicy}, "retention"},
		"a ledger of age":  {jetstream.StreamConfig{Name: "MECHA_LEDGER_pubsub", Subjects: []string{"mecha.ledger.pubsub.>"}, MaxAge: time.Hour}, "age"},
		"a ledger of size": {jetstream.StreamConfig{Name: "MECHA_LEDGER_pubsub", Subjects: []string{"mecha.ledger.pubsub.>"}, MaxBytes: 1000}, "size"},
	} {
		t.Run(name, func(t *testing.T) {
			url := startServer(t).ClientURL()
			if _, err := admin(t, url).CreateStream(t.Context(), tc.config); err != nil {
				t.Fatal(err)
			}
			l := serverLog(t, url, "pubsub")
			defer l.Close(context.Background())
			for what, err := range map[string]error{"Ping": l.Ping(t.Context()), "Append": l.Append(t.Context(), numbered("t", 0, 0, 1))[0].Err} {
				if fault.Of(err) != fault.Unsupported || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%s: %v (%v), want unsupported because of %s", what, err, fault.Of(err), tc.says)
				}
			}
		})
	}
	t.Run("what can be mended is", func(t *testing.T) {
		url := startServer(t).ClientURL()
		if _, err := admin(t, url).CreateStream(t.Context(), jetstream.StreamConfig{Name: "MECHA_LOG_pubsub", Subjects: []string{"mecha.log.pubsub.*.*"}}); err != nil {
			t.Fatal(err)
		}
		l := serverLog(t, url, "pubsub")
		defer l.Close(context.Background())
		late := rec("t", 0, "x")
		late.DeliverAt = time.Now().Add(300 * time.Millisecond)
		appended(t, l, late)
		wantBodies(t, "delayed", read(t, reader(t, l, "t", 0, 0, block.ReadOptions{}), 1), "x")
	})
}

// A stream takes more readers than servers allow by default; where the account allows fewer, one too
// many is told so.
func TestManyReaders(t *testing.T) {
	srv := startServer(t)
	l := serverLog(t, srv.ClientURL(), "pubsub")
	defer l.Close(context.Background())
	if err := l.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	const many = server.JSDefaultMaxConsumersPerStream + 20
	start := time.Now()
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			for p := w; p < many; p += 20 {
				reader(t, l, "t", int32(p), 0, block.ReadOptions{Messages: 4})
			}
		})
	}
	wg.Wait()
	t.Logf("%d readers were opened in %v", many, time.Since(start))
}

// An account's own limit of consumers is kept.
func TestReadersOfSmallAccount(t *testing.T) {
	srv := startServer(t)
	acc, err := srv.LookupAccount("$G")
	if err != nil {
		t.Fatal(err)
	}
	small := server.JetStreamAccountLimits{MaxMemory: -1, MaxStore: -1, MaxStreams: -1, MaxConsumers: 3}
	if err := acc.UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{"": small}); err != nil {
		t.Fatal(err)
	}
	l := serverLog(t, srv.ClientURL(), "pubsub")
	defer l.Close(context.Background())
	for p := range small.MaxConsumers {
		reader(t, l, "t", int32(p), 0, block.ReadOptions{})
	}
	_, err = l.OpenReader(t.Context(), "t", 99, 0, block.ReadOptions{})
	if fault.Of(err) != fault.Exhausted {
		t.Errorf("one reader too many: %v (%v), want exhausted", err, fault.Of(err))
	}
}

// What a reader gives belongs to the caller; the next call must not touch it.
func TestRecordsBelongToCaller(t *testing.T) {
	l := serverLog(t, startServer(t).ClientURL(), "pubsub")
	defer l.Close(context.Background())
	appended(t, l, numbered("t", 0, 0, 50)...)
	r := reader(t, l, "t", 0, 0, block.ReadOptions{Messages: 5})
	var kept []block.LogRecord
	for len(kept) < 50 {
		got, err := r.Next(t.Context(), 3, 1000)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, got...)
	}
	for i, k := range kept {
		if !bytes.Equal(k.Data, []byte(strconv.Itoa(i))) {
			t.Fatalf("record %d became %q", i, k.Data)
		}
	}
}

// A request ends without a word of the server when its last byte is used up, whatever number that is.
func TestReaderOfExactBytes(t *testing.T) {
	l := serverLog(t, startServer(t).ClientURL(), "pubsub")
	defer l.Close(context.Background())
	const all = 40
	appended(t, l, numbered("t", 0, 1000, all)...)
	for size := 300; size < 520; size++ {
		r := reader(t, l, "t", 0, 0, block.ReadOptions{Messages: 20, Bytes: size})
		read(t, r, all)
		r.Close()
	}
}
