package lane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Progress is what is durable of a lane: the body of the record an owner commits. It says of each
// record whether it is resolved, in as few bytes as possible, and holds what must outlive an owner.
type Progress struct {
	Watermark uint64 // all before it is resolved
	Resolved  ranges // beyond it
	Parked    []ParkedKey
	Tries     []Try    // of unresolved records that were delivered more than once
	Gaps      []string // keys whose next message tells of a gap
}

// Try is how often an unresolved record was delivered.
type Try struct {
	Position uint64
	Count    int
}

// Range is positions From to To, both included.
type Range struct{ From, To uint64 }

// ranges are sorted and apart.
type ranges []Range

func (rs ranges) has(position uint64) bool {
	i, exact := slices.BinarySearchFunc(rs, position, func(r Range, p uint64) int {
		switch {
		case r.To < p:
			return -1
		case r.From > p:
			return 1
		}
		return 0
	})
	return exact && i < len(rs)
}

// parkedOverhead is what a parked key takes in a record besides its text, at most.
const parkedOverhead = 2 + 3*binary.MaxVarintLen64

const (
	progressVersion = 1
	maxTries        = 32
	maxGapBytes     = 256
)

// Acks is how many records were resolved since TakeProgress; Dirty whether anything changed.
func (l *Lane) Acks() int   { return l.acks }
func (l *Lane) Dirty() bool { return l.dirty }

// TakeProgress encodes what is to be committed. When not all of it fits into MaxProgress, resolved records
// are left out, the last ones first: after a crash they would be delivered again. The lane then takes no
// new records until they fit.
func (l *Lane) TakeProgress() []byte {
	l.acks, l.dirty = 0, false
	b := make([]byte, 0, 64)
	b = append(b, progressVersion)
	b = binary.AppendUvarint(b, l.Watermark())
	parked := l.Parked()
	b = binary.AppendUvarint(b, uint64(len(parked)))
	for _, k := range parked {
		b = appendText(b, k.Key)
		b = binary.AppendUvarint(b, k.Since)
		b = binary.AppendUvarint(b, k.From)
		b = binary.AppendUvarint(b, k.Count)
	}
	b = l.appendTries(b)
	b = l.appendGaps(b)
	last := l.Watermark()
	squeezed := false
	note := func(from, to uint64) bool {
		if len(b)+2*binary.MaxVarintLen64 > l.opts.MaxProgress {
			squeezed = true
			return false
		}
		b = binary.AppendUvarint(b, from-last)
		b = binary.AppendUvarint(b, to-from)
		last = to
		return true
	}
	l.window.resolved(note)
	for _, r := range l.resolvedBefore { // not read again yet
		if r.To >= l.window.next && !note(max(r.From, l.window.next), r.To) {
			break
		}
	}
	l.squeezed = squeezed
	return b
}

// Redirty says that what TakeProgress returned was not committed.
func (l *Lane) Redirty() { l.dirty = true }

func (l *Lane) appendTries(b []byte) []byte {
	var tries []Try
	for i := 0; i < l.cursor && len(tries) < maxTries; i++ {
		if e := l.window.at(i); e != nil && e.attempts > 0 {
			tries = append(tries, Try{e.rec.Position, e.attempts})
		}
	}
	for position, n := range l.tries { // not read again yet
		if len(tries) < maxTries && position >= l.window.next {
			tries = append(tries, Try{position, n})
		}
	}
	b = binary.AppendUvarint(b, uint64(len(tries)))
	for _, t := range tries {
		b = binary.AppendUvarint(b, t.Position-l.Watermark())
		b = binary.AppendUvarint(b, uint64(t.Count))
	}
	return b
}

func (l *Lane) appendGaps(b []byte) []byte {
	var keys []string
	room := maxGapBytes
	for k := range l.gaps {
		if room -= len(k) + 2; room < 0 {
			break
		}
		keys = append(keys, k)
	}
	slices.Sort(keys)
	b = binary.AppendUvarint(b, uint64(len(keys)))
	for _, k := range keys {
		b = appendText(b, k)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errProgress = errors.New("the progress record of a partition cannot be read")

// ParseProgress reads what TakeProgress wrote.
func ParseProgress(b []byte) (p Progress, err error) {
	if len(b) == 0 {
		return p, fmt.Errorf("%w: it is empty", errProgress)
	}
	if b[0] != progressVersion {
		return p, fmt.Errorf("%w: it has version %d, this program knows %d", errProgress, b[0], progressVersion)
	}
	r := reader{b: b[1:]}
	p.Watermark = r.number()
	for range r.count() {
		k := ParkedKey{Key: r.text(), Since: r.number(), From: r.number(), Count: r.number()}
		p.Parked = append(p.Parked, k)
	}
	for range r.count() {
		p.Tries = append(p.Tries, Try{p.Watermark + r.number(), int(min(r.number(), 1<<20))})
	}
	for range r.count() {
		p.Gaps = append(p.Gaps, r.text())
	}
	last := p.Watermark
	for len(r.b) > 0 && !r.bad {
		from := last + r.number()
		to := from + r.number()
		if from < last || to < from || len(p.Resolved) > 0 && from <= p.Resolved[len(p.Resolved)-1].To {
			r.bad = true
		}
		p.Resolved = append(p.Resolved, Range{from, to})
		last = to
	}
	if r.bad {
		return Progress{}, errProgress
	}
	return p, nil
}

// reader takes a record apart; bad is set once something does not fit.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count is a number of things of which each takes a byte at least.
func (r *reader) count() uint64 {
	n := r.number()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return n
}

func (r *reader) text() string {
	n := r.count()
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

// Encode writes a progress as a lane would: for one that is moved while no lane runs.
func (p Progress) Encode() []byte {
	l := New(Options{MaxProgress: 1 << 20}, p)
	return l.TakeProgress()
}
