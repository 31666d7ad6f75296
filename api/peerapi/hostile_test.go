package peerapi_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/link"
	"github.com/mecha-project/mecha/api/peerapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// rawPeer is the accepting side of one session, without a sidecar behind it.
func rawPeer(t *testing.T, handle func(*link.Stream)) block.Instance {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c, err := l.Accept()
		if err != nil {
			return
		}
		s, err := link.NewServer(c, link.Config{Handler: handle})
		if err != nil {
			t.Error(err)
			return
		}
		s.Wait()
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
	})
	return block.Instance{ID: "raw", Address: l.Addr().String()}
}

// A caller that offered no switch of protocols cannot do with raw bytes.
func TestASwitchThatNobodyOffered(t *testing.T) {
	at := rawPeer(t, func(st *link.Stream) {
		head := peerapi.AppendResponse(nil, &call.Response{Status: 101, Upgrade: &switched{}})
		_ = st.SendHead(head, nil, false, nil)
		_, _ = io.Copy(io.Discard, st)
	})
	c := peerapi.NewClient("caller", slog.New(slog.DiscardHandler))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(ctx)
	}()
	for _, req := range []*call.Request{{Target: "x", Verb: "GET"}, {Target: "x", Verb: "POST", Stream: newEndless(), Length: call.Unknown}} {
		resp, err := c.Invoke(within(t), at, req)
		if fault.Of(err) != fault.Invalid || resp != nil {
			t.Errorf("%s: %+v, %v", req.Verb, resp, err)
			resp.Close()
		}
	}
}

// An answer that is longer than it says is given up, and the peer hears of it.
func TestAnAnswerLongerThanAnnounced(t *testing.T) {
	given := make(chan struct{})
	at := rawPeer(t, func(st *link.Stream) {
		defer close(given)
		head := peerapi.AppendResponse(nil, &call.Response{Status: 200, Data: []byte("1")})
		_ = st.SendHead(head, make([]byte, 100<<10), false, nil)
		select {
		case <-st.Context().Done():
		case <-time.After(5 * time.Second):
			t.Error("the stream was left open")
		}
	})
	c := peerapi.NewClient("caller", slog.New(slog.DiscardHandler))
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = c.Close(ctx)
	}()
	if _, err := c.Invoke(within(t), at, &call.Request{Target: "x", Verb: "GET"}); fault.Of(err) != fault.TooLarge {
		t.Errorf("got %v, want TooLarge", err)
	}
	eventually(t, "the end of the call", given)
}

// A body over its limit is named as such: the caller must not believe that the sidecar broke.
func TestABodyOverItsLimitIsNamed(t *testing.T) {
	p := newPair(t, func(context.Context, *call.Request, string, call.Responder) error {
		t.Error("the call was served")
		return nil
	})
	pool := link.NewPool(link.PoolConfig{Dial: func(ctx context.Context, addr string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", addr)
	}})
	defer pool.Close(within(t))
	// Announced as 1 byte, and larger than one frame.
	head := peerapi.AppendRequest(nil, &call.Request{Target: "x", Verb: "POST", Data: []byte("1")})
	st, err := pool.Open(within(t), p.at.Address, head, []byte(strings.Repeat("x", 100<<10)), true)
	if err == nil {
		_, _, _, err = st.RecvHead(within(t))
	}
	if fault.Of(err) != fault.TooLarge {
		t.Errorf("got %v, want TooLarge", err)
	}
}
