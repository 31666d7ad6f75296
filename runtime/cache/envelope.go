package cache

import (
	"encoding/binary"
	"errors"
	"math"
)

// envelope is an entry as the shared store keeps it.
type envelope struct {
	absent  bool // it is known that there is no value
	sliding bool
	shared  bool // near caches do not keep it
	fresh   int64
	end     int64
	ttl     int64   // of a sliding entry, ms
	loadMS  int64   // how long it took to load; 0: unknown
	stamps  []stamp // of its namespace (first) and its tags, when it was written
	value   []byte
	// A lease is somebody's promise to write the entry by then. prior is the entry that was there,
	// encoded; nil when there was none.
	lease bool
	until int64
	prior []byte
}

// stamp is a tag's number at some time. An entry is good only while all its tags have the numbers
// it was written under. The tag of the namespace itself is empty.
type stamp struct {
	tag string
	id  uint64
}

// The first bytes of an envelope.
const (
	envelopeMagic   = 0xC5
	envelopeVersion = 1
)

const (
	flagAbsent = 1 << iota
	flagSliding
	flagShared
	flagLease
	flagPrior
	allFlags = flagPrior<<1 - 1
)

const (
	maxTags = 16
	maxTag  = 128
)

// encode writes the envelope. Times are milliseconds since 1970.
func (e *envelope) encode() []byte {
	flags := byte(0)
	for _, f := range []struct {
		on  bool
		bit byte
	}{{e.absent, flagAbsent}, {e.sliding, flagSliding}, {e.shared, flagShared}, {e.lease, flagLease}, {e.prior != nil, flagPrior}} {
		if f.on {
			flags |= f.bit
		}
	}
	b := make([]byte, 0, 48+24*len(e.stamps)+len(e.prior)+len(e.value))
	b = append(b, envelopeMagic, envelopeVersion, flags)
	for _, n := range []int64{e.fresh, e.end, e.ttl, e.loadMS, e.until} {
		b = binary.AppendUvarint(b, uint64(max(n, 0)))
	}
	b = binary.AppendUvarint(b, uint64(len(e.stamps)))
	for _, s := range e.stamps {
		b = binary.AppendUvarint(b, uint64(len(s.tag)))
		b = append(b, s.tag...)
		b = binary.BigEndian.AppendUint64(b, s.id)
	}
	if e.prior != nil {
		b = binary.AppendUvarint(b, uint64(len(e.prior)))
		b = append(b, e.prior...)
	}
	return append(b, e.value...)
}

var errEnvelope = errors.New("not an entry of this cache")

// decode reads an envelope. Its byte slices are parts of b.
func decode(b []byte) (*envelope, error) {
	if len(b) < 3 || b[0] != envelopeMagic || b[1] != envelopeVersion || b[2]&^allFlags != 0 {
		return nil, errEnvelope
	}
	e := &envelope{absent: b[2]&flagAbsent != 0, sliding: b[2]&flagSliding != 0, shared: b[2]&flagShared != 0, lease: b[2]&flagLease != 0}
	r := reader{b: b[3:]}
	for _, n := range []*int64{&e.fresh, &e.end, &e.ttl, &e.loadMS, &e.until} {
		*n = r.number()
	}
	count := r.number()
	if count > maxTags+1 {
		return nil, errEnvelope
	}
	if count > 0 {
		e.stamps = make([]stamp, count)
	}
	for i := range e.stamps {
		e.stamps[i].tag = string(r.bytes(r.number()))
		if id := r.bytes(8); len(id) == 8 {
			e.stamps[i].id = binary.BigEndian.Uint64(id)
		}
	}
	if b[2]&flagPrior != 0 {
		e.prior = r.bytes(r.number())
	}
	if r.bad {
		return nil, errEnvelope
	}
	e.value = r.b
	return e, nil
}

// reader takes pieces off the front. After the first that is not there it is bad.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() int64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 || n > math.MaxInt64 {
		r.bad = true
		return 0
	}
	r.b = r.b[size:]
	return int64(n)
}

func (r *reader) bytes(n int64) []byte {
	if n < 0 || n > int64(len(r.b)) {
		r.bad = true
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}
