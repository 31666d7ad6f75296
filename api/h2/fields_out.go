package h2

import (
	"hash/maphash"
	"strings"

	"github.com/mecha-project/mecha/runtime/call"
)

// encoder is the sending half of header compression (RFC 7541), made for the few headers of
// RPCs: a field goes into the dynamic table when it comes a second time, so that values that
// vary (deadlines, trace ids) never push out those that repeat, and costs one slot lookup
// from then on. Huffman coding is left out: it trades our CPU for bytes on a short way.
//
// It is guarded by conn.mu: order of encoding is order on the wire.
type encoder struct {
	seed    maphash.Seed
	slots   [encoderSets][2]slot
	turn    uint
	sizes   []uint32 // of live entries, oldest first, from sizes[dead:]
	dead    int
	added   uint64 // entries ever added; an entry's number is added at its insertion
	size    uint32 // of live entries
	max     uint32 // of the table
	resized bool   // the peer must be told of max
}

const (
	encoderSets = 64
	ourTableMax = 4096 // we use no more, whatever the peer allows
	entryExtra  = 32   // RFC 7541 section 4.1
	indexable   = 512  // longer fields are not worth a place
	staticCount = 61
)

// slot remembers a field. A field may be in either slot of its set.
type slot struct {
	hash        uint64
	name, value string // set when it is in the table
	number      uint64 // 1-based number of its entry; 0 means it was only seen
}

func (e *encoder) init() {
	e.seed = maphash.MakeSeed()
	e.max = ourTableMax
}

// setMax obeys the peer's SETTINGS_HEADER_TABLE_SIZE. A table that shrank and grows before the
// peer was told stays small: telling both sizes in one block is allowed, and more than some
// decoders understand.
func (e *encoder) setMax(n uint32) {
	if n = min(n, ourTableMax); n == e.max || (e.resized && n > e.max) {
		return
	}
	e.max, e.resized = n, true
	e.evict(0)
}

// evict makes room for an entry of the given size.
func (e *encoder) evict(size uint32) {
	for e.dead < len(e.sizes) && e.size+size > e.max {
		e.size -= e.sizes[e.dead]
		e.dead++
	}
	if e.dead > 64 && e.dead*2 > len(e.sizes) {
		e.sizes = e.sizes[:copy(e.sizes, e.sizes[e.dead:])]
		e.dead = 0
	}
}

// oldest is the number of the oldest live entry.
func (e *encoder) oldest() uint64 { return e.added - uint64(len(e.sizes)-e.dead) + 1 }

// begin starts a header block.
func (e *encoder) begin(b []byte) []byte {
	if !e.resized {
		return b
	}
	e.resized = false
	return appendInt(b, 0x20, 5, uint64(e.max))
}

// fields encodes what may travel on an HTTP/2 connection; other fields are left out, for a
// malformed one would cost the peer's whole stream.
func (e *encoder) fields(b []byte, fs call.Fields) []byte {
	for i := range fs {
		b = e.field(b, fs[i].Name, fs[i].Value)
	}
	return b
}

// field encodes one ordinary field.
func (e *encoder) field(b []byte, name, value string) []byte {
	hash := e.hash(name, value)
	if out, ok := e.known(b, hash, name, value); ok {
		return out
	}
	clean, ok := cleanName(name)
	if !ok {
		return b
	}
	cleanV := cleanValue(value)
	if clean != name || cleanV != value {
		hash = 0 // would not be found by what the caller says
	}
	return e.unknown(b, hash, clean, cleanV, staticName(clean))
}

// pseudo encodes a pseudo header whose name has the given static index.
func (e *encoder) pseudo(b []byte, index int, name, value string) []byte {
	hash := e.hash(name, value)
	if out, ok := e.known(b, hash, name, value); ok {
		return out
	}
	clean := cleanValue(value)
	if clean != value {
		hash = 0
	}
	return e.unknown(b, hash, name, clean, index)
}

// Static entries that are whole fields of ours.
const (
	staticGet   = 2
	staticPost  = 3
	staticHTTP  = 6
	staticHTTPS = 7
	staticOK    = 8
	namePath    = 4
	nameMethod  = 2
	nameScheme  = 6
	nameStatus  = 8
	nameAuth    = 1
)

func appendStatic(b []byte, index int) []byte { return append(b, 0x80|byte(index)) }

func (e *encoder) hash(name, value string) uint64 {
	if len(name)+len(value) > indexable {
		return 0
	}
	return maphash.String(e.seed, value) ^ maphash.String(e.seed, name)<<1 | 1
}

// known encodes a field that is in the table.
func (e *encoder) known(b []byte, hash uint64, name, value string) ([]byte, bool) {
	if hash == 0 {
		return b, false
	}
	set := &e.slots[hash>>8%encoderSets]
	for i := range set {
		s := &set[i]
		if s.hash == hash && s.number != 0 && s.number >= e.oldest() && s.value == value && s.name == name {
			return appendInt(b, 0x80, 7, staticCount+1+(e.added-s.number)), true
		}
	}
	return b, false
}

// place finds the slot of a field that is not in the table: the one that has seen it, else one
// to remember it in. A live entry is not given up for a newcomer, save now and then: nil.
func (e *encoder) place(hash uint64) *slot {
	set := &e.slots[hash>>8%encoderSets]
	for i := range set {
		if set[i].hash == hash {
			return &set[i]
		}
	}
	for i := range set {
		if set[i].hash == 0 {
			return &set[i]
		}
	}
	e.turn++ // not always the same one, or two fields could push each other out for ever
	for i := range uint(2) {
		if s := &set[(e.turn+i)%2]; s.number == 0 || s.number < e.oldest() {
			return s
		}
	}
	if hash&0xf0 == 0 {
		return &set[hash>>1&1]
	}
	return nil
}

// unknown encodes a field that is not, and adds it when it comes again.
func (e *encoder) unknown(b []byte, hash uint64, name, value string, index int) []byte {
	pattern, bits := byte(0x00), 4
	switch {
	case secret(name):
		pattern = 0x10 // never indexed, by nobody on the way
	case hash == 0:
	default:
		s := e.place(hash)
		size := uint32(len(name) + len(value) + entryExtra)
		switch {
		case s == nil:
		case s.hash != hash:
			*s = slot{hash: hash}
		case size <= e.max:
			e.evict(size)
			e.sizes = append(e.sizes, size)
			e.size += size
			e.added++
			s.name, s.value, s.number = strings.Clone(name), strings.Clone(value), e.added
			pattern, bits = 0x40, 6
		}
	}
	if index > 0 {
		b = appendInt(b, pattern, bits, uint64(index))
	} else {
		b = appendString(append(b, pattern), name)
	}
	return appendString(b, value)
}

func appendInt(b []byte, pattern byte, bits int, n uint64) []byte {
	top := uint64(1)<<bits - 1
	if n < top {
		return append(b, pattern|byte(n))
	}
	b = append(b, pattern|byte(top))
	for n -= top; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func appendString(b []byte, s string) []byte {
	b = appendInt(b, 0, 7, uint64(len(s)))
	return append(b, s...)
}

// secret names hold credentials: compressing them beside what an attacker chose tells about
// them.
func secret(name string) bool {
	switch name {
	case "authorization", "proxy-authorization", "cookie", "set-cookie", "dapr-api-token":
		return true
	}
	return false
}

// staticName is a name's index in the static table, for names RPCs use; 0 means none.
func staticName(name string) int {
	switch name {
	case "content-type":
		return 31
	case "user-agent":
		return 58
	case "authorization":
		return 23
	case "content-length":
		return 28
	case "date":
		return 33
	case "accept-encoding":
		return 16
	}
	return 0
}

// cleanName gives the name as it may travel; false if it may not.
func cleanName(name string) (string, bool) {
	upper := false
	for i := 0; i < len(name); i++ {
		c := nameBytes[name[i]]
		if c == 0 {
			return "", false
		}
		upper = upper || c == 2
	}
	if upper {
		name = strings.ToLower(name)
	}
	return name, name != "" && !hopByHop(name)
}

// cleanValue makes control bytes spaces, so that a value can never become something else on a
// wire further on.
func cleanValue(v string) string {
	for i := 0; i < len(v); i++ {
		if badValueByte(v[i]) {
			return strings.Map(func(r rune) rune {
				if r < 0x80 && badValueByte(byte(r)) {
					return ' '
				}
				return r
			}, v)
		}
	}
	return v
}

func badValueByte(c byte) bool { return c == '\r' || c == '\n' || c == 0 }

// hopByHop names belong to HTTP/1.1 connections and make an HTTP/2 message malformed.
func hopByHop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "host":
		return true
	}
	return false
}

// nameBytes is 1 for bytes allowed in names on the wire, 2 for upper-case letters.
var nameBytes = func() (t [256]byte) {
	for c := '0'; c <= '9'; c++ {
		t[c] = 1
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = 1, 2
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] = 1
	}
	return t
}()
