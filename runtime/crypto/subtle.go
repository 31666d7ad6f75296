package crypto

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"

	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// KeyFormat is a form of a public key.
type KeyFormat uint8

// The forms. The numbers are Dapr's.
const (
	PEM KeyFormat = 0 // PKIX
	JWK KeyFormat = 1
)

// PublicKey is the public half of a key pair as text.
func (s *Service) PublicKey(ctx context.Context, provider, key string, format KeyFormat) (string, error) {
	const op fault.Op = "crypto.PublicKey"
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return "", err
	}
	der, err := use(ctx, s, h, "getKey", key, func(ctx context.Context, p block.Crypto) ([]byte, error) { return p.PublicKey(ctx, key) })
	if err != nil {
		return "", err
	}
	if format == PEM {
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
	}
	public, err := x509.ParsePKIXPublicKey(der)
	var doc []byte
	if err == nil {
		doc, err = jwkOf(key, public)
	}
	if err != nil {
		return "", fault.New(op, fault.Unsupported, "key %s has no form as JSON Web Key; ask for PEM", shown(key))
	}
	return string(doc), nil
}

func jwkOf(name string, public any) ([]byte, error) {
	k, err := jwk.Import(public)
	if err != nil {
		return nil, err
	}
	if err := k.Set(jwk.KeyIDKey, name); err != nil {
		return nil, err
	}
	return json.Marshal(k)
}

// EncryptOne encrypts one message.
func (s *Service) EncryptOne(ctx context.Context, provider string, u block.KeyUse, plain []byte) (block.Sealed, error) {
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return block.Sealed{}, err
	}
	return use(ctx, s, h, "encrypt", u.Key, func(ctx context.Context, p block.Crypto) (block.Sealed, error) { return p.Encrypt(ctx, u, plain) })
}

// DecryptOne undoes EncryptOne.
func (s *Service) DecryptOne(ctx context.Context, provider string, u block.KeyUse, sealed block.Sealed) ([]byte, error) {
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return nil, err
	}
	return use(ctx, s, h, "decrypt", u.Key, func(ctx context.Context, p block.Crypto) ([]byte, error) { return p.Decrypt(ctx, u, sealed) })
}

// WrapKey encrypts another key.
func (s *Service) WrapKey(ctx context.Context, provider string, u block.KeyUse, plain []byte) (block.Sealed, error) {
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return block.Sealed{}, err
	}
	return use(ctx, s, h, "wrapKey", u.Key, func(ctx context.Context, p block.Crypto) (block.Sealed, error) { return p.WrapKey(ctx, u, plain) })
}

// UnwrapKey undoes WrapKey.
func (s *Service) UnwrapKey(ctx context.Context, provider string, u block.KeyUse, wrapped block.Sealed) ([]byte, error) {
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return nil, err
	}
	return use(ctx, s, h, "unwrapKey", u.Key, func(ctx context.Context, p block.Crypto) ([]byte, error) { return p.UnwrapKey(ctx, u, wrapped) })
}

// Sign signs a digest.
func (s *Service) Sign(ctx context.Context, provider, key, algorithm string, digest []byte) ([]byte, error) {
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return nil, err
	}
	return use(ctx, s, h, "sign", key, func(ctx context.Context, p block.Crypto) ([]byte, error) { return p.Sign(ctx, key, algorithm, digest) })
}

// Verify tells whether a signature is right.
func (s *Service) Verify(ctx context.Context, provider, key, algorithm string, digest, signature []byte) (bool, error) {
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return false, err
	}
	return use(ctx, s, h, "verify", key, func(ctx context.Context, p block.Crypto) (bool, error) {
		return p.Verify(ctx, key, algorithm, digest, signature)
	})
}
