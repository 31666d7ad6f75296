package link

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// scripted is a connection whose peer has written its bytes and hung up, and reads nothing.
type scripted struct{ in *bytes.Reader }

func (c scripted) Read(p []byte) (int, error)     { return c.in.Read(p) }
func (scripted) Write(p []byte) (int, error)      { return len(p), nil }
func (scripted) Close() error                     { return nil }
func (scripted) LocalAddr() net.Addr              { return nil }
func (scripted) RemoteAddr() net.Addr             { return nil }
func (scripted) SetDeadline(time.Time) error      { return nil }
func (scripted) SetReadDeadline(time.Time) error  { return nil }
func (scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzFrames throws bytes at a session that knows a client's HELLO already. It must end without a
// panic, a hang or a goroutine left (TestMain looks), and hold nothing.
func FuzzFrames(f *testing.F) {
	for _, frame := range goldenFrames() {
		f.Add(frame)
	}
	f.Add(join(open(1, meta{end: true}), open(3, meta{headLen: 10, head: []byte("x")}), appendMore(nil, 3, make([]byte, 9)), appendData(nil, 3, []byte("body"))))
	f.Add(join(open(1, meta{}), appendData(nil, 1, []byte("x")), appendStop(nil, 1), appendCredit(nil, 1, 9), appendEnd(nil, 1, []byte("y"), 3, []byte("z"))))
	f.Add(join(open(1, meta{}), appendReset(nil, 1, false, fault.Canceled, "x"), appendGoaway(nil, goawayAll, 0, ""), appendGoaway(nil, 0, 0, "")))
	d := DefaultConfig()
	prefix := appendHello(nil, helloKind, d.hello())
	f.Fuzz(func(t *testing.T, script []byte) {
		s, err := NewServer(scripted{bytes.NewReader(script)}, Config{
			Prefix: prefix, StreamWindow: 1 << 10, SessionWindow: 4 << 10, MaxInflightBytes: 8 << 10, MaxStreams: 4, MaxHead: 1 << 10,
			Handler: func(st *Stream) {
				if len(st.Head()) > 0 && st.Head()[0]&1 == 1 {
					if _, err := io.Copy(io.Discard, st); err != nil {
						return
					}
				}
				_ = st.SendHead(st.Head(), nil, true, nil)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Wait()
		if got := s.Stats(); got.Streams != 0 || got.Handlers != 0 || got.Inflight != 0 {
			t.Errorf("left: %+v", got)
		}
	})
}

// FuzzAnswers throws bytes at a session with one call waiting.
func FuzzAnswers(f *testing.F) {
	for _, frame := range goldenFrames() {
		f.Add(frame)
	}
	f.Add(join(appendReply(nil, 1, &meta{headLen: 4, head: []byte("head"), body: []byte("x")}), appendData(nil, 1, []byte("y")), appendEnd(nil, 1, nil, 5, []byte("tr")), appendMore(nil, 1, []byte("ail"))))
	d := DefaultConfig()
	welcome := appendHello(nil, welcomeKind, d.hello())
	f.Fuzz(func(t *testing.T, script []byte) {
		a, b := net.Pipe()
		go func() {
			defer b.Close()
			if _, err := b.Read(make([]byte, 256)); err != nil { // HELLO
				return
			}
			if _, err := b.Write(welcome); err != nil {
				return
			}
			go io.Copy(io.Discard, b) //nolint:errcheck // until the pipe is closed
			_, _ = b.Write(script)
		}()
		s, err := NewClient(a, Config{StreamWindow: 1 << 10, SessionWindow: 4 << 10, MaxHead: 1 << 10})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := s.Open(t.Context(), []byte("head"), []byte("body"), true); err == nil {
			if _, _, final, err := st.RecvHead(t.Context()); err == nil && !final {
				_, _ = io.Copy(io.Discard, st)
			}
			st.Reset(fault.Canceled, "")
		}
		_ = s.Close()
		if got := s.Stats(); got.Streams != 0 || got.Inflight != 0 {
			t.Errorf("left: %+v", got)
		}
	})
}

// FuzzHandshake throws first bytes at both sides.
func FuzzHandshake(f *testing.F) {
	for _, name := range []string{"hello", "welcome", "refuse"} {
		f.Add(goldenFrames()[name])
	}
	f.Add([]byte(http2Preface))
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, script []byte) {
		for _, side := range []func(net.Conn, Config) (*Session, error){NewClient, NewServer} {
			s, err := side(scripted{bytes.NewReader(script)}, Config{})
			if err != nil {
				if fault.Of(err) == fault.OK || fault.Of(err) == fault.Internal && len(script) < preambleSize {
					t.Errorf("a strange error: %v", err)
				}
				continue
			}
			s.Wait()
		}
		_ = Sniff(script)
	})
}
