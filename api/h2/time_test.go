package h2_test

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"

	"github.com/mecha-project/mecha/api/h2"
)

// bubble runs a server on a pipe, whose other end is spoken frame by frame.
func bubble(t *testing.T, s *h2.Server, settings ...http2.Setting) *rawPeer {
	near, far := net.Pipe()
	go s.ServeConn(far, nil)
	p := newRaw(t, near)
	_ = near.SetDeadline(time.Time{})
	_, _ = io.WriteString(near, http2.ClientPreface)
	_ = p.fr.WriteSettings(settings...)
	p.until("settings", func(f http2.Frame) bool {
		sf, ok := f.(*http2.SettingsFrame)
		return ok && sf.IsAck()
	})
	return p
}

func TestIdleClientIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &h2.Server{Handler: echo, Log: quiet}
		defer s.Close()
		p := bubble(t, s)
		p.open(1, true)
		p.until("the answer", func(f http2.Frame) bool { h, ok := f.(*http2.HeadersFrame); return ok && h.StreamEnded() })
		begin := time.Now()
		if got := p.outcome(); got != "GOAWAY NO_ERROR" {
			t.Fatalf("got %s", got)
		}
		if took := time.Since(begin); took < h2.DefaultIdleTimeout || took > h2.DefaultIdleTimeout+20*time.Second {
			t.Errorf("left after %s", took)
		}
		if got := p.outcome(); got != "closed" {
			t.Errorf("then %s", got)
		}
	})
}

func TestSilentClientIsPinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan time.Time, 1)
		s := &h2.Server{Log: quiet, Handler: func(st *h2.Stream) { <-st.Context().Done(); ended <- time.Now() }}
		defer s.Close()
		p := bubble(t, s)
		begin := time.Now()
		p.open(1, false)
		pings := 0
		p.until("three pings", func(f http2.Frame) bool {
			ping, ok := f.(*http2.PingFrame)
			if !ok {
				return false
			}
			if pings++; pings < 3 {
				_ = p.fr.WritePing(true, ping.Data)
			}
			return pings == 3
		})
		if took := time.Since(begin); took < 30*time.Second || took > 70*time.Second {
			t.Errorf("three pings took %s", took)
		}
		unanswered := time.Now()
		if took := (<-ended).Sub(unanswered); took != 5*time.Second {
			t.Errorf("the handler ended %s after a ping without an answer", took)
		}
	})
}

func TestPingsAreToleratedAtTheirPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &h2.Server{Handler: echo, Log: quiet}
		defer s.Close()
		p := bubble(t, s)
		acked := func(f http2.Frame) bool { ping, ok := f.(*http2.PingFrame); return ok && ping.IsAck() }
		for range 10 {
			time.Sleep(8 * time.Second)
			_ = p.fr.WritePing(false, [8]byte{1})
			p.until("an answer", acked)
		}
		for i := range uint32(20) { // with answers in between any number is fine
			p.open(2*i+1, true)
			p.until("the answer", func(f http2.Frame) bool { h, ok := f.(*http2.HeadersFrame); return ok && h.StreamEnded() })
			_ = p.fr.WritePing(false, [8]byte{1})
			p.until("an answer", acked)
		}
		var pinger sync.WaitGroup
		defer pinger.Wait()
		pinger.Go(func() {
			for range 4 {
				_ = p.fr.WritePing(false, [8]byte{1})
				time.Sleep(time.Second)
			}
		})
		var debug string
		p.until("GOAWAY", func(f http2.Frame) bool {
			g, ok := f.(*http2.GoAwayFrame)
			if ok {
				debug = string(g.DebugData())
			}
			return ok
		})
		if !strings.Contains(debug, "too_many_pings") {
			t.Errorf("left with %q", debug)
		}
	})
}

func TestSlowHandshakeIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &h2.Server{Handler: echo, Log: quiet}
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() { s.ServeConn(far, nil); close(done) }()
		go io.Copy(io.Discard, near)
		begin := time.Now()
		_, _ = io.WriteString(near, http2.ClientPreface[:10])
		<-done
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("took %s", took)
		}
		near.Close()
	})
}

func TestIdleConnectionOfClientIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials := 0
		s := &h2.Server{Handler: echo, Log: quiet, IdleTimeout: -1}
		defer s.Close()
		c := &h2.Client{Addr: "pipe", Log: quiet, Dial: func(context.Context) (net.Conn, error) {
			dials++
			near, far := net.Pipe()
			go s.ServeConn(far, nil)
			return near, nil
		}}
		defer c.Close()
		for _, wait := range []time.Duration{time.Minute, time.Minute, 10 * time.Minute, 0} {
			st, err := c.Do(context.Background(), request("/s/m", message(nil)))
			if err != nil {
				t.Fatal(err)
			}
			st.Close()
			time.Sleep(wait)
		}
		if dials != 2 {
			t.Errorf("%d connections, want one for three calls a minute apart and one after ten minutes", dials)
		}
	})
}
