package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// client makes a client of addr that counts its connections.
func client(t testing.TB, addr string) (*h1.Client, *atomic.Int32) {
	t.Helper()
	dials := new(atomic.Int32)
	c := &h1.Client{Addr: addr, Dial: func(ctx context.Context) (net.Conn, error) {
		dials.Add(1)
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}}
	t.Cleanup(func() { _ = c.Close() })
	return c, dials
}

// stdServer is net/http's server.
func stdServer(t testing.TB, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// script is a server that gives each connection to the next function.
func script(t testing.TB, conns ...func(nc net.Conn, rd *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for _, f := range conns {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer nc.Close()
				_ = nc.SetDeadline(time.Now().Add(patience))
				f(nc, bufio.NewReader(nc))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return ln.Addr().String()
}

// take reads one request and its body.
func take(rd *bufio.Reader) string {
	req, err := http.ReadRequest(rd)
	if err != nil {
		return ""
	}
	body, _ := io.ReadAll(req.Body)
	return req.Method + " " + req.RequestURI + " " + string(body)
}

// answering reads one request and writes raw bytes.
func answering(raw string) func(net.Conn, *bufio.Reader) {
	return func(nc net.Conn, rd *bufio.Reader) {
		take(rd)
		_, _ = io.WriteString(nc, raw)
	}
}

// whole reads a response to its end.
func whole(t testing.TB, r *h1.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if r.Stream == nil {
		return string(r.Data)
	}
	body, err := io.ReadAll(r.Stream)
	if err != nil {
		t.Fatalf("body: %v", err)
	}
	return string(body)
}

func TestClientSendsWhatItIsGiven(t *testing.T) {
	got := make(chan string, 1)
	addr := script(t, func(nc net.Conn, rd *bufio.Reader) {
		p := make([]byte, 4096)
		for {
			n, err := rd.Read(p)
			if err != nil {
				return
			}
			got <- string(p[:n])
			_, _ = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	c, dials := client(t, addr)
	fields := call.Fields{{Name: "x-a", Value: "1\r\nX-Evil: 2"}, {Name: "Host", Value: "evil"}, {Name: "Content-Length", Value: "9"},
		{Name: "connection", Value: "close"}, {Name: "Transfer-Encoding", Value: "chunked"}, {Name: "Expect", Value: "100-continue"},
		{Name: "Te", Value: "trailers"}, {Name: "Upgrade", Value: "x"}, {Name: "bad name", Value: "x"}, {Name: "Date", Value: "kept"}}
	for _, tt := range []struct {
		name string
		req  h1.Request
		want string
	}{
		{"defaults", h1.Request{}, "GET / HTTP/1.1\r\nHost: " + addr + "\r\n\r\n"},
		{"fields", h1.Request{Method: "FOO", Target: "/a?b", Host: "h:1", Fields: fields}, "FOO /a?b HTTP/1.1\r\nHost: h:1\r\nX-A: 1  X-Evil: 2\r\nDate: kept\r\n\r\n"},
		{"small body in the same packet", h1.Request{Method: "POST", Host: "h", Body: []byte("abc")}, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"},
		{"empty body", h1.Request{Method: "POST", Host: "h"}, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := c.Do(t.Context(), &tt.req)
			whole(t, r, err)
			if g := <-got; g != tt.want {
				t.Errorf("got  %q\nwant %q", g, tt.want)
			}
		})
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}

func TestClientRefusesWhatIsNoHTTP(t *testing.T) {
	c, dials := client(t, "127.0.0.1:1")
	for name, req := range map[string]*h1.Request{
		"method":                {Method: "G T"},
		"method with a line":    {Method: "GET / HTTP/1.1\r\nX:"},
		"target with a space":   {Target: "/a b"},
		"target with a line":    {Target: "/ HTTP/1.1\r\nX: y"},
		"host with a line":      {Host: "h\r\nX: y"},
		"host with a path":      {Host: "h/x"},
		"target with a newline": {Target: "/\n"},
	} {
		if _, err := c.Do(t.Context(), req); fault.Of(err) != fault.Invalid || fault.SentOf(err) != fault.SentNever {
			t.Errorf("%s: %v", name, err)
		}
	}
	if dials.Load() != 0 {
		t.Error("dialled")
	}
}

// TestClientAgainstNetHTTP sends bodies of many sizes in every way and expects them back, with
// the connection reused throughout.
func TestClientAgainstNetHTTP(t *testing.T) {
	addr := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("server: %v", err)
		}
		w.Header().Set("X-Framing", fmt.Sprint(r.ContentLength, len(r.TransferEncoding)))
		if r.URL.Path == "/length" {
			w.Header().Set("Content-Length", itoa(len(body)))
		}
		_, _ = w.Write(body)
		if r.URL.Path == "/chunked" {
			w.(http.Flusher).Flush()
		}
	})
	c, dials := client(t, addr)
	for _, size := range []int{0, 1, 1000, 4096, 16 << 10, 65 << 10, 1 << 20} {
		body := bytes.Repeat([]byte("abcdefgh"), size/8+1)[:size]
		for _, path := range []string{"/length", "/chunked"} {
			for name, req := range map[string]*h1.Request{
				"data":   {Body: body},
				"stream": {Stream: bytes.NewReader(body), Length: int64(size)},
				"chunks": {Stream: bytes.NewReader(body), Length: call.Unknown},
			} {
				req.Method, req.Target = "POST", path
				r, err := c.Do(t.Context(), req)
				if err != nil {
					t.Fatalf("%d %s %s: %v", size, path, name, err)
				}
				framing, length := r.Fields.Get("X-Framing"), r.Length
				if got := whole(t, r, nil); got != string(body) {
					t.Errorf("%d %s %s: %d bytes back", size, path, name, len(got))
				}
				want := fmt.Sprint(size, 0)
				if name == "chunks" {
					want = "-1 1"
				}
				if framing != want || path == "/length" && length != int64(size) {
					t.Errorf("%d %s %s: framing %s, length %d", size, path, name, framing, length)
				}
			}
		}
	}
	// One would do, but a stream's writer that a busy machine leaves behind its answer gives
	// the connection back too late for the next call.
	if n := dials.Load(); n > 3 {
		t.Errorf("%d connections for 42 calls", n)
	}
}

func TestAnswers(t *testing.T) {
	for _, tt := range []struct {
		name, method, raw string
		status            int
		length            int64
		body, trailer     string
		stream, reuse     bool
	}{
		{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, 2, "hi", "", false, true},
		{"length, closing", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi", 200, 2, "hi", "", false, false},
		{"no reason", "GET", "HTTP/1.1 599\r\nContent-Length: 0\r\n\r\n", 599, 0, "", "", false, true},
		{"chunked at once", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;x\r\n!\r\n0\r\n\r\n", 200, 3, "hi!", "", false, true},
		{"chunked with a false end", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nx\n0\r\n\r\n\r\n0\r\nT: 1\r\n\r\n", 200, -1, "x\n0\r\n\r\n", "1", true, true},
		{"chunked with trailer", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: 1\r\nContent-Length: 4\r\n\r\n", 200, -1, "hi", "1", true, true},
		{"both framings", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 200, 2, "hi", "", false, false},
		{"until close", "GET", "HTTP/1.1 200 OK\r\n\r\nhi", 200, -1, "hi", "", true, false},
		{"1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, 2, "hi", "", false, false},
		{"1.0 kept", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nhi", 200, 2, "hi", "", false, true},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n", 200, 2000, "", "", false, true},
		{"HEAD, chunked", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200, -1, "", "", false, true},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, 0, "", "", false, true},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, 5, "", "", false, true},
		{"redirect", "GET", "HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302, 0, "", "", false, true},
		{"100 before", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, 0, "", "", false, true},
		{"more than announced", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhixx", 200, 2, "hi", "", false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serveOnce := func(nc net.Conn, rd *bufio.Reader) {
				take(rd)
				_, _ = io.WriteString(nc, tt.raw)
				if strings.HasPrefix(tt.name, "until close") {
					return
				}
				take(rd) // the second request, or the end
				_, _ = io.WriteString(nc, "HTTP/1.1 299 Again\r\nContent-Length: 0\r\n\r\n")
			}
			c, dials := client(t, script(t, serveOnce, answering("HTTP/1.1 299 Again\r\nContent-Length: 0\r\n\r\n")))
			r, err := c.Do(t.Context(), &h1.Request{Method: tt.method})
			if err != nil {
				t.Fatal(err)
			}
			if r.Status != tt.status || r.Length != tt.length || (r.Stream != nil) != tt.stream {
				t.Errorf("status %d, length %d, stream %v", r.Status, r.Length, r.Stream != nil)
			}
			if body := whole(t, r, nil); body != tt.body || r.Trailer().Get("T") != tt.trailer || r.Trailer().Get("Content-Length") != "" {
				t.Errorf("body %q, trailer %v", body, r.Trailer())
			}
			r, err = c.Do(t.Context(), &h1.Request{})
			whole(t, r, err)
			if r.Status != 299 || (dials.Load() == 1) != tt.reuse {
				t.Errorf("then status %d over %d connections", r.Status, dials.Load())
			}
		})
	}
}

func TestBrokenAnswers(t *testing.T) {
	long := strings.Repeat("y", 70<<10)
	for _, tt := range []struct {
		name, raw string
		code      fault.Code
	}{
		{"nothing", "", fault.Unavailable},
		{"half a head", "HTTP/1.1 200 OK\r\nContent-", fault.Unavailable},
		{"no HTTP", "SSH-2.0-OpenSSH\r\n\r\n", fault.Unavailable},
		{"bare LF", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", fault.Unavailable},
		{"HTTP/2", "HTTP/2.0 200 OK\r\n\r\n", fault.Unavailable},
		{"status of two digits", "HTTP/1.1 20 OK\r\n\r\n", fault.Unavailable},
		{"status 099", "HTTP/1.1 099 OK\r\n\r\n", fault.Unavailable},
		{"differing lengths", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nhi", fault.Unavailable},
		{"unknown coding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhi", fault.Unavailable},
		{"unasked 101", "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", fault.Unavailable},
		{"endless 1xx", strings.Repeat("HTTP/1.1 102 P\r\n\r\n", 1001), fault.Unavailable},
		{"head too large", "HTTP/1.1 200 OK\r\nX: " + long + "\r\n\r\n", fault.TooLarge},
		{"short body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", fault.Unavailable},
		{"short long body", "HTTP/1.1 200 OK\r\nContent-Length: 500000\r\n\r\nhi", fault.Unavailable},
		{"short chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhi", fault.Unavailable},
		{"no last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", fault.Unavailable},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nxyz\r\n", fault.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := client(t, script(t, answering(tt.raw)))
			r, err := c.Do(t.Context(), &h1.Request{Method: "POST", Body: []byte("x")})
			if err == nil {
				_, err = io.ReadAll(r.Stream)
				_, again := r.Stream.Read(make([]byte, 1))
				if again == nil || again == io.EOF {
					t.Errorf("then a clean end: %v", again)
				}
				r.Close()
			}
			if fault.Of(err) != tt.code || fault.SentOf(err) != fault.SentMaybe || !strings.Contains(err.Error(), c.Addr) {
				t.Errorf("got %v (%v, sent %d)", err, fault.Of(err), fault.SentOf(err))
			}
		})
	}
}

func TestDialFailure(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	ln.Close()
	c, _ := client(t, addr)
	_, err = c.Do(t.Context(), &h1.Request{})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !errors.Is(err, syscall.ECONNREFUSED) ||
		err.Error() != "dial "+addr+": connection refused" {
		t.Errorf("got %v (sent %d)", err, fault.SentOf(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Do(ctx, &h1.Request{}); fault.Of(err) != fault.Canceled || fault.SentOf(err) != fault.SentNever {
		t.Errorf("with an ended context: %v (sent %d)", err, fault.SentOf(err))
	}
}

// TestClosedKeepAlive: a connection that the origin closed while idle is never used.
func TestClosedKeepAlive(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	c, dials := client(t, script(t, answering(answer), answering(answer)))
	for range 2 {
		r, err := c.Do(t.Context(), &h1.Request{Method: "POST"})
		whole(t, r, err)
		time.Sleep(20 * time.Millisecond) // for the origin's FIN
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// TestStaleConnection: the origin takes a second request on a kept connection and closes
// without a word. Only what may be repeated is.
func TestStaleConnection(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	closing := func(nc net.Conn, rd *bufio.Reader) {
		take(rd)
		_, _ = io.WriteString(nc, answer)
		take(rd)
	}
	large := bytes.Repeat([]byte("x"), 100<<10)
	for _, tt := range []struct {
		name  string
		req   h1.Request
		again bool
	}{
		{"GET", h1.Request{}, true}, {"PUT", h1.Request{Method: "PUT", Body: []byte("x")}, true}, {"large PUT", h1.Request{Method: "PUT", Body: large}, true},
		{"POST", h1.Request{Method: "POST", Body: []byte("x")}, false}, {"large POST", h1.Request{Method: "POST", Body: large}, false},
		{"streamed PUT", h1.Request{Method: "PUT", Stream: strings.NewReader("x"), Length: 1}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, dials := client(t, script(t, closing, answering(answer)))
			r, err := c.Do(t.Context(), &h1.Request{})
			whole(t, r, err)
			r, err = c.Do(t.Context(), &tt.req)
			switch {
			case tt.again:
				whole(t, r, err)
				if dials.Load() != 2 {
					t.Errorf("%d connections", dials.Load())
				}
			case fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe || dials.Load() != 1:
				t.Errorf("got %v over %d connections", err, dials.Load())
			}
		})
	}
}

func TestInform(t *testing.T) {
	addr := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>")
		w.WriteHeader(103)
		w.WriteHeader(102)
		w.WriteHeader(201)
	})
	c, _ := client(t, addr)
	var got []string
	r, err := c.Do(t.Context(), &h1.Request{Inform: func(status int, fields call.Fields) {
		got = append(got, itoa(status)+fields.Get("link"))
	}})
	whole(t, r, err)
	if strings.Join(got, " ") != "103</a> 102</a>" || r.Status != 201 {
		t.Errorf("got %v, then %d", got, r.Status)
	}
}

func TestClientUpgrade(t *testing.T) {
	addr := script(t, func(nc net.Conn, rd *bufio.Reader) {
		req, err := http.ReadRequest(rd)
		if err != nil || req.Header.Get("Upgrade") != "echo" || req.Header.Get("Connection") != "Upgrade" {
			t.Errorf("request %v, %v", req, err)
		}
		_, _ = io.WriteString(nc, "HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 101 Switching\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\nhello ")
		_, _ = io.Copy(nc, rd)
	})
	c, _ := client(t, addr)
	ctx, cancel := context.WithCancel(t.Context())
	r, err := c.Do(ctx, &h1.Request{Upgrade: true, Fields: call.Fields{{Name: "upgrade", Value: "echo"}}})
	if err != nil {
		t.Fatal(err)
	}
	cancel() // no longer of interest
	if r.Status != 101 || r.Fields.Get("Upgrade") != "echo" {
		t.Errorf("status %d, %v", r.Status, r.Fields)
	}
	_, _ = io.WriteString(r.Upgrade, "you")
	_ = r.Upgrade.(interface{ CloseWrite() error }).CloseWrite()
	if all, err := io.ReadAll(r.Upgrade); string(all) != "hello you" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
	r.Close()
	r.Close()
}

func TestIdlePool(t *testing.T) {
	addr := stdServer(t, func(http.ResponseWriter, *http.Request) { time.Sleep(10 * time.Millisecond) })
	c, dials := client(t, addr)
	c.MaxIdle, c.IdleTimeout = 2, 100*time.Millisecond
	burst := func(n int) {
		var all sync.WaitGroup
		for range n {
			all.Go(func() {
				r, err := c.Do(t.Context(), &h1.Request{})
				whole(t, r, err)
			})
		}
		all.Wait()
	}
	burst(4)
	burst(2)
	if n := dials.Load(); n < 3 || n > 4 {
		t.Errorf("%d connections, want the burst's 4 and none more", n)
	}
	before := dials.Load()
	time.Sleep(250 * time.Millisecond)
	burst(1)
	if n := dials.Load(); n != before+1 {
		t.Errorf("%d new connections after the idle time, want 1", n-before)
	}
	_ = c.Close()
	burst(2) // still works, keeps nothing
}
