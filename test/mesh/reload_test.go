package mesh

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// Components and subscriptions change while a sidecar runs: nothing that is in progress fails,
// and what is wrong leaves what was there.
func TestComponentsAreReplacedLive(t *testing.T) {
	mesh, app, dir := harness.NewMesh(t), &inbox{}, t.TempDir()
	db := func(file string) string {
		return component("store", "state.sqlite", "connectionString", filepath.Join(dir, file), "busyTimeout", "2s")
	}
	s := mesh.Start(harness.Options{AppID: "live", AppPort: harness.Serve(t, app), Files: map[string]string{
		"store.yaml": db("one.db"), "pubsub.yaml": component("pubsub", "pubsub.in-memory")}})
	put := func(name, text string) {
		t.Helper()
		tmp := filepath.Join(dir, "new")
		if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(s.Dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	status := func(method, path, body string) int {
		resp, _ := harness.Do(t, method, s.URL(path), []byte(body), "Content-Type", "application/json")
		return resp.StatusCode
	}
	get := func(path string) string {
		_, b := harness.Do(t, "GET", s.URL(path), nil)
		return string(b)
	}
	if got := status("POST", "/v1.0/state/store", `[{"key":"k","value":"in one"}]`); got != 204 {
		t.Fatalf("set: %d", got)
	}

	// Calls go on all the while.
	var failed atomic.Int32
	done := make(chan struct{})
	var load sync.WaitGroup
	for i := range 4 {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-done:
					return
				default:
				}
				if status("POST", "/v1.0/state/store", fmt.Sprintf(`[{"key":"load-%d","value":%d}]`, i, n)) != 204 {
					failed.Add(1)
				}
			}
		})
	}

	put("store.yaml", db("two.db"))
	eventually(t, 10*time.Second, "the other database is in use", func() bool { return get("/v1.0/state/store/k") == "" })
	put("store.yaml", db("one.db"))
	eventually(t, 10*time.Second, "the first is in use again, with what was in it", func() bool { return get("/v1.0/state/store/k") == `"in one"` })
	put("store.yaml", component("store", "state.sqlite", "connectionString", filepath.Join(dir, "no such folder", "x.db")))
	s.WaitLog("the changed component is not used")
	if got := get("/v1.0/state/store/k"); got != `"in one"` {
		t.Errorf("after a change that does not work: %q", got)
	}
	put("store.yaml", db("one.db"))
	close(done)
	load.Wait()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d calls failed while the component was replaced", n)
	}

	// Another block under the same name, and none.
	put("store.yaml", component("store", "lock.in-memory"))
	eventually(t, 10*time.Second, "the store is a lock now", func() bool {
		return status("GET", "/v1.0/state/store/k", "") == 500 && status("POST", "/v1.0-alpha1/lock/store", `{"resourceId":"r","lockOwner":"o","expiryInSeconds":1}`) == 200
	})
	if err := os.Remove(filepath.Join(s.Dir, "store.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "it is gone", func() bool {
		return status("POST", "/v1.0-alpha1/lock/store", `{"resourceId":"r","lockOwner":"o","expiryInSeconds":1}`) != 200
	})

	// A subscription that comes, and a broker that is made anew below it.
	put("sub.yaml", "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: s}\nspec: {pubsubname: pubsub, topic: t, routes: {default: /events}}\n")
	s.WaitLog("Found Subscription: s")
	if got := status("POST", "/v1.0/publish/pubsub/t", `"first"`); got != http.StatusNoContent {
		t.Fatalf("publish: %d", got)
	}
	app.await(t, "/events")
	put("pubsub.yaml", component("pubsub", "pubsub.in-memory", "history", "10"))
	s.WaitLog("Component updated: pubsub")
	eventually(t, 10*time.Second, "the new broker delivers", func() bool {
		status("POST", "/v1.0/publish/pubsub/t", `"second"`)
		return app.count("/events") > 1
	})
}
