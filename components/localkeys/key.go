package localkeys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/mecha-project/mecha/components/fault"
)

// key is one key. It does not change.
type key struct {
	name    string
	secret  []byte // of a symmetric key; nil otherwise
	private any    // *rsa.PrivateKey, *ecdsa.PrivateKey, *sm2.PrivateKey or ed25519.PrivateKey; nil without one
	public  any    // the same without "Private", an SM2 key being an *ecdsa.PublicKey; nil for a symmetric key
	use     string // "sig", "enc" or empty: what a JWK says it is for
	ops     []string
}

// operation is what a key is asked to do, in the words of a JWK's key_ops.
type operation string

// The operations.
const (
	encrypt operation = "encrypt"
	decrypt operation = "decrypt"
	wrap    operation = "wrapKey"
	unwrap  operation = "unwrapKey"
	sign    operation = "sign"
	verify  operation = "verify"
)

// counterpart is the operation of a private key whose public half does the other.
var counterpart = map[operation]operation{encrypt: decrypt, wrap: unwrap, verify: sign}

// allow tells whether the JWK lets its key do something: an error when not.
func (k *key) allow(op fault.Op, o operation) error {
	signature := o == sign || o == verify
	if k.use == "sig" && !signature || k.use == "enc" && signature {
		return fault.New(op, fault.Invalid, "key %q is for %q only, by its use; %s is something else", k.name, k.use, o)
	}
	if len(k.ops) == 0 || slices.Contains(k.ops, string(o)) {
		return nil
	}
	if c, ok := counterpart[o]; ok && k.private != nil && slices.Contains(k.ops, string(c)) {
		return nil // key_ops of a key pair speak of its private half
	}
	return fault.New(op, fault.Invalid, "key %q may not %s, by its key_ops", k.name, o)
}

// errForm is why bytes are no key. It quotes nothing of them.
var errForm = errors.New("is no key; known forms are PEM (PKCS#8, PKCS#1, SEC 1, PKIX), the same as DER, a JSON Web Key, and the bytes of a symmetric key, plain or as base64")

// parse reads a key in any of its forms. What is nothing else is a symmetric key.
func parse(name string, raw []byte) (*key, error) {
	text := bytes.TrimSpace(raw)
	switch {
	case len(text) == 0:
		return nil, errors.New("is empty")
	case bytes.HasPrefix(text, []byte("-----BEGIN ")):
		return parsePEM(name, text)
	case text[0] == '{' && json.Valid(text):
		return parseJWK(name, text)
	}
	if k, err := parseDER(name, raw); err == nil {
		return k, nil
	}
	return &key{name: name, secret: symmetricBytes(raw, text)}, nil
}

// symmetricBytes are what is in a file of a symmetric key: base64 of either alphabet is what it
// encodes, other bytes are the key. As in Dapr, a key of letters and digits alone is taken for
// base64.
func symmetricBytes(raw, text []byte) []byte {
	bare := string(bytes.TrimRight(text, "="))
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if b, err := enc.DecodeString(bare); err == nil && len(b) > 0 {
			return b
		}
	}
	return bytes.Clone(raw)
}

// parsePEM takes the first key of a PEM file; parameters and other things before it are passed
// over.
func parsePEM(name string, text []byte) (*key, error) {
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return nil, errors.New("has no key in PEM form that can be used: PRIVATE KEY, RSA PRIVATE KEY, EC PRIVATE KEY, PUBLIC KEY or RSA PUBLIC KEY")
		}
		switch block.Type {
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("is encrypted with a passphrase; decrypt it (openssl pkcs8 -in … -out …) and protect the file by its permissions")
		case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "PUBLIC KEY", "RSA PUBLIC KEY":
			if block.Headers["Proc-Type"] != "" {
				return nil, errors.New("is encrypted with a passphrase; decrypt it and protect the file by its permissions")
			}
			return parseDER(name, block.Bytes)
		}
		text = rest
	}
}

// parseDER tries the encodings in turn. The parsers of smx509 know SM2 beside what the standard
// library does.
func parseDER(name string, der []byte) (*key, error) {
	if len(der) == 0 || der[0] != 0x30 { // a SEQUENCE
		return nil, errForm
	}
	if k, err := smx509.ParsePKCS8PrivateKey(der); err == nil {
		return pair(name, k)
	}
	if k, err := smx509.ParseTypedECPrivateKey(der); err == nil {
		return pair(name, k)
	}
	if k, err := smx509.ParsePKCS1PrivateKey(der); err == nil {
		return pair(name, k)
	}
	if k, err := smx509.ParsePKIXPublicKey(der); err == nil {
		return pair(name, k)
	}
	if k, err := smx509.ParsePKCS1PublicKey(der); err == nil {
		return pair(name, k)
	}
	return nil, errForm
}

// parseJWK reads a JSON Web Key.
func parseJWK(name string, text []byte) (*key, error) {
	k, err := jwk.ParseKey(text)
	if err != nil { // the library's words may quote the key
		return nil, errors.New("is JSON and no JSON Web Key that can be used (RFC 7517); for a set of keys use crypto.dapr.jwks")
	}
	return fromJWK(name, k)
}

// fromJWK takes a JSON Web Key over.
func fromJWK(name string, from jwk.Key) (*key, error) {
	var raw any
	if err := jwk.Export(from, &raw); err != nil {
		return nil, errors.New("is a JSON Web Key that is not whole, or of a kind that cannot be used")
	}
	k, err := pair(name, raw)
	if err != nil {
		return nil, err
	}
	k.use, _ = from.KeyUsage()
	ops, _ := from.KeyOps()
	for _, o := range ops {
		k.ops = append(k.ops, string(o))
	}
	return k, nil
}

// pair makes a key of what a parser gave.
func pair(name string, raw any) (*key, error) {
	switch k := raw.(type) {
	case []byte:
		if len(k) == 0 {
			return nil, errors.New("is empty")
		}
		return &key{name: name, secret: k}, nil
	case *rsa.PrivateKey:
		return &key{name: name, private: k, public: &k.PublicKey}, nil
	case *sm2.PrivateKey:
		return &key{name: name, private: k, public: &k.PublicKey}, nil
	case *ecdsa.PrivateKey:
		return &key{name: name, private: k, public: &k.PublicKey}, nil
	case ed25519.PrivateKey:
		return &key{name: name, private: k, public: k.Public()}, nil
	case *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey:
		return &key{name: name, public: k}, nil
	}
	return nil, fmt.Errorf("is of a kind that cannot be used (%T); use RSA, EC (P-256, P-384, P-521, SM2), Ed25519 or symmetric keys", raw)
}

// kind describes a key in errors.
func (k *key) kind() string {
	switch p := k.public.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("an RSA key of %d bits", p.N.BitLen())
	case *ecdsa.PublicKey:
		if sm2.IsSM2PublicKey(p) {
			return "an SM2 key"
		}
		return "an EC key on " + p.Curve.Params().Name
	case ed25519.PublicKey:
		return "an Ed25519 key"
	}
	return fmt.Sprintf("a symmetric key of %d bytes", len(k.secret))
}

// unfit is the error of a key that an algorithm cannot use.
func (k *key) unfit(op fault.Op, algorithm, want string) error {
	return fault.New(op, fault.Invalid, "%s takes %s; key %q is %s", algorithm, want, k.name, k.kind())
}

// half is the error of a public key that was asked for what takes the private one.
func (k *key) half(op fault.Op, o operation) error {
	return fault.New(op, fault.Invalid, "key %q is a public key; to %s takes the private one", k.name, o)
}

// publicDER is the public half as SubjectPublicKeyInfo.
func (k *key) publicDER(op fault.Op) ([]byte, error) {
	if k.public == nil {
		return nil, fault.New(op, fault.Invalid, "key %q is symmetric: it has no public half, and is not given away", k.name)
	}
	der, err := smx509.MarshalPKIXPublicKey(k.public)
	if err != nil {
		return nil, fault.New(op, fault.Invalid, "key %q: %s has no public form", k.name, k.kind())
	}
	return der, nil
}
