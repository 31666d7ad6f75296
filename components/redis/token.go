package redis

import (
	"encoding/base64"
	"encoding/binary"
	"hash/fnv"
	"slices"
	"strconv"

	"github.com/mecha-project/mecha/components/fault"
)

// spot is where a scan stands.
type spot struct {
	node   int      // which master of a cluster
	cursor uint64   // the server's
	server uint64   // the process whose cursor it is; 0 before the first step there
	layout uint64   // of the cluster when the scan began; 0 before, and outside of one
	given  []uint64 // keys that were given of the step at cursor
}

// gave tells whether a key was given before in the step that is repeated.
func (at *spot) gave(key string) bool {
	return len(at.given) > 0 && slices.Contains(at.given, fingerprint(key))
}

// token names a spot in a scan of prefix, with a mark by which it is known again.
func (s *state) token(prefix string, at spot) string {
	b := make([]byte, 8, 8+4*binary.MaxVarintLen64+8*len(at.given))
	for _, n := range []uint64{uint64(at.node), at.cursor, at.server, at.layout} {
		b = binary.AppendUvarint(b, n)
	}
	for _, n := range at.given {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte("redis\x00" + strconv.Itoa(s.conn.config.DB) + "\x00" + prefix + "\x00")) // cannot fail
	_, _ = h.Write(b[8:])
	binary.BigEndian.PutUint64(b, h.Sum64())
	return base64.RawURLEncoding.EncodeToString(b)
}

// parseSpot is the inverse of token; the empty one is the beginning.
func (s *state) parseSpot(op fault.Op, prefix, token string) (spot, error) {
	if token == "" {
		return spot{}, nil
	}
	if at, ok := readSpot(token); ok && s.token(prefix, at) == token {
		return at, nil
	}
	return spot{}, badToken(op, "the page token is not one of this store and prefix; begin again without one")
}

func readSpot(token string) (at spot, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(b) < 8 {
		return spot{}, false
	}
	b = b[8:]
	var numbers [4]uint64
	for i := range numbers {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			return spot{}, false
		}
		numbers[i], b = n, b[size:]
	}
	const mostNodes = 1 << 14 // slots there are
	if numbers[0] >= mostNodes || len(b)%8 != 0 {
		return spot{}, false
	}
	at = spot{node: int(numbers[0]), cursor: numbers[1], server: numbers[2], layout: numbers[3]}
	for ; len(b) > 0; b = b[8:] {
		at.given = append(at.given, binary.BigEndian.Uint64(b))
	}
	return at, true
}

func badToken(op fault.Op, format string, args ...any) *fault.Error {
	return fault.New(op, fault.Invalid, format, args...).With(fault.BadToken).WithSent(fault.SentNever)
}
