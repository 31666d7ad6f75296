package e2e

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// A password changes without a restart: the secret store is declared anew, what has the secret is
// opened anew beside what was there, and no call fails meanwhile.
func TestSecretsChangeLive(t *testing.T) {
	t.Parallel()
	db := servers.StartRedis(t)
	command := func(args ...string) string {
		t.Helper()
		out, err := servers.RedisCommand(db.Port, args...)
		if err != nil {
			t.Fatalf("redis %v: %v", args, err)
		}
		return out
	}
	command("ACL", "SETUSER", "shop", "on", ">first", "~*", "&*", "+@all")
	dir := t.TempDir()
	store := func(file, password string) string {
		text, _ := json.Marshal(map[string]string{"password": password, "key": "key of " + password})
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf(localStore, path)
	}
	var mu sync.Mutex
	seen := map[string]int{}
	slow := make(chan struct{})
	answer := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			seen[name+" "+r.Header.Get("X-Key")]++
			mu.Unlock()
			if strings.HasSuffix(r.URL.Path, "/slow") {
				<-slow
			}
			fmt.Fprint(w, name)
		}
	}
	saw := func(what string) int { mu.Lock(); defer mu.Unlock(); return seen[what] }
	quiet := log.New(io.Discard, "", 0)
	serve := func(name string) (*httptest.Server, string) {
		srv := httptest.NewUnstartedServer(answer(name))
		srv.Config.ErrorLog = quiet
		srv.StartTLS()
		t.Cleanup(srv.Close)
		var ca bytes.Buffer
		_ = pem.Encode(&ca, &pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
		return srv, ca.String()
	}
	one, ca := serve("one")
	two, _ := serve("two") // the same certificate: httptest has one
	endpoint := func(url string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: ext}\nspec:\n  baseUrl: '" + url + "'\n  headers: [{name: X-Key, secretKeyRef: {name: key}}]\n  clientTLS:\n    rootCA:\n      value: |\n        " +
			strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n        ") + "\nauth: {secretStore: local}\n"
	}
	state := fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nspec:\n  type: state.redis\n  version: v1\n  metadata:\n  - {name: redisHost, value: '%s'}\n  - {name: redisUsername, value: shop}\n"+
		"  - {name: redisPassword, secretKeyRef: {name: password}}\nauth: {secretStore: local}\n", db.Addr)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Args: []string{"--log-level=debug"},
		Files: map[string]string{"local.yaml": store("first.json", "first"), "state.yaml": state, "ext.yaml": endpoint(one.URL)}})
	s.WaitOutbound()
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
	do := func(method, url, body string) (int, string) {
		resp, b := harness.Do(t, method, url, []byte(body))
		return resp.StatusCode, string(b)
	}

	// Calls go on all the while.
	var failed atomic.Value
	done := make(chan struct{})
	var load sync.WaitGroup
	stop := sync.OnceFunc(func() { close(done); load.Wait() })
	defer stop()
	load.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			default:
			}
			if code, body := do("POST", s.URL("/v1.0/state/store"), fmt.Sprintf(`[{"key":"load","value":%d}]`, n)); code != 204 {
				failed.Store(fmt.Sprint(code, body))
			}
			if code, body := do("GET", invokeURL(s, "ext", "x"), ""); code != 200 {
				failed.Store(fmt.Sprint(code, body))
			}
		}
	})
	command("ACL", "SETUSER", "shop", ">second")
	put("local.yaml", store("second.json", "second"))
	s.WaitLog("HTTPEndpoint updated: ext")
	if _, body := do("GET", s.URL("/v1.0/secrets/local/password"), ""); strings.TrimSpace(body) != `{"password":"second"}` {
		t.Errorf("the app reads %s", body)
	}
	eventually(t, 20*time.Second, "the endpoint is called with the new key", func() bool { return saw("one key of second") > 0 })
	// The old password is no good any more, and who signed in with it is cut off.
	stop()
	command("ACL", "SETUSER", "shop", "<first")
	eventually(t, 20*time.Second, "nobody is signed in with the old password", func() bool {
		command("CLIENT", "KILL", "USER", "shop")
		code, _ := do("POST", s.URL("/v1.0/state/store"), `[{"key":"k","value":1}]`)
		return code == 204
	})

	// The endpoint moves: who is with the old one is answered by it.
	slowly := make(chan string, 1)
	go func() {
		_, body := do("GET", invokeURL(s, "ext", "slow"), "")
		slowly <- body
	}()
	before := saw("one key of second")
	eventually(t, 20*time.Second, "a call that takes long", func() bool { return saw("one key of second") > before })
	put("ext.yaml", endpoint(two.URL))
	eventually(t, 20*time.Second, "calls go to the other server", func() bool { _, body := do("GET", invokeURL(s, "ext", "x"), ""); return body == "two" })
	close(slow)
	if got := <-slowly; got != "one" {
		t.Errorf("the call in progress: %q", got)
	}
	// One that cannot be used leaves the old one; one that goes is gone.
	put("ext.yaml", strings.Replace(endpoint(one.URL), "name: key}", "name: nokey}", 1))
	s.WaitLog("the changed HTTPEndpoint is not used")
	if _, body := do("GET", invokeURL(s, "ext", "x"), ""); body != "two" {
		t.Errorf("after a change that does not work: %q", body)
	}
	if err := os.Remove(filepath.Join(s.Dir, "ext.yaml")); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the endpoint is gone", func() bool { code, _ := do("GET", invokeURL(s, "ext", "x"), ""); return code >= 400 })
	if _, metadata := do("GET", s.URL("/v1.0/metadata"), ""); strings.Contains(metadata, "httpEndpoints") {
		t.Errorf("metadata: %s", metadata)
	}
	if bad := failed.Load(); bad != nil {
		t.Errorf("a call failed while secrets changed: %v", bad)
	}
	for _, secret := range []string{"key of", `"second"`} {
		if strings.Contains(s.Log(), secret) {
			t.Errorf("%s is in the log", secret)
		}
	}
}
