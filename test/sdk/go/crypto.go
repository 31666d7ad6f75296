package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/dapr/go-sdk/client"
)

// cryptoMode encrypts and decrypts beside a sidecar that has the provider "vault" with the keys "aes"
// and "rsa.pem", and opens a document that Dapr made.
func cryptoMode(r *report) error {
	c, err := client.NewClientWithPort(os.Getenv("DAPR_GRPC_PORT"))
	if err != nil {
		return err
	}
	defer c.Close()
	for _, key := range []struct{ name, wrap string }{{"aes", "A256KW"}, {"rsa.pem", "RSA"}} {
		for _, size := range []int{1, 5, 300_000} {
			r.step(fmt.Sprintf("%d bytes with %s", size, key.name), func(ctx context.Context) error {
				plain := make([]byte, size)
				_, _ = rand.Read(plain) // never fails
				doc, err := c.Encrypt(ctx, bytes.NewReader(plain), client.EncryptOptions{ComponentName: "vault", KeyName: key.name, KeyWrapAlgorithm: key.wrap})
				if err != nil {
					return err
				}
				back, err := c.Decrypt(ctx, doc, client.DecryptOptions{ComponentName: "vault"})
				if err != nil {
					return err
				}
				got, err := io.ReadAll(back)
				if err == nil && !bytes.Equal(got, plain) {
					err = fmt.Errorf("%d bytes came back, which are not what was encrypted", len(got))
				}
				return err
			})
		}
	}
	r.step("every option", func(ctx context.Context) error {
		doc, err := c.Encrypt(ctx, strings.NewReader("hello"), client.EncryptOptions{ComponentName: "vault", KeyName: "aes", KeyWrapAlgorithm: "AES", DataEncryptionCipher: "chacha20-poly1305", OmitDecryptionKeyName: true})
		if err != nil {
			return err
		}
		back, err := c.Decrypt(ctx, doc, client.DecryptOptions{ComponentName: "vault", KeyName: "aes"})
		if err != nil {
			return err
		}
		got, err := io.ReadAll(back)
		if err != nil {
			return err
		}
		return expect("the text", string(got), "hello")
	})
	r.step("a document of Dapr's", func(ctx context.Context) error {
		f, err := os.Open(os.Getenv("CRYPTO_DOCUMENT"))
		if err != nil {
			return err
		}
		defer f.Close()
		back, err := c.Decrypt(ctx, f, client.DecryptOptions{ComponentName: "vault"})
		if err != nil {
			return err
		}
		got, err := io.ReadAll(back)
		if err != nil {
			return err
		}
		return expect("the text", string(got) == strings.Repeat("0123456789abcdef", 4106), true)
	})
	r.step("an unknown key", func(ctx context.Context) error {
		doc, err := c.Encrypt(ctx, strings.NewReader("x"), client.EncryptOptions{ComponentName: "vault", KeyName: "nobody", KeyWrapAlgorithm: "AES"})
		if err == nil {
			_, err = io.ReadAll(doc)
		}
		if err == nil || !strings.Contains(err.Error(), "nobody") {
			return fmt.Errorf("got %v, want an error that names the key", err)
		}
		return nil
	})
	r.step("a document that was changed", func(ctx context.Context) error {
		doc, err := c.Encrypt(ctx, strings.NewReader("hello"), client.EncryptOptions{ComponentName: "vault", KeyName: "aes", KeyWrapAlgorithm: "AES"})
		var b []byte
		if err == nil {
			b, err = io.ReadAll(doc)
		}
		if err != nil {
			return err
		}
		b[len(b)-1] ^= 1
		back, err := c.Decrypt(ctx, bytes.NewReader(b), client.DecryptOptions{ComponentName: "vault"})
		if err == nil {
			_, err = io.ReadAll(back)
		}
		if err == nil {
			return fmt.Errorf("nobody noticed")
		}
		return nil
	})
	return nil
}
