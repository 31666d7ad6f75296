package link_test

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/link"
	"github.com/mecha-project/mecha/components/fault"
)

func TestConfigRejects(t *testing.T) {
	for name, cfg := range map[string]link.Config{
		"tiny frames":      {MaxFrame: 100},
		"huge frames":      {MaxFrame: 1 << 30},
		"negative window":  {StreamWindow: -1},
		"windows reversed": {StreamWindow: 2 << 20, MaxStreamWindow: 1 << 20},
		"negative streams": {MaxStreams: -1},
		"negative timeout": {PingTimeout: -1},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := net.Pipe()
			defer b.Close()
			if _, err := link.NewServer(a, cfg); fault.Of(err) != fault.Invalid {
				t.Errorf("got %v, want invalid", err)
			}
		})
	}
}

func TestHandlerThatForgets(t *testing.T) {
	for _, c := range []struct {
		name    string
		handler func(*link.Stream)
		code    fault.Code
	}{
		{"to answer", func(*link.Stream) {}, fault.Internal},
		{"to end its answer", func(st *link.Stream) { _ = st.SendHead(nil, []byte("x"), false, nil) }, fault.Internal},
		{"itself", func(*link.Stream) { panic("oops") }, fault.Internal},
	} {
		t.Run(c.name, func(t *testing.T) {
			client, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: c.handler})
			for range 3 {
				if _, _, _, err := call(background(t), client, nil, nil); fault.Of(err) != c.code {
					t.Errorf("got %v, want %v", err, c.code)
				}
			}
		})
	}
}

func TestMisuse(t *testing.T) {
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
		if _, err := st.Write([]byte("x")); fault.Of(err) != fault.Internal {
			t.Errorf("write before SendHead: %v", err)
		}
		if err := st.SendHead(nil, nil, false, nil); err != nil {
			t.Error(err)
		}
		if err := st.SendHead(nil, nil, false, nil); fault.Of(err) != fault.Internal {
			t.Errorf("second SendHead: %v", err)
		}
		_ = st.CloseWrite(nil)
		if err := st.CloseWrite(nil); err != nil {
			t.Errorf("second CloseWrite: %v", err)
		}
		if _, err := st.Write([]byte("x")); fault.Of(err) != fault.Internal {
			t.Errorf("write after CloseWrite: %v", err)
		}
	}})
	ctx := background(t)
	st, err := c.Open(ctx, nil, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Read(make([]byte, 1)); fault.Of(err) != fault.Internal {
		t.Errorf("read before RecvHead: %v", err)
	}
	if _, _, _, err := st.RecvHead(ctx); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadAll(st); err != nil {
		t.Error(err)
	}
}

func TestLimitsOfThePeer(t *testing.T) {
	release := make(chan struct{})
	c, _ := sessions(t, tcpPair, link.Config{}, link.Config{MaxStreams: 2, MaxHead: 100, Handler: func(st *link.Stream) {
		<-release
		echo(st)
	}})
	ctx := background(t)
	if _, err := c.Open(ctx, make([]byte, 101), nil, true); fault.Of(err) != fault.TooLarge || fault.SentOf(err) != fault.SentNever {
		t.Errorf("head over the limit: %v", err)
	}
	var open []*link.Stream
	for range 2 {
		st, err := c.Open(ctx, nil, nil, true)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, st)
	}
	if _, err := c.Open(ctx, nil, nil, true); fault.Of(err) != fault.Exhausted || fault.SentOf(err) != fault.SentNever {
		t.Errorf("stream over the limit: %v", err)
	}
	close(release)
	for _, st := range open {
		if _, _, _, err := st.RecvHead(ctx); err != nil {
			t.Error(err)
		}
	}
	if _, _, _, err := call(ctx, c, nil, nil); err != nil {
		t.Errorf("after room was made: %v", err)
	}
}

func TestGreeting(t *testing.T) {
	check := func(g []byte) error {
		if string(g) != "secret" {
			return fault.New("test", fault.Unauthenticated, "unknown token; check dapr-api-token")
		}
		return nil
	}
	t.Run("accepted", func(t *testing.T) {
		c, s := sessions(t, tcpPair, link.Config{Greeting: []byte("secret")}, link.Config{Greeting: []byte("orders"), Check: check})
		if string(c.PeerGreeting()) != "orders" || string(s.PeerGreeting()) != "secret" {
			t.Errorf("greetings %q and %q", c.PeerGreeting(), s.PeerGreeting())
		}
	})
	t.Run("refused", func(t *testing.T) {
		a, b := tcpPair(t)
		_, _, err := handshake(a, b, link.Config{Greeting: []byte("guess")}, link.Config{Check: check})
		if fault.Of(err) != fault.Unauthenticated || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "unknown token") {
			t.Errorf("caller sees %v (%v)", err, fault.SentOf(err))
		}
	})
	t.Run("too long", func(t *testing.T) {
		a, b := tcpPair(t)
		defer b.Close()
		if _, err := link.NewClient(a, link.Config{Greeting: make([]byte, link.MaxGreeting+1)}); fault.Of(err) != fault.Invalid {
			t.Errorf("got %v, want invalid", err)
		}
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Error("the connection was not closed")
		}
	})
}

func TestHandshakeTimeout(t *testing.T) {
	for name, side := range map[string]func(net.Conn, link.Config) (*link.Session, error){"client": link.NewClient, "server": link.NewServer} {
		t.Run(name, func(t *testing.T) {
			a, b := tcpPair(t)
			defer b.Close()
			began := time.Now()
			_, err := side(a, link.Config{HandshakeTimeout: 20 * time.Millisecond})
			if fault.Of(err) != fault.Unavailable || time.Since(began) > 5*time.Second {
				t.Errorf("got %v after %s", err, time.Since(began))
			}
		})
	}
}

func TestSniff(t *testing.T) {
	preface := "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	for _, c := range []struct {
		name, prefix string
		want         link.Kind
	}{
		{"nothing", "", link.KindUndecided},
		{"link", link.Magic, link.KindLink},
		{"link and more", link.Magic + "\x01\x00", link.KindLink},
		{"part of link", link.Magic[:3], link.KindUndecided},
		{"almost link", link.Magic[:7] + "x", link.KindOther},
		{"http2", preface, link.KindHTTP2},
		{"part of http2", preface[:2], link.KindUndecided},
		{"http1 method with P", "POST / HTTP/1.1", link.KindHTTP1},
		{"http1 method PRI", "PRI /path HTTP/1.1\r\n", link.KindHTTP1},
		{"http1", "GET / HTTP/1.1", link.KindHTTP1},
		{"http1 custom method", "m-search", link.KindHTTP1},
		{"tls", "\x16\x03\x01", link.KindTLS},
		{"zeros", "\x00\x00", link.KindOther},
		{"old ssl", "\x80\x2e\x01", link.KindOther},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := link.Sniff([]byte(c.prefix)); got != c.want {
				t.Errorf("got %d, want %d", got, c.want)
			}
		})
	}
	if n := len(preface); link.SniffLen != n {
		t.Errorf("SniffLen is %d, want %d", link.SniffLen, n)
	}
}

// TestSharedPort: what the sniffer read is handed over.
func TestSharedPort(t *testing.T) {
	a, b := tcpPair(t)
	done := make(chan *link.Session, 1)
	go func() {
		defer close(done)
		prefix := make([]byte, link.SniffLen)
		n, err := b.Read(prefix)
		if kind := link.Sniff(prefix[:n]); err != nil || kind != link.KindLink {
			t.Errorf("sniffed %d, %v", kind, err)
		}
		s, err := link.NewServer(b, link.Config{Handler: echo, Prefix: prefix[:n]})
		if err != nil {
			t.Error(err)
			return
		}
		done <- s
	}()
	c, err := link.NewClient(a, link.Config{})
	if err != nil {
		t.Fatal(err)
	}
	s := <-done
	if _, body, _, err := call(background(t), c, nil, []byte("hello")); err != nil || string(body) != "hello" {
		t.Errorf("%q, %v", body, err)
	}
	_ = c.Close()
	_ = s.Close()
	s.Wait()
}
