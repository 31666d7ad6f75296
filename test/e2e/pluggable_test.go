package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

const pluggableResources = `apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: stock}
spec: {type: state.outside, version: v1, metadata: [{name: colour, value: red}]}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: bus}
spec: {type: pubsub.outside, version: v1}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: safe}
spec: {type: secretstores.outside, version: v1, metadata: [{name: db, value: p4ss}]}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: horn}
spec: {type: bindings.outside, version: v1, metadata: [{name: tune, secretKeyRef: {name: db, key: value}}]}
auth: {secretStore: safe}
---
apiVersion: dapr.io/v1alpha1
kind: Subscription
metadata: {name: news}
spec: {pubsubname: bus, topic: news, route: /news}
`

// socketFolder has a component's process, and what may lie beside it.
func socketFolder(t *testing.T) (string, *servers.Pluggable) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pl-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "mute.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return dir, servers.StartPluggable(t, dir, "outside", "-features", "ETAG,TRANSACTIONAL")
}

// Every block of a component in a process of its own, through its death and return.
func TestPluggableComponents(t *testing.T) {
	t.Parallel()
	dir, p := socketFolder(t)
	news, events := make(chan struct{}, 100), make(chan struct{}, 100)
	app := http.NewServeMux()
	app.HandleFunc("/news", func(http.ResponseWriter, *http.Request) { news <- struct{}{} })
	app.HandleFunc("/horn", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			events <- struct{}{}
		}
	})
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", AppPort: harness.Serve(t, app), Files: map[string]string{"r.yaml": pluggableResources},
		Env: []string{"DAPR_COMPONENTS_SOCKETS_FOLDER=" + dir}})
	s.WaitLog("pluggable component 'outside' was successfully registered for 'dapr.proto.components.v1.StateStore'")
	s.WaitLog("mute.sock")
	expect := func(method, path, body string, status int, text string, header ...string) {
		t.Helper()
		res, got := harness.Do(t, method, s.URL(path), []byte(body), header...)
		if res.StatusCode != status || !strings.Contains(string(got), text) {
			t.Fatalf("%s %s = %d %s, want %d with %q", method, path, res.StatusCode, got, status, text)
		}
	}
	arrives := func(what string, c chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(20 * time.Second):
			t.Fatalf("no %s\n%s", what, s.Log())
		}
	}
	json := []string{"Content-Type", "application/json"}
	for round := range 2 {
		expect("POST", "/v1.0/state/stock", `[{"key":"a","value":1},{"key":"b","value":2}]`, 204, "", json...)
		expect("GET", "/v1.0/state/stock/a", "", 200, "1")
		expect("GET", "/v1.0/state/stock/properties", "", 200, "red") // the component got its metadata, and keys their prefix
		expect("POST", "/v1.0/state/stock", `[{"key":"a","value":1,"etag":"nonsense"}]`, 409, "etag", json...)
		expect("POST", "/v1.0/state/stock", `[{"key":"a","value":1,"metadata":{"ttlInSeconds":"5"}}]`, 500, "TTL", json...)
		expect("POST", "/v1.0/state/stock/transaction", `{"operations":[{"operation":"upsert","request":{"key":"c","value":3}},{"operation":"delete","request":{"key":"b"}}]}`, 204, "", json...)
		expect("GET", "/v1.0/state/stock/b", "", 204, "")
		expect("GET", "/v1.0/secrets/safe/db", "", 200, "p4ss")
		expect("POST", "/v1.0/bindings/horn", `{"operation":"shout","data":"hey"}`, 200, "HEY", json...)
		expect("POST", "/v1.0/bindings/horn", `{"operation":"whisper"}`, 500, "whisper", json...)
		expect("POST", "/v1.0/bindings/horn", fmt.Sprintf(`{"operation":"event","data":"e%d"}`, round), 204, "", json...)
		expect("POST", "/v1.0/publish/bus/news", `{"n":1}`, 204, "", json...)
		arrives("event of the binding", events)
		arrives("message", news)
		if round == 0 {
			p.Kill()
			expect("GET", "/v1.0/state/stock/a", "", 500, "does its process run?")
			p.Restart(t)
		}
	}
	_, meta := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil)
	for _, want := range []string{"state.outside", "OUTPUT_BINDING", `"ETAG"`} {
		if !strings.Contains(string(meta), want) {
			t.Errorf("metadata lack %s: %s", want, meta)
		}
	}
}

// A type that no socket serves stops the start, as any unknown type does.
func TestPluggableMissing(t *testing.T) {
	t.Parallel()
	dir, _ := socketFolder(t)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", NoWait: true, Env: []string{"DAPR_COMPONENTS_SOCKETS_FOLDER=" + dir},
		Files: map[string]string{"r.yaml": "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: x}\nspec: {type: state.elsewhere, version: v1}\n"}})
	if code := s.Wait(30 * time.Second); code == 0 {
		t.Error("exit code 0")
	}
	if !strings.Contains(s.Log(), "couldn't find state store state.elsewhere/v1") {
		t.Errorf("log: %s", s.Log())
	}
}

// The sample in Go is a binding as the guide says.
func TestPluggableSample(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "pl-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program := filepath.Join(dir, "sample")
	build := exec.Command("go", "build", "-o", program, "../../deploy/samples/pluggable-go")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	socket := filepath.Join(dir, "lines.sock")
	servers.Start(t, exec.Command(program, socket), func() error {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err
	})
	const resource = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: journal}\nspec: {type: bindings.lines, version: v1, metadata: [{name: path, value: %s}]}\n"
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Env: []string{"DAPR_COMPONENTS_SOCKETS_FOLDER=" + dir},
		Files: map[string]string{"j.yaml": fmt.Sprintf(resource, filepath.Join(dir, "journal"))}})
	s.WaitOutbound()
	for i, tt := range []struct {
		body   string
		status int
		want   string
	}{
		{`{"operation":"list"}`, 200, `[]`},
		{`{"operation":"create","data":{"sold":7}}`, 204, ``},
		{`{"operation":"create","data":"x"}`, 204, ``},
		{`{"operation":"list"}`, 200, `["{\"sold\":7}","\"x\""]`},
	} {
		resp, body := harness.Do(t, "POST", s.URL("/v1.0/bindings/journal"), []byte(tt.body))
		if resp.StatusCode != tt.status || strings.TrimSpace(string(body)) != tt.want {
			t.Errorf("%d: %s: %d %s, want %d %s", i, tt.body, resp.StatusCode, body, tt.status, tt.want)
		}
	}
}
