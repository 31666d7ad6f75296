package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestClientFullDuplex(t *testing.T) {
	addr := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		_ = rc.EnableFullDuplex()
		w.WriteHeader(200)
		_ = rc.Flush()
		p := make([]byte, 100)
		for {
			n, err := r.Body.Read(p)
			_, _ = w.Write(p[:n])
			_ = rc.Flush()
			if err != nil {
				break
			}
		}
		w.Header().Set(http.TrailerPrefix+"X-Sum", r.Trailer.Get("X-Sum"))
	})
	c, dials := client(t, addr)
	for range 10 {
		pr, pw := io.Pipe()
		r, err := c.Do(t.Context(), &h1.Request{Method: "POST", Stream: pr, Length: call.Unknown,
			Fields:  call.Fields{{Name: "X-A", Value: "b"}},
			Trailer: func() call.Fields { return call.Fields{{Name: "x-sum", Value: "7"}} }})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 5)
		for range 50 {
			if _, err := io.WriteString(pw, "hello"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(r.Stream, p); err != nil || string(p) != "hello" {
				t.Fatalf("echo %q, %v", p, err)
			}
		}
		pw.Close()
		if rest := whole(t, r, nil); rest != "" {
			t.Errorf("rest %q", rest)
		}
		_ = r.Trailer()
	}
	if n := dials.Load(); n > 3 {
		t.Errorf("%d connections for 10 calls in turn", n)
	}
}

func TestClientTrailers(t *testing.T) {
	addr := serve(t, func(ex *h1.Exchange) {
		_, _ = ex.ReadBody(1 << 20)
		_ = ex.Start(200, nil, call.Unknown)
		_ = ex.End(ex.RequestTrailer())
	})
	c, _ := client(t, addr)
	r, err := c.Do(t.Context(), &h1.Request{Method: "POST", Stream: strings.NewReader("abc"), Length: call.Unknown,
		Trailer: func() call.Fields {
			return call.Fields{{Name: "x-sum", Value: "7\r\nEvil: 1"}, {Name: "Host", Value: "evil"}}
		}})
	whole(t, r, err)
	if got := r.Trailer(); len(got) != 1 || got.Get("X-Sum") != "7  Evil: 1" {
		t.Errorf("trailer %v", got)
	}
}

// TestServerSentEvents: every event is there before the next one is made.
func TestServerSentEvents(t *testing.T) {
	next := make(chan string)
	addr := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		for event := range next {
			_, _ = io.WriteString(w, event)
			w.(http.Flusher).Flush()
		}
	})
	c, _ := client(t, addr)
	go func() { next <- "data: 0\n\n" }()
	r, err := c.Do(t.Context(), &h1.Request{})
	if err != nil {
		t.Fatal(err)
	}
	rd := bufio.NewReader(r.Stream)
	for i := range 20 {
		if line, err := rd.ReadString('\n'); line != "data: "+itoa(i)+"\n" || err != nil {
			t.Fatalf("got %q, %v", line, err)
		}
		_, _ = rd.ReadString('\n')
		if i < 19 {
			next <- "data: " + itoa(i+1) + "\n\n"
		}
	}
	close(next)
	if rest := whole(t, r, nil); rest != "" {
		t.Errorf("rest %q", rest)
	}
}

// TestAnswerBeforeTheRequestEnds: an origin may refuse a body that it does not want to read.
func TestAnswerBeforeTheRequestEnds(t *testing.T) {
	const no = "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n"
	refuse := func(head string, linger time.Duration) func(net.Conn, *bufio.Reader) {
		return func(nc net.Conn, rd *bufio.Reader) {
			_, _ = http.ReadRequest(rd)
			_, _ = io.WriteString(nc, head+"\r\nno")
			time.Sleep(linger)
		}
	}
	closed := make(chan struct{}, 1)
	blocked, unblock := io.Pipe()
	defer unblock.Close()
	for _, tt := range []struct {
		name   string
		req    h1.Request
		linger time.Duration
		head   string
	}{
		{"endless stream, origin closes", h1.Request{Stream: zeros{}, Length: call.Unknown}, 0, no},
		{"endless stream, origin stays", h1.Request{Stream: zeros{}, Length: call.Unknown}, 200 * time.Millisecond, no},
		{"long stream", h1.Request{Stream: zeros{}, Length: 1 << 40}, 0, no + "Connection: close\r\n"},
		{"large data, origin closes", h1.Request{Body: make([]byte, 32<<20)}, 0, no},
		{"large data, origin stays", h1.Request{Body: make([]byte, 32<<20)}, 300 * time.Millisecond, no},
		{"stream that blocks", h1.Request{Stream: closeTeller{blocked, closed}, Length: call.Unknown}, 0, no},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := client(t, script(t, refuse(tt.head, tt.linger)))
			tt.req.Method = "POST"
			r, err := c.Do(t.Context(), &tt.req)
			if err != nil {
				t.Fatal(err)
			}
			if body := whole(t, r, nil); r.Status != 413 || body != "no" {
				t.Errorf("status %d, body %q", r.Status, body)
			}
		})
	}
	select {
	case <-closed:
	case <-time.After(patience):
		t.Error("the stream that blocks was not closed")
	}
}

type closeTeller struct {
	io.ReadCloser
	told chan struct{}
}

func (c closeTeller) Close() error {
	select {
	case c.told <- struct{}{}:
	default:
	}
	return c.ReadCloser.Close()
}

func TestRequestBodyFails(t *testing.T) {
	broken := errors.New("the disk is gone")
	got := make(chan error, 1)
	addr := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		got <- err
	})
	c, _ := client(t, addr)
	for name, req := range map[string]*h1.Request{
		"chunked fails": {Stream: io.MultiReader(strings.NewReader("abc"), failing{broken}), Length: call.Unknown},
		"length fails":  {Stream: io.MultiReader(strings.NewReader("abc"), failing{broken}), Length: 100},
		"too short":     {Stream: strings.NewReader("abc"), Length: 100},
	} {
		req.Method = "POST"
		_, err := c.Do(t.Context(), req)
		if name != "too short" && !errors.Is(err, broken) || name == "too short" && fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if err := <-got; err == nil {
			t.Errorf("%s: the origin saw a clean end", name)
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// TestClientContext: the end of the context breaks off whatever is in progress.
func TestClientContext(t *testing.T) {
	gone := make(chan struct{}, 1)
	addr := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/body" {
			_, _ = io.WriteString(w, "some")
			w.(http.Flusher).Flush()
		}
		<-r.Context().Done()
		gone <- struct{}{}
	})
	for _, tt := range []struct {
		name string
		end  func(context.Context) (context.Context, context.CancelFunc)
		code fault.Code
	}{
		{"cancelled", func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			time.AfterFunc(30*time.Millisecond, cancel)
			return ctx, cancel
		}, fault.Canceled},
		{"deadline", func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 30*time.Millisecond)
		}, fault.Deadline},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := client(t, addr)
			for _, path := range []string{"/head", "/body"} {
				ctx, cancel := tt.end(t.Context())
				start := time.Now()
				r, err := c.Do(ctx, &h1.Request{Target: path})
				if path == "/body" {
					if err != nil {
						t.Fatal(err)
					}
					_, err = io.ReadAll(r.Stream)
					r.Close()
				}
				if d := time.Since(start); fault.Of(err) != tt.code || fault.SentOf(err) != fault.SentMaybe || d > 2*time.Second {
					t.Errorf("%s: %v after %v", path, err, d)
				}
				<-gone
				cancel()
			}
		})
	}
}

func TestCloseBreaksAStream(t *testing.T) {
	gone := make(chan struct{})
	addr := serve(t, func(ex *h1.Exchange) {
		_ = ex.Start(200, nil, call.Unknown)
		_, _ = ex.Write([]byte("some"))
		_ = ex.Flush()
		<-ex.Context().Done()
		close(gone)
	})
	c, _ := client(t, addr)
	pr, pw := io.Pipe()
	defer pw.Close()
	r, err := c.Do(t.Context(), &h1.Request{Method: "POST", Stream: pr, Length: call.Unknown})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadFull(r.Stream, make([]byte, 4))
	time.AfterFunc(20*time.Millisecond, func() { r.Stream.Close() })
	if _, err := r.Stream.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("read of a closed stream: %v", err)
	}
	<-gone
	if _, err := pw.Write([]byte("x")); err == nil {
		t.Error("the request's stream was not closed")
	}
	_ = r.Close()
}

// TestProxyStreams puts our server and our client between two of net/http's: the whole path of
// a streamed body, in constant memory, with the origin's abort passed on.
func TestProxyStreams(t *testing.T) {
	origin := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_, _ = io.Copy(w, r.Body)
		if r.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
	})
	c, _ := client(t, origin)
	proxy := serve(t, func(ex *h1.Exchange) { forward(ex, c) })
	const size = 64 << 20
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	resp, err := stdClient(t).Post("http://"+proxy, "", io.LimitReader(zeros{}, size))
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
	resp, err = stdClient(t).Post("http://"+proxy+"/abort", "", io.LimitReader(zeros{}, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the origin's abort became a clean end")
	}
}

// TestProxyCallerAbort: a caller that leaves takes the call to the origin with it.
func TestProxyCallerAbort(t *testing.T) {
	entered, gone := make(chan struct{}, 1), make(chan struct{}, 1)
	origin := stdServer(t, func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			<-r.Context().Done()
		}
		gone <- struct{}{}
	})
	c, _ := client(t, origin)
	proxy := serve(t, func(ex *h1.Exchange) { forward(ex, c) })
	for _, head := range []string{"GET / HTTP/1.1\r\nHost: h\r\n\r\n", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"} {
		nc := dial(t, proxy)
		_, _ = io.WriteString(nc, head)
		<-entered
		nc.Close()
		select {
		case <-gone:
		case <-time.After(patience):
			t.Fatal("the call to the origin goes on")
		}
	}
}

// TestManyCallers keeps pooled memory busy from all sides: nobody may see another's bytes.
func TestManyCallers(t *testing.T) {
	origin := serve(t, echo)
	c, _ := client(t, origin)
	proxy, _ := client(t, serve(t, func(ex *h1.Exchange) { forward(ex, c) }))
	var all sync.WaitGroup
	for caller := range 32 {
		all.Go(func() {
			for i := range 30 {
				size := (caller*7919 + i*104_729) % (200 << (i % 11))
				body := bytes.Repeat([]byte{byte(caller), byte(i), 'x'}, size/3+1)[:size]
				req := h1.Request{Method: "POST", Target: "/", Body: body}
				if i%3 == 0 {
					req = h1.Request{Method: "POST", Stream: bytes.NewReader(body), Length: call.Unknown}
				}
				r, err := proxy.Do(t.Context(), &req)
				if err != nil {
					t.Errorf("%d bytes: %v", size, err)
					return
				}
				got := r.Data
				if r.Stream != nil {
					got, err = io.ReadAll(r.Stream)
				}
				if !bytes.Equal(got, body) || err != nil || r.Status != 200 {
					t.Errorf("%d bytes: %d with %d bytes, %v", size, r.Status, len(got), err)
				}
				r.Close()
			}
		})
	}
	all.Wait()
}

// forward is the least a proxy does.
func forward(ex *h1.Exchange, c *h1.Client) {
	req := h1.Request{Method: ex.Method(), Target: ex.Target(), Fields: h1.EndToEnd(nil, ex.Header())}
	if n := ex.ContentLength(); n < 0 || n > 64<<10 {
		req.Stream, req.Length = ex.Body(), n
	} else {
		body, err := ex.ReadBody(64 << 10)
		if err != nil {
			return
		}
		req.Body = body
	}
	r, err := c.Do(ex.Context(), &req)
	if err != nil {
		_ = ex.Respond(502, nil, []byte(err.Error()))
		return
	}
	defer r.Close()
	fields := h1.EndToEnd(nil, r.Fields)
	if r.Stream == nil {
		_ = ex.Respond(r.Status, fields, r.Data)
		return
	}
	_ = ex.Start(r.Status, fields, r.Length)
	if _, err := ex.Copy(r.Stream); err == nil {
		_ = ex.End(r.Trailer())
	}
}
