package middleware_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"

	"github.com/mecha-project/mecha/api/httpapi/middleware"
	"github.com/mecha-project/mecha/runtime/call"
)

// keys of issuers; making RSA keys takes time, so there are few.
var (
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	otherRSA = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	ecKey    = sync.OnceValue(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return k })
	edKey    = sync.OnceValue(func() ed25519.PrivateKey { _, k, _ := ed25519.GenerateKey(rand.Reader); return k })
)

var secret = []byte("a secret that the issuer shares with nobody")

// member is one key of a published set.
type member struct {
	id, alg, use string
	key          any // private keys are published as public ones
}

func keySet(t testing.TB, members ...member) []byte {
	t.Helper()
	set := jwk.NewSet()
	for _, m := range members {
		k, err := jwk.Import(m.key)
		if err != nil {
			t.Fatal(err)
		}
		if _, symmetric := m.key.([]byte); !symmetric {
			if k, err = k.PublicKey(); err != nil {
				t.Fatal(err)
			}
		}
		for name, v := range map[string]string{"kid": m.id, "alg": m.alg, "use": m.use} {
			if v != "" {
				if err := k.Set(name, v); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := set.AddKey(k); err != nil {
			t.Fatal(err)
		}
	}
	doc, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// issuer is an OpenID Connect provider as far as it is asked. It is a RoundTripper too, for
// tests without a network.
type issuer struct {
	url  string
	keys atomic.Pointer[[]byte]
	down atomic.Bool
	asks atomic.Int64 // for keys
	lie  string       // about its name
}

func newIssuer(t testing.TB, members ...member) *issuer {
	t.Helper()
	i := &issuer{}
	i.publish(t, members...)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		resp, err := i.RoundTrip(r)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	t.Cleanup(s.Close)
	i.url = s.URL
	return i
}

func (i *issuer) publish(t testing.TB, members ...member) {
	doc := keySet(t, members...)
	i.keys.Store(&doc)
}

// RoundTrip implements http.RoundTripper.
func (i *issuer) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := func(status int, body []byte) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
	}
	if i.down.Load() {
		return nil, errors.New("the issuer is away")
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		name := i.url
		if i.lie != "" {
			name = i.lie
		}
		doc, _ := json.Marshal(map[string]string{"issuer": name, "jwks_uri": i.url + "/keys"})
		return answer(200, doc)
	case "/keys":
		i.asks.Add(1)
		return answer(200, *i.keys.Load())
	}
	return answer(404, nil)
}

// claims of a good token; what is nil is left out.
func (i *issuer) claims(change map[string]any) map[string]any {
	c := map[string]any{"iss": i.url, "aud": "me", "sub": "them", "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(c, change)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// sign makes a compact token with a protected header of any sort.
func sign(t testing.TB, alg jwa.SignatureAlgorithm, key any, header, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	h := jws.NewHeaders()
	for k, v := range header {
		if err := h.Set(k, v); err != nil {
			t.Fatal(err)
		}
	}
	out, err := jws.Sign(payload, jws.WithKey(alg, key, jws.WithProtectedHeaders(h)))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func (i *issuer) good(t testing.TB, change map[string]any) string {
	return sign(t, jwa.RS256(), rsaKey(), map[string]any{"kid": "rsa"}, i.claims(change))
}

// unsigned makes a token without a signature.
func unsigned(alg string, claims map[string]any) string {
	payload, _ := json.Marshal(claims)
	enc := base64.RawURLEncoding.EncodeToString
	return enc([]byte(`{"alg":"`+alg+`","kid":"rsa"}`)) + "." + enc(payload) + "."
}

func everyKey() []member {
	return []member{{id: "rsa", key: rsaKey()}, {id: "ec", alg: "ES256", use: "sig", key: ecKey()}, {id: "ed", key: edKey()},
		{id: "enc", use: "enc", key: otherRSA()}, {id: "shared", key: secret}}
}

func TestBearer(t *testing.T) {
	i := newIssuer(t, everyKey()...)
	now := time.Now()
	rs, kid := jwa.RS256(), map[string]any{"kid": "rsa"}
	der, err := jwk.EncodePEM(rsaKey().Public())
	if err != nil {
		t.Fatal(err)
	}
	tampered := strings.Split(i.good(t, nil), ".")
	tampered[1] = base64.RawURLEncoding.EncodeToString([]byte(`{"iss":"` + i.url + `","aud":"me","sub":"root"}`))

	tests := []struct {
		name, authorization string
		admitted            bool
	}{
		{"good", "Bearer " + i.good(t, nil), true},
		{"scheme in small letters", "bearer " + i.good(t, nil), true},
		{"scheme in capitals", "BEARER " + i.good(t, nil), true},
		{"many blanks", "Bearer   " + i.good(t, nil), true},
		{"PS256", "Bearer " + sign(t, jwa.PS256(), rsaKey(), kid, i.claims(nil)), true},
		{"ES256", "Bearer " + sign(t, jwa.ES256(), ecKey(), map[string]any{"kid": "ec"}, i.claims(nil)), true},
		{"EdDSA", "Bearer " + sign(t, jwa.EdDSA(), edKey(), map[string]any{"kid": "ed"}, i.claims(nil)), true},
		{"key without a name", "Bearer " + sign(t, rs, rsaKey(), nil, i.claims(nil)), true},
		{"audience in a list", "Bearer " + i.good(t, map[string]any{"aud": []string{"you", "me"}}), true},
		{"no end", "Bearer " + i.good(t, map[string]any{"exp": nil}), true},
		{"ended within the leeway", "Bearer " + i.good(t, map[string]any{"exp": now.Add(-4 * time.Minute).Unix()}), true},
		{"begins within the leeway", "Bearer " + i.good(t, map[string]any{"nbf": now.Add(4 * time.Minute).Unix()}), true},

		{"nothing", "", false},
		{"scheme alone", "Bearer", false},
		{"scheme and blank", "Bearer ", false},
		{"another scheme", "Basic " + i.good(t, nil), false},
		{"no scheme", i.good(t, nil), false},
		{"no token", "Bearer token", false},
		{"dots", "Bearer ..", false},
		{"too many parts", "Bearer " + i.good(t, nil) + ".x", false},
		{"header that is no JSON", "Bearer eA.e30.e30", false},
		{"ended", "Bearer " + i.good(t, map[string]any{"exp": now.Add(-6 * time.Minute).Unix()}), false},
		{"not begun", "Bearer " + i.good(t, map[string]any{"nbf": now.Add(6 * time.Minute).Unix()}), false},
		{"issued in the future", "Bearer " + i.good(t, map[string]any{"iat": now.Add(6 * time.Minute).Unix()}), false},
		{"end that is no time", "Bearer " + i.good(t, map[string]any{"exp": "tomorrow"}), false},
		{"another audience", "Bearer " + i.good(t, map[string]any{"aud": "you"}), false},
		{"audience that only begins like it", "Bearer " + i.good(t, map[string]any{"aud": "me2"}), false},
		{"no audience", "Bearer " + i.good(t, map[string]any{"aud": nil}), false},
		{"another issuer", "Bearer " + i.good(t, map[string]any{"iss": i.url + "/"}), false},
		{"no issuer", "Bearer " + i.good(t, map[string]any{"iss": nil}), false},
		{"another's key under the name", "Bearer " + sign(t, rs, otherRSA(), kid, i.claims(nil)), false},
		{"another's key without a name", "Bearer " + sign(t, rs, otherRSA(), nil, i.claims(nil)), false},
		{"key for encryption", "Bearer " + sign(t, rs, otherRSA(), map[string]any{"kid": "enc"}, i.claims(nil)), false},
		{"unknown key", "Bearer " + sign(t, rs, rsaKey(), map[string]any{"kid": "nobody"}, i.claims(nil)), false},
		{"key under another's name", "Bearer " + sign(t, rs, rsaKey(), map[string]any{"kid": "ec"}, i.claims(nil)), false},
		{"shared secret", "Bearer " + sign(t, jwa.HS256(), secret, map[string]any{"kid": "shared"}, i.claims(nil)), false},
		{"public key as a secret", "Bearer " + sign(t, jwa.HS256(), der, kid, i.claims(nil)), false},
		{"no algorithm", "Bearer " + unsigned("none", i.claims(nil)), false},
		{"no algorithm, in capitals", "Bearer " + unsigned("NONE", i.claims(nil)), false},
		{"no signature", "Bearer " + unsigned("RS256", i.claims(nil)), false},
		{"another payload", "Bearer " + strings.Join(tampered, "."), false},
		{"critical extension", "Bearer " + sign(t, rs, rsaKey(), map[string]any{"kid": "rsa", "crit": []string{"exp"}, "exp": 1}, i.claims(nil)), false},
		{"payload that is no object", "Bearer " + signBytes(t, "[]"), false},
	}
	for where, metadata := range map[string][]string{
		"discovered": {"issuer", i.url, "audience", "me"},
		"told":       {"issuerURL", i.url, "clientID", "me", "jwksURL", i.url + "/keys"},
	} {
		m := open(t, "bearer", metadata...)
		a, app := serve(t, m), callApp(t, m)
		for _, tc := range tests {
			t.Run(where+" "+tc.name, func(t *testing.T) {
				var header []string
				if tc.authorization != "" {
					header = []string{"Authorization", tc.authorization}
				}
				onAPI := a.do("GET", "/v1.0/state/store/a", "", header...)
				toApp := app.do(post("orders", "x", header...))
				if !tc.admitted {
					onAPI.want(t, 401, "Unauthorized")
					toApp.want(t, 401, "Unauthorized")
					return
				}
				onAPI.want(t, 200, `"store/a"`)
				if e := toApp.echo(t); e.Header.Get("Authorization") != tc.authorization {
					t.Errorf("the app got %q as Authorization", e.Header.Get("Authorization"))
				}
			})
		}
	}
}

// signBytes signs any payload with the good key.
func signBytes(t testing.TB, payload string) string {
	h := jws.NewHeaders()
	_ = h.Set("kid", "rsa")
	out, err := jws.Sign([]byte(payload), jws.WithKey(jwa.RS256(), rsaKey(), jws.WithProtectedHeaders(h)))
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestBearerGuardsEverything(t *testing.T) {
	i := newIssuer(t, everyKey()...)
	a := serve(t, open(t, "bearer", "issuer", i.url, "audience", "me"))
	token := i.good(t, nil)
	for _, path := range []string{"/v1.0/healthz", "/v1.0/healthz/outbound", "/v1.0/metadata", "/v1.0/invoke/a/method/m", "/nowhere"} {
		a.do("GET", path, "").want(t, 401, "Unauthorized")
		if got := a.do("GET", path, "", "Authorization", "Bearer "+token); got.status == 401 {
			t.Errorf("%s is refused with a good token", path)
		}
	}
	a.do("GET", "/v1.0/metadata", "", "Authorization", "Bearer "+token, "Authorization", "Bearer x").want(t, 401, "Unauthorized")
}

// world is an issuer and a middleware where time is simulated and there is no network.
type world struct {
	*issuer
	ask  func(context.Context, *call.Request) (*call.Response, error)
	logs *bytes.Buffer
}

func newWorld(t *testing.T, metadata ...string) *world {
	w := &world{issuer: &issuer{url: "https://login.example"}, logs: &bytes.Buffer{}}
	w.publish(t, everyKey()...)
	if metadata == nil {
		metadata = []string{"issuer", w.url, "audience", "me"}
	}
	env := middleware.Env{Log: slog.New(slog.NewTextHandler(w.logs, nil)), Transport: w.issuer}
	w.ask = openIn(t, env, "bearer", metadata...).App(answering)
	return w
}

func (w *world) want(t *testing.T, status int, token string) {
	t.Helper()
	resp, err := w.ask(t.Context(), post("a", "", "Authorization", "Bearer "+token))
	if err != nil {
		t.Fatal(err)
	}
	if resp.Status != status {
		t.Errorf("status %d, want %d", resp.Status, status)
	}
}

func (w *world) wantAsks(t *testing.T, n int64) {
	t.Helper()
	synctest.Wait()
	if got := w.asks.Load(); got != n {
		t.Errorf("the issuer was asked %d times, want %d", got, n)
	}
}

func TestBearerKeysAreKeptAndRenewed(t *testing.T) {
	rsaKey()
	otherRSA()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.wantAsks(t, 0) // nothing before it is needed
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { w.want(t, 200, w.good(t, nil)) })
		}
		all.Wait()
		w.wantAsks(t, 1)
		time.Sleep(14 * time.Minute)
		w.want(t, 200, w.good(t, nil))
		w.wantAsks(t, 1)

		// Old keys serve while new ones are fetched, and afterwards no more.
		time.Sleep(2 * time.Minute)
		w.publish(t, member{id: "new", key: otherRSA()})
		w.want(t, 200, w.good(t, nil))
		w.wantAsks(t, 2)
		w.want(t, 200, sign(t, jwa.RS256(), otherRSA(), map[string]any{"kid": "new"}, w.claims(nil)))
		w.want(t, 401, w.good(t, nil))
	})
}

// A token seen before is not believed for longer than a new one.
func TestBearerTokenSeenBefore(t *testing.T) {
	rsaKey()
	otherRSA()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		short, long := w.good(t, map[string]any{"exp": time.Now().Add(time.Minute).Unix()}), w.good(t, map[string]any{"exp": nil})
		for range 3 {
			w.want(t, 200, short)
			w.want(t, 200, long)
		}
		w.want(t, 401, short+"A") // nor one that looks like it
		time.Sleep(7 * time.Minute)
		w.want(t, 401, short)
		w.want(t, 200, long)

		w.publish(t, member{id: "rsa", key: otherRSA()})
		time.Sleep(10 * time.Minute)
		w.want(t, 200, long) // this one makes us ask
		synctest.Wait()
		w.want(t, 401, long)
	})
}

// More tokens than are remembered are as good as few.
func TestBearerManyTokens(t *testing.T) {
	ecKey()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		tokens := make([]string, 1100)
		for i := range tokens {
			tokens[i] = sign(t, jwa.ES256(), ecKey(), map[string]any{"kid": "ec"}, w.claims(map[string]any{"sub": strconv.Itoa(i)}))
		}
		for range 2 {
			for _, token := range tokens {
				w.want(t, 200, token)
			}
		}
	})
}

func TestBearerRotation(t *testing.T) {
	rsaKey()
	otherRSA()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.want(t, 200, w.good(t, nil))
		next := func(id string) string {
			return sign(t, jwa.RS256(), otherRSA(), map[string]any{"kid": id}, w.claims(nil))
		}
		w.publish(t, member{id: "one", key: otherRSA()})
		w.want(t, 200, next("one")) // an unknown key is asked for at once
		w.wantAsks(t, 2)

		// Whoever makes up names of keys does not make us ask more often.
		w.publish(t, member{id: "two", key: otherRSA()})
		for range 50 {
			w.want(t, 401, next("two"))
		}
		w.wantAsks(t, 2)
		time.Sleep(10 * time.Second)
		w.want(t, 200, next("two"))
		w.wantAsks(t, 3)
	})
}

func TestBearerIssuerAway(t *testing.T) {
	rsaKey()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.down.Store(true)
		token := w.good(t, nil)
		// Nobody is admitted unproven; whoever shows a token learns that it is not at fault.
		w.want(t, 503, token)
		w.want(t, 503, token)
		w.want(t, 401, "nonsense")
		if n := strings.Count(w.logs.String(), "cannot be had"); n != 1 {
			t.Errorf("%d warnings, want one for one attempt:\n%s", n, w.logs)
		}
		w.down.Store(false)
		w.want(t, 503, token) // too early to ask again
		time.Sleep(time.Second)
		w.want(t, 200, token)
		w.wantAsks(t, 1)

		// Once had, keys outlast the issuer.
		w.down.Store(true)
		token = w.good(t, map[string]any{"exp": nil})
		for range 10 {
			time.Sleep(15 * time.Minute)
			w.want(t, 200, token)
			synctest.Wait()
		}
		w.down.Store(false)
		time.Sleep(time.Minute)
		w.want(t, 200, token)
		w.wantAsks(t, 2)
	})
}

// slow is an issuer that never answers.
type slow struct{}

func (slow) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestBearerIssuerSilent(t *testing.T) {
	rsaKey()
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{url: "https://login.example"}
		f, _ := middleware.Find("middleware.http.bearer", "")
		m, err := f.Open(middleware.Env{Log: quiet, Transport: slow{}}, &middleware.BearerConfig{Issuer: i.url, Audience: "me"})
		if err != nil {
			t.Fatal(err)
		}
		ask := func(ctx context.Context) (int, time.Duration) {
			began := time.Now()
			resp, err := m.App(answering)(ctx, post("a", "", "Authorization", "Bearer "+i.good(t, nil)))
			if err != nil {
				t.Fatal(err)
			}
			return resp.Status, time.Since(began)
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if status, took := ask(short); status != 503 || took != time.Second {
			t.Errorf("a caller in a hurry got %d after %v", status, took)
		}
		if status, took := ask(t.Context()); status != 503 || took != 9*time.Second {
			t.Errorf("a patient caller got %d after %v; the attempt ends 10s after it began", status, took)
		}
		time.Sleep(time.Second)
		waiting := make(chan int)
		go func() { status, _ := ask(t.Context()); waiting <- status }()
		synctest.Wait()
		m.Close() // ends the attempt, and waits for it
		if status := <-waiting; status != 503 {
			t.Errorf("got %d after Close", status)
		}
		if status, took := ask(t.Context()); status != 503 || took != 0 {
			t.Errorf("got %d %v after Close", status, took)
		}
	})
}

func TestBearerIssuersThatAreWrong(t *testing.T) {
	rsaKey()
	for _, tc := range []struct {
		name   string
		change func(*world)
		want   string // in the log
	}{
		{"another's configuration", func(w *world) { w.lie = "https://evil.example" }, `is the configuration of issuer \"https://evil.example\"`},
		{"keys over plain HTTP", func(w *world) { w.issuer.lie, w.issuer.url = w.url, "http://login.example" }, "not as safe an address"},
		{"no keys", func(w *world) { w.set("{}") }, "key set of"},
		{"no JSON", func(w *world) { w.set("<html>") }, "key set of"},
		{"only secrets", func(w *world) { w.publish(t, member{id: "s", key: secret}) }, "none of its 1 keys can verify"},
		{"a weak key", func(w *world) { w.set(weakSet()) }, "keys can verify"},
		{"endless", func(w *world) { w.set(`{"keys":[` + strings.Repeat(" ", 1<<20) + "]}") }, "more than 1048576 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				token := w.good(t, nil)
				tc.change(w)
				w.want(t, 503, token)
				if !strings.Contains(w.logs.String(), tc.want) {
					t.Errorf("the log does not say …%s…:\n%s", tc.want, w.logs)
				}
			})
		})
	}
}

// set publishes any text as the key set.
func (w *world) set(doc string) {
	b := []byte(doc)
	w.keys.Store(&b)
}

// weakSet is a key set with an RSA key of about 950 bits.
func weakSet() string {
	n := new(big.Int).Rsh(rsaKey().N, 1100)
	return `{"keys":[{"kty":"RSA","kid":"rsa","e":"AQAB","n":"` + base64.RawURLEncoding.EncodeToString(n.Bytes()) + `"}]}`
}

// A key of a kind to come does not spoil the others.
func TestBearerUnknownKinds(t *testing.T) {
	rsaKey()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		doc := strings.Replace(string(*w.keys.Load()), `[`, `[{"kty":"QUANTUM","kid":"q"},`, 1)
		w.set(doc)
		w.want(t, 200, w.good(t, nil))
	})
}

// FuzzBearer changes good tokens: whatever comes out is only admitted if it is the same token.
func FuzzBearer(f *testing.F) {
	i := &issuer{url: "https://login.example"}
	i.publish(f, everyKey()...)
	m := openIn(f, middleware.Env{Log: quiet, Transport: i}, "bearer", "issuer", i.url, "audience", "me")
	ask := m.App(answering)
	good := i.good(f, map[string]any{"exp": nil})
	f.Add(good)
	f.Add(unsigned("none", i.claims(nil)))
	f.Add("..")
	f.Add("eyJhbGciOiJSUzI1NiIsImtpZCI6MX0.e30.AA")
	signed := good[:strings.LastIndexByte(good, '.')]
	f.Fuzz(func(t *testing.T, token string) {
		resp, err := ask(t.Context(), post("a", "", "Authorization", "Bearer "+token))
		if err != nil {
			t.Fatal(err)
		}
		if resp.Status == 200 && !strings.HasPrefix(strings.TrimSpace(token), signed) {
			t.Fatalf("%q was admitted", token)
		}
	})
}

func BenchmarkBearer(b *testing.B) {
	i := &issuer{url: "https://login.example"}
	i.publish(b, everyKey()...)
	ask := openIn(b, middleware.Env{Log: quiet, Transport: i}, "bearer", "issuer", i.url, "audience", "me").App(answering)
	for _, tc := range []struct{ name, token string }{
		{"RS256", i.good(b, nil)},
		{"ES256", sign(b, jwa.ES256(), ecKey(), map[string]any{"kid": "ec"}, i.claims(nil))},
		{"refused", "x.y.z"},
	} {
		b.Run(tc.name, func(b *testing.B) {
			req := post("a", "", "Authorization", "Bearer "+tc.token)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ask(context.Background(), req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
