package kubernetes_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/kubernetes"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type values = map[string]string

// stub answers as an API server does, for secrets: its paths, its statuses, its pages. No cluster
// can run in these tests, so what it says is taken from the API's documentation.
type stub struct {
	t       testing.TB
	mu      sync.Mutex
	secrets map[string]map[string]values // by namespace and name
	token   string                       // who may ask; empty is by certificate
	user    string                       // and by password
	fail    int                          // status of every answer about secrets, if not 0
	text    string                       // its body
	after   string                       // its Retry-After
	expire  int                          // so many lists lose their place
	version int                          // status of /version
	asked   []string
}

func newStub(t testing.TB) *stub {
	return &stub{t: t, token: "t0ken", version: 200, secrets: map[string]map[string]values{
		"default": {"db": {"user": "u", "password": "p\x00\xff"}, "plain": {"plain": "v"}, "empty": {}, "a.b-c": {"tls.crt": "x"}},
		"prod":    {"db": {"user": "prod"}},
		"none":    {},
	}}
}

func (s *stub) change(how func()) { s.mu.Lock(); defer s.mu.Unlock(); how() }

func (s *stub) asks() (out []string) {
	s.change(func() { out, s.asked = s.asked, nil })
	return out
}

// say writes a Status resource.
func say(w http.ResponseWriter, code int, reason, format string, args ...any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure",
		"message": fmt.Sprintf(format, args...), "reason": reason, "code": code})
}

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, r.Method+" "+r.URL.RequestURI())
	if r.Header.Get("Accept") != "application/json" {
		s.t.Errorf("Accept is %q", r.Header.Get("Accept"))
	}
	name, password, basic := r.BasicAuth()
	switch {
	case s.token != "" && r.Header.Get("Authorization") == "Bearer "+s.token:
	case s.user != "" && basic && name+":"+password == s.user:
	case r.TLS != nil && len(r.TLS.PeerCertificates) > 0 && r.TLS.PeerCertificates[0].Subject.CommonName == "shop":
	default:
		say(w, 401, "Unauthorized", "Unauthorized")
		return
	}
	if r.URL.Path == "/version" {
		w.WriteHeader(s.version)
		fmt.Fprint(w, `{"major":"1","minor":"33","gitVersion":"v1.33.1"}`)
		return
	}
	if s.fail != 0 {
		if s.after != "" {
			w.Header().Set("Retry-After", s.after)
		}
		w.WriteHeader(s.fail)
		fmt.Fprint(w, s.text)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/")
	namespace, rest, ok2 := strings.Cut(rest, "/secrets")
	if !ok || !ok2 || r.Method != "GET" || rest == "/" {
		http.NotFound(w, r) // text, as of a path that is none
		return
	}
	in, known := s.secrets[namespace]
	if !known {
		say(w, 403, "Forbidden", `secrets is forbidden: User "system:serviceaccount:default:shop" cannot list resource "secrets" in API group "" in the namespace %q`, namespace)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if rest == "" {
		s.list(w, r, namespace, in)
		return
	}
	data, ok := in[rest[1:]]
	if !ok {
		say(w, 404, "NotFound", "secrets %q not found", rest[1:])
		return
	}
	_ = json.NewEncoder(w).Encode(resource(namespace, rest[1:], data))
}

func resource(namespace, name string, data values) map[string]any {
	raw := map[string][]byte{}
	for k, v := range data {
		raw[k] = []byte(v)
	}
	out := map[string]any{"kind": "Secret", "apiVersion": "v1", "type": "Opaque", "metadata": map[string]any{"name": name, "namespace": namespace, "uid": "7",
		"managedFields": []any{map[string]any{"manager": "kubectl"}}, "annotations": map[string]any{"a": "b"}}}
	if len(raw) > 0 {
		out["data"] = raw
	}
	return out
}

func (s *stub) list(w http.ResponseWriter, r *http.Request, namespace string, in map[string]values) {
	var names []string
	for name := range in {
		names = append(names, name)
	}
	slices.Sort(names)
	limit, err := strconv.Atoi(r.URL.Query().Get("limit"))
	if err != nil {
		s.t.Errorf("a list without a limit: %s", r.URL)
	}
	first, meta := 0, map[string]any{"resourceVersion": "7"}
	if from := r.URL.Query().Get("continue"); from != "" {
		if s.expire > 0 {
			s.expire--
			say(w, 410, "Expired", "The provided continue parameter is too old to display a consistent list result.")
			return
		}
		if first = slices.Index(names, strings.TrimPrefix(from, "a+b/")) + 1; first == 0 {
			s.t.Errorf("continued behind %q", from)
		}
	}
	last := min(first+limit, len(names))
	if last < len(names) {
		meta["continue"], meta["remainingItemCount"] = "a+b/"+names[last-1], len(names)-last
	}
	items := []any{}
	for _, name := range names[first:last] {
		one := resource(namespace, name, in[name])
		delete(one, "kind") // as in lists
		items = append(items, one)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"kind": "SecretList", "apiVersion": "v1", "metadata": meta, "items": items})
}

// serve starts the stub with TLS and gives a file with its authority.
func serve(t testing.TB, h http.Handler) (srv *httptest.Server, ca string) {
	t.Helper()
	srv = httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	ca = filepath.Join(t.TempDir(), "ca.crt")
	write(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})))
	return srv, ca
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// config is a kubeconfig file for a server; cluster and user are further lines of YAML.
func config(t testing.TB, server, cluster, user string) *kubernetes.Config {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config")
	write(t, path, "apiVersion: v1\nkind: Config\ncurrent-context: here\ncontexts:\n- {name: other, context: {cluster: none, user: none}}\n- {name: here, context: {cluster: c, user: u, namespace: ignored}}\n"+
		"clusters:\n- name: c\n  cluster:\n    server: '"+server+"'\n    "+cluster+"\nusers:\n- name: u\n  user:\n    "+user+"\n")
	return &kubernetes.Config{KubeconfigPath: path, DefaultNamespace: "default"}
}

func open(t testing.TB, c *kubernetes.Config) block.Secret {
	t.Helper()
	s, err := kubernetes.New(block.Env{Namespace: "own"}, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close(t.Context()) })
	return s
}

// at opens the stub with its token.
func at(t testing.TB, s *stub) block.Secret {
	srv, ca := serve(t, s)
	return open(t, config(t, srv.URL+"/", "certificate-authority: "+ca, "token: t0ken"))
}

func TestConformance(t *testing.T) {
	want := map[string]values{"db": {"user": "u", "password": "p\x00\xff"}, "plain": {"plain": "v"}, "a.b-c": {"tls.crt": "x"}}
	blocktest.Secret(t, want, func(t *testing.T) block.Secret { return at(t, newStub(t)) })
}

func TestNamespaces(t *testing.T) {
	f := newStub(t)
	srv, ca := serve(t, f)
	c := config(t, srv.URL, "certificate-authority: "+ca, "token: t0ken")
	s := open(t, c)
	get := func(s block.Secret, namespace string) (string, error) {
		md := map[string]string{"namespace": namespace}
		v, err := s.Get(t.Context(), "db", md)
		return v["user"], err
	}
	for namespace, want := range map[string]string{"": "u", "default": "u", "prod": "prod"} {
		if got, err := get(s, namespace); got != want || err != nil {
			t.Errorf("namespace %q: %q, %v; want %s", namespace, got, err, want)
		}
	}
	for namespace, want := range map[string]fault.Code{"none": fault.NotFound, "others": fault.Denied, "a/secrets/db?": fault.Invalid, "..": fault.Invalid, "A": fault.Invalid,
		strings.Repeat("a", 64): fault.Invalid, "a\n": fault.Invalid} {
		if _, err := get(s, namespace); fault.Of(err) != want {
			t.Errorf("namespace %q: %v, want %v", namespace, err, want)
		}
		if _, err := s.GetAll(t.Context(), map[string]string{"namespace": namespace}); fault.Of(err) != want && want != fault.NotFound {
			t.Errorf("all of namespace %q: %v, want %v", namespace, err, want)
		}
	}
	f.change(func() { f.secrets["own"] = map[string]values{"db": {"user": "mine"}} })
	c.DefaultNamespace = ""
	if got, err := get(open(t, c), ""); got != "mine" || err != nil {
		t.Errorf("the sidecar's own namespace: %q, %v", got, err)
	}
	nowhere, err := kubernetes.New(block.Env{}, c)
	if err != nil {
		t.Fatal(err)
	}
	defer nowhere.Close(t.Context())
	if _, err := get(nowhere, ""); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "defaultNamespace") {
		t.Errorf("no namespace: %v", err)
	}
}

// What is sent, to the letter; names that would be other paths are not.
func TestRequests(t *testing.T) {
	f := newStub(t)
	s := at(t, f)
	_ = s.Ping(t.Context())
	_, _ = s.Get(t.Context(), "a.b-c", nil)
	_, _ = s.GetAll(t.Context(), map[string]string{"namespace": "prod"})
	want := []string{"GET /version", "GET /api/v1/namespaces/default/secrets/a.b-c", "GET /api/v1/namespaces/prod/secrets?limit=50"}
	if d := cmp.Diff(want, f.asks()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, name := range []string{"", ".", "..", "a/b", "db/", "DB", "db\n", "-a", "a-", "a..b", "db?x", "ü", strings.Repeat("a", 254)} {
		if _, err := s.Get(t.Context(), name, nil); fault.Of(err) != fault.NotFound {
			t.Errorf("%q: %v, want not found", name, err)
		}
	}
	if asked := f.asks(); len(asked) > 0 {
		t.Errorf("asked %q", asked)
	}
	if v, err := s.Get(t.Context(), "empty", nil); err != nil || v == nil || len(v) > 0 {
		t.Errorf("a secret without values: %v, %v", v, err)
	}
}

// A long list comes in pages, and begins again when its place was lost.
func TestPages(t *testing.T) {
	f := newStub(t)
	want := map[string]values{}
	for i := range 120 {
		want[fmt.Sprintf("s%03d", i)] = values{"n": strconv.Itoa(i)}
	}
	f.secrets["default"] = want
	s := at(t, f)
	all, err := s.GetAll(t.Context(), nil)
	if d := cmp.Diff(want, all); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if asked := f.asks(); len(asked) != 3 || asked[1] != "GET /api/v1/namespaces/default/secrets?limit=50&continue=a%2Bb%2Fs049" {
		t.Errorf("asked %q", asked)
	}
	f.change(func() { f.expire = 1 })
	if all, err := s.GetAll(t.Context(), nil); err != nil || len(all) != 120 {
		t.Errorf("after a lost place: %d, %v", len(all), err)
	}
	f.change(func() { f.expire = 2 })
	if _, err := s.GetAll(t.Context(), nil); fault.Of(err) != fault.Unavailable {
		t.Errorf("a place that is lost again and again: %v", err)
	}
	f.change(func() {
		f.expire, f.secrets["default"] = 0, map[string]values{}
		for i := range 70 {
			f.secrets["default"][fmt.Sprintf("s%03d", i)] = values{"x": strings.Repeat("x", 1<<10)}
		}
	})
	kubernetes.Limit(s, 64<<10)
	if _, err := s.GetAll(t.Context(), nil); fault.Of(err) != fault.TooLarge {
		t.Errorf("more than the limit: %v", err)
	}
}

// A server that never comes to an end is left.
func TestEndlessPages(t *testing.T) {
	asked := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		fmt.Fprint(w, `{"kind":"SecretList","metadata":{"continue":"x"},"items":[]}`)
	}))
	t.Cleanup(srv.Close)
	_, err := open(t, config(t, srv.URL, "insecure-skip-tls-verify: false", "token: ''")).GetAll(t.Context(), nil)
	if fault.Of(err) != fault.Internal || asked != 1000 {
		t.Errorf("%v after %d pages", err, asked)
	}
}

func TestFailures(t *testing.T) {
	status := func(reason, message string) string {
		return fmt.Sprintf(`{"kind":"Status","status":"Failure","reason":%q,"message":%q}`, reason, message)
	}
	for name, tt := range map[string]struct {
		status int
		text   string
		code   fault.Code
		want   string
	}{
		"denied":          {403, status("Forbidden", `secrets "db" is forbidden`), fault.Denied, `secret db of namespace default: kubernetes answered 403 (secrets "db" is forbidden); a Role and a RoleBinding for secrets may be missing`},
		"not there":       {404, status("NotFound", `secrets "db" not found`), fault.NotFound, "secret db of namespace default not found"},
		"no such path":    {404, "404 page not found hush", fault.Internal, "kubernetes answered 404; is it a Kubernetes API server?"},
		"throttled":       {429, status("TooManyRequests", "slow\n down"), fault.Exhausted, "kubernetes answered 429 (slow down)"},
		"broken":          {500, status("InternalError", "etcd"), fault.Unavailable, "kubernetes answered 500 (etcd)"},
		"a stranger":      {502, "<html>hush</html>", fault.Unavailable, "kubernetes answered 502"},
		"a redirect":      {307, "hush", fault.Unavailable, "kubernetes answered 307"},
		"no JSON":         {200, "hush", fault.Internal, "is it an API server?"},
		"no base64":       {200, `{"metadata":{"name":"db"},"data":{"a":"hush!"}}`, fault.Internal, "is it an API server?"},
		"another secret":  {200, `{"metadata":{"name":"hush"},"data":{}}`, fault.Internal, "another resource than secret db"},
		"another request": {400, status("BadRequest", "bad"), fault.Invalid, "kubernetes answered 400 (bad)"},
		"long words":      {500, status("X", strings.Repeat("é", 400)), fault.Unavailable, "…"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newStub(t)
			f.fail, f.text, f.after = tt.status, tt.text, "7"
			s := at(t, f)
			_, err := s.Get(t.Context(), "db", nil)
			if fault.Of(err) != tt.code || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hush") || len(err.Error()) > 800 {
				t.Errorf("%v (%v), want %v with %q", err, fault.Of(err), tt.code, tt.want)
			}
			if tt.status == 429 && fault.AfterOf(err) != 7*time.Second {
				t.Errorf("to be repeated after %v", fault.AfterOf(err))
			}
			if _, err := s.GetAll(t.Context(), nil); fault.Of(err) == fault.OK || strings.Contains(err.Error(), "hush") {
				t.Errorf("all: %v", err)
			}
		})
	}
}

func TestPing(t *testing.T) {
	f := newStub(t)
	s := at(t, f)
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	for status, want := range map[int]fault.Code{403: fault.OK, 401: fault.Denied, 503: fault.Unavailable} {
		f.change(func() { f.version = status })
		if err := s.Ping(t.Context()); fault.Of(err) != want {
			t.Errorf("status %d: %v, want %v", status, err, want)
		}
	}
	f.change(func() { f.token = "another" })
	if err := s.Ping(t.Context()); fault.Of(err) != fault.Denied || !strings.Contains(err.Error(), "is the token") || strings.Contains(err.Error(), "t0ken") {
		t.Errorf("with a wrong token: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	if err := open(t, config(t, "https://"+addr, "insecure-skip-tls-verify: true", "token: t0ken")).Ping(t.Context()); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("nobody there: %v (%v)", err, fault.SentOf(err))
	}
}

// certificate makes a client's certificate, as PEM.
func certificate(t testing.TB, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// Every way of a kubeconfig file to say where the cluster is and who asks.
func TestKubeconfig(t *testing.T) {
	f := newStub(t)
	f.user = "admin:pa55"
	srv, ca := serve(t, f)
	authority, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	caData := "certificate-authority-data: " + base64.StdEncoding.EncodeToString(authority)
	dir := filepath.Dir(ca)
	cert, key := certificate(t, "shop")
	write(t, filepath.Join(dir, "tok"), "t0ken\n")
	write(t, filepath.Join(dir, "c.pem"), cert)
	write(t, filepath.Join(dir, "k.pem"), key)
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for name, tt := range map[string]struct{ cluster, user string }{
		"a file of authorities":  {"certificate-authority: " + ca, "token: t0ken"},
		"authorities as text":    {caData, "token: t0ken"},
		"no verification":        {"insecure-skip-tls-verify: true", "token: t0ken"},
		"another name":           {caData + "\n    tls-server-name: example.com", "token: t0ken"},
		"a file with the token":  {caData, "tokenFile: " + filepath.Join(dir, "tok") + "\n    token: old"},
		"a password":             {caData, "username: admin\n    password: pa55"},
		"a certificate":          {caData, "client-certificate: " + filepath.Join(dir, "c.pem") + "\n    client-key: " + filepath.Join(dir, "k.pem")},
		"a certificate as text":  {caData, "client-certificate-data: " + b64(cert) + "\n    client-key-data: " + b64(key)},
		"a certificate and more": {caData, "client-certificate-data: " + b64(cert) + "\n    client-key-data: " + b64(key) + "\n    token: t0ken"},
	} {
		if v, err := open(t, config(t, srv.URL, tt.cluster, tt.user)).Get(t.Context(), "db", nil); err != nil || v["user"] != "u" {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
	// Relative paths are beside the file.
	c := config(t, srv.URL, "certificate-authority: ca.crt", "tokenFile: tok")
	for _, name := range []string{"ca.crt", "tok"} {
		text, _ := os.ReadFile(filepath.Join(dir, name))
		write(t, filepath.Join(filepath.Dir(c.KubeconfigPath), name), string(text))
	}
	s := open(t, c)
	if _, err := s.Get(t.Context(), "db", nil); err != nil {
		t.Errorf("relative paths: %v", err)
	}
	// The token is read for every request.
	token := filepath.Join(filepath.Dir(c.KubeconfigPath), "tok")
	f.change(func() { f.token = "t0ken-2" })
	if _, err := s.Get(t.Context(), "db", nil); fault.Of(err) != fault.Denied {
		t.Errorf("an old token: %v", err)
	}
	write(t, token, "t0ken-2")
	if _, err := s.Get(t.Context(), "db", nil); err != nil {
		t.Errorf("a new token: %v", err)
	}
	for _, text := range []string{"", "two\nlines"} {
		write(t, token, text)
		if _, err := s.Get(t.Context(), "db", nil); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "does not hold one token") {
			t.Errorf("token file %q: %v", text, err)
		}
	}
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "db", nil); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("no token file: %v", err)
	}
	// A server that the authorities do not vouch for gets no token.
	if _, err := open(t, config(t, srv.URL, "insecure-skip-tls-verify: false", "token: t0ken")).Get(t.Context(), "db", nil); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
}

func TestKubeconfigRefused(t *testing.T) {
	cert, key := certificate(t, "shop")
	other, _ := certificate(t, "shop")
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	pair := func(c, k string) string {
		return "client-certificate-data: " + b64(c) + "\n    client-key-data: " + b64(k)
	}
	const skip = "insecure-skip-tls-verify: true"
	for name, tt := range map[string]struct{ server, cluster, user, want string }{
		"no URL":                     {"10.0.0.1:6443", skip, "token: hush", "no URL like https://"},
		"a password in the URL":      {"https://a:hush@x", skip, "token: hush", "no URL like https://"},
		"no TLS":                     {"http://10.0.0.1", skip, "token: ''", "has no TLS"},
		"no TLS, with a token":       {"http://127.0.0.1:1", skip, "token: hush", "has no TLS"},
		"a proxy":                    {"https://x", skip + "\n    proxy-url: http://y", "token: hush", "proxy-url"},
		"another program":            {"https://x", skip, "exec: {command: aws}", "exec, auth-provider"},
		"a provider":                 {"https://x", skip, "auth-provider: {name: gcp}", "exec, auth-provider"},
		"somebody else":              {"https://x", skip, "as: root\n    token: hush", "acts as another"},
		"authorities that are none":  {"https://x", "certificate-authority-data: " + b64("hush"), "token: hush", "holds no certificate"},
		"authorities, no base64":     {"https://x", "certificate-authority-data: 'hush!'", "token: hush", "not base64"},
		"a file that is not there":   {"https://x", "certificate-authority: none.crt", "token: hush", "none.crt"},
		"a certificate that is none": {"https://x", skip, pair("hush", key), "no pair"},
		"another's key":              {"https://x", skip, pair(other, key), "no pair"},
		"a certificate, no base64":   {"https://x", skip, "client-certificate-data: 'hush!'", "not base64"},
		"a key that is not there":    {"https://x", skip, "client-certificate-data: " + b64(cert) + "\n    client-key: none.key", "none.key"},
	} {
		_, err := kubernetes.New(block.Env{}, config(t, tt.server, tt.cluster, tt.user))
		if err == nil || !strings.HasPrefix(err.Error(), "kubeconfigPath: ") || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	for text, want := range map[string]string{
		"":                         "current-context names no context",
		"- hush":                   "is no kubeconfig file",
		"current-context: [hush]":  "is no kubeconfig file",
		"\thush: x":                "is no kubeconfig file",
		"current-context: hush":    "current-context names no context",
		"contexts: [{context: 1}]": "is no kubeconfig file",
		"current-context: a\ncontexts: [{name: a, context: {cluster: hush}}]":                                                                 "names a cluster that is not in the file",
		"current-context: a\ncontexts: [{name: a, context: {cluster: c, user: hush}}]\nclusters: [{name: c, cluster: {server: 'https://x'}}]": "names a user who is not in the file",
	} {
		path := filepath.Join(t.TempDir(), "config")
		write(t, path, text)
		if _, err := kubernetes.New(block.Env{}, &kubernetes.Config{KubeconfigPath: path}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("file %q: %v, want %q", text, err, want)
		}
	}
}

// In a pod its service account is who asks, and the cluster says where.
func TestInCluster(t *testing.T) {
	f := newStub(t)
	srv, ca := serve(t, f)
	host, port, err := net.SplitHostPort(strings.TrimPrefix(srv.URL, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	account := t.TempDir()
	kubernetes.SetServiceAccount(t, account)
	t.Setenv("KUBERNETES_SERVICE_HOST", host)
	t.Setenv("KUBERNETES_SERVICE_PORT", port)
	if _, err := kubernetes.New(block.Env{}, kubernetes.DefaultConfig()); err == nil || !strings.Contains(err.Error(), "ca.crt") {
		t.Errorf("without a service account: %v", err)
	}
	authority, _ := os.ReadFile(ca)
	write(t, filepath.Join(account, "ca.crt"), string(authority))
	write(t, filepath.Join(account, "token"), "t0ken")
	s, err := kubernetes.New(block.Env{Namespace: "prod"}, kubernetes.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(t.Context())
	if v, err := s.Get(t.Context(), "db", nil); err != nil || v["user"] != "prod" {
		t.Errorf("%v, %v", v, err)
	}
	f.change(func() { f.token = "rotated" })
	write(t, filepath.Join(account, "token"), "rotated")
	if v, err := s.Get(t.Context(), "db", map[string]string{"namespace": "default"}); err != nil || v["user"] != "u" {
		t.Errorf("with the token replaced: %v, %v", v, err)
	}
}

// Outside of a cluster the usual files are looked for.
func TestOutsideOfACluster(t *testing.T) {
	f := newStub(t)
	srv, ca := serve(t, f)
	c := config(t, srv.URL, "certificate-authority: "+ca, "token: t0ken")
	home := t.TempDir()
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("HOME", home)
	t.Setenv("KUBECONFIG", "")
	if _, err := kubernetes.New(block.Env{}, kubernetes.DefaultConfig()); err == nil || !strings.Contains(err.Error(), "kubeconfigPath: required") {
		t.Errorf("nothing to find: %v", err)
	}
	t.Setenv("KUBECONFIG", c.KubeconfigPath)
	if v, err := open(t, &kubernetes.Config{DefaultNamespace: "default"}).Get(t.Context(), "db", nil); err != nil || v["user"] != "u" {
		t.Errorf("by KUBECONFIG: %v, %v", v, err)
	}
	t.Setenv("KUBECONFIG", "")
	if err := os.Mkdir(filepath.Join(home, ".kube"), 0o700); err != nil {
		t.Fatal(err)
	}
	text, _ := os.ReadFile(c.KubeconfigPath)
	write(t, filepath.Join(home, ".kube", "config"), string(text))
	if v, err := open(t, &kubernetes.Config{DefaultNamespace: "default"}).Get(t.Context(), "db", nil); err != nil || v["user"] != "u" {
		t.Errorf("by the home directory: %v, %v", v, err)
	}
}

func TestConfig(t *testing.T) {
	c := kubernetes.DefaultConfig()
	if err := conf.Decode(conf.Items("defaultNamespace", "Not One"), c).Err(); err == nil || !strings.Contains(err.Error(), "defaultNamespace") {
		t.Errorf("a namespace that is none: %v", err)
	}
	if f := conf.Decode(conf.Items("DEFAULTNAMESPACE", "prod", "kubeconfigPath", "/x"), c); len(f) > 0 || c.DefaultNamespace != "prod" || c.KubeconfigPath != "/x" {
		t.Errorf("%+v, %v", c, f)
	}
}

// FuzzAnswer reads whatever a server may answer.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"metadata":{"name":"db"},"data":{"a":"aGk="}}`))
	f.Add(200, []byte(`{"kind":"SecretList","metadata":{},"items":[{"metadata":{"name":"a"}}]}`))
	f.Add(403, []byte(`{"kind":"Status","reason":"Forbidden","message":"no"}`))
	f.Add(410, []byte(`{"kind":"Status","reason":"Expired"}`))
	var mu sync.Mutex
	status, body := 200, []byte(nil)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	f.Cleanup(srv.Close)
	s := open(f, config(f, srv.URL, "insecure-skip-tls-verify: false", "token: ''"))
	f.Fuzz(func(t *testing.T, code int, answer []byte) {
		if code < 200 || code > 599 || code == 204 || code == 304 || bytes.Contains(answer, []byte("continue")) { // a thousand pages
			return
		}
		mu.Lock()
		status, body = code, answer
		mu.Unlock()
		if v, err := s.Get(t.Context(), "db", nil); (err == nil) != (v != nil) || err != nil && fault.Of(err) == fault.OK || err == nil && code != 200 {
			t.Errorf("one: %v, %v", v, err)
		}
		if v, err := s.GetAll(t.Context(), nil); (err == nil) != (v != nil) || err == nil && code != 200 {
			t.Errorf("all: %v, %v", v, err)
		}
	})
}
