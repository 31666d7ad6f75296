package redis_test

import (
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/redis"
	"github.com/mecha-project/mecha/test/servers"
)

func openLock(t testing.TB, items ...string) block.Lock {
	t.Helper()
	c := redis.DefaultLockConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	l, err := redis.NewLock(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
	if err != nil {
		t.Fatalf("NewLock: %v", err)
	}
	return l
}

func TestLock(t *testing.T) {
	srv := servers.StartRedis(t)
	blocktest.Lock(t, func(t *testing.T) func() block.Lock {
		return func() block.Lock { return openLock(t, "redisHost", srv.Addr) }
	})
}

func TestSentinelLock(t *testing.T) {
	master := servers.StartRedis(t)
	sentinel := servers.StartSentinel(t, master.Port)
	blocktest.Lock(t, func(t *testing.T) func() block.Lock {
		return func() block.Lock {
			return openLock(t, "redisHost", sentinel.Addr, "failover", "true", "sentinelMasterName", "mymaster")
		}
	})
}

// The stored form is Dapr's, both ways.
func TestLockFormat(t *testing.T) {
	srv := servers.StartRedis(t)
	l, r := openLock(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	defer l.Close(t.Context())
	f := l.(block.LockFence)
	for _, take := range []func(string) error{
		func(name string) error { _, err := l.TryLock(t.Context(), name, "me", 90*time.Second); return err },
		func(name string) error {
			_, err := f.TryLockFenced(t.Context(), name, "me", 90*time.Second)
			return err
		},
	} {
		if err := take("lock||app||n"); err != nil {
			t.Fatal(err)
		}
		left := r.PTTL(t.Context(), "lock||app||n").Val()
		if got := r.Get(t.Context(), "lock||app||n").Val(); got != "me" || left <= 60*time.Second || left > 90*time.Second {
			t.Errorf("stored is %q for %v, want the owner for 90s", got, left)
		}
		r.Del(t.Context(), "lock||app||n")
	}
	r.SetNX(t.Context(), "lock||app||n", "dapr", time.Minute)
	if ok, err := l.TryLock(t.Context(), "lock||app||n", "me", time.Minute); ok || err != nil {
		t.Errorf("a lock of Dapr's: TryLock = %v, %v", ok, err)
	}
	if st, err := l.Unlock(t.Context(), "lock||app||n", "dapr"); st != block.Unlocked || err != nil {
		t.Errorf("a lock of Dapr's: Unlock = %v, %v", st, err)
	}
}

// Numbers grow although the counter is lost, and although the clock stands behind it.
func TestLockFenceSurvives(t *testing.T) {
	srv := servers.StartRedis(t)
	l, r := openLock(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	defer l.Close(t.Context())
	last := uint64(0)
	take := func(what string) {
		t.Helper()
		token, err := l.(block.LockFence).TryLockFenced(t.Context(), "n", "me", time.Minute)
		if err != nil || token <= last {
			t.Fatalf("%s: number %d, %v; want more than %d", what, token, err, last)
		}
		last = token
		r.Del(t.Context(), "n")
	}
	take("first")
	r.FlushAll(t.Context())
	take("after the data was lost")
	last += 3600_000_000
	r.Set(t.Context(), "mecha||lock-fence", strconv.FormatUint(last, 10), 0)
	for range 3 {
		take("with a clock that was set back")
	}
}

func TestLockConfig(t *testing.T) {
	c := redis.DefaultLockConfig()
	if f := conf.Decode(conf.Items("redisHost", "localhost", "redisType", "cluster"), c); len(f) != 1 {
		t.Errorf("a cluster: %v, want one finding", f)
	}
	l := openLock(t, "redisHost", "127.0.0.1:1")
	defer l.Close(t.Context())
	_, err := l.TryLock(t.Context(), "n", "me", time.Minute)
	wantCode(t, "TryLock without a server", err, fault.Unavailable)
	if fault.SentOf(err) != fault.SentNever {
		t.Errorf("sent %v, want never", fault.SentOf(err))
	}
}
