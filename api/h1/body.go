package h1

import (
	"errors"
	"fmt"
	"io"

	"github.com/mecha-project/mecha/runtime/call"
)

// bodyKind is how a body ends.
type bodyKind uint8

const (
	bodyNone  bodyKind = iota
	bodyFixed          // after Content-Length bytes
	bodyChunked
	bodyUntilClose // with the connection; responses only
)

// chunkPhase is what a chunked body expects next.
type chunkPhase uint8

const (
	wantSize chunkPhase = iota
	wantData
	wantCRLF
	wantTrailer
)

const (
	maxChunkLine = 1 << 10  // bytes of a chunk-size line with its extensions
	maxOverhead  = 16 << 10 // extension bytes beyond those that the data pays for
	maxTrailer   = 16 << 10 // bytes of a trailer section
)

// errMalformed marks a body whose framing is wrong, in contrast to one that was cut off.
var errMalformed = errors.New("malformed chunked body")

func malformed(why string) error { return fmt.Errorf("%w: %s", errMalformed, why) }

// body decodes one message body from a reader. Not safe for concurrent use.
type body struct {
	rd       *reader
	kind     bodyKind
	phase    chunkPhase
	done     bool
	left     int64 // of a fixed body, or of the current chunk
	overhead int64
	trailing int   // bytes of trailer lines so far
	n        int64 // bytes delivered
	err      error // sticky
	trailer  call.Fields
}

func (b *body) reset(rd *reader, kind bodyKind, length int64) {
	*b = body{rd: rd, kind: kind, left: length}
	b.done = kind == bodyNone || kind == bodyFixed && length == 0
}

// read is io.Reader's Read: it returns what is there and blocks only for the first byte. A
// connection that ends early gives io.ErrUnexpectedEOF. done is set together with the last
// byte whenever the end has already arrived.
func (b *body) read(p []byte) (int, error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case b.done:
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	var n int
	var err error
	if b.kind == bodyChunked {
		n, err = b.readChunked(p)
	} else {
		n, err = b.readPlain(p)
	}
	b.n += int64(n)
	if err == io.EOF && !b.done {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		b.err = err
	}
	if n > 0 && err != nil {
		err = nil // told by the next call; an early io.EOF gains nothing
	}
	return n, err
}

func (b *body) readPlain(p []byte) (int, error) {
	if b.kind == bodyUntilClose {
		n, err := b.rd.read(p)
		b.done = err == io.EOF
		return n, err
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.rd.read(p)
	b.left -= int64(n)
	b.done = b.left == 0
	if b.done {
		err = nil
	}
	return n, err
}

// readChunked gives as much data as has arrived, over several chunks if need be.
func (b *body) readChunked(p []byte) (n int, err error) {
	for {
		for b.phase == wantData && n < len(p) {
			if n > 0 && b.rd.size() == 0 {
				return n, nil
			}
			m, err := b.rd.read(p[n:min(int64(len(p)), int64(n)+b.left)])
			n += m
			b.left -= int64(m)
			if b.left == 0 {
				b.phase = wantCRLF
			}
			if err != nil {
				return n, err
			}
		}
		if b.phase == wantData { // p is full
			return n, nil
		}
		ok, err := b.step()
		switch {
		case err != nil:
			return n, err
		case b.done && n == 0:
			return 0, io.EOF
		case b.done, !ok && n > 0:
			return n, nil
		case !ok:
			if err := b.rd.fill(); err != nil {
				return n, err
			}
		}
	}
}

// skim consumes what has arrived without waiting for more.
func (b *body) skim() {
	for !b.done && b.err == nil {
		if b.kind == bodyFixed || b.phase == wantData {
			n := min(b.left, int64(b.rd.size()))
			b.rd.r += int(n)
			b.left -= n
			b.done = b.kind == bodyFixed && b.left == 0
			if b.left > 0 || b.done {
				return
			}
			b.phase = wantCRLF
		}
		var ok bool
		if ok, b.err = b.step(); !ok {
			return
		}
	}
}

// step consumes one line of chunk framing if it has arrived whole.
func (b *body) step() (ok bool, err error) {
	limit := maxChunkLine
	if b.phase == wantTrailer {
		limit = len(b.rd.buf) - 1
	}
	line, ok, err := b.rd.line(limit)
	if err != nil {
		return false, malformed(err.Error())
	}
	if !ok {
		return false, nil
	}
	switch b.phase {
	case wantSize:
		return true, b.startChunk(line)
	case wantCRLF:
		if len(line) != 0 {
			return true, malformed("more data than the chunk's size")
		}
		b.phase = wantSize
		return true, nil
	}
	return true, b.trailerLine(line)
}

func (b *body) startChunk(line []byte) error {
	size, digits := int64(0), 0
	for ; digits < len(line) && isHex(line[digits]); digits++ {
		if digits == 15 { // 15 hex digits fit in an int64 with room to add
			return malformed("chunk size out of range")
		}
		size = size<<4 | int64(hexValue(line[digits]))
	}
	ext := line[digits:]
	if digits == 0 || len(ext) > 0 && ext[0] != ';' && ext[0] != ' ' && ext[0] != '\t' || !validExtension(ext) {
		return malformed("invalid chunk size")
	}
	// Extensions are ignored, but a sender must not make us read mostly those.
	b.overhead = max(0, b.overhead+int64(len(ext))-size)
	if b.overhead > maxOverhead {
		return malformed("too many chunk extension bytes")
	}
	b.left, b.phase = size, wantData
	if size == 0 {
		b.phase = wantTrailer
	}
	return nil
}

// validExtension accepts white space before a semicolon and any text after it.
func validExtension(ext []byte) bool {
	text := false
	for _, c := range ext {
		if c == ';' {
			text = true
		}
		if !valueByte[c] || !text && c != ' ' && c != '\t' {
			return false
		}
	}
	return true
}

func hexValue(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

func (b *body) trailerLine(line []byte) error {
	if len(line) == 0 {
		b.done = true
		return nil
	}
	b.trailing += len(line)
	if b.trailing > maxTrailer {
		return malformed("trailer section over 16 KiB")
	}
	fields, r := parseFields(b.trailer, string(line)+"\r\n", nil)
	if r != nil {
		return malformed(r.reason)
	}
	// Framing, routing and hop-by-hop fields mean nothing after the body; to heed them there
	// would let a sender change what was already decided.
	if name := fields[len(fields)-1].Name; owned(name, inRequest|inResponse) {
		fields = fields[:len(fields)-1]
	}
	b.trailer = fields
	return nil
}
