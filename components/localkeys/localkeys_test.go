package localkeys_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/emmansun/gmsm/sm2"
	"github.com/emmansun/gmsm/smx509"
	"github.com/google/go-cmp/cmp"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/localkeys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// material is the keys of the tests by name: []byte, or a private key.
var material = sync.OnceValue(func() map[string]any {
	must := func(k any, err error) any {
		if err != nil {
			panic(err)
		}
		return k
	}
	m := map[string]any{}
	for _, n := range []int{16, 24, 32, 48, 64} {
		b := make([]byte, n)
		_, _ = rand.Read(b) // never fails
		b[0] = 0x80         // no text, no DER
		m["sym"+itoa(n)] = b
	}
	m["rsa"] = must(rsa.GenerateKey(rand.Reader, 2048))
	m["p256"] = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	m["p384"] = must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	m["p521"] = must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	m["ed"] = must(ed, err)
	m["sm2"] = must(sm2.GenerateKey(rand.Reader))
	return m
})

func itoa(n int) string { return string([]byte{'0' + byte(n/10), '0' + byte(n%10)}) }

// fitting names a key of material for each algorithm.
var fitting = map[string]string{
	"A128CBC": "sym16", "A192CBC": "sym24", "A256CBC": "sym32", "A128CBC-NOPAD": "sym16", "A192CBC-NOPAD": "sym24", "A256CBC-NOPAD": "sym32",
	"A128GCM": "sym16", "A192GCM": "sym24", "A256GCM": "sym32", "A128CBC-HS256": "sym32", "A192CBC-HS384": "sym48", "A256CBC-HS512": "sym64",
	"A128KW": "sym16", "A192KW": "sym24", "A256KW": "sym32", "C20P": "sym32", "C20PKW": "sym32", "XC20P": "sym32", "XC20PKW": "sym32",
	"SM4-CBC": "sym16", "SM4-CBC-NOPAD": "sym16", "SM4-GCM": "sym16",
	"RSA1_5": "rsa", "RSA-OAEP": "rsa", "RSA-OAEP-256": "rsa", "RSA-OAEP-384": "rsa", "RSA-OAEP-512": "rsa", "SM2": "sm2",
	"RS256": "rsa", "RS384": "rsa", "RS512": "rsa", "PS256": "rsa", "PS384": "rsa", "PS512": "rsa",
	"ES256": "p256", "ES384": "p384", "ES512": "p521", "EdDSA": "ed", "SM2-SM3": "sm2",
}

// pkcs8 is a private key in PEM.
func pkcs8(t testing.TB, key any) []byte {
	t.Helper()
	der, err := smx509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// folderOf holds every key in a file of its name.
func folderOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, k := range material() {
		raw, ok := k.([]byte)
		if !ok {
			raw = pkcs8(t, k)
		}
		write(t, filepath.Join(dir, name), raw)
	}
	return dir
}

func write(t testing.TB, path string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func openFolder(t testing.TB, dir string) block.Crypto {
	t.Helper()
	c, err := localkeys.NewFolder(block.Env{Log: slog.New(slog.DiscardHandler)}, &localkeys.FolderConfig{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFolder(t *testing.T) {
	dir := folderOf(t)
	blocktest.Crypto(t, fitting, func(t *testing.T) block.Crypto { return openFolder(t, dir) })
}

// setOf is the keys as a JSON Web Key Set, all but SM2, which has no form there.
func setOf(t *testing.T, names ...string) []byte {
	t.Helper()
	set := jwk.NewSet()
	for _, name := range names {
		k, err := jwk.Import(material()[name])
		if err == nil {
			err = k.Set(jwk.KeyIDKey, name)
		}
		if err == nil {
			err = set.AddKey(k)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	doc, err := json.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func everyName() []string {
	names := slices.Sorted(maps.Keys(material()))
	return slices.DeleteFunc(names, func(n string) bool { return n == "sm2" })
}

func openJWKS(t *testing.T, value string) block.Crypto {
	t.Helper()
	c := localkeys.DefaultJWKSConfig()
	c.JWKS = conf.Secret(value)
	p, err := localkeys.NewJWKS(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// withSM2 gives a set's provider the key that sets cannot have, so that the suite can test all.
type withSM2 struct {
	block.Crypto
	list func(block.Algorithms) block.Algorithms
}

func (w withSM2) Algorithms() block.Algorithms { return w.list(w.Crypto.Algorithms()) }

func TestJWKS(t *testing.T) {
	doc := string(setOf(t, everyName()...))
	path := filepath.Join(t.TempDir(), "set.json")
	write(t, path, []byte(doc))
	none := func(list []string) []string {
		return slices.DeleteFunc(list, func(a string) bool { return strings.HasPrefix(a, "SM2") })
	}
	keys := maps.Clone(fitting)
	maps.DeleteFunc(keys, func(a, _ string) bool { return strings.HasPrefix(a, "SM2") })
	for name, value := range map[string]string{"in the metadata": doc, "base64": base64.StdEncoding.EncodeToString([]byte(doc)), "a file": path} {
		t.Run(name, func(t *testing.T) {
			blocktest.Crypto(t, keys, func(t *testing.T) block.Crypto {
				return withSM2{openJWKS(t, value), func(a block.Algorithms) block.Algorithms {
					return block.Algorithms{Encrypt: none(a.Encrypt), Wrap: none(a.Wrap), Sign: none(a.Sign)}
				}}
			})
		})
	}
}

func TestParts(t *testing.T) {
	set, err := block.NewSet(localkeys.Backend())
	if err != nil {
		t.Fatal(err)
	}
	for typ, want := range map[string]string{"crypto.dapr.localstorage": "path: required", "crypto.dapr.jwks": "jwks: required"} {
		part, ok := set.Find(typ, "v1")
		if !ok {
			t.Fatalf("no part for %s", typ)
		}
		if err := conf.Decode(nil, part.Config()).Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s without metadata: %v, want %q", typ, err, want)
		}
	}
	part, _ := set.Find("crypto.dapr.jwks", "")
	for _, tt := range []struct{ key, value, want string }{
		{"requestTimeout", "0", "requestTimeout: must be longer"},
		{"minRefreshInterval", "10ms", "minRefreshInterval: must be 1s"},
	} {
		err := conf.Decode(conf.Items("jwks", "x", tt.key, tt.value), part.Config()).Err()
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %s: %v, want %q", tt.key, tt.value, err, tt.want)
		}
	}
	cfg := part.Config()
	if err := conf.Decode(conf.Items("jwks", "x", "requestTimeout", "5", "minRefreshInterval", "2m"), cfg).Err(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&localkeys.JWKSConfig{JWKS: "x", RequestTimeout: 5e9, MinRefreshInterval: 120e9}, cfg); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Every form of a key file that Dapr reads is read.
func TestForms(t *testing.T) {
	m := material()
	r, e := m["rsa"].(*rsa.PrivateKey), m["p256"].(*ecdsa.PrivateKey)
	sec1, err := x509.MarshalECPrivateKey(e)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&r.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	smSEC1, err := smx509.MarshalSM2PrivateKey(m["sm2"].(*sm2.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	block8, _ := pem.Decode(pkcs8(t, r))
	jwkOf := func(k any) []byte {
		w, err := jwk.Import(k)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := json.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	text := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	secret := m["sym32"].([]byte)
	forms := map[string]struct {
		raw  []byte
		algs string // that work with it, "-": public half only
	}{
		"PKCS#8":                 {pkcs8(t, r), "RSA-OAEP-256"},
		"PKCS#8, DER":            {block8.Bytes, "RSA-OAEP-256"},
		"PKCS#1":                 {text("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(r)), "RSA-OAEP-256"},
		"PKCS#1, DER":            {x509.MarshalPKCS1PrivateKey(r), "RSA-OAEP-256"},
		"PKIX":                   {text("PUBLIC KEY", spki), "-RSA-OAEP-256"},
		"PKIX, DER":              {spki, "-RSA-OAEP-256"},
		"PKCS#1, public":         {text("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&r.PublicKey)), "-RSA-OAEP-256"},
		"a JSON Web Key":         {jwkOf(r), "RSA-OAEP-256"},
		"a public JSON Web Key":  {jwkOf(&r.PublicKey), "-RSA-OAEP-256"},
		"a symmetric one":        {jwkOf(secret), "A256KW"},
		"bytes":                  {secret, "A256KW"},
		"base64":                 {[]byte(base64.StdEncoding.EncodeToString(secret)), "A256KW"},
		"base64, a line":         {[]byte(base64.StdEncoding.EncodeToString(secret) + "\n"), "A256KW"},
		"base64url, no padding":  {[]byte(base64.RawURLEncoding.EncodeToString(secret)), "A256KW"},
		"SEC 1":                  {text("EC PRIVATE KEY", sec1), "ES256"},
		"SEC 1 behind the curve": {append(text("EC PARAMETERS", []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}), text("EC PRIVATE KEY", sec1)...), "ES256"},
		"SM2 in SEC 1":           {text("EC PRIVATE KEY", smSEC1), "SM2"},
		"Windows line ends":      {[]byte(strings.ReplaceAll(string(pkcs8(t, r)), "\n", "\r\n")), "RSA-OAEP-256"},
	}
	dir := t.TempDir()
	p := openFolder(t, dir)
	for name, tt := range forms {
		t.Run(name, func(t *testing.T) {
			write(t, filepath.Join(dir, "key"), tt.raw)
			alg, public := strings.CutPrefix(tt.algs, "-")
			if slices.Contains(p.Algorithms().Sign, alg) && alg != "SM2" {
				d := make([]byte, 32)
				sig, err := p.Sign(t.Context(), "key", alg, d)
				if err != nil {
					t.Fatal(err)
				}
				if ok, err := p.Verify(t.Context(), "key", alg, d, sig); err != nil || !ok {
					t.Errorf("Verify: %v, %v", ok, err)
				}
				return
			}
			u := block.KeyUse{Key: "key", Algorithm: alg}
			s, err := p.WrapKey(t.Context(), u, secret)
			if err != nil {
				t.Fatal(err)
			}
			got, err := p.UnwrapKey(t.Context(), u, s)
			switch {
			case public && (err == nil || !strings.Contains(err.Error(), "public key")):
				t.Errorf("a public key unwraps: %v", err)
			case !public && (err != nil || string(got) != string(secret)):
				t.Errorf("UnwrapKey: %v", err)
			}
		})
	}
}

var _ crypto.PrivateKey = (*sm2.PrivateKey)(nil)
