package link

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// Magic is the first eight bytes either side sends. Its first byte is no letter, so it starts
// no HTTP/1 method and no HTTP/2 preface, and is not 0x16, which starts a TLS handshake.
const Magic = "\x8bMLNK\r\n\x1a"

// Kind is what the first bytes of a connection announce.
type Kind uint8

const (
	// KindUndecided means the prefix is too short to tell: read more.
	KindUndecided Kind = iota
	// KindLink is this package's wire.
	KindLink
	// KindTLS is a TLS handshake record.
	KindTLS
	// KindHTTP2 is the HTTP/2 client preface (h2c or gRPC).
	KindHTTP2
	// KindHTTP1 starts like an HTTP/1 request line.
	KindHTTP1
	// KindOther is none of these.
	KindOther
)

// SniffLen is the number of bytes after which Sniff never answers KindUndecided.
const SniffLen = len(http2Preface)

const http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Sniff tells what speaks on a connection from its first bytes, so that one port can serve
// several wires. Eight bytes decide everything but an HTTP/2 preface, which takes up to SniffLen.
func Sniff(prefix []byte) Kind {
	if len(prefix) == 0 {
		return KindUndecided
	}
	head := string(prefix[:min(len(prefix), SniffLen)])
	switch c := head[0]; {
	case c == Magic[0]:
		return decide(head, Magic, KindLink, KindOther)
	case c == 0x16:
		return KindTLS
	case strings.HasPrefix(http2Preface, head) || strings.HasPrefix(head, http2Preface):
		return decide(head, http2Preface, KindHTTP2, KindHTTP1)
	case isToken(c):
		return KindHTTP1
	}
	return KindOther
}

// decide compares as much of want as is there.
func decide(head, want string, yes, no Kind) Kind {
	switch {
	case strings.HasPrefix(head, want):
		return yes
	case strings.HasPrefix(want, head):
		return KindUndecided
	}
	return no
}

func isToken(c byte) bool {
	return c > ' ' && c < 0x7f && !strings.ContainsRune("\"(),/:;<=>?@[\\]{}", rune(c))
}

// Versions of the framing this build speaks. Version N serves N-1.
const (
	MinVersion = 1
	MaxVersion = 1
)

// Handshake messages are magic, kind u8, three zero bytes, body length u32, body.
const (
	helloKind   = 1
	welcomeKind = 2
	refuseKind  = 3

	preambleSize = len(Magic) + 8
	helloFixed   = 36
	refuseFixed  = 8

	// MaxGreeting is the largest Greeting in bytes.
	MaxGreeting = 4 << 10
	// maxHello leaves room for fields of later versions after the greeting.
	maxHello = helloFixed + MaxGreeting + 4<<10
)

// hello is the body of HELLO and WELCOME: what a side speaks and what it will accept.
type hello struct {
	minVersion, maxVersion uint16
	maxFrame               uint32
	features               uint64
	maxStreams             uint32
	maxHead                uint32
	streamWindow           uint32
	sessionWindow          uint32
	greeting               []byte
}

func appendPreamble(b []byte, k byte, n int) []byte {
	b = append(b, Magic...)
	b = append(b, k, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, uint32(n))
}

func appendHello(b []byte, k byte, h *hello) []byte {
	le := binary.LittleEndian
	b = appendPreamble(b, k, helloFixed+len(h.greeting))
	b = le.AppendUint16(b, h.minVersion)
	b = le.AppendUint16(b, h.maxVersion)
	b = le.AppendUint32(b, h.maxFrame)
	b = le.AppendUint64(b, h.features)
	b = le.AppendUint32(b, h.maxStreams)
	b = le.AppendUint32(b, h.maxHead)
	b = le.AppendUint32(b, h.streamWindow)
	b = le.AppendUint32(b, h.sessionWindow)
	b = le.AppendUint32(b, uint32(len(h.greeting)))
	return append(b, h.greeting...)
}

func appendRefuse(b []byte, minV, maxV uint16, code fault.Code, text string) []byte {
	text = clip(text)
	b = appendPreamble(b, refuseKind, refuseFixed+len(text))
	b = binary.LittleEndian.AppendUint16(b, minV)
	b = binary.LittleEndian.AppendUint16(b, maxV)
	b = binary.LittleEndian.AppendUint32(b, uint32(code))
	return append(b, text...)
}

func helloError(name, format string, args ...any) *ProtocolError {
	return &ProtocolError{Frame: name, Text: fmt.Sprintf(format, args...)}
}

// readHandshake reads one handshake message. The answer's body is a copy.
func readHandshake(in *inbuf, name string) (k byte, body []byte, err error) {
	if err := in.need(preambleSize); err != nil {
		return 0, nil, err
	}
	p := in.take(preambleSize)
	if !bytes.Equal(p[:len(Magic)], []byte(Magic)) {
		return 0, nil, helloError(name, "the first bytes are not the link's magic; is the peer a Mecha sidecar?")
	}
	k = p[len(Magic)]
	if p[9]|p[10]|p[11] != 0 {
		return 0, nil, helloError(name, "reserved bytes are set")
	}
	n := binary.LittleEndian.Uint32(p[12:])
	if n > uint32(maxHello) {
		return 0, nil, helloError(name, "%d bytes is over the limit of %d", n, maxHello)
	}
	body = make([]byte, n)
	return k, body, in.readFull(body)
}

func parseHello(name string, p []byte) (*hello, error) {
	if len(p) < helloFixed {
		return nil, helloError(name, "%d bytes is too short", len(p))
	}
	le := binary.LittleEndian
	h := &hello{
		minVersion: le.Uint16(p), maxVersion: le.Uint16(p[2:]), maxFrame: le.Uint32(p[4:]), features: le.Uint64(p[8:]),
		maxStreams: le.Uint32(p[16:]), maxHead: le.Uint32(p[20:]), streamWindow: le.Uint32(p[24:]), sessionWindow: le.Uint32(p[28:]),
	}
	n := le.Uint32(p[32:])
	switch {
	case n > MaxGreeting || int(n) > len(p)-helloFixed:
		return nil, helloError(name, "greeting of %d bytes does not fit", n)
	case h.minVersion == 0 || h.minVersion > h.maxVersion:
		return nil, helloError(name, "version range %d to %d is empty", h.minVersion, h.maxVersion)
	case h.maxFrame < minFrame:
		return nil, helloError(name, "frame limit %d is below %d", h.maxFrame, minFrame)
	case h.streamWindow == 0 || h.streamWindow > maxCredit || h.sessionWindow == 0 || h.sessionWindow > maxCredit:
		return nil, helloError(name, "window %d or %d is out of range", h.streamWindow, h.sessionWindow)
	}
	h.greeting = p[helloFixed : helloFixed+int(n) : helloFixed+int(n)]
	return h, nil
}

// opHandshake names the exchange of the first bytes in errors.
const opHandshake fault.Op = "link.handshake"

// greetServer is the dialling side's half of the handshake. It returns what the server accepts
// and the time the exchange took.
func (s *Session) greetServer() error {
	own := s.cfg.hello()
	began := time.Now()
	if _, err := s.conn.Write(appendHello(nil, helloKind, own)); err != nil {
		return s.handshakeFailed(err)
	}
	k, body, err := readHandshake(&s.in, "WELCOME")
	if err != nil {
		return s.handshakeFailed(err)
	}
	s.rtt.Store(int64(time.Since(began)))
	switch k {
	case refuseKind:
		return s.refusal(own, body)
	case welcomeKind:
		peer, err := parseHello("WELCOME", body)
		if err != nil {
			return s.handshakeFailed(err)
		}
		if peer.minVersion != peer.maxVersion || peer.maxVersion < own.minVersion || peer.maxVersion > own.maxVersion {
			return s.handshakeFailed(helloError("WELCOME", "version %d to %d was not offered", peer.minVersion, peer.maxVersion))
		}
		s.adopt(peer, peer.maxVersion)
		return nil
	}
	return s.handshakeFailed(helloError("WELCOME", "unexpected message kind %d", k))
}

// refusal makes the error of a REFUSE message.
func (s *Session) refusal(own *hello, p []byte) error {
	if len(p) < refuseFixed {
		return s.handshakeFailed(helloError("REFUSE", "%d bytes is too short", len(p)))
	}
	le := binary.LittleEndian
	code := wireCode(le.Uint32(p[4:]))
	text := string(p[refuseFixed:])
	if code == fault.Unsupported {
		text = fmt.Sprintf("%s (we speak versions %d to %d, it speaks %d to %d)", text, own.minVersion, own.maxVersion, le.Uint16(p), le.Uint16(p[2:]))
	}
	return fault.New(opHandshake, code, "link: %s refused the session: %s", s.peerName(), text).WithSent(fault.SentNever)
}

// greetClient is the accepting side's half of the handshake.
func (s *Session) greetClient() error {
	k, body, err := readHandshake(&s.in, "HELLO")
	if err != nil {
		return s.handshakeFailed(err)
	}
	if k != helloKind {
		return s.handshakeFailed(helloError("HELLO", "unexpected message kind %d", k))
	}
	peer, err := parseHello("HELLO", body)
	if err != nil {
		return s.refuse(fault.Invalid, err.Error(), err)
	}
	own := s.cfg.hello()
	v := min(own.maxVersion, peer.maxVersion)
	if v < own.minVersion || v < peer.minVersion {
		return s.refuse(fault.Unsupported, fmt.Sprintf("no common version: this side speaks %d to %d, the caller %d to %d; upgrade the older one",
			own.minVersion, own.maxVersion, peer.minVersion, peer.maxVersion), nil)
	}
	if s.cfg.Check != nil {
		if err := s.cfg.Check(peer.greeting); err != nil {
			return s.refuse(fault.Of(err), err.Error(), err)
		}
	}
	own.minVersion, own.maxVersion = v, v
	own.features &= peer.features
	if _, err := s.conn.Write(appendHello(nil, welcomeKind, own)); err != nil {
		return s.handshakeFailed(err)
	}
	s.adopt(peer, v)
	return nil
}

// refuse tells the dialling side why, and returns the same as an error.
func (s *Session) refuse(code fault.Code, text string, cause error) error {
	_, _ = s.conn.Write(appendRefuse(nil, s.cfg.minVersion, s.cfg.maxVersion, code, text)) // the session fails either way
	if cause != nil {
		return fault.New(opHandshake, code, "link: session from %s refused", s.peerName()).Because(cause)
	}
	return fault.New(opHandshake, code, "link: session from %s refused: %s", s.peerName(), text)
}

func (s *Session) handshakeFailed(err error) error {
	return fault.New(opHandshake, fault.Unavailable, "link: handshake with %s failed", s.peerName()).Because(err).WithSent(fault.SentNever)
}

// adopt takes the peer's limits: they bound what we send.
func (s *Session) adopt(peer *hello, version uint16) {
	s.version = version
	s.peerGreeting = peer.greeting
	s.sendFrame = min(int(min(peer.maxFrame, maxFrame)), s.cfg.MaxFrame)
	s.sendHead = int(min(peer.maxHead, maxCredit))
	s.sendStreams = int(min(peer.maxStreams, maxCredit))
	s.sendWindow = int64(peer.streamWindow)
	s.sendCredit = int64(peer.sessionWindow)
}
