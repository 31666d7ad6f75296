package localkeys_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/untested"
)

func wrapWith(t *testing.T, p block.Crypto, key string) error {
	t.Helper()
	_, err := p.WrapKey(t.Context(), block.KeyUse{Key: key, Algorithm: "A256KW"}, make([]byte, 16))
	return err
}

// No name leads out of the folder.
func TestFolderIsConfined(t *testing.T) {
	outer := t.TempDir()
	dir := filepath.Join(outer, "keys")
	secret := material()["sym32"].([]byte)
	for _, d := range []string{dir, filepath.Join(dir, "sub"), filepath.Join(dir, "..data"), filepath.Join(outer, "other")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"outside", "keys/inside", "keys/sub/below", "keys/..data/mounted", "other/far", "keys/.hidden"} {
		write(t, filepath.Join(outer, name), secret)
	}
	link := func(to, at string) {
		if err := os.Symlink(to, filepath.Join(dir, at)); err != nil {
			untested.Skip(t, "keys behind symbolic links, which cannot be made here: %v", err)
		}
	}
	link("..data/mounted", "mounted") // as Kubernetes mounts secrets
	link("../outside", "out")
	link(filepath.Join(outer, "outside"), "absolute")
	link("../other", "folder")
	link("nowhere", "dangling")
	link("sub", "itself")
	p := openFolder(t, dir)
	for _, name := range []string{"inside", "sub/below", "mounted", ".hidden", "itself/below", "..data/mounted"} {
		if err := wrapWith(t, p, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, code := range map[string]fault.Code{
		"out": fault.Denied, "absolute": fault.Denied, "folder/far": fault.Denied, "dangling": fault.NotFound, "inside/x": fault.NotFound, "sub": fault.Invalid, "..data": fault.Invalid,
		"../outside": fault.NotFound, "sub/../inside": fault.NotFound, "./inside": fault.NotFound, "sub//below": fault.NotFound, "/inside": fault.NotFound, filepath.Join(outer, "outside"): fault.NotFound,
		`..\outside`: fault.NotFound, "inside\x00": fault.NotFound, ".": fault.NotFound, "..": fault.NotFound, "": fault.NotFound, strings.Repeat("x", 5000): fault.NotFound, strings.Repeat("x/", 3000) + "x": fault.NotFound,
	} {
		if err := wrapWith(t, p, name); fault.Of(err) != code || len(err.Error()) > 400 || strings.Contains(err.Error(), outer) && !strings.Contains(name, outer) {
			t.Errorf("%.60q: %v (%v), want %v", name, err, fault.Of(err), code)
		}
	}
}

// What cannot be used as a key says why, and quotes nothing of it.
func TestFolderRefuses(t *testing.T) {
	dir := t.TempDir()
	p := openFolder(t, dir)
	hush := "HUSH" + base64.StdEncoding.EncodeToString(material()["sym32"].([]byte))
	for name, tt := range map[string]struct{ text, says string }{
		"empty":           {"", "is empty"},
		"white":           {" \n", "is empty"},
		"broken PEM":      {"-----BEGIN PRIVATE KEY-----\n" + hush + "\n", "no key in PEM form"},
		"another PEM":     {"-----BEGIN CERTIFICATE-----\n" + hush + "\n-----END CERTIFICATE-----\n", "no key in PEM form"},
		"PEM of noise":    {"-----BEGIN PRIVATE KEY-----\n" + hush + "\n-----END PRIVATE KEY-----\n", "no key"},
		"a passphrase":    {"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + hush + "\n-----END ENCRYPTED PRIVATE KEY-----\n", "passphrase"},
		"an old one":      {"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n" + hush + "\n-----END RSA PRIVATE KEY-----\n", "passphrase"},
		"another object":  {`{"hush": "` + hush + `"}`, "no JSON Web Key"},
		"a set":           {`{"keys": [{"kty": "oct", "k": "` + hush + `"}]}`, "crypto.dapr.jwks"},
		"half a key":      {`{"kty": "RSA", "n": "` + hush + `"}`, "JSON Web Key"},
		"another kind":    {`{"kty": "OKP", "crv": "X25519", "x": "` + base64.RawURLEncoding.EncodeToString(make([]byte, 32)) + `"}`, "of a kind"},
		"short":           {"\x80HUSH", "5 bytes"},
		"much":            {strings.Repeat("\x80HUSH", 20_000), "64 KiB"},
		"a point nowhere": {`{"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}`, "key"},
	} {
		write(t, filepath.Join(dir, "k"), []byte(tt.text))
		err := wrapWith(t, p, "k")
		if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), tt.says) || strings.Contains(err.Error(), "HUSH") || strings.Contains(err.Error(), hush[4:20]) {
			t.Errorf("%s: %v, want %v with %q and nothing of the key", name, err, fault.Invalid, tt.says)
		}
	}
}

// A key that changes is another at once; a folder that comes late is found.
func TestFolderIsReadForEveryUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	p := openFolder(t, dir)
	if err := p.Ping(t.Context()); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), dir) {
		t.Errorf("no folder: %v", err)
	}
	write(t, dir, []byte("x"))
	if err := p.Ping(t.Context()); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "no folder") {
		t.Errorf("a file: %v", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := p.Ping(t.Context()); err != nil {
		t.Errorf("an empty folder: %v", err)
	}
	m := material()
	u := block.KeyUse{Key: "k", Algorithm: "A256KW"}
	write(t, filepath.Join(dir, "k"), m["sym32"].([]byte))
	s, err := p.WrapKey(t.Context(), u, make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	other := append([]byte{0x90}, m["sym32"].([]byte)[1:]...)
	write(t, filepath.Join(dir, "k"), other)
	if _, err := p.UnwrapKey(t.Context(), u, s); fault.Of(err) != fault.Invalid {
		t.Errorf("with the changed key: %v", err)
	}
	write(t, filepath.Join(dir, "k"), m["sym32"].([]byte))
	if _, err := p.UnwrapKey(t.Context(), u, s); err != nil {
		t.Errorf("with the first again: %v", err)
	}
}

// FuzzKey reads whatever as a key and uses it: never a panic, and never a word of it in an error.
func FuzzKey(f *testing.F) {
	dir := f.TempDir()
	for name, k := range material() {
		if raw, ok := k.([]byte); ok {
			f.Add(raw)
			continue
		}
		_ = name
		f.Add(pkcs8(f, k))
	}
	f.Add([]byte(`{"kty":"oct","k":"AAAA"}`))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		write(t, filepath.Join(dir, "k"), raw)
		p := openFolder(t, dir)
		_, err := p.PublicKey(t.Context(), "k")
		if fault.Of(err) == fault.Internal {
			t.Errorf("%v", err)
		}
		for _, a := range []string{"RSA-OAEP-256", "A128GCM", "SM2"} {
			u := block.KeyUse{Key: "k", Algorithm: a, Nonce: make([]byte, 12)}
			s, err := p.Encrypt(t.Context(), u, []byte("hello"))
			if err == nil {
				_, _ = p.Decrypt(t.Context(), u, s)
			}
			if err != nil && (fault.Of(err) == fault.Internal || len(err.Error()) > 500) {
				t.Errorf("%s: %v", a, err)
			}
		}
		for _, a := range []string{"ES256", "PS256", "EdDSA", "SM2"} {
			_, _ = p.Verify(t.Context(), "k", a, make([]byte, 32), raw)
		}
	})
}

// FuzzDecrypt decrypts whatever, and checks it as a signature.
func FuzzDecrypt(f *testing.F) {
	dir := f.TempDir()
	for _, name := range []string{"sm2", "p256", "rsa", "sym32"} {
		raw, ok := material()[name].([]byte)
		if !ok {
			raw = pkcs8(f, material()[name])
		}
		write(f, filepath.Join(dir, name), raw)
	}
	p := openFolder(f, dir)
	for _, u := range []block.KeyUse{{Key: "sm2", Algorithm: "SM2"}, {Key: "sym32", Algorithm: "A256KW"}} {
		s, err := p.Encrypt(f.Context(), u, make([]byte, 32))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(s.Data)
	}
	for _, key := range []string{"sm2", "p256"} {
		sig, err := p.Sign(f.Context(), key, map[string]string{"sm2": "SM2", "p256": "ES256"}[key], make([]byte, 32))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(sig)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, u := range []block.KeyUse{{Key: "sm2", Algorithm: "SM2"}, {Key: "sym32", Algorithm: "A256KW"}, {Key: "sym32", Algorithm: "A256CBC", Nonce: make([]byte, 16)}, {Key: "sym32", Algorithm: "A128CBC-HS256", Nonce: make([]byte, 16)}} {
			if _, err := p.Decrypt(t.Context(), u, block.Sealed{Data: data}); err != nil && fault.Of(err) != fault.Invalid {
				t.Errorf("%s: %v", u.Algorithm, err)
			}
		}
		for key, a := range map[string]string{"sm2": "SM2", "p256": "ES256"} {
			if _, err := p.Verify(t.Context(), key, a, make([]byte, 32), data); err != nil {
				t.Errorf("%s: %v", a, err)
			}
		}
	})
}
