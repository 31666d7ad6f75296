package middleware_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/api/httpapi/middleware"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/state"
)

// quiet is a log that nobody reads.
var quiet = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open makes a middleware as a Component resource would.
func open(t testing.TB, name string, metadata ...string) *middleware.Middleware {
	t.Helper()
	return openIn(t, middleware.Env{Log: quiet}, name, metadata...)
}

func openIn(t testing.TB, env middleware.Env, name string, metadata ...string) *middleware.Middleware {
	t.Helper()
	f, ok := middleware.Find("middleware.http."+name, "v1")
	if !ok {
		t.Fatalf("there is no middleware %q", name)
	}
	c := f.Config()
	if found := conf.Decode(conf.Items(metadata...), c); len(found) > 0 {
		t.Fatalf("configuration of %s: %v", name, found)
	}
	m, err := f.Open(env, c)
	if err != nil {
		t.Fatal(err)
	}
	if m.Close != nil {
		t.Cleanup(m.Close)
	}
	return m
}

// echoed is what the end of a pipeline saw.
type echoed struct {
	Target, Verb, Path, Query, Body string
	Header                          http.Header
	Length                          string // of the body as announced: a number or "unknown"
}

func announced(n int64) string {
	if n < 0 {
		return "unknown"
	}
	return strconv.FormatInt(n, 10)
}

// echo is a service that answers with what it was asked, as a stream when the path says so.
type echo struct{}

func (echo) Invoke(ctx context.Context, req *call.Request, out call.Responder) error {
	seen := echoed{Target: req.Target, Verb: req.Verb, Path: req.Path, Query: req.Query, Length: announced(req.Length), Header: http.Header{}}
	for _, f := range req.Header {
		seen.Header.Add(f.Name, f.Value)
	}
	body := req.Data
	if req.Stream != nil {
		var err error
		if body, err = io.ReadAll(req.Stream); err != nil {
			return err
		}
		req.Stream.Close()
	}
	seen.Body = string(body)
	doc, _ := json.Marshal(seen)
	resp := &call.Response{Status: 200, Type: "application/json", Header: call.Fields{{Name: "X-App", Value: "yes"}}, Data: doc, Length: int64(len(doc))}
	if strings.Contains(req.Path, "stream") {
		resp.Data, resp.Stream = nil, io.NopCloser(bytes.NewReader(doc))
	}
	return out.Respond(ctx, resp)
}

// memory is a state service with one value, that remembers what was saved.
type memory struct {
	httpapi.State
	mu    sync.Mutex
	saved []state.Item // guarded by mu
}

func (m *memory) Check(string) error { return nil }

func (m *memory) Get(_ context.Context, store, key string, _ state.ReadOptions) (block.StateItem, error) {
	return block.StateItem{Exists: true, Key: key, Value: []byte(`"` + store + `/` + key + `"`), ETag: "1"}, nil
}

func (m *memory) Set(_ context.Context, _ string, items []state.Item) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, it := range items {
		it.Value = bytes.Clone(it.Value)
		m.saved = append(m.saved, it)
	}
	return nil
}

// api is a running HTTP API with a pipeline.
type api struct {
	t     testing.TB
	base  string
	addr  string // of the listener
	state *memory
}

// serve runs the API behind middleware, outermost first, until the test ends.
func serve(t testing.TB, pipeline ...*middleware.Middleware) *api {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &api{t: t, base: "http://" + l.Addr().String(), addr: l.Addr().String(), state: &memory{}}
	o := httpapi.Options{AppID: "app", MaxBody: 4 << 20, MaxHeader: 8 << 10, Invoke: echo{}, State: a.state, About: about.New("app"),
		Log: quiet}
	for _, m := range pipeline {
		o.Pipeline = append(o.Pipeline, m.API)
	}
	s := httpapi.New(o)
	served := make(chan error, 1)
	go func() { served <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return a
}

// answer is a whole HTTP answer.
type answer struct {
	status int
	header http.Header
	body   string
}

// echo reads the answer as what the end of the pipeline saw.
func (a answer) echo(t testing.TB) (e echoed) {
	t.Helper()
	if a.status != 200 {
		t.Fatalf("status %d, body %q", a.status, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil {
		t.Fatalf("%v in %q", err, a.body)
	}
	return e
}

// do sends a request with headers given as names and values.
func (a *api) do(method, path, body string, header ...string) answer {
	a.t.Helper()
	return a.send(method, path, strings.NewReader(body), header...)
}

func (a *api) send(method, path string, body io.Reader, header ...string) answer {
	a.t.Helper()
	req, err := http.NewRequest(method, a.base+path, body)
	if err != nil {
		a.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// appSide is a running app behind a pipeline of calls to it.
type appSide struct {
	t       testing.TB
	channel *httpapi.AppChannel
}

// callApp runs an app that echoes, behind middleware, until the test ends.
func callApp(t testing.TB, pipeline ...*middleware.Middleware) *appSide {
	t.Helper()
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		doc, _ := json.Marshal(echoed{Verb: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Body: string(body), Header: r.Header,
			Length: announced(r.ContentLength)})
		w.Header().Set("X-App", "yes")
		if strings.Contains(r.URL.Path, "stream") {
			w.(http.Flusher).Flush()
		}
		w.Write(doc)
	}))
	t.Cleanup(app.Close)
	o := httpapi.ChannelOptions{Address: strings.TrimPrefix(app.URL, "http://")}
	for _, m := range pipeline {
		o.Pipeline = append(o.Pipeline, m.App)
	}
	c := httpapi.NewAppChannel(o)
	t.Cleanup(func() { c.Close() })
	return &appSide{t, c}
}

func (a *appSide) do(req *call.Request) answer {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := a.channel.Invoke(ctx, req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer resp.Close()
	out := answer{status: resp.Status, header: http.Header{}, body: string(resp.Data)}
	if resp.Stream != nil {
		b, err := io.ReadAll(resp.Stream)
		if err != nil {
			a.t.Fatal(err)
		}
		out.body = string(b)
	} else if resp.Length != int64(len(resp.Data)) {
		a.t.Errorf("Length is %d, the body has %d bytes", resp.Length, len(resp.Data))
	}
	for _, f := range resp.Header {
		out.header.Add(f.Name, f.Value)
	}
	return out
}

func post(path, body string, header ...string) *call.Request {
	req := &call.Request{Protocol: call.HTTP, Verb: "POST", Path: path, Data: []byte(body), Length: int64(len(body))}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return req
}

// want compares the parts of an answer that every refusal has.
func (a answer) want(t testing.TB, status int, body string) {
	t.Helper()
	if a.status != status || a.body != body {
		t.Errorf("got %d %q, want %d %q", a.status, a.body, status, body)
	}
	if status >= 400 && !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
		t.Errorf("Content-Type is %q, want text/plain", a.header.Get("Content-Type"))
	}
}
