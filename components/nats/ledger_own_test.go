package nats_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// An entry is made again on top of its removal, before and after the server has forgotten that one,
// and removals do not stay.
func TestLedgerMarkers(t *testing.T) {
	url := startServer(t).ClientURL()
	l := serverLog(t, url, "pubsub")
	defer l.Close(context.Background())
	stream := func() jetstream.Stream {
		s, err := admin(t, url).Stream(t.Context(), "MECHA_LEDGER_pubsub")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	key := block.LedgerKey("g", "p")
	const subject = "mecha.ledger.pubsub.g.p"
	revision := put(t, l, key, "0", 0)
	for i := range 6 {
		res := l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Revision: revision, Remove: true}})[0]
		if res.Err != nil || res.Revision != 0 {
			t.Fatalf("removal: %+v", res)
		}
		m, err := stream().GetLastMsgForSubject(t.Context(), subject)
		if err != nil || m.Header.Get("Nats-TTL") != "1h" || len(m.Data) != 0 {
			t.Fatalf("the removal left %+v, %v; want a marker that ends", m, err)
		}
		if i%2 == 1 { // as if an hour had passed
			if err := stream().Purge(t.Context(), jetstream.WithPurgeSubject(subject)); err != nil {
				t.Fatal(err)
			}
		}
		old := revision
		if revision = put(t, l, key, strconv.Itoa(i), 0); revision <= old {
			t.Errorf("revision %d came after %d", revision, old)
		}
		if res := l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Revision: old}, {Key: key, Revision: old, Remove: true}, {Key: key}}); fault.Of(res[0].Err) != fault.Conflict || fault.Of(res[1].Err) != fault.Conflict || fault.Of(res[2].Err) != fault.Conflict {
			t.Errorf("writes over another revision: %+v, want conflicts", res)
		}
	}
}

// Of those who make an entry that was just removed only one succeeds.
func TestLedgerRaceOnRemoved(t *testing.T) {
	l := serverLog(t, startServer(t).ClientURL(), "pubsub")
	defer l.Close(context.Background())
	key := block.LedgerKey("g", "p")
	for range 30 {
		revision := put(t, l, key, "x", 0)
		if r := l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Revision: revision, Remove: true}})[0]; r.Err != nil {
			t.Fatal(r.Err)
		}
		var mu sync.Mutex
		var won []uint64
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				r := l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Value: []byte("y")}})[0]
				mu.Lock()
				defer mu.Unlock()
				if r.Err == nil {
					won = append(won, r.Revision)
				} else if fault.Of(r.Err) != fault.Conflict {
					t.Errorf("LedgerPut: %v", r.Err)
				}
			})
		}
		wg.Wait()
		e, err := l.LedgerGet(t.Context(), key)
		if err != nil || len(won) != 1 || e.Revision != won[0] {
			t.Fatalf("%d writers made the entry (%v), which is %+v, %v", len(won), won, e, err)
		}
		if r := l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Revision: e.Revision, Remove: true}})[0]; r.Err != nil {
			t.Fatal(r.Err)
		}
	}
}

// A watch whose connection was lost begins anew with all there is.
func TestLedgerWatchSurvivesCutConnections(t *testing.T) {
	srv := startServer(t)
	writer := serverLog(t, srv.ClientURL(), "pubsub")
	defer writer.Close(context.Background())
	g := newGate(t, srv.Addr().String())
	l := serverLog(t, "nats://"+g.l.Addr().String(), "pubsub")
	defer l.Close(context.Background())
	var mu sync.Mutex
	now, resets := map[string]string{}, 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- l.LedgerWatch(ctx, block.LedgerPrefix("g"), func(entries []block.LedgerEntry, reset bool) {
			mu.Lock()
			defer mu.Unlock()
			if reset {
				clear(now)
				resets++
			}
			for _, e := range entries {
				if delete(now, e.Key); !e.Removed {
					now[e.Key] = string(e.Value)
				}
			}
		})
	}()
	want := map[string]string{}
	revisions := map[string]uint64{}
	for round := range 5 {
		waitFor(t, "the watch", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return resets > round && fmt.Sprint(now) == fmt.Sprint(want)
		})
		g.set(false)
		for i := range 600 { // more than one request
			key := block.LedgerKey("g", strconv.Itoa(i))
			w := block.LedgerWrite{Key: key, Value: fmt.Append(nil, round, i), Revision: revisions[key]}
			if w.Remove = (i+round)%7 == 0 && w.Revision != 0; w.Remove {
				w.Value = nil
			}
			r := writer.LedgerPut(t.Context(), []block.LedgerWrite{w})[0]
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			if revisions[key] = r.Revision; w.Remove {
				delete(want, key)
			} else {
				want[key] = string(w.Value)
			}
		}
		put(t, writer, block.LedgerKey("other", strconv.Itoa(round)), "x", 0)
		g.set(true)
	}
	waitFor(t, "the watch, in the end", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return fmt.Sprint(now) == fmt.Sprint(want)
	})
	cancel()
	if err := <-done; fault.Of(err) != fault.Canceled {
		t.Errorf("LedgerWatch: %v", err)
	}
}
