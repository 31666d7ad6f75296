package h1_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/test/untested"
)

// TestRefusals sends what two parsers could read in two ways, and plain nonsense.
func TestRefusals(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		if _, err := ex.ReadBody(1 << 20); err != nil {
			code := 500
			if fault.Of(err) == fault.Invalid {
				code = 400
			}
			_ = ex.Respond(code, nil, []byte(err.Error()))
			return
		}
		_ = ex.Respond(200, nil, nil)
	})
	const post = "POST / HTTP/1.1\r\nHost: h\r\n"
	for _, tt := range []struct {
		name, raw string
		status    string
	}{
		{"both framings", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"both framings, other order", post + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", "400"},
		{"differing lengths", post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", "400"},
		{"equal lengths", post + "Connection: close\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "200"},
		{"list of lengths", post + "Content-Length: 5, 5\r\n\r\nabcde", "400"},
		{"signed length", post + "Content-Length: +5\r\n\r\nabcde", "400"},
		{"negative length", post + "Content-Length: -5\r\n\r\n", "400"},
		{"hexadecimal length", post + "Content-Length: 0x5\r\n\r\nabcde", "400"},
		{"empty length", post + "Content-Length:\r\n\r\n", "400"},
		{"overflowing length", post + "Content-Length: 99999999999999999999\r\n\r\n", "400"},
		{"gzip before chunked", post + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "400"},
		{"chunked twice", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"identity", post + "Transfer-Encoding: identity\r\n\r\n", "400"},
		{"vertical tab before chunked", post + "Transfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", "400"},
		{"chunked in 1.0", "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"},
		{"space before colon", post + "Content-Length : 5\r\n\r\nabcde", "400"},
		{"tab in name", post + "X\tY: 5\r\n\r\n", "400"},
		{"folded line", post + "X: a\r\n b\r\n\r\n", "400"},
		{"folded first line", "GET / HTTP/1.1\r\n Host: h\r\n\r\n", "400"},
		{"empty name", post + ": a\r\n\r\n", "400"},
		{"no colon", post + "abc\r\n\r\n", "400"},
		{"NUL in value", post + "X: a\x00b\r\n\r\n", "400"},
		{"CR in value", post + "X: a\rb\r\n\r\n", "400"},
		{"bare LF in the head", post + "X: a\nContent-Length: 1\r\n\r\n", "400"},
		{"bare LF all over", "GET / HTTP/1.1\nHost: h\n\n", "400"},
		{"bare LF at the end", post + "X: a\r\n\n", "400"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "400"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", "400"},
		{"host with a slash", "GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", "400"},
		{"version 2", "GET / HTTP/2.0\r\nHost: h\r\n\r\n", "505"},
		{"version 1.2", "GET / HTTP/1.2\r\nHost: h\r\n\r\n", "505"},
		{"no version", "GET /\r\nHost: h\r\n\r\n", "400"},
		{"lower-case version", "GET / http/1.1\r\nHost: h\r\n\r\n", "400"},
		{"two spaces", "GET  / HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"space in the target", "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"bad method", "G(T / HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"relative target", "GET x HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"asterisk for GET", "GET * HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"user in the target", "GET http://u@h/ HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"another scheme", "GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"bad escape", "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"bad escape at the end", "GET /%1 HTTP/1.1\r\nHost: h\r\n\r\n", "400"},
		{"other expectation", post + "Expect: 200-ok\r\n\r\n", "417"},
		{"chunk size overflow", post + "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n", "400"},
		{"chunk size missing", post + "Transfer-Encoding: chunked\r\n\r\n\r\n", "400"},
		{"chunk size with sign", post + "Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n", "400"},
		{"chunk size with 0x", post + "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n", "400"},
		{"chunk longer than said", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n", "400"},
		{"chunk size with bare LF", post + "Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n", "400"},
		{"chunk size after a space", post + "Transfer-Encoding: chunked\r\n\r\n 1\r\na\r\n0\r\n\r\n", "400"},
		{"chunk extension with control byte", post + "Transfer-Encoding: chunked\r\n\r\n1;\x00\r\na\r\n0\r\n\r\n", "400"},
		{"chunk extension without end", post + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("x", 2000) + "\r\n", "400"},
		{"mostly extensions", post + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1;"+strings.Repeat("x", 900)+"\r\na\r\n", 30), "400"},
		{"bad trailer", post + "Transfer-Encoding: chunked\r\n\r\n0\r\nno colon\r\n\r\n", "400"},
		{"long trailer", post + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 30) + "\r\n", "400"},
		{"too many fields", post + strings.Repeat("a:b\r\n", 1001) + "\r\n", "431"},
		{"head too large", post + "X: " + strings.Repeat("y", 70<<10) + "\r\n\r\n", "431"},
		{"head without end", post + "X: " + strings.Repeat("y", 70<<10), "431"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer := talk(t, addr, tt.raw)
			if !strings.HasPrefix(answer, "HTTP/1.1 "+tt.status+" ") || strings.Count(answer, "\r\nDate: ") != 1 {
				t.Errorf("got %q, want one %s", answer, tt.status)
			}
			if tt.status != "200" && !strings.Contains(answer, "Connection: close\r\n") && !strings.Contains(answer, "request body") {
				t.Errorf("no announced close in %q", answer)
			}
		})
	}
}

func TestRefusalTexts(t *testing.T) {
	addr := serveWith(t, &h1.Server{Handler: echo, MaxHeaderBytes: 8 << 10})
	for raw, want := range map[string]string{
		"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n": "\r\n\r\n400 Bad Request",
		"GET / HTTP/1.1\r\n\r\n":               "\r\n\r\n400 Bad Request: missing Host header",
		"GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("y", 9_500) + "\r\n\r\n":                      "\r\n\r\n431 Request Header Fields Too Large",
		"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: " + strings.Repeat("y", 5_000) + "\r\n\r\n": "Connection: close\r\n\r\n",
	} {
		answer := talk(t, addr, raw)
		if !strings.HasSuffix(answer, want) {
			t.Errorf("%.40q…: got %q, want the end %q", raw, answer, want)
		}
	}
}

// pipeListener hands out one end of in-memory connections, whose deadlines follow the fake
// clock.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// inBubble runs a test against a server under the fake clock.
func inBubble(t *testing.T, handler func(*h1.Exchange), test func(t *testing.T, dial func() net.Conn)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &h1.Server{Handler: handler}
		ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
		served := make(chan error, 1)
		go func() { served <- s.Serve(t.Context(), ln) }()
		test(t, func() net.Conn {
			near, far := net.Pipe()
			ln.conns <- far
			return near
		})
		_ = s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestSlowHeadDies(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, dial func() net.Conn) {
		start := time.Now()
		nc := dial()
		answer := make(chan string, 1)
		go func() {
			all, _ := io.ReadAll(nc)
			answer <- string(all)
		}()
		for i := 0; ; i++ { // one byte a second, for ever
			if _, err := nc.Write([]byte("GET / HTTP/1.1\r\nHost: h\r\nX: yyyyyyyyyyyyyyyyyyyyyy"[i : i+1])); err != nil {
				break
			}
			time.Sleep(time.Second)
		}
		if got := <-answer; !strings.HasPrefix(got, "HTTP/1.1 408 ") {
			t.Errorf("got %q", got)
		}
		if d := time.Since(start); d < 10*time.Second || d > 12*time.Second {
			t.Errorf("died after %v, want about 10 s", d)
		}
	})
}

func TestIdleConnectionsEnd(t *testing.T) {
	inBubble(t, echo, func(t *testing.T, dial func() net.Conn) {
		silent, start := dial(), time.Now()
		if _, err := silent.Read(make([]byte, 1)); err != io.EOF || time.Since(start) != 10*time.Second {
			t.Errorf("a connection without a request: %v after %v", err, time.Since(start))
		}
		nc := dial()
		rd := bufio.NewReader(nc)
		for range 3 { // the timer restarts with every request
			time.Sleep(2 * time.Second)
			start = time.Now()
			_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
			if _, err := http.ReadResponse(rd, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(150 * time.Second)
		}
		_, err := rd.ReadByte()
		if d := time.Since(start); err != io.EOF || d < 180*time.Second || d > 205*time.Second {
			t.Errorf("idle connection: %v after %v", err, d)
		}
	})
}

// TestSlowReaderIsServed: 30 s without any progress is the end, a byte now and then is not.
func TestSlowReaderIsServed(t *testing.T) {
	var ended chan error // made in the bubble, or waiting on it would stop the clock
	handler := func(ex *h1.Exchange) {
		_ = ex.Start(200, nil, 64<<10)
		_, err := ex.Write(make([]byte, 64<<10))
		_ = ex.End(nil)
		ended <- err
	}
	inBubble(t, handler, func(t *testing.T, dial func() net.Conn) {
		ended = make(chan error, 2)
		slow := dial()
		_, _ = io.WriteString(slow, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		for range 64 {
			time.Sleep(20 * time.Second)
			if _, err := io.ReadFull(slow, make([]byte, 1<<10)); err != nil {
				t.Fatalf("slow reader: %v", err)
			}
		}
		go func() { _, _ = io.Copy(io.Discard, slow) }()
		if err := <-ended; err != nil {
			t.Errorf("slow reader: %v", err)
		}
		stuck, start := dial(), time.Now()
		_, _ = io.WriteString(stuck, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
		if err := <-ended; fault.Of(err) != fault.Canceled || time.Since(start) < 30*time.Second || time.Since(start) > 46*time.Second {
			t.Errorf("stuck reader: %v after %v", err, time.Since(start))
		}
		slow.Close()
		stuck.Close()
	})
}

// TestCallerAbort: a caller that vanishes ends the context soon, however it vanishes.
func TestCallerAbort(t *testing.T) {
	if runtime.GOOS == "windows" {
		untested.Skip(t, "a caller's leaving: this system cannot look at a connection and notices by the next read or write")
	}
	entered, ended := make(chan struct{}, 1), make(chan time.Time, 1)
	addr := serve(t, func(ex *h1.Exchange) {
		entered <- struct{}{}
		select {
		case <-ex.Context().Done():
			ended <- time.Now()
		case <-time.After(patience):
			t.Error("the context did not end")
			ended <- time.Now()
		}
	})
	const get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	for _, tt := range []struct {
		name, raw string
		leave     func(*net.TCPConn)
	}{
		{"close", get, func(c *net.TCPConn) { c.Close() }},
		{"half-close", get, func(c *net.TCPConn) { _ = c.CloseWrite() }},
		{"reset", get, func(c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }},
		{"reset behind an unread body", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 999999\r\n\r\n" + strings.Repeat("x", 20_000),
			func(c *net.TCPConn) { _ = c.SetLinger(0); c.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nc := dial(t, addr).(*net.TCPConn)
			_, _ = io.WriteString(nc, tt.raw)
			<-entered
			left := time.Now()
			tt.leave(nc)
			d := (<-ended).Sub(left)
			t.Logf("noticed after %v", d)
			if d > time.Second { // 150 ms on a machine with nothing else to do
				t.Errorf("noticed after %v", d)
			}
		})
	}
}

func TestContextOutlivesNothing(t *testing.T) {
	type key struct{}
	children := make(chan func() error, 1)
	addr := serve(t, func(ex *h1.Exchange) {
		ctx := ex.Context()
		if ctx != ex.Context() || ctx.Err() != nil || ctx.Value(key{}) != nil {
			t.Error("not one live context")
		}
		if _, ok := ctx.Deadline(); ok {
			t.Error("a deadline from nowhere")
		}
		children <- func() error { <-ctx.Done(); return ctx.Err() }
		_ = ex.Respond(200, nil, nil)
	})
	talk(t, addr, "GET / HTTP/1.0\r\n\r\n")
	if err := (<-children)(); err == nil {
		t.Error("the context lives after the handler")
	}
}

// TestBodyOfAVanishedCaller: the reader of a body learns of it at once.
func TestBodyOfAVanishedCaller(t *testing.T) {
	got := make(chan error, 1)
	addr := serve(t, func(ex *h1.Exchange) {
		_, err := io.Copy(io.Discard, ex.Body())
		if err != nil && ex.Context().Err() == nil {
			t.Error("the context lives")
		}
		got <- err
	})
	for _, head := range []string{"Content-Length: 100", "Transfer-Encoding: chunked"} {
		nc := dial(t, addr)
		_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nHost: h\r\n"+head+"\r\n\r\n5\r\nabc")
		nc.Close()
		if err := <-got; fault.Of(err) != fault.Canceled || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: %v", head, err)
		}
	}
}

// TestStaleBody: a goroutine that goes on reading after the handler is stopped, and never gets
// bytes of the next request.
func TestStaleBody(t *testing.T) {
	stale := make(chan error, 1)
	addr := serve(t, func(ex *h1.Exchange) {
		if ex.Path() == "/first" {
			body := ex.Body()
			reading := make(chan struct{})
			go func() {
				p := make([]byte, 1)
				_, _ = body.Read(p)
				close(reading)
				_, err := body.Read(p)
				_, again := body.Read(p)
				stale <- errors.Join(err, again)
			}()
			<-reading
			time.Sleep(10 * time.Millisecond) // into the second Read, which blocks
			_ = ex.Respond(200, nil, nil)
			return
		}
		echo(ex)
	})
	nc := dial(t, addr)
	rd := bufio.NewReader(nc)
	_, _ = io.WriteString(nc, "POST /first HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na")
	if err := <-stale; fault.Of(err) != fault.Canceled {
		t.Errorf("stale reader: %v", err)
	}
	_, _ = io.WriteString(nc, "bcPOST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nnext")
	for _, want := range []string{"", "next"} {
		resp, err := http.ReadResponse(rd, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != want {
			t.Errorf("body %q, want %q", body, want)
		}
	}
}

func TestBodyClose(t *testing.T) {
	got := make(chan error, 1)
	addr := serve(t, func(ex *h1.Exchange) {
		body := ex.Body()
		time.AfterFunc(20*time.Millisecond, func() { body.Close() })
		_, err := body.Read(make([]byte, 1))
		got <- err
		_ = ex.Respond(200, nil, nil)
	})
	nc := dial(t, addr)
	_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n")
	if err := <-got; fault.Of(err) != fault.Canceled {
		t.Errorf("closed body: %v", err)
	}
	if all, _ := io.ReadAll(nc); !strings.Contains(string(all), "200 OK") {
		t.Errorf("got %q", all)
	}
}

// TestLargeBodyInConstantMemory carries 64 MiB through a server both ways.
func TestLargeBodyInConstantMemory(t *testing.T) {
	const size = 64 << 20
	addr := serve(t, func(ex *h1.Exchange) {
		_ = ex.Start(200, nil, call.Unknown)
		_, _ = ex.Copy(ex.Body())
		_ = ex.End(nil)
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	resp, err := stdClient(t).Post("http://"+addr, "", io.LimitReader(zeros{}, size))
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	runtime.ReadMemStats(&after)
	if n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
		t.Errorf("%d bytes were allocated for it", grown)
	}
}
