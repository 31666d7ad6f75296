package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"github.com/dapr/go-sdk/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/test/harness"
)

// keyFolder is a folder with a symmetric key "aes", whose base64 is returned, and one that cannot be
// read as any kind of key pair, "odd".
func keyFolder(t *testing.T) (dir, secret string) {
	t.Helper()
	dir = t.TempDir()
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails
	key[0] = 0x80         // no text
	for name, raw := range map[string][]byte{"aes": key, "odd": []byte("-----BEGIN PRIVATE KEY-----\nSECRETSECRET\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, base64.RawURLEncoding.EncodeToString(key)
}

// vaults are the resources of two providers: the folder, and a set with a key "shared" in its
// metadata.
func vaults(dir, secret string) string {
	return fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: vault}\nspec:\n  type: crypto.dapr.localstorage\n  version: v1\n  metadata:\n  - {name: path, value: %s}\n", dir) +
		fmt.Sprintf("---\napiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: set}\nspec:\n  type: crypto.dapr.jwks\n  version: v1\n  metadata:\n  - name: jwks\n    value: '{\"keys\": [{\"kty\": \"oct\", \"kid\": \"shared\", \"k\": \"%s\"}]}'\n", secret)
}

// put asks for a document over HTTP.
func put(t *testing.T, s *harness.Sidecar, provider, operation string, body io.Reader, headers ...string) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "PUT", s.URL("/v1.0-alpha1/crypto/"+provider+"/"+operation), body)
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := body.(*repeated); ok && r.announced {
		req.ContentLength = int64(r.left)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestCrypto(t *testing.T) {
	t.Parallel()
	dir, secret := keyFolder(t)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"c.yaml": vaults(dir, secret)}, Args: []string{"--log-level=debug", "--enable-api-logging"}})
	s.WaitOutbound()
	sealWith := func(provider, key string) []byte {
		t.Helper()
		resp := put(t, s, provider, "encrypt", strings.NewReader("hello, w0rld"), "dapr-key-name", key, "dapr-key-wrap-algorithm", "A256KW")
		doc, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/octet-stream" {
			t.Fatalf("%s: %d %v %s, %v", provider, resp.StatusCode, resp.Header, doc, err)
		}
		return doc
	}
	doc := sealWith("vault", "aes")
	resp := put(t, s, "vault", "decrypt", bytes.NewReader(doc))
	if plain, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(plain) != "hello, w0rld" {
		t.Errorf("decrypt: %d %s, %v", resp.StatusCode, plain, err)
	}
	// curl waits to be asked before it sends a body.
	req, err := http.NewRequestWithContext(t.Context(), "PUT", s.URL("/v1.0-alpha1/crypto/vault/encrypt"), bytes.NewReader(make([]byte, 3<<20)))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"Expect": "100-continue", "dapr-key-name": "aes", "dapr-key-wrap-algorithm": "A256KW"} {
		req.Header.Set(name, value)
	}
	patient := &http.Transport{ExpectContinueTimeout: time.Minute}
	defer patient.CloseIdleConnections()
	asked, err := patient.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer asked.Body.Close()
	if n, err := io.Copy(io.Discard, asked.Body); err != nil || n < 3<<20 {
		t.Errorf("a client that waits to be asked: %d bytes, %v", n, err)
	}
	// The two providers have the same key under different names.
	resp = put(t, s, "set", "decrypt", bytes.NewReader(doc), "dapr-key-name", "shared")
	if plain, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(plain) != "hello, w0rld" {
		t.Errorf("decrypt with the set: %d %s", resp.StatusCode, plain)
	}
	c, err := client.NewClientWithAddress(s.Target())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out, err := c.Decrypt(t.Context(), bytes.NewReader(sealWith("set", "shared")), client.DecryptOptions{ComponentName: "set"})
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := io.ReadAll(out); err != nil || string(plain) != "hello, w0rld" {
		t.Errorf("made over HTTP, opened with the SDK: %s, %v", plain, err)
	}
	for _, tt := range []struct {
		provider, operation string
		headers             []string
		status              int
		body                string
	}{
		{"vault", "encrypt", nil, 400, `{"errorCode":"ERR_BAD_REQUEST","message":"invalid request: missing header 'dapr-key-name'"}`},
		{"nosuch", "encrypt", nil, 400, `{"errorCode":"ERR_CRYPTO_PROVIDER_NOT_FOUND","message":"crypto provider nosuch not found"}`},
		{"vault", "encrypt", []string{"dapr-key-name", "../aes", "dapr-key-wrap-algorithm", "AES"}, 500, `ERR_CRYPTO`},
		{"vault", "encrypt", []string{"dapr-key-name", "odd", "dapr-key-wrap-algorithm", "AES"}, 500, `ERR_CRYPTO`},
		{"vault", "encrypt", []string{"dapr-key-name", "aes", "dapr-key-wrap-algorithm", "RSA"}, 500, `ERR_CRYPTO`},
	} {
		resp := put(t, s, tt.provider, tt.operation, strings.NewReader("x"), tt.headers...)
		if body, _ := io.ReadAll(resp.Body); resp.StatusCode != tt.status || !strings.Contains(string(body), tt.body) {
			t.Errorf("%s %v: %d %s, want %d %s", tt.operation, tt.headers, resp.StatusCode, body, tt.status, tt.body)
		}
	}
	resp, body := harness.Do(t, "POST", s.URL("/v1.0-alpha1/subtlecrypto/vault/wrapkey"), []byte(`{"keyName":"aes","algorithm":"A256KW","plaintextKey":"MDEyMzQ1Njc4OWFiY2RlZg=="}`))
	if resp.StatusCode != 200 || !strings.Contains(string(body), "wrappedKey") {
		t.Errorf("wrapkey: %d %s", resp.StatusCode, body)
	}

	_, metadata := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil)
	var known struct {
		Components []struct{ Name, Type, Version string }
	}
	if err := json.Unmarshal(metadata, &known); err != nil || len(known.Components) != 2 || known.Components[0].Name != "set" || known.Components[1].Type != "crypto.dapr.localstorage" {
		t.Errorf("metadata: %s", metadata)
	}
	_, metrics := harness.Do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/", s.Metrics), nil)
	raw, _ := base64.RawURLEncoding.DecodeString(secret)
	for where, text := range map[string]string{"log": s.Log(), "metadata": string(metadata), "metrics": string(metrics)} {
		for _, hidden := range []string{secret, base64.StdEncoding.EncodeToString(raw), string(raw), "w0rld", "SECRETSECRET"} {
			if strings.Contains(text, hidden) {
				t.Errorf("%q is in the %s", hidden, where)
			}
		}
	}
	for _, want := range []string{ // what is refused before the provider is no operation of it
		`dapr_component_crypto_count{app_id="me",component="vault",namespace="",operation="crypto_op",success="true"} 4`,
		`dapr_component_crypto_count{app_id="me",component="vault",namespace="",operation="crypto_op",success="false"} 3`,
		`dapr_component_crypto_count{app_id="me",component="set",namespace="",operation="crypto_op",success="true"} 3`} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("the metrics lack %s:\n%s", want, linesWith(string(metrics), "crypto_count"))
		}
	}
}

// A document of any size takes the same memory in the sidecar, over both wires and both ways.
func TestCryptoIsStreamed(t *testing.T) {
	t.Parallel()
	const size = 200 << 20
	block := make([]byte, 100_003)
	_, _ = rand.Read(block) // never fails
	dir, secret := keyFolder(t)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"c.yaml": vaults(dir, secret)}})
	s.WaitOutbound()
	t.Run("HTTP", func(t *testing.T) {
		for _, announced := range []bool{true, false} {
			req := put(t, s, "vault", "encrypt", &repeated{block: block, left: size, announced: announced}, "dapr-key-name", "aes", "dapr-key-wrap-algorithm", "AES")
			back := put(t, s, "vault", "decrypt", req.Body)
			if n, err := checkPattern(back.Body, block); n != size || err != nil {
				t.Errorf("%d bytes came back, %v; want %d", n, err, size)
			}
		}
	})
	t.Run("gRPC", func(t *testing.T) {
		c, err := client.NewClientWithAddress(s.Target())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		doc, err := c.Encrypt(t.Context(), &repeated{block: block, left: size}, client.EncryptOptions{ComponentName: "vault", KeyName: "aes", KeyWrapAlgorithm: "A256KW", DataEncryptionCipher: "CHACHA20-POLY1305"})
		if err != nil {
			t.Fatal(err)
		}
		back, err := c.Decrypt(t.Context(), doc, client.DecryptOptions{ComponentName: "vault"})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := checkPattern(back, block); n != size || err != nil {
			t.Errorf("%d bytes came back, %v; want %d", n, err, size)
		}
	})
	peak := memory(t, s, "VmHWM")
	t.Logf("the sidecar took up to %d MiB", peak>>20)
	if peak > 100<<20 {
		t.Errorf("the sidecar took up to %d MiB, want at most 100", peak>>20)
	}
}

// repeated is a source of repetitions of a block.
type repeated struct {
	block []byte
	left  int
	at    int
	// announced says that a request tells its length before.
	announced bool
}

func (p *repeated) Read(b []byte) (int, error) {
	if p.left == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.left)], p.block[p.at:])
	p.left -= n
	p.at = (p.at + n) % len(p.block)
	return n, nil
}

// The API lists know the block by its two names, and policies by its kind.
func TestCryptoRules(t *testing.T) {
	t.Parallel()
	dir, secret := keyFolder(t)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"c.yaml": vaults(dir, secret), "p.yaml": `apiVersion: mecha.io/v1
kind: TrafficPolicy
metadata: {name: one-key}
spec:
  match: [{kind: [crypto], dest: [set]}]
  authz:
    allow: [{path: shared}]
`}, Config: `apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: c}
spec:
  api:
    denied:
    - {name: subtlecrypto, version: v1alpha1, protocol: http}
    - {name: crypto, version: v1alpha1, protocol: grpc}
`})
	s.WaitOutbound()
	resp := put(t, s, "vault", "encrypt", strings.NewReader("x"), "dapr-key-name", "aes", "dapr-key-wrap-algorithm", "AES")
	if resp.StatusCode != 200 {
		t.Errorf("crypto over HTTP, which is not denied: %d", resp.StatusCode)
	}
	if resp, body := harness.Do(t, "POST", s.URL("/v1.0-alpha1/subtlecrypto/vault/getkey"), nil); resp.StatusCode != 404 || !strings.Contains(string(body), "ERR_DIRECT_INVOKE") {
		t.Errorf("subtlecrypto over HTTP, denied: %d %s", resp.StatusCode, body)
	}
	conn, err := grpc.NewClient("passthrough:///"+s.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := runtimev1.NewDaprClient(conn)
	stream, err := c.EncryptAlpha1(t.Context())
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("crypto over gRPC, denied: %v", err)
	}
	use := func(key string) error {
		_, err := c.SubtleWrapKeyAlpha1(t.Context(), &runtimev1.SubtleWrapKeyRequest{ComponentName: "set", KeyName: key, Algorithm: "A256KW", PlaintextKey: make([]byte, 16)})
		return err
	}
	if err := use("shared"); err != nil {
		t.Errorf("the key that policy allows, over gRPC: %v", err)
	}
	if err := use("other"); status.Code(err) != codes.PermissionDenied {
		t.Errorf("another key: %v, want it refused by policy", err)
	}
	resp = put(t, s, "set", "encrypt", strings.NewReader("x"), "dapr-key-name", "other", "dapr-key-wrap-algorithm", "AES")
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != 403 || resp.Header.Get("x-mecha-policy") == "" {
		t.Errorf("another key over HTTP: %d %s %v", resp.StatusCode, body, resp.Header)
	}
}
