//go:build unix

package conformance_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/nats"
	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// edge opens clients of the sidecar's components on one of its wires.
type edge interface {
	state(component string) block.State
	lock(component string) block.Lock
	configuration(component string) block.Configuration
}

// TestThroughEdges runs the suites of the blocks that Dapr's API shows whole on an embedded backend
// and on Redis, through each edge.
func TestThroughEdges(t *testing.T) {
	redis := servers.StartRedis(t)
	data := filepath.Join(t.TempDir(), "embedded")
	updates := newUpdates()
	sidecar := harness.NewMesh(t).Start(harness.Options{AppID: "conformance", AppPort: harness.Serve(t, updates), Files: map[string]string{"components.yaml": strings.Join([]string{
		component("memory-state", "state.in-memory"), component("redis-state", "state.redis", "redisHost", redis.Addr),
		component("memory-lock", "lock.in-memory"), component("redis-lock", "lock.redis", "redisHost", redis.Addr),
		component("nats-configuration", "configuration.embedded", "dataDir", data), component("redis-configuration", "configuration.redis", "redisHost", redis.Addr),
	}, "---\n")}})
	canDo(t, sidecar, "memory-state", "redis-state")
	places := map[string]func(t *testing.T) blocktest.ConfigurationPlace{
		"nats":  func(t *testing.T) blocktest.ConfigurationPlace { return embedded(t, data) },
		"redis": func(t *testing.T) blocktest.ConfigurationPlace { return inRedis(t, redis) },
	}
	for name, open := range map[string]func(t *testing.T) edge{
		"gRPC": func(t *testing.T) edge { return newRPC(t, sidecar.Target()) },
		"HTTP": func(t *testing.T) edge { return newWeb(t, sidecar.URL(""), updates) },
	} {
		run := func(kind block.Kind, backend string, suite func(t *testing.T)) {
			t.Run(fmt.Sprintf("%s %s %s", name, kind, backend), func(t *testing.T) {
				t.Parallel() // some wait a lot, and names are each subtest's own
				t.Attr(blocktest.AttrBackend, backend+" through "+name)
				suite(t)
			})
		}
		for _, backend := range []string{"memory", "redis"} {
			run(block.KindState, backend, func(t *testing.T) {
				blocktest.State(t, func(t *testing.T) block.State { return open(t).state(backend + "-state") })
			})
			run(block.KindLock, backend, func(t *testing.T) {
				blocktest.Lock(t, func(t *testing.T) func() block.Lock {
					return func() block.Lock { return open(t).lock(backend + "-lock") }
				})
			})
		}
		for _, backend := range []string{"nats", "redis"} {
			run(block.KindConfig, backend, func(t *testing.T) {
				blocktest.Configuration(t, func(t *testing.T) blocktest.ConfigurationPlace {
					p := places[backend](t)
					p.Open = func() block.Configuration { return open(t).configuration(backend + "-configuration") }
					return p
				})
			})
		}
	}
}

func component(name, kind string, settings ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: %s}\nspec:\n  type: %s\n  version: v1\n  metadata:\n", name, kind)
	for i := 0; i+1 < len(settings); i += 2 {
		fmt.Fprintf(&b, "  - {name: %s, value: %q}\n", settings[i], settings[i+1])
	}
	return b.String()
}

// canDo makes sure that the state stores have what the clients here say they have: which ability a
// client offers is decided when it is compiled.
func canDo(t *testing.T, s *harness.Sidecar, stores ...string) {
	t.Helper()
	resp, body := harness.Do(t, http.MethodGet, s.URL("/v1.0/metadata"), nil)
	var about struct {
		Components []struct {
			Name         string
			Capabilities []string
		}
	}
	if err := json.Unmarshal(body, &about); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("metadata: %d %s, %v", resp.StatusCode, body, err)
	}
	for _, c := range about.Components {
		if !slices.Contains(stores, c.Name) {
			continue
		}
		for _, word := range []string{"ETAG", "TRANSACTIONAL", "TTL"} {
			if !slices.Contains(c.Capabilities, word) {
				t.Fatalf("%s says it can do %q, want %s among them", c.Name, c.Capabilities, word)
			}
		}
	}
}

// embedded is the embedded node, written by its operator's component. Nothing cuts its connections
// here: that is the business of the backend's own test.
func embedded(t *testing.T, dir string) blocktest.ConfigurationPlace {
	c := nats.DefaultEmbeddedConfigurationConfig()
	if err := conf.Decode(conf.Items("dataDir", dir), c).Err(); err != nil {
		t.Fatal(err)
	}
	operator := nats.OpenEmbeddedConfiguration(block.Env{Log: slog.New(slog.DiscardHandler), AppID: "operator", Component: "nats-configuration"}, c)
	t.Cleanup(func() { _ = operator.Close(t.Context()) }) // its context has ended; it closes all the same
	return blocktest.ConfigurationPlace{
		Keys: []string{".a.b", "/a/b", "=", "A", "_-", ".x.y.z", "KV"},
		Set: func(key, value string) {
			if _, err := operator.Set(t.Context(), key, value); err != nil {
				t.Fatalf("Set: %v", err)
			}
		},
		Delete: func(key string) {
			if err := operator.Delete(t.Context(), key); err != nil {
				t.Fatalf("Delete: %v", err)
			}
		},
	}
}

func inRedis(t *testing.T, redis *servers.Redis) blocktest.ConfigurationPlace {
	do := func(args ...string) {
		if _, err := servers.RedisCommand(redis.Port, args...); err != nil {
			t.Fatalf("%s: %v", args[0], err)
		}
	}
	return blocktest.ConfigurationPlace{
		Keys:   []string{"*", "a*b", "[x]", "?", "with space", "ünï", "a||b", "new\nline", "__keyspace@0__:a", ":", "a/b", "%41", "a&key=b", "#", "a;b", "+"},
		Set:    func(key, value string) { do("SET", key, value) },
		Delete: func(key string) { do("DEL", key) },
	}
}

// wireKey spells a key that apps may use: "||" stands between an app's prefix and its keys and is
// refused in them, and the suites have keys with it. No two keys get one spelling.
func wireKey(key string) string {
	return strings.ReplaceAll(strings.ReplaceAll(key, "~", "~0"), "||", "~1")
}

// seconds is a time on the wire, which has whole ones: rounded up, for nothing may end early.
func seconds(d time.Duration) int64 {
	return int64((d + time.Second - 1) / time.Second)
}
