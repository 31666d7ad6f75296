package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/durationpb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

const redisCache = `apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: cache}
spec:
  type: cache.redis
  version: v1
  metadata:
  - {name: redisHost, value: "%s"}
  - {name: readTimeout, value: 500ms}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: state}
spec: {type: state.in-memory, version: v1}
`

// TestCacheOfReplicas has two replicas of an app share a cache through Redis: each sees what the
// other writes, and both go on when Redis dies and comes back.
func TestCacheOfReplicas(t *testing.T) {
	t.Parallel()
	srv := servers.StartRedis(t)
	mesh := harness.NewMesh(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var replicas []mechav1.CacheClient
	var first *harness.Sidecar
	for range 2 {
		s := mesh.Start(harness.Options{AppID: "shop", Files: map[string]string{"s.yaml": fmt.Sprintf(redisCache, srv.Addr)}})
		s.WaitOutbound()
		conn, err := grpc.NewClient(s.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		replicas = append(replicas, mechav1.NewCacheClient(conn))
		first = s
	}
	set := func(c mechav1.CacheClient, value string) error {
		_, err := c.Set(ctx, &mechav1.CacheSetRequest{CacheName: "cache", Key: "k", Value: []byte(value)})
		return err
	}
	get := func(c mechav1.CacheClient, stale bool) (*mechav1.CacheEntry, error) {
		return c.Get(ctx, &mechav1.CacheGetRequest{CacheName: "cache", Key: "k", StaleOk: stale})
	}
	// near reads until the replica answers from memory.
	near := func(c mechav1.CacheClient, want string) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			e, err := get(c, false)
			if err == nil && e.GetFoundIn() == mechav1.CacheTier_CACHE_TIER_NEAR && string(e.GetValue()) == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the replica answers %v, %v; want %q from memory", e, err, want)
			}
		}
	}
	if err := set(replicas[0], "1"); err != nil {
		t.Fatal(err)
	}
	near(replicas[0], "1")
	near(replicas[1], "1")
	// A change is seen by the other, from whose memory the old value goes.
	for i := range 20 {
		value := fmt.Sprint("v", i)
		if err := set(replicas[i%2], value); err != nil {
			t.Fatal(err)
		}
		if e, err := get(replicas[i%2], false); err != nil || string(e.GetValue()) != value {
			t.Fatalf("the own write %s reads as %v, %v", value, e, err)
		}
		near(replicas[1-i%2], value)
	}
	// One load among all callers of both.
	var loads, values atomic.Int32
	done := make(chan error, 60)
	for i := range 60 {
		go func() {
			c := replicas[i%2]
			out, err := c.GetOrLoad(ctx, &mechav1.CacheGetOrLoadRequest{CacheName: "cache", Key: "dear"})
			if err == nil && out.GetLease() != nil {
				loads.Add(1)
				_, err = c.Fill(ctx, &mechav1.CacheFillRequest{CacheName: "cache", Key: "dear", Lease: out.GetLease().GetId(), Result: &mechav1.CacheFillRequest_Value{Value: []byte("v")}})
			} else if string(out.GetEntry().GetValue()) == "v" {
				values.Add(1)
			}
			done <- err
		}()
	}
	for range 60 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if loads.Load() != 1 || values.Load() != 59 {
		t.Errorf("%d loads and %d values, want 1 and 59", loads.Load(), values.Load())
	}
	// Redis is killed: who takes stale entries has them, others are told in time, and no other
	// store waits.
	near(replicas[0], "v19")
	srv.Kill()
	for end := time.Now().Add(20 * time.Second); ; {
		at := time.Now()
		e, err := get(replicas[0], true)
		if took := time.Since(at); took > 5*time.Second {
			t.Fatalf("a read took %v while Redis was dead", took)
		}
		if err == nil && string(e.GetValue()) == "v19" && e.GetStale() {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("with Redis dead a replica answers %v, %v; want its stale entry", e, err)
		}
	}
	if _, err := get(replicas[0], false); err == nil || !strings.Contains(err.Error(), "redis") {
		t.Errorf("a read that takes no stale entries: %v", err)
	}
	if resp, body := harness.Do(t, "GET", first.URL("/v1.0/state/state/k"), nil); resp.StatusCode != 204 {
		t.Errorf("another store: %d %s", resp.StatusCode, body)
	}
	// It comes back, empty.
	srv.Restart(t)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := set(replicas[1], "after")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("Redis is back and a write fails: %v", err)
		}
	}
	near(replicas[0], "after")
	near(replicas[1], "after")
	stats, err := replicas[0].Stats(ctx, &mechav1.CacheStatsRequest{CacheName: "cache"})
	if err != nil || stats.GetStalenessBound().AsDuration() != 30*time.Second || stats.GetNearHits() == 0 || stats.GetStale() == 0 {
		t.Errorf("Stats: %v, %v", stats, err)
	}
	if _, err := replicas[0].Touch(ctx, &mechav1.CacheTouchRequest{CacheName: "cache", Key: "k", Ttl: durationpb.New(time.Minute)}); err != nil {
		t.Error(err)
	}
}
