package mesh

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// An event for each upsert of a transaction that commits, and none for one that does not.
func TestOutbox(t *testing.T) {
	mesh, app := harness.NewMesh(t), &inbox{}
	dir := t.TempDir()
	files := map[string]string{
		"store.yaml":  component("store", "state.sqlite", "connectionString", filepath.Join(dir, "s.db"), "outboxPublishPubsub", "pubsub", "outboxPublishTopic", "orders"),
		"pubsub.yaml": component("pubsub", "pubsub.in-memory"),
		"sub.yaml":    "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: s}\nspec: {pubsubname: pubsub, topic: orders, routes: {default: /orders}}\n"}
	s := mesh.Start(harness.Options{AppID: "shop", AppPort: harness.Serve(t, app), Files: files})
	s.WaitLog("through pubsub=pubsub")
	transact := func(want int, ops string) {
		t.Helper()
		resp, body := harness.Do(t, "POST", s.URL("/v1.0/state/store/transaction"), []byte(`{"operations":[`+ops+`]}`), "Content-Type", "application/json")
		if resp.StatusCode != want {
			t.Fatalf("%d %s, want %d", resp.StatusCode, body, want)
		}
	}
	upsert := func(key, value, more string) string {
		return fmt.Sprintf(`{"operation":"upsert","request":{"key":"%s","value":%s%s}}`, key, value, more)
	}
	transact(204, upsert("a", `{"n":1}`, "")+","+`{"operation":"delete","request":{"key":"x"}}`)
	first := app.await(t, "/orders")
	for _, want := range []string{`"data":{"n":1}`, `"source":"shop"`, `"topic":"orders"`, `"pubsubname":"pubsub"`, `"id":"outbox-`, `"datacontenttype":"application/json"`} {
		if !strings.Contains(first.Body, want) {
			t.Errorf("%s is missing in %s", want, first.Body)
		}
	}

	// What is published may differ from what is stored, and carries its metadata.
	transact(204, upsert("b", `"stored"`, "")+","+upsert("b", `"published"`, `,"metadata":{"outbox.projection":"true"}`)+","+upsert("c", `1`, `,"metadata":{"color":"red"}`))
	eventually(t, 15*time.Second, "two more events", func() bool { return app.count("/orders") == 3 })
	all := ""
	app.mu.Lock()
	for _, r := range app.got["/orders"] {
		all += r.Body + "\n"
	}
	app.mu.Unlock()
	if !strings.Contains(all, `"data":"published"`) || strings.Contains(all, `"stored"`) || !strings.Contains(all, `"color":"red"`) {
		t.Errorf("events:\n%s", all)
	}
	if _, b := harness.Do(t, "GET", s.URL("/v1.0/state/store/b"), nil); string(b) != `"stored"` {
		t.Errorf("b is %s", b)
	}

	// A transaction that does not commit has no events, and no marker is left of the others.
	transact(500, upsert("d", `1`, "")+","+upsert("a", `2`, `,"etag":"wrong"`))
	transact(204, upsert("e", `5`, ""))
	eventually(t, 15*time.Second, "the event of the last", func() bool { return app.count("/orders") == 4 })
	time.Sleep(500 * time.Millisecond) // anything more would come about now
	if n := app.count("/orders"); n != 4 {
		t.Errorf("%d events, want 4", n)
	}
	eventually(t, 10*time.Second, "no marker is left", func() bool { return !strings.Contains(dump(t, filepath.Join(dir, "s.db")), "outbox-") })
}

// Half an outbox would lose events without a word.
func TestHalfAnOutboxIsRefused(t *testing.T) {
	mesh := harness.NewMesh(t)
	s := mesh.Start(harness.Options{AppID: "shop", Files: map[string]string{
		"store.yaml": strings.Replace(component("store", "state.in-memory", "outboxPublishPubsub", "pubsub"), "  version: v1\n", "  version: v1\n  ignoreErrors: true\n", 1)}})
	s.WaitLog("outboxPublishPubsub and outboxPublishTopic belong together")
}
