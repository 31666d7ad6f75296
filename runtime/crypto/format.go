package crypto

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// The form of an encrypted document, dapr.io/enc/v1. It begins with three lines of text, each ended
// by a line feed: the scheme's name; a JSON object, the manifest; the base64 of a MAC over the first
// two. Behind them are the segments: 64 KiB of plaintext each, the last mostly less, with a tag of 16
// bytes. An empty document is its header alone, as Dapr writes it, so nothing tells of a document that
// was cut off right behind its header that there was more; an empty segment is accepted too.
//
// A key of 32 random bytes, the file key, is made for each document and stands in the manifest,
// wrapped with a key of the provider. The keys in use come from it by HKDF-SHA-256: the one of the
// MAC with the info "header" and no salt, the one of the segments with the info "payload" and the
// manifest's nonce prefix as salt. A segment's nonce is the prefix, the segment's number (4 bytes)
// and one byte that is 1 for the last, so that segments cannot be left out, moved or added.
const (
	scheme      = "dapr.io/enc/v1"
	fileKeySize = 32
	prefixSize  = 7
	segmentSize = 64 << 10
	tagSize     = 16
	// maxManifest bounds the second line. Key names and wrapped keys take some hundred bytes.
	maxManifest = 48 << 10
)

// macLine is the length of the third line without its end.
var macLine = base64.StdEncoding.EncodedLen(sha256.Size)

// manifest is the second line.
type manifest struct {
	Key     string `json:"k,omitempty"` // whom to ask for the file key, if that was not left out
	Wrap    int    `json:"kw"`
	Wrapped []byte `json:"wfk"`
	Cipher  int    `json:"cph"`
	Prefix  []byte `json:"np"`
}

// wraps are the algorithms that file keys are wrapped with, by their number less one.
var wraps = []string{"A256KW", "A128CBC-NOPAD", "A192CBC-NOPAD", "A256CBC-NOPAD", "RSA-OAEP-256"}

// aliases are other names for them.
var aliases = map[string]string{"AES": "A256KW", "RSA": "RSA-OAEP-256"}

// Ciphers by their number less one.
var ciphers = []string{"AES-GCM", "CHACHA20-POLY1305"}

// wrapNumber is the number of a wrap algorithm by any of its names, in any case of letters.
func wrapNumber(name string) (int, error) {
	upper := strings.ToUpper(name)
	if full, ok := aliases[upper]; ok {
		upper = full
	}
	if i := slices.Index(wraps, upper); i >= 0 {
		return i + 1, nil
	}
	return 0, fault.New(opEncrypt, fault.Invalid, "key wrapping algorithm %s is not supported; use one of %s, AES (for A256KW) or RSA (for RSA-OAEP-256)", shown(name), strings.Join(wraps, ", "))
}

// cipherNumber is the number of a cipher; the first is what is used when none is named.
func cipherNumber(name string) (int, error) {
	if name == "" {
		return 1, nil
	}
	if i := slices.Index(ciphers, strings.ToUpper(name)); i >= 0 {
		return i + 1, nil
	}
	return 0, fault.New(opEncrypt, fault.Invalid, "data encryption cipher %s is not supported; use %s", shown(name), strings.Join(ciphers, " or "))
}

// header writes the three lines.
func (m *manifest) header(fileKey []byte) ([]byte, error) {
	line, err := json.Marshal(m)
	if err != nil {
		return nil, fault.Wrap(opEncrypt, fault.Internal, err)
	}
	if len(line) > maxManifest {
		return nil, fault.New(opEncrypt, fault.TooLarge, "the header would have %d bytes, more than %d: use a shorter key name", len(line), maxManifest)
	}
	out := make([]byte, 0, len(scheme)+len(line)+macLine+3)
	out = append(append(append(append(out, scheme...), '\n'), line...), '\n')
	mac, err := macOf(fileKey, out)
	if err != nil {
		return nil, err
	}
	return append(base64.StdEncoding.AppendEncode(out, mac), '\n'), nil
}

func macOf(fileKey, lines []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, fileKey, nil, "header", sha256.Size)
	if err != nil {
		return nil, fault.Wrap(opEncrypt, fault.Internal, err)
	}
	m := hmac.New(sha256.New, key)
	m.Write(lines)
	return m.Sum(nil), nil
}

// head is a header that was read. It is not to be trusted before its MAC has been checked.
type head struct {
	manifest
	signed []byte // what the MAC is over
	mac    []byte
}

// errNotOurs is the error of what does not begin as it should.
func errNotOurs(why string) error {
	return fault.New(opDecrypt, fault.Invalid, "this is no encrypted document of the scheme %s: %s", scheme, why)
}

// readHead reads a header from r, whose buffer must hold the longest line. It reads nothing of what
// follows but into the buffer.
func readHead(r *bufio.Reader) (*head, error) {
	first, err := line(r, len(scheme))
	if err != nil {
		return nil, err
	}
	if string(first) != scheme+"\n" {
		return nil, errNotOurs("it begins with something else")
	}
	h := &head{signed: bytes.Clone(first)}
	second, err := line(r, maxManifest)
	if err != nil {
		return nil, err
	}
	h.signed = append(h.signed, second...)
	third, err := line(r, macLine)
	if err != nil {
		return nil, err
	}
	if h.mac, err = base64.StdEncoding.Strict().DecodeString(string(third[:len(third)-1])); err != nil || len(h.mac) != sha256.Size {
		return nil, errNotOurs("its third line is no signature")
	}
	if err := json.Unmarshal(h.signed[len(first):len(h.signed)-1], &h.manifest); err != nil {
		return nil, errNotOurs("its manifest cannot be read")
	}
	switch {
	case h.Wrap < 1 || h.Wrap > len(wraps):
		return nil, errNotOurs("its manifest names an unknown key wrapping algorithm")
	case h.Cipher < 1 || h.Cipher > len(ciphers):
		return nil, errNotOurs("its manifest names an unknown cipher")
	case len(h.Prefix) != prefixSize:
		return nil, errNotOurs("its manifest has a nonce prefix of a wrong length")
	case len(h.Wrapped) == 0:
		return nil, errNotOurs("its manifest has no wrapped key")
	}
	return h, nil
}

// line reads a line with at most that many bytes before its end, which is part of the result. It is
// valid until the next read.
func line(r *bufio.Reader, most int) ([]byte, error) {
	for have := 1; ; have = r.Buffered() + 1 {
		_, err := r.Peek(min(have, most+1)) // waits for more than there is, and for no more than that
		seen, _ := r.Peek(min(r.Buffered(), most+1))
		if i := bytes.IndexByte(seen, '\n'); i >= 0 {
			out, _ := r.Peek(i + 1)
			_, _ = r.Discard(i + 1)
			return out, nil
		}
		switch {
		case len(seen) > most:
			return nil, errNotOurs("a line of its header is too long")
		case call.Ended(err):
			return nil, errNotOurs("it ends in the header")
		case err != nil:
			return nil, err
		}
	}
}

// proves tells whether the file key is the one that the header was made with.
func (h *head) proves(fileKey []byte) error {
	mac, err := macOf(fileKey, h.signed)
	if err != nil {
		return err
	}
	if !hmac.Equal(mac, h.mac) {
		return fault.New(opDecrypt, fault.Invalid, "the document's signature is wrong: its header was changed, or it was encrypted with another key")
	}
	return nil
}

// sealer encrypts or decrypts the segments of one document, in their order.
type sealer struct {
	aead  cipher.AEAD
	nonce [prefixSize + 5]byte
	next  uint64
}

func newSealer(fileKey []byte, m *manifest) (*sealer, error) {
	key, err := hkdf.Key(sha256.New, fileKey, m.Prefix, "payload", fileKeySize)
	if err != nil {
		return nil, fault.Wrap(opEncrypt, fault.Internal, err)
	}
	defer clear(key)
	s := &sealer{}
	copy(s.nonce[:], m.Prefix)
	if m.Cipher == 1 {
		b, err := aes.NewCipher(key)
		if err != nil {
			return nil, fault.Wrap(opEncrypt, fault.Internal, err)
		}
		s.aead, err = cipher.NewGCM(b)
		return s, fault.Wrap(opEncrypt, fault.Internal, err)
	}
	s.aead, err = chacha20poly1305.New(key)
	return s, fault.Wrap(opEncrypt, fault.Internal, err)
}

// turn is the nonce of the next segment. There are 2^32 at most.
func (s *sealer) turn(op fault.Op, last bool) ([]byte, error) {
	if s.next > math.MaxUint32 {
		return nil, fault.New(op, fault.TooLarge, "the document has more than 256 TiB, which the scheme %s cannot hold", scheme)
	}
	binary.BigEndian.PutUint32(s.nonce[prefixSize:], uint32(s.next))
	s.nonce[len(s.nonce)-1] = 0
	if last {
		s.nonce[len(s.nonce)-1] = 1
	}
	s.next++
	return s.nonce[:], nil
}

// seal encrypts plain in its place; there must be room for the tag behind it.
func (s *sealer) seal(plain []byte, last bool) ([]byte, error) {
	nonce, err := s.turn(opEncrypt, last)
	if err != nil {
		return nil, err
	}
	return s.aead.Seal(plain[:0], nonce, plain, nil), nil
}

// open decrypts a segment in its place.
func (s *sealer) open(segment []byte, last bool) ([]byte, error) {
	at := s.next
	nonce, err := s.turn(opDecrypt, last)
	if err != nil {
		return nil, err
	}
	plain, err := s.aead.Open(segment[:0], nonce, segment, nil)
	if err != nil || len(plain) == 0 && at > 0 {
		return nil, fault.New(opDecrypt, fault.Invalid, "segment %d of the document cannot be decrypted: it was changed, or the document was cut off, reordered or added to", at)
	}
	return plain, nil
}
