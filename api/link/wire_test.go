package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// rawPeer speaks the wire by hand, to break its rules.
type rawPeer struct {
	t    testing.TB
	conn net.Conn
	in   inbuf
}

// rawClient is a hand-made dialling peer of a real accepting session.
func rawClient(t testing.TB, cfg Config) (*rawPeer, *Session) {
	t.Helper()
	a, b := loopback(t)
	type result struct {
		s   *Session
		err error
	}
	made := make(chan result, 1)
	go func() {
		s, err := NewServer(b, cfg)
		made <- result{s, err}
	}()
	p := &rawPeer{t: t, conn: a, in: inbuf{src: a, buf: make([]byte, 128<<10)}}
	d := DefaultConfig()
	p.send(appendHello(nil, helloKind, d.hello()))
	if k, _, err := readHandshake(&p.in, "WELCOME"); err != nil || k != welcomeKind {
		t.Fatalf("handshake: kind %d, %v", k, err)
	}
	r := <-made
	if r.err != nil {
		t.Fatal(r.err)
	}
	t.Cleanup(func() { _ = a.Close(); _ = r.s.Close(); r.s.Wait() })
	return p, r.s
}

// rawServer is a hand-made accepting peer of a real dialling session.
func rawServer(t testing.TB, cfg Config, own hello) (*rawPeer, *Session) {
	t.Helper()
	a, b := loopback(t)
	p := &rawPeer{t: t, conn: b, in: inbuf{src: b, buf: make([]byte, 128<<10)}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if k, _, err := readHandshake(&p.in, "HELLO"); err != nil || k != helloKind {
			t.Errorf("handshake: kind %d, %v", k, err)
			return
		}
		p.send(appendHello(nil, welcomeKind, &own))
	}()
	s, err := NewClient(a, cfg)
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(); _ = s.Close(); s.Wait() })
	return p, s
}

func defaultHello() hello {
	d := DefaultConfig()
	return *d.hello()
}

func loopback(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

func (p *rawPeer) send(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Errorf("raw peer: %v", err)
	}
}

// frame reads the next frame, or reports the end of the connection.
func (p *rawPeer) frame() (header, []byte, error) {
	_ = p.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if err := p.in.need(headerSize); err != nil {
		return header{}, nil, err
	}
	h, perr := parseHeader(p.in.take(headerSize), 1<<20)
	if perr != nil {
		return h, nil, perr
	}
	b := make([]byte, h.n)
	return h, b, p.in.readFull(b)
}

// expect reads frames until one of kind k comes.
func (p *rawPeer) expect(k kind) (header, []byte) {
	p.t.Helper()
	for {
		h, b, err := p.frame()
		if err != nil {
			p.t.Fatalf("waiting for %v: %v", k, err)
		}
		if h.kind == k {
			return h, b
		}
	}
}

func open(id uint64, m meta) []byte {
	if m.headLen == 0 {
		m.headLen = len(m.head)
	}
	return appendOpen(nil, id, &m)
}

// hold is a handler that reads nothing and answers when the caller goes.
func hold(st *Stream) { <-st.Context().Done() }

// TestHostileClient: whatever a peer does, it loses its own session, the reason is typed, and the
// peer is told.
func TestHostileClient(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 60<<10)
	cases := []struct {
		name string
		send []byte
		want string
	}{
		{"garbage", bytes.Repeat([]byte{0xff}, 64), "over the limit"},
		{"unknown critical kind", appendHeader(nil, 0, 0x1f, 0, 1), "unknown critical"},
		{"even id", open(2, meta{}), "parity"},
		{"id used twice", append(open(3, meta{}), open(3, meta{})...), "not above"},
		{"id goes back", append(open(5, meta{}), open(3, meta{})...), "not above"},
		{"data on a stream never opened", appendData(nil, 9, []byte("x")), "never opened"},
		{"data on our stream never opened", appendData(nil, 2, []byte("x")), "never opened"},
		{"reply to a stream never opened", appendReply(nil, 2, &meta{}), "never opened"},
		{"reply to its own stream", append(open(1, meta{}), appendReply(nil, 1, &meta{})...), "not expected"},
		{"data after the end", join(open(1, meta{end: true}), appendData(nil, 1, []byte("x"))), "after the end"},
		{"end twice", join(open(1, meta{}), appendEnd(nil, 1, nil, 0, nil), appendEnd(nil, 1, nil, 0, nil)), "after the end"},
		{"data while the head is incomplete", join(open(1, meta{headLen: 10, head: []byte("x")}), appendData(nil, 1, []byte("x"))), "incomplete"},
		{"end while the head is incomplete", join(open(1, meta{headLen: 10, head: []byte("x")}), appendEnd(nil, 1, nil, 0, nil)), "incomplete"},
		{"more without need", join(open(1, meta{}), appendMore(nil, 1, []byte("x"))), "nothing is incomplete"},
		{"more than announced", join(open(1, meta{headLen: 3, head: []byte("x")}), appendMore(nil, 1, []byte("xyz"))), "less than"},
		{"data while the trailer is incomplete", join(open(1, meta{}), appendEnd(nil, 1, nil, 10, []byte("x")), appendData(nil, 1, []byte("x"))), "incomplete"},
		{"stream credit exceeded", join(open(1, meta{}), repeat(5, appendData(nil, 1, big))), "stream's credit"},
		{"session credit exceeded", join(open(1, meta{}), repeat(3, appendData(nil, 1, big)), open(3, meta{}), repeat(3, appendData(nil, 3, big))), "session's credit"},
		{"credit of zero", appendCredit(nil, 0, 0), "zero"},
		{"session credit overflow", appendCredit(nil, 0, maxCredit), "over the limit"},
		{"stream credit overflow", join(open(1, meta{}), appendCredit(nil, 1, maxCredit)), "over the limit"},
		{"goaway grows", join(open(1, meta{}), appendGoaway(nil, 4, 0, ""), appendGoaway(nil, 6, 0, "")), "grew"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{Handler: hold, StreamWindow: 200 << 10, SessionWindow: 300 << 10}
			p, s := rawClient(t, cfg)
			go p.conn.Write(c.send) //nolint:errcheck // the session may end before all is written
			select {
			case <-s.Done():
			case <-time.After(10 * time.Second):
				t.Fatal("the session goes on")
			}
			var perr *ProtocolError
			if err := s.Err(); !errors.As(err, &perr) || !strings.Contains(perr.Error(), c.want) || fault.Of(err) != fault.Unavailable {
				t.Errorf("ended with %v; want a protocol error with %q", err, c.want)
			}
			if !s.Stats().ProtocolError {
				t.Error("not counted as a protocol error")
			}
		})
	}
}

func TestHostilePeerIsTold(t *testing.T) {
	p, _ := rawClient(t, Config{Handler: hold})
	p.send(appendHeader(nil, 0, 0x1f, 0, 1))
	h, b := p.expect(kindGoaway)
	if h.n < goawayFixed || wireCode(binary.LittleEndian.Uint32(b[8:])) != fault.Invalid || !strings.Contains(string(b[goawayFixed:]), "unknown critical") {
		t.Errorf("goaway says %q", b)
	}
	if _, _, err := p.frame(); err == nil {
		t.Error("the connection stays open")
	}
}

// TestHostileServer: the rules for answers.
func TestHostileServer(t *testing.T) {
	for _, c := range []struct {
		name string
		send []byte
		want string
	}{
		{"reply twice", join(appendReply(nil, 1, &meta{}), appendReply(nil, 1, &meta{})), "not expected"},
		{"data before the reply", appendData(nil, 1, []byte("x")), "before the head"},
		{"end before the reply", appendEnd(nil, 1, nil, 0, nil), "before the head"},
		{"reply beyond the stream's credit", appendReply(nil, 1, &meta{body: bytes.Repeat([]byte("x"), 9<<10)}), "stream's credit"},
		{"open on a caller's id", open(3, meta{}), "parity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, s := rawServer(t, Config{StreamWindow: 8 << 10}, defaultHello())
			st, err := s.Open(t.Context(), nil, nil, false)
			if err != nil {
				t.Fatal(err)
			}
			p.expect(kindOpen)
			p.send(c.send)
			<-s.Done()
			var perr *ProtocolError
			if !errors.As(s.Err(), &perr) || !strings.Contains(perr.Error(), c.want) {
				t.Errorf("ended with %v; want a protocol error with %q", s.Err(), c.want)
			}
			if _, err := io.ReadAll(st); fault.Of(err) != fault.Unavailable && fault.Of(err) != fault.Internal {
				t.Errorf("stream: %v", err)
			}
		})
	}
}

// TestLateFrames: frames that were on their way when a stream ended are no offence, and their bytes
// come back as credit.
func TestLateFrames(t *testing.T) {
	p, s := rawClient(t, Config{Handler: func(st *Stream) { st.Reset(fault.Denied, "no") }, SessionWindow: 64 << 10, StreamWindow: 1 << 20})
	p.send(open(1, meta{}))
	p.expect(kindReset)
	data := bytes.Repeat([]byte("x"), 16<<10)
	for range 8 { // twice the session's window
		p.send(appendData(nil, 1, data))
		p.send(appendData(nil, 1, data))
		p.expect(kindCredit)
	}
	p.send(join(appendCredit(nil, 1, 5), appendStop(nil, 1), appendMore(nil, 1, []byte("x")), appendEnd(nil, 1, nil, 0, nil), appendReset(nil, 1, false, fault.Canceled, "")))
	p.send(appendPing(nil, kindPing, 7))
	p.expect(kindPong)
	if err := s.Err(); err != nil {
		t.Error(err)
	}
}

func TestUnknownSkippableKind(t *testing.T) {
	p, _ := rawClient(t, Config{Handler: hold})
	b := appendHeader(nil, 50_000, 0x9c, 0xff, 12345)
	b[6] = 0xee
	p.send(append(b, make([]byte, 50_000)...))
	p.send(appendPing(nil, kindPing, 7))
	if _, b := p.expect(kindPong); binary.LittleEndian.Uint64(b) != 7 {
		t.Errorf("pong carries %x", b)
	}
}

// TestPeerThatNeverReads: answers it asks for do not pile up without bound.
func TestPeerThatNeverReads(t *testing.T) {
	p, s := rawClient(t, Config{WriteTimeout: time.Minute})
	_ = p.conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	_ = s.conn.(*net.TCPConn).SetWriteBuffer(4 << 10)
	go func() {
		var batch []byte
		for id := uint64(1); ; id += 2 { // each is refused with a text
			if batch = append(batch, open(id, meta{})...); len(batch) < 32<<10 {
				continue
			}
			if _, err := p.conn.Write(batch); err != nil {
				return
			}
			batch = batch[:0]
		}
	}()
	select {
	case <-s.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("the session goes on")
	}
	if err := s.Err(); !strings.Contains(err.Error(), "does not read") {
		t.Errorf("ended with %v", err)
	}
}

// TestRefusals: limits cost the peer a stream, not the session.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  Config
		send []byte
		id   uint64
		code fault.Code
	}{
		{"no handler", Config{}, open(1, meta{}), 1, fault.Unsupported},
		{"too many streams", Config{Handler: hold, MaxStreams: 1}, join(open(1, meta{}), open(3, meta{})), 3, fault.Exhausted},
		{"head too large", Config{Handler: hold, MaxHead: 100}, open(1, meta{headLen: 101}), 1, fault.TooLarge},
		{"too many bytes", Config{Handler: hold, MaxInflightBytes: 100}, join(open(1, meta{body: make([]byte, 101)}), open(3, meta{})), 3, fault.Exhausted},
		{"too many bytes of heads", Config{Handler: hold, MaxInflightBytes: 100},
			join(open(1, meta{headLen: 1000, head: []byte("x")}), appendMore(nil, 1, make([]byte, 200))), 1, fault.Exhausted},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, s := rawClient(t, c.cfg)
			p.send(c.send)
			h, b := p.expect(kindReset)
			if h.id != c.id || h.flags != flagRefused || wireCode(binary.LittleEndian.Uint32(b)) != c.code {
				t.Errorf("reset of %d, flags %d: %v %q; want %d refused with %v", h.id, h.flags, wireCode(binary.LittleEndian.Uint32(b)), b[4:], c.id, c.code)
			}
			p.send(appendPing(nil, kindPing, 7))
			p.expect(kindPong)
			if err := s.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRapidReset: opening and resetting must not pile up handlers that do not notice.
func TestRapidReset(t *testing.T) {
	release := make(chan struct{})
	p, s := rawClient(t, Config{Handler: func(*Stream) { <-release }, MaxStreams: 10})
	defer close(release)
	for i := range uint64(100) {
		p.send(join(open(2*i+1, meta{}), appendReset(nil, 2*i+1, false, fault.Canceled, "")))
	}
	p.send(appendPing(nil, kindPing, 7))
	p.expect(kindPong)
	if got := s.Stats(); got.Handlers != 20 || got.Refused != 80 {
		t.Errorf("%d handlers run, %d streams were refused; want 20 and 80", got.Handlers, got.Refused)
	}
}

// TestHandshakeRejects: bad first bytes.
func TestHandshakeRejects(t *testing.T) {
	d := DefaultConfig()
	with := func(change func(*hello)) []byte {
		h := d.hello()
		change(h)
		return appendHello(nil, helloKind, h)
	}
	over := appendPreamble(nil, helloKind, maxHello+1)
	badGreeting := appendHello(nil, helloKind, d.hello())
	badGreeting[preambleSize+32] = 200
	for _, c := range []struct {
		name   string
		send   []byte
		want   string
		refuse bool
	}{
		{"HTTP/2", []byte(http2Preface), "magic", false},
		{"another kind", appendPreamble(nil, 9, 0), "kind 9", false},
		{"reserved bytes", append([]byte(Magic), 1, 0, 1, 0, 0, 0, 0, 0), "reserved", false},
		{"too long", over, "over the limit", false},
		{"too short", appendPreamble(nil, helloKind, 0), "too short", true},
		{"version zero", with(func(h *hello) { h.minVersion = 0 }), "empty", true},
		{"empty version range", with(func(h *hello) { h.minVersion = 2; h.maxVersion = 1 }), "empty", true},
		{"later version only", with(func(h *hello) { h.minVersion = 7; h.maxVersion = 9 }), "speaks 1 to 1, the caller 7 to 9", true},
		{"tiny frames", with(func(h *hello) { h.maxFrame = 1 }), "frame limit", true},
		{"no window", with(func(h *hello) { h.streamWindow = 0 }), "window", true},
		{"huge window", with(func(h *hello) { h.sessionWindow = 1 << 31 }), "window", true},
		{"greeting beyond the message", badGreeting, "greeting", true},
		{"hang-up in the middle", []byte(Magic[:5]), "EOF", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := loopback(t)
			defer a.Close()
			result := make(chan error, 1)
			go func() {
				_, err := NewServer(b, Config{})
				result <- err
			}()
			p := &rawPeer{t: t, conn: a, in: inbuf{src: a, buf: make([]byte, 64<<10)}}
			p.send(c.send)
			_ = a.(*net.TCPConn).CloseWrite()
			err := <-result
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			k, _, err := readHandshake(&p.in, "WELCOME")
			if refused := err == nil && k == refuseKind; refused != c.refuse {
				t.Errorf("peer was told: %v (%v), want %v", refused, err, c.refuse)
			}
		})
	}
}

// TestVersions negotiates between builds that overlap, and not.
func TestVersions(t *testing.T) {
	for _, c := range []struct {
		name           string
		client, server [2]uint16
		want           int
	}{
		{"same", [2]uint16{1, 1}, [2]uint16{1, 1}, 1},
		{"newer client", [2]uint16{1, 2}, [2]uint16{1, 1}, 1},
		{"newer server", [2]uint16{1, 1}, [2]uint16{1, 2}, 1},
		{"highest common", [2]uint16{1, 3}, [2]uint16{2, 4}, 3},
		{"client too old", [2]uint16{1, 1}, [2]uint16{2, 3}, 0},
		{"client too new", [2]uint16{3, 4}, [2]uint16{1, 2}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := loopback(t)
			var server *Session
			done := make(chan error, 1)
			go func() {
				var err error
				server, err = NewServer(b, Config{minVersion: c.server[0], maxVersion: c.server[1]})
				done <- err
			}()
			client, err := NewClient(a, Config{minVersion: c.client[0], maxVersion: c.client[1]})
			serverErr := <-done
			if c.want == 0 {
				for _, err := range []error{err, serverErr} {
					both := fmt.Sprintf("%d to %d", c.client[0], c.client[1])
					if fault.Of(err) != fault.Unsupported || !strings.Contains(err.Error(), both) {
						t.Errorf("got %v, want unsupported naming %s", err, both)
					}
				}
				return
			}
			if err != nil || serverErr != nil {
				t.Fatal(err, serverErr)
			}
			if client.Version() != c.want || server.Version() != c.want {
				t.Errorf("version %d and %d, want %d", client.Version(), server.Version(), c.want)
			}
			_ = client.Close()
			_ = server.Close()
		})
	}
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func repeat(n int, b []byte) []byte { return bytes.Repeat(b, n) }
