package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// seen is what an app saw of a request; the echo app answers it as JSON.
type seen struct {
	Method string
	URI    string
	Host   string
	Header http.Header
	Body   string
	Length int64
}

// echo is an app that tells what it saw.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out, _ := json.Marshal(seen{Method: r.Method, URI: r.RequestURI, Host: r.Host, Header: r.Header, Body: string(body), Length: r.ContentLength})
	w.Header().Set("Content-Type", "application/json")
	w.Write(out)
}

func decodeSeen(t *testing.T, body []byte) seen {
	t.Helper()
	var s seen
	if err := json.Unmarshal(body, &s); err != nil {
		t.Fatalf("the answer is not the echo app's: %v\n%s", err, body)
	}
	return s
}

// pair starts a callee in front of an HTTP app, and a caller without an app.
func pair(t *testing.T, app http.Handler) (callee, caller *harness.Sidecar) {
	t.Helper()
	mesh := harness.NewMesh(t)
	return mesh.Start(harness.Options{AppID: "callee", AppPort: harness.Serve(t, app)}), mesh.Start(harness.Options{AppID: "caller"})
}

// route is a way to an app: from the caller's sidecar through its own, or straight.
type route struct {
	name   string
	via    *harness.Sidecar
	remote bool
}

// bothWays are the two ways to the callee's app: through two sidecars, and through its own.
func bothWays(callee, caller *harness.Sidecar) []route {
	return []route{{"remote", caller, true}, {"local", callee, false}}
}

func invokeURL(s *harness.Sidecar, app, method string) string {
	return s.URL("/v1.0/invoke/" + app + "/method/" + method)
}

// raw sends bytes to a port as they are and reads one answer. method tells whether the answer
// can have a body.
func raw(t *testing.T, port int, method, request string) (*http.Response, string) {
	t.Helper()
	conn := dialPort(t, port)
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	return readAnswer(t, bufio.NewReader(conn), method)
}

func readAnswer(t *testing.T, r *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	resp, err := http.ReadResponse(r, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("reading the answer: %v", err)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the answer's body after %q: %v", body, err)
	}
	return resp, string(body)
}

// get is a raw request without body for a target that an HTTP client would change.
func get(method, target string, headers ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: sidecar\r\n", method, target)
	for i := 0; i+1 < len(headers); i += 2 {
		fmt.Fprintf(&b, "%s: %s\r\n", headers[i], headers[i+1])
	}
	return b.String() + "\r\n"
}

// dialPort connects to a port of this host; reads and writes give up after 20 s.
func dialPort(t *testing.T, port int) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

// apiError is the body of a failed API call.
type apiError struct{ ErrorCode, Message string }

func wantError(t *testing.T, resp *http.Response, body []byte, status int, code string, texts ...string) {
	t.Helper()
	var e apiError
	if err := json.Unmarshal(body, &e); err != nil || resp.StatusCode != status || e.ErrorCode != code {
		t.Fatalf("got %d %s, want %d with errorCode %s", resp.StatusCode, body, status, code)
	}
	for _, text := range texts {
		if !strings.Contains(e.Message, text) {
			t.Errorf("message %q does not contain %q", e.Message, text)
		}
	}
}

// eventually polls until ok, and fails after limit.
func eventually(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within %v: %s", limit, what)
}

// within waits for a channel and reports what did not happen.
func within(t *testing.T, limit time.Duration, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatalf("not within %v: %s", limit, what)
	}
}

// fetch is a request whose failure is a result. It does not retry, follow or pool.
func fetch(ctx context.Context, method, url string, body io.Reader, header ...string) (int, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0, nil, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := plain.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

var plain = &http.Transport{DisableKeepAlives: true, DisableCompression: true}

// zeros is a body of n bytes that takes no memory.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// pattern is a body of n bytes in which a lost, doubled or moved block shows.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16)
	}
	return b
}

func sameBytes(t *testing.T, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	t.Fatalf("got %d bytes, want %d; they differ at %d", len(got), len(want), at)
}

// quiet is for servers whose clients are meant to misbehave.
var quiet = log.New(io.Discard, "", 0)

// h2c is a transport that speaks HTTP/2 with prior knowledge and nothing else.
func h2c() *http.Transport {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return &http.Transport{Protocols: p}
}
