package blocktest

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Crypto checks a provider of keys. keys names, for every algorithm the provider reports, a key that
// fits it; for key pairs the private key. open returns a component that has the keys. The suite
// closes the component and changes no key.
func Crypto(t *testing.T, keys map[string]string, open func(t *testing.T) block.Crypto) {
	t.Helper()
	suite(t, block.KindCrypto)
	groups := []struct {
		name string
		run  func(*cryptoTest)
	}{
		{"ping", cryptoPing},
		{"algorithms", cryptoAlgorithms},
		{"encryption", cryptoEncryption},
		{"wrapped keys", cryptoWrap},
		{"changed data", cryptoChanged},
		{"nonces", cryptoNonces},
		{"signatures", cryptoSignatures},
		{"public keys", cryptoPublic},
		{"names are exact", cryptoExact},
		{"unknown algorithms", cryptoUnknown},
		{"keys that do not fit", cryptoUnfit},
		{"slices belong to the caller", cryptoOwnership},
		{"many users", cryptoMany},
		{"an ended context", cryptoContext},
		{"close", cryptoClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			c := &cryptoTest{T: t, provider: open(t), keys: keys}
			t.Cleanup(func() { closeQuietly(t, c.provider) })
			g.run(c)
		})
	}
}

type cryptoTest struct {
	*testing.T
	provider block.Crypto
	keys     map[string]string
}

func (c *cryptoTest) ctx() context.Context { return patiently(c.T) }

// shape is what an algorithm takes.
type shape struct {
	nonce int // bytes
	proof bool
	extra bool // associated data count
	pair  bool // of keys
}

// shapeOf knows the algorithms by their names; others are taken for plain ones.
func shapeOf(algorithm string) shape {
	a := strings.ToUpper(algorithm)
	switch {
	case strings.HasPrefix(a, "XC20P"):
		return shape{nonce: 24, proof: true, extra: true}
	case strings.HasPrefix(a, "C20P"), strings.HasSuffix(a, "GCM"), strings.HasSuffix(a, "GCMKW"):
		return shape{nonce: 12, proof: true, extra: true}
	case strings.Contains(a, "CBC-HS"):
		return shape{nonce: 16, proof: true, extra: true}
	case strings.Contains(a, "CBC"):
		return shape{nonce: 16}
	case strings.HasPrefix(a, "RSA-OAEP"):
		return shape{proof: true, extra: true, pair: true}
	case strings.HasPrefix(a, "RSA"):
		return shape{pair: true} // old padding: what is changed may decrypt to something
	case strings.HasPrefix(a, "SM2"):
		return shape{proof: true, pair: true}
	}
	return shape{proof: true} // key wrap
}

// use is a use of an algorithm with the key for it.
func (c *cryptoTest) use(algorithm string) block.KeyUse {
	s := shapeOf(algorithm)
	u := block.KeyUse{Key: c.keys[algorithm], Algorithm: algorithm, Nonce: noise(s.nonce)}
	if s.extra {
		u.AssociatedData = []byte("associated")
	}
	return u
}

func (c *cryptoTest) seal(u block.KeyUse, plain []byte) block.Sealed {
	c.Helper()
	s, err := c.provider.Encrypt(c.ctx(), u, plain)
	if err != nil {
		c.Fatalf("Encrypt with %s: %v", u.Algorithm, err)
	}
	return s
}

func cryptoPing(c *cryptoTest) {
	if err := c.provider.Ping(c.ctx()); err != nil {
		c.Fatalf("Ping: %v", err)
	}
}

func cryptoAlgorithms(c *cryptoTest) {
	a := c.provider.Algorithms()
	if len(a.Encrypt)+len(a.Wrap)+len(a.Sign) == 0 {
		c.Fatal("the provider reports no algorithm at all")
	}
	for what, list := range map[string][]string{"Encrypt": a.Encrypt, "Wrap": a.Wrap, "Sign": a.Sign} {
		if !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
			c.Errorf("%s is not sorted, or names something twice: %v", what, list)
		}
		for i, name := range list {
			if c.keys[name] == "" {
				c.Errorf("the test has no key for %s: it would not be tested", name)
			}
			list[i] = "" // the caller's to change
		}
	}
	if again := c.provider.Algorithms(); slices.Contains(again.Encrypt, "") || slices.Contains(again.Wrap, "") || slices.Contains(again.Sign, "") {
		c.Error("a caller's change reached the provider's lists")
	}
}

// sizes are lengths of plaintexts: all that an algorithm takes must come back.
func sizes(algorithm string) []int {
	a := strings.ToUpper(algorithm)
	switch {
	case strings.HasSuffix(a, "KW") && a[0] == 'A' && !strings.Contains(a, "GCM"):
		return []int{16, 24, 32, 64, 512}
	case strings.HasSuffix(a, "NOPAD"):
		return []int{16, 32, 4096}
	case shapeOf(algorithm).pair && strings.HasPrefix(a, "SM2"):
		return []int{1, 16, 32, 100}
	case shapeOf(algorithm).pair:
		return []int{0, 1, 32}
	}
	return []int{0, 1, 15, 16, 17, 100, 100_000}
}

func cryptoEncryption(c *cryptoTest) {
	for _, algorithm := range c.provider.Algorithms().Encrypt {
		for _, size := range sizes(algorithm) {
			u, plain := c.use(algorithm), noise(size)
			s := c.seal(u, plain)
			if size >= 16 && bytes.Contains(s.Data, plain) {
				c.Errorf("%s: the ciphertext holds the plaintext", algorithm)
			}
			got, err := c.provider.Decrypt(c.ctx(), u, s)
			if err != nil || !bytes.Equal(got, plain) {
				c.Errorf("Decrypt of %d bytes with %s: %d bytes, %v; want what was encrypted", size, algorithm, len(got), err)
			}
			u.Algorithm = strings.ToLower(algorithm)
			if got, err := c.provider.Decrypt(c.ctx(), u, s); err != nil || !bytes.Equal(got, plain) {
				c.Errorf("Decrypt with %s: %v; want names in any case", u.Algorithm, err)
			}
		}
	}
}

func cryptoWrap(c *cryptoTest) {
	for _, algorithm := range c.provider.Algorithms().Wrap {
		u, plain := c.use(algorithm), noise(32)
		s, err := c.provider.WrapKey(c.ctx(), u, plain)
		if err != nil || bytes.Contains(s.Data, plain) {
			c.Errorf("WrapKey with %s: %v, plain key in it: %v", algorithm, err, bytes.Contains(s.Data, plain))
			continue
		}
		got, err := c.provider.UnwrapKey(c.ctx(), u, s)
		if err != nil || !bytes.Equal(got, plain) {
			c.Errorf("UnwrapKey with %s: %v; want the key that was wrapped", algorithm, err)
		}
		s.Data = flip(s.Data, len(s.Data)/2)
		if got, err := c.provider.UnwrapKey(c.ctx(), u, s); shapeOf(algorithm).proof && fault.Of(err) != fault.Invalid || bytes.Equal(got, plain) {
			c.Errorf("UnwrapKey of a changed key with %s: %v; want an error", algorithm, err)
		}
	}
}

// flip is b with one bit changed.
func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	if len(b) > 0 {
		b[at] ^= 1
	}
	return b
}

func cryptoChanged(c *cryptoTest) {
	for _, algorithm := range c.provider.Algorithms().Encrypt {
		sh := shapeOf(algorithm)
		u, plain := c.use(algorithm), noise(32)
		s := c.seal(u, plain)
		bad := func(what string, u block.KeyUse, s block.Sealed) {
			c.Helper()
			got, err := c.provider.Decrypt(c.ctx(), u, s)
			if bytes.Equal(got, plain) && err == nil {
				c.Errorf("%s: %s went unnoticed", algorithm, what)
			}
			if sh.proof && fault.Of(err) != fault.Invalid {
				c.Errorf("%s: %s: %v, want %s", algorithm, what, err, fault.Invalid)
			}
			if err != nil && (bytes.Contains([]byte(err.Error()), plain) || strings.Contains(strings.ToLower(err.Error()), "padding")) {
				c.Errorf("%s: the error says too much: %v", algorithm, err)
			}
		}
		for _, at := range []int{0, len(s.Data) / 2, len(s.Data) - 1} {
			bad("a changed bit", u, block.Sealed{Data: flip(s.Data, at), Tag: s.Tag})
		}
		bad("a missing byte", u, block.Sealed{Data: s.Data[:len(s.Data)-1], Tag: s.Tag})
		bad("no data", u, block.Sealed{Tag: s.Tag})
		if len(s.Tag) > 0 {
			bad("a changed tag", u, block.Sealed{Data: s.Data, Tag: flip(s.Tag, 0)})
			bad("a short tag", u, block.Sealed{Data: s.Data, Tag: s.Tag[:len(s.Tag)-1]})
			bad("no tag", u, block.Sealed{Data: s.Data})
		}
		if sh.extra {
			other := u
			other.AssociatedData = []byte("associated!")
			bad("other associated data", other, s)
			other.AssociatedData = nil
			bad("no associated data", other, s)
		}
		if sh.nonce > 0 {
			other := u
			other.Nonce = flip(u.Nonce, 0)
			bad("another nonce", other, s)
		}
	}
}

func cryptoNonces(c *cryptoTest) {
	for _, algorithm := range c.provider.Algorithms().Encrypt {
		n := shapeOf(algorithm).nonce
		if n == 0 {
			continue
		}
		u := c.use(algorithm)
		s := c.seal(u, noise(32))
		for _, size := range []int{0, n - 1, n + 1, 1000} {
			u.Nonce = noise(size)
			_, err := c.provider.Encrypt(c.ctx(), u, noise(32))
			wantCode(c, algorithm+" with a nonce of a wrong length", err, fault.Invalid)
			_, err = c.provider.Decrypt(c.ctx(), u, s)
			wantCode(c, algorithm+", decryption with a nonce of a wrong length", err, fault.Invalid)
		}
	}
}

// digestSize is what an algorithm signs; 0 is a message of any length.
func digestSize(algorithm string) int {
	switch {
	case algorithm == "EdDSA", algorithm == "SM2-SM3":
		return 0
	case strings.HasSuffix(algorithm, "384"):
		return 48
	case strings.HasSuffix(algorithm, "512"):
		return 64
	}
	return 32
}

func cryptoSignatures(c *cryptoTest) {
	for _, algorithm := range c.provider.Algorithms().Sign {
		key, size := c.keys[algorithm], digestSize(algorithm)
		digest := noise(size)
		if size == 0 {
			digest = []byte("a message of any length")
		}
		sig, err := c.provider.Sign(c.ctx(), key, algorithm, digest)
		if err != nil || len(sig) == 0 {
			c.Errorf("Sign with %s: %d bytes, %v", algorithm, len(sig), err)
			continue
		}
		verify := func(what string, digest, sig []byte, want bool) {
			c.Helper()
			if got, err := c.provider.Verify(c.ctx(), key, algorithm, digest, sig); err != nil || got != want {
				c.Errorf("Verify with %s of %s: %v, %v; want %v", algorithm, what, got, err, want)
			}
		}
		verify("its own signature", digest, sig, true)
		verify("another digest", flip(digest, 3), sig, false)
		verify("a changed signature", digest, flip(sig, len(sig)-1), false)
		verify("a cut signature", digest, sig[:len(sig)-1], false)
		verify("a longer signature", digest, append(bytes.Clone(sig), 0), false)
		verify("no signature", digest, nil, false)
		verify("noise", digest, noise(len(sig)), false)
		if size == 0 {
			continue
		}
		for _, n := range []int{0, size - 1, size + 1} {
			_, err := c.provider.Sign(c.ctx(), key, algorithm, noise(n))
			wantCode(c, algorithm+" of a digest of a wrong length", err, fault.Invalid)
			_, err = c.provider.Verify(c.ctx(), key, algorithm, noise(n), sig)
			wantCode(c, algorithm+", verification of a digest of a wrong length", err, fault.Invalid)
		}
	}
}

// spki is as much of a SubjectPublicKeyInfo as every kind of key has.
type spki struct {
	Algorithm struct {
		Algorithm  asn1.ObjectIdentifier
		Parameters asn1.RawValue `asn1:"optional"`
	}
	Key asn1.BitString
}

func cryptoPublic(c *cryptoTest) {
	a := c.provider.Algorithms()
	for _, algorithm := range append(a.Encrypt, a.Sign...) {
		pair := slices.Contains(c.provider.Algorithms().Sign, algorithm) || shapeOf(algorithm).pair
		der, err := c.provider.PublicKey(c.ctx(), c.keys[algorithm])
		if !pair {
			wantCode(c, "PublicKey of a symmetric key", err, fault.Invalid)
			continue
		}
		var info spki
		rest, bad := asn1.Unmarshal(der, &info)
		if err != nil || bad != nil || len(rest) > 0 || info.Key.BitLength == 0 {
			c.Errorf("PublicKey for %s: %v, %v: want a SubjectPublicKeyInfo", algorithm, err, bad)
		}
		if _, err := x509.ParsePKCS8PrivateKey(der); err == nil {
			c.Errorf("PublicKey for %s gives the private key away", algorithm)
		}
	}
}

func cryptoExact(c *cryptoTest) {
	for algorithm, name := range c.keys {
		for _, other := range []string{"", "no-such-key-" + unique(), name + "/", "/" + name, "./" + name, name + "/.", "x/../" + name, "../" + name, "//" + name, name + " ", " " + name,
			name + "\x00", name + "\n", name + "%", strings.ToUpper(name) + "X"} {
			if _, err := c.provider.PublicKey(c.ctx(), other); fault.Of(err) != fault.NotFound {
				c.Errorf("PublicKey(%s): %v, want %s", show(other), err, fault.NotFound)
			}
		}
		u := block.KeyUse{Key: "no-such-key-" + unique(), Algorithm: algorithm, Nonce: noise(shapeOf(algorithm).nonce)}
		calls := map[string]func() error{
			"Encrypt":   func() error { _, err := c.provider.Encrypt(c.ctx(), u, noise(32)); return err },
			"Decrypt":   func() error { _, err := c.provider.Decrypt(c.ctx(), u, block.Sealed{Data: noise(40)}); return err },
			"WrapKey":   func() error { _, err := c.provider.WrapKey(c.ctx(), u, noise(32)); return err },
			"UnwrapKey": func() error { _, err := c.provider.UnwrapKey(c.ctx(), u, block.Sealed{Data: noise(40)}); return err },
			"Sign":      func() error { _, err := c.provider.Sign(c.ctx(), u.Key, algorithm, noise(32)); return err },
			"Verify": func() error {
				_, err := c.provider.Verify(c.ctx(), u.Key, algorithm, noise(32), noise(32))
				return err
			},
		}
		for what, call := range calls {
			wantCode(c, what+" with a key that does not exist", call(), fault.NotFound)
		}
	}
}

func cryptoUnknown(c *cryptoTest) {
	key := ""
	for _, key = range c.keys {
		break
	}
	for _, algorithm := range []string{"", "A512KW", "none", "RSA-OAEP-", " A256KW", strings.Repeat("x", 10_000)} {
		u := block.KeyUse{Key: key, Algorithm: algorithm}
		_, err := c.provider.Encrypt(c.ctx(), u, noise(32))
		wantCode(c, "Encrypt with an unknown algorithm", err, fault.Unsupported)
		_, err = c.provider.UnwrapKey(c.ctx(), u, block.Sealed{Data: noise(40)})
		wantCode(c, "UnwrapKey with an unknown algorithm", err, fault.Unsupported)
		_, err = c.provider.Sign(c.ctx(), key, algorithm, noise(32))
		wantCode(c, "Sign with an unknown algorithm", err, fault.Unsupported)
		_, err = c.provider.Verify(c.ctx(), key, algorithm, noise(32), noise(64))
		wantCode(c, "Verify with an unknown algorithm", err, fault.Unsupported)
		if err != nil && len(err.Error()) > 2000 {
			c.Errorf("an error of %d bytes: it must not repeat all that it is given", len(err.Error()))
		}
	}
}

// cryptoUnfit uses every key with every algorithm that another key is for: what does not fit is an
// error, never a panic, and never another algorithm.
func cryptoUnfit(c *cryptoTest) {
	a := c.provider.Algorithms()
	tried := 0
	for _, algorithm := range a.Encrypt {
		u := c.use(algorithm)
		s := c.seal(u, noise(32))
		for _, key := range c.keys {
			if key == u.Key {
				continue
			}
			other := u
			other.Key = key
			tried++
			if got, err := c.provider.Decrypt(c.ctx(), other, s); err == nil && shapeOf(algorithm).proof {
				c.Errorf("%s decrypts %d bytes with another key", algorithm, len(got))
			}
			if _, err := c.provider.Encrypt(c.ctx(), other, noise(32)); err != nil && fault.Of(err) != fault.Invalid {
				c.Errorf("%s with key %s: %v, want %s", algorithm, key, err, fault.Invalid)
			}
		}
	}
	for _, algorithm := range a.Sign {
		for _, key := range c.keys {
			digest := noise(max(digestSize(algorithm), 1))
			if sig, err := c.provider.Sign(c.ctx(), key, algorithm, digest); err != nil && (fault.Of(err) != fault.Invalid || len(sig) > 0) {
				c.Errorf("%s with key %s: %d bytes, %v, want %s", algorithm, key, len(sig), err, fault.Invalid)
			}
			if ok, err := c.provider.Verify(c.ctx(), key, algorithm, digest, noise(64)); ok || err != nil && fault.Of(err) != fault.Invalid {
				c.Errorf("%s with key %s verifies noise: %v, %v", algorithm, key, ok, err)
			}
		}
	}
	if tried == 0 && len(c.keys) > 1 {
		c.Log("one key serves all algorithms")
	}
}

func cryptoOwnership(c *cryptoTest) {
	for _, algorithm := range c.provider.Algorithms().Encrypt {
		u, plain := c.use(algorithm), noise(32)
		given, nonce := bytes.Clone(plain), bytes.Clone(u.Nonce)
		s := c.seal(u, given)
		if !bytes.Equal(given, plain) || !bytes.Equal(nonce, u.Nonce) {
			c.Fatalf("%s: Encrypt changed what it was given", algorithm)
		}
		clear(given)
		kept := block.Sealed{Data: bytes.Clone(s.Data), Tag: bytes.Clone(s.Tag)}
		got, err := c.provider.Decrypt(c.ctx(), u, s)
		if err != nil || !bytes.Equal(got, plain) || !bytes.Equal(kept.Data, s.Data) || !bytes.Equal(kept.Tag, s.Tag) {
			c.Fatalf("%s: %v; Decrypt must give what was encrypted and leave what it is given", algorithm, err)
		}
		clear(got)
		if len(s.Tag) > 0 { // an append to one must not reach the other
			tag := bytes.Clone(s.Tag)
			_ = append(s.Data, 0xff)
			if !bytes.Equal(tag, s.Tag) {
				c.Errorf("%s: ciphertext and tag share memory", algorithm)
			}
		}
		if again, err := c.provider.Decrypt(c.ctx(), u, kept); err != nil || !bytes.Equal(again, plain) {
			c.Errorf("%s: a caller's change reached the provider: %v", algorithm, err)
		}
	}
}

func cryptoMany(c *cryptoTest) {
	var all sync.WaitGroup
	ctx := c.ctx()
	for range 8 {
		all.Go(func() {
			for _, algorithm := range c.provider.Algorithms().Encrypt {
				u, plain := c.use(algorithm), noise(32)
				s, err := c.provider.Encrypt(ctx, u, plain)
				var got []byte
				if err == nil {
					got, err = c.provider.Decrypt(ctx, u, s)
				}
				if err != nil || !bytes.Equal(got, plain) {
					c.Errorf("%s among many users: %v", algorithm, err)
				}
			}
		})
	}
	all.Wait()
}

func cryptoContext(c *cryptoTest) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	for what, call := range c.calls(ended) {
		start := time.Now()
		wantCode(c, what+" with an ended context", call(), fault.Canceled)
		if took := time.Since(start); took > 2*time.Second {
			c.Errorf("%s with an ended context took %v", what, took)
		}
	}
	cryptoPing(c)
}

// calls is every method.
func (c *cryptoTest) calls(ctx context.Context) map[string]func() error {
	algorithm, key := "", ""
	for algorithm, key = range c.keys {
		break
	}
	u := block.KeyUse{Key: key, Algorithm: algorithm, Nonce: noise(shapeOf(algorithm).nonce)}
	return map[string]func() error{
		"Ping":      func() error { return c.provider.Ping(ctx) },
		"PublicKey": func() error { _, err := c.provider.PublicKey(ctx, key); return err },
		"Encrypt":   func() error { _, err := c.provider.Encrypt(ctx, u, noise(32)); return err },
		"Decrypt":   func() error { _, err := c.provider.Decrypt(ctx, u, block.Sealed{Data: noise(32)}); return err },
		"WrapKey":   func() error { _, err := c.provider.WrapKey(ctx, u, noise(32)); return err },
		"UnwrapKey": func() error { _, err := c.provider.UnwrapKey(ctx, u, block.Sealed{Data: noise(32)}); return err },
		"Sign":      func() error { _, err := c.provider.Sign(ctx, key, algorithm, noise(32)); return err },
		"Verify":    func() error { _, err := c.provider.Verify(ctx, key, algorithm, noise(32), noise(64)); return err },
	}
}

func cryptoClose(c *cryptoTest) {
	cryptoPing(c)
	for i := range 2 {
		if err := c.provider.Close(c.ctx()); err != nil {
			c.Errorf("Close number %d: %v", i+1, err)
		}
	}
	for what, call := range c.calls(c.ctx()) {
		wantCode(c, what+" after Close", call(), fault.Unavailable)
	}
}
