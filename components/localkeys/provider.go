package localkeys

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// ring is where keys come from.
type ring interface {
	// find gives the key of a name; fault.NotFound when there is none.
	find(ctx context.Context, op fault.Op, name string) (*key, error)
	// ping checks that keys can be had.
	ping(ctx context.Context, op fault.Op) error
	close()
}

// provider is the contract on top of a ring.
type provider struct {
	ring
	closed atomic.Bool
}

var _ block.Crypto = (*provider)(nil)

// exact are the names of all algorithms by their upper-case forms.
var exact = func() map[string]string {
	m := map[string]string{}
	for _, names := range [][]string{slices.Collect(maps.Keys(symmetrics)), slices.Collect(maps.Keys(asymmetrics)), slices.Collect(maps.Keys(signatures))} {
		for _, name := range names {
			m[strings.ToUpper(name)] = name
		}
	}
	return m
}()

// Algorithms implements block.Crypto.
func (p *provider) Algorithms() block.Algorithms {
	both := slices.AppendSeq(slices.Collect(maps.Keys(symmetrics)), maps.Keys(asymmetrics))
	slices.Sort(both)
	return block.Algorithms{Encrypt: both, Wrap: slices.Clone(both), Sign: slices.Sorted(maps.Keys(signatures))}
}

// Ping implements block.Component.
func (p *provider) Ping(ctx context.Context) error {
	const op fault.Op = "localkeys.Ping"
	if err := p.check(ctx, op); err != nil {
		return err
	}
	return p.ping(ctx, op)
}

// Close implements block.Component.
func (p *provider) Close(context.Context) error {
	if !p.closed.Swap(true) {
		p.close()
	}
	return nil
}

// check refuses use after Close and calls whose context has ended.
func (p *provider) check(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	if p.closed.Load() {
		return fault.New(op, fault.Unavailable, "the crypto provider is closed").WithSent(fault.SentNever)
	}
	return nil
}

// key finds a key that may be used for an operation.
func (p *provider) key(ctx context.Context, op fault.Op, name string, o operation) (*key, error) {
	if err := p.check(ctx, op); err != nil {
		return nil, err
	}
	k, err := p.find(ctx, op, name)
	if err != nil {
		return nil, err
	}
	return k, k.allow(op, o)
}

// PublicKey implements block.Crypto.
func (p *provider) PublicKey(ctx context.Context, name string) ([]byte, error) {
	const op fault.Op = "localkeys.PublicKey"
	if err := p.check(ctx, op); err != nil {
		return nil, err
	}
	k, err := p.find(ctx, op, name)
	if err != nil {
		return nil, err
	}
	return k.publicDER(op)
}

// Encrypt implements block.Crypto.
func (p *provider) Encrypt(ctx context.Context, u block.KeyUse, plaintext []byte) (block.Sealed, error) {
	return p.seal(ctx, "localkeys.Encrypt", encrypt, u, plaintext)
}

// Decrypt implements block.Crypto.
func (p *provider) Decrypt(ctx context.Context, u block.KeyUse, sealed block.Sealed) ([]byte, error) {
	return p.open(ctx, "localkeys.Decrypt", decrypt, u, sealed)
}

// WrapKey implements block.Crypto.
func (p *provider) WrapKey(ctx context.Context, u block.KeyUse, plain []byte) (block.Sealed, error) {
	return p.seal(ctx, "localkeys.WrapKey", wrap, u, plain)
}

// UnwrapKey implements block.Crypto.
func (p *provider) UnwrapKey(ctx context.Context, u block.KeyUse, wrapped block.Sealed) ([]byte, error) {
	return p.open(ctx, "localkeys.UnwrapKey", unwrap, u, wrapped)
}

func (p *provider) seal(ctx context.Context, op fault.Op, o operation, u block.KeyUse, plain []byte) (block.Sealed, error) {
	k, err := p.key(ctx, op, u.Key, o)
	if err != nil {
		return block.Sealed{}, err
	}
	name := exact[strings.ToUpper(u.Algorithm)]
	if a, ok := symmetrics[name]; ok {
		return a.encrypt(op, k, u, plain)
	}
	if a, ok := asymmetrics[name]; ok {
		data, err := a.encrypt(op, k, u, plain)
		return block.Sealed{Data: data}, err
	}
	return block.Sealed{}, unknown(op, u.Algorithm, "encryption", p.Algorithms().Encrypt)
}

func (p *provider) open(ctx context.Context, op fault.Op, o operation, u block.KeyUse, s block.Sealed) ([]byte, error) {
	k, err := p.key(ctx, op, u.Key, o)
	if err != nil {
		return nil, err
	}
	name := exact[strings.ToUpper(u.Algorithm)]
	if a, ok := symmetrics[name]; ok {
		return a.decrypt(op, k, u, s)
	}
	if a, ok := asymmetrics[name]; ok {
		return a.decrypt(op, k, u, s.Data)
	}
	return nil, unknown(op, u.Algorithm, "encryption", p.Algorithms().Encrypt)
}

// Sign implements block.Crypto.
func (p *provider) Sign(ctx context.Context, name, algorithm string, digest []byte) ([]byte, error) {
	const op fault.Op = "localkeys.Sign"
	k, err := p.key(ctx, op, name, sign)
	if err != nil {
		return nil, err
	}
	a, err := p.signature(op, algorithm, digest)
	if err != nil {
		return nil, err
	}
	return a.sign(op, k, algorithm, digest)
}

// Verify implements block.Crypto.
func (p *provider) Verify(ctx context.Context, name, algorithm string, digest, sig []byte) (bool, error) {
	const op fault.Op = "localkeys.Verify"
	k, err := p.key(ctx, op, name, verify)
	if err != nil {
		return false, err
	}
	a, err := p.signature(op, algorithm, digest)
	if err != nil {
		return false, err
	}
	return a.verify(op, k, algorithm, digest, sig)
}

func (p *provider) signature(op fault.Op, algorithm string, digest []byte) (signature, error) {
	a, ok := signatures[exact[strings.ToUpper(algorithm)]]
	switch {
	case !ok:
		return a, unknown(op, algorithm, "signature", p.Algorithms().Sign)
	case a.digest > 0 && len(digest) != a.digest:
		return a, fault.New(op, fault.Invalid, "%s signs a digest of %d bytes, not of %d: hash the message with %s first", algorithm, a.digest, len(digest), a.hash)
	}
	return a, nil
}

func unknown(op fault.Op, algorithm, what string, have []string) error {
	return fault.New(op, fault.Unsupported, "%s is no %s algorithm of this provider; it has %s", shown(algorithm), what, strings.Join(have, ", "))
}

// shown is a caller's text as errors quote it: not too long.
func shown(text string) string {
	const most = 80
	if len(text) > most {
		return fmt.Sprintf("%q… (%d bytes)", text[:most], len(text))
	}
	return fmt.Sprintf("%q", text)
}
