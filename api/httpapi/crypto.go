package httpapi

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"strings"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
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

// Headers of requests for documents.
const (
	keyNameHeader       = "dapr-key-name"
	keyWrapHeader       = "dapr-key-wrap-algorithm"
	cipherHeader        = "dapr-data-encryption-cipher"
	omitKeyHeader       = "dapr-omit-decryption-key-name"
	decryptionKeyHeader = "dapr-decryption-key-name"
)

// encrypt is PUT /v1.0-alpha1/crypto/<provider>/encrypt.
func (s *Server) encrypt(r *Request, a args) {
	if err := s.o.Crypto.Provider(a[0]); err != nil {
		r.Fail(apierr.Crypto(a[0], err))
		return
	}
	for _, name := range []string{keyNameHeader, keyWrapHeader} {
		if r.Header.Get(name) == "" {
			r.Fail(apierr.BadRequest.Because("invalid request: missing header '" + name + "'"))
			return
		}
	}
	body := bufio.NewReader(r.document())
	stream, err := s.o.Crypto.Encrypt(r.Context(), a[0], crypto.Encryption{Key: r.Header.Get(keyNameHeader), Wrap: r.Header.Get(keyWrapHeader),
		Cipher: r.Header.Get(cipherHeader), OmitKey: truthy(r.Header.Get(omitKeyHeader)), DecryptionKey: r.Header.Get(decryptionKeyHeader)}, body)
	if err == nil && r.Header.Get("Expect") != "" {
		_, _ = body.Peek(1) // a client that waits to be asked for its body would not send it after an answer has begun
	}
	r.answerDocument(a[0], stream, err)
}

// decrypt is PUT /v1.0-alpha1/crypto/<provider>/decrypt.
func (s *Server) decrypt(r *Request, a args) {
	if err := s.o.Crypto.Provider(a[0]); err != nil {
		r.Fail(apierr.Crypto(a[0], err))
		return
	}
	stream, err := s.o.Crypto.Decrypt(r.Context(), a[0], r.Header.Get(keyNameHeader), r.document())
	r.answerDocument(a[0], stream, err)
}

// truthy reads a header that switches something on, as Dapr does.
func truthy(text string) bool {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "1", "y", "yes", "t", "true", "on":
		return true
	}
	return false
}

// document is the request body as it comes. The limit of bodies is not for it: it is there for those
// that are held in memory.
func (r *Request) document() io.Reader {
	if r.hasBody {
		return bytes.NewReader(r.body)
	}
	body, _ := r.incoming.stream(counted{r, r.x.Body()}, r.x.ContentLength())
	return body
}

// counted is a request's body, whose bytes are counted as they are read.
type counted struct {
	r    *Request
	body io.Reader
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.body.Read(p)
	c.r.in += int64(n)
	return n, err
}

// answerDocument answers with a stream. Its first piece is awaited, so that what is wrong from the
// beginning is an error and no answer that breaks off.
func (r *Request) answerDocument(provider string, stream *crypto.Stream, err error) {
	var first []byte
	if err == nil {
		defer stream.Close()
		if first, err = stream.Next(); call.Ended(err) {
			err = nil
		}
	}
	if err != nil {
		r.Fail(apierr.Crypto(provider, err))
		return
	}
	fields := call.Fields{{Name: "Content-Type", Value: "application/octet-stream"}}
	if r.span != nil {
		fields = r.span.Response(fields)
	}
	if err := r.stream(&call.Response{Status: 200, Stream: &pieces{s: stream, left: first}, Length: call.Unknown}, r.decorate(fields)); err != nil {
		r.s.o.Log.Warn("a document broke off", "provider", provider, "err", err)
	}
}

// pieces is a stream as a reader of bytes.
type pieces struct {
	s    *crypto.Stream
	left []byte
}

func (p *pieces) Read(b []byte) (int, error) {
	for len(p.left) == 0 {
		var err error
		if p.left, err = p.s.Next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}

// Close implements io.Closer; the stream is closed by who made it.
func (p *pieces) Close() error { return nil }

// protoAnswer answers with the JSON form of a message.
func (r *Request) protoAnswer(m proto.Message) {
	body, err := protojson.Marshal(m)
	if err != nil {
		r.Fail(apierr.Internal.Because("the answer cannot be written as JSON"))
		return
	}
	r.JSON(200, body)
}

// subtleKey is POST /v1.0-alpha1/subtlecrypto/<provider>/getkey.
func (s *Server) subtleKey(r *Request, a args) {
	var in runtimev1.SubtleGetKeyRequest
	if !r.protoBody(&in) {
		return
	}
	format := crypto.PEM
	switch in.GetFormat() {
	case runtimev1.SubtleGetKeyRequest_PEM:
	case runtimev1.SubtleGetKeyRequest_JSON:
		format = crypto.JWK
	default:
		err := s.o.Crypto.Provider(a[0])
		if err != nil {
			r.Fail(apierr.Crypto(a[0], err))
			return
		}
		r.Fail(apierr.BadRequest.Because("invalid request: unknown key format; use PEM or JSON"))
		return
	}
	text, err := s.o.Crypto.PublicKey(r.Context(), a[0], in.GetName(), format)
	if err != nil {
		r.Fail(apierr.CryptoKey(a[0], in.GetName(), err))
		return
	}
	r.protoAnswer(&runtimev1.SubtleGetKeyResponse{Name: in.GetName(), PublicKey: text})
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

// subtleEncrypt is POST /v1.0-alpha1/subtlecrypto/<provider>/encrypt.
func (s *Server) subtleEncrypt(r *Request, a args) {
	var in runtimev1.SubtleEncryptRequest
	if !r.protoBody(&in) {
		return
	}
	out, err := s.o.Crypto.EncryptOne(r.Context(), a[0], keyUse(&in), in.GetPlaintext())
	r.subtle(a[0], &runtimev1.SubtleEncryptResponse{Ciphertext: out.Data, Tag: out.Tag}, err)
}

// subtleDecrypt is POST /v1.0-alpha1/subtlecrypto/<provider>/decrypt.
func (s *Server) subtleDecrypt(r *Request, a args) {
	var in runtimev1.SubtleDecryptRequest
	if !r.protoBody(&in) {
		return
	}
	out, err := s.o.Crypto.DecryptOne(r.Context(), a[0], keyUse(&in), block.Sealed{Data: in.GetCiphertext(), Tag: in.GetTag()})
	r.subtle(a[0], &runtimev1.SubtleDecryptResponse{Plaintext: out}, err)
}

// subtleWrap is POST /v1.0-alpha1/subtlecrypto/<provider>/wrapkey.
func (s *Server) subtleWrap(r *Request, a args) {
	var in runtimev1.SubtleWrapKeyRequest
	if !r.protoBody(&in) {
		return
	}
	out, err := s.o.Crypto.WrapKey(r.Context(), a[0], keyUse(&in), in.GetPlaintextKey())
	r.subtle(a[0], &runtimev1.SubtleWrapKeyResponse{WrappedKey: out.Data, Tag: out.Tag}, err)
}

// subtleUnwrap is POST /v1.0-alpha1/subtlecrypto/<provider>/unwrapkey.
func (s *Server) subtleUnwrap(r *Request, a args) {
	var in runtimev1.SubtleUnwrapKeyRequest
	if !r.protoBody(&in) {
		return
	}
	out, err := s.o.Crypto.UnwrapKey(r.Context(), a[0], keyUse(&in), block.Sealed{Data: in.GetWrappedKey(), Tag: in.GetTag()})
	r.subtle(a[0], &runtimev1.SubtleUnwrapKeyResponse{PlaintextKey: out}, err)
}

// subtleSign is POST /v1.0-alpha1/subtlecrypto/<provider>/sign.
func (s *Server) subtleSign(r *Request, a args) {
	var in runtimev1.SubtleSignRequest
	if !r.protoBody(&in) {
		return
	}
	out, err := s.o.Crypto.Sign(r.Context(), a[0], in.GetKeyName(), in.GetAlgorithm(), in.GetDigest())
	r.subtle(a[0], &runtimev1.SubtleSignResponse{Signature: out}, err)
}

// subtleVerify is POST /v1.0-alpha1/subtlecrypto/<provider>/verify.
func (s *Server) subtleVerify(r *Request, a args) {
	var in runtimev1.SubtleVerifyRequest
	if !r.protoBody(&in) {
		return
	}
	ok, err := s.o.Crypto.Verify(r.Context(), a[0], in.GetKeyName(), in.GetAlgorithm(), in.GetDigest(), in.GetSignature())
	r.subtle(a[0], &runtimev1.SubtleVerifyResponse{Valid: ok}, err)
}

// subtle answers a single operation.
func (r *Request) subtle(provider string, out proto.Message, err error) {
	if err != nil {
		r.Fail(apierr.Crypto(provider, err))
		return
	}
	r.protoAnswer(out)
}
