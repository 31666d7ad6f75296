package vault_test

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/vault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type values = map[string]string

// fake is a key-value engine, version 2, mounted at kv/team. It answers as Vault does, and cleans
// no paths: what it is asked for is what a client said.
type fake struct {
	mu       sync.Mutex
	token    string
	secrets  map[string][]any // versions by full path, the last is the latest; nil was deleted
	health   int
	fail     int // status of every answer of the engine, if not 0
	failText string
	asked    []string
}

func newFake() *fake {
	return &fake{token: "root", health: 200, secrets: map[string][]any{
		"dapr/db":         {values{"user": "u", "password": "old"}, values{"user": "u", "password": "p"}},
		"dapr/plain":      {values{"plain": "v"}},
		"dapr/app/a b/c%": {map[string]any{"n": 5, "list": []int{1, 2}, "yes": true, "none": nil, "s": "x"}},
		"dapr/deleted":    {nil},
		"other/x":         {values{"x": "not ours"}},
	}}
}

// change alters the fake while it serves.
func (f *fake) change(how func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how()
}

// asks are the requests since the last time.
func (f *fake) asks() (out []string) {
	f.change(func() { out, f.asked = f.asked, nil })
	return out
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.Method+" "+r.URL.RequestURI())
	answer := func(status int, body any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(body)
	}
	if r.URL.Path == "/v1/sys/health" {
		answer(f.health, map[string]any{"sealed": f.health == 503})
		return
	}
	switch {
	case f.fail != 0:
		w.WriteHeader(f.fail)
		fmt.Fprint(w, f.failText)
		return
	case r.Header.Get("X-Vault-Token") != f.token || r.Header.Get("X-Vault-Request") != "true":
		answer(403, map[string]any{"errors": []string{"permission denied"}})
		return
	}
	path, _ := url.PathUnescape(r.URL.EscapedPath())
	if name, ok := strings.CutPrefix(path, "/v1/kv/team/data/"); ok && r.Method == "GET" {
		f.read(answer, name, r.URL.Query().Get("version"))
		return
	}
	if folder, ok := strings.CutPrefix(path, "/v1/kv/team/metadata"); ok && r.Method == "LIST" {
		f.list(answer, strings.TrimPrefix(folder+"/", "/"))
		return
	}
	answer(404, map[string]any{"errors": []string{}})
}

func (f *fake) read(answer func(int, any), name, version string) {
	versions := f.secrets[name]
	n, err := strconv.Atoi(version)
	if n == 0 {
		n = len(versions)
	}
	if err != nil || n > len(versions) || n == 0 {
		answer(404, map[string]any{"errors": []string{}})
		return
	}
	if versions[n-1] == nil { // as Vault does for a deleted version
		answer(404, map[string]any{"data": map[string]any{"data": nil, "metadata": map[string]any{"deletion_time": "2031-01-01T00:00:00Z"}}})
		return
	}
	answer(200, map[string]any{"data": map[string]any{"data": versions[n-1], "metadata": map[string]any{"version": n}}})
}

func (f *fake) list(answer func(int, any), folder string) {
	seen, keys := map[string]bool{}, []string{}
	for name := range f.secrets {
		rest, ok := strings.CutPrefix(name, folder)
		if !ok {
			continue
		}
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			rest = rest[:i+1]
		}
		if !seen[rest] {
			seen[rest] = true
			keys = append(keys, rest)
		}
	}
	if len(keys) == 0 {
		answer(404, map[string]any{"errors": []string{}})
		return
	}
	answer(200, map[string]any{"data": map[string]any{"keys": keys}})
}

// serve starts a fake and gives the configuration that reaches it.
func serve(t *testing.T, f http.Handler) *vault.Config {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	c := vault.DefaultConfig()
	c.VaultAddr, c.Token, c.EnginePath = srv.URL, "root", "kv/team"
	return c
}

func open(t *testing.T, c *vault.Config) block.Secret {
	t.Helper()
	s, err := vault.New(block.Env{}, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(t.Context()) })
	return s
}

func TestConformance(t *testing.T) {
	odd := values{"n": "5", "list": "[1,2]", "yes": "true", "s": "x"}
	t.Run("map", func(t *testing.T) {
		want := map[string]values{"db": {"user": "u", "password": "p"}, "plain": {"plain": "v"}, "app/a b/c%": odd}
		blocktest.Secret(t, want, func(t *testing.T) block.Secret { return open(t, serve(t, newFake())) })
	})
	t.Run("without a prefix", func(t *testing.T) {
		want := map[string]values{"dapr/db": {"user": "u", "password": "p"}, "other/x": {"x": "not ours"}}
		blocktest.Secret(t, want, func(t *testing.T) block.Secret {
			c := serve(t, newFake())
			c.KVUsePrefix = false
			return open(t, c)
		})
	})
	t.Run("text", func(t *testing.T) {
		want := map[string]values{"db": {"db": `{"password":"p","user":"u"}`}, "plain": {"plain": `{"plain":"v"}`}}
		blocktest.Secret(t, want, func(t *testing.T) block.Secret {
			c := serve(t, newFake())
			c.ValueType = "text"
			return open(t, c)
		})
	})
}

func TestVersions(t *testing.T) {
	s := open(t, serve(t, newFake()))
	get := func(version string) (values, error) {
		return s.Get(t.Context(), "db", map[string]string{"version_id": version})
	}
	for version, want := range map[string]string{"1": "old", "2": "p", "0": "p", "": "p", "01": "old"} {
		if got, err := get(version); err != nil || got["password"] != want {
			t.Errorf("version %q: %v, %v; want %s", version, got, err, want)
		}
	}
	for version, want := range map[string]fault.Code{"3": fault.NotFound, "latest": fault.Invalid, "-1": fault.Invalid, "1&x=y": fault.Invalid} {
		if got, err := get(version); fault.Of(err) != want {
			t.Errorf("version %q: %v, %v; want %v", version, got, err, want)
		}
	}
	all, err := s.GetAll(t.Context(), map[string]string{"version_id": "2"})
	if d := cmp.Diff(map[string]values{"db": {"user": "u", "password": "p"}}, all); err != nil || d != "" {
		t.Errorf("all of version 2: %v (-want +got):\n%s", err, d)
	}
	if _, err := s.GetAll(t.Context(), map[string]string{"version_id": "x"}); fault.Of(err) != fault.Invalid {
		t.Errorf("all: %v", err)
	}
}

// What is sent, to the letter.
func TestRequests(t *testing.T) {
	f := newFake()
	s := open(t, serve(t, f))
	_ = s.Ping(t.Context())
	_, _ = s.Get(t.Context(), "app/a b/c%?#ü", nil)
	f.change(func() { f.secrets = map[string][]any{"dapr/a/b/c": {values{"k": "v"}}} })
	if _, err := s.GetAll(t.Context(), nil); err != nil {
		t.Error(err)
	}
	want := []string{"GET /v1/sys/health", "GET /v1/kv/team/data/dapr/app/a%20b/c%25%3F%23%C3%BC?version=0",
		"LIST /v1/kv/team/metadata/dapr", "LIST /v1/kv/team/metadata/dapr/a", "LIST /v1/kv/team/metadata/dapr/a/b", "GET /v1/kv/team/data/dapr/a/b/c?version=0"}
	if d := cmp.Diff(want, f.asks()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	f.change(func() { f.secrets = nil })
	if all, err := s.GetAll(t.Context(), nil); err != nil || all == nil || len(all) != 0 {
		t.Errorf("no secrets: %v, %v; want an empty map", all, err)
	}
}

// A name that a server would clean is not sent: it would read another secret.
func TestNamesThatAreNotSent(t *testing.T) {
	f := newFake()
	s := open(t, serve(t, f))
	for _, name := range []string{"", "/", "..", "../other/x", "x/../db", "db/", "/db", "./db", "app//x", "db ", " db", "db\n", "d\x00b", "\tdb"} {
		if _, err := s.Get(t.Context(), name, nil); fault.Of(err) != fault.NotFound {
			t.Errorf("%q: %v, want not found", name, err)
		}
	}
	if asked := f.asks(); len(asked) > 0 {
		t.Errorf("asked %q", asked)
	}
}

func TestFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		text   string
		code   fault.Code
		want   string
	}{
		"denied":          {403, `{"errors":["permission denied"]}`, fault.Denied, "secret db: vault answered 403 (permission denied); may the token read it?"},
		"sealed":          {503, `{"errors":["Vault is sealed"]}`, fault.Unavailable, "secret db: vault answered 503 (Vault is sealed)"},
		"too many":        {429, ``, fault.Exhausted, "secret db: vault answered 429"},
		"a bad request":   {400, `{"errors":["a","b\n c"]}`, fault.Invalid, "secret db: vault answered 400 (a; b c)"},
		"a stranger":      {502, `<html>hush</html>`, fault.Unavailable, "secret db: vault answered 502"},
		"no JSON":         {200, `hush`, fault.Internal, "is vaultAddr right?"},
		"no KV version 2": {200, `{"data":{"user":"hush"}}`, fault.NotFound, "secret db not found"},
		"not an object":   {200, `{"data":{"data":"hush"}}`, fault.Internal, "secret db is no object; is enginePath"},
		"too large":       {200, strings.Repeat("x", 5<<20), fault.TooLarge, "larger than 4 MiB"},
		"a redirect":      {307, ``, fault.Unavailable, "secret db: vault answered 307"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.fail, f.failText = tt.status, tt.text
			s := open(t, serve(t, f))
			_, err := s.Get(t.Context(), "db", nil)
			if fault.Of(err) != tt.code || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v (%v), want %v and %q", err, fault.Of(err), tt.code, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("the error quotes the answer: %v", err)
			}
			if _, err := s.GetAll(t.Context(), nil); tt.status != 200 && err == nil {
				t.Error("GetAll succeeds")
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	srv := httptest.NewServer(newFake())
	c := vault.DefaultConfig()
	c.VaultAddr, c.Token = srv.URL, "t0ken"
	srv.Close()
	s := open(t, c)
	_, err := s.Get(t.Context(), "db", nil)
	for _, err := range []error{err, s.Ping(t.Context())} {
		if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.HasPrefix(err.Error(), "vault at "+srv.URL+": dial tcp") {
			t.Errorf("%v (%v, %v)", err, fault.Of(err), fault.SentOf(err))
		}
		if strings.Contains(err.Error(), "t0ken") {
			t.Error("the error holds the token")
		}
	}
}

func TestHealth(t *testing.T) {
	f := newFake()
	s := open(t, serve(t, f))
	for status, want := range map[int]string{200: "", 429: "", 472: "", 473: "", 404: "", 501: "is not initialized", 503: "is sealed"} {
		f.change(func() { f.health = status })
		err := s.Ping(t.Context())
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || fault.Of(err) != fault.Unavailable) {
			t.Errorf("health %d: %v, want %q", status, err, want)
		}
	}
}

// A token in a file is read when it is used: an agent may have renewed it.
func TestTokenFile(t *testing.T) {
	f := newFake()
	c := serve(t, f)
	c.Token, c.TokenMountPath = "", filepath.Join(t.TempDir(), "token")
	s := open(t, c)
	for _, step := range []struct {
		content, server string
		code            fault.Code
	}{{"", "root", fault.Unavailable}, {" root\n", "root", fault.OK}, {"next", "root", fault.Denied}, {"next", "next", fault.OK}, {"a\nb", "next", fault.Unavailable}} {
		if step.content != "" {
			if err := os.WriteFile(c.TokenMountPath, []byte(step.content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		f.change(func() { f.token = step.server })
		_, err := s.Get(t.Context(), "db", nil)
		if fault.Of(err) != step.code {
			t.Errorf("file %q, server %q: %v, want %v", step.content, step.server, err, step.code)
		}
		if code := fault.Of(s.Ping(t.Context())); step.code == fault.Unavailable && code != step.code {
			t.Errorf("file %q: Ping is %v", step.content, code)
		}
	}
}

// A standby sends a request on to the active server; nothing else is followed.
func TestRedirects(t *testing.T) {
	f := newFake()
	active := httptest.NewServer(f)
	t.Cleanup(active.Close)
	to := func(status int, target func(r *http.Request) string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target(r), status) })
	}
	s := open(t, serve(t, to(307, func(r *http.Request) string { return active.URL + r.URL.RequestURI() })))
	if got, err := s.Get(t.Context(), "db", nil); err != nil || got["password"] != "p" {
		t.Errorf("to the active server: %v, %v", got, err)
	}
	if all, err := s.GetAll(t.Context(), nil); err != nil || len(all) != 3 {
		t.Errorf("to the active server: %v, %v", all, err)
	}
	f.asks()
	s = open(t, serve(t, to(307, func(*http.Request) string { return active.URL + "/v1/kv/team/data/dapr/plain?version=0" })))
	if got, err := s.Get(t.Context(), "db", nil); fault.Of(err) != fault.Unavailable {
		t.Errorf("to another secret: %v, %v", got, err)
	}
	s = open(t, serve(t, to(301, func(r *http.Request) string { return active.URL + r.URL.RequestURI() })))
	if all, err := s.GetAll(t.Context(), nil); fault.Of(err) != fault.Unavailable {
		t.Errorf("to another method: %v, %v", all, err)
	}
	secure := httptest.NewTLSServer(to(307, func(r *http.Request) string { return active.URL + r.URL.RequestURI() }))
	t.Cleanup(secure.Close)
	c := vault.DefaultConfig()
	c.VaultAddr, c.Token, c.EnginePath, c.SkipVerify = secure.URL, "root", "kv/team", true
	if got, err := open(t, c).Get(t.Context(), "db", nil); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "from https to http") {
		t.Errorf("to clear text: %v, %v", got, err)
	}
	if asked := f.asks(); len(asked) > 0 {
		t.Errorf("the active server was asked %q", asked)
	}
}

func TestTLS(t *testing.T) {
	srv := httptest.NewUnstartedServer(newFake())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of clients that hang up
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}))
	folder := t.TempDir()
	file := filepath.Join(folder, "sub", "ca.pem")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(ca), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		set  func(*vault.Config)
		want string // of the first use
	}{
		"unknown authority": {func(*vault.Config) {}, "certificate"},
		"text":              {func(c *vault.Config) { c.CAPem = ca }, ""},
		"a file":            {func(c *vault.Config) { c.CACert = file }, ""},
		"a folder":          {func(c *vault.Config) { c.CAPath = folder }, ""},
		"its name":          {func(c *vault.Config) { c.CAPem, c.TLSServerName = ca, "example.com" }, ""},
		"another name":      {func(c *vault.Config) { c.CAPem, c.TLSServerName = ca, "other.test" }, "other.test"},
		"unverified":        {func(c *vault.Config) { c.SkipVerify = true }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := vault.DefaultConfig()
			c.VaultAddr, c.Token, c.EnginePath = srv.URL, "root", "kv/team"
			tt.set(c)
			err := open(t, c).Ping(t.Context())
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	for name, set := range map[string]func(*vault.Config){
		"caPem":  func(c *vault.Config) { c.CAPem = "hush" },
		"caCert": func(c *vault.Config) { c.CACert = filepath.Join(folder, "none") },
		"caPath": func(c *vault.Config) { c.CAPath = filepath.Join(folder, "none") },
	} {
		c := vault.DefaultConfig()
		set(c)
		if _, err := vault.New(block.Env{}, c); err == nil || !strings.HasPrefix(err.Error(), name+": ") || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfig(t *testing.T) {
	set, err := block.NewSet(vault.Backend())
	if err != nil {
		t.Fatal(err)
	}
	part, ok := set.Find("secretstores.hashicorp.vault", "v1")
	if !ok {
		t.Fatal("no part")
	}
	for _, tt := range []struct {
		items []string
		want  string
	}{
		{[]string{"vaultToken", "t"}, ""},
		{[]string{"vaultTokenMountPath", "/x"}, ""},
		{nil, "vaultToken: required, unless vaultTokenMountPath is given"},
		{[]string{"vaultToken", "hush", "vaultTokenMountPath", "/x"}, "vaultTokenMountPath: not together with vaultToken"},
		{[]string{"vaultToken", "t", "vaultAddr", "vault:8200"}, "vaultAddr: want a URL"},
		{[]string{"vaultToken", "t", "vaultAddr", "https://me:hush@vault"}, "vaultAddr: want a URL"},
		{[]string{"vaultToken", "t", "vaultAddr", "http://127.0.0.1:8200/"}, ""},
		{[]string{"vaultToken", "t", "enginePath", "/kv"}, "enginePath: want the path"},
		{[]string{"vaultToken", "t", "vaultKVPrefix", "../x"}, "vaultKVPrefix: want a folder"},
		{[]string{"vaultToken", "t", "vaultKVPrefix", "../x", "vaultKVUsePrefix", "false"}, ""},
		{[]string{"vaultToken", "t", "vaultValueType", "json"}, "vaultValueType"},
		{[]string{"vaultToken", "t", "vaultValueType", "Text"}, ""},
	} {
		err := conf.Decode(conf.Items(tt.items...), part.Config()).Err()
		if (err == nil) != (tt.want == "") || err != nil && (!strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hush")) {
			t.Errorf("%v: %v, want %q", tt.items, err, tt.want)
		}
	}
}
