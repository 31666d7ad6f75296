package crypto_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	enc "github.com/dapr/kit/schemes/enc/v1"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/localkeys"
	"github.com/mecha-project/mecha/runtime/crypto"
)

// Dapr's own implementation of the form is the other side here: what it writes must open, and it must
// open what is written here. It leaves wrapping to its caller; here RSA-OAEP-256 of the standard
// library, so that none of the code under test is on that side.

func theirWrap(k *rsa.PrivateKey) enc.WrapKeyFn {
	return func(plain []byte, algorithm, _ string, _ []byte) ([]byte, []byte, error) {
		if algorithm != "RSA-OAEP-256" {
			return nil, nil, fmt.Errorf("asked to wrap with %s", algorithm)
		}
		out, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &k.PublicKey, plain, nil)
		return out, nil, err
	}
}

func theirUnwrap(k *rsa.PrivateKey) enc.UnwrapKeyFn {
	return func(wrapped []byte, algorithm, _ string, _, _ []byte) ([]byte, error) {
		if algorithm != "RSA-OAEP-256" {
			return nil, fmt.Errorf("asked to unwrap with %s", algorithm)
		}
		return rsa.DecryptOAEP(sha256.New(), nil, k, wrapped, nil)
	}
}

func theirCipher(name string) *enc.Cipher {
	c := enc.Cipher(name)
	return &c
}

func TestDaprReadsOurs(t *testing.T) {
	k := newKit(t)
	for _, cipher := range []string{"AES-GCM", "CHACHA20-POLY1305"} {
		for _, size := range sizes {
			plain := noise(size)
			doc := k.encrypt(t, crypto.Encryption{Key: "rsa", Wrap: "RSA", Cipher: cipher}, plain)
			out, err := enc.Decrypt(bytes.NewReader(doc), enc.DecryptOptions{UnwrapKeyFn: theirUnwrap(k.rsa)})
			var got []byte
			if err == nil {
				got, err = io.ReadAll(out)
			}
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s, %d bytes: Dapr reads %d bytes, %v", cipher, size, len(got), err)
			}
		}
	}
}

func TestWeReadDaprs(t *testing.T) {
	k := newKit(t)
	for _, cipher := range []string{"AES-GCM", "CHACHA20-POLY1305"} {
		for _, size := range sizes {
			for _, omit := range []bool{false, true} {
				plain := noise(size)
				out, err := enc.Encrypt(bytes.NewReader(plain), enc.EncryptOptions{WrapKeyFn: theirWrap(k.rsa), Algorithm: enc.KeyAlgorithmRSA, KeyName: "rsa", OmitKeyName: omit, Cipher: theirCipher(cipher)})
				if err != nil {
					t.Fatal(err)
				}
				key := ""
				if omit {
					key = "rsa"
				}
				got, err := all(k.Decrypt(t.Context(), "vault", key, out))
				if err != nil || !bytes.Equal(got, plain) {
					t.Errorf("%s, %d bytes: %d bytes came out, %v", cipher, size, len(got), err)
				}
			}
		}
	}
}

// Both refuse the same changes.
func TestDaprRefusesWhatWeRefuse(t *testing.T) {
	k := newKit(t)
	plain := noise(3*segment + segment/2)
	doc := k.encrypt(t, crypto.Encryption{Key: "rsa", Wrap: "RSA"}, plain)
	body := headerLen(t, doc)
	for _, c := range changes() {
		spoilt := c.do(bytes.Clone(doc), body)
		if bytes.Equal(spoilt, doc) {
			continue // this change is for other documents
		}
		out, err := enc.Decrypt(bytes.NewReader(spoilt), enc.DecryptOptions{UnwrapKeyFn: theirUnwrap(k.rsa), KeyName: "rsa"})
		if err == nil {
			_, err = io.Copy(io.Discard, out)
		}
		_, ours := k.decrypt(t, "rsa", spoilt)
		if err == nil || ours == nil {
			t.Errorf("%s: Dapr says %v, we say %v", c.name, err, ours)
		}
	}
}

var update = flag.Bool("update", false, "write testdata again")

// Documents written by Dapr's implementation once, with keys that stand beside them, open for ever.
func TestOldDocuments(t *testing.T) {
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		writeOld(t, dir)
	}
	p, err := localkeys.NewFolder(block.Env{}, &localkeys.FolderConfig{Path: filepath.Join(dir, "keys")})
	if err != nil {
		t.Fatal(err)
	}
	s := serviceOf(p, nil, nil)
	docs, err := filepath.Glob(filepath.Join(dir, "*.enc"))
	if err != nil || len(docs) != 5 {
		t.Fatalf("%d documents, %v; want 5", len(docs), err)
	}
	for _, path := range docs {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		key := ""
		if strings.Contains(path, "no-name") {
			key = "rsa.pem"
		}
		got, err := all(s.Decrypt(t.Context(), "vault", key, f))
		_ = f.Close()
		if err != nil || !bytes.Equal(got, oldText(filepath.Base(path))) {
			t.Errorf("%s: %d bytes, %v", filepath.Base(path), len(got), err)
		}
	}
}

// oldText is what the document of a name holds.
func oldText(name string) []byte {
	switch {
	case strings.HasPrefix(name, "empty"):
		return nil
	case strings.HasPrefix(name, "two-segments"):
		return bytes.Repeat([]byte("0123456789abcdef"), segment/16+10)
	}
	return []byte("what was written once is read for ever\n")
}

// writeOld writes the documents of TestOldDocuments. The AES key's documents are wrapped by the
// provider; the rest is Dapr's.
func writeOld(t *testing.T, dir string) {
	k := newKit(t)
	keys := filepath.Join(dir, "keys")
	if err := os.MkdirAll(keys, 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"rsa": "rsa.pem", "aes": "aes"} {
		raw, err := os.ReadFile(filepath.Join(k.dir, from))
		if err == nil {
			err = os.WriteFile(filepath.Join(keys, to), raw, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	p, err := localkeys.NewFolder(block.Env{}, &localkeys.FolderConfig{Path: keys})
	if err != nil {
		t.Fatal(err)
	}
	aesWrap := func(plain []byte, algorithm, key string, _ []byte) ([]byte, []byte, error) {
		s, err := p.WrapKey(t.Context(), block.KeyUse{Key: key, Algorithm: algorithm}, plain)
		return s.Data, s.Tag, err
	}
	for name, o := range map[string]enc.EncryptOptions{
		"rsa":          {WrapKeyFn: theirWrap(k.rsa), Algorithm: enc.KeyAlgorithmRSAOAEP256, KeyName: "rsa.pem"},
		"rsa-no-name":  {WrapKeyFn: theirWrap(k.rsa), Algorithm: enc.KeyAlgorithmRSAOAEP256, KeyName: "rsa.pem", OmitKeyName: true},
		"chacha":       {WrapKeyFn: theirWrap(k.rsa), Algorithm: enc.KeyAlgorithmRSAOAEP256, KeyName: "rsa.pem", Cipher: theirCipher("CHACHA20-POLY1305")},
		"two-segments": {WrapKeyFn: aesWrap, Algorithm: enc.KeyAlgorithmAES256KW, KeyName: "aes"},
		"empty":        {WrapKeyFn: aesWrap, Algorithm: enc.KeyAlgorithmAES256KW, KeyName: "aes"},
	} {
		out, err := enc.Encrypt(bytes.NewReader(oldText(name)), o)
		var doc []byte
		if err == nil {
			doc, err = io.ReadAll(out)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".enc"), doc, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzDecrypt feeds the parser whatever: it ends with an error or the document's text, and never
// gives out what was not encrypted.
func FuzzDecrypt(f *testing.F) {
	k := newKit(f)
	plain := []byte("the one text that there is")
	doc := k.encrypt(f, usual, plain)
	body := headerLen(f, doc)
	f.Add(doc)
	f.Add(doc[:body])
	f.Add([]byte("dapr.io/enc/v1\n{}\n\n"))
	f.Add([]byte("dapr.io/enc/v1\n" + strings.Repeat("x", 60_000)))
	f.Add([]byte(`dapr.io/enc/v1` + "\n" + `{"k":"aes","kw":1,"wfk":"AAAA","cph":1,"np":"AAAAAAAAAA=="}` + "\n" + strings.Repeat("A", 43) + "=\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		got, err := all(k.Decrypt(t.Context(), "vault", "", bytes.NewReader(in)))
		switch {
		case err == nil && !bytes.Equal(got, plain) && !bytes.Equal(in, doc[:body]): // the header alone is an empty document
			t.Errorf("%q came out of %q", got, in)
		case err != nil && !errors.As(err, new(*fault.Error)):
			t.Errorf("%v is no fault", err)
		case err != nil && (fault.Of(err) == fault.Internal || len(err.Error()) > 400):
			t.Errorf("%v: %v", fault.Of(err), err)
		}
	})
}
