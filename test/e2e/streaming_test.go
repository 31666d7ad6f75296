package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/untested"
)

// TestEventsComeAtOnce: each piece of a streamed answer reaches the caller before the next one
// is made, also the head before the first.
func TestEventsComeAtOnce(t *testing.T) {
	t.Parallel()
	const late = 100 * time.Millisecond
	for _, tt := range []struct{ name, typ, accept string }{
		{"server-sent events", "text/event-stream", "text/event-stream"},
		{"chunks", "application/x-ndjson", "*/*"},
	} {
		next := make(chan struct{})
		callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/events" {
				return // the sidecar asks for /dapr/config
			}
			w.Header().Set("Content-Type", tt.typ)
			rc := http.NewResponseController(w)
			for i := 0; ; i++ {
				rc.Flush()
				select {
				case <-next:
				case <-r.Context().Done():
					return
				}
				if i == 20 {
					return
				}
				fmt.Fprintf(w, "data: %d\n\n", i)
			}
		}))
		for _, way := range bothWays(callee, caller) {
			t.Run(tt.name+"/"+way.name, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				req, _ := http.NewRequestWithContext(ctx, "GET", invokeURL(way.via, "callee", "events"), nil)
				req.Header.Set("Accept", tt.accept)
				resp, err := plain.RoundTrip(req) // returns: the head came before any event
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if got := resp.Header.Get("Content-Type"); got != tt.typ {
					t.Errorf("content type %q, want %q", got, tt.typ)
				}
				lines := bufio.NewReader(resp.Body)
				slow := 0
				for i := range 20 {
					next <- struct{}{}
					start := time.Now()
					line, err := lines.ReadString('\n')
					if err != nil || line != fmt.Sprintf("data: %d\n", i) {
						t.Fatalf("event %d: %q, %v", i, line, err)
					}
					lines.ReadString('\n')
					if time.Since(start) > late {
						slow++
					}
				}
				if slow > 2 { // a busy machine may lose a slice once
					t.Errorf("%d of 20 events took over %v", slow, late)
				}
				next <- struct{}{}
				if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
					t.Errorf("the end: %q, %v; want a clean one", rest, err)
				}
			})
		}
	}
}

// TestFullDuplex: an app may answer while the request still comes, for as long as both like.
func TestFullDuplex(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		w.Header().Set("Content-Type", "text/plain")
		rc.Flush()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(w, "re: "+line)
			rc.Flush()
		}
	}))
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name, func(t *testing.T) {
			body, feed := io.Pipe()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, "POST", invokeURL(way.via, "callee", "talk"), body)
			resp, err := plain.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			out := bufio.NewReader(resp.Body)
			for i := range 10 {
				fmt.Fprintf(feed, "line %d\n", i)
				if got, err := out.ReadString('\n'); err != nil || got != fmt.Sprintf("re: line %d\n", i) {
					t.Fatalf("round %d: %q, %v", i, got, err)
				}
			}
			feed.Close()
			if _, err := out.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("the end = %v, want EOF", err)
			}
		})
	}
}

// TestLargeBodies: 200 MiB each way in bounded memory, every byte in place.
func TestLargeBodies(t *testing.T) {
	const size = 200 << 20
	block := pattern(1 << 20)
	callee, caller := func() (*harness.Sidecar, *harness.Sidecar) {
		mesh := harness.NewMesh(t)
		app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/up":
				n, err := checkPattern(r.Body, block)
				fmt.Fprintf(w, "%d %v", n, err)
			case "/down":
				if r.URL.RawQuery == "length" {
					w.Header().Set("Content-Length", strconv.Itoa(size))
				}
				for range size / len(block) {
					if _, err := w.Write(block); err != nil {
						return
					}
				}
			}
		})
		args := []string{"--max-body-size=-1"}
		return mesh.Start(harness.Options{AppID: "callee", AppPort: harness.Serve(t, app), Args: args}), mesh.Start(harness.Options{AppID: "caller", Args: args})
	}()
	client := &http.Client{Timeout: time.Minute}
	for _, tt := range []struct {
		name   string
		length int64
	}{{"up, announced", size}, {"up, chunked", -1}} {
		t.Run(tt.name, func(t *testing.T) {
			readers := make([]io.Reader, size/len(block))
			for i := range readers {
				readers[i] = bytes.NewReader(block)
			}
			req, _ := http.NewRequestWithContext(t.Context(), "POST", invokeURL(caller, "callee", "up"), io.MultiReader(readers...))
			req.ContentLength = tt.length
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if got, _ := io.ReadAll(resp.Body); string(got) != fmt.Sprintf("%d <nil>", size) {
				t.Errorf("the app read %s, want %d bytes", got, size)
			}
		})
	}
	for _, query := range []string{"", "length"} {
		t.Run("down "+query, func(t *testing.T) {
			resp, err := client.Get(invokeURL(caller, "callee", "down?"+query))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if n, err := checkPattern(resp.Body, block); n != size || err != nil {
				t.Errorf("read %d, %v; want %d", n, err, size)
			}
		})
	}
	for _, s := range []*harness.Sidecar{callee, caller} {
		peak := memory(t, s, "VmHWM")
		t.Logf("sidecar %s took up to %d MiB", s.AppID, peak>>20)
		if peak > 100<<20 {
			t.Errorf("sidecar %s took up to %d MiB; want at most 100", s.AppID, peak>>20)
		}
	}
}

// checkPattern reads r to its end as repetitions of block.
func checkPattern(r io.Reader, block []byte) (n int, err error) {
	buf := make([]byte, len(block))
	for {
		k, err := io.ReadFull(r, buf)
		if !bytes.Equal(buf[:k], block[:k]) {
			return n, fmt.Errorf("bytes differ within %d..%d", n, n+k)
		}
		n += k
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// memory is a figure of /proc/<pid>/status in bytes.
func memory(t *testing.T, s *harness.Sidecar, field string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Cmd.Process.Pid))
	if err != nil {
		untested.Skip(t, "memory, which is only read on Linux: %v", err)
	}
	_, rest, _ := strings.Cut(string(text), field+":")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// TestSlowReader: a caller that does not read holds the app back, not the sidecars' memory.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	stalled := make(chan struct{}, 8)
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		block := make([]byte, 64<<10)
		for {
			rc.SetWriteDeadline(time.Now().Add(time.Second))
			if _, err := w.Write(block); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					stalled <- struct{}{}
				}
				return
			}
		}
	}))
	for _, way := range bothWays(callee, caller) {
		conn := dialPort(t, way.via.HTTP)
		conn.(*net.TCPConn).SetReadBuffer(16 << 10)
		io.WriteString(conn, get("GET", "/v1.0/invoke/callee/method/endless"))
		within(t, 15*time.Second, way.name+": the app is held back", stalled)
	}
	for _, s := range []*harness.Sidecar{callee, caller} {
		if rss := memory(t, s, "VmRSS"); rss > 100<<20 {
			t.Errorf("sidecar %s holds %d MiB for a caller that does not read", s.AppID, rss>>20)
		}
	}
}

// TestCallerLeaves: an app learns within about a second that its caller has gone, wherever
// the call stands.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	type moment struct{ began, ended chan struct{} }
	moments := map[string]moment{}
	for _, where := range []string{"waiting", "uploading", "streaming"} {
		for _, way := range []string{"remote", "local"} {
			moments[way+where] = moment{make(chan struct{}), make(chan struct{})}
		}
	}
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m := moments[strings.Trim(r.URL.Path, "/")]
		switch {
		case m.began == nil: // the sidecar asks for /dapr/config
			return
		case strings.HasSuffix(r.URL.Path, "uploading"):
			r.Body.Read(make([]byte, 1))
			close(m.began)
			io.Copy(io.Discard, r.Body)
		case strings.HasSuffix(r.URL.Path, "streaming"):
			io.WriteString(w, "first\n")
			w.(http.Flusher).Flush()
			close(m.began)
		default:
			close(m.began)
		}
		select {
		case <-r.Context().Done():
			close(m.ended)
		case <-time.After(10 * time.Second):
		}
	}))
	for _, way := range bothWays(callee, caller) {
		for _, where := range []string{"waiting", "uploading", "streaming"} {
			t.Run(way.name+"/"+where, func(t *testing.T) {
				m := moments[way.name+where]
				conn := dialPort(t, way.via.HTTP)
				path := "/v1.0/invoke/callee/method/" + way.name + where
				if where == "uploading" {
					fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: s\r\nContent-Length: 100000\r\n\r\nsome", path)
				} else {
					io.WriteString(conn, get("GET", path))
				}
				within(t, 5*time.Second, "the app gets the call", m.began)
				conn.Close()
				within(t, 1500*time.Millisecond, "the app's request is cancelled", m.ended)
			})
		}
	}
}

// TestAppBreaksOff: a body that the app does not finish never looks finished.
func TestAppBreaksOff(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		switch r.URL.Path {
		case "/chunked":
			fmt.Fprint(buf, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		case "/within-a-chunk":
			fmt.Fprint(buf, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhello")
		case "/length":
			fmt.Fprint(buf, "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 100\r\n\r\nhello")
		case "/untyped":
			fmt.Fprint(buf, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhello")
		case "/head":
			fmt.Fprint(buf, "HTTP/1.1 200 OK\r\nContent-")
		case "/garbage":
			fmt.Fprint(buf, "hello\r\n\r\n")
		}
		buf.Flush()
		conn.(*net.TCPConn).SetLinger(map[bool]int{true: 0, false: -1}[r.URL.RawQuery == "reset"])
		if r.URL.RawQuery == "reset" {
			time.Sleep(50 * time.Millisecond) // let the bytes go first
		}
	}))
	for _, way := range bothWays(callee, caller) {
		for _, path := range []string{"chunked", "within-a-chunk", "length", "untyped", "chunked?reset", "length?reset"} {
			t.Run(way.name+"/"+path, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				status, body, err := fetch(ctx, "GET", invokeURL(way.via, "callee", path), nil)
				if err == nil && status == 200 {
					t.Fatalf("the caller got a clean 200 with %q", body)
				}
				if ctx.Err() != nil {
					t.Fatal("the caller was left hanging")
				}
			})
		}
		for _, path := range []string{"head", "garbage", "nothing"} {
			t.Run(way.name+"/"+path, func(t *testing.T) {
				resp, body := harness.Do(t, "POST", invokeURL(way.via, "callee", path), []byte("x"))
				wantError(t, resp, body, 500, "ERR_DIRECT_INVOKE", "failed to invoke, id: callee")
			})
		}
	}
}

// TestCallerBreaksOff: a body that the caller does not finish never looks finished to the app,
// nor does one over the limit.
func TestCallerBreaksOff(t *testing.T) {
	t.Parallel()
	type outcome struct {
		n   int64
		err error
	}
	outcomes := make(chan outcome, 1)
	var running atomic.Int32
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			running.Add(1)
			defer running.Add(-1)
			n, err := io.Copy(io.Discard, r.Body)
			outcomes <- outcome{n, err}
		}
	}))
	for _, way := range bothWays(callee, caller) {
		for _, tt := range []struct {
			name, head string
			body       io.Reader
		}{
			{"length", "Content-Length: 200000", strings.NewReader(strings.Repeat("x", 100_000))},
			{"between chunks", "Transfer-Encoding: chunked", strings.NewReader("5\r\nhello\r\n")},
			{"within a chunk", "Transfer-Encoding: chunked", strings.NewReader("ff\r\nhello")},
			{"bad chunk", "Transfer-Encoding: chunked", strings.NewReader("5\r\nhello\r\nnonsense\r\n")},
			{"over the limit", "Transfer-Encoding: chunked", io.MultiReader(strings.NewReader("500000\r\n"), zeros(0x500000), strings.NewReader("\r\n0\r\n\r\n"))},
		} {
			t.Run(way.name+"/"+tt.name, func(t *testing.T) {
				conn := dialPort(t, way.via.HTTP)
				fmt.Fprintf(conn, "POST /v1.0/invoke/callee/method/x HTTP/1.1\r\nHost: s\r\n%s\r\n\r\n", tt.head)
				io.Copy(conn, tt.body) // the sidecar may hang up first
				time.Sleep(50 * time.Millisecond)
				conn.Close()
				select {
				case o := <-outcomes:
					if o.err == nil {
						t.Errorf("the app read %d bytes to a clean end", o.n)
					}
				case <-time.After(1500 * time.Millisecond): // a body broken from the start may never get there
					if running.Load() > 0 {
						t.Error("the app was left waiting for the body")
					}
				}
			})
		}
	}
}

// TestEarlyAnswer: an app may answer before the request has ended; the caller gets the answer
// at once and the sidecars keep working.
func TestEarlyAnswer(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/early" {
			http.NewResponseController(w).EnableFullDuplex() // else net/http reads the body first
			w.Header().Set("Connection", "close")
			w.WriteHeader(403)
			io.WriteString(w, "no need to go on")
			return
		}
		echo(w, r)
	}))
	for _, way := range bothWays(callee, caller) {
		for _, framing := range []string{"Content-Length: 3000000", "Transfer-Encoding: chunked"} {
			t.Run(way.name+"/"+framing, func(t *testing.T) {
				conn := dialPort(t, way.via.HTTP)
				fmt.Fprintf(conn, "POST /v1.0/invoke/callee/method/early HTTP/1.1\r\nHost: s\r\nContent-Type: a/b\r\n%s\r\n\r\n4\r\nabcd\r\n", framing)
				resp, body := readAnswer(t, bufio.NewReader(conn), "POST")
				if resp.StatusCode != 403 || body != "no need to go on" {
					t.Errorf("got %d %q", resp.StatusCode, body)
				}
				if _, b := harness.Do(t, "GET", invokeURL(way.via, "callee", "next"), nil); decodeSeen(t, b).URI != "/next" {
					t.Errorf("the next call failed: %s", b)
				}
			})
		}
	}
}

// TestEarlyHints: a 103 is not taken for the answer, and reaches the caller of the own app.
func TestEarlyHints(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		time.Sleep(20 * time.Millisecond)
		w.Header().Set("X-Final", "yes")
		io.WriteString(w, "answer")
	}))
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name, func(t *testing.T) {
			hints := 0
			trace := &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code == 103 && h.Get("Link") != "" {
					hints++
				}
				return nil
			}}
			req, _ := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), "GET", invokeURL(way.via, "callee", "x"), nil)
			resp, err := plain.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != 200 || string(body) != "answer" || resp.Header.Get("X-Final") != "yes" {
				t.Errorf("got %d %q %v", resp.StatusCode, body, resp.Header)
			}
			if !way.remote && hints != 1 { // between sidecars only the final answer travels
				t.Errorf("got %d hints, want 1", hints)
			}
		})
	}
}

// TestExpectContinue: the caller is told to go on when the app wants the body, and not when it
// answers without.
func TestExpectContinue(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refuse" {
			http.NewResponseController(w).EnableFullDuplex() // else net/http reads the body first
			w.Header().Set("Connection", "close")
			w.WriteHeader(417)
			return
		}
		echo(w, r)
	}))
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name+"/refused", func(t *testing.T) {
			conn := dialPort(t, way.via.HTTP)
			io.WriteString(conn, "POST /v1.0/invoke/callee/method/refuse HTTP/1.1\r\nHost: s\r\nExpect: 100-continue\r\nContent-Length: 3000000\r\n\r\n")
			r := bufio.NewReader(conn)
			for {
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				if resp.StatusCode == 100 { // a large body is asked for beside the call
					continue
				}
				if resp.StatusCode != 417 {
					t.Errorf("got %d, want 417", resp.StatusCode)
				}
				return
			}
		})
		t.Run(way.name, func(t *testing.T) {
			conn := dialPort(t, way.via.HTTP)
			r := bufio.NewReader(conn)
			io.WriteString(conn, "POST /v1.0/invoke/callee/method/take HTTP/1.1\r\nHost: s\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
			line, err := r.ReadString('\n')
			if err != nil || !strings.HasPrefix(line, "HTTP/1.1 100") {
				t.Fatalf("got %q, %v; want 100 Continue", line, err)
			}
			r.ReadString('\n')
			io.WriteString(conn, "body")
			if _, body := readAnswer(t, r, "POST"); decodeSeen(t, []byte(body)).Body != "body" {
				t.Errorf("answer %s", body)
			}
		})
	}
}

// TestSlowSender: a request whose bytes trickle in is not cut off, and arrives whole.
func TestSlowSender(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(echo))
	for _, way := range bothWays(callee, caller) {
		conn := dialPort(t, way.via.HTTP)
		head := "POST /v1.0/invoke/callee/method/slow HTTP/1.1\r\nHost: s\r\nContent-Length: 10\r\n\r\n0123456789"
		for i := range len(head) {
			io.WriteString(conn, head[i:i+1])
			if i%10 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		if _, body := readAnswer(t, bufio.NewReader(conn), "POST"); decodeSeen(t, []byte(body)).Body != "0123456789" {
			t.Errorf("%s: answer %s", way.name, body)
		}
	}
}

// TestBodySizes: bodies around every boundary (inline or streamed, one frame or several) come
// back as they went.
func TestBodySizes(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.Write(body)
	}))
	for _, way := range bothWays(callee, caller) {
		for _, n := range []int{0, 1, 4095, 16 << 10, 32<<10 + 1, 64<<10 - 1, 64 << 10, 64<<10 + 1, 100_000, 256<<10 + 3, 1 << 20, 4 << 20} {
			want := pattern(n)
			for _, chunked := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/chunked=%v", way.name, n, chunked), func(t *testing.T) {
					var body io.Reader = bytes.NewReader(want)
					if chunked {
						body = io.MultiReader(body)
					}
					status, got, err := fetch(t.Context(), "POST", invokeURL(way.via, "callee", "x"), body)
					if err != nil || status != 200 {
						t.Fatalf("got %d, %v", status, err)
					}
					sameBytes(t, got, want)
				})
			}
		}
	}
}
