package block

import "context"

// Crypto is a provider of keys: it uses them for others and does not give them away. A key's name
// is the provider's, "name" or "name/version" where it keeps versions; names are exact. Algorithms
// have the names of JSON Web Algorithms (RFC 7518) where there is one, in any case of letters.
//
// Errors of every method that uses a key: fault.NotFound for a key that does not exist,
// fault.Unsupported for an algorithm the provider does not have, fault.Invalid for a key that does
// not fit the algorithm or may not be used so, for a nonce or data of a wrong length, and for data
// that cannot be decrypted. None says anything of a key, a plaintext or a padding.
type Crypto interface {
	Component
	// Algorithms reports what the provider can do with keys that fit. The slices belong to the
	// caller.
	Algorithms() Algorithms
	// PublicKey is the public half of a key pair as a DER SubjectPublicKeyInfo (RFC 5280). A
	// symmetric key has none: fault.Invalid.
	PublicKey(ctx context.Context, key string) ([]byte, error)
	// Encrypt encrypts a message. With a key pair it uses the public half.
	Encrypt(ctx context.Context, u KeyUse, plaintext []byte) (Sealed, error)
	// Decrypt undoes Encrypt.
	Decrypt(ctx context.Context, u KeyUse, sealed Sealed) ([]byte, error)
	// WrapKey encrypts another key, given as bytes.
	WrapKey(ctx context.Context, u KeyUse, plain []byte) (Sealed, error)
	// UnwrapKey undoes WrapKey.
	UnwrapKey(ctx context.Context, u KeyUse, wrapped Sealed) ([]byte, error)
	// Sign signs a digest, made with the hash that the algorithm names. Algorithms that hash by
	// themselves (EdDSA, SM2-SM3) take the message in its place.
	Sign(ctx context.Context, key, algorithm string, digest []byte) ([]byte, error)
	// Verify tells whether a signature is right. A wrong one, whatever its length, is not an
	// error.
	Verify(ctx context.Context, key, algorithm string, digest, signature []byte) (bool, error)
}

// Algorithms are names of algorithms by what they are for, each list sorted.
type Algorithms struct {
	Encrypt []string // Encrypt and Decrypt
	Wrap    []string // WrapKey and UnwrapKey
	Sign    []string // Sign and Verify
}

// KeyUse says which key is used, and how.
type KeyUse struct {
	Key       string
	Algorithm string
	// Nonce is the nonce or initialization vector of symmetric algorithms that have one. Who calls
	// makes it; none may serve twice with one key. Others ignore it.
	Nonce []byte
	// AssociatedData are authenticated and not encrypted, by algorithms that authenticate; the
	// label of RSA-OAEP. Others ignore them.
	AssociatedData []byte
}

// Sealed is what was encrypted.
type Sealed struct {
	Data []byte
	Tag  []byte // of algorithms that authenticate and keep the tag apart
}
