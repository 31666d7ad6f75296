// Package crypto is the deciding half of the cryptography block. It encrypts and decrypts documents
// of any size in Dapr's form, dapr.io/enc/v1, with keys that providers hold, and it passes single
// operations (the subtle API) to them. Every use of a provider is one call under its policy.
//
// It leaves to the edges: wire forms, status codes, the order of messages. It leaves to the
// providers: keys and algorithms. Documents themselves never reach a provider; what it wraps and
// unwraps is the key of one document.
//
// Start at Service; format.go is the form of a document, stream.go its way through memory, subtle.go
// the single operations.
//
// # Errors
//
// Every error is a *fault.Error. Where the code alone does not say which answer a wire owes, the
// reason does:
//
//	NotReady, fault.NoComponents     no provider is configured; told before all else
//	NotFound, fault.NoSuchComponent  another name
//
// Others are about the request or the document, or what the provider or policy said. None says
// anything of a key or a plaintext.
package crypto

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

const (
	opEncrypt fault.Op = "crypto.Encrypt"
	opDecrypt fault.Op = "crypto.Decrypt"
)

// Recorder counts uses of providers. Requests refused before the provider are not counted.
type Recorder interface {
	Crypto(component string, ok bool, took time.Duration)
}

// Service serves the cryptography block. It is safe for concurrent use.
type Service struct {
	providers *catalog.Store[block.Crypto]
	caller    call.Caller
	rec       Recorder
}

// New makes the service. rec may be nil.
func New(providers *catalog.Store[block.Crypto], self identity.Self, rec Recorder) *Service {
	return &Service{providers: providers, rec: rec, caller: call.Caller{App: self.App, Namespace: self.Namespace, Proven: true}}
}

// Provider tells whether there is a provider of the name: nil if so.
func (s *Service) Provider(name string) error {
	_, err := s.providers.Lookup(name)
	return err
}

// Encryption says how to encrypt a document.
type Encryption struct {
	// Key wraps the document's own key, with the algorithm Wrap. Both are required.
	Key, Wrap string
	// Cipher encrypts the document: AES-GCM, also when it is empty, or CHACHA20-POLY1305.
	Cipher string
	// OmitKey leaves the key's name out of the document: who decrypts must know it.
	OmitKey bool
	// DecryptionKey is the key's name in the document, for who decrypts; empty means Key.
	DecryptionKey string
}

// Encrypt begins to encrypt what src holds. The first piece of the stream is the header, which is
// made before anything is read; the caller closes the stream.
func (s *Service) Encrypt(ctx context.Context, provider string, e Encryption, src io.Reader) (*Stream, error) {
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return nil, err
	}
	if e.Key == "" {
		return nil, fault.New(opEncrypt, fault.Invalid, "the name of the key is missing")
	}
	if e.Wrap == "" {
		return nil, fault.New(opEncrypt, fault.Invalid, "the key wrapping algorithm is missing")
	}
	m := manifest{Key: e.DecryptionKey, Prefix: make([]byte, prefixSize)}
	if m.Wrap, err = wrapNumber(e.Wrap); err != nil {
		return nil, err
	}
	if m.Cipher, err = cipherNumber(e.Cipher); err != nil {
		return nil, err
	}
	switch {
	case e.OmitKey:
		m.Key = ""
	case m.Key == "":
		m.Key = e.Key
	}
	fileKey := make([]byte, fileKeySize)
	defer clear(fileKey)
	_, _ = rand.Read(fileKey) // never fails
	_, _ = rand.Read(m.Prefix)
	sealed, err := use(ctx, s, h, "wrapKey", e.Key, func(ctx context.Context, p block.Crypto) (block.Sealed, error) {
		return p.WrapKey(ctx, block.KeyUse{Key: e.Key, Algorithm: wraps[m.Wrap-1]}, fileKey)
	})
	if err != nil {
		return nil, err
	}
	if len(sealed.Tag) > 0 || len(sealed.Data) == 0 {
		return nil, fault.New(opEncrypt, fault.Internal, "the provider wraps with %s in a form that a document cannot hold", wraps[m.Wrap-1])
	}
	m.Wrapped = sealed.Data
	first, err := m.header(fileKey)
	if err != nil {
		return nil, err
	}
	seal, err := newSealer(fileKey, &m)
	if err != nil {
		return nil, err
	}
	return &Stream{op: opEncrypt, first: first, src: src, sealer: seal, unit: segmentSize}, nil
}

// Decrypt begins to decrypt the document that src holds: it has read and checked the header when it
// returns. key is the key to use; empty means the one that the document names. The caller closes the
// stream.
func (s *Service) Decrypt(ctx context.Context, provider, key string, src io.Reader) (*Stream, error) {
	h, err := s.providers.Lookup(provider)
	if err != nil {
		return nil, err
	}
	r := newReader(src)
	out, err := s.decrypt(ctx, h, key, r)
	if err != nil {
		free(r)
		return nil, err
	}
	return out, nil
}

func (s *Service) decrypt(ctx context.Context, h *catalog.Handle[block.Crypto], key string, r *bufio.Reader) (*Stream, error) {
	d, err := readHead(r)
	if err != nil {
		return nil, fault.Wrap(opDecrypt, fault.Of(err), err)
	}
	if key == "" {
		key = d.Key
	}
	if key == "" {
		return nil, fault.New(opDecrypt, fault.Invalid, "the document does not name its key, and the request does not either")
	}
	algorithm := wraps[d.Wrap-1]
	fileKey, err := use(ctx, s, h, "unwrapKey", key, func(ctx context.Context, p block.Crypto) ([]byte, error) {
		return p.UnwrapKey(ctx, block.KeyUse{Key: key, Algorithm: algorithm}, block.Sealed{Data: d.Wrapped})
	})
	if err != nil {
		return nil, err
	}
	defer clear(fileKey)
	if len(fileKey) != fileKeySize {
		return nil, fault.New(opDecrypt, fault.Invalid, "the document's own key has a wrong length: it was encrypted with another key than %s", shown(key))
	}
	if err := d.proves(fileKey); err != nil {
		return nil, err
	}
	seal, err := newSealer(fileKey, &d.manifest)
	if err != nil {
		return nil, err
	}
	return &Stream{op: opDecrypt, src: r, head: r, sealer: seal, unit: segmentSize + tagSize}, nil
}

// use runs one use of a provider as a call under its policy. Uses change nothing, so that policy may
// repeat them.
func use[R any](ctx context.Context, s *Service, h *catalog.Handle[block.Crypto], op, key string, fn func(context.Context, block.Crypto) (R, error)) (R, error) {
	start := time.Now()
	out, err := catalog.Do(ctx, h, call.Desc{Op: op, Resource: key, Safety: call.Safe, Caller: s.caller}, fn, nil)
	if s.rec != nil {
		s.rec.Crypto(h.Name, err == nil, time.Since(start))
	}
	return out, err
}

// shown is a caller's text as errors quote it: not too long.
func shown(text string) string {
	const most = 80
	if len(text) > most {
		return fmt.Sprintf("%q… (%d bytes)", text[:most], len(text))
	}
	return fmt.Sprintf("%q", text)
}
