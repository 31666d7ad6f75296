package grpcapi

import (
	"context"
	"io"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/crypto"
)

// Crypto is the cryptography service.
type Crypto interface {
	Provider(name string) error
	Encrypt(ctx context.Context, provider string, e crypto.Encryption, src io.Reader) (*crypto.Stream, error)
	Decrypt(ctx context.Context, provider, key string, src io.Reader) (*crypto.Stream, error)
	PublicKey(ctx context.Context, provider, key string, format crypto.KeyFormat) (string, error)
	EncryptOne(ctx context.Context, provider string, u block.KeyUse, plain []byte) (block.Sealed, error)
	DecryptOne(ctx context.Context, provider string, u block.KeyUse, sealed block.Sealed) ([]byte, error)
	WrapKey(ctx context.Context, provider string, u block.KeyUse, plain []byte) (block.Sealed, error)
	UnwrapKey(ctx context.Context, provider string, u block.KeyUse, wrapped block.Sealed) ([]byte, error)
	Sign(ctx context.Context, provider, key, algorithm string, digest []byte) ([]byte, error)
	Verify(ctx context.Context, provider, key, algorithm string, digest, signature []byte) (bool, error)
}

// optionsWithin is how long the first message of a document may take.
const optionsWithin = 5 * time.Second

// firstMessage receives the first message of a stream in time. A receive that comes too late ends
// with the stream.
func firstMessage(ss grpc.ServerStream, into proto.Message, within time.Duration) error {
	got := make(chan error, 1)
	go func() { got <- ss.RecvMsg(into) }()
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case err := <-got:
		if call.Ended(err) {
			return errNoOptions
		}
		return err
	case <-timer.C:
		return apierr.BadRequest.Because("invalid request: the first message did not come within " + within.String())
	}
}

var errNoOptions = apierr.BadRequest.Because("invalid request: first message does not contain the required options")

// payloads reads the data of a stream's messages, the first of which was received before.
type payloads struct {
	next   *commonv1.StreamPayload                                              // received, not looked at
	recv   func() (payload *commonv1.StreamPayload, hasOptions bool, err error) // a further message
	data   []byte                                                               // not read yet
	number uint64
}

// Read implements io.Reader. io.EOF is the caller's orderly end.
func (p *payloads) Read(b []byte) (int, error) {
	const op fault.Op = "grpcapi.payloads"
	for len(p.data) == 0 {
		if p.next == nil {
			payload, options, err := p.recv()
			switch {
			case err != nil:
				return 0, err
			case options:
				return 0, fault.New(op, fault.Invalid, "options found in a message that is not the first")
			case payload == nil:
				continue
			}
			p.next = payload
		}
		if got := p.next.GetSeq(); got != p.number {
			return 0, fault.New(op, fault.Invalid, "invalid sequence number received: %d (expected: %d)", got, p.number)
		}
		p.number++
		p.data, p.next = p.next.GetData(), nil
	}
	n := copy(b, p.data)
	p.data = p.data[n:]
	return n, nil
}

// sendAll sends a stream's pieces, numbered.
func sendAll(provider string, s *crypto.Stream, send func(*commonv1.StreamPayload) error) error {
	defer s.Close()
	for n := uint64(0); ; n++ {
		piece, err := s.Next()
		if call.Ended(err) {
			return nil
		}
		if err != nil {
			return apierr.Crypto(provider, err)
		}
		if err := send(&commonv1.StreamPayload{Data: piece, Seq: n}); err != nil {
			return err
		}
	}
}

// EncryptAlpha1 encrypts a document.
func (s *Server) EncryptAlpha1(ss runtimev1.Dapr_EncryptAlpha1Server) error {
	first := &runtimev1.EncryptRequest{}
	if err := firstMessage(ss, first, optionsWithin); err != nil {
		return err
	}
	o := first.GetOptions()
	if o == nil {
		return errNoOptions
	}
	stream, err := s.o.Crypto.Encrypt(ss.Context(), o.GetComponentName(), crypto.Encryption{Key: o.GetKeyName(), Wrap: o.GetKeyWrapAlgorithm(),
		Cipher: o.GetDataEncryptionCipher(), OmitKey: o.GetOmitDecryptionKeyName(), DecryptionKey: o.GetDecryptionKeyName()},
		&payloads{next: first.GetPayload(), recv: func() (*commonv1.StreamPayload, bool, error) {
			m, err := ss.Recv()
			return m.GetPayload(), m.GetOptions() != nil, err
		}})
	if err != nil {
		return apierr.Crypto(o.GetComponentName(), err)
	}
	return sendAll(o.GetComponentName(), stream, func(p *commonv1.StreamPayload) error { return ss.Send(&runtimev1.EncryptResponse{Payload: p}) })
}

// DecryptAlpha1 decrypts a document.
func (s *Server) DecryptAlpha1(ss runtimev1.Dapr_DecryptAlpha1Server) error {
	first := &runtimev1.DecryptRequest{}
	if err := firstMessage(ss, first, optionsWithin); err != nil {
		return err
	}
	o := first.GetOptions()
	if o == nil {
		return errNoOptions
	}
	stream, err := s.o.Crypto.Decrypt(ss.Context(), o.GetComponentName(), o.GetKeyName(),
		&payloads{next: first.GetPayload(), recv: func() (*commonv1.StreamPayload, bool, error) {
			m, err := ss.Recv()
			return m.GetPayload(), m.GetOptions() != nil, err
		}})
	if err != nil {
		return apierr.Crypto(o.GetComponentName(), err)
	}
	return sendAll(o.GetComponentName(), stream, func(p *commonv1.StreamPayload) error { return ss.Send(&runtimev1.DecryptResponse{Payload: p}) })
}

// SubtleGetKeyAlpha1 gives the public half of a key pair.
func (s *Server) SubtleGetKeyAlpha1(ctx context.Context, in *runtimev1.SubtleGetKeyRequest) (*runtimev1.SubtleGetKeyResponse, error) {
	format, err := keyFormat(s.o.Crypto, in)
	if err != nil {
		return nil, err
	}
	text, err := s.o.Crypto.PublicKey(ctx, in.GetComponentName(), in.GetName(), format)
	if err != nil {
		return nil, apierr.CryptoKey(in.GetComponentName(), in.GetName(), err)
	}
	return &runtimev1.SubtleGetKeyResponse{Name: in.GetName(), PublicKey: text}, nil
}

func keyFormat(c Crypto, in *runtimev1.SubtleGetKeyRequest) (crypto.KeyFormat, error) {
	if err := c.Provider(in.GetComponentName()); err != nil {
		return 0, apierr.Crypto(in.GetComponentName(), err)
	}
	switch in.GetFormat() {
	case runtimev1.SubtleGetKeyRequest_PEM:
		return crypto.PEM, nil
	case runtimev1.SubtleGetKeyRequest_JSON:
		return crypto.JWK, nil
	}
	return 0, apierr.BadRequest.Because("invalid request: unknown key format; use PEM (0) or JSON (1)")
}

// SubtleEncryptAlpha1 encrypts one message.
func (s *Server) SubtleEncryptAlpha1(ctx context.Context, in *runtimev1.SubtleEncryptRequest) (*runtimev1.SubtleEncryptResponse, error) {
	out, err := s.o.Crypto.EncryptOne(ctx, in.GetComponentName(), keyUse(in), in.GetPlaintext())
	if err != nil {
		return nil, apierr.Crypto(in.GetComponentName(), err)
	}
	return &runtimev1.SubtleEncryptResponse{Ciphertext: out.Data, Tag: out.Tag}, nil
}

// keyUse is what requests for one operation have in common.
func keyUse(in interface {
	GetKeyName() string
	GetAlgorithm() string
	GetNonce() []byte
	GetAssociatedData() []byte
}) block.KeyUse {
	return block.KeyUse{Key: in.GetKeyName(), Algorithm: in.GetAlgorithm(), Nonce: in.GetNonce(), AssociatedData: in.GetAssociatedData()}
}

// SubtleDecryptAlpha1 decrypts one message.
func (s *Server) SubtleDecryptAlpha1(ctx context.Context, in *runtimev1.SubtleDecryptRequest) (*runtimev1.SubtleDecryptResponse, error) {
	out, err := s.o.Crypto.DecryptOne(ctx, in.GetComponentName(), keyUse(in), block.Sealed{Data: in.GetCiphertext(), Tag: in.GetTag()})
	if err != nil {
		return nil, apierr.Crypto(in.GetComponentName(), err)
	}
	return &runtimev1.SubtleDecryptResponse{Plaintext: out}, nil
}

// SubtleWrapKeyAlpha1 encrypts a key.
func (s *Server) SubtleWrapKeyAlpha1(ctx context.Context, in *runtimev1.SubtleWrapKeyRequest) (*runtimev1.SubtleWrapKeyResponse, error) {
	out, err := s.o.Crypto.WrapKey(ctx, in.GetComponentName(), keyUse(in), in.GetPlaintextKey())
	if err != nil {
		return nil, apierr.Crypto(in.GetComponentName(), err)
	}
	return &runtimev1.SubtleWrapKeyResponse{WrappedKey: out.Data, Tag: out.Tag}, nil
}

// SubtleUnwrapKeyAlpha1 decrypts a key.
func (s *Server) SubtleUnwrapKeyAlpha1(ctx context.Context, in *runtimev1.SubtleUnwrapKeyRequest) (*runtimev1.SubtleUnwrapKeyResponse, error) {
	out, err := s.o.Crypto.UnwrapKey(ctx, in.GetComponentName(), keyUse(in), block.Sealed{Data: in.GetWrappedKey(), Tag: in.GetTag()})
	if err != nil {
		return nil, apierr.Crypto(in.GetComponentName(), err)
	}
	return &runtimev1.SubtleUnwrapKeyResponse{PlaintextKey: out}, nil
}

// SubtleSignAlpha1 signs a digest.
func (s *Server) SubtleSignAlpha1(ctx context.Context, in *runtimev1.SubtleSignRequest) (*runtimev1.SubtleSignResponse, error) {
	out, err := s.o.Crypto.Sign(ctx, in.GetComponentName(), in.GetKeyName(), in.GetAlgorithm(), in.GetDigest())
	if err != nil {
		return nil, apierr.Crypto(in.GetComponentName(), err)
	}
	return &runtimev1.SubtleSignResponse{Signature: out}, nil
}

// SubtleVerifyAlpha1 tells whether a signature is right.
func (s *Server) SubtleVerifyAlpha1(ctx context.Context, in *runtimev1.SubtleVerifyRequest) (*runtimev1.SubtleVerifyResponse, error) {
	ok, err := s.o.Crypto.Verify(ctx, in.GetComponentName(), in.GetKeyName(), in.GetAlgorithm(), in.GetDigest(), in.GetSignature())
	if err != nil {
		return nil, apierr.Crypto(in.GetComponentName(), err)
	}
	return &runtimev1.SubtleVerifyResponse{Valid: ok}, nil
}
