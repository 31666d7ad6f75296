package nats_test

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// startCluster runs three servers as one.
func startCluster(t *testing.T) []*server.Server {
	t.Helper()
	ports := make([]int, 3)
	var routes []*url.URL
	for i := range ports {
		ports[i] = servers.Port(t)
		routes = append(routes, &url.URL{Scheme: "nats", Host: "127.0.0.1:" + strconv.Itoa(ports[i])})
	}
	all := make([]*server.Server, len(ports))
	for i, port := range ports {
		srv, err := server.NewServer(&server.Options{ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
			Cluster: server.ClusterOpts{Name: "c", Host: "127.0.0.1", Port: port}, Routes: routes})
		if err != nil {
			t.Fatal(err)
		}
		srv.Start()
		t.Cleanup(func() {
			srv.Shutdown()
			srv.WaitForShutdown()
		})
		all[i] = srv
	}
	waitFor(t, "the cluster", func() bool {
		for _, srv := range all {
			if srv.ReadyForConnections(time.Second) && srv.JetStreamIsLeader() {
				return srv.JetStreamClusterPeers() != nil && len(srv.JetStreamClusterPeers()) == len(all)
			}
		}
		return false
	})
	return all
}

// In a replicated bucket any replica may answer reads, and a leader may die: scans leave out
// nothing all the same, fences hold, and watches go on.
func TestReplicatedBucket(t *testing.T) {
	all := startCluster(t)
	var urls []string
	for _, srv := range all {
		urls = append(urls, srv.ClientURL())
	}
	open := func() block.State {
		s := serverState(t, strings.Join(urls, ","), "store", "replicas", "3")
		t.Cleanup(func() { _ = s.Close(context.Background()) })
		waitFor(t, "the bucket, of which a server of the cluster may hear late", func() bool {
			_, _, err := s.(block.StateScan).Scan(t.Context(), "ready", "", 1, true)
			return err == nil && s.Set(t.Context(), block.StateWrite{Key: "ready"}) == nil
		})
		return s
	}
	s := open()

	const keys = 120
	for i := range keys {
		set(t, s, fmt.Sprint("a||", i), "0")
	}
	stop := make(chan struct{})
	var writing1 sync.WaitGroup
	writing1.Go(func() {
		for n := 1; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			if err := s.Set(context.Background(), block.StateWrite{Key: fmt.Sprint("a||", n*7%keys), Value: []byte("v")}); err != nil {
				t.Errorf("Set: %v", err)
			}
		}
	})
	reader := open()
	for _, limit := range []int{5, 50} {
		if items, pages := scanned(t, reader, "a||", limit); len(items) != keys {
			t.Errorf("%d of %d items were given in %d pages", len(items), keys, pages)
		}
	}
	close(stop)
	writing1.Wait()

	// Owners one after the other, each of which writes until it is told that it is not owner any
	// more: a number is never followed by a smaller one.
	var owner atomic.Uint64
	var owners sync.WaitGroup
	for range 3 {
		store := open()
		owners.Go(func() {
			for range 4 {
				epoch := owner.Add(1)
				for range 10 {
					err := store.(block.StateFence).TransactFenced(context.Background(), "a||fence", epoch, []block.StateOp{writing("owner", strconv.FormatUint(epoch, 10))})
					if fault.ReasonOf(err) == fault.Fenced {
						break
					}
					item, readErr := store.Get(context.Background(), "owner", block.StateRead{Strong: true})
					now, _ := strconv.ParseUint(string(item.Value), 10, 64)
					if err != nil || readErr != nil || now < epoch {
						t.Errorf("after a write with %d the owner is %d: %v, %v", epoch, now, err, readErr)
					}
				}
			}
		})
	}
	owners.Wait()
	wantFenced(t, s, "a||fence", owner.Load()-1, writing("owner", "late"))

	w := watch(t, s, "b||")
	set(t, s, "b||1", "v")
	w.hears(map[string]string{"b||1": "v"})
	for _, srv := range all {
		if srv.JetStreamIsStreamLeader("$G", "KV_store") {
			srv.Shutdown()
			srv.WaitForShutdown()
			break
		}
	}
	waitFor(t, "a write to the new leader", func() bool {
		return s.Set(t.Context(), block.StateWrite{Key: "b||2", Value: []byte("v")}) == nil
	})
	w.hears(map[string]string{"b||1": "v", "b||2": "v"})
	w.endsQuietly()
}

// In a replicated log any replica may answer reads and a server may die, with the consumers it had:
// entries are counted up one by one, readers leave out nothing and give nothing twice, watches go
// on.
func TestReplicatedLog(t *testing.T) {
	all := startCluster(t)
	var urls []string
	for _, srv := range all {
		urls = append(urls, srv.ClientURL())
	}
	open := func() block.Log {
		l := serverLog(t, strings.Join(urls, ","), "log", "replicas", "3")
		t.Cleanup(func() { _ = l.Close(context.Background()) })
		waitFor(t, "the streams", func() bool { return l.Ping(t.Context()) == nil })
		return l
	}
	l := open()
	waitFor(t, "a first record, for which a stream must have a leader", func() bool {
		return l.Append(t.Context(), []block.LogRecord{rec("t", 9, "x")})[0].Err == nil
	})
	key := block.LedgerKey("g", "counter")
	waitFor(t, "a first entry", func() bool {
		return l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Value: []byte("0")}})[0].Err == nil
	})

	told := make(chan string, 1000)
	ctx, cancel := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() {
		_ = l.LedgerWatch(ctx, block.LedgerPrefix("g"), func(entries []block.LedgerEntry, _ bool) {
			for _, e := range entries {
				told <- string(e.Value)
			}
		})
	})
	const counters, steps = 3, 15
	var counting sync.WaitGroup
	for range counters {
		c := open()
		counting.Go(func() {
			for done := 0; done < steps; {
				e, err := c.LedgerGet(context.Background(), key)
				if err != nil {
					t.Errorf("LedgerGet: %v", err)
					return
				}
				n, _ := strconv.Atoi(string(e.Value))
				r := c.LedgerPut(context.Background(), []block.LedgerWrite{{Key: key, Value: []byte(strconv.Itoa(n + 1)), Revision: e.Revision}})[0]
				switch {
				case r.Err == nil:
					done++
					if now, err := c.LedgerGet(context.Background(), key); err != nil || now.Revision < r.Revision {
						t.Errorf("after revision %d was accepted the entry is at %d, %v", r.Revision, now.Revision, err)
					}
				case fault.Of(r.Err) != fault.Conflict:
					t.Errorf("LedgerPut: %v", r.Err)
					return
				}
			}
		})
	}
	counting.Wait()
	if e, err := l.LedgerGet(t.Context(), key); err != nil || string(e.Value) != strconv.Itoa(counters*steps) {
		t.Errorf("after %d steps the counter is %q, %v", counters*steps, e.Value, err)
	}

	const partitions, half = 4, 60
	reading := open()
	got := make([][]block.LogRecord, partitions)
	var readers sync.WaitGroup
	for p := range partitions {
		r := reader(t, reading, "t", int32(p), 0, block.ReadOptions{})
		readers.Go(func() { got[p] = read(t, r, 2*half) })
	}
	for n := range half {
		appended(t, l, rec("t", int32(n%partitions), "x"))
		for p := range partitions {
			appended(t, l, rec("t", int32(p), strconv.Itoa(n)))
		}
		if b, err := l.Bounds(t.Context(), "t", []int32{int32(n % partitions)}); err != nil || b[0].Next < uint64(n) {
			t.Errorf("bounds are %+v, %v", b, err)
		}
	}
	for _, srv := range all {
		if srv.JetStreamIsStreamLeader("$G", "MECHA_LOG_log") {
			srv.Shutdown()
			srv.WaitForShutdown()
			break
		}
	}
	for n := half; n < 2*half; n++ {
		for p := range partitions {
			waitFor(t, "a record to the new leader", func() bool {
				return l.Append(t.Context(), []block.LogRecord{rec("t", int32(p), strconv.Itoa(n))})[0].Err == nil
			})
		}
	}
	readers.Wait()
	for p := range partitions {
		var before uint64
		for _, r := range got[p] {
			if r.Position <= before {
				t.Fatalf("partition %d: position %d came after %d", p, r.Position, before)
			}
			before = r.Position
		}
	}
	waitFor(t, "a write to the ledger", func() bool {
		e, err := l.LedgerGet(t.Context(), key)
		if err != nil {
			return false
		}
		return l.LedgerPut(t.Context(), []block.LedgerWrite{{Key: key, Value: []byte("end"), Revision: e.Revision}})[0].Err == nil
	})
	for deadline := time.After(patience); ; {
		select {
		case v := <-told:
			if v == "end" {
				cancel()
				work.Wait()
				return
			}
		case <-deadline:
			t.Fatal("the watch was not told of the last write")
		}
	}
}
