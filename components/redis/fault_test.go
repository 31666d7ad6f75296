//go:build unix

package redis_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// wantSent fails unless err has the code and tells how far the call got.
func wantSent(t testing.TB, what string, err error, code fault.Code, sent fault.Sent) {
	t.Helper()
	if fault.Of(err) != code || fault.SentOf(err) != sent {
		t.Errorf("%s: %v (%v, sent %v), want %v, sent %v", what, err, fault.Of(err), fault.SentOf(err), code, sent)
	}
}

// load writes until stop: one counter per writer and a pair of keys by transactions. It returns
// what was acknowledged last.
func load(s block.State, stop <-chan struct{}) (wait func(t *testing.T) (acked []int, pairs int)) {
	acked := make([]int, 3)
	pairs := 0
	var bad atomic.Value
	running := func() bool {
		select {
		case <-stop:
			return false
		default:
			return true
		}
	}
	try := func(f func(context.Context) error) bool {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		err := f(ctx)
		if err == nil {
			return true
		}
		if c := fault.Of(err); c != fault.Unavailable && c != fault.Deadline {
			bad.Store(err)
		}
		time.Sleep(5 * time.Millisecond)
		return false
	}
	var wg sync.WaitGroup
	for w := range acked {
		wg.Go(func() {
			for n := 1; running(); n++ {
				if try(func(ctx context.Context) error {
					return s.Set(ctx, block.StateWrite{Key: fmt.Sprint("w", w), Value: []byte(strconv.Itoa(n))})
				}) {
					acked[w] = n
				}
			}
		})
	}
	wg.Go(func() {
		for n := 1; running(); n++ {
			v := []byte(strconv.Itoa(n))
			if try(func(ctx context.Context) error {
				return s.(block.StateTx).Transact(ctx, []block.StateOp{{StateWrite: block.StateWrite{Key: "a", Value: v}}, {StateWrite: block.StateWrite{Key: "b", Value: v}}})
			}) {
				pairs = n
			}
		}
	})
	return func(t *testing.T) ([]int, int) {
		wg.Wait()
		if err := bad.Load(); err != nil {
			t.Errorf("under load: %v, want success, unavailable or deadline", err)
		}
		return acked, pairs
	}
}

func readNumber(t *testing.T, s block.State, key string) int {
	t.Helper()
	var item block.StateItem
	waitFor(t, "a read", func() bool {
		var err error
		item, err = s.Get(t.Context(), key, block.StateRead{})
		return err == nil
	})
	n, _ := strconv.Atoi(string(item.Value))
	return n
}

func wantAcked(t *testing.T, s block.State, acked []int, pairs int) {
	t.Helper()
	for w, want := range acked {
		// A later write may have happened although its answer was lost.
		if got := readNumber(t, s, fmt.Sprint("w", w)); got < want || want == 0 {
			t.Errorf("writer %d has %d acknowledged and %d stored", w, want, got)
		}
	}
	a, b := readNumber(t, s, "a"), readNumber(t, s, "b")
	if a != b || a < pairs || pairs == 0 {
		t.Errorf("transactions: %d acknowledged, a is %d and b is %d", pairs, a, b)
	}
}

// Nothing acknowledged is lost when the server is killed under load, a transaction is there wholly
// or not at all, and the store goes on by itself.
func TestKilledServer(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr)
	stop := make(chan struct{})
	wait := load(s, stop)
	for range 3 {
		time.Sleep(200 * time.Millisecond)
		srv.Kill()
		srv.Restart(t)
	}
	time.Sleep(200 * time.Millisecond)
	close(stop)
	acked, pairs := wait(t)
	srv.Kill()
	srv.Restart(t)
	wantAcked(t, s, acked, pairs)
}

func TestHaltedServer(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr)
	stop := make(chan struct{})
	wait := load(s, stop)
	for range 2 {
		time.Sleep(150 * time.Millisecond)
		srv.Freeze()
		time.Sleep(300 * time.Millisecond)
		srv.Thaw()
	}
	time.Sleep(100 * time.Millisecond)
	close(stop)
	acked, pairs := wait(t)
	wantAcked(t, s, acked, pairs)
}

// Calls end with their context while the server is silent, and a late answer is not taken for
// that of another request.
func TestSilentServer(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr, "readTimeout", "20s")
	set(t, s, block.StateWrite{Key: "k", Value: []byte("0")})
	srv.Freeze()
	defer srv.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	wantSent(t, "Set with a deadline", s.Set(ctx, block.StateWrite{Key: "k", Value: []byte("1")}), fault.Deadline, fault.SentMaybe)
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(30*time.Millisecond, cancel)
	start := time.Now()
	_, err := s.Get(ctx, "k", block.StateRead{})
	wantCode(t, "cancelled Get", err, fault.Canceled)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("a cancelled Get took %v: it waited for the read timeout", took)
	}
	errs := s.(block.StateBatch).SetMany(ctx, []block.StateWrite{{Key: "x"}, {Key: "y"}})
	wantSent(t, "SetMany with an ended context", errs[0], fault.Canceled, fault.SentNever)
	srv.Thaw()
	for n := 2; n < 20; n++ {
		v := strconv.Itoa(n)
		set(t, s, block.StateWrite{Key: "k", Value: []byte(v)})
		if item := get(t, s, "k"); string(item.Value) != v {
			t.Fatalf("read %q, want %s", item.Value, v)
		}
	}
}

// A caller may use its value again as soon as its call has ended.
func TestAbandonedValues(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr)
	value := make([]byte, 4<<20) // more than the kernel takes
	set(t, s, block.StateWrite{Key: "k"})
	srv.Freeze()
	defer srv.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	wantSent(t, "Set", s.Set(ctx, block.StateWrite{Key: "k", Value: value}), fault.Deadline, fault.SentMaybe)
	for i := range value {
		value[i] = 1 // the race detector looks
	}
	srv.Thaw()
	waitFor(t, "the server", func() bool { return s.Ping(t.Context()) == nil })
	if item := get(t, s, "k"); len(item.Value) > 0 && item.Value[len(item.Value)-1] != 0 {
		t.Error("the abandoned write stored what its caller wrote later")
	}
}

// Without a deadline the read timeout bounds a call. A request that never got past the handshake
// was certainly not sent.
func TestReadTimeout(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr, "readTimeout", "200")
	set(t, s, block.StateWrite{Key: "k"})
	fresh := opened(t, "redisHost", srv.Addr, "readTimeout", "200")
	srv.Freeze()
	defer srv.Thaw()
	wantSent(t, "Set", s.Set(context.Background(), block.StateWrite{Key: "k"}), fault.Unavailable, fault.SentMaybe)
	wantSent(t, "Set over a new connection", fresh.Set(context.Background(), block.StateWrite{Key: "k"}), fault.Unavailable, fault.SentNever)
}

func TestServerComesLater(t *testing.T) {
	srv := servers.StartRedis(t)
	srv.Kill()
	for name, items := range map[string][]string{
		"node":     {"redisHost", srv.Addr},
		"sentinel": {"redisHost", srv.Addr, "failover", "true", "sentinelMasterName", "mymaster"},
		"cluster":  {"redisHost", srv.Addr, "redisType", "cluster"},
	} {
		s := opened(t, items...)
		wantSent(t, name+": Ping", s.Ping(t.Context()), fault.Unavailable, fault.SentNever)
		wantSent(t, name+": Set", s.Set(t.Context(), block.StateWrite{Key: "k"}), fault.Unavailable, fault.SentNever)
		errs := s.(block.StateBatch).SetMany(t.Context(), []block.StateWrite{{Key: "a"}, {Key: "b"}})
		if len(errs) != 2 {
			t.Fatalf("%s: SetMany: %v", name, errs)
		}
		wantSent(t, name+": SetMany", errs[1], fault.Unavailable, fault.SentNever)
		wantSent(t, name+": strong Set", s.Set(t.Context(), block.StateWrite{Key: "k", Strong: true}), fault.Unavailable, fault.SentNever)
	}
	s := opened(t, "redisHost", srv.Addr)
	wantSent(t, "Get", func() error { _, err := s.Get(t.Context(), "k", block.StateRead{}); return err }(), fault.Unavailable, fault.SentNever)
	srv.Restart(t)
	set(t, s, block.StateWrite{Key: "k", Value: []byte("v")})
}

// cutter stands between store and server. Told to, it passes requests on and cuts the connection
// instead of the answer.
type cutter struct {
	net.Listener
	to  atomic.Value
	cut atomic.Int32 // how many answers to cut
}

const all = 1 << 20

func newCutter(t *testing.T, to string) *cutter {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{Listener: l}
	c.to.Store(to)
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { c.serve(in) })
		}
	})
	return c
}

func (c *cutter) serve(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", c.to.Load().(string))
	if err != nil {
		return
	}
	defer out.Close()
	done := make(chan struct{})
	go func() { _, _ = io.Copy(out, in); _ = out.Close(); close(done) }()
	defer func() { _ = in.Close(); <-done }()
	buf := make([]byte, 1<<16)
	for {
		n, err := out.Read(buf)
		if err != nil {
			return
		}
		if c.cut.Load() > 0 {
			c.cut.Add(-1)
			return
		}
		if _, err := in.Write(buf[:n]); err != nil {
			return
		}
	}
}

// A write whose answer was lost may have happened, and happens once: nothing repeats it.
func TestCutConnection(t *testing.T) {
	srv := servers.StartRedis(t)
	proxy := newCutter(t, srv.Addr)
	r := direct(t, srv.Addr)
	s := opened(t, "redisHost", proxy.Addr().String())
	set(t, s, block.StateWrite{Key: "k", Value: []byte("0")})
	version := func() int { n, _ := r.HGet(t.Context(), "k", "version").Int(); return n }
	before := version()
	proxy.cut.Store(all)
	wantSent(t, "Set", s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("1")}), fault.Unavailable, fault.SentMaybe)
	if got := version() - before; got != 1 {
		t.Errorf("one write happened %d times", got)
	}
	wantSent(t, "Set over a new connection that is cut", s.Set(t.Context(), block.StateWrite{Key: "k"}), fault.Unavailable, fault.SentNever)
	proxy.cut.Store(0)
	set(t, s, block.StateWrite{Key: "k", Value: []byte("2")})

	// The user may ask the library to repeat: then it does.
	again := opened(t, "redisHost", proxy.Addr().String(), "redisMaxRetries", "2", "redisMinRetryInterval", "200ms")
	set(t, again, block.StateWrite{Key: "k", Value: []byte("3")})
	proxy.cut.Store(all)
	time.AfterFunc(100*time.Millisecond, func() { proxy.cut.Store(0) })
	set(t, again, block.StateWrite{Key: "k", Value: []byte("4")})
}

// The client of a cluster, which follows redirections, does not repeat either.
func TestClusterCutConnection(t *testing.T) {
	proxy := newCutter(t, "")
	port := strconv.Itoa(proxy.Addr().(*net.TCPAddr).Port)
	srv := servers.StartRedis(t, "--cluster-enabled", "yes", "--cluster-announce-port", port, "--cluster-port", strconv.Itoa(servers.Port(t)))
	proxy.to.Store(srv.Addr)
	r := direct(t, srv.Addr)
	if err := r.ClusterAddSlotsRange(t.Context(), 0, 16383).Err(); err != nil {
		t.Fatal(err)
	}
	s := opened(t, "redisHost", proxy.Addr().String(), "redisType", "cluster")
	waitFor(t, "the cluster", func() bool { return s.Set(t.Context(), block.StateWrite{Key: "k"}) == nil })
	for name, write := range map[string]func() error{
		"Set":    func() error { return s.Set(t.Context(), block.StateWrite{Key: "k"}) },
		"strong": func() error { return s.Set(t.Context(), block.StateWrite{Key: "k", Strong: true}) },
		"SetMany": func() error {
			return errors.Join(s.(block.StateBatch).SetMany(t.Context(), []block.StateWrite{{Key: "k"}, {Key: "l"}})...)
		},
		"Transact": func() error {
			return s.(block.StateTx).Transact(t.Context(), []block.StateOp{{StateWrite: block.StateWrite{Key: "k"}}})
		},
	} {
		before, _ := r.HGet(t.Context(), "k", "version").Int()
		proxy.cut.Store(1)
		err := write()
		proxy.cut.Store(0)
		after, _ := r.HGet(t.Context(), "k", "version").Int()
		times, sent := 1, fault.SentMaybe
		if name == "strong" { // what is cut is the question for replicas before the write
			times, sent = 0, fault.SentNever
		}
		wantSent(t, name, err, fault.Unavailable, sent)
		if after-before != times {
			t.Errorf("%s happened %d times, want %d", name, after-before, times)
		}
		waitFor(t, "the store to go on", func() bool { _, err := s.Get(t.Context(), "k", block.StateRead{}); return err == nil })
	}
}

// A node of a cluster that dies with a request fails it, maybe done; the others go on.
func TestClusterNodeDies(t *testing.T) {
	nodes := servers.StartRedisCluster(t)
	s := opened(t, "redisHost", hosts(nodes), "redisType", "cluster", "dialTimeout", "500ms")
	keys := map[int]string{} // one for each node
	r := direct(t, nodes[0].Addr)
	for i := 0; len(keys) < 3; i++ {
		key := fmt.Sprint("k", i)
		node := int(r.ClusterKeySlot(t.Context(), key).Val()) * 3 / 16384
		if keys[node] == "" {
			keys[node] = key
			set(t, s, block.StateWrite{Key: key, Value: []byte("v")})
		}
	}
	nodes[1].Freeze()
	time.AfterFunc(200*time.Millisecond, nodes[1].Kill)
	wantSent(t, "Set", s.Set(t.Context(), block.StateWrite{Key: keys[1], Value: []byte("w")}), fault.Unavailable, fault.SentMaybe)
	set(t, s, block.StateWrite{Key: keys[0], Value: []byte("w")})
	set(t, s, block.StateWrite{Key: keys[2], Value: []byte("w")})
	errs := s.(block.StateBatch).SetMany(t.Context(), []block.StateWrite{{Key: keys[0]}, {Key: keys[1]}, {Key: keys[2]}})
	if len(errs) != 3 || errs[0] != nil || errs[2] != nil {
		t.Fatalf("SetMany: %v, want an error for the second alone", errs)
	}
	wantCode(t, "SetMany[1]", errs[1], fault.Unavailable)
	nodes[1].Restart(t)
	waitFor(t, "the node to be back", func() bool {
		return s.Set(t.Context(), block.StateWrite{Key: keys[1], Value: []byte("x")}) == nil
	})
}

// When the master dies, the sentinels name another, and the store goes there by itself.
func TestSentinelFailover(t *testing.T) {
	master := servers.StartRedis(t)
	replica := servers.StartRedis(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port))
	sentinel := servers.StartSentinel(t, master.Port)
	s := opened(t, "redisHost", sentinel.Addr, "failover", "true", "sentinelMasterName", "mymaster", "dialTimeout", "500ms")
	r := direct(t, replica.Addr)
	waitFor(t, "the replica to be known", func() bool {
		slaves, err := direct(t, sentinel.Addr).Do(t.Context(), "sentinel", "replicas", "mymaster").Slice()
		return err == nil && len(slaves) == 1 && s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("1"), Strong: true}) == nil &&
			r.HGet(t.Context(), "k", "data").Val() == "1"
	})
	master.Kill()
	waitFor(t, "writes to the new master", func() bool {
		return s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("2")}) == nil
	})
	if got := r.HGet(t.Context(), "k", "data").Val(); got != "2" {
		t.Errorf("the new master has %q, want 2", got)
	}
}

// Close does not wait for a silent server's answers.
func TestCloseCutsCalls(t *testing.T) {
	srv := servers.StartRedis(t)
	s := open(t, "redisHost", srv.Addr, "readTimeout", "-1")
	set(t, s, block.StateWrite{Key: "k"})
	srv.Freeze()
	defer srv.Thaw()
	result := make(chan error, 1)
	go func() { result <- s.Set(context.Background(), block.StateWrite{Key: "k"}) }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	wantCode(t, "Get", func() error { _, err := s.Get(ctx, "k", block.StateRead{}); return err }(), fault.Deadline)
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
	wantCode(t, "Set", <-result, fault.Unavailable)
}
