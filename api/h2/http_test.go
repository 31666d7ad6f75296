package h2_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/runtime/call"
)

func cleartext() *http.Protocols {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	return p
}

// net/http as the client: any HTTP/2 client that begins with prior knowledge, as curl does with
// --http2-prior-knowledge.
func TestServerToNetHTTP(t *testing.T) {
	addr := serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		if st.Method() == "GET" {
			_ = st.Respond(404, call.Fields{{Name: "content-length", Value: "4"}, {Name: "transfer-encoding", Value: "chunked"}}, []byte("none"), nil)
			return
		}
		got, err := body(st)
		if err != nil {
			return
		}
		back := call.Fields{{Name: "x-path", Value: st.Path()}, {Name: "x-trailer", Value: st.Trailer().Get("x-sum")}}
		_ = st.Respond(200, back, got, call.Fields{{Name: "x-end", Value: "yes"}})
	}})
	tr := &http.Transport{Protocols: cleartext()}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, Timeout: 10 * time.Second}

	resp, err := c.Get("http://" + addr + "/a?b=c")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if resp.StatusCode != 404 || string(b) != "none" || resp.Proto != "HTTP/2.0" {
		t.Errorf("got %v %q", resp, b)
	}

	in := bytes.Repeat([]byte("z"), 1<<20)
	req, _ := http.NewRequest("POST", "http://"+addr+"/p?q", struct{ io.Reader }{bytes.NewReader(in)})
	req.Trailer = http.Header{"X-Sum": {"42"}}
	resp, err = c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err = io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil || !bytes.Equal(b, in) || resp.Header.Get("x-path") != "/p?q" || resp.Header.Get("x-trailer") != "42" || resp.Trailer.Get("x-end") != "yes" {
		t.Errorf("%d bytes, %v, header %v, trailer %v", len(b), err, resp.Header, resp.Trailer)
	}
}

func TestClientToNetHTTP(t *testing.T) {
	l := listen(t)
	s := &http.Server{Protocols: cleartext(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/early": // answers before the request has ended
			w.WriteHeader(200)
			fmt.Fprint(w, "early")
		case "/hints":
			w.Header().Set("Link", "x")
			w.WriteHeader(103)
			w.WriteHeader(204)
		case "/abort":
			w.WriteHeader(200)
			fmt.Fprint(w, "part")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		default:
			w.Header().Set("Trailer", "X-End")
			b, _ := io.ReadAll(r.Body)
			w.Write(b)
			w.Header().Set("X-End", r.Trailer.Get("X-Sum"))
		}
	})}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Close(); <-done })
	c := client(t, l.Addr().String())
	ctx := within(t, 10*time.Second)

	t.Run("echo with trailers", func(t *testing.T) {
		in := bytes.Repeat([]byte("z"), 1<<20)
		st, err := c.Open(ctx, &h2.Request{Method: "PUT", Authority: "x", Path: "/echo", Fields: call.Fields{{Name: "trailer", Value: "x-sum"}}})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		go func() {
			_, _ = st.Write(in)
			_ = st.CloseSend(call.Fields{{Name: "x-sum", Value: "42"}})
		}()
		b, err := body(st)
		if err != nil || !bytes.Equal(b, in) || st.Trailer().Get("x-end") != "42" {
			t.Errorf("%d bytes, %v, trailer %v", len(b), err, st.Trailer())
		}
	})
	t.Run("an early answer", func(t *testing.T) {
		st, err := c.Open(ctx, &h2.Request{Authority: "x", Path: "/early"})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if b, err := body(st); err != nil || string(b) != "early" {
			t.Errorf("got %q, %v", b, err)
		}
		for range 1000 {
			if _, err = st.Write(make([]byte, 1<<16)); err != nil {
				break
			}
		}
		if code, ok := h2.IsReset(err); !ok || code != h2.NoError {
			t.Errorf("writing on gave %v", err)
		}
	})
	t.Run("interim answers are skipped", func(t *testing.T) {
		st, err := c.Do(ctx, &h2.Request{Authority: "x", Path: "/hints", End: true})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if st.Status() != 204 {
			t.Errorf("status %d", st.Status())
		}
	})
	t.Run("an answer that breaks off", func(t *testing.T) {
		st, err := c.Do(ctx, &h2.Request{Authority: "x", Path: "/abort", End: true})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		if b, err := body(st); err == nil {
			t.Errorf("got %q as a whole answer", b)
		} else if code, ok := h2.IsReset(err); !ok || code != h2.InternalError {
			t.Errorf("got %v", err)
		}
	})
}

// TLS connections, and any that are no plain sockets, are written by a goroutine.
func TestOverAPipe(t *testing.T) {
	s := &h2.Server{Handler: echo, Log: quiet}
	defer s.Close()
	c := &h2.Client{Addr: "pipe", Log: quiet, Dial: func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		go s.ServeConn(far, nil)
		return near, nil
	}}
	defer c.Close()
	for range 10 {
		st, err := c.Do(within(t, 10*time.Second), request("/s/m", make([]byte, 100<<10)))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := body(st); err != nil || len(b) != 100<<10 {
			t.Errorf("%d bytes, %v", len(b), err)
		}
		st.Close()
	}
}
