package mesh

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dapr/go-sdk/client"

	"github.com/mecha-project/mecha/test/harness"
)

// sdk is the official client of a sidecar.
func sdk(t *testing.T, s *harness.Sidecar) client.Client {
	t.Helper()
	s.WaitOutbound()
	c, err := client.NewClientWithAddress(s.Target())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// Locks are an app's, whichever replica asks, and nobody else's.
func TestLocks(t *testing.T) {
	mesh, dir := harness.NewMesh(t), nodeDir(t)
	files := map[string]string{"l.yaml": component("lockstore", "lock.embedded", "dataDir", dir)}
	one := mesh.Start(harness.Options{AppID: "shop", Files: files})
	two := mesh.Start(harness.Options{AppID: "shop", Files: files})
	other := mesh.Start(harness.Options{AppID: "other", Files: files})
	try := func(c client.Client, owner string, seconds int32) bool {
		t.Helper()
		got, err := c.TryLockAlpha1(t.Context(), "lockstore", &client.LockRequest{LockOwner: owner, ResourceID: "order/1", ExpiryInSeconds: seconds})
		if err != nil {
			t.Fatal(err)
		}
		return got.Success
	}
	unlock := func(c client.Client, owner, want string) {
		t.Helper()
		got, err := c.UnlockAlpha1(t.Context(), "lockstore", &client.UnlockRequest{LockOwner: owner, ResourceID: "order/1"})
		if err != nil || got.Status != want {
			t.Fatalf("unlock by %s: %+v, %v; want %s", owner, got, err, want)
		}
	}
	a, b, c := sdk(t, one), sdk(t, two), sdk(t, other)
	if !try(a, "a", 600) || try(a, "a", 600) || try(b, "b", 600) {
		t.Fatal("the first is to have the lock, and nobody after it")
	}
	if !try(c, "c", 600) {
		t.Fatal("another app's lock of the same name is in the way")
	}
	unlock(b, "b", "LOCK_BELONGS_TO_OTHERS")
	_ = nodeProcess(t, dir).Kill() // the node is started again, and has not forgotten
	eventually(t, 20*time.Second, "the lock is still there", func() bool {
		got, err := b.TryLockAlpha1(t.Context(), "lockstore", &client.LockRequest{LockOwner: "b", ResourceID: "order/1", ExpiryInSeconds: 600})
		if err == nil && got.Success {
			t.Fatal("a lock was granted twice")
		}
		return err == nil
	})
	unlock(b, "a", "SUCCESS")
	unlock(a, "a", "LOCK_DOES_NOT_EXIST")
	asked := time.Now()
	if !try(b, "b", 1) {
		t.Fatal("a lock that was given back is not granted")
	}
	eventually(t, 20*time.Second, "a lock ends by itself", func() bool { return try(a, "a", 600) })
	if lasted := time.Since(asked); lasted < time.Second {
		t.Errorf("a lock of 1s ended after %v", lasted)
	}

	for _, q := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"lock/lockstore", `{"resourceId":"r","lockOwner":"o","expiryInSeconds":60}`, 200, `{"success":true}`},
		{"lock/lockstore", `{"resource_id":"r","lockOwner":"o","expiryInSeconds":60}`, 200, `{"success":false}`},
		{"unlock/lockstore", `{"resourceId":"r","lockOwner":"x"}`, 200, `{"status":2}`},
		{"unlock/lockstore", `{"resourceId":"r","lockOwner":"o"}`, 200, `{"status":0}`},
		{"unlock/lockstore", `{"resourceId":"r","lockOwner":"o"}`, 200, `{"status":1}`},
		{"lock/nothing", `{"resourceId":"","lockOwner":"o"}`, 400, "ERR_MALFORMED_REQUEST"},
		{"lock/nothing", `{"resourceId":"r","lockOwner":"o","expiryInSeconds":0}`, 400, "ExpiryInSeconds is not positive"},
		{"lock/nothing", `{"resourceId":"r","lockOwner":"o","expiryInSeconds":1}`, 400, "ERR_LOCK_STORE_NOT_FOUND"},
		{"lock/lockstore", `{"resourceId":"a||b","lockOwner":"o","expiryInSeconds":1}`, 500, "ERR_TRY_LOCK"},
		{"unlock/lockstore", `{"resourceId":"a||b","lockOwner":"o"}`, 500, "ERR_UNLOCK"},
	} {
		resp, body := harness.Do(t, "POST", one.URL("/v1.0-alpha1/"+q.path), []byte(q.body))
		if resp.StatusCode != q.status || !strings.Contains(string(body), q.want) {
			t.Errorf("%s %s: %d %s, want %d %s", q.path, q.body, resp.StatusCode, body, q.status, q.want)
		}
	}
	if resp, body := harness.Do(t, "POST", one.URL("/v1.0/lock/lockstore"), []byte(`{}`)); resp.StatusCode != 404 {
		t.Errorf("v1.0 has no locks: %d %s", resp.StatusCode, body)
	}
}

// setConfig writes as an operator does.
func setConfig(t *testing.T, dir string, args ...string) {
	t.Helper()
	out, err := exec.Command(harness.Binary(t), append([]string{"config", "--data-dir", dir}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mecha config %q: %v\n%s", args, err, out)
	}
}

// updates are what a subscriber of the official client gets: "key=value".
type updates struct {
	mu  sync.Mutex
	got []string
}

func (u *updates) handle(_ string, items map[string]*client.ConfigurationItem) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k, it := range items {
		u.got = append(u.got, k+"="+it.Value)
	}
}

func (u *updates) has(text string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Contains(u.got, text)
}

func (u *updates) all() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.got)
}

// Configuration reaches apps over streams, from the embedded node and from a file, and the death
// of the node does not end them.
func TestConfiguration(t *testing.T) {
	dir := nodeDir(t)
	path := filepath.Join(t.TempDir(), "settings.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("color: red\nsize: 1\n")
	setConfig(t, dir, "set", "orders.limit", "10")
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", Files: map[string]string{
		"c.yaml": component("configstore", "configuration.embedded", "dataDir", dir), "f.yaml": component("settings", "configuration.file", "path", path)}})
	c := sdk(t, s)

	one, err := c.GetConfigurationItem(t.Context(), "configstore", "orders.limit")
	if err != nil || one.Value != "10" || one.Version == "" {
		t.Fatalf("GetConfigurationItem: %+v, %v", one, err)
	}
	many, err := c.GetConfigurationItems(t.Context(), "settings", []string{"color", "size", "none"})
	if err != nil || len(many) != 2 || many["color"].Value != "red" || many["size"].Value != "1" {
		t.Fatalf("GetConfigurationItems: %v, %v", many, err)
	}
	if none, err := c.GetConfigurationItem(t.Context(), "settings", "none"); err != nil || none != nil {
		t.Errorf("an unknown key: %+v, %v", none, err)
	}
	if resp, body := harness.Do(t, "GET", s.URL("/v1.0/configuration/settings"), nil); resp.StatusCode != 200 || string(body) != `{"color":{"value":"red"},"size":{"value":"1"}}`+"\n" {
		t.Errorf("all keys over HTTP: %d %s", resp.StatusCode, body)
	}
	if resp, body := harness.Do(t, "GET", s.URL("/v1.0-alpha1/configuration/settings?key=none"), nil); resp.StatusCode != 204 {
		t.Errorf("nothing over HTTP: %d %s", resp.StatusCode, body)
	}

	var node, file updates
	id, err := c.SubscribeConfigurationItems(t.Context(), "configstore", []string{"orders.limit"}, node.handle)
	if err != nil || id == "" {
		t.Fatalf("SubscribeConfigurationItems: %q, %v", id, err)
	}
	if _, err := c.SubscribeConfigurationItems(t.Context(), "settings", []string{"color", "size"}, file.handle); err != nil {
		t.Fatal(err)
	}
	setConfig(t, dir, "set", "orders.limit", "20")
	eventually(t, 20*time.Second, "the change is told", func() bool { return node.has("orders.limit=20") })
	_ = nodeProcess(t, dir).Kill()
	setConfig(t, dir, "set", "orders.limit", "30")
	eventually(t, 20*time.Second, "the change after the node's death is told", func() bool { return node.has("orders.limit=30") })
	setConfig(t, dir, "delete", "orders.limit")
	eventually(t, 20*time.Second, "the removal is told", func() bool { return node.has("orders.limit=") })
	if got := node.all(); len(got) != 3 {
		t.Errorf("told %q, want each change once and not what there was before", got)
	}
	if err := c.UnsubscribeConfigurationItems(t.Context(), "configstore", id); err != nil {
		t.Errorf("unsubscribe: %v", err)
	}
	if err := c.UnsubscribeConfigurationItems(t.Context(), "configstore", id); err == nil || !strings.Contains(err.Error(), "subscription does not exist") {
		t.Errorf("unsubscribe again: %v", err)
	}
	setConfig(t, dir, "set", "orders.limit", "40")

	write("color: blue\nsize: [1\n")
	s.WaitLog("the last good version keeps serving")
	write("color: blue\nsize: 1\n")
	eventually(t, 20*time.Second, "the file's change is told", func() bool { return file.has("color=blue") })
	if got := file.all(); len(got) != 1 {
		t.Errorf("told %q, want the one change", got)
	}
	if node.has("orders.limit=40") {
		t.Error("a subscription that was given up was told of a change")
	}
	_, body := harness.Do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/metrics", s.Metrics), nil)
	for _, want := range []string{`operation="get"`, `operation="subscribe"`, `operation="unsubscribe"`} {
		if !slices.ContainsFunc(strings.Split(string(body), "\n"), func(l string) bool {
			return strings.HasPrefix(l, "dapr_component_configuration_count{") && strings.Contains(l, want) && strings.Contains(l, `success="true"`)
		}) {
			t.Errorf("no configuration metric with %s", want)
		}
	}
	s.Signal(syscall.SIGTERM) // a stream is open
	if code := s.Wait(10 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// Updates over HTTP are calls to the app, under the inbound policy of the store.
func TestConfigurationForAnHTTPApp(t *testing.T) {
	dir := nodeDir(t)
	var mu sync.Mutex
	var got []string
	app := harness.Serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/configuration/") {
			return
		}
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		got = append(got, r.Method+" "+r.URL.Path+" "+string(body))
		if len(got) == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	calls := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", AppPort: app, Files: map[string]string{
		"c.yaml": component("configstore", "configuration.embedded", "dataDir", dir),
		"r.yaml": resiliency("res", "{retries: {r: {policy: constant, duration: 10ms, maxRetries: 2}}}", "{components: {configstore: {inbound: {retry: r}}}}")}})
	var answer struct{ ID string }
	resp, body := harness.Do(t, "GET", s.URL("/v1.0/configuration/configstore/subscribe?key=a&key=b"), nil)
	if err := json.Unmarshal(body, &answer); err != nil || resp.StatusCode != 200 || answer.ID == "" {
		t.Fatalf("subscribe: %d %s", resp.StatusCode, body)
	}
	setConfig(t, dir, "set", "a", "1")
	eventually(t, 20*time.Second, "the update and its repetition", func() bool { return len(calls()) == 2 })
	want := `POST /configuration/configstore/a {"id":"` + answer.ID + `","items":{"a":{"value":"1","version":"`
	for _, c := range calls() {
		if !strings.HasPrefix(c, want) {
			t.Errorf("the app got %s, want %s…", c, want)
		}
	}
	setConfig(t, dir, "delete", "a")
	eventually(t, 20*time.Second, "the removal", func() bool { return len(calls()) == 3 })
	if c := calls()[2]; c != `POST /configuration/configstore/a {"id":"`+answer.ID+`","items":{"a":{}}}` {
		t.Errorf("of the removal the app got %s", c)
	}
	_, metrics := harness.Do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/metrics", s.Metrics), nil)
	if !slices.ContainsFunc(strings.Split(string(metrics), "\n"), func(l string) bool {
		return strings.HasPrefix(l, "dapr_resiliency_activations_total{") && strings.Contains(l, `target="Configuration_configstore"`) && strings.Contains(l, `flow_direction="inbound"`)
	}) {
		t.Error("the inbound policy is not in the metrics")
	}
	unsubscribe := s.URL("/v1.0/configuration/configstore/" + answer.ID + "/unsubscribe")
	if resp, body := harness.Do(t, "GET", unsubscribe, nil); resp.StatusCode != 200 || string(body) != "{\"ok\":true}\n" {
		t.Errorf("unsubscribe: %d %s", resp.StatusCode, body)
	}
	if resp, body := harness.Do(t, "GET", unsubscribe, nil); resp.StatusCode != 500 || !strings.Contains(string(body), "subscription with id "+answer.ID+" does not exist") {
		t.Errorf("unsubscribe again: %d %s", resp.StatusCode, body)
	}
}

// Traffic policies of the kinds lock and configuration: a limit, and names that exist in policy
// only.
func TestPolicyOfLocksAndConfiguration(t *testing.T) {
	dir := nodeDir(t)
	setConfig(t, dir, "set", "k", "v")
	policy := func(name, spec string) string {
		return "apiVersion: mecha.io/v1\nkind: TrafficPolicy\nmetadata: {name: " + name + "}\nspec:\n" + spec
	}
	s := harness.NewMesh(t).Start(harness.Options{AppID: "shop", Files: map[string]string{
		"l.yaml": component("lockstore", "lock.in-memory"), "c.yaml": component("configstore", "configuration.embedded", "dataDir", dir),
		"a.yaml": policy("three-locks", "  match:\n  - {kind: lock, dest: lockstore, op: tryLock}\n  rateLimit:\n    local: {tokens: 3, per: 1h}\n"),
		"b.yaml": policy("other-name", "  match:\n  - {kind: configuration, dest: virtual}\n  route:\n  - {to: configstore}\n")}})
	s.WaitOutbound()
	lock := func(resource string) (*http.Response, []byte) {
		return harness.Do(t, "POST", s.URL("/v1.0-alpha1/lock/lockstore"), fmt.Appendf(nil, `{"resourceId":%q,"lockOwner":"o","expiryInSeconds":60}`, resource))
	}
	for i := range 3 {
		if resp, body := lock(fmt.Sprint(i)); resp.StatusCode != 200 {
			t.Fatalf("lock %d: %d %s", i, resp.StatusCode, body)
		}
	}
	if resp, body := lock("4"); resp.StatusCode != 429 || resp.Header.Get("x-mecha-policy") != "three-locks" {
		t.Errorf("the fourth lock: %d %v %s, want it refused by the policy", resp.StatusCode, resp.Header, body)
	}
	if resp, body := harness.Do(t, "POST", s.URL("/v1.0-alpha1/unlock/lockstore"), []byte(`{"resourceId":"0","lockOwner":"o"}`)); string(body) != `{"status":0}` {
		t.Errorf("unlock is not limited: %d %s", resp.StatusCode, body)
	}
	if resp, body := harness.Do(t, "GET", s.URL("/v1.0/configuration/virtual?key=k"), nil); resp.StatusCode != 200 || !strings.Contains(string(body), `"value":"v"`) {
		t.Errorf("a name of a policy: %d %s", resp.StatusCode, body)
	}
}
