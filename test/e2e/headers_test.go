package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/test/harness"
)

// TestRequestHeaders: which of the caller's headers reach an HTTP app, and which are added.
func TestRequestHeaders(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(echo))
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name, func(t *testing.T) {
			_, body := raw(t, way.via.HTTP, "POST", "POST /v1.0/invoke/callee/method/h HTTP/1.1\r\nHost: sidecar\r\n"+
				"Authorization: Bearer x\r\nCookie: a=1\r\nCookie: b=2\r\nUser-Agent: tester/1\r\nAccept: text/x\r\n"+
				"X-Multi: one\r\nX-Multi: two\r\nX-Empty:\r\nx-lower: l\r\nX-UTF8: h\xc3\xa9\r\n"+
				"X-Data-Bin: aGk=\r\nConnection: X-Hop, keep-alive\r\nX-Hop: gone\r\nKeep-Alive: timeout=5\r\n"+
				"Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic x\r\nTE: trailers\r\nTrailer: X-T\r\nHTTP2-Settings: x\r\nUpgrade: foo\r\n"+
				"dapr-caller-app-id: forged\r\nDapr-Caller-Namespace: forged\r\ndapr-callee-app-id: forged\r\nDAPR-CALLER-anything: forged\r\n"+
				"X-Forwarded-For: 10.1.1.1\r\nForwarded: for=10.1.1.1\r\nbaggage: k=v\r\n"+
				"Content-Type: text/weird\r\nContent-Length: 2\r\n\r\nhi")
			got := decodeSeen(t, []byte(body))
			for name, want := range map[string]string{"Authorization": "Bearer x", "User-Agent": "tester/1", "Accept": "text/x", "X-Multi": "one|two",
				"X-Lower": "l", "X-Empty": "", "X-Utf8": "hé", "Content-Type": "text/weird", "Baggage": "k=v",
				"Dapr-Caller-App-Id": map[bool]string{true: "caller", false: "callee"}[way.remote], "Dapr-Caller-Namespace": "default", "Dapr-Callee-App-Id": "callee"} {
				if v := got.Header.Values(name); strings.Join(v, "|") != want || len(v) == 0 {
					t.Errorf("%s = %q, want %q", name, v, want)
				}
			}
			if c := strings.Join(got.Header.Values("Cookie"), "; "); c != "a=1; b=2" {
				t.Errorf("Cookie = %q", c)
			}
			for _, name := range []string{"X-Data-Bin", "X-Hop", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Te", "Trailer", "Http2-Settings", "Upgrade", "Dapr-Caller-Anything", "Transfer-Encoding"} {
				if v, ok := got.Header[name]; ok {
					t.Errorf("%s: %q reached the app", name, v)
				}
			}
			if got.Body != "hi" || got.Length != 2 {
				t.Errorf("body %q of length %d, want hi of 2", got.Body, got.Length)
			}
			fwd, xff := got.Header.Values("Forwarded"), strings.Join(got.Header.Values("X-Forwarded-For"), ", ")
			if !strings.HasPrefix(xff, "10.1.1.1") {
				t.Errorf("X-Forwarded-For = %q, want the caller's first", xff)
			}
			if !way.remote {
				return
			}
			if len(fwd) == 0 || fwd[0] != "for=10.1.1.1" || !strings.Contains(fwd[len(fwd)-1], ";by=") || !strings.Contains(xff, ", ") {
				t.Errorf("Forwarded = %q, X-Forwarded-For = %q; want the sidecar's after the caller's", fwd, xff)
			}
			if got.Header.Get("X-Forwarded-Host") == "" {
				t.Error("X-Forwarded-Host is missing")
			}
		})
		t.Run(way.name+"/no content type", func(t *testing.T) {
			_, body := raw(t, way.via.HTTP, "POST", "POST /v1.0/invoke/callee/method/h HTTP/1.1\r\nHost: s\r\nContent-Length: 2\r\n\r\nhi")
			if got := decodeSeen(t, []byte(body)); got.Header["Content-Type"] != nil {
				t.Errorf("app saw Content-Type %q, the caller sent none", got.Header["Content-Type"])
			}
		})
		t.Run(way.name+"/no body", func(t *testing.T) {
			_, body := raw(t, way.via.HTTP, "GET", get("GET", "/v1.0/invoke/callee/method/h"))
			if got := decodeSeen(t, []byte(body)); got.Body != "" || got.Header["Transfer-Encoding"] != nil || got.Header["Accept-Encoding"] != nil || got.Header["User-Agent"] != nil {
				t.Errorf("app saw %+v", got)
			}
		})
	}
}

// TestResponseHeaders: what of an app's answer reaches an HTTP caller.
func TestResponseHeaders(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Add("Set-Cookie", "a=1; Path=/")
		h.Add("Set-Cookie", "b=2")
		h.Add("X-Multi", "one")
		h.Add("X-Multi", "two")
		h.Set("Server", "app/1")
		h.Set("Etag", `"v1"`)
		h.Set("Cache-Control", "max-age=1")
		h.Set("X-Data-Bin", "aGk=")
		h.Set("Date", "Mon, 01 Jan 2001 00:00:00 GMT")
		h.Set("Keep-Alive", "timeout=1")
		h.Set("Proxy-Authenticate", "Basic")
		h.Set("Location", "/elsewhere")
		h.Set("Content-Encoding", "identity")
		h.Set("Content-Type", "text/weird")
		io.WriteString(w, "body")
	}))
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name, func(t *testing.T) {
			resp, body := raw(t, way.via.HTTP, "GET", get("GET", "/v1.0/invoke/callee/method/h"))
			h := resp.Header
			if !slices.Equal(h.Values("Set-Cookie"), []string{"a=1; Path=/", "b=2"}) || !slices.Equal(h.Values("X-Multi"), []string{"one", "two"}) {
				t.Errorf("multiple values are not kept: %v", h)
			}
			for name, want := range map[string]string{"Server": "app/1", "Etag": `"v1"`, "Cache-Control": "max-age=1", "Location": "/elsewhere", "Content-Type": "text/weird", "Content-Encoding": "identity"} {
				if got := h.Values(name); len(got) != 1 || got[0] != want {
					t.Errorf("%s = %q, want %q", name, got, want)
				}
			}
			for _, name := range []string{"X-Data-Bin", "Keep-Alive", "Proxy-Authenticate"} {
				if h.Get(name) != "" {
					t.Errorf("%s reached the caller", name)
				}
			}
			if d := h.Values("Date"); len(d) != 1 || strings.Contains(d[0], "2001") {
				t.Errorf("Date = %q, want the sidecar's own", d)
			}
			if body != "body" {
				t.Errorf("body = %q", body)
			}
		})
	}
}

// TestStatuses: statuses pass as they are, redirects are not followed, statuses without a body
// have no length.
func TestStatuses(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, rawApp(t))
	for _, way := range bothWays(callee, caller) {
		for _, tt := range []struct {
			status int
			body   string
		}{{200, "ok"}, {201, "made"}, {204, ""}, {206, "part"}, {299, "odd"}, {301, "moved"}, {302, ""}, {304, ""}, {307, "x"}, {400, "bad"}, {401, "who"}, {404, "none"},
			{405, "no"}, {412, "pre"}, {418, "teapot"}, {429, "slow"}, {451, "law"}, {500, "err"}, {503, "down"}, {599, "strange"}, {600, "beyond"}, {999, "last"}} {
			t.Run(fmt.Sprintf("%s/%d", way.name, tt.status), func(t *testing.T) {
				resp, body := raw(t, way.via.HTTP, "GET", get("GET", fmt.Sprintf("/v1.0/invoke/callee/method/status/%d?body=%s", tt.status, tt.body)))
				if resp.StatusCode != tt.status || body != tt.body {
					t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.body)
				}
				if resp.Header.Get("X-Mark") != "here" {
					t.Error("the answer's headers are lost")
				}
				if l := resp.Header.Get("Content-Length"); (tt.status == 204 || tt.status == 304) && l != "" {
					t.Errorf("a %d with Content-Length %s", tt.status, l)
				}
			})
		}
	}
}

// rawApp answers with statuses that net/http's server would not let through.
func rawApp(t *testing.T) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var status int
		if _, err := fmt.Sscanf(r.URL.Path, "/status/%d", &status); err != nil {
			w.WriteHeader(400)
			return
		}
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		body := r.URL.Query().Get("body")
		fmt.Fprintf(buf, "HTTP/1.1 %d Whatever\r\nX-Mark: here\r\nContent-Type: text/plain\r\nConnection: close\r\n", status)
		if status != 204 && status != 304 {
			fmt.Fprintf(buf, "Content-Length: %d\r\n", len(body))
		}
		fmt.Fprintf(buf, "\r\n%s", body)
		buf.Flush()
	})
}

// TestContentType: an answer without one gets a guessed one, whole or streamed.
func TestContentType(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Content-Type"] = nil // keeps net/http from guessing itself
		if r.URL.Path == "/stream" {
			w.(http.Flusher).Flush()
		}
		if r.URL.Path != "/empty" {
			io.WriteString(w, r.URL.Query().Get("b"))
		}
	}))
	for _, way := range bothWays(callee, caller) {
		for _, tt := range []struct{ name, path, want string }{
			{"json", "whole?b={}", "text/plain; charset=utf-8"},
			{"html", "whole?b=<html>", "text/html; charset=utf-8"},
			{"empty", "empty", ""},
			{"streamed", "stream?b=hello", "text/plain; charset=utf-8"},
		} {
			t.Run(way.name+"/"+tt.name, func(t *testing.T) {
				resp, _ := raw(t, way.via.HTTP, "GET", get("GET", "/v1.0/invoke/callee/method/"+tt.path))
				if got := resp.Header.Get("Content-Type"); got != tt.want {
					t.Errorf("Content-Type = %q, want %q", got, tt.want)
				}
			})
		}
	}
}

// TestHead: the answer to HEAD says how long the body would be, and has none.
func TestHead(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/x")
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", "123456")
		}
		w.WriteHeader(200)
	}))
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name, func(t *testing.T) {
			conn := dialPort(t, way.via.HTTP)
			r := bufio.NewReader(conn)
			for i, path := range []string{"known", "unknown", "known"} { // on one connection: a body nobody asked for would derail it
				io.WriteString(conn, get("HEAD", "/v1.0/invoke/callee/method/"+path))
				resp, body := readAnswer(t, r, "HEAD")
				want := map[string]string{"known": "123456"}[path]
				if got := resp.Header.Get("Content-Length"); resp.StatusCode != 200 || got != want || body != "" || resp.Header.Get("Content-Type") != "text/x" {
					t.Errorf("%d, %s: got %d, Content-Length %q (want %q), type %q, body %q", i, path, resp.StatusCode, got, want, resp.Header.Get("Content-Type"), body)
				}
			}
		})
	}
}

// TestTrailers: trailing fields pass in both directions.
func TestTrailers(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-After")
		io.Copy(w, r.Body)
		w.Header().Set("X-After", "seen:"+r.Trailer.Get("X-Sum"))
	}))
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name, func(t *testing.T) {
			resp, body := raw(t, way.via.HTTP, "POST", "POST /v1.0/invoke/callee/method/t HTTP/1.1\r\nHost: s\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"+
				"3\r\nabc\r\n0\r\nX-Sum: 42\r\n\r\n")
			if body != "abc" || !strings.HasPrefix(resp.Trailer.Get("X-After"), "seen:") {
				t.Fatalf("got %q, trailer %v; want abc and X-After", body, resp.Trailer)
			}
			if got := resp.Trailer.Get("X-After"); got != "seen:42" {
				t.Errorf("the app saw the request's trailer as %q, want 42", strings.TrimPrefix(got, "seen:"))
			}
		})
	}
}

// TestAppToken: APP_API_TOKEN goes to the own app with every call, and to nobody else.
func TestAppToken(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	port := harness.Serve(t, http.HandlerFunc(echo))
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: port, Env: []string{"APP_API_TOKEN=callee-secret"}})
	caller := mesh.Start(harness.Options{AppID: "caller", AppPort: port, Env: []string{"APP_API_TOKEN=caller-secret"}})
	for _, way := range bothWays(callee, caller) {
		_, body := harness.Do(t, "GET", invokeURL(way.via, "callee", "x"), nil, "dapr-api-token", "from-the-caller")
		if got := decodeSeen(t, body).Header["Dapr-Api-Token"]; !slices.Equal(got, []string{"callee-secret"}) {
			t.Errorf("%s: app saw token %q, want its own only", way.name, got)
		}
	}
	_, body := raw(t, caller.HTTP, "GET", get("GET", fmt.Sprintf("/v1.0/invoke/http://127.0.0.1:%d/method/x", port)))
	if got := decodeSeen(t, []byte(body)).Header["Dapr-Api-Token"]; got != nil {
		t.Errorf("a server outside the mesh saw token %q", got)
	}
}
