package localkeys

import (
	"crypto/rand"

	"github.com/emmansun/gmsm/sm2"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// SM2 (GB/T 32918) and SM4 (GB/T 32907). Ciphertexts of SM2 and signatures are DER, as OpenSSL and
// GM/T 0009 have them; SM4 is in symmetric.go.

const wantSM2 = "an SM2 key"

func sm2Private(op fault.Op, k *key, algorithm string, o operation) (*sm2.PrivateKey, error) {
	if _, ok := isSM2(k); !ok {
		return nil, k.unfit(op, algorithm, wantSM2)
	}
	private, ok := k.private.(*sm2.PrivateKey)
	if !ok {
		return nil, k.half(op, o)
	}
	return private, nil
}

var sm2Encryption = asymmetric{
	encrypt: func(op fault.Op, k *key, u block.KeyUse, plain []byte) ([]byte, error) {
		public, ok := isSM2(k)
		if !ok {
			return nil, k.unfit(op, u.Algorithm, wantSM2)
		}
		if len(plain) == 0 { // the algorithm has no ciphertext of nothing
			return nil, fault.New(op, fault.Invalid, "%s takes one byte or more", u.Algorithm)
		}
		out, err := sm2.EncryptASN1(rand.Reader, public, plain)
		return out, refused(op, k, u, err)
	},
	decrypt: func(op fault.Op, k *key, u block.KeyUse, data []byte) ([]byte, error) {
		private, err := sm2Private(op, k, u.Algorithm, decrypt)
		if err != nil {
			return nil, err
		}
		plain, err := sm2.Decrypt(private, data)
		if err != nil {
			return nil, undecipherable(op, u)
		}
		return plain, nil
	}}

// sm2Signature signs the 32 bytes it is given, or, if hashes is set, the SM3 hash of the message
// behind the signer's parameters, with the identity that the standard has for those who name none.
func sm2Signature(hashes bool) signature {
	s := signature{
		sign: func(op fault.Op, k *key, algorithm string, digest []byte) ([]byte, error) {
			private, err := sm2Private(op, k, algorithm, sign)
			if err != nil {
				return nil, err
			}
			var options *sm2.SM2SignerOption
			if hashes {
				options = sm2.DefaultSM2SignerOpts
			} else {
				options = sm2.NewSM2SignerOption(false, nil)
			}
			out, err := private.Sign(rand.Reader, digest, options)
			return out, refused(op, k, block.KeyUse{Algorithm: algorithm}, err)
		},
		verify: func(op fault.Op, k *key, algorithm string, digest, sig []byte) (bool, error) {
			public, ok := isSM2(k)
			if !ok {
				return false, k.unfit(op, algorithm, wantSM2)
			}
			if hashes {
				return sm2.VerifyASN1WithSM2(public, nil, digest, sig), nil
			}
			return sm2.VerifyASN1(public, digest, sig), nil
		}}
	if !hashes {
		s.digest, s.hash = 32, "SM3"
	}
	return s
}
