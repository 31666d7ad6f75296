package crypto_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/crypto"
)

// change is a way to spoil a document of three segments and a half.
type change struct {
	name string
	do   func(doc []byte, body int) []byte
	// whole is how many plaintext bytes may still come out: those of segments before the change.
	whole int
}

const full = segment + 16

func changes() []change {
	bit := func(at func(doc []byte, body int) int) func([]byte, int) []byte {
		return func(doc []byte, body int) []byte { doc[at(doc, body)] ^= 4; return doc }
	}
	return []change{
		{"a bit of the scheme", bit(func([]byte, int) int { return 3 }), 0},
		{"a bit of the manifest", bit(func(doc []byte, body int) int { return bytes.Index(doc, []byte(`"wfk":"`)) + 12 }), 0},
		{"another key name", func(doc []byte, _ int) []byte {
			return bytes.Replace(doc, []byte(`"k":"aes"`), []byte(`"k":"aez"`), 1)
		}, 0},
		{"another cipher", func(doc []byte, _ int) []byte {
			at := bytes.Index(doc, []byte(`"cph":`)) + 6
			doc[at] = '1' + '2' - doc[at]
			return doc
		}, 0},
		{"a space in the manifest", func(doc []byte, _ int) []byte { return bytes.Replace(doc, []byte(`"cph":`), []byte(`"cph": `), 1) }, 0},
		{"a bit of the MAC", bit(func(doc []byte, body int) int { return body - 10 }), 0},
		{"no MAC", func(doc []byte, body int) []byte { return append(doc[:body-45:body-45], doc[body:]...) }, 0},
		{"half a header", func(doc []byte, body int) []byte { return doc[:body/2] }, 0},
		{"nothing", func([]byte, int) []byte { return nil }, 0},
		{"a bit of the first segment", bit(func(_ []byte, body int) int { return body }), 0},
		{"a bit of the second", bit(func(_ []byte, body int) int { return body + full + 100 }), segment},
		{"a bit of the second's tag", bit(func(_ []byte, body int) int { return body + 2*full - 1 }), segment},
		{"a bit of the last", bit(func(doc []byte, _ int) int { return len(doc) - 1 }), 3 * segment},
		{"a byte missing", func(doc []byte, _ int) []byte { return doc[:len(doc)-1] }, 3 * segment},
		{"the last segment missing", func(doc []byte, body int) []byte { return doc[:body+3*full] }, 2 * segment},
		{"two missing", func(doc []byte, body int) []byte { return doc[:body+2*full] }, segment},
		{"a tag of the last only", func(doc []byte, body int) []byte { return doc[:body+3*full+16] }, 3 * segment},
		{"the first missing", func(doc []byte, body int) []byte { return append(doc[:body:body], doc[body+full:]...) }, 0},
		{"one in the middle missing", func(doc []byte, body int) []byte {
			return append(doc[:body+full:body+full], doc[body+2*full:]...)
		}, segment},
		{"two exchanged", func(doc []byte, body int) []byte {
			out := bytes.Clone(doc)
			copy(out[body:], doc[body+full:body+2*full])
			copy(out[body+full:], doc[body:body+full])
			return out
		}, 0},
		{"one twice", func(doc []byte, body int) []byte {
			return append(append(bytes.Clone(doc[:body+full]), doc[body:body+full]...), doc[body+full:]...)
		}, segment},
		{"a byte more", func(doc []byte, _ int) []byte { return append(doc, 0) }, 3 * segment},
		{"a line feed more", func(doc []byte, _ int) []byte { return append(doc, '\n') }, 3 * segment},
		{"a segment more", func(doc []byte, body int) []byte { return append(doc, doc[body:body+full]...) }, 3 * segment},
		{"itself once more", func(doc []byte, body int) []byte { return append(doc, doc...) }, 3 * segment},
	}
}

// Whatever happens to a document is noticed, and what comes out before is right.
func TestChangedDocuments(t *testing.T) {
	k := newKit(t)
	plain := noise(3*segment + segment/2)
	for _, cipher := range []string{"AES-GCM", "CHACHA20-POLY1305"} {
		for _, c := range changes() {
			t.Run(cipher+", "+c.name, func(t *testing.T) {
				doc := k.encrypt(t, crypto.Encryption{Key: "aes", Wrap: "AES", Cipher: cipher}, plain)
				spoilt := c.do(bytes.Clone(doc), headerLen(t, doc))
				if bytes.Equal(spoilt, doc) {
					t.Fatal("nothing was changed: the test proves nothing")
				}
				got, err := k.decrypt(t, "", spoilt)
				if code := fault.Of(err); code != fault.Invalid && code != fault.NotFound {
					t.Errorf("%v, want %s", err, fault.Invalid)
				}
				if !bytes.HasPrefix(plain, got) || len(got) > c.whole {
					t.Errorf("%d bytes came out, %d at most were whole", len(got), c.whole)
				}
				if err != nil && len(err.Error()) > 400 {
					t.Errorf("the error is long: %v", err)
				}
			})
		}
	}
}

// An empty document is its header, as Dapr writes it. With an empty segment behind the header it is
// the same; behind other segments an empty one is noticed.
func TestEmptyDocuments(t *testing.T) {
	k := newKit(t)
	doc := k.encrypt(t, usual, nil)
	if n := headerLen(t, doc); len(doc) != n {
		t.Errorf("%d bytes behind the header of an empty document, want none", len(doc)-n)
	}
	for _, size := range []int{0, segment} {
		for _, flagged := range []bool{true, false} {
			doc := sealed(t, k, noise(size), flagged)
			got, err := k.decrypt(t, "", doc)
			if ok := size == 0 && flagged; ok != (err == nil) || len(got) > size {
				t.Errorf("an empty segment behind %d bytes, flagged as the last: %v: %d bytes, %v", size, flagged, len(got), err)
			}
		}
	}
}

// sealed makes a document by hand, from what the scheme says: full segments, then an empty one.
func sealed(t *testing.T, k *kit, plain []byte, flagged bool) []byte {
	t.Helper()
	must := func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	fileKey, prefix := noise(32), noise(7)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &k.rsa.PublicKey, fileKey, nil)
	line, err2 := json.Marshal(map[string]any{"k": "rsa", "kw": 5, "wfk": wrapped, "cph": 1, "np": prefix})
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	doc := append([]byte("dapr.io/enc/v1\n"), append(line, '\n')...)
	mac := hmac.New(sha256.New, must(hkdf.Key(sha256.New, fileKey, nil, "header", 32)))
	mac.Write(doc)
	doc = append(base64.StdEncoding.AppendEncode(doc, mac.Sum(nil)), '\n')
	b, err := aes.NewCipher(must(hkdf.Key(sha256.New, fileKey, prefix, "payload", 32)))
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(b)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; n < len(plain)/segment; n++ {
		doc = gcm.Seal(doc, append(bytes.Clone(prefix), 0, 0, 0, byte(n), 0), plain[n*segment:(n+1)*segment], nil)
	}
	last := byte(0)
	if flagged {
		last = 1
	}
	return gcm.Seal(doc, append(bytes.Clone(prefix), 0, 0, 0, byte(n), last), nil, nil)
}

func TestDecryptWithAnotherKey(t *testing.T) {
	k := newKit(t)
	unnamed := k.encrypt(t, crypto.Encryption{Key: "aes", Wrap: "AES", OmitKey: true}, []byte("hello"))
	if _, err := k.decrypt(t, "", unnamed); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), "name its key") {
		t.Errorf("no name anywhere: %v", err)
	}
	if got, err := k.decrypt(t, "aes", unnamed); err != nil || string(got) != "hello" {
		t.Errorf("with the name: %q, %v", got, err)
	}
	for _, key := range []string{"other", "rsa", "ec"} {
		if _, err := k.decrypt(t, key, unnamed); fault.Of(err) != fault.Invalid {
			t.Errorf("with key %s: %v, want %s", key, err, fault.Invalid)
		}
	}
	misnamed := k.encrypt(t, crypto.Encryption{Key: "aes", Wrap: "AES", DecryptionKey: "nobody"}, []byte("hello"))
	if _, err := k.decrypt(t, "", misnamed); fault.Of(err) != fault.NotFound {
		t.Errorf("a name that nobody has: %v", err)
	}
	if got, err := k.decrypt(t, "aes", misnamed); err != nil || string(got) != "hello" {
		t.Errorf("a name that wins over the document's: %q, %v", got, err)
	}
	if _, err := k.Decrypt(t.Context(), "x", "", untouched{t}); fault.ReasonOf(err) != fault.NoSuchComponent {
		t.Errorf("no such provider: %v", err)
	}
}

var errBroken = errors.New("the line was cut")

// A source that breaks off is never taken for one that ends, whatever it says.
func TestBrokenSources(t *testing.T) {
	k := newKit(t)
	for name, cut := range map[string]error{"an error": errBroken, "an unexpected end": io.ErrUnexpectedEOF, "a wrapped end": fmt.Errorf("caller left: %w", io.EOF),
		"as the HTTP edge says it": fault.Wrap("h1", fault.Canceled, io.ErrUnexpectedEOF)} {
		for _, after := range []int{0, 10, segment, segment + 1, 2 * segment} {
			src := io.MultiReader(bytes.NewReader(noise(after)), iotest.ErrReader(cut))
			if _, err := all(k.Encrypt(t.Context(), "vault", usual, src)); err == nil || !errors.Is(err, cut) {
				t.Errorf("encryption, %s after %d bytes: %v", name, after, err)
			}
			doc := k.encrypt(t, usual, noise(2*segment))
			src = io.MultiReader(bytes.NewReader(doc[:min(len(doc), after+30)]), iotest.ErrReader(cut))
			if _, err := all(k.Decrypt(t.Context(), "vault", "", src)); err == nil || !errors.Is(err, cut) {
				t.Errorf("decryption, %s after %d bytes: %v", name, after+30, err)
			}
		}
	}
	if _, err := all(k.Encrypt(t.Context(), "vault", usual, idle{})); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("a source that gives nothing: %v", err)
	}
}

type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

// Every use of the provider is a call under its policy, and is counted; what is refused before is not.
func TestPolicyAndMetrics(t *testing.T) {
	k := newKit(t)
	doc := k.encrypt(t, usual, []byte("x"))
	if _, err := k.decrypt(t, "", doc); err != nil {
		t.Fatal(err)
	}
	_, _ = k.Encrypt(t.Context(), "x", usual, nil)
	_, _ = k.Encrypt(t.Context(), "vault", crypto.Encryption{Key: "aes", Wrap: "x"}, nil)
	_, _ = k.Encrypt(t.Context(), "vault", crypto.Encryption{Key: "nobody", Wrap: "AES"}, nil)
	_, _ = k.PublicKey(t.Context(), "vault", "rsa", crypto.PEM)
	_, _ = k.Sign(t.Context(), "vault", "ec", "ES256", noise(32))
	_, _ = k.Verify(t.Context(), "vault", "ec", "ES256", noise(32), noise(64))
	want := []string{"wrapKey aes true shop", "unwrapKey aes true shop", "wrapKey nobody true shop", "getKey rsa true shop", "sign ec true shop", "verify ec true shop"}
	if d := cmp.Diff(want, k.policy.seen); d != "" {
		t.Errorf("policy saw (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"vault true true", "vault true true", "vault false true", "vault true true", "vault true true", "vault true true"}, k.rec.lines); d != "" {
		t.Errorf("counted (-want +got):\n%s", d)
	}
	k.policy.refuse = fault.New("policy", fault.Exhausted, "too much").With(fault.PolicyRejected)
	if _, err := k.Encrypt(t.Context(), "vault", usual, untouched{t}); fault.ReasonOf(err) != fault.PolicyRejected {
		t.Errorf("refused by policy: %v", err)
	}
}
