package peerapi_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	p := newPair(t, nil)
	body := newEndless()
	_, err = p.Invoke(within(t), block.Instance{Address: addr}, &call.Request{Target: "x", Stream: body, Length: call.Unknown})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || fault.ReasonOf(err) != "" {
		t.Errorf("got %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	if body.sent != 0 {
		t.Errorf("%d bytes of the body were read: it cannot be offered to another instance", body.sent)
	}
	select {
	case <-body.closed:
		t.Error("the body was closed: it cannot be offered to another instance")
	default:
	}
}

func TestSomethingElseThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			c.Close()
		}
	}()
	p := newPair(t, nil)
	_, err = p.Invoke(within(t), block.Instance{Address: l.Addr().String()}, &call.Request{Target: "x"})
	if fault.Of(err) != fault.Unavailable && fault.Of(err) != fault.Unsupported {
		t.Errorf("got %v (%v)", err, fault.Of(err))
	}
	l.Close()
	<-done
}

func TestShutdownLetsCallsEnd(t *testing.T) {
	started, release := make(chan struct{}), make(chan struct{})
	p := newPair(t, func(ctx context.Context, _ *call.Request, _ string, out call.Responder) error {
		close(started)
		<-release
		return out.Respond(ctx, &call.Response{Status: 200, Data: []byte("done")})
	})
	got := make(chan string, 1)
	go func() {
		resp, err := p.Invoke(context.Background(), p.at, &call.Request{Target: "x"})
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(resp.Data)
	}()
	<-started
	down := make(chan error, 1)
	go func() { down <- p.down(within(t)) }()
	select {
	case err := <-down:
		t.Fatalf("shut down with a call in progress: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := p.Invoke(within(t), p.at, &call.Request{Target: "x"}); fault.SentOf(err) != fault.SentNever {
		t.Errorf("a new call during shutdown: %v (sent %v); the caller must be free to go elsewhere", err, fault.SentOf(err))
	}
	close(release)
	if body := <-got; body != "done" {
		t.Errorf("the call in progress ended with %q", body)
	}
	if err := <-down; err != nil {
		t.Errorf("shutdown: %v", err)
	}
}

func TestShutdownBreaksCallsAtTheEndOfItsPatience(t *testing.T) {
	started, ended := make(chan struct{}), make(chan struct{})
	p := newPair(t, func(ctx context.Context, _ *call.Request, _ string, _ call.Responder) error {
		close(started)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	})
	got := make(chan error, 1)
	go func() {
		_, err := p.Invoke(context.Background(), p.at, &call.Request{Target: "x"})
		got <- err
	}()
	<-started
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.down(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("shutdown: %v", err)
	}
	eventually(t, "the handler's context", ended)
	if err := <-got; err == nil || fault.SentOf(err) == fault.SentNever {
		t.Errorf("the caller got %v (sent %v); the app may have acted", err, fault.SentOf(err))
	}
}

// A connection that never says a word must not hold a shutdown up.
func TestShutdownDropsSilentConnections(t *testing.T) {
	p := newPair(t, nil)
	c, err := net.Dial("tcp", p.at.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	time.Sleep(20 * time.Millisecond) // until it is accepted
	start := time.Now()
	if err := p.down(within(t)); err != nil || time.Since(start) > 3*time.Second {
		t.Errorf("shutdown: %v after %v", err, time.Since(start))
	}
}

func TestManyCallsAtOnce(t *testing.T) {
	p := newPair(t, func(ctx context.Context, req *call.Request, _ string, out call.Responder) error {
		return out.Respond(ctx, &call.Response{Status: 200, Data: append([]byte("re:"), req.Data...)})
	})
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				want := fmt.Sprintf("%d-%d", w, i)
				resp, err := p.Invoke(context.Background(), p.at, &call.Request{Target: "x", Data: []byte(want)})
				if err != nil || string(resp.Data) != "re:"+want {
					t.Errorf("%s: %v", want, err)
					return
				}
				resp.Close()
			}
		})
	}
	wg.Wait()
}
