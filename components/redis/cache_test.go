package redis_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/redis"
	"github.com/mecha-project/mecha/test/servers"
)

func openCache(t testing.TB, items ...string) block.Cache {
	t.Helper()
	c := redis.DefaultCacheConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	s, err := redis.NewCache(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
	if err != nil {
		t.Fatalf("NewCache: %v", err)
	}
	return s
}

func TestCache(t *testing.T) {
	srv := servers.StartRedis(t)
	blocktest.Cache(t, func(t *testing.T) func() block.Cache {
		return func() block.Cache { return openCache(t, "redisHost", srv.Addr) }
	})
}

func TestSentinelCache(t *testing.T) {
	master := servers.StartRedis(t)
	sentinel := servers.StartSentinel(t, master.Port)
	blocktest.Cache(t, func(t *testing.T) func() block.Cache {
		return func() block.Cache {
			return openCache(t, "redisHost", sentinel.Addr, "failover", "true", "sentinelMasterName", "mymaster")
		}
	})
}

// followCache follows a cache until the feed ends; started is closed when it stands.
func followCache(ctx context.Context, s block.Cache, prefix string, hear func([]block.CacheChange)) (started chan struct{}, over chan error) {
	started, over = make(chan struct{}), make(chan error, 1)
	go func() { over <- s.(block.CacheFeed).Follow(ctx, prefix, func() { close(started) }, hear) }()
	return started, over
}

// A feed ends when changes may be missed: the server dies, or a database is emptied.
func TestCacheFeedEnds(t *testing.T) {
	srv := servers.StartRedis(t)
	for name, end := range map[string]func(){
		"flushed": func() {
			if err := direct(t, srv.Addr).FlushAll(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
		},
		"the connection is cut": func() {
			if err := direct(t, srv.Addr).Do(t.Context(), "client", "kill", "type", "pubsub").Err(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := openCache(t, "redisHost", srv.Addr)
			defer s.Close(context.Background())
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			started, over := followCache(ctx, s, "", func([]block.CacheChange) {})
			select {
			case <-started:
			case err := <-over:
				t.Fatalf("no feed: %v", err)
			}
			end()
			if err := <-over; fault.Of(err) == fault.Canceled || fault.Of(err) == fault.Deadline || err == nil {
				t.Errorf("the feed ended with %v", err)
			}
		})
	}
}

func TestCacheConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		items []string
		bad   string // the key that is found wrong
	}{
		"defaults":                {items: []string{"redisHost", "h:1"}},
		"a cluster":               {items: []string{"redisHost", "h:1", "redisType", "cluster"}, bad: "coherence"},
		"a cluster, strong":       {items: []string{"redisHost", "h:1", "redisType", "cluster", "coherence", "strong"}},
		"a namespace on one":      {items: []string{"redisHost", "h:1", "redisType", "cluster", "coherence", "strong", "namespaces", `{"a": {"coherence": "invalidate"}}`}, bad: "namespaces"},
		"namespaces":              {items: []string{"redisHost", "h:1", "namespaces", "prices: {coherence: strong}\nusers: {maxAge: 5s, nearBytes: 1Mi, jitter: 0}"}},
		"a key that there is not": {items: []string{"redisHost", "h:1", "namespaces", `{"a": {"coherance": "strong"}}`}, bad: "namespaces"},
		"a namespace's bad value": {items: []string{"redisHost", "h:1", "namespaces", `{"a": {"jitter": 7}}`}, bad: "namespaces"},
		"no map":                  {items: []string{"redisHost", "h:1", "namespaces", "prices"}, bad: "namespaces"},
		"another coherence":       {items: []string{"redisHost", "h:1", "coherence", "eventual"}, bad: "coherence"},
		"jitter":                  {items: []string{"redisHost", "h:1", "jitter", "2"}, bad: "jitter"},
		"a short maxAge":          {items: []string{"redisHost", "h:1", "maxAge", "0"}, bad: "maxAge"},
	} {
		t.Run(name, func(t *testing.T) {
			found := conf.Decode(conf.Items(tt.items...), redis.DefaultCacheConfig())
			switch {
			case tt.bad == "" && len(found) > 0:
				t.Errorf("found %v", found)
			case tt.bad != "" && (len(found) != 1 || found[0].Key != tt.bad || found[0].Severity != conf.Error):
				t.Errorf("found %v, want one error of %s", found, tt.bad)
			}
		})
	}
}
