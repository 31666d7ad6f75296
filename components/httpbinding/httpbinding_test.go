package httpbinding_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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
	"github.com/mecha-project/mecha/components/httpbinding"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, metadata ...string) block.Output {
	t.Helper()
	c := httpbinding.DefaultConfig()
	if err := conf.Decode(conf.Items(metadata...), c, conf.Also(conf.ServiceKeys("bindings")...)).Err(); err != nil {
		t.Fatal(err)
	}
	b, err := httpbinding.New(block.Env{}, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b.(block.Output)
}

// server answers with what the handler says and keeps the last request.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	last string      // guarded by mu
	head http.Header // guarded by mu
}

func serve(t testing.TB, handle http.HandlerFunc) *server {
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.last, s.head = r.Method+" "+r.RequestURI+" "+string(body), r.Header
		s.mu.Unlock()
		if handle != nil {
			handle(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) seen() (string, http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.head
}

func TestConformance(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "answer") })
	blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
		return blocktest.OutputPlace{Open: func() block.Output { return open(t, "url", s.URL) },
			Works: block.BindingRequest{Operation: "post", Data: []byte("data"), Metadata: map[string]string{"X-A": "1"}}}
	})
}

func TestVerbs(t *testing.T) {
	s := serve(t, nil)
	b := open(t, "url", s.URL+"/base/")
	for op, want := range map[string]string{"create": "POST /base/ data", "post": "POST /base/ data", "put": "PUT /base/ data", "patch": "PATCH /base/ data",
		"get": "GET /base/ ", "head": "HEAD /base/ ", "delete": "DELETE /base/ ", "options": "OPTIONS /base/ ", "trace": "TRACE /base/ "} {
		answer, err := b.Invoke(t.Context(), block.BindingRequest{Operation: op, Data: []byte("data")})
		if err != nil || answer == nil || answer.Metadata["statusCode"] != "200" {
			t.Errorf("%s: %+v, %v", op, answer, err)
		}
		last, head := s.seen()
		if last != want {
			t.Errorf("%s: %s, want %s", op, last, want)
		}
		ctype := ""
		if strings.HasSuffix(want, "data") {
			ctype = "application/json; charset=utf-8"
		}
		if head.Get("Content-Type") != ctype || head.Get("Accept") != "application/json; charset=utf-8" {
			t.Errorf("%s: headers %v", op, head)
		}
	}
}

func TestRequest(t *testing.T) {
	s := serve(t, nil)
	b := open(t, "url", s.URL+"/base/", "securityToken", "s3cret", "securityTokenHeader", "X-Token")
	for path, want := range map[string]string{"x?a=b&c=%20d": "/base/x?a=b&c=%20d", "/x": "/base/x", "//x": "/base/x", "/../x": "/base/../x", "": "/base/",
		"@evil.test/x": "/base/@evil.test/x", "a%2Fb": "/base/a%2Fb"} {
		if _, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "get", Metadata: map[string]string{"path": path}}); err != nil {
			t.Errorf("path %q: %v", path, err)
		}
		if last, _ := s.seen(); last != "GET "+want+" " {
			t.Errorf("path %q: %s, want %s", path, last, want)
		}
	}
	_, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "post", Metadata: map[string]string{"Content-Type": "text/plain", "Accept": "a/b", "X-Own": "1", "lower": "2",
		"X-TOKEN": "forged", "Traceparent": "theirs", "traceparent": "tp", "tracestate": "ts", "baggage": "k=v", "Éa": "x"}})
	if fault.Of(err) != fault.Invalid {
		t.Errorf("a name that is no header's: %v", err)
	}
	if _, err = b.Invoke(t.Context(), block.BindingRequest{Operation: "post", Metadata: map[string]string{"Content-Type": "text/plain", "Accept": "a/b", "X-Own": "1", "lower": "2",
		"X-TOKEN": "forged", "Traceparent": "theirs", "traceparent": "tp", "tracestate": "ts", "baggage": "k=v"}}); err != nil {
		t.Fatal(err)
	}
	_, head := s.seen()
	got := map[string]string{}
	for name := range head {
		got[name] = strings.Join(head[name], "|")
	}
	delete(got, "User-Agent")
	delete(got, "Accept-Encoding")
	want := map[string]string{"Content-Type": "text/plain", "Accept": "a/b", "X-Own": "1", "X-Token": "s3cret", "Traceparent": "tp", "Tracestate": "ts", "Baggage": "k=v", "Content-Length": "0"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("headers (-want +got):\n%s", d)
	}
	for what, md := range map[string]map[string]string{"a path with a line": {"path": "a\nb"}, "a bad escape": {"path": "%zz"}, "a header of two lines": {"X-A": "1\r\nX-B: 2"}} {
		if _, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "get", Metadata: md}); fault.Of(err) != fault.Invalid || strings.Contains(err.Error(), s.URL) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestAnswers(t *testing.T) {
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("X-Two", "a")
		w.Header().Add("X-Two", "b")
		w.Header().Set("Retry-After", "7")
		var status int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.WriteHeader(status)
		if status != 204 && status != 304 {
			_, _ = io.WriteString(w, "body")
		}
	})
	strict, lax := open(t, "url", s.URL), open(t, "url", s.URL, "errorIfNot2XX", "false")
	for status, code := range map[int]fault.Code{200: fault.OK, 201: fault.OK, 204: fault.OK, 304: fault.Invalid, 400: fault.Invalid, 401: fault.Unauthenticated, 403: fault.Denied,
		404: fault.NotFound, 409: fault.Conflict, 429: fault.Exhausted, 500: fault.Internal, 502: fault.Unavailable, 503: fault.Unavailable, 504: fault.Deadline} {
		path := fmt.Sprint("/", status)
		answer, err := strict.Invoke(t.Context(), block.BindingRequest{Operation: "get", Metadata: map[string]string{"path": path}})
		if fault.Of(err) != code || err != nil && (err.Error() != fmt.Sprint("received status code ", status) || fault.AfterOf(err) != 7*time.Second) {
			t.Errorf("%d: %v (%v after %v), want %v", status, err, fault.Of(err), fault.AfterOf(err), code)
		}
		if answer == nil || answer.Metadata["statusCode"] != fmt.Sprint(status) || answer.Metadata["status"] != fmt.Sprint(status, " ", http.StatusText(status)) || answer.Metadata["X-Two"] != "a, b" {
			t.Errorf("%d: answer %+v", status, answer)
		}
		own := map[string]string{"path": path, "errorIfNot2XX": "no"}
		for what, b := range map[string]block.Output{"by request": strict, "by component": lax} {
			if answer, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "get", Metadata: own}); err != nil || status == 404 && string(answer.Data) != "body" {
				t.Errorf("%d %s: %+v, %v", status, what, answer, err)
			}
		}
		own["errorIfNot2XX"] = "Y"
		if _, err := lax.Invoke(t.Context(), block.BindingRequest{Operation: "get", Metadata: own}); fault.Of(err) != code {
			t.Errorf("%d strict by request: %v", status, err)
		}
	}
}

// A token goes to the server it was given for only.
func TestRedirects(t *testing.T) {
	other := serve(t, nil)
	var s *server
	s = serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, other.URL+"/there", http.StatusTemporaryRedirect)
		case "/round":
			http.Redirect(w, r, "/round", http.StatusFound)
		case "/home":
			http.Redirect(w, r, s.URL+"/end", http.StatusTemporaryRedirect)
		}
	})
	b := open(t, "url", s.URL, "securityToken", "s3cret", "securityTokenHeader", "X-Token")
	for path, want := range map[string]struct {
		at    *server
		last  string
		token string
	}{"/away": {other, "POST /there d", ""}, "/home": {s, "POST /end d", "s3cret"}} {
		if _, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "create", Data: []byte("d"), Metadata: map[string]string{"path": path}}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if last, head := want.at.seen(); last != want.last || head.Get("X-Token") != want.token {
			t.Errorf("%s: %s with token %q", path, last, head.Get("X-Token"))
		}
	}
	if _, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "get", Metadata: map[string]string{"path": "/round"}}); err == nil || !strings.Contains(err.Error(), "in circles") {
		t.Errorf("in circles: %v", err)
	}
}

func TestLimits(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return
		}
		_, _ = w.Write(make([]byte, 1025))
	})
	defer close(release)
	b := open(t, "url", s.URL, "maxResponseBodySize", "1Ki", "responseTimeout", "50ms")
	if _, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "get"}); fault.Of(err) != fault.TooLarge {
		t.Errorf("a large answer: %v", err)
	}
	if _, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "get", Metadata: map[string]string{"path": "slow"}}); fault.Of(err) != fault.Deadline {
		t.Errorf("a slow answer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := open(t, "url", s.URL).Invoke(ctx, block.BindingRequest{Operation: "get", Metadata: map[string]string{"path": "slow"}}); fault.Of(err) != fault.Canceled {
		t.Errorf("a caller that leaves: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	s := serve(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	_, err := open(t, "url", s.URL).Invoke(t.Context(), block.BindingRequest{Operation: "post"})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("a lost connection: %v", err)
	}
	s.Close()
	_, err = open(t, "url", strings.Replace(s.URL, "http://", "http://user:s3cret@", 1)+"/?key=s3cret").Invoke(t.Context(), block.BindingRequest{Operation: "post"})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("nobody there: %v", err)
	}
}

func TestTLS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }))
	t.Cleanup(s.Close)
	ca := "-----BEGIN CERTIFICATE-----\n" + base64Lines(s.Certificate().Raw) + "-----END CERTIFICATE-----\n"
	answer, err := open(t, "url", s.URL, "MTLSRootCA", ca).Invoke(t.Context(), block.BindingRequest{Operation: "get"})
	if err != nil || len(answer.Data) == 0 {
		t.Errorf("%+v, %v", answer, err)
	}
	if _, err := open(t, "url", s.URL).Invoke(t.Context(), block.BindingRequest{Operation: "get"}); fault.Of(err) != fault.Unavailable {
		t.Errorf("an unknown authority: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		items []string
		want  string
	}{
		"no url":             {nil, "url: required"},
		"no scheme":          {[]string{"url", "example.com"}, "is no URL of an HTTP server"},
		"another scheme":     {[]string{"url", "ftp://user:s3cret@example.com"}, "is no URL of an HTTP server"},
		"unreadable":         {[]string{"url", "http://s3cret:port"}, "is no URL of an HTTP server"},
		"a key alone":        {[]string{"url", "http://h", "MTLSClientKey", "s3cret"}, "MTLSClientCert: required with MTLSClientKey"},
		"a certificate":      {[]string{"url", "http://h", "MTLSClientCert", "c"}, "MTLSClientKey: required with MTLSClientCert"},
		"a token alone":      {[]string{"url", "http://h", "securityToken", "s3cret"}, "securityTokenHeader: required"},
		"a header alone":     {[]string{"url", "http://h", "securityTokenHeader", "X"}, "securityToken: required"},
		"renegotiation":      {[]string{"url", "http://h", "MTLSRenegotiation", "often"}, "MTLSRenegotiation"},
		"a negative timeout": {[]string{"url", "http://h", "responseTimeout", "-1s"}, "responseTimeout"},
	} {
		err := conf.Decode(conf.Items(tt.items...), httpbinding.DefaultConfig()).Err()
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
	c := httpbinding.DefaultConfig()
	c.URL, c.MTLSRootCA = "http://h", "/no/such/file"
	if _, err := httpbinding.New(block.Env{}, c); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "MTLSRootCA") {
		t.Errorf("a file that is not there: %v", err)
	}
}

func base64Lines(raw []byte) string { return base64.StdEncoding.EncodeToString(raw) + "\n" }
