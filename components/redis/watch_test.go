//go:build unix

package redis_test

import (
	"context"
	"maps"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/redis"
	"github.com/mecha-project/mecha/test/servers"
)

// watched is a running Watch and what it told, per key.
type watched struct {
	t    testing.TB
	stop context.CancelFunc
	done chan error

	mu    sync.Mutex
	items map[string]string // guarded by mu; "-" for removed
	calls int               // guarded by mu
}

func watch(t testing.TB, s block.State, prefix string, busy func()) *watched {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	w := &watched{t: t, stop: stop, done: make(chan error, 1), items: map[string]string{}}
	started := make(chan struct{})
	go func() {
		w.done <- s.(block.StateWatch).Watch(ctx, prefix, func() { close(started) }, func(items []block.StateItem) {
			if busy != nil {
				busy()
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.calls++
			for _, it := range items {
				w.items[it.Key] = string(it.Value)
				if !it.Exists {
					w.items[it.Key] = "-"
				}
			}
		})
	}()
	t.Cleanup(stop)
	select {
	case <-started:
	case err := <-w.done:
		t.Fatalf("Watch: %v", err)
	case <-time.After(patience):
		t.Fatal("Watch does not start")
	}
	return w
}

func (w *watched) told() map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.items)
}

func (w *watched) hears(want map[string]string) {
	w.t.Helper()
	defer func() {
		if w.t.Failed() {
			w.t.Logf("was told %v, want %v", w.told(), want)
		}
	}()
	waitFor(w.t, "the changes to be told", func() bool {
		select {
		case err := <-w.done:
			w.done <- err
			w.t.Fatalf("Watch ended: %v", err)
		default:
		}
		return maps.Equal(w.told(), want)
	})
}

// ends waits for the end of a watch that may have missed something.
func (w *watched) ends(code fault.Code, because string) {
	w.t.Helper()
	select {
	case err := <-w.done:
		w.done <- err
		if fault.Of(err) != code || !strings.Contains(err.Error(), because) {
			w.t.Errorf("Watch: %v (%v), want %v, because %q", err, fault.Of(err), code, because)
		}
	case <-time.After(patience):
		w.t.Errorf("Watch goes on, want its end because %q", because)
	}
}

// A server that does not notify is not changed; the error tells what to do, and doing it helps.
func TestWatchNeedsNotifications(t *testing.T) {
	srv := servers.StartRedis(t, "--notify-keyspace-events", "Ex")
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	err := s.(block.StateWatch).Watch(t.Context(), "", func() { t.Error("the watch started") }, func([]block.StateItem) {})
	if fault.Of(err) != fault.Unsupported || fault.ReasonOf(err) != fault.NoWatch {
		t.Fatalf("Watch: %v (%v), want unsupported", err, fault.Of(err))
	}
	const setting = "notify-keyspace-events"
	if got := r.ConfigGet(t.Context(), setting).Val()[setting]; got != "xE" {
		t.Errorf("the setting is %q, want it left alone", got)
	}
	_, command, ok := strings.Cut(err.Error(), "redis-cli config set "+setting+" '")
	value, _, closed := strings.Cut(command, "'")
	if !ok || !closed {
		t.Fatalf("the error gives no command: %v", err)
	}
	if err := r.ConfigSet(t.Context(), setting, value).Err(); err != nil {
		t.Fatal(err)
	}
	w := watch(t, s, "", nil)
	set(t, s, block.StateWrite{Key: "k", Value: []byte("v")})
	w.hears(map[string]string{"k": "v"})
	redis.SetWatchRecheck(s, 20*time.Millisecond)
	quick := watch(t, s, "", nil)
	r.ConfigSet(t.Context(), setting, "")
	quick.ends(fault.Unsupported, "does not notify")
}

// A server that does not let us see its setting is not believed to notify.
func TestWatchOfSecretiveServer(t *testing.T) {
	srv := notifying(t)
	if err := direct(t, srv.Addr).Do(t.Context(), "acl", "setuser", "app", "on", ">s3cret", "~*", "&*", "+@all", "-config").Err(); err != nil {
		t.Fatal(err)
	}
	s := opened(t, "redisHost", srv.Addr, "redisUsername", "app", "redisPassword", "s3cret")
	err := s.(block.StateWatch).Watch(t.Context(), "", func() { t.Error("the watch started") }, func([]block.StateItem) {})
	if fault.Of(err) != fault.Unsupported || !strings.Contains(err.Error(), "config|get") {
		t.Errorf("Watch: %v (%v), want unsupported, and what to allow", err, fault.Of(err))
	}
}

// What others do to keys is told as what it makes of items: the strings of old versions of Dapr
// are, other kinds are not; a key that is evicted, renamed or overwritten is gone.
func TestWatchOfForeignChanges(t *testing.T) {
	srv := notifying(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	w := watch(t, s, "a||", nil)
	want := map[string]string{}
	step := func(key, value string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		want[key] = value
		w.hears(want)
	}
	ctx := t.Context()
	_, err := daprWrites(t, r, "a||dapr", "0", "v", false)
	step("a||dapr", "v", err)
	step("a||old", "v", r.Set(ctx, "a||old", "v", 0).Err())
	step("a||old", "w", r.Set(ctx, "a||old", "w", 0).Err())
	step("a||old", "-", r.Rename(ctx, "a||old", "b||old").Err())
	step("a||new", "w", r.Rename(ctx, "b||old", "a||new").Err())
	set(t, s, block.StateWrite{Key: "a||k", Value: []byte("v")})
	step("a||k", "v", nil)
	r.RPush(ctx, "b||list", "v")
	step("a||k", "-", r.Rename(ctx, "b||list", "a||k").Err())
	if err := s.(block.StateFence).TransactFenced(ctx, "a||fence", 3, []block.StateOp{{StateWrite: block.StateWrite{Key: "a||k", Value: []byte("again")}}}); err != nil {
		t.Fatal(err)
	}
	step("a||k", "again", nil)
	set(t, s, block.StateWrite{Key: "a||k", Value: []byte("again"), TTL: time.Hour})
	step("a||k", "-", r.Expire(ctx, "a||k", 0).Err())

	// Eviction.
	all := watch(t, s, "", nil)
	set(t, s, block.StateWrite{Key: "c||evicted", Value: []byte("v")})
	all.hears(map[string]string{"c||evicted": "v"})
	r.ConfigSet(ctx, "maxmemory-policy", "allkeys-random")
	r.ConfigSet(ctx, "maxmemory", "1")
	waitFor(t, "all to be evicted", func() bool {
		r.Set(ctx, "x", "v", 0)
		return all.told()["c||evicted"] == "-"
	})
}

// A connection that is lost ends a watch: nobody knows what was told to nobody.
func TestWatchOfLostConnection(t *testing.T) {
	srv := notifying(t)
	g := newGate(t, srv.Addr)
	s := opened(t, "redisHost", g.l.Addr().String())
	w := watch(t, s, "", nil)
	set(t, s, block.StateWrite{Key: "k", Value: []byte("1")})
	w.hears(map[string]string{"k": "1"})
	g.set(false)
	w.ends(fault.Unavailable, "may have been missed")
	g.set(true)
	waitFor(t, "the store to work again", func() bool { return s.Ping(t.Context()) == nil })
	w = watch(t, s, "", nil)
	srv.Kill()
	w.ends(fault.Unavailable, "may have been missed")
	err := s.(block.StateWatch).Watch(t.Context(), "", func() { t.Error("the watch started") }, func([]block.StateItem) {})
	wantCode(t, "a watch without a server", err, fault.Unavailable)
	srv.Restart(t)
	waitFor(t, "the store to work again", func() bool { return s.Ping(t.Context()) == nil })
	w = watch(t, s, "", nil)
	set(t, s, block.StateWrite{Key: "k", Value: []byte("2")})
	w.hears(map[string]string{"k": "2"})
}

// A server that falls silent is noticed.
func TestWatchOfSilentServer(t *testing.T) {
	srv := notifying(t)
	s := opened(t, "redisHost", srv.Addr)
	redis.SetWatchSilence(s, time.Second)
	w := watch(t, s, "", nil)
	time.Sleep(2500 * time.Millisecond) // idle, and not silent
	set(t, s, block.StateWrite{Key: "k", Value: []byte("1")})
	w.hears(map[string]string{"k": "1"})
	srv.Freeze()
	defer srv.Thaw()
	w.ends(fault.Unavailable, "")
}

// What the server does not notify of ends a watch when it is found out.
func TestWatchOfEmptiedDatabase(t *testing.T) {
	srv := notifying(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	redis.SetWatchRecheck(s, 20*time.Millisecond)
	for _, command := range [][]any{{"flushdb"}, {"flushall", "async"}, {"swapdb", 0, 1}, {"eval", "redis.call('FLUSHALL')", 0}} {
		set(t, s, block.StateWrite{Key: "k", Value: []byte("1")})
		w := watch(t, s, "", nil)
		set(t, s, block.StateWrite{Key: "k", Value: []byte("2")})
		w.hears(map[string]string{"k": "2"})
		if err := r.Do(t.Context(), command...).Err(); err != nil && err.Error() != "redis: nil" {
			t.Fatal(err)
		}
		w.ends(fault.Unavailable, "emptied")
	}
	w := watch(t, s, "", nil)
	if err := r.Do(t.Context(), "replicaof", "127.0.0.1", "1").Err(); err != nil {
		t.Fatal(err)
	}
	w.ends(fault.Unavailable, "master")
}

// What waits for a callee is bounded; the server's buffers are not what bounds it.
func TestWatchOfBlockedCallee(t *testing.T) {
	srv := notifying(t)
	s, r := opened(t, "redisHost", srv.Addr, "readTimeout", "20s"), direct(t, srv.Addr)
	r.ConfigSet(t.Context(), "appendonly", "no")
	gate := make(chan struct{})
	var once sync.Once
	in := make(chan struct{})
	w := watch(t, s, "", func() { once.Do(func() { close(in) }); <-gate })
	set(t, s, block.StateWrite{Key: "first"})
	<-in
	const write = `for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do redis.call('HSET', 'k' .. i, 'data', 'v', 'version', '1') end return 1`
	for i := 1; i <= 110_000; i += 10_000 {
		if err := r.Eval(t.Context(), write, nil, i, i+9999).Err(); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the watch to hang up", func() bool { return !strings.Contains(r.ClientList(t.Context()).Val(), " psub=1 ") })
	select {
	case err := <-w.done:
		t.Fatalf("Watch ended while the callee was at work: %v", err)
	default:
	}
	close(gate)
	w.ends(fault.Unavailable, "waited to be told")
}

// When the master dies, the watch ends, and another one follows the new master.
func TestWatchOfFailover(t *testing.T) {
	master := notifying(t)
	replica := servers.StartRedis(t, "--notify-keyspace-events", "Kg$hxe", "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port))
	sentinel := servers.StartSentinel(t, master.Port)
	s := opened(t, "redisHost", sentinel.Addr, "failover", "true", "sentinelMasterName", "mymaster", "dialTimeout", "500ms")
	waitFor(t, "the replica to be known", func() bool {
		slaves, err := direct(t, sentinel.Addr).Do(t.Context(), "sentinel", "replicas", "mymaster").Slice()
		return err == nil && len(slaves) == 1 && s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("1"), Strong: true}) == nil &&
			direct(t, replica.Addr).HGet(t.Context(), "k", "data").Val() == "1"
	})
	w := watch(t, s, "", nil)
	set(t, s, block.StateWrite{Key: "k", Value: []byte("2"), Strong: true})
	w.hears(map[string]string{"k": "2"})
	master.Kill()
	w.ends(fault.Unavailable, "may have been missed")
	waitFor(t, "writes to the new master", func() bool {
		return s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("3")}) == nil
	})
	w = watch(t, s, "", nil)
	set(t, s, block.StateWrite{Key: "k", Value: []byte("4")})
	w.hears(map[string]string{"k": "4"})
}
