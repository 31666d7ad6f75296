package link

import (
	"encoding/binary"
	"fmt"

	"github.com/mecha-project/mecha/components/fault"
)

// Every frame is a header of headerSize bytes and a payload. Integers are little-endian.
//
//	0  u32  payload length
//	4  u8   kind
//	5  u8   flags
//	6  u16  reserved, zero
//	8  u64  stream id; zero for the session itself
const headerSize = 16

// kind is what a frame is. Kinds with the top bit set may be skipped by a receiver that does
// not know them; an unknown kind without it ends the session.
type kind uint8

const (
	kindOpen   kind = 1  // a new stream: timeout, head, and the body if it fits
	kindReply  kind = 2  // the answer's head, and body and trailer if they fit
	kindData   kind = 3  // body bytes
	kindEnd    kind = 4  // last body bytes and trailer of a direction
	kindMore   kind = 5  // the rest of a head or trailer that did not fit its frame
	kindReset  kind = 6  // the stream is over, both ways
	kindStop   kind = 7  // the receiver reads no more of this direction
	kindCredit kind = 8  // more bytes may be sent
	kindPing   kind = 9  // answer with a pong
	kindPong   kind = 10 // the answer
	kindGoaway kind = 11 // no new streams above an id

	skippable kind = 0x80
)

const (
	flagEnd     uint8 = 1 // open, reply: this frame ends the sender's direction
	flagRefused uint8 = 1 // reset: the stream was never given to a handler
)

// Fixed parts of payloads, in bytes.
const (
	openFixed   = 16 // timeout u64 ns, head length u32, trailer length u32
	replyFixed  = 8  // head length u32, trailer length u32
	endFixed    = 4  // trailer length u32
	resetFixed  = 4  // code u32
	creditFixed = 4  // increment u32
	pingFixed   = 8  // token u64
	goawayFixed = 12 // last id u64, code u32

	maxText   = 1024          // bytes of text in reset, goaway and refusal
	maxCredit = 1<<31 - 1     // most credit that may be outstanding on a stream or a session
	goawayAll = 1<<64 - 1     // last id of a goaway that only announces
	minFrame  = 4 << 10       // smallest payload limit a peer may announce
	maxFrame  = 16<<20 - 1024 // largest payload limit we will ever use
)

var kindNames = [...]string{
	kindOpen: "OPEN", kindReply: "REPLY", kindData: "DATA", kindEnd: "END", kindMore: "MORE", kindReset: "RESET",
	kindStop: "STOP", kindCredit: "CREDIT", kindPing: "PING", kindPong: "PONG", kindGoaway: "GOAWAY",
}

func (k kind) known() bool { return k >= kindOpen && k <= kindGoaway }

func (k kind) String() string {
	if k.known() {
		return kindNames[k]
	}
	return fmt.Sprintf("kind 0x%02x", uint8(k))
}

// shape is what the header of a kind must look like.
type shape struct {
	flags    uint8 // allowed flags
	min, max int   // payload length; max 0 means the negotiated frame limit
	on       scope
}

type scope uint8

const (
	onStream  scope = iota // the id must not be zero
	onSession              // the id must be zero
	onEither
)

var shapes = [...]shape{
	kindOpen:   {flags: flagEnd, min: openFixed},
	kindReply:  {flags: flagEnd, min: replyFixed},
	kindData:   {min: 1},
	kindEnd:    {min: endFixed},
	kindMore:   {min: 1},
	kindReset:  {flags: flagRefused, min: resetFixed, max: resetFixed + maxText},
	kindStop:   {min: 0, max: -1},
	kindCredit: {min: creditFixed, max: creditFixed, on: onEither},
	kindPing:   {min: pingFixed, max: pingFixed, on: onSession},
	kindPong:   {min: pingFixed, max: pingFixed, on: onSession},
	kindGoaway: {min: goawayFixed, max: goawayFixed + maxText, on: onSession},
}

// header is a decoded frame header.
type header struct {
	n     int // payload length
	kind  kind
	flags uint8
	id    uint64
}

// parseHeader decodes and checks what can be checked without the state of the session.
// b holds at least headerSize bytes; limit is the largest payload we announced.
func parseHeader(b []byte, limit int) (header, *ProtocolError) {
	n := binary.LittleEndian.Uint32(b)
	h := header{kind: kind(b[4]), flags: b[5], id: binary.LittleEndian.Uint64(b[8:])}
	if n > uint32(limit) {
		return h, violation(h, "payload of %d bytes is over the limit of %d", n, limit)
	}
	h.n = int(n)
	if !h.kind.known() {
		if h.kind&skippable == 0 {
			return h, violation(h, "unknown critical kind")
		}
		return h, nil
	}
	if r := binary.LittleEndian.Uint16(b[6:]); r != 0 {
		return h, violation(h, "reserved bits 0x%04x are set", r)
	}
	s := &shapes[h.kind]
	if h.flags&^s.flags != 0 {
		return h, violation(h, "unknown flags 0x%02x", h.flags)
	}
	if h.n < s.min || (s.max > 0 && h.n > s.max) || (s.max < 0 && h.n > 0) {
		return h, violation(h, "payload of %d bytes has a wrong length", h.n)
	}
	if (s.on == onStream && h.id == 0) || (s.on == onSession && h.id != 0) {
		return h, violation(h, "stream id not allowed here")
	}
	return h, nil
}

// ProtocolError says how the peer broke the rules of the wire. It is the cause of the session's end.
type ProtocolError struct {
	Frame  string // the kind of the offending frame, or "HELLO", "WELCOME"
	Stream uint64 // zero when no stream is concerned
	Text   string
}

func (e *ProtocolError) Error() string {
	if e.Stream == 0 {
		return fmt.Sprintf("link protocol: %s: %s", e.Frame, e.Text)
	}
	return fmt.Sprintf("link protocol: %s on stream %d: %s", e.Frame, e.Stream, e.Text)
}

func violation(h header, format string, args ...any) *ProtocolError {
	return &ProtocolError{Frame: h.kind.String(), Stream: h.id, Text: fmt.Sprintf(format, args...)}
}

// The append functions encode frames. Those with a body take what the caller checked to fit.

func appendHeader(b []byte, n int, k kind, flags uint8, id uint64) []byte {
	var h [headerSize]byte
	binary.LittleEndian.PutUint32(h[0:], uint32(n))
	h[4], h[5] = byte(k), flags
	binary.LittleEndian.PutUint64(h[8:], id)
	return append(b, h[:]...)
}

// meta describes the first frame of a direction. head may be longer than the part put in the
// frame; then body and trailer are empty and end is false.
type meta struct {
	timeout             uint64 // ns; OPEN only
	headLen             int    // whole head
	head, body, trailer []byte
	end                 bool
}

func (m *meta) flags() uint8 {
	if m.end {
		return flagEnd
	}
	return 0
}

func appendOpen(b []byte, id uint64, m *meta) []byte {
	b = appendHeader(b, openFixed+len(m.head)+len(m.body)+len(m.trailer), kindOpen, m.flags(), id)
	b = binary.LittleEndian.AppendUint64(b, m.timeout)
	return appendMeta(b, m)
}

func appendReply(b []byte, id uint64, m *meta) []byte {
	b = appendHeader(b, replyFixed+len(m.head)+len(m.body)+len(m.trailer), kindReply, m.flags(), id)
	return appendMeta(b, m)
}

func appendMeta(b []byte, m *meta) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(m.headLen))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(m.trailer)))
	b = append(b, m.head...)
	b = append(b, m.body...)
	return append(b, m.trailer...)
}

func appendData(b []byte, id uint64, body []byte) []byte {
	return append(appendHeader(b, len(body), kindData, 0, id), body...)
}

func appendMore(b []byte, id uint64, part []byte) []byte {
	return append(appendHeader(b, len(part), kindMore, 0, id), part...)
}

// appendEnd takes the whole trailer's length and the part of it that goes into this frame.
func appendEnd(b []byte, id uint64, body []byte, trailerLen int, trailer []byte) []byte {
	b = appendHeader(b, endFixed+len(body)+len(trailer), kindEnd, 0, id)
	b = binary.LittleEndian.AppendUint32(b, uint32(trailerLen))
	b = append(b, body...)
	return append(b, trailer...)
}

func appendReset(b []byte, id uint64, refused bool, code fault.Code, text string) []byte {
	text = clip(text)
	var flags uint8
	if refused {
		flags = flagRefused
	}
	b = appendHeader(b, resetFixed+len(text), kindReset, flags, id)
	b = binary.LittleEndian.AppendUint32(b, uint32(code))
	return append(b, text...)
}

func appendStop(b []byte, id uint64) []byte { return appendHeader(b, 0, kindStop, 0, id) }

func appendCredit(b []byte, id uint64, n int64) []byte {
	return binary.LittleEndian.AppendUint32(appendHeader(b, creditFixed, kindCredit, 0, id), uint32(n))
}

func appendPing(b []byte, k kind, token uint64) []byte {
	return binary.LittleEndian.AppendUint64(appendHeader(b, pingFixed, k, 0, 0), token)
}

func appendGoaway(b []byte, last uint64, code fault.Code, text string) []byte {
	text = clip(text)
	b = appendHeader(b, goawayFixed+len(text), kindGoaway, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, last)
	b = binary.LittleEndian.AppendUint32(b, uint32(code))
	return append(b, text...)
}

func clip(text string) string { return text[:min(len(text), maxText)] }

// wireCode turns the code of a peer into ours. Codes we do not know yet keep their number.
func wireCode(v uint32) fault.Code {
	if v == uint32(fault.OK) || v > 255 {
		return fault.Internal
	}
	return fault.Code(v)
}

// layout says how the payload of an OPEN or REPLY frame divides.
type layout struct {
	timeout             uint64
	headLen             int // of the whole head; more than head if MORE frames follow
	head, body, trailer int // bytes of each in this frame, in this order
}

func (k kind) fixed() int {
	if k == kindOpen {
		return openFixed
	}
	return replyFixed
}

// parseLayout reads the fixed part p of an OPEN or REPLY frame, or says what is wrong with it.
func parseLayout(h header, p []byte) (layout, *ProtocolError) {
	l := layout{}
	rest := h.n - h.kind.fixed()
	if h.kind == kindOpen {
		l.timeout = binary.LittleEndian.Uint64(p)
		p = p[8:]
	}
	headLen, trailerLen := binary.LittleEndian.Uint32(p), binary.LittleEndian.Uint32(p[4:])
	if headLen > maxCredit || l.timeout > 1<<63-1 {
		return l, violation(h, "head length %d or timeout %d is out of range", headLen, l.timeout)
	}
	l.headLen = int(headLen)
	end := h.flags&flagEnd != 0
	if l.headLen > rest {
		if end || trailerLen != 0 {
			return l, violation(h, "the end comes before the head is complete")
		}
		l.head = rest
		return l, nil
	}
	l.head = l.headLen
	rest -= l.head
	if int64(trailerLen) > int64(rest) || (trailerLen != 0 && !end) {
		return l, violation(h, "trailer of %d bytes does not fit", trailerLen)
	}
	l.trailer = int(trailerLen)
	l.body = rest - l.trailer
	return l, nil
}

// parseEnd splits the payload of an END frame. The trailer may be incomplete; then there is no body.
func parseEnd(h header, p []byte) (body, trailer []byte, trailerLen int, perr *ProtocolError) {
	n := binary.LittleEndian.Uint32(p)
	p = p[endFixed:]
	if n > maxCredit {
		return nil, nil, 0, violation(h, "trailer of %d bytes is out of range", n)
	}
	if int(n) >= len(p) {
		return nil, p, int(n), nil
	}
	cut := len(p) - int(n)
	return p[:cut:cut], p[cut:], int(n), nil
}
