package localkeys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/emmansun/gmsm/sm4"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// symmetric is one algorithm with a shared key. Lengths have been checked when seal and open are
// called.
type symmetric struct {
	key, nonce, tag int // bytes; 0: none
	// unit is what the length of a plaintext must be a multiple of, and least its least; 0: any.
	unit, least int
	seal        func(key, nonce, plain, extra []byte) (block.Sealed, error)
	// open reports false for what was not made by seal with the same key.
	open func(key, nonce []byte, s block.Sealed, extra []byte) ([]byte, bool, error)
}

// symmetrics are the algorithms by name.
var symmetrics = map[string]symmetric{
	"A128CBC":       cbc(16, aes.NewCipher),
	"A192CBC":       cbc(24, aes.NewCipher),
	"A256CBC":       cbc(32, aes.NewCipher),
	"A128CBC-NOPAD": cbcBare(16, aes.NewCipher),
	"A192CBC-NOPAD": cbcBare(24, aes.NewCipher),
	"A256CBC-NOPAD": cbcBare(32, aes.NewCipher),
	"A128GCM":       aead(16, 12, gcm(aes.NewCipher)),
	"A192GCM":       aead(24, 12, gcm(aes.NewCipher)),
	"A256GCM":       aead(32, 12, gcm(aes.NewCipher)),
	"A128CBC-HS256": cbcHMAC(16, sha256.New),
	"A192CBC-HS384": cbcHMAC(24, sha512.New384),
	"A256CBC-HS512": cbcHMAC(32, sha512.New),
	"A128KW":        keyWrap(16),
	"A192KW":        keyWrap(24),
	"A256KW":        keyWrap(32),
	"C20P":          aead(32, 12, chacha20poly1305.New),
	"C20PKW":        aead(32, 12, chacha20poly1305.New),
	"XC20P":         aead(32, 24, chacha20poly1305.NewX),
	"XC20PKW":       aead(32, 24, chacha20poly1305.NewX),
	"SM4-CBC":       cbc(16, sm4.NewCipher),
	"SM4-CBC-NOPAD": cbcBare(16, sm4.NewCipher),
	"SM4-GCM":       aead(16, 12, gcm(sm4.NewCipher)),
}

// fits checks the key and what comes with a message.
func (a *symmetric) fits(op fault.Op, k *key, u block.KeyUse) error {
	if k.secret == nil || len(k.secret) != a.key {
		return k.unfit(op, u.Algorithm, fmt.Sprintf("a symmetric key of %d bytes", a.key))
	}
	if a.nonce > 0 && len(u.Nonce) != a.nonce {
		return fault.New(op, fault.Invalid, "%s takes a nonce of %d bytes, not of %d", u.Algorithm, a.nonce, len(u.Nonce))
	}
	return nil
}

func (a *symmetric) encrypt(op fault.Op, k *key, u block.KeyUse, plain []byte) (block.Sealed, error) {
	if err := a.fits(op, k, u); err != nil {
		return block.Sealed{}, err
	}
	if a.unit > 0 && (len(plain)%a.unit != 0 || len(plain) < a.least) {
		return block.Sealed{}, fault.New(op, fault.Invalid, "%s takes %d bytes or more, in multiples of %d, not %d", u.Algorithm, a.least, a.unit, len(plain))
	}
	s, err := a.seal(k.secret, u.Nonce, plain, u.AssociatedData)
	return s, fault.Wrap(op, fault.Internal, err)
}

func (a *symmetric) decrypt(op fault.Op, k *key, u block.KeyUse, s block.Sealed) ([]byte, error) {
	if err := a.fits(op, k, u); err != nil {
		return nil, err
	}
	if len(s.Tag) != a.tag {
		return nil, fault.New(op, fault.Invalid, "%s has a tag of %d bytes, not of %d", u.Algorithm, a.tag, len(s.Tag))
	}
	plain, ok, err := a.open(k.secret, u.Nonce, s, u.AssociatedData)
	switch {
	case err != nil:
		return nil, fault.Wrap(op, fault.Internal, err)
	case !ok:
		return nil, undecipherable(op, u)
	}
	return plain, nil
}

// undecipherable is the one error of data that do not decrypt: more would help who guesses.
func undecipherable(op fault.Op, u block.KeyUse) error {
	return fault.New(op, fault.Invalid, "the data cannot be decrypted with key %q and %s: another key, algorithm, nonce or associated data, or the data were changed", u.Key, u.Algorithm)
}

type newBlock func(key []byte) (cipher.Block, error)

// gcm is an AEAD of a block cipher.
func gcm(cipherOf newBlock) func(key []byte) (cipher.AEAD, error) {
	return func(key []byte) (cipher.AEAD, error) {
		b, err := cipherOf(key)
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(b)
	}
}

// aead keeps the tag apart, at the end of what the library returns.
func aead(size, nonce int, of func(key []byte) (cipher.AEAD, error)) symmetric {
	const tag = 16
	return symmetric{key: size, nonce: nonce, tag: tag,
		seal: func(key, nonce, plain, extra []byte) (block.Sealed, error) {
			c, err := of(key)
			if err != nil {
				return block.Sealed{}, err
			}
			out := c.Seal(make([]byte, 0, len(plain)+tag), nonce, plain, extra)
			return block.Sealed{Data: out[:len(plain):len(plain)], Tag: out[len(plain):]}, nil
		},
		open: func(key, nonce []byte, s block.Sealed, extra []byte) ([]byte, bool, error) {
			c, err := of(key)
			if err != nil {
				return nil, false, err
			}
			joined := append(append(make([]byte, 0, len(s.Data)+tag), s.Data...), s.Tag...)
			plain, err := c.Open(joined[:0], nonce, joined, extra)
			return plain, err == nil, nil
		}}
}

// cbc pads as PKCS#7 says.
func cbc(size int, of newBlock) symmetric {
	a := cbcBare(size, of)
	bare := a
	a.unit = 0
	a.seal = func(key, nonce, plain, extra []byte) (block.Sealed, error) {
		return bare.seal(key, nonce, pad(plain), extra)
	}
	a.open = func(key, nonce []byte, s block.Sealed, extra []byte) ([]byte, bool, error) {
		padded, ok, err := bare.open(key, nonce, s, extra)
		if err != nil || !ok {
			return nil, false, err
		}
		plain, ok := unpad(padded)
		return plain, ok, nil
	}
	return a
}

// cbcBare takes whole blocks only.
func cbcBare(size int, of newBlock) symmetric {
	return symmetric{key: size, nonce: aes.BlockSize, unit: aes.BlockSize, least: aes.BlockSize,
		seal: func(key, nonce, plain, _ []byte) (block.Sealed, error) {
			b, err := of(key)
			if err != nil {
				return block.Sealed{}, err
			}
			out := make([]byte, len(plain))
			cipher.NewCBCEncrypter(b, nonce).CryptBlocks(out, plain)
			return block.Sealed{Data: out}, nil
		},
		open: func(key, nonce []byte, s block.Sealed, _ []byte) ([]byte, bool, error) {
			if len(s.Data) == 0 || len(s.Data)%aes.BlockSize != 0 {
				return nil, false, nil
			}
			b, err := of(key)
			if err != nil {
				return nil, false, err
			}
			out := make([]byte, len(s.Data))
			cipher.NewCBCDecrypter(b, nonce).CryptBlocks(out, s.Data)
			return out, true, nil
		}}
}

func pad(plain []byte) []byte {
	n := aes.BlockSize - len(plain)%aes.BlockSize
	out := make([]byte, len(plain)+n)
	copy(out, plain)
	for i := len(plain); i < len(out); i++ {
		out[i] = byte(n)
	}
	return out
}

// unpad looks at the whole last block whatever it holds, so that its time tells nothing of it.
func unpad(padded []byte) ([]byte, bool) {
	last := padded[len(padded)-aes.BlockSize:]
	n := int(last[aes.BlockSize-1])
	good := subtle.ConstantTimeLessOrEq(1, n) & subtle.ConstantTimeLessOrEq(n, aes.BlockSize)
	for i, b := range last {
		inside := subtle.ConstantTimeLessOrEq(aes.BlockSize-n, i)
		good &= subtle.ConstantTimeSelect(inside, subtle.ConstantTimeByteEq(b, byte(n)), 1)
	}
	if good != 1 {
		return nil, false
	}
	return padded[:len(padded)-n], true
}

// cbcHMAC is AES-CBC with HMAC of RFC 7518, section 5.2: half bytes of the key authenticate, the
// rest encrypt.
func cbcHMAC(half int, of func() hash.Hash) symmetric {
	bare := cbc(half, aes.NewCipher)
	tagOf := func(key, nonce, data, extra []byte) []byte {
		m := hmac.New(of, key[:half])
		m.Write(extra)
		m.Write(nonce)
		m.Write(data)
		m.Write(binary.BigEndian.AppendUint64(nil, uint64(len(extra))*8))
		return m.Sum(nil)[:half]
	}
	return symmetric{key: 2 * half, nonce: aes.BlockSize, tag: half,
		seal: func(key, nonce, plain, extra []byte) (block.Sealed, error) {
			s, err := bare.seal(key[half:], nonce, plain, nil)
			if err != nil {
				return s, err
			}
			s.Tag = tagOf(key, nonce, s.Data, extra)
			return s, nil
		},
		open: func(key, nonce []byte, s block.Sealed, extra []byte) ([]byte, bool, error) {
			if !hmac.Equal(s.Tag, tagOf(key, nonce, s.Data, extra)) {
				return nil, false, nil
			}
			return bare.open(key[half:], nonce, s, nil)
		}}
}

// wrapIV is the initial value of RFC 3394, section 2.2.3.1, which proves that a key is whole.
var wrapIV = [8]byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6}

// keyWrap is AES key wrap, RFC 3394.
func keyWrap(size int) symmetric {
	const unit = 8
	return symmetric{key: size, unit: unit, least: 2 * unit,
		seal: func(key, _, plain, _ []byte) (block.Sealed, error) {
			b, err := aes.NewCipher(key)
			if err != nil {
				return block.Sealed{}, err
			}
			out := append(wrapIV[:unit:unit], plain...)
			n := len(plain) / unit
			var one [2 * unit]byte
			for step := 1; step <= 6*n; step++ {
				r := out[unit*((step-1)%n+1):][:unit]
				copy(one[:unit], out[:unit])
				copy(one[unit:], r)
				b.Encrypt(one[:], one[:])
				binary.BigEndian.PutUint64(out, binary.BigEndian.Uint64(one[:])^uint64(step))
				copy(r, one[unit:])
			}
			return block.Sealed{Data: out}, nil
		},
		open: func(key, _ []byte, s block.Sealed, _ []byte) ([]byte, bool, error) {
			if len(s.Data)%unit != 0 || len(s.Data) < 3*unit {
				return nil, false, nil
			}
			b, err := aes.NewCipher(key)
			if err != nil {
				return nil, false, err
			}
			out := append([]byte(nil), s.Data...)
			n := len(out)/unit - 1
			var one [2 * unit]byte
			for step := 6 * n; step > 0; step-- {
				r := out[unit*((step-1)%n+1):][:unit]
				binary.BigEndian.PutUint64(one[:], binary.BigEndian.Uint64(out)^uint64(step))
				copy(one[unit:], r)
				b.Decrypt(one[:], one[:])
				copy(out, one[:unit])
				copy(r, one[unit:])
			}
			if subtle.ConstantTimeCompare(out[:unit], wrapIV[:]) != 1 {
				return nil, false, nil
			}
			return out[unit:], true, nil
		}}
}
