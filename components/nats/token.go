package nats

import (
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"

	"github.com/mecha-project/mecha/components/fault"
)

// spot is where a scan stands.
type spot struct {
	next  uint64 // the sequence to go on from
	until uint64 // where the stream ended after the first page; 0 before
	begun bool   // beyond until, a key was given:
	last  string // this one
}

// token names a spot in a scan of prefix, with a mark by which it is known again.
func (s *state) token(prefix string, at spot) string {
	b := make([]byte, 8, 8+2*binary.MaxVarintLen64+len(at.last))
	b = binary.AppendUvarint(b, at.next)
	b = binary.AppendUvarint(b, at.until)
	if at.begun {
		b = append(append(b, '+'), at.last...)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte("nats\x00" + s.stream + "\x00" + prefix + "\x00")) // cannot fail
	_, _ = h.Write(b[8:])
	binary.BigEndian.PutUint64(b, h.Sum64())
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseSpot is the inverse of token; the empty one is the beginning.
func (s *state) parseSpot(op fault.Op, prefix, token string) (spot, error) {
	if token == "" {
		return spot{next: 1}, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err == nil && len(b) > 8 {
		var at spot
		b = b[8:]
		var n, m int
		at.next, n = binary.Uvarint(b)
		if n > 0 {
			at.until, m = binary.Uvarint(b[n:])
		}
		if m > 0 {
			if b = b[n+m:]; len(b) > 0 {
				at.begun, at.last = true, string(b[1:])
			}
			if s.token(prefix, at) == token {
				return at, nil
			}
		}
	}
	return spot{}, fault.New(op, fault.Invalid, "the page token is not one of this store and prefix; begin again without one").With(fault.BadToken).WithSent(fault.SentNever)
}
