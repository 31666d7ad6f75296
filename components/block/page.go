package block

import (
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"

	"github.com/mecha-project/mecha/components/fault"
)

// PageBytes is a good size of a page of StateScan, in bytes of keys and values: a page that has
// reached it ends, whatever limit says.
const PageBytes = 4 << 20

// PageToken names the page of a scan of prefix that begins behind the key last, for stores that
// go through their keys in an order. last begins with prefix, which is not part of the token.
func PageToken(prefix, last string) string {
	b := binary.BigEndian.AppendUint32(nil, pageSum(prefix, last))
	return base64.RawURLEncoding.EncodeToString(append(b, last[len(prefix):]...))
}

// PageAfter is the key that a token of PageToken names; the empty token names none. Any other
// text, and a token of another prefix, is fault.Invalid with fault.BadToken. Whoever makes up a
// token that passes has named another place in the same scan.
func PageAfter(op fault.Op, prefix, token string) (last string, begun bool, err error) {
	if token == "" {
		return "", false, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err == nil && len(b) >= 4 {
		last = prefix + string(b[4:])
		if binary.BigEndian.Uint32(b) == pageSum(prefix, last) {
			return last, true, nil
		}
	}
	return "", false, fault.New(op, fault.Invalid, "the page token is not one of this scan; begin again without a token").
		With(fault.BadToken).WithSent(fault.SentNever)
}

// pageSum tells tokens from other text, and those of one prefix from those of another.
func pageSum(prefix, last string) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte(prefix+"\x00")), crc32.IEEETable, []byte(last))
}
