package h2

import (
	"strconv"
	"strings"

	"golang.org/x/net/http2/hpack"

	"github.com/mecha-project/mecha/runtime/call"
)

// headIn decodes one header block. Only the reader goroutine touches it. Whatever becomes of
// the stream, every block is decoded to its end: the compression state is the connection's.
type headIn struct {
	dec    *hpack.Decoder
	client bool
	limit  int // bytes of a list, counted as RFC 9113 section 10.5.1 says

	// The block being decoded.
	into     *Stream     // pseudo headers go there; nil if only trailers or nothing is kept
	fields   call.Fields // ordinary fields
	size     int
	regular  bool   // an ordinary field was seen
	pseudos  uint8  // which pseudo headers were seen
	trailing bool   // the block is a trailer: no pseudo headers
	bad      string // why the list is malformed
	over     bool   // it is over the limit; the rest was dropped
	length   int64  // content-length; -1 if none
	status   int

	block []byte // fragments of a block in CONTINUATION frames
}

// Pseudo headers as bits.
const (
	sawMethod = 1 << iota
	sawScheme
	sawPath
	sawAuthority
	sawStatus
)

func (h *headIn) init(client bool, limit int) {
	h.client, h.limit = client, limit
	h.dec = hpack.NewDecoder(4096, h.emit)
}

// decode reads a whole block. The error means the connection cannot go on.
func (h *headIn) decode(block []byte, into *Stream, fields call.Fields, trailing bool) *ConnError {
	h.into, h.fields, h.trailing = into, fields, trailing
	h.size, h.regular, h.pseudos, h.bad, h.over, h.length, h.status = 0, false, 0, "", false, -1, 0
	h.dec.SetEmitEnabled(true)
	if _, err := h.dec.Write(block); err != nil {
		return violation(CompressionError, "%v", err)
	}
	if err := h.dec.Close(); err != nil {
		return violation(CompressionError, "%v", err)
	}
	if h.bad == "" && !trailing && !h.over {
		h.bad = h.missing()
	}
	h.into = nil
	return nil
}

// missing names the pseudo header a complete message lacks.
func (h *headIn) missing() string {
	if h.client {
		if h.pseudos&sawStatus == 0 {
			return "no :status"
		}
		return ""
	}
	if h.pseudos&(sawMethod|sawScheme|sawPath) != sawMethod|sawScheme|sawPath {
		return "a request needs :method, :scheme and :path"
	}
	return ""
}

func (h *headIn) emit(f hpack.HeaderField) {
	if h.size += int(f.Size()); h.size > h.limit {
		h.over = true
		h.dec.SetEmitEnabled(false)
		return
	}
	switch {
	case h.bad != "":
	case len(f.Name) > 0 && f.Name[0] == ':':
		h.pseudo(f.Name, f.Value)
	default:
		h.ordinary(f.Name, f.Value)
	}
}

func (h *headIn) pseudo(name, value string) {
	var bit uint8
	switch name {
	case ":method":
		bit = sawMethod
	case ":scheme":
		bit = sawScheme
	case ":path":
		bit = sawPath
	case ":authority":
		bit = sawAuthority
	case ":status":
		bit = sawStatus
	}
	switch {
	case bit == 0 || h.trailing || (bit == sawStatus) != h.client:
		h.bad = "unexpected pseudo header " + strconv.Quote(name)
		return
	case h.regular:
		h.bad = "pseudo header " + name + " behind an ordinary one"
		return
	case h.pseudos&bit != 0:
		h.bad = "two of " + name
		return
	case !validValue(value) || value == "" && bit != sawAuthority:
		h.bad = "bad value of " + name
		return
	}
	h.pseudos |= bit
	switch bit {
	case sawStatus:
		h.status, _ = strconv.Atoi(value)
		if len(value) != 3 || h.status < 100 {
			h.bad = "bad :status"
		}
	case sawMethod:
		h.setMethod(value)
	default:
		h.setTarget(bit, value)
	}
}

func (h *headIn) setMethod(v string) {
	for i := 0; i < len(v); i++ {
		if nameBytes[v[i]] == 0 {
			h.bad = "bad :method"
			return
		}
	}
	if v == "CONNECT" {
		h.bad = "CONNECT is not served"
		return
	}
	if h.into != nil {
		h.into.method = v
	}
}

func (h *headIn) setTarget(bit uint8, v string) {
	if h.into == nil {
		return
	}
	switch bit {
	case sawScheme:
		h.into.scheme = v
	case sawPath:
		h.into.path = v
	case sawAuthority:
		h.into.authority = v
	}
}

func (h *headIn) ordinary(name, value string) {
	h.regular = true
	if !validName(name) || !validValue(value) {
		h.bad = "bad header " + strconv.Quote(name)
		return
	}
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade":
		h.bad = name + " has no place in HTTP/2"
		return
	case "te":
		if value != "trailers" && !h.client {
			h.bad = "te is not trailers"
			return
		}
	case "content-length":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || strings.HasPrefix(value, "+") || n < 0 || (h.length >= 0 && n != h.length) {
			h.bad = "bad content-length"
			return
		}
		h.length = n
	}
	h.fields = append(h.fields, call.Field{Name: name, Value: value})
}

func validName(name string) bool {
	for i := 0; i < len(name); i++ {
		if nameBytes[name[i]] != 1 {
			return false
		}
	}
	return name != ""
}

func validValue(v string) bool {
	for i := 0; i < len(v); i++ {
		if badValueByte(v[i]) {
			return false
		}
	}
	return true
}
