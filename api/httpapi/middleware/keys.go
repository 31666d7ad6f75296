package middleware

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/mecha-project/mecha/components/fault"
)

const (
	refreshEvery = 15 * time.Minute // age at which keys are asked for again, by the next request
	refetchEvery = 10 * time.Second // least time between two fetches because of unknown keys
	retryEvery   = time.Second      // least time between two fetches after a failure, without keys
	renewEvery   = 30 * time.Second // the same with old keys in use
	fetchWithin  = 10 * time.Second // bound of one fetch, discovery included
	maxDocument  = 1 << 20          // bytes of a key set or of an issuer's configuration
	maxKeys      = 256              // keys tried for one token, at most
)

// errNoKeys marks that the issuer's keys are not known.
var errNoKeys = errors.New("the keys of the issuer are not known")

// keyring is the keys of an issuer at one time; it does not change.
type keyring struct {
	keys    []publicKey
	fetched time.Time
}

// has tells whether a key has the name; the empty name is no key's.
func (k *keyring) has(id string) bool {
	return id != "" && slices.ContainsFunc(k.keys, func(p publicKey) bool { return p.id == id })
}

// publicKey is one key that can have signed tokens.
type publicKey struct {
	id     string   // kid; may be empty
	algs   []string // algorithms it may be used with
	public any      // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

func (p *publicKey) signs(alg string) bool { return slices.Contains(p.algs, alg) }

// keySource fetches the keys of an issuer when they are first needed, when they are old, and
// when a token names one that is unknown. The last good keys stay in use while the issuer
// cannot be asked.
type keySource struct {
	issuer, url string // url may be empty: ask the issuer's configuration
	client      *http.Client
	log         *slog.Logger
	ring        atomic.Pointer[keyring] // nil before the first success

	life    context.Context // ends with close
	end     context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex    // guards what follows
	flight chan struct{} // closed when the fetch that is under way ends; nil when there is none
	failed time.Time     // of the last failure; zero after a success
	forced time.Time     // when an unknown key last caused a fetch
	err    error         // of the last fetch
}

func newKeySource(env Env, issuer, jwksURL string) *keySource {
	t := env.Transport
	if t == nil {
		t = &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, // asked too rarely to keep a connection
			TLSHandshakeTimeout: fetchWithin, ForceAttemptHTTP2: true}
	}
	s := &keySource{issuer: issuer, url: jwksURL, log: env.Log, client: &http.Client{Transport: t, CheckRedirect: noDowngrade}}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// close gives up a fetch under way and waits for its end. Keys already had stay in use.
func (s *keySource) close() {
	s.mu.Lock() // so that a fetch either has begun or will not
	s.end()
	s.mu.Unlock()
	s.running.Wait()
}

// current returns the keys; the first caller and those with it wait for them. Old keys are
// renewed in the background. An error wraps errNoKeys or is that of ctx.
func (s *keySource) current(ctx context.Context) (*keyring, error) {
	ring := s.ring.Load()
	if ring != nil {
		if time.Since(ring.fetched) > refreshEvery {
			s.fetch(false)
		}
		return ring, nil
	}
	if flight := s.fetch(false); flight != nil {
		select {
		case <-flight:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errNoKeys, ctx.Err())
		}
	}
	if ring = s.ring.Load(); ring != nil {
		return ring, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return nil, fmt.Errorf("%w: %w", errNoKeys, s.err)
}

// newer returns keys fetched after those of old, if they can be had and have not been asked for
// too recently; else the same ones.
func (s *keySource) newer(ctx context.Context, old *keyring) *keyring {
	if ring := s.ring.Load(); ring != old {
		return ring
	}
	if flight := s.fetch(true); flight != nil {
		select {
		case <-flight:
		case <-ctx.Done():
		}
	}
	return s.ring.Load()
}

// fetch starts a fetch unless one is under way or it is too early for another. The result is
// closed when the fetch ends; nil means that there is none to wait for.
func (s *keySource) fetch(force bool) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, pause := time.Now(), retryEvery
	if s.ring.Load() != nil {
		pause = renewEvery
	}
	switch {
	case s.flight != nil:
		return s.flight
	case s.life.Err() != nil:
		s.err = s.life.Err()
		return nil
	case now.Sub(s.failed) < pause:
		return nil
	case force && now.Sub(s.forced) < refetchEvery:
		return nil
	}
	if force {
		s.forced = now
	}
	flight := make(chan struct{})
	s.flight = flight
	s.running.Go(func() {
		defer close(flight)
		ring, err := s.read()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.flight, s.err, s.failed = nil, err, time.Time{}
		if err == nil {
			s.ring.Store(ring)
			return
		}
		s.failed = time.Now()
		if s.life.Err() == nil {
			s.log.Warn("the keys of the token issuer cannot be had", "issuer", s.issuer, "err", err, "old keys in use", s.ring.Load() != nil)
		}
	})
	return flight
}

// read gets the keys.
func (s *keySource) read() (*keyring, error) {
	ctx, cancel := context.WithTimeout(s.life, fetchWithin)
	defer cancel()
	address := s.url
	if address == "" {
		var err error
		if address, err = s.discover(ctx); err != nil {
			return nil, err
		}
	}
	doc, err := s.get(ctx, address)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeys(doc)
	if err != nil {
		return nil, fault.New(opKeys, fault.Unavailable, "key set of %s", address).Because(err)
	}
	return &keyring{keys: keys, fetched: time.Now()}, nil
}

const opKeys fault.Op = "middleware.bearer.keys"

// discover asks the issuer's OpenID Connect configuration where the keys are.
func (s *keySource) discover(ctx context.Context) (string, error) {
	base := strings.TrimSuffix(s.issuer, "/")
	address := base + "/.well-known/openid-configuration"
	doc, err := s.get(ctx, address)
	if err != nil {
		return "", err
	}
	var found struct {
		Issuer string `json:"issuer"`
		Keys   string `json:"jwks_uri"`
	}
	if err := json.Unmarshal(doc, &found); err != nil {
		return "", fault.New(opKeys, fault.Unavailable, "%s is not an OpenID Connect configuration; set jwksURL if the issuer has none", address).Because(err)
	}
	if strings.TrimSuffix(found.Issuer, "/") != base {
		return "", fault.New(opKeys, fault.Unavailable, "%s is the configuration of issuer %q, not of %q; correct issuer, or set jwksURL", address, found.Issuer, s.issuer)
	}
	if err := webURL(found.Keys); err != nil || isPlain(found.Keys) && !isPlain(address) {
		return "", fault.New(opKeys, fault.Unavailable, "%s names %q as jwks_uri, which is not as safe an address; set jwksURL", address, found.Keys)
	}
	return found.Keys, nil
}

func isPlain(address string) bool {
	u, err := url.Parse(address)
	return err != nil || u.Scheme != "https"
}

// noDowngrade follows a few redirects, none from https to http.
func noDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return errors.New("more than 5 redirects")
	}
	if req.URL.Scheme != "https" && via[0].URL.Scheme == "https" {
		return fmt.Errorf("redirected from https to %s", req.URL.Redacted())
	}
	return nil
}

// get reads a small JSON document.
func (s *keySource) get(ctx context.Context, address string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, fault.Wrap(opKeys, fault.Invalid, err)
	}
	req.Header.Set("Accept", "application/json")
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fault.Wrap(opKeys, fault.Unavailable, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fault.New(opKeys, fault.Unavailable, "GET %s: status %d; is the address right?", req.URL.Redacted(), resp.StatusCode)
	}
	doc, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, fault.Wrap(opKeys, fault.Unavailable, err)
	}
	if len(doc) > maxDocument {
		return nil, fault.New(opKeys, fault.TooLarge, "GET %s: more than %d bytes", req.URL.Redacted(), maxDocument)
	}
	return doc, nil
}

// parseKeys reads a key set and keeps the public keys that can have signed tokens. A shared
// secret is no proof of who signed, and what everybody can read is none at all.
func parseKeys(doc []byte) ([]publicKey, error) {
	set, err := jwk.Parse(doc, jwk.WithIgnoreParseError(true)) // a key of a kind to come is not in the way
	if err != nil {
		return nil, err
	}
	if set.Len() > maxKeys {
		return nil, fmt.Errorf("it has %d keys, more than %d", set.Len(), maxKeys)
	}
	var out []publicKey
	for i := range set.Len() {
		key, _ := set.Key(i)
		if p, ok := usable(key); ok {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("none of its %d keys can verify a signature; it needs RSA, EC or Ed25519 public keys", set.Len())
	}
	return out, nil
}

// usable turns a key of a set into one of ours, if it is for signatures.
func usable(key jwk.Key) (p publicKey, ok bool) {
	if use, given := key.KeyUsage(); given && use != "sig" {
		return p, false
	}
	if ops, given := key.KeyOps(); given && !slices.Contains(ops, jwk.KeyOpVerify) {
		return p, false
	}
	public, err := jwk.PublicRawKeyOf(key)
	if err != nil {
		return p, false
	}
	p.algs = algorithms(public)
	if alg, given := key.Algorithm(); given {
		if !p.signs(alg.String()) {
			return p, false
		}
		p.algs = []string{alg.String()}
	}
	p.id, _ = key.KeyID()
	p.public = public
	return p, len(p.algs) > 0
}

// minRSA is the least modulus RFC 7518 allows, in bits.
const minRSA = 2048

// algorithms are those a key may be used with, by its kind and curve.
func algorithms(public any) []string {
	switch k := public.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() >= minRSA {
			return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
		}
	case *ecdsa.PublicKey:
		switch k.Curve.Params().BitSize {
		case 256:
			if k.Curve.Params().Name == "P-256" {
				return []string{"ES256"}
			}
		case 384:
			return []string{"ES384"}
		case 521:
			return []string{"ES512"}
		}
	case ed25519.PublicKey:
		return []string{"EdDSA", "Ed25519"}
	}
	return nil
}
