package httpapi_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/localkeys"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/crypto"
	"github.com/mecha-project/mecha/runtime/identity"
)

// noProviders is the cryptography service of a sidecar without any crypto component.
var noProviders = crypto.New(catalog.NewStore[block.Crypto](block.KindCrypto), identity.Self{App: "app"}, nil)

// withVault gives a server the real service, with a provider "vault" that has the keys aes and ec.
func withVault(t *testing.T) func(*httpapi.Options) {
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
	return func(o *httpapi.Options) {
		o.Crypto = crypto.New(providers, identity.Self{App: "app"}, nil)
	}
}

const vault = "/v1.0-alpha1/crypto/vault/"

// document asks for a document and gives what came.
func (k *kit) document(t *testing.T, what string, body []byte, headers ...string) *httpapi.Exchange {
	t.Helper()
	x := &httpapi.Exchange{Verb: "PUT", To: vault + what, Payload: body, Fields: fields(headers...), Chunked: true}
	k.Do(x)
	return x
}

func TestDocuments(t *testing.T) {
	k := newKit(withVault(t))
	for _, size := range []int{0, 1, 64 << 10, 3 << 20} { // the last is over the limit of bodies, which is 1 MiB here
		plain := bytes.Repeat([]byte{7}, size)
		x := k.document(t, "encrypt", plain, "dapr-key-name", "aes", "Dapr-Key-Wrap-Algorithm", "aes")
		if x.Status != 200 || x.Answer.Get("Content-Type") != "application/octet-stream" || !x.Ended || x.Aborted || !bytes.HasPrefix(x.Out, []byte("dapr.io/enc/v1\n{\"k\":\"aes\",")) {
			t.Fatalf("%d bytes: %d %v, ended %v: %.60q", size, x.Status, x.Answer, x.Ended, x.Out)
		}
		if got := k.served.last(t); got.BytesIn != int64(size) || got.BytesOut != int64(len(x.Out)) || got.Route != "EncryptAlpha1" {
			t.Errorf("%d bytes: observed %+v, want %d in and %d out", size, got, size, len(x.Out))
		}
		back := k.document(t, "decrypt", x.Out)
		if back.Status != 200 || back.Answer.Get("Content-Type") != "application/octet-stream" || !back.Ended || !bytes.Equal(back.Out, plain) {
			t.Errorf("%d bytes: %d, %d bytes back, ended %v", size, back.Status, len(back.Out), back.Ended)
		}
	}
}

func TestDocumentOptions(t *testing.T) {
	k := newKit(withVault(t))
	manifest := func(headers ...string) string {
		x := k.document(t, "encrypt", []byte("x"), append(headers, "dapr-key-name", "aes", "dapr-key-wrap-algorithm", "A256KW")...)
		lines := strings.Split(string(x.Out), "\n")
		if x.Status != 200 || len(lines) < 3 {
			t.Fatalf("%v: %d %s", headers, x.Status, x.Out)
		}
		return lines[1]
	}
	for _, tt := range []struct{ header, value, has string }{
		{"dapr-omit-decryption-key-name", "true", `{"kw":1,`},
		{"dapr-omit-decryption-key-name", "Yes", `{"kw":1,`},
		{"dapr-omit-decryption-key-name", "1", `{"kw":1,`},
		{"dapr-omit-decryption-key-name", "false", `{"k":"aes",`},
		{"dapr-omit-decryption-key-name", "nonsense", `{"k":"aes",`},
		{"dapr-decryption-key-name", "vault/aes", `{"k":"vault/aes",`},
		{"dapr-data-encryption-cipher", "chacha20-poly1305", `"cph":2`},
	} {
		if m := manifest(tt.header, tt.value); !strings.Contains(m, tt.has) {
			t.Errorf("%s: %s: manifest %s, want %s in it", tt.header, tt.value, m, tt.has)
		}
	}
	unnamed := k.document(t, "encrypt", []byte("hello"), "dapr-key-name", "aes", "dapr-key-wrap-algorithm", "AES", "dapr-omit-decryption-key-name", "true").Out
	if x := k.document(t, "decrypt", unnamed); x.Status != 500 || !strings.Contains(string(x.Out), "ERR_CRYPTO") {
		t.Errorf("no key name: %d %s", x.Status, x.Out)
	}
	if x := k.document(t, "decrypt", unnamed, "dapr-key-name", "aes"); x.Status != 200 || string(x.Out) != "hello" {
		t.Errorf("with the key's name: %d %s", x.Status, x.Out)
	}
}

// wrong checks an error answer.
func wrong(t *testing.T, what string, x *httpapi.Exchange, status int, code, says string) {
	t.Helper()
	var body struct{ ErrorCode, Message string }
	if err := json.Unmarshal(x.Out, &body); err != nil || x.Status != status || body.ErrorCode != code || !strings.Contains(body.Message, says) || x.Answers != 1 {
		t.Errorf("%s: %d %s (%d answers); want %d %s with %q", what, x.Status, x.Out, x.Answers, status, code, says)
	}
}

func TestDocumentsRefused(t *testing.T) {
	k := newKit(withVault(t))
	for _, tt := range []struct {
		what, provider, operation string
		headers                   []string
		status                    int
		code, says                string
	}{
		{"another provider, told before the headers", "x", "encrypt", nil, 400, "ERR_CRYPTO_PROVIDER_NOT_FOUND", "crypto provider x not found"},
		{"another provider", "x", "decrypt", nil, 400, "ERR_CRYPTO_PROVIDER_NOT_FOUND", "crypto provider x not found"},
		{"no key", "vault", "encrypt", []string{"dapr-key-wrap-algorithm", "AES"}, 400, "ERR_BAD_REQUEST", "invalid request: missing header 'dapr-key-name'"},
		{"no algorithm", "vault", "encrypt", []string{"dapr-key-name", "aes"}, 400, "ERR_BAD_REQUEST", "invalid request: missing header 'dapr-key-wrap-algorithm'"},
		{"an unknown key", "vault", "encrypt", []string{"dapr-key-name", "nobody", "dapr-key-wrap-algorithm", "AES"}, 500, "ERR_CRYPTO", "failed to perform operation: "},
		{"an unknown algorithm", "vault", "encrypt", []string{"dapr-key-name", "aes", "dapr-key-wrap-algorithm", "RSA-OAEP"}, 500, "ERR_CRYPTO", "RSA-OAEP-256"},
		{"an unknown cipher", "vault", "encrypt", []string{"dapr-key-name", "aes", "dapr-key-wrap-algorithm", "AES", "dapr-data-encryption-cipher", "ROT13"}, 500, "ERR_CRYPTO", "ROT13"},
		{"no document", "vault", "decrypt", nil, 500, "ERR_CRYPTO", "no encrypted document"},
	} {
		x := &httpapi.Exchange{Verb: "PUT", To: "/v1.0-alpha1/crypto/" + tt.provider + "/" + tt.operation, Payload: []byte("hello"), Fields: fields(tt.headers...)}
		k.Do(x)
		wrong(t, tt.what, x, tt.status, tt.code, tt.says)
	}
	if x := k.do("POST", vault+"encrypt", ""); x.Status != 404 {
		t.Errorf("POST: %d", x.Status)
	}
	none := newKit()
	wrong(t, "no provider at all, told before the headers", none.do("PUT", vault+"encrypt", ""), 500, "ERR_CRYPTO_PROVIDERS_NOT_CONFIGURED", "crypto providers not configured")
}

// A document that is spoilt from the beginning is an error; one that turns out to be spoilt later
// breaks the answer off, and what came before is right.
func TestSpoiltDocuments(t *testing.T) {
	k := newKit(withVault(t))
	plain := bytes.Repeat([]byte("abcdefgh"), 3*8192)
	doc := k.document(t, "encrypt", plain, "dapr-key-name", "aes", "dapr-key-wrap-algorithm", "AES").Out
	first := bytes.Clone(doc)
	first[len(doc)-len(plain)-48+5] ^= 1
	wrong(t, "the first segment", k.document(t, "decrypt", first), 500, "ERR_CRYPTO", "segment 0")
	last := bytes.Clone(doc)
	last[len(last)-1] ^= 1
	x := k.document(t, "decrypt", last)
	if x.Status != 200 || !x.Aborted || x.Ended || !bytes.HasPrefix(plain, x.Out) || len(x.Out) != 2*64<<10 {
		t.Errorf("the last segment: %d, aborted %v, ended %v, %d bytes", x.Status, x.Aborted, x.Ended, len(x.Out))
	}
}

// Filters of middleware see documents too.
func TestDocumentsThroughMiddleware(t *testing.T) {
	upper := func(next httpapi.Handler) httpapi.Handler {
		return func(r *httpapi.Request) {
			r.FilterRequest(func(b io.Reader) io.Reader { return io.MultiReader(strings.NewReader("in "), b) })
			if strings.HasSuffix(r.Path, "decrypt") {
				return
			}
			next(r)
		}
	}
	open := withVault(t)
	k := newKit(open, func(o *httpapi.Options) { o.Pipeline = []httpapi.Middleware{upper} })
	doc := k.document(t, "encrypt", []byte("hello"), "dapr-key-name", "aes", "dapr-key-wrap-algorithm", "AES").Out
	if x := newKit(open).document(t, "decrypt", doc); string(x.Out) != "in hello" {
		t.Errorf("%d %s", x.Status, x.Out)
	}
}

// subtle asks for one operation.
func (k *kit) subtle(t *testing.T, op string, in map[string]any) (*httpapi.Exchange, map[string]any) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	x := k.do("POST", "/v1.0-alpha1/subtlecrypto/vault/"+op, string(body))
	var out map[string]any
	if err := json.Unmarshal(x.Out, &out); err != nil {
		t.Errorf("%s: %v in %s", op, err, x.Out)
	}
	return x, out
}

func TestSubtle(t *testing.T) {
	k := newKit(withVault(t))
	b64 := base64.StdEncoding.EncodeToString
	nonce := b64(bytes.Repeat([]byte{1}, 12))
	for _, tt := range []struct{ seal, open, plain, sealed string }{{"encrypt", "decrypt", "plaintext", "ciphertext"}, {"wrapkey", "unwrapkey", "plaintextKey", "wrappedKey"}} {
		x, out := k.subtle(t, tt.seal, map[string]any{"keyName": "aes", "algorithm": "A256GCM", "nonce": nonce, "associatedData": b64([]byte("a")), tt.plain: b64([]byte("hello")), "unknown": 1})
		if x.Status != 200 || x.Answer.Get("Content-Type") != "application/json" || out["tag"] == nil || out[tt.sealed] == nil {
			t.Fatalf("%s: %d %s", tt.seal, x.Status, x.Out)
		}
		x, out = k.subtle(t, tt.open, map[string]any{"keyName": "aes", "algorithm": "A256GCM", "nonce": nonce, "associatedData": b64([]byte("a")), tt.sealed: out[tt.sealed], "tag": out["tag"]})
		if x.Status != 200 || out[tt.plain] != b64([]byte("hello")) {
			t.Errorf("%s: %d %s", tt.open, x.Status, x.Out)
		}
		x, _ = k.subtle(t, tt.open, map[string]any{"keyName": "aes", "algorithm": "A256GCM", "nonce": nonce, tt.sealed: b64([]byte("hello")), "tag": b64(make([]byte, 16))})
		wrong(t, tt.open+" of noise", x, 500, "ERR_CRYPTO", "failed to perform operation: ")
	}
	digest := b64(make([]byte, 32))
	x, out := k.subtle(t, "sign", map[string]any{"keyName": "ec", "algorithm": "ES256", "digest": digest})
	if x.Status != 200 || out["signature"] == nil {
		t.Fatalf("sign: %d %s", x.Status, x.Out)
	}
	if x, out := k.subtle(t, "verify", map[string]any{"keyName": "ec", "algorithm": "ES256", "digest": digest, "signature": out["signature"]}); x.Status != 200 || out["valid"] != true {
		t.Errorf("verify: %d %s", x.Status, x.Out)
	}
	if x, _ := k.subtle(t, "verify", map[string]any{"keyName": "ec", "algorithm": "ES256", "digest": digest, "signature": digest}); x.Status != 200 || string(x.Out) != "{}" {
		t.Errorf("verify of noise: %d %s, want {}", x.Status, x.Out)
	}
	for format, begins := range map[string]string{"PEM": "-----BEGIN PUBLIC KEY-----\n", "JSON": "{"} {
		if x, out := k.subtle(t, "getkey", map[string]any{"name": "ec", "format": format}); x.Status != 200 || out["name"] != "ec" || !strings.HasPrefix(fmt.Sprint(out["publicKey"]), begins) {
			t.Errorf("getkey as %s: %d %s", format, x.Status, x.Out)
		}
	}
	x, _ = k.subtle(t, "getkey", map[string]any{"name": "nobody"})
	wrong(t, "an unknown key", x, 500, "ERR_CRYPTO_KEY", "failed to retrieve key nobody: ")
	x, _ = k.subtle(t, "getkey", map[string]any{"name": "aes"})
	wrong(t, "a symmetric key", x, 500, "ERR_CRYPTO_KEY", "symmetric")
	x, _ = k.subtle(t, "getkey", map[string]any{"name": "ec", "format": 7})
	wrong(t, "an unknown form", x, 400, "ERR_BAD_REQUEST", "format")
	for _, op := range []string{"getkey", "encrypt", "decrypt", "wrapkey", "unwrapkey", "sign", "verify"} {
		wrong(t, op+" with a body that is no JSON", k.do("POST", "/v1.0-alpha1/subtlecrypto/vault/"+op, "{"), 400, "ERR_MALFORMED_REQUEST", "")
		wrong(t, op+" of another provider", k.do("POST", "/v1.0-alpha1/subtlecrypto/x/"+op, "{}"), 400, "ERR_CRYPTO_PROVIDER_NOT_FOUND", "crypto provider x not found")
		wrong(t, op+" without any", newKit().do("POST", "/v1.0-alpha1/subtlecrypto/x/"+op, ""), 500, "ERR_CRYPTO_PROVIDERS_NOT_CONFIGURED", "crypto providers not configured")
		if op != "getkey" {
			x, _ := k.subtle(t, op, map[string]any{"keyName": "aes", "algorithm": "none"})
			wrong(t, op+" with an unknown algorithm", x, 500, "ERR_CRYPTO", "none")
		}
	}
}
