package crypto_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/localkeys"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/crypto"
	"github.com/mecha-project/mecha/runtime/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// segment is what a document is divided into.
const segment = 64 << 10

// keyFiles is a folder with a key of each kind, and the keys.
type keyFiles struct {
	dir string
	aes []byte
	rsa *rsa.PrivateKey
}

var rsaKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newKeyFiles(t testing.TB) *keyFiles {
	t.Helper()
	k := &keyFiles{dir: t.TempDir(), aes: noise(32), rsa: rsaKey()}
	k.aes[0] = 0x80 // no text
	put := func(name string, raw []byte) {
		if err := os.WriteFile(filepath.Join(k.dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("aes", k.aes)
	put("other", append([]byte{0x81}, noise(31)...))
	pk8 := func(name string, key any) {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		put(name, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	pk8("rsa", k.rsa)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pk8("ec", ec)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pk8("ed", ed)
	return k
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) Crypto(component string, ok bool, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprint(component, " ", ok, " ", took >= 0))
}

// layer is a policy that sees, and may refuse, every call.
type layer struct {
	seen   []string
	refuse error
}

func (l *layer) Enter(ctx context.Context, c *call.Call) (context.Context, error) {
	l.seen = append(l.seen, fmt.Sprint(c.Op, " ", c.Resource, " ", c.Safety == call.Safe, " ", c.Caller.App))
	return ctx, l.refuse
}
func (l *layer) Exit(_ *call.Call, err error) error { return err }

type kit struct {
	*crypto.Service
	*keyFiles
	rec    *recorder
	policy *layer
}

func newKit(t testing.TB) *kit {
	t.Helper()
	k := &kit{keyFiles: newKeyFiles(t), rec: &recorder{}, policy: &layer{}}
	p, err := localkeys.NewFolder(block.Env{}, &localkeys.FolderConfig{Path: k.dir})
	if err != nil {
		t.Fatal(err)
	}
	k.Service = serviceOf(p, k.policy, k.rec)
	return k
}

func serviceOf(p block.Crypto, l call.Layer, rec crypto.Recorder) *crypto.Service {
	stores := catalog.NewStore[block.Crypto](block.KindCrypto)
	target := &call.Target{Kind: call.Crypto, Name: "vault"}
	if l != nil {
		target.SetChain(&call.Chain{Layers: []call.Layer{l}})
	}
	stores.Put(catalog.NewHandle(catalog.Info{Name: "vault"}, p, target))
	return crypto.New(stores, identity.Self{App: "shop", Namespace: "default"}, rec)
}

// all reads a stream to its end.
func all(s *crypto.Stream, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var out []byte
	for {
		piece, err := s.Next()
		if err == io.EOF { //nolint:errorlint // the end is io.EOF itself
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out = append(out, piece...)
	}
}

func (k *kit) encrypt(t testing.TB, e crypto.Encryption, plain []byte) []byte {
	t.Helper()
	doc, err := all(k.Encrypt(t.Context(), "vault", e, bytes.NewReader(plain)))
	if err != nil {
		t.Fatalf("Encrypt: %v", err)
	}
	return doc
}

func (k *kit) decrypt(t testing.TB, key string, doc []byte) ([]byte, error) {
	t.Helper()
	return all(k.Decrypt(t.Context(), "vault", key, bytes.NewReader(doc)))
}

var usual = crypto.Encryption{Key: "aes", Wrap: "A256KW"}

// sizes are lengths around the ends of segments.
var sizes = []int{0, 1, 15, 16, 17, segment - 17, segment - 1, segment, segment + 1, segment + 16, segment + 17, 2*segment - 1, 2 * segment, 2*segment + 1, 5*segment + 333}

func TestRoundTrip(t *testing.T) {
	k := newKit(t)
	for _, e := range []crypto.Encryption{usual, {Key: "aes", Wrap: "aes", Cipher: "chacha20-poly1305"}, {Key: "rsa", Wrap: "RSA"}, {Key: "rsa", Wrap: "rsa-oaep-256", Cipher: "AES-gcm", DecryptionKey: "rsa"}} {
		for _, size := range sizes {
			plain := noise(size)
			doc := k.encrypt(t, e, plain)
			segments := (size + segment - 1) / segment
			if rest := len(doc) - headerLen(t, doc); rest != size+16*segments {
				t.Errorf("%v, %d bytes: %d bytes behind the header, want %d segments with their tags", e, size, rest, segments)
			}
			if size >= 15 && bytes.Contains(doc, plain[:15]) {
				t.Errorf("%v, %d bytes: the plaintext stands in the document", e, size)
			}
			got, err := k.decrypt(t, "", doc)
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%v, %d bytes: %d bytes back, %v", e, size, len(got), err)
			}
			for name, src := range map[string]io.Reader{"byte by byte": iotest.OneByteReader(bytes.NewReader(doc)), "the end with the data": iotest.DataErrReader(bytes.NewReader(doc))} {
				if size > 2*segment {
					continue
				}
				if got, err := all(k.Decrypt(t.Context(), "vault", "", src)); err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%v, %d bytes, %s: %d bytes back, %v", e, size, name, len(got), err)
				}
			}
		}
	}
	for _, src := range []io.Reader{iotest.HalfReader(bytes.NewReader(noise(segment + 5))), iotest.DataErrReader(bytes.NewReader(noise(segment + 5)))} {
		doc, err := all(k.Encrypt(t.Context(), "vault", usual, src))
		if got, err2 := k.decrypt(t, "", doc); err != nil || err2 != nil || len(got) != segment+5 {
			t.Errorf("a source that gives little: %v, %v, %d bytes", err, err2, len(got))
		}
	}
}

// headerLen is the length of the three lines.
func headerLen(t testing.TB, doc []byte) int {
	t.Helper()
	at := 0
	for range 3 {
		i := bytes.IndexByte(doc[at:], '\n')
		if i < 0 {
			t.Fatalf("no header in %.100q", doc)
		}
		at += i + 1
	}
	return at
}

// The header is as the scheme says, to the letter.
func TestHeader(t *testing.T) {
	k := newKit(t)
	for _, tt := range []struct {
		name string
		e    crypto.Encryption
		want string // manifest, W for the wrapped key, N for the nonce prefix
	}{
		{"defaults", usual, `{"k":"aes","kw":1,"wfk":"W","cph":1,"np":"N"}`},
		{"another cipher", crypto.Encryption{Key: "aes", Wrap: "A256KW", Cipher: "CHACHA20-POLY1305"}, `{"k":"aes","kw":1,"wfk":"W","cph":2,"np":"N"}`},
		{"RSA", crypto.Encryption{Key: "rsa", Wrap: "RSA-OAEP-256"}, `{"k":"rsa","kw":5,"wfk":"W","cph":1,"np":"N"}`},
		{"no name", crypto.Encryption{Key: "aes", Wrap: "A256KW", OmitKey: true}, `{"kw":1,"wfk":"W","cph":1,"np":"N"}`},
		{"no name after all", crypto.Encryption{Key: "aes", Wrap: "A256KW", OmitKey: true, DecryptionKey: "x"}, `{"kw":1,"wfk":"W","cph":1,"np":"N"}`},
		{"another name", crypto.Encryption{Key: "aes", Wrap: "A256KW", DecryptionKey: "vault/aes\n"}, `{"k":"vault/aes\n","kw":1,"wfk":"W","cph":1,"np":"N"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			doc := k.encrypt(t, tt.e, []byte("hello"))
			lines := strings.SplitN(string(doc), "\n", 4)
			var m struct {
				W string `json:"wfk"`
				N string `json:"np"`
			}
			if err := json.Unmarshal([]byte(lines[1]), &m); err != nil {
				t.Fatal(err)
			}
			got := strings.Replace(strings.Replace(lines[1], m.W, "W", 1), m.N, "N", 1)
			if lines[0] != "dapr.io/enc/v1" || got != tt.want {
				t.Errorf("header %q, %s; want %s", lines[0], got, tt.want)
			}
			if n, err := base64.StdEncoding.DecodeString(m.N); err != nil || len(n) != 7 {
				t.Errorf("nonce prefix %s: %v", m.N, err)
			}
			if mac, err := base64.StdEncoding.DecodeString(lines[2]); err != nil || len(mac) != 32 {
				t.Errorf("MAC %s: %v", lines[2], err)
			}
		})
	}
	if a, b := k.encrypt(t, usual, []byte("x")), k.encrypt(t, usual, []byte("x")); bytes.Equal(a, b) {
		t.Error("one text gives one document twice: keys and nonces must differ")
	}
}

func TestEncryptRefused(t *testing.T) {
	k := newKit(t)
	for _, tt := range []struct {
		name, provider string
		e              crypto.Encryption
		code           fault.Code
		reason         fault.Reason
		says           string
	}{
		{"no such provider, told first", "x", crypto.Encryption{}, fault.NotFound, fault.NoSuchComponent, "x"},
		{"no key", "vault", crypto.Encryption{Wrap: "AES"}, fault.Invalid, "", "name of the key"},
		{"no algorithm", "vault", crypto.Encryption{Key: "aes"}, fault.Invalid, "", "algorithm"},
		{"an algorithm it does not have", "vault", crypto.Encryption{Key: "rsa", Wrap: "RSA-OAEP"}, fault.Invalid, "", "RSA-OAEP-256"},
		{"a cipher it does not have", "vault", crypto.Encryption{Key: "aes", Wrap: "AES", Cipher: "SM4-GCM"}, fault.Invalid, "", "CHACHA20-POLY1305"},
		{"an unknown key", "vault", crypto.Encryption{Key: "nobody", Wrap: "AES"}, fault.NotFound, "", "nobody"},
		{"a key of another kind", "vault", crypto.Encryption{Key: "rsa", Wrap: "AES"}, fault.Invalid, "", "RSA key"},
		{"an algorithm that takes a nonce", "vault", crypto.Encryption{Key: "aes", Wrap: "A256CBC-NOPAD"}, fault.Invalid, "", "nonce"},
		{"a header that would be too long", "vault", crypto.Encryption{Key: "aes", Wrap: "AES", DecryptionKey: strings.Repeat("k", 50_000)}, fault.TooLarge, "", "key name"},
	} {
		_, err := k.Encrypt(t.Context(), tt.provider, tt.e, untouched{t})
		if fault.Of(err) != tt.code || fault.ReasonOf(err) != tt.reason || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v (%v %v), want %v %v with %q", tt.name, err, fault.Of(err), fault.ReasonOf(err), tt.code, tt.reason, tt.says)
		}
	}
	none := crypto.New(catalog.NewStore[block.Crypto](block.KindCrypto), identity.Self{}, nil)
	for what, err := range map[string]error{"Provider": none.Provider("x"), "Encrypt": second(none.Encrypt(t.Context(), "x", usual, nil)), "Decrypt": second(none.Decrypt(t.Context(), "x", "", nil)),
		"Sign": second(none.Sign(t.Context(), "x", "", "", nil))} {
		if fault.ReasonOf(err) != fault.NoComponents {
			t.Errorf("%s without any provider: %v", what, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// untouched fails the test when it is read.
type untouched struct{ t *testing.T }

func (u untouched) Read([]byte) (int, error) {
	u.t.Error("the source was read before the request was found good")
	return 0, io.EOF
}

// The header is there before anything is read, so that who waits for it can begin to send.
func TestHeaderComesFirst(t *testing.T) {
	k := newKit(t)
	s, err := k.Encrypt(t.Context(), "vault", usual, untouched{t})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if first, err := s.Next(); err != nil || !bytes.HasPrefix(first, []byte("dapr.io/enc/v1\n")) {
		t.Errorf("%.40q, %v", first, err)
	}
}

func TestSubtle(t *testing.T) {
	k := newKit(t)
	ctx := t.Context()
	u := block.KeyUse{Key: "aes", Algorithm: "A256GCM", Nonce: noise(12), AssociatedData: []byte("a")}
	s, err := k.EncryptOne(ctx, "vault", u, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.DecryptOne(ctx, "vault", u, s); err != nil || string(got) != "hello" {
		t.Errorf("DecryptOne: %q, %v", got, err)
	}
	wu := block.KeyUse{Key: "rsa", Algorithm: "RSA-OAEP"}
	w, err := k.WrapKey(ctx, "vault", wu, k.aes)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.UnwrapKey(ctx, "vault", wu, w); err != nil || !bytes.Equal(got, k.aes) {
		t.Errorf("UnwrapKey: %v", err)
	}
	d := noise(32)
	sig, err := k.Sign(ctx, "vault", "rsa", "PS256", d)
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := k.Verify(ctx, "vault", "rsa", "PS256", d, sig); err != nil || !ok {
		t.Errorf("Verify: %v, %v", ok, err)
	}
}

func TestPublicKey(t *testing.T) {
	k := newKit(t)
	text, err := k.PublicKey(t.Context(), "vault", "rsa", crypto.PEM)
	if err != nil {
		t.Fatal(err)
	}
	b, rest := pem.Decode([]byte(text))
	if b == nil || b.Type != "PUBLIC KEY" || len(rest) > 0 {
		t.Fatalf("PEM: %s", text)
	}
	if got, err := x509.ParsePKIXPublicKey(b.Bytes); err != nil || !k.rsa.PublicKey.Equal(got) {
		t.Errorf("the public key: %v, %v", got, err)
	}
	for key, want := range map[string]map[string]string{"rsa": {"kty": "RSA", "kid": "rsa", "e": "AQAB"}, "ec": {"kty": "EC", "crv": "P-256", "kid": "ec"}, "ed": {"kty": "OKP", "crv": "Ed25519"}} {
		text, err := k.PublicKey(t.Context(), "vault", key, crypto.JWK)
		var got map[string]string
		if err == nil {
			err = json.Unmarshal([]byte(text), &got)
		}
		for name, value := range want {
			if err != nil || got[name] != value {
				t.Errorf("%s: %s, %v; want %s %s", key, text, err, name, value)
			}
		}
		if got["d"] != "" || got["p"] != "" {
			t.Errorf("%s: the private key is given away", key)
		}
	}
	if text, err := k.PublicKey(t.Context(), "vault", "aes", crypto.PEM); fault.Of(err) != fault.Invalid || text != "" {
		t.Errorf("a symmetric key: %q, %v", text, err)
	}
}

// zeros is a source of n zero bytes.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), z.n)]
	clear(p)
	z.n -= int64(len(p))
	return len(p), nil
}

// pieces is a stream as a source.
type pieces struct {
	s   *crypto.Stream
	got []byte
}

func (p *pieces) Read(b []byte) (int, error) {
	for len(p.got) == 0 {
		var err error
		if p.got, err = p.s.Next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.got)
	p.got = p.got[n:]
	return n, nil
}

// A document of 200 MiB takes no more memory than a small one.
func TestConstantMemory(t *testing.T) {
	k := newKit(t)
	const size = 200 << 20
	enc, err := k.Encrypt(t.Context(), "vault", usual, &zeros{size})
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	dec, err := k.Decrypt(t.Context(), "vault", "", &pieces{s: enc})
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	total := 0
	for {
		piece, err := dec.Next()
		if err == io.EOF { //nolint:errorlint // the end is io.EOF itself
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		total += len(piece)
	}
	runtime.ReadMemStats(&after)
	if grew := after.TotalAlloc - before.TotalAlloc; total != size || grew > 2<<20 {
		t.Errorf("%d bytes came back, want %d; %d bytes were allocated on the way, want no more than 2 MiB", total, size, grew)
	}
}

// Nothing of a stream is used after it was closed.
func TestClose(t *testing.T) {
	k := newKit(t)
	s, err := k.Encrypt(t.Context(), "vault", usual, &zeros{10})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s.Close()
	if _, err := s.Next(); fault.Of(err) != fault.Internal {
		t.Errorf("Next after Close: %v", err)
	}
}

func BenchmarkStream(b *testing.B) {
	k := newKit(b)
	for _, cipher := range []string{"AES-GCM", "CHACHA20-POLY1305"} {
		const size = 16 << 20
		b.Run("encrypt "+cipher, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				s, err := k.Encrypt(b.Context(), "vault", crypto.Encryption{Key: "aes", Wrap: "AES", Cipher: cipher}, &zeros{size})
				if err == nil {
					for err == nil {
						_, err = s.Next()
					}
					s.Close()
				}
				if err != io.EOF { //nolint:errorlint // the end is io.EOF itself
					b.Fatal(err)
				}
			}
		})
		doc := k.encrypt(b, crypto.Encryption{Key: "aes", Wrap: "AES", Cipher: cipher}, make([]byte, size))
		b.Run("decrypt "+cipher, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				s, err := k.Decrypt(b.Context(), "vault", "", bytes.NewReader(doc))
				if err == nil {
					for err == nil {
						_, err = s.Next()
					}
					s.Close()
				}
				if err != io.EOF { //nolint:errorlint // the end is io.EOF itself
					b.Fatal(err)
				}
			}
		})
	}
}
