package localkeys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" // RSA-OAEP is defined with it, where it does no harm
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"hash"
	"math/big"

	"github.com/emmansun/gmsm/sm2"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// asymmetric is one algorithm that encrypts with key pairs.
type asymmetric struct {
	encrypt func(op fault.Op, k *key, u block.KeyUse, plain []byte) ([]byte, error)
	decrypt func(op fault.Op, k *key, u block.KeyUse, data []byte) ([]byte, error)
}

// asymmetrics are the algorithms by name.
var asymmetrics = map[string]asymmetric{
	"RSA1_5":       rsaOld,
	"RSA-OAEP":     oaep(sha1.New),
	"RSA-OAEP-256": oaep(sha256.New),
	"RSA-OAEP-384": oaep(sha512.New384),
	"RSA-OAEP-512": oaep(sha512.New),
	"SM2":          sm2Encryption,
}

const wantRSA = "an RSA key"

// oaep is RSA-OAEP; associated data are its label.
func oaep(of func() hash.Hash) asymmetric {
	return asymmetric{
		encrypt: func(op fault.Op, k *key, u block.KeyUse, plain []byte) ([]byte, error) {
			public, ok := k.public.(*rsa.PublicKey)
			if !ok {
				return nil, k.unfit(op, u.Algorithm, wantRSA)
			}
			if most := public.Size() - 2*of().Size() - 2; len(plain) > most {
				return nil, tooLong(op, k, u, most, len(plain))
			}
			out, err := rsa.EncryptOAEP(of(), rand.Reader, public, plain, u.AssociatedData)
			return out, refused(op, k, u, err)
		},
		decrypt: func(op fault.Op, k *key, u block.KeyUse, data []byte) ([]byte, error) {
			private, err := rsaPrivate(op, k, u)
			if err != nil {
				return nil, err
			}
			plain, err := rsa.DecryptOAEP(of(), nil, private, data, u.AssociatedData)
			if err != nil {
				return nil, undecipherable(op, u)
			}
			return plain, nil
		}}
}

// rsaOld is the padding of PKCS#1 v1.5: for data that others made.
var rsaOld = asymmetric{
	encrypt: func(op fault.Op, k *key, u block.KeyUse, plain []byte) ([]byte, error) {
		public, ok := k.public.(*rsa.PublicKey)
		if !ok {
			return nil, k.unfit(op, u.Algorithm, wantRSA)
		}
		if most := public.Size() - 11; len(plain) > most {
			return nil, tooLong(op, k, u, most, len(plain))
		}
		out, err := rsa.EncryptPKCS1v15(rand.Reader, public, plain)
		return out, refused(op, k, u, err)
	},
	decrypt: func(op fault.Op, k *key, u block.KeyUse, data []byte) ([]byte, error) {
		private, err := rsaPrivate(op, k, u)
		if err != nil {
			return nil, err
		}
		plain, err := rsa.DecryptPKCS1v15(nil, private, data)
		if err != nil {
			return nil, undecipherable(op, u)
		}
		return plain, nil
	}}

func rsaPrivate(op fault.Op, k *key, u block.KeyUse) (*rsa.PrivateKey, error) {
	if _, ok := k.public.(*rsa.PublicKey); !ok {
		return nil, k.unfit(op, u.Algorithm, wantRSA)
	}
	private, ok := k.private.(*rsa.PrivateKey)
	if !ok {
		return nil, k.half(op, decrypt)
	}
	return private, nil
}

func tooLong(op fault.Op, k *key, u block.KeyUse, most, have int) error {
	return fault.New(op, fault.Invalid, "%s with key %q takes %d bytes at most, not %d; encrypt longer data with a symmetric key, or with the encrypt API", u.Algorithm, k.name, max(most, 0), have)
}

// refused is the error of a library that would not use a key, which it does not quote.
func refused(op fault.Op, k *key, u block.KeyUse, err error) error {
	if err == nil {
		return nil
	}
	return fault.New(op, fault.Invalid, "%s cannot be used with key %q, %s", u.Algorithm, k.name, k.kind()).Because(err)
}

// signature is one algorithm that signs.
type signature struct {
	digest int // bytes of what is signed; 0: any
	hash   string
	sign   func(op fault.Op, k *key, algorithm string, digest []byte) ([]byte, error)
	verify func(op fault.Op, k *key, algorithm string, digest, sig []byte) (bool, error)
}

// signatures are the algorithms by name.
var signatures = map[string]signature{
	"RS256":   rsaSignature(crypto.SHA256, false),
	"RS384":   rsaSignature(crypto.SHA384, false),
	"RS512":   rsaSignature(crypto.SHA512, false),
	"PS256":   rsaSignature(crypto.SHA256, true),
	"PS384":   rsaSignature(crypto.SHA384, true),
	"PS512":   rsaSignature(crypto.SHA512, true),
	"ES256":   ecSignature(crypto.SHA256, "P-256"),
	"ES384":   ecSignature(crypto.SHA384, "P-384"),
	"ES512":   ecSignature(crypto.SHA512, "P-521"),
	"EdDSA":   edSignature,
	"SM2":     sm2Signature(false),
	"SM2-SM3": sm2Signature(true),
}

func rsaSignature(h crypto.Hash, pss bool) signature {
	options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h} // as RFC 7518 says
	// Dapr and OpenSSL sign with the longest salt there is room for.
	anySalt := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: h}
	return signature{digest: h.Size(), hash: h.String(),
		sign: func(op fault.Op, k *key, algorithm string, digest []byte) ([]byte, error) {
			if _, ok := k.public.(*rsa.PublicKey); !ok {
				return nil, k.unfit(op, algorithm, wantRSA)
			}
			private, ok := k.private.(*rsa.PrivateKey)
			if !ok {
				return nil, k.half(op, sign)
			}
			var out []byte
			var err error
			if pss {
				out, err = rsa.SignPSS(rand.Reader, private, h, digest, options)
			} else {
				out, err = rsa.SignPKCS1v15(nil, private, h, digest)
			}
			return out, refused(op, k, block.KeyUse{Algorithm: algorithm}, err)
		},
		verify: func(op fault.Op, k *key, algorithm string, digest, sig []byte) (bool, error) {
			public, ok := k.public.(*rsa.PublicKey)
			if !ok {
				return false, k.unfit(op, algorithm, wantRSA)
			}
			if pss {
				return rsa.VerifyPSS(public, h, digest, sig, anySalt) == nil, nil
			}
			return rsa.VerifyPKCS1v15(public, h, digest, sig) == nil, nil
		}}
}

// ecSignature makes signatures in DER (RFC 3279), as Dapr does, and checks those and the two numbers
// one after the other, which is their form in a JSON Web Signature.
func ecSignature(h crypto.Hash, curve string) signature {
	fit := func(op fault.Op, k *key, algorithm string) (*ecdsa.PublicKey, error) {
		public, ok := k.public.(*ecdsa.PublicKey)
		if !ok || public.Curve.Params().Name != curve {
			return nil, k.unfit(op, algorithm, "an EC key on "+curve)
		}
		return public, nil
	}
	return signature{digest: h.Size(), hash: h.String(),
		sign: func(op fault.Op, k *key, algorithm string, digest []byte) ([]byte, error) {
			if _, err := fit(op, k, algorithm); err != nil {
				return nil, err
			}
			private, ok := k.private.(*ecdsa.PrivateKey)
			if !ok {
				return nil, k.half(op, sign)
			}
			out, err := ecdsa.SignASN1(rand.Reader, private, digest)
			return out, refused(op, k, block.KeyUse{Algorithm: algorithm}, err)
		},
		verify: func(op fault.Op, k *key, algorithm string, digest, sig []byte) (bool, error) {
			public, err := fit(op, k, algorithm)
			if err != nil {
				return false, err
			}
			if ecdsa.VerifyASN1(public, digest, sig) {
				return true, nil
			}
			der := joinedToDER(sig, (public.Curve.Params().BitSize+7)/8)
			return der != nil && ecdsa.VerifyASN1(public, digest, der), nil
		}}
}

// joinedToDER turns r and s of size bytes each into DER; nil for another length.
func joinedToDER(sig []byte, size int) []byte {
	if len(sig) != 2*size {
		return nil
	}
	der, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(sig[:size]), new(big.Int).SetBytes(sig[size:])})
	if err != nil {
		return nil
	}
	return der
}

// edSignature hashes by itself: what it signs is the message.
var edSignature = signature{
	sign: func(op fault.Op, k *key, algorithm string, message []byte) ([]byte, error) {
		if _, ok := k.public.(ed25519.PublicKey); !ok {
			return nil, k.unfit(op, algorithm, "an Ed25519 key")
		}
		private, ok := k.private.(ed25519.PrivateKey)
		if !ok {
			return nil, k.half(op, sign)
		}
		return ed25519.Sign(private, message), nil
	},
	verify: func(op fault.Op, k *key, algorithm string, message, sig []byte) (bool, error) {
		public, ok := k.public.(ed25519.PublicKey)
		if !ok {
			return false, k.unfit(op, algorithm, "an Ed25519 key")
		}
		return len(public) == ed25519.PublicKeySize && len(sig) == ed25519.SignatureSize && ed25519.Verify(public, message, sig), nil
	}}

func isSM2(k *key) (*ecdsa.PublicKey, bool) {
	public, ok := k.public.(*ecdsa.PublicKey)
	return public, ok && sm2.IsSM2PublicKey(public)
}
