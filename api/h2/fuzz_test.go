package h2_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/mecha-project/mecha/api/h2"
)

// scripted is a connection whose peer says one thing and listens to nothing.
type scripted struct {
	net.Conn
	in *bytes.Reader
}

func (s scripted) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s scripted) Write(p []byte) (int, error)      { return len(p), nil }
func (s scripted) Close() error                     { return nil }
func (s scripted) SetReadDeadline(time.Time) error  { return nil }
func (s scripted) SetWriteDeadline(time.Time) error { return nil }
func (s scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{} }

// wire is what frames look like.
func wire(t testing.TB, do func(*rawPeer)) []byte {
	var buf bytes.Buffer
	p := &rawPeer{t: t, fr: http2.NewFramer(&buf, nil)}
	p.fr.AllowIllegalWrites = true
	p.enc = newEncoder(&p.hb)
	_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: 50})
	do(p)
	return buf.Bytes()
}

func seeds(f *testing.F) {
	f.Add(wire(f, func(p *rawPeer) { p.open(1, true) }))
	f.Add(wire(f, func(p *rawPeer) {
		p.open(1, false, "content-length", "3")
		_ = p.fr.WriteData(1, false, []byte("ab"))
		_ = p.fr.WriteWindowUpdate(1, 10)
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.block("x-t", "1")})
		_ = p.fr.WriteRSTStream(1, http2.ErrCodeCancel)
		_ = p.fr.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
	}))
	f.Add(wire(f, func(p *rawPeer) {
		_ = p.fr.WritePing(false, [8]byte{1})
		_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.block(":status", "200")})
		_ = p.fr.WriteDataPadded(1, true, []byte("abc"), []byte{0, 0})
	}))
	f.Add([]byte{0, 0, 1, 9, 4, 0, 0, 0, 1, 0x82})
}

// FuzzServerConn: whatever a client sends, the server ends, without a panic, and its handlers too.
func FuzzServerConn(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &h2.Server{Log: quiet, WriteTimeout: time.Second, Handler: func(st *h2.Stream) {
			b, err := body(st)
			if err == nil {
				_ = st.Respond(200, st.Header(), b, st.Trailer())
			}
		}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.ServeConn(scripted{in: bytes.NewReader(append([]byte(http2.ClientPreface), in...))}, nil)
		}()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Fatal("the connection does not end")
		}
	})
}

// FuzzClientConn: whatever a server sends, calls end, without a panic.
func FuzzClientConn(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		dials := 0
		c := &h2.Client{Addr: "fuzz", Log: quiet, WriteTimeout: time.Second, Dial: func(context.Context) (net.Conn, error) {
			if dials++; dials > 2 {
				return nil, io.EOF
			}
			return scripted{in: bytes.NewReader(in)}, nil
		}}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		st, err := c.Do(ctx, &h2.Request{Path: "/", Body: make([]byte, 200), End: true})
		if err == nil {
			_, _ = body(st)
			_, _ = st.First()
			st.Close()
		}
		if ctx.Err() != nil {
			t.Fatal("the call does not end")
		}
		c.Close()
	})
}
