// Package seal encrypts what a state store keeps: values are sealed on their way in and opened on
// their way out; keys, etags and times of expiry are not touched.
//
// The form is Dapr's, so that both kinds of sidecars read one store: base64 of nonce, ciphertext
// and tag (AES-GCM), then "||" and the name of the secret that holds the key. Values are written
// with the primary key and opened with the one whose name they carry.
//
// It wraps the component, where the house wraps the call (docs/design/0001-house.md): policy may
// send a call to another component than it was made on, and each must keep its own values in its
// own way, whoever writes them. What a component offers (batches, transactions, expiry) is offered
// by its wrapping too, see offers.go. Queries are not: a server cannot look into what it cannot
// read.
//
// Start at Take, then Keys.Wrap.
package seal

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// Names of the metadata entries; case does not count.
const (
	primaryEntry   = "primaryEncryptionKey"
	secondaryEntry = "secondaryEncryptionKey"
)

// separator stands between the sealed value and the name of its key. It cannot occur in base64.
const separator = "||"

// nonceSize and tagSize are bytes of AES-GCM.
const (
	nonceSize = 12
	tagSize   = 16
)

// Keys are what a store's values are encrypted with. Nil is no encryption. They are safe for
// concurrent use.
type Keys struct {
	primary key
	all     []key // the primary first
}

// key is a key and the name of the secret it came from.
type key struct {
	id   string
	aead cipher.AEAD
}

// Take separates the encryption keys from a state store's metadata: the backend is not to see
// them. Keys are nil when there are none. An error is about the metadata, fault.Invalid; it does
// not show any part of a key.
func Take(items []conf.Item) (rest []conf.Item, keys *Keys, err error) {
	var primary, secondary *conf.Item
	for i := range items {
		it := &items[i]
		var into **conf.Item
		switch {
		case strings.EqualFold(it.Name, primaryEntry):
			into = &primary
		case strings.EqualFold(it.Name, secondaryEntry):
			into = &secondary
		default:
			rest = append(rest, *it)
			continue
		}
		if *into != nil {
			return nil, nil, wrong(it, "given twice; keep one")
		}
		*into = it
	}
	switch {
	case primary == nil && secondary == nil:
		return items, nil, nil
	case primary == nil:
		return nil, nil, wrong(secondary, "it only opens older values; %s, which new ones are written with, is missing", primaryEntry)
	}
	keys = &Keys{}
	if keys.primary, err = keyOf(primary); err != nil {
		return nil, nil, err
	}
	keys.all = []key{keys.primary}
	if secondary != nil {
		k, err := keyOf(secondary)
		if err != nil {
			return nil, nil, err
		}
		keys.all = append(keys.all, k)
	}
	return rest, keys, nil
}

func keyOf(it *conf.Item) (key, error) {
	if it.SecretName == "" {
		return key{}, wrong(it, "must come from a secret store: write secretKeyRef with the secret's name, which is stored with every value, and auth.secretStore")
	}
	raw, err := hex.DecodeString(it.Value)
	if err != nil {
		return key{}, wrong(it, "the secret is not hexadecimal; make a key with: openssl rand -hex 32")
	}
	block, err := aes.NewCipher(raw)
	if err != nil {
		return key{}, wrong(it, "the secret has %d bytes, want 16, 24 or 32 (32, 48 or 64 hexadecimal digits); make a key with: openssl rand -hex 32", len(raw))
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return key{}, fault.Wrap("seal.Take", fault.Internal, err)
	}
	return key{it.SecretName, aead}, nil
}

// wrong says what is the matter with an entry, and where it is written.
func wrong(it *conf.Item, format string, args ...any) error {
	f := conf.Finding{File: it.File, Line: it.Line, Key: it.Name, Severity: conf.Error, Msg: fmt.Sprintf(format, args...)}
	return fault.New("seal.Take", fault.Invalid, "%s", f.String())
}

// Name is the name that new values carry: that of the primary key's secret.
func (k *Keys) Name() string { return k.primary.id }

// close seals a value with the primary key.
func (k *Keys) close(value []byte) []byte {
	sealed := make([]byte, nonceSize, nonceSize+len(value)+tagSize)
	_, _ = rand.Read(sealed) // it never fails
	sealed = k.primary.aead.Seal(sealed, sealed, value, nil)
	out := make([]byte, 0, base64.StdEncoding.EncodedLen(len(sealed))+len(separator)+len(k.primary.id))
	out = base64.StdEncoding.AppendEncode(out, sealed)
	return append(append(out, separator...), k.primary.id...)
}

// open opens the value of an item in place. An error says why it cannot be, and shows nothing of
// it: what is stored may be somebody's data in clear.
func (k *Keys) open(op fault.Op, item *block.StateItem) error {
	if !item.Exists {
		return nil
	}
	value, why := k.unseal(item.Value)
	if why != "" {
		err := fault.New(op, fault.Lost, "the value of key %q %s", item.Key, why)
		*item = block.StateItem{Key: item.Key}
		return err
	}
	item.Value = value
	return nil
}

// unseal opens a value, or says why not.
func (k *Keys) unseal(stored []byte) (value []byte, why string) {
	text, id, ok := strings.Cut(string(stored), separator)
	if !ok {
		return nil, "is not encrypted: it was written before the store's encryption was set, or by somebody else; write it again"
	}
	sealed, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(sealed) < nonceSize+tagSize {
		return nil, "is not encrypted, or damaged"
	}
	known := false
	for i := range k.all { // two keys may be in one secret, under one name
		if k.all[i].id != id {
			continue
		}
		known = true
		if value, err = k.all[i].aead.Open(nil, sealed[:nonceSize], sealed[nonceSize:], nil); err == nil {
			return value, ""
		}
	}
	if !known {
		return nil, "is encrypted with a key that this store is not configured with; keep the old key as " + secondaryEntry
	}
	return nil, "cannot be opened: it is damaged, or the secret that its key has the name of now holds another one"
}

// Wrap is the store with its values encrypted; the store itself when k is nil.
func (k *Keys) Wrap(store block.State) block.State {
	if k == nil {
		return store
	}
	return &sealed{store, k}
}

// sealed is a store whose values are encrypted.
type sealed struct {
	inner block.State
	keys  *Keys
}

func (s *sealed) Ping(ctx context.Context) error  { return s.inner.Ping(ctx) }
func (s *sealed) Close(ctx context.Context) error { return s.inner.Close(ctx) }

// Get reads and opens one value.
func (s *sealed) Get(ctx context.Context, key string, opts block.StateRead) (block.StateItem, error) {
	item, err := s.inner.Get(ctx, key, opts)
	if err == nil {
		err = s.keys.open("seal.Get", &item)
	}
	return item, err
}

// Set seals and writes one value.
func (s *sealed) Set(ctx context.Context, w block.StateWrite) error {
	return s.inner.Set(ctx, s.write(w))
}

// Delete removes one key.
func (s *sealed) Delete(ctx context.Context, d block.StateDelete) error {
	return s.inner.Delete(ctx, d)
}

// write is a write with its value sealed.
func (s *sealed) write(w block.StateWrite) block.StateWrite {
	w.Value, w.JSON = s.keys.close(w.Value), false
	return w
}
