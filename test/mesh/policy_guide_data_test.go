package mesh

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/mecha-project/mecha/test/harness"
)

// A name that only the policy knows stands for two stores; each key is in one of them.
func showSplit(g *guide) {
	s := g.caller()
	const keys = 200
	type item struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	var all []item
	for i := range keys {
		all = append(all, item{fmt.Sprint("k", i), fmt.Sprint("v", i)})
	}
	text, err := json.Marshal(all)
	if err != nil {
		g.t.Fatal(err)
	}
	if resp, body := harness.Do(g.t, "POST", s.URL("/v1.0/state/orders"), text, "content-type", "application/json"); resp.StatusCode != http.StatusNoContent {
		g.t.Fatalf("%d %s", resp.StatusCode, body)
	}
	var inB []item
	for _, it := range all {
		a, b := g.read(s, "orders-a", it.Key), g.read(s, "orders-b", it.Key)
		if a+b != it.Value {
			g.t.Errorf("%s: %q in one store, %q in the other, want %q in one", it.Key, a, b, it.Value)
		}
		if b != "" {
			inB = append(inB, it)
		}
		if got := g.read(s, "orders", it.Key); got != it.Value {
			g.t.Errorf("%s is %q under the common name", it.Key, got)
		}
	}
	// Placement is for ever, so these keys have no chance to fall otherwise.
	within(g.t, "keys of 200 in orders-b", len(inB), 20, 32)

	// A greater weight moves keys to orders-b and none away from it. It moves no data.
	g.rewrite(s, "orders-b, weight: 10", "orders-b, weight: 90")
	for _, it := range inB {
		if got := g.read(s, "orders", it.Key); got != it.Value {
			g.t.Errorf("%s was in orders-b and is now %q", it.Key, got)
		}
	}
	missing := 0
	for _, it := range all {
		if g.read(s, "orders", it.Key) == "" {
			missing++
		}
	}
	within(g.t, "keys of 200 that now belong to orders-b, but are in orders-a", missing, 40, 130)
}

// natsServer runs a NATS server with JetStream and returns it with its URL.
func natsServer(g *guide) (*server.Server, string) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: g.t.TempDir()})
	if err != nil {
		g.t.Fatal(err)
	}
	srv.Start()
	g.t.Cleanup(func() {
		srv.Shutdown()
		srv.WaitForShutdown()
	})
	if !srv.ReadyForConnections(20 * time.Second) {
		g.t.Fatal("the NATS server does not start")
	}
	return srv, srv.ClientURL()
}

// failedOver saves a key under the common name, another in the standby, and ends the first
// store's server.
func failedOver(g *guide) *harness.Sidecar {
	srv, url := natsServer(g)
	s := g.caller("ORDERS_NATS=" + url)
	g.mustSave(s, "orders", "k", "new")
	if got := g.read(s, "orders-main", "k"); got != "new" {
		g.t.Fatalf("%q in orders-main", got)
	}
	g.mustSave(s, "orders-standby", "k", "old")
	srv.Shutdown()
	srv.WaitForShutdown()
	eventually(g.t, 20*time.Second, "reads come from the standby", func() bool { return g.read(s, "orders", "k") == "old" })
	return s
}

func showFailover(g *guide) {
	s := failedOver(g)
	eventually(g.t, 20*time.Second, "a write is refused", func() bool {
		resp, body := g.save(s, "orders", "k", "newer")
		return resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("x-mecha-policy") == "orders-failover" && strings.Contains(body, "allowWriteFailover")
	})
	if got := g.read(s, "orders-standby", "k"); got != "old" {
		g.t.Errorf("the standby was written: %q", got)
	}
}

// The store is found ill though nobody calls it.
func showStoreHealth(g *guide) {
	srv, url := natsServer(g)
	s := g.caller("ORDERS_NATS=" + url)
	g.mustSave(s, "orders", "k", "new")
	g.mustSave(s, "orders-standby", "k", "old")
	srv.Shutdown()
	srv.WaitForShutdown()
	eventually(g.t, 20*time.Second, "the store fails its checks", func() bool {
		_, body := harness.Do(g.t, "GET", fmt.Sprintf("http://127.0.0.1:%d/mecha/v1/policy/status", s.Metrics), nil)
		return strings.Contains(string(body), `"failing": true`)
	})
	if got := g.read(s, "orders", "k"); got != "old" {
		g.t.Errorf("the first read after that is %q, want the standby's", got)
	}
	resp, body := g.save(s, "orders", "k", "newer")
	g.refused(resp, body, http.StatusServiceUnavailable, "orders-watched")
}

func showWriteFailover(g *guide) {
	s := failedOver(g)
	eventually(g.t, 20*time.Second, "a write succeeds", func() bool {
		resp, _ := g.save(s, "orders", "k", "newer")
		return resp.StatusCode == http.StatusNoContent
	})
	if got := g.read(s, "orders-standby", "k"); got != "newer" {
		g.t.Errorf("%q in the standby", got)
	}
}

func showReadOnly(g *guide) {
	s := g.caller()
	g.mustSave(s, "prices-a", "k", "a")
	g.mustSave(s, "prices-b", "k", "b")
	got := map[string]int{}
	for range 60 {
		got[g.read(s, "prices", "k")]++
	}
	within(g.t, "reads of 60 from prices-a", got["a"], 10, 50)
	within(g.t, "reads of 60 from prices-b", got["b"], 10, 50)
	resp, body := g.save(s, "prices", "k", "c")
	g.refused(resp, body, http.StatusForbidden, "prices")
}

// Messages with a key stay together, those without are spread.
func showBrokers(g *guide) {
	app := &inbox{}
	files := map[string]string{"policy.yaml": g.file}
	for _, b := range []string{"broker-a", "broker-b"} {
		files[b+".yaml"] = fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata: {name: %s}\nspec: {pubsubname: %s, topic: orders, route: /%s}\n", b, b, b)
	}
	s := g.Start(harness.Options{AppID: "caller", AppPort: harness.Serve(g.t, app), Files: files})
	got := func() (a, b int) {
		app.mu.Lock()
		defer app.mu.Unlock()
		return len(app.got["/broker-a"]), len(app.got["/broker-b"])
	}
	publish := func(n int, query string) {
		for range n {
			if resp, body := harness.Do(g.t, "POST", s.URL("/v1.0/publish/events/orders"+query), []byte(`"x"`), "content-type", "application/json"); resp.StatusCode != http.StatusNoContent {
				g.t.Fatalf("%d %s", resp.StatusCode, body)
			}
		}
	}
	publish(100, "")
	eventually(g.t, 15*time.Second, "all are delivered", func() bool { a, b := got(); return a+b == 100 })
	a, b := got()
	within(g.t, "messages of 100 at broker-a", a, 25, 75)
	publish(20, "?metadata.partitionKey=customer-7")
	eventually(g.t, 15*time.Second, "all are delivered", func() bool { a, b := got(); return a+b == 120 })
	if more, rest := got(); (more-a)*(rest-b) != 0 {
		g.t.Errorf("20 messages of one key went to both brokers: %d and %d", more-a, rest-b)
	}
}

func showMirroredPublishes(g *guide) {
	app := &inbox{}
	s := g.Start(harness.Options{AppID: "caller", AppPort: harness.Serve(g.t, app), Files: map[string]string{"policy.yaml": g.file,
		"subscription.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata: {name: next}\nspec: {pubsubname: broker-next, topic: orders, route: /next}\n"}})
	if resp, body := harness.Do(g.t, "POST", s.URL("/v1.0/publish/broker/orders"), []byte(`"three"`), "content-type", "application/json"); resp.StatusCode != http.StatusNoContent {
		g.t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if got := app.await(g.t, "/next"); !strings.Contains(got.Body, `"data":"three"`) {
		g.t.Errorf("broker-next delivered %s", got.Body)
	}
}

func showShadowStore(g *guide) {
	s := g.caller()
	g.mustSave(s, "orders-old", "k", "v")
	eventually(g.t, 15*time.Second, "the write is copied", func() bool { return g.read(s, "orders-new", "k") == "v" })
	compared := func(result string) bool {
		return g.counted(s, "mecha_policy_mirrored_total", `result="`+result+`"`, `rule="orders-shadow"`)
	}
	eventually(g.t, 15*time.Second, "a read is compared", func() bool { g.read(s, "orders-old", "k"); return compared("same") })
	if compared("different") {
		g.t.Error("the stores are said to differ")
	}
	g.mustSave(s, "orders-new", "k", "something else")
	eventually(g.t, 15*time.Second, "the difference is noticed", func() bool { return g.read(s, "orders-old", "k") == "v" && compared("different") })
}

func showComponentAccess(g *guide) {
	s, books := g.caller(), g.Start(harness.Options{AppID: "books", Files: map[string]string{"policy.yaml": g.file}})
	g.mustSave(books, "ledger", "k", "v")
	if got := g.read(books, "ledger", "k"); got != "v" {
		g.t.Errorf("books reads %q", got)
	}
	if got := g.read(s, "ledger", "k"); got != "" {
		g.t.Errorf("the caller may read, but gets %q", got)
	}
	resp, body := g.save(s, "ledger", "k", "w")
	g.refused(resp, body, http.StatusForbidden, "ledger-is-read")
}
