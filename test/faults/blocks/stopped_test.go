//go:build unix

package blocks

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

const (
	halt  = 3 * time.Second        // how long a server is stopped: longer than a call waits
	away  = 700 * time.Millisecond // how long a killed one is
	again = 20 * time.Second       // by when a block works again
)

// server is one that can be stopped and killed.
type server struct {
	freeze, thaw, kill func()
	restart            func()
}

// Four blocks stand on one Redis, which writes down everything before it answers.
func TestRedisStoppedAndKilled(t *testing.T) {
	srv := servers.StartRedis(t)
	set := func(key, value string) {
		t.Helper()
		if _, err := servers.RedisCommand(srv.Port, "SET", key, value); err != nil {
			t.Fatal(err)
		}
	}
	set("fixed", "10")
	files := map[string]string{"memory.yaml": component("memory", "state.in-memory")}
	for _, block := range []string{"state", "lock", "configuration", "cache"} {
		files[block+".yaml"] = component("redis-"+block, block+".redis", "redisHost", srv.Addr)
	}
	mesh := harness.NewMesh(t)
	side := mesh.Start(harness.Options{AppID: "shop", Files: files})
	sub := subscribe(t, side, "redis-configuration", "moving")
	changes := 0
	breakServer(t, mesh, side, files, server{srv.Freeze, srv.Thaw, srv.Kill, func() { srv.Restart(t) }},
		func(what string) string {
			changes++
			value := fmt.Sprint(changes)
			set("moving", value)
			return fmt.Sprintf(" (told of a change after %v)", ms(sub.hears(t, value, 40*time.Second)))
		},
		stateTrial("state.redis", "redis-state"), lockTrial("lock.redis", "redis-lock"),
		configTrial("configuration.redis", "redis-configuration"), cacheTrial("cache.redis", "redis-cache"))
}

func TestPostgresStoppedAndKilled(t *testing.T) {
	srv := servers.Postgres(t)
	dsn := fmt.Sprintf("host=127.0.0.1 port=%d database=postgres user=postgres sslmode=disable", srv.Port)
	files := map[string]string{"memory.yaml": component("memory", "state.in-memory"),
		"state.yaml": component("pg-state", "state.postgresql", "connectionString", dsn, "password", servers.SQLPassword),
		"lock.yaml":  component("pg-lock", "lock.postgresql", "connectionString", dsn, "password", servers.SQLPassword)}
	mesh := harness.NewMesh(t)
	side := mesh.Start(harness.Options{AppID: "shop", Files: files})
	breakServer(t, mesh, side, files, server{srv.Freeze, srv.Thaw, srv.Kill, func() { srv.Start(t) }},
		func(string) string { return "" }, stateTrial("state.postgresql", "pg-state"),
		lockTrial("lock.postgresql", "pg-lock"))
}

// breakServer stops the server under load and lets it go on, then kills it and starts it again.
// The sidecar lives through both. Another store of it goes on as if nothing had happened.
func breakServer(t *testing.T, mesh *harness.Mesh, side *harness.Sidecar, files map[string]string, srv server, after func(what string) string, trials ...trial) {
	a := newAPI(t, side)
	var loads []*load
	for _, tr := range trials {
		loads = append(loads, begin(t, tr.name, 3, func(ctx context.Context, _ int, n int64) error { return tr.call(ctx, a, n) }))
	}
	other := newAPI(t, side)
	neighbour := begin(t, "state.in-memory beside it", 2, func(ctx context.Context, who int, n int64) error {
		return save(ctx, other, "memory", fmt.Sprint("k", who), value(n))
	})
	work := func() {
		t.Helper()
		for _, l := range loads {
			l.works(again)
		}
	}
	work()
	calm := time.Now()
	time.Sleep(time.Second)

	stopped := time.Now()
	srv.freeze()
	t.Cleanup(srv.thaw)
	time.Sleep(halt)
	thawed := time.Now()
	srv.thaw()
	work()
	cont := time.Since(thawed)
	said := "after the stop" + after("stop")

	killed := time.Now()
	srv.kill()
	time.Sleep(away)
	srv.restart()
	back := time.Now()
	work()
	rest := time.Since(back)
	said += ", after the kill" + after("kill")

	for _, l := range loads {
		if failedIn(l, stopped, thawed) == 0 {
			t.Errorf("%s: no call failed while the server was stopped: the test did not test", l.name)
		}
	}
	n := neighbour.judge()
	before, during := neighbour.p99(calm, stopped), max(neighbour.p99(stopped, thawed), neighbour.p99(killed, back))
	if n.failed > 0 {
		t.Errorf("%s: %d of %d calls failed", neighbour.name, n.failed, n.calls)
	}
	// A call held up by the broken server would take as long as a deadline.
	if bound := max(10*before, deadline/2); during > bound {
		t.Errorf("%s: p99 was %v before and %v during the fault, want at most %v", neighbour.name, before, during, bound)
	}
	select {
	case <-side.Exited():
		t.Error("the sidecar ended")
	default:
	}
	// A sidecar without a memory of its own reads what is there.
	judge := newAPI(t, mesh.Start(harness.Options{AppID: side.AppID, Files: files}))
	for i, l := range loads {
		f := l.judge()
		trials[i].audit(t, judge, l.acked)
		if len(l.acked) == 0 {
			t.Errorf("%s: nothing was acknowledged", l.name)
		}
		report("%s, server stopped %v and killed: %d calls, %d failed, slowest %v (deadline %v), %d acknowledged and there",
			l.name, halt, f.calls, f.failed, ms(f.slowest), deadline, len(l.acked))
	}
	report("%s, its server: all work again %v after the stop and %v after the restart; %s; p99 of %s %v before, %v during",
		trials[0].name, ms(cont), ms(rest), said, neighbour.name, before.Round(10*time.Microsecond), during.Round(10*time.Microsecond))
	if resp, body := harness.Do(t, http.MethodGet, side.URL("/v1.0/healthz"), nil); resp.StatusCode != http.StatusNoContent {
		t.Errorf("health afterwards: %d %s", resp.StatusCode, body)
	}
}

// failedIn counts failed calls that were under way in a window.
func failedIn(l *load, from, to time.Time) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.samples {
		if s.err != nil && s.to.After(from) && s.from.Before(to) {
			n++
		}
	}
	return n
}
