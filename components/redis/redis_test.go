package redis_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/redis"
	"github.com/mecha-project/mecha/test/servers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 30 * time.Second

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// open opens a state store; items are its metadata.
func open(t testing.TB, items ...string) block.State {
	t.Helper()
	c := redis.DefaultStateConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	s, err := redis.NewState(block.Env{Log: slog.New(slog.DiscardHandler), AppID: "app", Component: "statestore"}, c)
	if err != nil {
		t.Fatalf("NewState: %v", err)
	}
	return s
}

// opened is open with the store closed when the test ends.
func opened(t testing.TB, items ...string) block.State {
	t.Helper()
	s := open(t, items...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

// direct is the client library itself, for looking at what is stored.
func direct(t testing.TB, addr string) *goredis.Client {
	t.Helper()
	c := goredis.NewClient(&goredis.Options{Addr: addr, Protocol: 2, DisableIdentity: true})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func hosts(rs []*servers.Redis) string {
	addrs := make([]string, len(rs))
	for i, r := range rs {
		addrs[i] = r.Addr
	}
	return strings.Join(addrs, ",")
}

// notifying is a server that tells of what a watch needs.
func notifying(t testing.TB) *servers.Redis {
	t.Helper()
	return servers.StartRedis(t, "--notify-keyspace-events", "Kg$hxe")
}

// The suite writes megabytes in one go, which a busy machine takes its time to sync.
func TestState(t *testing.T) {
	srv := notifying(t)
	blocktest.State(t, func(t *testing.T) block.State { return open(t, "redisHost", srv.Addr, "readTimeout", "20s") })
}

// spread is a store of a cluster as far as it goes with keys of all slots.
type spread struct {
	block.State
	block.StateBatch
	block.StateTTL
	block.StateScan
}

func newSpread(s block.State) spread {
	return spread{s, s.(block.StateBatch), s.(block.StateTTL), s.(block.StateScan)}
}

// tagged gives all keys one hash slot.
type tagged struct {
	block.State
	block.StateBatch
	block.StateTx
	block.StateTTL
	scan  block.StateScan
	fence block.StateFence
}

const tag = "{one}"

func (s tagged) Get(ctx context.Context, key string, o block.StateRead) (block.StateItem, error) {
	item, err := s.State.Get(ctx, tag+key, o)
	item.Key = strings.TrimPrefix(item.Key, tag)
	return item, err
}

func (s tagged) Set(ctx context.Context, w block.StateWrite) error {
	w.Key = tag + w.Key
	return s.State.Set(ctx, w)
}

func (s tagged) Delete(ctx context.Context, d block.StateDelete) error {
	d.Key = tag + d.Key
	return s.State.Delete(ctx, d)
}

func (s tagged) GetMany(ctx context.Context, keys []string, o block.StateRead) ([]block.StateItem, error) {
	var all []string
	for _, k := range keys {
		all = append(all, tag+k)
	}
	items, err := s.StateBatch.GetMany(ctx, all, o)
	for i := range items {
		items[i].Key = strings.TrimPrefix(items[i].Key, tag)
	}
	return items, err
}

func (s tagged) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	var all []block.StateWrite
	for _, w := range ws {
		w.Key = tag + w.Key
		all = append(all, w)
	}
	return s.StateBatch.SetMany(ctx, all)
}

func (s tagged) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	var all []block.StateDelete
	for _, d := range ds {
		d.Key = tag + d.Key
		all = append(all, d)
	}
	return s.StateBatch.DeleteMany(ctx, all)
}

func (s tagged) Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string, error) {
	items, next, err := s.scan.Scan(ctx, tag+prefix, token, limit, keysOnly)
	for i := range items {
		items[i].Key = strings.TrimPrefix(items[i].Key, tag)
	}
	return items, next, err
}

func (s tagged) TransactFenced(ctx context.Context, fence string, epoch uint64, ops []block.StateOp) error {
	return s.fence.TransactFenced(ctx, tag+fence, epoch, inOneSlot(ops))
}

func (s tagged) Transact(ctx context.Context, ops []block.StateOp) error {
	return s.StateTx.Transact(ctx, inOneSlot(ops))
}

func inOneSlot(ops []block.StateOp) (all []block.StateOp) {
	for _, o := range ops {
		o.Key = tag + o.Key
		all = append(all, o)
	}
	return all
}

func TestClusterState(t *testing.T) {
	nodes := hosts(servers.StartRedisCluster(t))
	t.Run("keys of all slots", func(t *testing.T) {
		blocktest.State(t, func(t *testing.T) block.State {
			return newSpread(open(t, "redisHost", nodes, "redisType", "cluster", "readTimeout", "20s"))
		})
	})
	t.Run("keys of one slot", func(t *testing.T) {
		blocktest.State(t, func(t *testing.T) block.State {
			s := open(t, "redisHost", nodes, "redisType", "cluster", "readTimeout", "20s")
			return tagged{s, s.(block.StateBatch), s.(block.StateTx), s.(block.StateTTL), s.(block.StateScan), s.(block.StateFence)}
		})
	})
	t.Run("a transaction over several slots", func(t *testing.T) {
		s := opened(t, "redisHost", nodes, "redisType", "cluster")
		err := s.(block.StateTx).Transact(t.Context(), []block.StateOp{{StateWrite: block.StateWrite{Key: "a"}}, {StateWrite: block.StateWrite{Key: "b"}}})
		if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "hash slot") {
			t.Errorf("got %v (%v), want invalid, about hash slots", err, fault.Of(err))
		}
		err = s.(block.StateFence).TransactFenced(t.Context(), "f", 1, []block.StateOp{{StateWrite: block.StateWrite{Key: "a"}}})
		if fault.Of(err) != fault.Unsupported || !strings.Contains(err.Error(), "hash slot") {
			t.Errorf("a fence in another slot: %v (%v), want unsupported, about hash slots", err, fault.Of(err))
		}
		err = s.(block.StateWatch).Watch(t.Context(), "", func() { t.Error("the watch started") }, func([]block.StateItem) {})
		if fault.Of(err) != fault.Unsupported || fault.ReasonOf(err) != fault.NoWatch {
			t.Errorf("Watch: %v (%v), want unsupported", err, fault.Of(err))
		}
		for _, k := range []string{"a", "b"} {
			if item, err := s.Get(t.Context(), k, block.StateRead{}); err != nil || item.Exists {
				t.Errorf("%s = %+v, %v; want missing", k, item, err)
			}
		}
	})
}

func TestSentinelState(t *testing.T) {
	master := servers.StartRedis(t, "--requirepass", "s3cret", "--notify-keyspace-events", "Kg$hxe")
	sentinel := servers.StartSentinel(t, master.Port, "sentinel auth-pass mymaster s3cret", "requirepass watch")
	blocktest.State(t, func(t *testing.T) block.State {
		return open(t, "redisHost", sentinel.Addr, "failover", "true", "sentinelMasterName", "mymaster", "redisPassword", "s3cret", "sentinelPassword", "watch",
			"readTimeout", "20s")
	})
}
