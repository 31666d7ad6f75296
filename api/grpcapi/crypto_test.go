package grpcapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/localkeys"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/crypto"
	"github.com/mecha-project/mecha/runtime/identity"
)

// newVault is a server with the real service, which has a provider "vault" with the keys aes and ec.
func newVault(t *testing.T) *kit {
	t.Helper()
	dir := t.TempDir()
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	secret[0] = 0x80         // no text
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{"aes": secret, "ec": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p, err := localkeys.NewFolder(block.Env{}, &localkeys.FolderConfig{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	providers := catalog.NewStore[block.Crypto](block.KindCrypto)
	providers.Put(catalog.NewHandle(catalog.Info{Name: "vault"}, p, &call.Target{Kind: call.Crypto, Name: "vault"}))
	return newKit(t, grpcapi.Options{Crypto: crypto.New(providers, identity.Self{App: "app"}, nil)})
}

// message is one message of a caller.
type message struct {
	encrypt *runtimev1.EncryptRequestOptions
	decrypt *runtimev1.DecryptRequestOptions
	data    []byte // nil: no payload
	seq     uint64
}

func (m message) payload() *commonv1.StreamPayload {
	if m.data == nil {
		return nil
	}
	return &commonv1.StreamPayload{Data: m.data, Seq: m.seq}
}

// talk sends messages, closes its side unless open is set, and gives what came until the end. The
// sequence numbers of answers are checked.
func (k *kit) talk(t *testing.T, decrypt, open bool, messages ...message) ([]byte, error) {
	t.Helper()
	ctx := within(t)
	var send func(message) error
	var receive func() (*commonv1.StreamPayload, error)
	var closeSend func() error
	if decrypt {
		s, err := k.DecryptAlpha1(ctx)
		if err != nil {
			t.Fatal(err)
		}
		send = func(m message) error {
			return s.Send(&runtimev1.DecryptRequest{Options: m.decrypt, Payload: m.payload()})
		}
		receive = func() (*commonv1.StreamPayload, error) { m, err := s.Recv(); return m.GetPayload(), err }
		closeSend = s.CloseSend
	} else {
		s, err := k.EncryptAlpha1(ctx)
		if err != nil {
			t.Fatal(err)
		}
		send = func(m message) error {
			return s.Send(&runtimev1.EncryptRequest{Options: m.encrypt, Payload: m.payload()})
		}
		receive = func() (*commonv1.StreamPayload, error) { m, err := s.Recv(); return m.GetPayload(), err }
		closeSend = s.CloseSend
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for _, m := range messages {
			if send(m) != nil {
				return // the answer says why
			}
		}
		if !open {
			_ = closeSend()
		}
	}()
	defer func() { <-sent }()
	var out []byte
	for n := uint64(0); ; n++ {
		p, err := receive()
		if err == io.EOF { //nolint:errorlint // the end is io.EOF itself
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if p.GetSeq() != n {
			t.Errorf("answer number %d has the sequence number %d", n, p.GetSeq())
		}
		out = append(out, p.GetData()...)
	}
}

var (
	sealIt = &runtimev1.EncryptRequestOptions{ComponentName: "vault", KeyName: "aes", KeyWrapAlgorithm: "aes"}
	openIt = &runtimev1.DecryptRequestOptions{ComponentName: "vault"}
)

// cut divides data into messages of a size.
func cut(data []byte, size int, first message) []message {
	out := []message{first}
	for n := uint64(0); len(data) > 0; n++ {
		at := min(size, len(data))
		out = append(out, message{data: data[:at], seq: n})
		data = data[at:]
	}
	return out
}

func TestDocuments(t *testing.T) {
	k := newVault(t)
	for _, size := range []int{0, 1, 64 << 10, 3<<20 + 5} {
		for _, piece := range []int{1000, 64 << 10, 1 << 20} {
			if size/piece > 100 {
				continue
			}
			plain := bytes.Repeat([]byte{7}, size)
			doc, err := k.talk(t, false, false, cut(plain, piece, message{encrypt: sealIt})...)
			if err != nil || !bytes.HasPrefix(doc, []byte("dapr.io/enc/v1\n{\"k\":\"aes\",")) {
				t.Fatalf("%d bytes in pieces of %d: %v: %.60q", size, piece, err, doc)
			}
			got, err := k.talk(t, true, false, cut(doc, piece, message{decrypt: openIt})...)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes in pieces of %d: %d bytes back, %v", size, piece, len(got), err)
			}
		}
	}
}

// Messages may come in every shape that the API knows.
func TestShapesOfMessages(t *testing.T) {
	k := newVault(t)
	for name, messages := range map[string][]message{
		"data in the first":       {{encrypt: sealIt, data: []byte("hel")}, {data: []byte("lo"), seq: 1}},
		"empty data":              {{encrypt: sealIt}, {data: []byte{}}, {data: []byte("hello"), seq: 1}, {data: []byte{}, seq: 2}},
		"messages without a load": {{encrypt: sealIt}, {}, {data: []byte("hello")}, {}, {}},
		"a byte each":             {{encrypt: sealIt}, {data: []byte("h")}, {data: []byte("e"), seq: 1}, {data: []byte("l"), seq: 2}, {data: []byte("l"), seq: 3}, {data: []byte("o"), seq: 4}},
	} {
		doc, err := k.talk(t, false, false, messages...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := k.talk(t, true, false, message{decrypt: openIt, data: doc}); err != nil || string(got) != "hello" {
			t.Errorf("%s: %q came back, %v", name, got, err)
		}
	}
	doc, err := k.talk(t, false, false, message{encrypt: &runtimev1.EncryptRequestOptions{ComponentName: "vault", KeyName: "aes", KeyWrapAlgorithm: "A256KW",
		DataEncryptionCipher: "chacha20-poly1305", OmitDecryptionKeyName: true, DecryptionKeyName: "x"}, data: []byte("hello")})
	if err != nil || !bytes.HasPrefix(doc, []byte("dapr.io/enc/v1\n{\"kw\":1,")) || !bytes.Contains(doc, []byte(`"cph":2`)) {
		t.Fatalf("with all options: %v: %.80q", err, doc)
	}
	if got, err := k.talk(t, true, false, message{decrypt: &runtimev1.DecryptRequestOptions{ComponentName: "vault", KeyName: "aes"}, data: doc}); err != nil || string(got) != "hello" {
		t.Errorf("with the key's name: %q, %v", got, err)
	}
}

func TestRefusedMessages(t *testing.T) {
	k := newVault(t)
	with := func(change func(*runtimev1.EncryptRequestOptions)) *runtimev1.EncryptRequestOptions {
		o := &runtimev1.EncryptRequestOptions{ComponentName: "vault", KeyName: "aes", KeyWrapAlgorithm: "AES"}
		change(o)
		return o
	}
	header := []byte("dapr.io/enc/v1\n")
	for _, tt := range []struct {
		name     string
		decrypt  bool
		messages []message
		code     codes.Code
		says     string
		header   bool // the document's header comes before the error
	}{
		{"no message", false, nil, codes.InvalidArgument, "first message does not contain the required options", false},
		{"no message to decrypt", true, nil, codes.InvalidArgument, "first message does not contain the required options", false},
		{"no options", false, []message{{data: []byte("x")}}, codes.InvalidArgument, "first message does not contain the required options", false},
		{"no options to decrypt", true, []message{{data: []byte("x")}}, codes.InvalidArgument, "first message does not contain the required options", false},
		{"another provider", false, []message{{encrypt: with(func(o *runtimev1.EncryptRequestOptions) { o.ComponentName = "x" })}}, codes.InvalidArgument, "crypto provider x not found", false},
		{"another provider to decrypt", true, []message{{decrypt: &runtimev1.DecryptRequestOptions{ComponentName: "x"}}}, codes.InvalidArgument, "crypto provider x not found", false},
		{"no key", false, []message{{encrypt: with(func(o *runtimev1.EncryptRequestOptions) { o.KeyName = "" })}}, codes.Internal, "failed to perform operation: ", false},
		{"an unknown key", false, []message{{encrypt: with(func(o *runtimev1.EncryptRequestOptions) { o.KeyName = "nobody" })}}, codes.Internal, "nobody", false},
		{"no algorithm", false, []message{{encrypt: with(func(o *runtimev1.EncryptRequestOptions) { o.KeyWrapAlgorithm = "" })}}, codes.Internal, "failed to perform operation: ", false},
		{"an unknown algorithm", false, []message{{encrypt: with(func(o *runtimev1.EncryptRequestOptions) { o.KeyWrapAlgorithm = "RSA-OAEP" })}}, codes.Internal, "RSA-OAEP-256", false},
		{"an unknown cipher", false, []message{{encrypt: with(func(o *runtimev1.EncryptRequestOptions) { o.DataEncryptionCipher = "x" })}}, codes.Internal, "failed to perform operation: ", false},
		{"a first number that is not 0", false, []message{{encrypt: sealIt, data: []byte("x"), seq: 1}}, codes.Internal, "invalid sequence number", true},
		{"a number twice", false, []message{{encrypt: sealIt}, {data: []byte("x")}, {data: []byte("x")}}, codes.Internal, "invalid sequence number", true},
		{"a gap", false, []message{{encrypt: sealIt}, {data: []byte("x")}, {data: []byte("x"), seq: 2}}, codes.Internal, "invalid sequence number", true},
		{"a gap in a document", true, []message{{decrypt: openIt}, {data: header}, {data: []byte("x"), seq: 2}}, codes.Internal, "invalid sequence number", false},
		{"options again", false, []message{{encrypt: sealIt}, {encrypt: sealIt, data: []byte("x")}}, codes.Internal, "options", true},
		{"options again to decrypt", true, []message{{decrypt: openIt, data: header}, {decrypt: openIt}}, codes.Internal, "options", false},
		{"no document", true, []message{{decrypt: openIt, data: []byte("hello, world")}}, codes.Internal, "no encrypted document", false},
		{"an empty document", true, []message{{decrypt: openIt}}, codes.Internal, "no encrypted document", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := k.talk(t, tt.decrypt, false, tt.messages...)
			st := status.Convert(err)
			if st.Code() != tt.code || !strings.Contains(st.Message(), tt.says) || len(st.Details()) > 0 {
				t.Errorf("%v; want %v with %q and no details", err, tt.code, tt.says)
			}
			if bytes.HasPrefix(out, header) != tt.header {
				t.Errorf("%.40q came before; the header: %v, want %v", out, !tt.header, tt.header)
			}
		})
	}
	none := newKit(t, grpcapi.Options{Crypto: crypto.New(catalog.NewStore[block.Crypto](block.KindCrypto), identity.Self{}, nil)})
	for _, decrypt := range []bool{false, true} {
		m := message{encrypt: sealIt}
		if decrypt {
			m = message{decrypt: openIt}
		}
		if _, err := none.talk(t, decrypt, false, m); status.Code(err) != codes.Internal || status.Convert(err).Message() != "crypto providers not configured" {
			t.Errorf("no provider at all: %v", err)
		}
	}
}

// The header comes before any data is asked for, so that who waits for it can begin to send.
func TestHeaderComesFirst(t *testing.T) {
	k := newVault(t)
	s, err := k.EncryptAlpha1(within(t))
	if err == nil {
		err = s.Send(&runtimev1.EncryptRequest{Options: sealIt})
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Recv()
	if err != nil || !bytes.HasPrefix(m.GetPayload().GetData(), []byte("dapr.io/enc/v1\n")) {
		t.Fatalf("%v, %v", m, err)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); err != io.EOF { //nolint:errorlint // the end is io.EOF itself
		t.Errorf("%v, want the end", err)
	}
}

// The first message may take five seconds.
func TestLateOptions(t *testing.T) {
	t.Parallel()
	k := newVault(t)
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := k.DecryptAlpha1(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Recv()
	if took := time.Since(start); status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), "invalid request: ") || took < 5*time.Second {
		t.Errorf("%v after %v; want InvalidArgument after 5 s", err, took)
	}
}

// A caller that leaves ends its stream, whatever the stream was waiting for.
func TestCallerLeaves(t *testing.T) {
	k := newVault(t)
	for name, first := range map[string]*runtimev1.EncryptRequest{"before its options": nil, "before its data": {Options: sealIt}, "in the middle": {Options: sealIt, Payload: &commonv1.StreamPayload{Data: make([]byte, 200<<10)}}} {
		before := len(k.served.all())
		ctx, cancel := context.WithCancel(within(t))
		s, err := k.EncryptAlpha1(ctx)
		if err == nil && first != nil {
			if err = s.Send(first); err == nil {
				_, err = s.Recv() // the header
			}
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		cancel()
		for end := time.Now().Add(10 * time.Second); first != nil && len(k.served.all()) == before; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: the stream goes on", name)
			}
		}
	}
}

func TestSubtle(t *testing.T) {
	k := newVault(t)
	ctx := within(t)
	nonce := bytes.Repeat([]byte{1}, 12)
	sealed, err := k.SubtleEncryptAlpha1(ctx, &runtimev1.SubtleEncryptRequest{ComponentName: "vault", KeyName: "aes", Algorithm: "A256GCM", Nonce: nonce, AssociatedData: []byte("a"), Plaintext: []byte("hello")})
	if err != nil || len(sealed.GetTag()) != 16 {
		t.Fatalf("encrypt: %v, %v", sealed, err)
	}
	back := &runtimev1.SubtleDecryptRequest{ComponentName: "vault", KeyName: "aes", Algorithm: "A256GCM", Nonce: nonce, AssociatedData: []byte("a"), Ciphertext: sealed.GetCiphertext(), Tag: sealed.GetTag()}
	if got, err := k.SubtleDecryptAlpha1(ctx, back); err != nil || string(got.GetPlaintext()) != "hello" {
		t.Errorf("decrypt: %v, %v", got, err)
	}
	back.AssociatedData = nil
	if _, err := k.SubtleDecryptAlpha1(ctx, back); status.Code(err) != codes.Internal || !strings.HasPrefix(status.Convert(err).Message(), "failed to perform operation: ") {
		t.Errorf("decrypt without associated data: %v", err)
	}
	wrapped, err := k.SubtleWrapKeyAlpha1(ctx, &runtimev1.SubtleWrapKeyRequest{ComponentName: "vault", KeyName: "aes", Algorithm: "A256KW", PlaintextKey: bytes.Repeat([]byte{3}, 16)})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.SubtleUnwrapKeyAlpha1(ctx, &runtimev1.SubtleUnwrapKeyRequest{ComponentName: "vault", KeyName: "aes", Algorithm: "A256KW", WrappedKey: wrapped.GetWrappedKey()}); err != nil || !bytes.Equal(got.GetPlaintextKey(), bytes.Repeat([]byte{3}, 16)) {
		t.Errorf("unwrap: %v, %v", got, err)
	}
	signed, err := k.SubtleSignAlpha1(ctx, &runtimev1.SubtleSignRequest{ComponentName: "vault", KeyName: "ec", Algorithm: "ES256", Digest: make([]byte, 32)})
	if err != nil {
		t.Fatal(err)
	}
	check := &runtimev1.SubtleVerifyRequest{ComponentName: "vault", KeyName: "ec", Algorithm: "ES256", Digest: make([]byte, 32), Signature: signed.GetSignature()}
	if got, err := k.SubtleVerifyAlpha1(ctx, check); err != nil || !got.GetValid() {
		t.Errorf("verify: %v, %v", got, err)
	}
	check.Signature = slices.Concat(check.Signature[:9], []byte{1, 2, 3})
	if got, err := k.SubtleVerifyAlpha1(ctx, check); err != nil || got.GetValid() {
		t.Errorf("verify of noise: %v, %v", got, err)
	}
	for format, begins := range map[runtimev1.SubtleGetKeyRequest_KeyFormat]string{runtimev1.SubtleGetKeyRequest_PEM: "-----BEGIN PUBLIC KEY-----\n", runtimev1.SubtleGetKeyRequest_JSON: "{"} {
		if got, err := k.SubtleGetKeyAlpha1(ctx, &runtimev1.SubtleGetKeyRequest{ComponentName: "vault", Name: "ec", Format: format}); err != nil || got.GetName() != "ec" || !strings.HasPrefix(got.GetPublicKey(), begins) {
			t.Errorf("key as %v: %v, %v", format, got, err)
		}
	}
	for _, tt := range []struct {
		in   *runtimev1.SubtleGetKeyRequest
		code codes.Code
		says string
	}{
		{&runtimev1.SubtleGetKeyRequest{ComponentName: "vault", Name: "aes"}, codes.Internal, "failed to retrieve key aes: "},
		{&runtimev1.SubtleGetKeyRequest{ComponentName: "vault", Name: "ec", Format: 9}, codes.InvalidArgument, "invalid request: "},
		{&runtimev1.SubtleGetKeyRequest{ComponentName: "x", Name: "ec", Format: 9}, codes.InvalidArgument, "crypto provider x not found"},
	} {
		if _, err := k.SubtleGetKeyAlpha1(ctx, tt.in); status.Code(err) != tt.code || !strings.HasPrefix(status.Convert(err).Message(), tt.says) {
			t.Errorf("%v: %v, want %v %q", tt.in, err, tt.code, tt.says)
		}
	}
}
