package h1_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// stdClient is net/http's client with its own connections.
func stdClient(t testing.TB) *http.Client {
	t.Helper()
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

// talk sends raw bytes and returns everything that comes back until the server closes.
func talk(t testing.TB, addr, raw string) string {
	t.Helper()
	nc := dial(t, addr)
	if _, err := io.WriteString(nc, raw); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(nc)
	if err != nil {
		t.Fatalf("reading the answer: %v (so far %q)", err, all)
	}
	return string(all)
}

// dial opens a raw connection that cannot hang a test.
func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	return nc
}

func TestRequestReachesHandler(t *testing.T) {
	type seen struct {
		method, target, path, query, host, field, body string
		minor                                          int
		length                                         int64
	}
	got := make(chan seen, 1)
	addr := serve(t, func(ex *h1.Exchange) {
		body, err := ex.ReadBody(1 << 20)
		if err != nil {
			t.Errorf("ReadBody: %v", err)
		}
		got <- seen{ex.Method(), ex.Target(), ex.Path(), ex.Query(), ex.Host(), ex.Header().Get("x-one"), string(body), ex.Minor(), ex.ContentLength()}
		_ = ex.Respond(200, nil, nil)
	})
	const rest = " HTTP/1.1\r\nHost: h:1\r\nConnection: close\r\nX-One: \t a b \r\n\r\n"
	for _, tt := range []struct {
		name, raw string
		want      seen
	}{
		{"origin form", "GET /a%2Fb?c=d&e" + rest, seen{"GET", "/a%2Fb?c=d&e", "/a%2Fb", "c=d&e", "h:1", "a b", "", 1, 0}},
		{"unknown verb", "QUERY /" + rest, seen{"QUERY", "/", "/", "", "h:1", "a b", "", 1, 0}},
		{"absolute form outranks Host", "GET http://other:80/p?q" + rest, seen{"GET", "http://other:80/p?q", "/p", "q", "other:80", "a b", "", 1, 0}},
		{"absolute form without path", "GET http://[::1]?q" + rest, seen{"GET", "http://[::1]?q", "/", "q", "[::1]", "a b", "", 1, 0}},
		{"authority form", "CONNECT h2:443" + rest, seen{"CONNECT", "h2:443", "", "", "h2:443", "a b", "", 1, 0}},
		{"asterisk form", "OPTIONS *" + rest, seen{"OPTIONS", "*", "*", "", "h:1", "a b", "", 1, 0}},
		{"raw UTF-8 in the path", "GET /ü" + rest, seen{"GET", "/ü", "/ü", "", "h:1", "a b", "", 1, 0}},
		{"HTTP/1.0 without Host", "GET / HTTP/1.0\r\n\r\n", seen{"GET", "/", "/", "", "", "", "", 0, 0}},
		{"empty line before the request", "\r\nGET /" + rest, seen{"GET", "/", "/", "", "h:1", "a b", "", 1, 0}},
		{"body of a known length", "PUT / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", seen{"PUT", "/", "/", "", "h", "", "abc", 1, 3}},
		{"chunked body", "PUT / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nab\r\n01\r\nc\r\n0\r\nT: 1\r\n\r\n", seen{"PUT", "/", "/", "", "h", "", "abc", 1, -1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if answer := talk(t, addr, tt.raw); !strings.HasPrefix(answer, "HTTP/1.1 200 OK\r\n") {
				t.Fatalf("answer: %q", answer)
			}
			if g := <-got; g != tt.want {
				t.Errorf("got  %+v\nwant %+v", g, tt.want)
			}
		})
	}
}

func TestRespondWritesOneCleanHead(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		_ = ex.Respond(201, call.Fields{
			{Name: "content-type", Value: "text/plain"},
			{Name: "X-evil", Value: "a\r\nSet-Cookie: stolen=1\x00b"},
			{Name: "bad name", Value: "dropped"},
			{Name: "bad\r\nname", Value: "dropped"},
			{Name: "Set-Cookie", Value: "a=1"}, {Name: "set-cookie", Value: "b=2"},
			{Name: "content-length", Value: "99"}, {Name: "Connection", Value: "x"}, {Name: "Transfer-Encoding", Value: "gzip"},
			{Name: "Date", Value: "never"}, {Name: "Trailer", Value: "t"}, {Name: "keep-alive", Value: "t"}, {Name: "Upgrade", Value: "t"},
		}, []byte("hi"))
	})
	answer := talk(t, addr, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
	lines := strings.Split(answer, "\r\n")
	for i, line := range lines {
		if d, ok := strings.CutPrefix(line, "Date: "); ok {
			at, err := http.ParseTime(d)
			if err != nil || time.Since(at) > time.Minute {
				t.Errorf("Date %q: %v", d, err)
			}
			lines[i] = "Date"
		}
	}
	want := []string{"HTTP/1.1 201 Created", "Content-Type: text/plain", "X-Evil: a  Set-Cookie: stolen=1 b", "Set-Cookie: a=1", "Set-Cookie: b=2",
		"Date", "Content-Length: 2", "Connection: close", "", "hi"}
	if got, want := strings.Join(lines, "|"), strings.Join(want, "|"); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestBodilessAnswers(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		switch ex.Path() {
		case "/204":
			_ = ex.Respond(204, nil, []byte("must not go out"))
		case "/304":
			_ = ex.Respond(304, nil, []byte("must not go out"))
		case "/stream":
			_ = ex.Start(200, nil, call.Unknown)
			_, _ = ex.Write([]byte("abc"))
			_ = ex.End(nil)
		case "/length":
			_ = ex.Start(200, nil, 5)
			_ = ex.End(nil)
		case "/nil":
			_ = ex.Respond(200, nil, nil)
		default:
			_ = ex.Respond(200, nil, []byte("four"))
		}
	})
	for _, tt := range []struct {
		method, path string
		status       int
		length       int64
	}{
		{"GET", "/204", 204, 0}, {"GET", "/304", 304, 0}, {"HEAD", "/", 200, 4}, {"HEAD", "/stream", 200, -1},
		{"HEAD", "/length", 200, 5}, {"HEAD", "/nil", 200, -1}, {"GET", "/nil", 200, 0},
	} {
		t.Run(tt.method+tt.path, func(t *testing.T) {
			client := stdClient(t)
			for range 2 { // the second one finds bytes that must not be there
				req, _ := http.NewRequest(tt.method, "http://"+addr+tt.path, nil)
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				if resp.StatusCode != tt.status || resp.ContentLength != tt.length || len(body) != 0 || err != nil {
					t.Errorf("status %d, length %d, body %q, %v", resp.StatusCode, resp.ContentLength, body, err)
				}
			}
		})
	}
}

func TestKeepAlive(t *testing.T) {
	addr := serve(t, echo)
	for _, tt := range []struct {
		name, raw string
		answers   int
	}{
		{"1.1 until close", "GET /1 HTTP/1.1\r\nHost: h\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\n\r\n", 2},
		{"1.0 once", "GET /1 HTTP/1.0\r\n\r\nGET /2 HTTP/1.0\r\n\r\n", 1},
		{"1.0 asking for more", "GET /1 HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n", 2},
		{"pipelined bodies", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nabPOST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nc\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\nConnection: x, close\r\n\r\n", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer := talk(t, addr, tt.raw)
			if n := strings.Count(answer, "HTTP/1.1 200 OK"); n != tt.answers {
				t.Errorf("%d answers, want %d: %q", n, tt.answers, answer)
			}
			last := answer[strings.LastIndex(answer, "HTTP/1.1"):]
			if !strings.Contains(last, "Connection: close\r\n") {
				t.Errorf("the last answer does not announce the close: %q", last)
			}
		})
	}
}

// TestHalfClosedPipeline: a caller that writes everything and closes its sending side wants
// its answers.
func TestHalfClosedPipeline(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		if ex.Path() == "/slow" {
			select {
			case <-ex.Context().Done():
				t.Error("the context of a request with others behind it ended")
			case <-time.After(250 * time.Millisecond):
			}
		}
		_ = ex.Respond(200, nil, nil)
	})
	nc := dial(t, addr)
	_, _ = io.WriteString(nc, "GET /slow HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")
	_ = nc.(*net.TCPConn).CloseWrite()
	all, _ := io.ReadAll(nc)
	if n := strings.Count(string(all), "200 OK"); n != 2 {
		t.Errorf("%d answers, want 2: %q", n, all)
	}
}

func TestReadBodyLimit(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		body, err := ex.ReadBody(100_000)
		if fault.Of(err) == fault.TooLarge {
			_ = ex.Respond(413, nil, nil)
			return
		}
		_ = ex.Respond(200, nil, body)
	})
	client := stdClient(t)
	for _, size := range []int{0, 1, 3000, 5000, 99_999, 100_000, 100_001, 300_000} {
		want := 200
		if size > 100_000 {
			want = 413
		}
		body := bytes.Repeat([]byte("x"), size)
		for name, rd := range map[string]io.Reader{"length": bytes.NewReader(body), "chunked": struct{ io.Reader }{bytes.NewReader(body)}} {
			resp, err := client.Post("http://"+addr, "", rd)
			if err != nil {
				t.Fatalf("%d bytes %s: %v", size, name, err)
			}
			got, err := io.ReadAll(resp.Body)
			if resp.StatusCode != want || err != nil || want == 200 && !bytes.Equal(got, body) {
				t.Errorf("%d bytes %s: status %d with %d bytes (%v), want %d", size, name, resp.StatusCode, len(got), err, want)
			}
		}
	}
}

func TestTrailersBothWays(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		if trailer := ex.RequestTrailer(); trailer != nil {
			t.Errorf("trailer %v before the body was read", trailer)
		}
		body, err := io.ReadAll(ex.Body())
		if err != nil {
			t.Errorf("body: %v", err)
		}
		_ = ex.Start(200, nil, call.Unknown)
		_, _ = ex.Write(body)
		_ = ex.End(append(call.Fields{{Name: "x-mine", Value: "2\r\nEvil: 1"}, {Name: "Content-Length", Value: "7"}}, ex.RequestTrailer()...))
	})
	req, _ := http.NewRequest("POST", "http://"+addr, struct{ io.Reader }{strings.NewReader("abc")})
	req.Trailer = http.Header{"X-Yours": {"1"}}
	resp, err := stdClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if string(body) != "abc" || err != nil {
		t.Errorf("body %q, %v", body, err)
	}
	if got := resp.Trailer; len(got) != 2 || got.Get("X-Yours") != "1" || got.Get("X-Mine") != "2  Evil: 1" {
		t.Errorf("trailer: %v", got)
	}
}

func TestExpectContinue(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		if ex.Path() == "/refuse" {
			_ = ex.Respond(403, nil, []byte("no"))
			return
		}
		echo(ex)
	})
	const head = "Host: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
	t.Run("asked for by reading", func(t *testing.T) {
		nc := dial(t, addr)
		_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\n"+head)
		rd := bufio.NewReader(nc)
		if line, _ := rd.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("got %q", line)
		}
		_, _ = rd.ReadString('\n')
		_, _ = io.WriteString(nc, "abc")
		resp, err := http.ReadResponse(rd, nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(resp.Body); string(body) != "abc" || resp.Close {
			t.Errorf("body %q, close %v", body, resp.Close)
		}
	})
	t.Run("not asked for by a handler that does not read", func(t *testing.T) {
		answer := talk(t, addr, "POST /refuse HTTP/1.1\r\n"+head)
		if !strings.HasPrefix(answer, "HTTP/1.1 403") || !strings.Contains(answer, "Connection: close") {
			t.Errorf("got %q", answer)
		}
	})
	t.Run("body sent without waiting", func(t *testing.T) {
		answer := talk(t, addr, "POST / HTTP/1.1\r\n"+head+"abcGET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		if strings.Contains(answer, " 100 ") || strings.Count(answer, " 200 ") != 2 {
			t.Errorf("got %q", answer)
		}
	})
}

func TestEarlyHints(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		if err := ex.Inform(200, nil); fault.Of(err) != fault.Internal {
			t.Errorf("Inform(200): %v", err)
		}
		_ = ex.Inform(103, call.Fields{{Name: "link", Value: "</a>"}})
		_ = ex.Inform(102, nil)
		_ = ex.Respond(200, nil, []byte("x"))
	})
	var got []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
		got = append(got, http.StatusText(code)+h.Get("Link"))
		return nil
	}})
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://"+addr, nil)
	resp, err := stdClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if strings.Join(got, ",") != "Early Hints</a>,Processing" || resp.StatusCode != 200 {
		t.Errorf("got %v, then %d", got, resp.StatusCode)
	}
	if answer := talk(t, addr, "GET / HTTP/1.0\r\n\r\n"); strings.Contains(answer, "103") {
		t.Errorf("HTTP/1.0 caller got %q", answer)
	}
}

func TestEarlyResponse(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) { _ = ex.Respond(413, nil, []byte("too much")) })
	for _, tt := range []struct {
		name  string
		size  int
		reuse bool
	}{{"little left", 100_000, true}, {"much left", 64 << 20, false}} {
		t.Run(tt.name, func(t *testing.T) {
			nc := dial(t, addr)
			go func() {
				_, _ = io.WriteString(nc, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: ")
				_, _ = io.WriteString(nc, itoa(tt.size)+"\r\n\r\n")
				if _, err := io.CopyN(nc, zeros{}, int64(tt.size)); err == nil {
					_, _ = io.WriteString(nc, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
				}
			}()
			rd := bufio.NewReader(nc)
			for range 2 {
				resp, err := http.ReadResponse(rd, nil)
				if err != nil {
					if tt.reuse {
						t.Fatalf("second answer: %v", err)
					}
					return
				}
				body, err := io.ReadAll(resp.Body)
				if resp.StatusCode != 413 || string(body) != "too much" || err != nil {
					t.Fatalf("status %d, body %q, %v", resp.StatusCode, body, err)
				}
			}
			if !tt.reuse {
				t.Error("the connection went on over megabytes of unread body")
			}
		})
	}
}

// TestAnswerDropsTheBody: what a handler did not read is skipped or announced as the
// connection's end, and nobody reads it afterwards.
func TestAnswerDropsTheBody(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		body := ex.Body()
		_ = ex.Respond(404, nil, nil)
		if n, err := body.Read(make([]byte, 10)); ex.ContentLength() != 0 && (n != 0 || fault.Of(err) != fault.Canceled) {
			t.Errorf("read %d bytes after the answer, %v", n, err)
		}
		if p, err := ex.ReadBody(1 << 20); ex.ContentLength() != 0 && err == nil {
			t.Errorf("ReadBody after the answer: %q", p)
		}
	})
	const post, next = "POST / HTTP/1.1\r\nHost: h\r\n", "GET / HTTP/1.0\r\n\r\n"
	for _, tt := range []struct {
		name, raw string
		answers   int
	}{
		{"short", post + "Content-Length: 3\r\n\r\nabc" + next, 2},
		{"chunked and all there", post + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\nT: 1\r\n\r\n" + next, 2},
		{"chunked with more to come", post + "Transfer-Encoding: chunked\r\n\r\n3\r\nab", 1},
		{"much to come", post + "Content-Length: 300000\r\n\r\nab", 1},
		{"malformed", post + "Transfer-Encoding: chunked\r\n\r\nx\r\n", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answer := talk(t, addr, tt.raw)
			if n := strings.Count(answer, "HTTP/1.1 404"); n != tt.answers || strings.Count(answer, "Connection: close") != 1 {
				t.Errorf("want %d answers, the last announcing the end: %q", tt.answers, answer)
			}
		})
	}
}

// TestFullDuplexEcho answers every piece of the request while the request goes on.
func TestFullDuplexEcho(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		_ = ex.Start(200, nil, call.Unknown)
		_ = ex.Flush()
		if _, err := ex.Copy(ex.Body()); err != nil {
			t.Errorf("Copy: %v", err)
		}
		_ = ex.End(nil)
	})
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", "http://"+addr, pr)
	resp, err := stdClient(t).Do(req) // returns although the body has not begun
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	for range 50 {
		if _, err := io.WriteString(pw, "hello"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, p); err != nil || string(p) != "hello" {
			t.Fatalf("echo %q, %v", p, err)
		}
	}
	pw.Close()
	if rest, err := io.ReadAll(resp.Body); len(rest) != 0 || err != nil {
		t.Errorf("end: %q, %v", rest, err)
	}
}

func TestDuplexFromTwoGoroutines(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		read := make(chan int64)
		go func() {
			n, _ := io.Copy(io.Discard, ex.Body())
			read <- n
		}()
		_ = ex.Start(200, nil, call.Unknown)
		for range 1000 {
			_, _ = ex.Write(kib)
		}
		_ = ex.End(call.Fields{{Name: "Read", Value: itoa(int(<-read))}})
	})
	resp, err := stdClient(t).Post("http://"+addr, "", io.LimitReader(zeros{}, 5<<20))
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	if n != 1000<<10 || err != nil || resp.Trailer.Get("Read") != itoa(5<<20) {
		t.Errorf("read %d bytes (%v), trailer %v", n, err, resp.Trailer)
	}
}

func TestStreamedAnswers(t *testing.T) {
	big := bytes.Repeat([]byte("0123456789abcdef"), 8<<10)
	for _, tt := range []struct {
		name   string
		pieces [][]byte
	}{
		{"empty", nil}, {"one byte", [][]byte{{'x'}}}, {"small pieces", [][]byte{big[:10], big[:100], {}, big[:1000]}},
		{"just the buffer", [][]byte{big[:8<<10]}}, {"large pieces", [][]byte{big, big[:70_001], big}},
		{"mixed", [][]byte{big[:5], big, big[:7], big[:9000], big[:1]}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := bytes.Join(tt.pieces, nil)
			addr := serve(t, func(ex *h1.Exchange) {
				length := call.Unknown
				if ex.Path() == "/length" {
					length = int64(len(want))
				}
				_ = ex.Start(200, nil, length)
				for i, p := range tt.pieces {
					if n, err := ex.Write(p); n != len(p) || err != nil {
						t.Errorf("Write: %d, %v", n, err)
					}
					if i%2 == 1 {
						_ = ex.Flush()
					}
				}
				_ = ex.End(nil)
			})
			client := stdClient(t)
			for _, path := range []string{"/length", "/chunked", "/length"} {
				resp, err := client.Get("http://" + addr + path)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				if !bytes.Equal(got, want) || err != nil {
					t.Errorf("%s: %d bytes, want %d (%v)", path, len(got), len(want), err)
				}
			}
			_, got, _ := strings.Cut(talk(t, addr, "GET /chunked HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), "\r\n\r\n")
			if got != string(want) {
				t.Errorf("HTTP/1.0: %d bytes, want %d", len(got), len(want))
			}
		})
	}
}

func TestMisuse(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		codes := func(errs ...error) {
			for i, err := range errs {
				if fault.Of(err) != fault.Internal {
					t.Errorf("%s misuse %d: %v", ex.Path(), i, err)
				}
			}
		}
		switch ex.Path() {
		case "/silence":
		case "/panic":
			panic("on purpose")
		case "/twice":
			_, err := ex.Write(nil)
			codes(err, ex.Flush(), ex.End(nil), ex.Respond(101, nil, nil), ex.Start(99, nil, 0))
			_ = ex.Respond(202, nil, nil)
			_, err = ex.Hijack()
			codes(ex.Respond(200, nil, nil), ex.Start(200, nil, 1), ex.Inform(103, nil), err)
		case "/toolong":
			_ = ex.Start(200, nil, 2)
			_, err := ex.Write([]byte("abc"))
			codes(err)
			_, _ = ex.Write([]byte("ab"))
			_ = ex.End(nil)
		}
	})
	client := stdClient(t)
	for path, want := range map[string]int{"/silence": 500, "/panic": 500, "/twice": 202, "/toolong": 200} {
		resp, err := client.Get("http://" + addr + path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if _, err := io.ReadAll(resp.Body); resp.StatusCode != want || err != nil {
			t.Errorf("%s: %d (%v), want %d", path, resp.StatusCode, err, want)
		}
	}
}

// TestTruncationShows: whatever goes wrong in the middle, the caller never sees a clean end.
func TestTruncationShows(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		length := call.Unknown
		if strings.HasSuffix(ex.Path(), "length") {
			length = 100
		}
		_ = ex.Start(200, nil, length)
		_, _ = ex.Write([]byte("some"))
		switch {
		case strings.HasPrefix(ex.Path(), "/return"):
		case strings.HasPrefix(ex.Path(), "/panic"):
			panic("on purpose")
		case strings.HasPrefix(ex.Path(), "/abort"):
			_ = ex.Flush()
			ex.Abort()
			if ex.Context().Err() == nil {
				t.Error("the context lives after Abort")
			}
		case strings.HasPrefix(ex.Path(), "/end"):
			if err := ex.End(nil); length > 0 && fault.Of(err) != fault.Internal {
				t.Errorf("End after too little: %v", err)
			}
		}
	})
	for _, path := range []string{"/return/length", "/return/chunked", "/panic/length", "/panic/chunked", "/abort/length", "/abort/chunked", "/end/length"} {
		t.Run(path, func(t *testing.T) {
			for _, version := range []string{"1.1", "1.0"} {
				nc := dial(t, addr)
				_, _ = io.WriteString(nc, "GET "+path+" HTTP/"+version+"\r\nHost: h\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(nc), nil)
				if err == nil {
					_, err = io.ReadAll(resp.Body)
				}
				if err == nil {
					t.Errorf("HTTP/%s: a clean end", version)
				}
			}
		})
	}
}
