package h2_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/mecha-project/mecha/api/h2"
)

// rawPeer speaks HTTP/2 frame by frame, rules or not.
type rawPeer struct {
	t   testing.TB
	nc  net.Conn
	fr  *http2.Framer
	enc *hpack.Encoder
	hb  bytes.Buffer
	dec *hpack.Decoder
}

func newRaw(t testing.TB, nc net.Conn) *rawPeer {
	p := &rawPeer{t: t, nc: nc, fr: http2.NewFramer(nc, nc), dec: hpack.NewDecoder(4096, nil)}
	p.fr.AllowIllegalWrites, p.fr.AllowIllegalReads = true, true
	p.enc = newEncoder(&p.hb)
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { nc.Close() })
	return p
}

// dialRaw connects and greets.
func dialRaw(t testing.TB, addr string, settings ...http2.Setting) *rawPeer {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := newRaw(t, nc)
	_, _ = io.WriteString(nc, http2.ClientPreface)
	_ = p.fr.WriteSettings(settings...)
	return p
}

func (p *rawPeer) block(pairs ...string) []byte {
	p.hb.Reset()
	for i := 0; i < len(pairs); i += 2 {
		_ = p.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return append([]byte(nil), p.hb.Bytes()...)
}

var post = []string{":method", "POST", ":scheme", "http", ":path", "/s/m", ":authority", "x"}

func (p *rawPeer) open(id uint32, end bool, more ...string) {
	_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: p.block(append(post[:len(post):len(post)], more...)...)})
}

// until reads frames to one for which f is true.
func (p *rawPeer) until(what string, f func(http2.Frame) bool) {
	p.t.Helper()
	for {
		fr, err := p.fr.ReadFrame()
		if err != nil {
			p.t.Fatalf("waiting for %s: %v", what, err)
		}
		if s, ok := fr.(*http2.SettingsFrame); ok && !s.IsAck() {
			_ = p.fr.WriteSettingsAck()
		}
		if f(fr) {
			return
		}
	}
}

// outcome is what becomes of the connection: "GOAWAY code", "RST id code", "answer id".
func (p *rawPeer) outcome() string {
	for {
		fr, err := p.fr.ReadFrame()
		if err != nil {
			return "closed"
		}
		switch f := fr.(type) {
		case *http2.GoAwayFrame:
			return "GOAWAY " + f.ErrCode.String()
		case *http2.RSTStreamFrame:
			return fmt.Sprintf("RST %d %s", f.StreamID, f.ErrCode)
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				return fmt.Sprintf("answer %d", f.StreamID)
			}
		}
	}
}

func frameBytes(n int, kind, flags byte, id uint32, payload []byte) []byte {
	b := []byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}
	return append(binary.BigEndian.AppendUint32(b, id), payload...)
}

// What a client must not do, and what follows.
func TestHostileClients(t *testing.T) {
	addr := serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		if strings.HasSuffix(st.Path(), "hang") {
			<-st.Context().Done()
			return
		}
		b, err := body(st)
		if err == nil {
			_ = st.Respond(200, nil, b, grpcOK)
		}
	}, MaxStreams: 100, MaxHeaderList: 4 << 10})
	hang := func(p *rawPeer, id uint32, end bool) {
		_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: end, BlockFragment: p.block(":method", "POST", ":scheme", "http", ":path", "/hang")})
	}
	tests := []struct {
		name string
		do   func(p *rawPeer)
		want string
	}{
		{"an ordinary call", func(p *rawPeer) { p.open(1, true) }, "answer 1"},
		{"padded and prioritised", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.block(post...), PadLength: 9, Priority: http2.PriorityParam{Weight: 3}})
			_ = p.fr.WriteDataPadded(1, true, []byte("abc"), make([]byte, 200))
		}, "answer 1"},
		{"an unknown frame", func(p *rawPeer) { _ = p.fr.WriteRawFrame(0xbe, 0xff, 7, []byte("ignored")); p.open(1, true) }, "answer 1"},
		{"a trailer", func(p *rawPeer) {
			p.open(1, false)
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.block("x-t", "1")})
		}, "answer 1"},
		{"a header in pieces", func(p *rawPeer) {
			b := p.block(post...)
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndStream: true, BlockFragment: b[:3]})
			_ = p.fr.WriteContinuation(1, false, b[3:7])
			_ = p.fr.WriteContinuation(1, true, b[7:])
		}, "answer 1"},
		{"a frame of priority", func(p *rawPeer) { _ = p.fr.WritePriority(9, http2.PriorityParam{}); p.open(1, true) }, "answer 1"},
		{"a header over the limit", func(p *rawPeer) { p.open(1, true, "x-l", strings.Repeat("x", 5000)) }, "answer 1"},

		{"a frame that is too long", func(p *rawPeer) { _, _ = p.nc.Write(frameBytes(1<<20, 0, 0, 1, nil)) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"HEADERS with an even id", func(p *rawPeer) { p.open(2, true) }, "GOAWAY PROTOCOL_ERROR"},
		{"HEADERS without a stream", func(p *rawPeer) { p.open(0, true) }, "GOAWAY PROTOCOL_ERROR"},
		{"DATA of an idle stream", func(p *rawPeer) { _ = p.fr.WriteData(5, true, []byte("x")) }, "GOAWAY PROTOCOL_ERROR"},
		{"DATA without a stream", func(p *rawPeer) { _ = p.fr.WriteData(0, true, nil) }, "GOAWAY PROTOCOL_ERROR"},
		{"RST_STREAM of an idle stream", func(p *rawPeer) { _ = p.fr.WriteRSTStream(5, http2.ErrCodeCancel) }, "GOAWAY PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of an idle stream", func(p *rawPeer) { _ = p.fr.WriteWindowUpdate(5, 1) }, "GOAWAY PROTOCOL_ERROR"},
		{"PUSH_PROMISE", func(p *rawPeer) {
			_ = p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, "GOAWAY PROTOCOL_ERROR"},
		{"CONTINUATION alone", func(p *rawPeer) { _ = p.fr.WriteContinuation(1, true, nil) }, "GOAWAY PROTOCOL_ERROR"},
		{"a header not continued", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(post...)})
			_ = p.fr.WritePing(false, [8]byte{})
		}, "GOAWAY PROTOCOL_ERROR"},
		{"CONTINUATION without end", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(post...)})
			for range 100 {
				_ = p.fr.WriteContinuation(1, false, nil)
			}
		}, "GOAWAY ENHANCE_YOUR_CALM"},
		{"a huge header block", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.block(post...)})
			for range 10 {
				_ = p.fr.WriteContinuation(1, false, make([]byte, 16000))
			}
		}, "GOAWAY ENHANCE_YOUR_CALM"},
		{"broken compression", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: []byte{0xff, 0xff, 0xff, 0x7f}})
		}, "GOAWAY COMPRESSION_ERROR"},
		{"padding beyond the frame", func(p *rawPeer) { p.open(1, false); _, _ = p.nc.Write(frameBytes(1, 0, 8, 1, []byte{9})) }, "GOAWAY PROTOCOL_ERROR"},
		{"SETTINGS of 5 bytes", func(p *rawPeer) { _, _ = p.nc.Write(frameBytes(5, 4, 0, 0, make([]byte, 5))) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"an ACK with content", func(p *rawPeer) { _, _ = p.nc.Write(frameBytes(6, 4, 1, 0, make([]byte, 6))) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"SETTINGS on a stream", func(p *rawPeer) { _, _ = p.nc.Write(frameBytes(0, 4, 0, 1, nil)) }, "GOAWAY PROTOCOL_ERROR"},
		{"a window over the limit", func(p *rawPeer) {
			_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 31})
		}, "GOAWAY FLOW_CONTROL_ERROR"},
		{"a tiny frame size", func(p *rawPeer) {
			_ = p.fr.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 10})
		}, "GOAWAY PROTOCOL_ERROR"},
		{"PING of 7 bytes", func(p *rawPeer) { _, _ = p.nc.Write(frameBytes(7, 6, 0, 0, make([]byte, 7))) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"PING on a stream", func(p *rawPeer) { _, _ = p.nc.Write(frameBytes(8, 6, 0, 1, make([]byte, 8))) }, "GOAWAY PROTOCOL_ERROR"},
		{"WINDOW_UPDATE of 0", func(p *rawPeer) { _ = p.fr.WriteWindowUpdate(0, 0) }, "GOAWAY PROTOCOL_ERROR"},
		{"WINDOW_UPDATE over the limit", func(p *rawPeer) { _ = p.fr.WriteWindowUpdate(0, 1<<31-1) }, "GOAWAY FLOW_CONTROL_ERROR"},
		{"a stream's WINDOW_UPDATE of 0", func(p *rawPeer) { hang(p, 1, false); _ = p.fr.WriteWindowUpdate(1, 0) }, "RST 1 PROTOCOL_ERROR"},
		{"a stream's WINDOW_UPDATE over the limit", func(p *rawPeer) { hang(p, 1, false); _ = p.fr.WriteWindowUpdate(1, 1<<31-1) }, "RST 1 FLOW_CONTROL_ERROR"},
		{"a GOAWAY of 3 bytes", func(p *rawPeer) { _, _ = p.nc.Write(frameBytes(3, 7, 0, 0, make([]byte, 3))) }, "GOAWAY FRAME_SIZE_ERROR"},
		{"DATA beyond the stream's window", func(p *rawPeer) {
			hang(p, 1, false)
			for range 17 {
				_ = p.fr.WriteData(1, false, make([]byte, 16<<10))
			}
		}, "RST 1 FLOW_CONTROL_ERROR"},
		{"DATA after the end", func(p *rawPeer) { hang(p, 1, true); _ = p.fr.WriteData(1, false, []byte("x")) }, "RST 1 STREAM_CLOSED"},
		{"HEADERS after the end", func(p *rawPeer) { hang(p, 1, true); p.open(1, true) }, "RST 1 STREAM_CLOSED"},
		{"DATA of a closed stream", func(p *rawPeer) {
			p.open(3, true)
			p.until("the answer", func(f http2.Frame) bool { h, ok := f.(*http2.HeadersFrame); return ok && h.StreamEnded() })
			_ = p.fr.WriteData(3, false, []byte("x"))
		}, "RST 3 STREAM_CLOSED"},
		{"a lower stream id", func(p *rawPeer) { hang(p, 3, true); p.open(1, true) }, "RST 1 STREAM_CLOSED"},
		{"a trailer that does not end", func(p *rawPeer) {
			hang(p, 1, false)
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, BlockFragment: p.block("x-t", "1")})
		}, "RST 1 PROTOCOL_ERROR"},
		{"more than content-length", func(p *rawPeer) { p.open(1, false, "content-length", "2"); _ = p.fr.WriteData(1, true, []byte("abc")) }, "RST 1 PROTOCOL_ERROR"},
		{"less than content-length", func(p *rawPeer) { p.open(1, false, "content-length", "4"); _ = p.fr.WriteData(1, true, []byte("abc")) }, "RST 1 PROTOCOL_ERROR"},
		{"one stream too many", func(p *rawPeer) {
			for i := range uint32(101) {
				hang(p, 2*i+1, true)
			}
		}, "RST 201 REFUSED_STREAM"},
		{"too many pings", func(p *rawPeer) {
			for range 5 {
				_ = p.fr.WritePing(false, [8]byte{})
			}
		}, "GOAWAY ENHANCE_YOUR_CALM"},
		{"a flood of SETTINGS", func(p *rawPeer) {
			go io.Copy(io.Discard, io.LimitReader(p.nc, 0))
			for range 3000 {
				_ = p.fr.WriteSettings()
			}
		}, "GOAWAY ENHANCE_YOUR_CALM"},
		{"a flood of empty DATA", func(p *rawPeer) {
			hang(p, 1, false)
			for range 3000 {
				_ = p.fr.WriteData(1, false, nil)
			}
		}, "GOAWAY ENHANCE_YOUR_CALM"},
		{"a flood of PRIORITY", func(p *rawPeer) {
			for range 3000 {
				_ = p.fr.WritePriority(1, http2.PriorityParam{})
			}
		}, "GOAWAY ENHANCE_YOUR_CALM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := dialRaw(t, addr)
			tt.do(p)
			if got := p.outcome(); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

// Streams that are reset as soon as they are opened, by the client or for a fault of its, make
// work for nothing.
func TestResetsInAHurry(t *testing.T) {
	addr := serve(t, &h2.Server{Handler: func(st *h2.Stream) { <-st.Context().Done() }})
	tests := []struct {
		name string
		do   func(p *rawPeer, id uint32)
	}{
		{"the client's", func(p *rawPeer, id uint32) { _ = p.fr.WriteRSTStream(id, http2.ErrCodeCancel) }},
		{"those it makes us send", func(p *rawPeer, id uint32) { _ = p.fr.WriteWindowUpdate(id, 0) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := dialRaw(t, addr)
			for i := range uint32(300) {
				p.open(2*i+1, false)
				tt.do(p, 2*i+1)
			}
			p.until("GOAWAY", func(f http2.Frame) bool {
				g, ok := f.(*http2.GoAwayFrame)
				return ok && g.ErrCode == http2.ErrCodeEnhanceYourCalm
			})
		})
	}
}

// Handlers that are slow to end after a reset hold their slots: the next streams are refused,
// and the connection lives, for the client has kept to the limit.
func TestHandlersHoldTheirSlots(t *testing.T) {
	release := make(chan struct{})
	addr := serve(t, &h2.Server{MaxStreams: 10, Handler: func(st *h2.Stream) {
		<-release
		_ = st.Respond(200, nil, nil, nil)
	}})
	p := dialRaw(t, addr)
	for i := range uint32(10) {
		p.open(2*i+1, true)
	}
	for i := range uint32(10) {
		_ = p.fr.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
	}
	p.open(21, true)
	if got := p.outcome(); got != "RST 21 REFUSED_STREAM" {
		t.Errorf("got %s", got)
	}
	close(release)
	for id := uint32(23); ; id += 2 { // handlers end when they get to it
		p.open(id, true)
		if got := p.outcome(); got == fmt.Sprintf("answer %d", id) {
			break
		} else if got != fmt.Sprintf("RST %d REFUSED_STREAM", id) {
			t.Fatalf("then got %s", got)
		}
	}
}

func TestHostileHeaders(t *testing.T) {
	addr := serve(t, &h2.Server{Handler: echo})
	tests := []struct {
		name  string
		pairs []string
	}{
		{"no method", []string{":scheme", "http", ":path", "/"}},
		{"no path", []string{":method", "GET", ":scheme", "http"}},
		{"an empty path", []string{":method", "GET", ":scheme", "http", ":path", ""}},
		{"two paths", []string{":method", "GET", ":scheme", "http", ":path", "/", ":path", "/b"}},
		{"an unknown pseudo header", append(post[:8:8], ":proto", "x")},
		{"a pseudo header of answers", append(post[:8:8], ":status", "200")},
		{"a pseudo header behind others", []string{":method", "GET", ":scheme", "http", "a", "b", ":path", "/"}},
		{"an upper-case name", append(post[:8:8], "X-A", "b")},
		{"an empty name", append(post[:8:8], "", "b")},
		{"a name with a space", append(post[:8:8], "a b", "b")},
		{"a value with a line break", append(post[:8:8], "a", "b\r\nc: d")},
		{"a value with NUL", append(post[:8:8], "a", "b\x00")},
		{"connection", append(post[:8:8], "connection", "close")},
		{"transfer-encoding", append(post[:8:8], "transfer-encoding", "chunked")},
		{"te", append(post[:8:8], "te", "gzip")},
		{"two lengths", append(post[:8:8], "content-length", "1", "content-length", "2")},
		{"a negative length", append(post[:8:8], "content-length", "-1")},
		{"a length and no body", append(post[:8:8], "content-length", "1")},
		{"CONNECT", []string{":method", "CONNECT", ":scheme", "http", ":path", "/", ":authority", "x"}},
		{"a bad method", []string{":method", "G T", ":scheme", "http", ":path", "/"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := dialRaw(t, addr)
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.block(tt.pairs...)})
			if got := p.outcome(); got != "RST 1 PROTOCOL_ERROR" {
				t.Errorf("got %s", got)
			}
			p.open(3, true)
			if got := p.outcome(); got != "answer 3" {
				t.Errorf("then got %s", got)
			}
		})
	}
}

func TestServerWithoutPreface(t *testing.T) {
	addr := serve(t, &h2.Server{Handler: echo})
	for _, begin := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n\r\n", http2.ClientPreface + string(frameBytes(8, 6, 0, 0, make([]byte, 8)))} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		p := newRaw(t, nc)
		_, _ = io.WriteString(nc, begin)
		if got := p.outcome(); got != "GOAWAY PROTOCOL_ERROR" {
			t.Errorf("got %s", got)
		}
	}
}

// A client that makes the server answer and never reads ends its own connection only.
func TestClientThatNeverReads(t *testing.T) {
	served := make(chan struct{}, 1000)
	addr := serve(t, &h2.Server{WriteTimeout: 200 * time.Millisecond, Handler: func(st *h2.Stream) {
		for {
			if _, err := st.Write(make([]byte, 64<<10)); err != nil {
				served <- struct{}{}
				return
			}
		}
	}})
	p := dialRaw(t, addr, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
	_ = p.fr.WriteWindowUpdate(0, 1<<30)
	for i := range uint32(8) {
		p.open(2*i+1, true)
	}
	for range 8 {
		select {
		case <-served:
		case <-time.After(10 * time.Second):
			t.Fatal("a handler is still stuck")
		}
	}
}

// What a server must not do.
func TestHostileServers(t *testing.T) {
	tests := []struct {
		name string
		do   func(p *rawPeer)
		ok   bool
		text string
	}{
		{"an ordinary answer", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.block(":status", "200")})
		}, true, ""},
		{"DATA first", func(p *rawPeer) { _ = p.fr.WriteData(1, true, []byte("x")) }, false, "DATA before the header"},
		{"no status", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.block("a", "b")})
		}, false, "no :status"},
		{"a bad status", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.block(":status", "2x0")})
		}, false, "bad :status"},
		{"an interim answer that ends", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.block(":status", "103")})
		}, false, "interim"},
		{"a header over the limit", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: p.block(":status", "200", "a", strings.Repeat("x", 15000), "b", strings.Repeat("x", 1500))})
		}, false, "over the limit"},
		{"a push", func(p *rawPeer) {
			_ = p.fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
		}, false, "PUSH_PROMISE"},
		{"an answer nobody asked for", func(p *rawPeer) {
			_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 7, EndHeaders: true, EndStream: true, BlockFragment: p.block(":status", "200")})
		}, false, "never opened"},
		{"a reset", func(p *rawPeer) { _ = p.fr.WriteRSTStream(1, http2.ErrCodeInternal) }, false, "INTERNAL_ERROR"},
		{"leaving in anger", func(p *rawPeer) {
			_ = p.fr.WriteGoAway(1, http2.ErrCodeEnhanceYourCalm, []byte("too_many_pings\x00"))
			p.nc.Close()
		}, false, "too_many_pings."},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := listen(t)
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				nc, err := l.Accept()
				if err != nil {
					return
				}
				p := newRaw(t, nc)
				_, _ = io.ReadFull(nc, make([]byte, len(http2.ClientPreface)))
				_ = p.fr.WriteSettings()
				for {
					f, err := p.fr.ReadFrame()
					if err != nil {
						return
					}
					if f.Header().Type == http2.FrameHeaders {
						break
					}
				}
				tt.do(p)
				_, _ = io.Copy(io.Discard, nc)
			}()
			c := client(t, l.Addr().String())
			st, err := c.Open(within(t, 5*time.Second), request("/s/m", message(nil)))
			if err == nil {
				_, _, _, err = st.RecvHeaders(within(t, 5*time.Second))
				st.Close()
			}
			if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v, want %q", err, tt.text)
			}
			c.Close()
			<-done
		})
	}
}

// A refused stream, and one above a leaving server's last, are sent again once.
func TestClientRepeatsWhatNeverRan(t *testing.T) {
	tests := []struct {
		name string
		do   func(p *rawPeer)
	}{
		{"refused", func(p *rawPeer) { _ = p.fr.WriteRSTStream(1, http2.ErrCodeRefusedStream) }},
		{"the server left", func(p *rawPeer) { _ = p.fr.WriteGoAway(0, http2.ErrCodeNo, nil) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := listen(t)
			defer l.Close()
			go func() {
				for round := 0; ; {
					nc, err := l.Accept()
					if err != nil {
						return
					}
					p := newRaw(t, nc)
					_, _ = io.ReadFull(nc, make([]byte, len(http2.ClientPreface)))
					_ = p.fr.WriteSettings()
					for err == nil {
						var f http2.Frame
						f, err = p.fr.ReadFrame()
						if err != nil || f.Header().Type != http2.FrameHeaders {
							continue
						}
						if round++; round == 1 {
							tt.do(p)
							continue
						}
						_ = p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: f.Header().StreamID, EndHeaders: true, EndStream: true, BlockFragment: p.block(":status", "200")})
					}
				}
			}()
			c := client(t, l.Addr().String())
			st, err := c.Do(within(t, 5*time.Second), request("/s/m", message(nil)))
			if err != nil {
				t.Fatal(err)
			}
			st.Close()
		})
	}
}

func newEncoder(w io.Writer) *hpack.Encoder { return hpack.NewEncoder(w) }
