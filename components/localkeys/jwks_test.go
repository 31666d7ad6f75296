package localkeys_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/localkeys"
)

// octets is a set of symmetric keys with these names.
func octets(names ...string) string {
	var keys []string
	for _, n := range names {
		keys = append(keys, fmt.Sprintf(`{"kty":"oct","kid":%q,"k":%q}`, n, base64.RawURLEncoding.EncodeToString(material()["sym32"].([]byte))))
	}
	return `{"keys":[` + strings.Join(keys, ",") + `]}`
}

// lines is a log that is read.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func openLogged(t *testing.T, value string, change ...func(*localkeys.JWKSConfig)) (block.Crypto, *lines) {
	t.Helper()
	c := localkeys.DefaultJWKSConfig()
	c.JWKS = conf.Secret(value)
	for _, f := range change {
		f(c)
	}
	log := &lines{}
	p, err := localkeys.NewJWKS(block.Env{Log: slog.New(slog.NewTextHandler(log, nil))}, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close(t.Context()) })
	return p, log
}

func TestSetsRefused(t *testing.T) {
	for name, tt := range map[string]struct{ value, says string }{
		"nothing":            {"  ", "jwks is required"},
		"no JSON":            {"{HUSH", "no JSON Web Key Set"},
		"no keys":            {`{"keys":[]}`, "no key that can be used among its 0"},
		"another object":     {`{"hush":"HUSH"}`, "jwks"},
		"none with a name":   {`{"keys":[{"kty":"oct","k":"SFVTSA"}]}`, "need a kid"},
		"none of our kinds":  {`{"keys":[{"kty":"HUSH","kid":"a"}]}`, "no key that can be used among its"},
		"one name twice":     {octets("a", "a"), `two keys with the kid "a"`},
		"base64 of the like": {base64.StdEncoding.EncodeToString([]byte(`{"keys":[]}`)), "no key that can be used"},
		"no host":            {"https:///jwks", "names no host"},
	} {
		c := localkeys.DefaultJWKSConfig()
		c.JWKS = conf.Secret(tt.value)
		_, err := localkeys.NewJWKS(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
		if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "HUSH") {
			t.Errorf("%s: %v, want %q", name, err, tt.says)
		}
	}
}

// A JWK says what its key may be used for, and that holds.
func TestKeyOps(t *testing.T) {
	k := base64.RawURLEncoding.EncodeToString(material()["sym32"].([]byte))
	var pair map[string]any
	if err := json.Unmarshal(setOf(t, "p256"), &pair); err != nil {
		t.Fatal(err)
	}
	ec := pair["keys"].([]any)[0].(map[string]any)
	ec["kid"], ec["key_ops"] = "signer", []string{"sign"}
	signer, err := json.Marshal(ec)
	if err != nil {
		t.Fatal(err)
	}
	p := openJWKS(t, fmt.Sprintf(`{"keys":[{"kty":"oct","kid":"both","k":%[1]q,"use":"enc","key_ops":["wrapKey"]},{"kty":"oct","kid":"sig","k":%[1]q,"use":"sig"},{"kty":"oct","kid":"enc","k":%[1]q,"use":"enc"},%[2]s]}`, k, signer))
	if err := wrapWith(t, p, "both"); err != nil {
		t.Errorf("what its key_ops allow: %v", err)
	}
	if err := wrapWith(t, p, "enc"); err != nil {
		t.Errorf("what its use allows: %v", err)
	}
	d := make([]byte, 32)
	sig, err := p.Sign(t.Context(), "signer", "ES256", d)
	if err != nil {
		t.Errorf("Sign: %v", err)
	}
	if ok, err := p.Verify(t.Context(), "signer", "ES256", d, sig); err != nil || !ok {
		t.Errorf("the public half of a signing key verifies: %v, %v", ok, err)
	}
	_, unwrap := p.UnwrapKey(t.Context(), block.KeyUse{Key: "both", Algorithm: "A256KW"}, block.Sealed{Data: make([]byte, 24)})
	_, signs := p.Sign(t.Context(), "enc", "ES256", d)
	_, encrypts := p.Encrypt(t.Context(), block.KeyUse{Key: "signer", Algorithm: "RSA-OAEP"}, d)
	for what, tt := range map[string]struct {
		err  error
		says string
	}{"use sig wraps": {wrapWith(t, p, "sig"), `by its use`}, "key_ops wrapKey unwraps": {unwrap, "key_ops"}, "use enc signs": {signs, "by its use"}, "key_ops sign encrypts": {encrypts, "key_ops"}} {
		if fault.Of(tt.err) != fault.Invalid || !strings.Contains(tt.err.Error(), tt.says) {
			t.Errorf("%s: %v, want it refused with %q", what, tt.err, tt.says)
		}
	}
}

// A file is followed. A version that cannot be used is told once and changes nothing.
func TestSetInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "set.json")
	p, log := openLogged(t, path)
	if err := p.Ping(t.Context()); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), path) {
		t.Errorf("no file: %v", err)
	}
	write(t, path, []byte(octets("a")))
	if err := wrapWith(t, p, "a"); err != nil {
		t.Error(err)
	}
	write(t, path, []byte(octets("a", "b"))) // at once, within a step of the file's clock
	if err := wrapWith(t, p, "b"); err != nil {
		t.Errorf("a new key: %v", err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	for range 2 { // read, then known
		if err := wrapWith(t, p, "b"); err != nil {
			t.Error(err)
		}
	}
	write(t, path, []byte(octets("c")))
	if err := wrapWith(t, p, "b"); fault.Of(err) != fault.NotFound {
		t.Errorf("a key that was taken out: %v", err)
	}
	for range 3 {
		write(t, path, []byte("{HUSH"))
		if err := wrapWith(t, p, "c"); err != nil {
			t.Errorf("a broken version: %v", err)
		}
	}
	if log.count("cannot be used") != 1 || log.count("HUSH") > 0 {
		t.Errorf("the broken version was told %d×, want once: %s", log.count("cannot be used"), log.b.String())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := wrapWith(t, p, "c"); err != nil {
		t.Errorf("no file any more: %v", err)
	}
	write(t, path, []byte(octets("d")))
	if err := wrapWith(t, p, "d"); err != nil {
		t.Errorf("a good version again: %v", err)
	}
}

// issuer serves a set.
type issuer struct {
	doc    atomic.Pointer[string]
	status atomic.Int32
	asked  atomic.Int32
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.asked.Add(1)
	if r.URL.Path == "/away" {
		http.Redirect(w, r, "/keys", http.StatusFound)
		return
	}
	if s := i.status.Load(); s != 0 {
		w.WriteHeader(int(s))
	}
	_, _ = w.Write([]byte(*i.doc.Load())) // the client may be gone
}

func (i *issuer) says(doc string) { i.doc.Store(&doc) }

func TestSetAtAURL(t *testing.T) {
	i := &issuer{}
	i.says("HUSH")
	server := httptest.NewServer(i)
	defer server.Close()
	p, log := openLogged(t, server.URL+"/away?token=s3cret")
	err := p.Ping(t.Context())
	if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), server.URL) || strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "HUSH") {
		t.Errorf("no set there: %v", err)
	}
	if log.count("comes over http") != 1 {
		t.Error("plain http was not told")
	}
	i.says(octets("a"))
	for end := time.Now().Add(10 * time.Second); wrapWith(t, p, "a") != nil; time.Sleep(10 * time.Millisecond) { // a second after the failure
		if time.Now().After(end) {
			t.Fatal("the set was not fetched again after a failure")
		}
	}
	before := i.asked.Load()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := wrapWith(t, p, "a"); err != nil {
				t.Error(err)
			}
			if err := wrapWith(t, p, "none"); fault.Of(err) != fault.NotFound {
				t.Errorf("a key that is not in the set: %v", err)
			}
		})
	}
	all.Wait()
	if n := i.asked.Load() - before; n != 0 {
		t.Errorf("asked %d× within the interval", n)
	}
}

// No set comes through a server that does not answer, and Close does not wait for it.
func TestSetAtASilentServer(t *testing.T) {
	hold := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hold }))
	defer server.Close()
	defer close(hold)
	p, _ := openLogged(t, server.URL, func(c *localkeys.JWKSConfig) { c.RequestTimeout = 50 * time.Millisecond })
	if err := p.Ping(t.Context()); fault.Of(err) != fault.Unavailable && fault.Of(err) != fault.Deadline {
		t.Errorf("%v", err)
	}
	q, _ := openLogged(t, server.URL)
	done := make(chan error, 1)
	go func() { done <- wrapWith(t, q, "a") }()
	for deadline := time.Now().Add(10 * time.Second); ; {
		if err := q.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if fault.Of(err) != fault.Unavailable {
				t.Errorf("closed meanwhile: %v", err)
			}
			return
		case <-time.After(time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("Close left a use waiting")
			}
		}
	}
}

// transport serves a set without a network, for tests on a clock of their own.
type transport struct{ *issuer }

func (s transport) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Result(), nil
}

// The interval between fetches, and what happens when one fails.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{}
		i.says(octets("a"))
		p := localkeys.OpenWith(t, transport{i}, "https://keys.example/set", 10*time.Minute)
		use := func(name string, want fault.Code, asked int32) {
			t.Helper()
			err := wrapWith(t, p, name)
			synctest.Wait()
			if fault.Of(err) != want || i.asked.Load() != asked {
				t.Errorf("%s: %v after %d fetches; want %v and %d", name, err, i.asked.Load(), want, asked)
			}
		}
		use("a", fault.OK, 1)
		i.says(octets("b"))
		use("b", fault.NotFound, 1) // too early to ask again
		time.Sleep(9 * time.Minute)
		use("b", fault.NotFound, 1)
		time.Sleep(2 * time.Minute)
		use("b", fault.OK, 2) // waited for, as it may be new
		use("a", fault.NotFound, 2)
		time.Sleep(11 * time.Minute)
		i.says(octets("c"))
		use("b", fault.OK, 3) // the old ones serve while they are renewed
		use("c", fault.OK, 3)
		time.Sleep(11 * time.Minute)
		i.status.Store(500)
		for n := range int32(3) { // the last good ones stay
			use("c", fault.OK, 4+n)
			time.Sleep(2 * time.Second)
		}
		i.status.Store(0)
		use("c", fault.OK, 7)
		_ = p.Close(t.Context())
	})
}
