package localkeys_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/test/untested"
)

// TestDaprsVectors uses what Dapr's own implementation of the algorithms made: ciphertexts,
// signatures, and the keys for them. Algorithms without chance in them must give the same again.
func TestDaprsVectors(t *testing.T) {
	text, err := os.ReadFile("testdata/dapr.json")
	if err != nil {
		t.Fatal(err)
	}
	var made struct {
		Keys    map[string][]byte
		Vectors []struct {
			Algorithm, Key                          string
			Nonce, AAD, Plain, Data, Tag, Signature []byte
		}
	}
	if err := json.Unmarshal(text, &made); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, raw := range made.Keys {
		write(t, filepath.Join(dir, name), raw)
	}
	p := openFolder(t, dir)
	tried := map[string]bool{}
	for _, v := range made.Vectors {
		tried[v.Algorithm] = true
		if v.Signature != nil {
			if ok, err := p.Verify(t.Context(), v.Key, v.Algorithm, v.Plain, v.Signature); err != nil || !ok {
				t.Errorf("%s: a signature of Dapr's: %v, %v", v.Algorithm, ok, err)
			}
			continue
		}
		u := block.KeyUse{Key: v.Key, Algorithm: v.Algorithm, Nonce: v.Nonce, AssociatedData: v.AAD}
		got, err := p.Decrypt(t.Context(), u, block.Sealed{Data: v.Data, Tag: v.Tag})
		if err != nil || !bytes.Equal(got, v.Plain) {
			t.Errorf("%s of %d bytes: Decrypt gives %d bytes, %v", v.Algorithm, len(v.Plain), len(got), err)
		}
		s, err := p.Encrypt(t.Context(), u, v.Plain)
		if err != nil {
			t.Errorf("%s of %d bytes: %v", v.Algorithm, len(v.Plain), err)
		} else if same := bytes.Equal(s.Data, v.Data) && bytes.Equal(s.Tag, v.Tag); same == strings.HasPrefix(v.Algorithm, "RSA") {
			t.Errorf("%s of %d bytes: Encrypt gives the same as Dapr: %v", v.Algorithm, len(v.Plain), same)
		}
	}
	a := p.Algorithms()
	for _, name := range append(a.Encrypt, a.Sign...) {
		if !tried[name] && !strings.HasPrefix(name, "SM") && !strings.HasSuffix(name, "NOPAD") { // which Dapr lists and does not do
			t.Errorf("no vector for %s", name)
		}
	}
}

// TestStandardsVectors uses the examples of the standards.
func TestStandardsVectors(t *testing.T) {
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tt := range []struct{ name, algorithm, key, nonce, aad, plain, data, tag string }{
		{"RFC 3394, 4.1", "A128KW", "000102030405060708090A0B0C0D0E0F", "", "", "00112233445566778899AABBCCDDEEFF", "1FA68B0A8112B447 AEF34BD8FB5A7B82 9D3E862371D2CFE5", ""},
		{"RFC 3394, 4.6", "A256KW", "000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F", "", "", "00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F",
			"28C9F404C4B810F4 CBCCB35CFB87F826 3F5786E2D80ED326 CBC7F0E71A99F43B FB988B9B7A02DD21", ""},
		{"RFC 8998, A.1", "SM4-GCM", "0123456789ABCDEFFEDCBA9876543210", "00001234567800000000ABCD", "FEEDFACEDEADBEEFFEEDFACEDEADBEEFABADDAD2",
			"AAAAAAAAAAAAAAAABBBBBBBBBBBBBBBBCCCCCCCCCCCCCCCCDDDDDDDDDDDDDDDDEEEEEEEEEEEEEEEEFFFFFFFFFFFFFFFFEEEEEEEEEEEEEEEEAAAAAAAAAAAAAAAA",
			"17F399F08C67D5EE19D0DC9969C4BB7D5FD46FD3756489069157B282BB200735D82710CA5C22F0CCFA7CBF93D496AC15A56834CBCF98C397B4024A2691233B8D", "83DE3541E4C2B58177E065A9BF7B62EC"},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "k"), []byte(base64.StdEncoding.EncodeToString(unhex(tt.key))))
		p := openFolder(t, dir)
		u := block.KeyUse{Key: "k", Algorithm: tt.algorithm, Nonce: unhex(tt.nonce), AssociatedData: unhex(tt.aad)}
		s, err := p.Encrypt(t.Context(), u, unhex(tt.plain))
		if err != nil || !bytes.Equal(s.Data, unhex(tt.data)) || !bytes.Equal(s.Tag, unhex(tt.tag)) {
			t.Errorf("%s: %X, tag %X, %v", tt.name, s.Data, s.Tag, err)
		}
		if got, err := p.Decrypt(t.Context(), u, block.Sealed{Data: unhex(tt.data), Tag: unhex(tt.tag)}); err != nil || !bytes.Equal(got, unhex(tt.plain)) {
			t.Errorf("%s: %X, %v", tt.name, got, err)
		}
	}
}

// openssl runs the tool, whose SM2 and SM4 are another's work.
func openssl(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.Command("openssl", args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, said.String())
	}
	return out
}

// Keys, ciphertexts and signatures of the Chinese standards pass between OpenSSL and the provider.
func TestSMWithOpenSSL(t *testing.T) {
	if out, err := exec.Command("openssl", "list", "-public-key-algorithms").Output(); err != nil || !bytes.Contains(out, []byte("SM2")) {
		untested.Skip(t, "SM2 and SM4 against OpenSSL: no openssl with SM2: %v", err)
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	openssl(t, "genpkey", "-algorithm", "SM2", "-out", at("sm2"))
	openssl(t, "pkey", "-in", at("sm2"), "-pubout", "-out", at("sm2-public"))
	text := []byte("what was agreed between the two")
	write(t, at("text"), text)
	p := openFolder(t, dir)
	sig, err := p.Sign(t.Context(), "sm2", "SM2-SM3", text)
	if err != nil {
		t.Fatal(err)
	}
	write(t, at("sig"), sig)
	openssl(t, "pkeyutl", "-verify", "-pubin", "-inkey", at("sm2-public"), "-rawin", "-digest", "sm3", "-pkeyopt", "distid:1234567812345678", "-in", at("text"), "-sigfile", at("sig"))
	openssl(t, "pkeyutl", "-sign", "-inkey", at("sm2"), "-rawin", "-digest", "sm3", "-pkeyopt", "distid:1234567812345678", "-in", at("text"), "-out", at("sig"))
	if sig, err = os.ReadFile(at("sig")); err != nil {
		t.Fatal(err)
	}
	if ok, err := p.Verify(t.Context(), "sm2-public", "SM2-SM3", text, sig); err != nil || !ok {
		t.Errorf("a signature of OpenSSL's: %v, %v", ok, err)
	}
	digest := make([]byte, 32)
	_, _ = rand.Read(digest) // never fails
	write(t, at("digest"), digest)
	if sig, err = p.Sign(t.Context(), "sm2", "SM2", digest); err != nil {
		t.Fatal(err)
	}
	write(t, at("sig"), sig)
	openssl(t, "pkeyutl", "-verify", "-pubin", "-inkey", at("sm2-public"), "-in", at("digest"), "-sigfile", at("sig"))

	sealed, err := p.Encrypt(t.Context(), block.KeyUse{Key: "sm2-public", Algorithm: "SM2"}, text)
	if err != nil {
		t.Fatal(err)
	}
	write(t, at("sealed"), sealed.Data)
	if got := openssl(t, "pkeyutl", "-decrypt", "-inkey", at("sm2"), "-in", at("sealed")); !bytes.Equal(got, text) {
		t.Errorf("OpenSSL decrypts %q", got)
	}
	theirs := openssl(t, "pkeyutl", "-encrypt", "-pubin", "-inkey", at("sm2-public"), "-in", at("text"))
	if got, err := p.Decrypt(t.Context(), block.KeyUse{Key: "sm2", Algorithm: "SM2"}, block.Sealed{Data: theirs}); err != nil || !bytes.Equal(got, text) {
		t.Errorf("what OpenSSL encrypts: %q, %v", got, err)
	}

	secret, nonce := append([]byte{0x80}, digest[:15]...), digest[16:]
	write(t, at("sm4"), secret)
	u := block.KeyUse{Key: "sm4", Algorithm: "SM4-CBC", Nonce: nonce}
	if sealed, err = p.Encrypt(t.Context(), u, text); err != nil {
		t.Fatal(err)
	}
	if want := openssl(t, "enc", "-sm4-cbc", "-K", hex.EncodeToString(secret), "-iv", hex.EncodeToString(nonce), "-in", at("text")); !bytes.Equal(sealed.Data, want) {
		t.Errorf("SM4-CBC gives %x, OpenSSL %x", sealed.Data, want)
	}
	der, err := p.PublicKey(t.Context(), "sm2")
	if err != nil {
		t.Fatal(err)
	}
	write(t, at("der"), der)
	if a, b := openssl(t, "pkey", "-pubin", "-inform", "DER", "-in", at("der"), "-outform", "DER"), openssl(t, "pkey", "-in", at("sm2"), "-pubout", "-outform", "DER"); !bytes.Equal(a, b) {
		t.Errorf("the public key %x is not OpenSSL's %x", a, b)
	}
}

// Padding is checked in all its bytes: noise rarely has any that is right.
func TestPadding(t *testing.T) {
	p := openFolder(t, folderOf(t))
	u := block.KeyUse{Key: "sym32", Algorithm: "A256CBC", Nonce: make([]byte, 16)}
	data := make([]byte, 32)
	accepted := 0
	for range 2000 {
		_, _ = rand.Read(data) // never fails
		if _, err := p.Decrypt(t.Context(), u, block.Sealed{Data: data}); err == nil {
			accepted++
		}
	}
	if accepted > 60 { // 8 are to be expected: one byte of value 1 in 256
		t.Errorf("%d of 2000 random ciphertexts decrypt", accepted)
	}
	bare := u
	bare.Algorithm = "A256CBC-NOPAD"
	for last, good := range map[string]bool{
		"0123456789abcde\x01": true, "0123456789abcd\x02\x02": true, "0123456789abcd\x01\x02": false, "0123456789abcde\x00": false, "0123456789abcde\x11": false,
		strings.Repeat("\x10", 16): true, "\x0f" + strings.Repeat("\x10", 15): false, strings.Repeat("\x0f", 16): true,
	} {
		s, err := p.Encrypt(t.Context(), bare, []byte("sixteen bytes, !"+last))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Decrypt(t.Context(), u, s); (err == nil) != good {
			t.Errorf("padding %q: %v, want it right: %v", last, err, good)
		}
	}
}
