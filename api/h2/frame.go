package h2

import (
	"encoding/binary"
	"fmt"
)

// ErrCode is an HTTP/2 error code (RFC 9113 section 7).
type ErrCode uint32

// The error codes.
const (
	NoError            ErrCode = 0x0
	ProtocolError      ErrCode = 0x1
	InternalError      ErrCode = 0x2
	FlowControlError   ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSizeError     ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	CompressionError   ErrCode = 0x9
	ConnectError       ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var codeNames = [...]string{"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT",
	"STREAM_CLOSED", "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR",
	"ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED"}

// String is the code's name in the RFC.
func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("error code 0x%x", uint32(c))
}

// ConnError ends a connection: one side broke the rules.
type ConnError struct {
	Code ErrCode
	Text string
	Peer bool // the peer said so in a GOAWAY; else we did
}

// Error tells who complained, and of what.
func (e *ConnError) Error() string {
	if e.Peer {
		return fmt.Sprintf("the peer ended the connection: %s %s", e.Code, e.Text)
	}
	return fmt.Sprintf("the peer broke HTTP/2: %s: %s", e.Code, e.Text)
}

func violation(code ErrCode, format string, args ...any) *ConnError {
	return &ConnError{Code: code, Text: fmt.Sprintf(format, args...)}
}

// StreamError is the cause of a stream's failure when the peer reset it.
type StreamError struct{ Code ErrCode }

// Error names the code.
func (e *StreamError) Error() string { return "the peer reset the stream: " + e.Code.String() }

const (
	preface      = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	frameHeader  = 9
	maxFrame     = 16 << 10 // of frames we accept: the initial value, never raised
	maxPeerFrame = 64 << 10 // of frames we send, if the peer accepts as much
	maxWindow    = 1<<31 - 1
	initialFlow  = 65535 // window before any SETTINGS
	maxID        = 1<<31 - 1
)

// Frame types.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePush         = 0x5
	framePing         = 0x6
	frameGoaway       = 0x7
	frameWindow       = 0x8
	frameContinuation = 0x9
)

// Flags.
const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// Settings.
const (
	settingTableSize     = 0x1
	settingPush          = 0x2
	settingMaxStreams    = 0x3
	settingInitialWindow = 0x4
	settingMaxFrame      = 0x5
	settingMaxHeaderList = 0x6
)

// frame is a frame's header.
type frame struct {
	n           int // bytes of payload
	kind, flags byte
	id          uint32
}

func (f frame) has(flag byte) bool { return f.flags&flag != 0 }

func parseFrame(p []byte) frame {
	return frame{n: int(p[0])<<16 | int(p[1])<<8 | int(p[2]), kind: p[3], flags: p[4],
		id: binary.BigEndian.Uint32(p[5:]) & maxID}
}

func appendFrame(b []byte, n int, kind, flags byte, id uint32) []byte {
	return append(b, byte(n>>16), byte(n>>8), byte(n), kind, flags, byte(id>>24), byte(id>>16), byte(id>>8), byte(id))
}

func appendReset(b []byte, id uint32, code ErrCode) []byte {
	b = appendFrame(b, 4, frameReset, 0, id)
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendWindow(b []byte, id uint32, n int64) []byte {
	b = appendFrame(b, 4, frameWindow, 0, id)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

func appendPing(b []byte, flags byte, token uint64) []byte {
	b = appendFrame(b, 8, framePing, flags, 0)
	return binary.BigEndian.AppendUint64(b, token)
}

func appendGoaway(b []byte, last uint32, code ErrCode, text string) []byte {
	b = appendFrame(b, 8+len(text), frameGoaway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, text...)
}

type setting struct {
	id    uint16
	value uint32
}

func appendSettings(b []byte, all ...setting) []byte {
	b = appendFrame(b, 6*len(all), frameSettings, 0, 0)
	for _, s := range all {
		b = binary.BigEndian.AppendUint16(b, s.id)
		b = binary.BigEndian.AppendUint32(b, s.value)
	}
	return b
}
