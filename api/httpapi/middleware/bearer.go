package middleware

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

// BearerConfig says whose tokens are admitted.
type BearerConfig struct {
	// Issuer is what the token's claim iss must be, to the letter.
	Issuer string `yaml:"issuer" alias:"issuerURL" required:"true"`
	// Audience is what the token's claim aud must be or contain.
	Audience string `yaml:"audience" alias:"clientID" required:"true"`
	// JWKSURL is where the issuer's keys are. Empty means that the issuer's OpenID Connect
	// configuration, at <issuer>/.well-known/openid-configuration, says where.
	JWKSURL string `yaml:"jwksURL"`
}

func defaultBearer() *BearerConfig { return &BearerConfig{} }

// Validate checks the addresses.
func (c *BearerConfig) Validate() error {
	var errs []error
	if c.JWKSURL != "" {
		if err := webURL(c.JWKSURL); err != nil {
			errs = append(errs, conf.Bad("jwksURL", "%s", err))
		}
	} else if c.Issuer != "" {
		if err := webURL(c.Issuer); err != nil {
			errs = append(errs, conf.Bad("issuer", "%s; or set jwksURL", err))
		}
	}
	return errors.Join(errs...)
}

func webURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return errors.New("must be an address like https://login.example.com")
	}
	return nil
}

const opBearer fault.Op = "middleware.bearer"

// leeway is how far the clocks of issuer and sidecar may be apart.
const leeway = 5 * time.Minute

func newBearer(env Env, c *BearerConfig) (*Middleware, error) {
	b := &bearer{issuer: c.Issuer, audience: c.Audience, log: env.Log, keys: newKeySource(env, c.Issuer, c.JWKSURL)}
	m := gated(b.judge)
	m.Close = b.keys.close
	return m, nil
}

type bearer struct {
	issuer, audience string
	log              *slog.Logger
	keys             *keySource
	seen             signedTokens
}

// judge admits a request with a good token. While no key of the issuer could be had it cannot
// tell, and says 503.
func (b *bearer) judge(ctx context.Context, h head) verdict {
	token, err := bearerToken(h)
	if err == nil {
		err = b.verify(ctx, token)
	}
	if err == nil {
		return verdict{}
	}
	if errors.Is(err, errNoKeys) {
		return refusal(http.StatusServiceUnavailable)
	}
	b.log.Debug("a request was refused: its bearer token is not good", "path", h.Path, "err", err)
	return refusal(http.StatusUnauthorized)
}

// bearerToken takes the token out of the one Authorization header. With two of them the app
// might believe the other.
func bearerToken(h head) (string, error) {
	value, n := "", 0
	for _, f := range h.Header {
		if strings.EqualFold(f.Name, "Authorization") {
			value, n = f.Value, n+1
		}
	}
	scheme, token, ok := strings.Cut(value, " ")
	if n != 1 || !ok || !strings.EqualFold(scheme, "Bearer") {
		return "", fault.New(opBearer, fault.Unauthenticated, "%d Authorization headers, want one, with a bearer token", n)
	}
	return strings.TrimSpace(token), nil
}

// verify checks signature and claims. A signature is checked once for each token and state of
// the issuer's keys, the claims every time.
func (b *bearer) verify(ctx context.Context, token string) error {
	claimed, err := readHeader(token)
	if err != nil {
		return err // no key would help
	}
	ring, err := b.keys.current(ctx)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(token))
	claims := b.seen.find(sum, ring)
	if claims != nil {
		return b.validate(claims)
	}
	if claims, ring, err = b.open(ctx, token, claimed, ring); err != nil {
		return err
	}
	if err = b.validate(claims); err == nil {
		b.seen.add(sum, ring, claims)
	}
	return err
}

// open checks the signature; the keyring it returns is the one that it was checked with.
func (b *bearer) open(ctx context.Context, token string, claimed jose, ring *keyring) (jwt.Token, *keyring, error) {
	payload, ok := ring.verify(token, claimed)
	if !ok && !ring.has(claimed.KeyID) { // perhaps the issuer has new keys
		ring = b.keys.newer(ctx, ring)
		payload, ok = ring.verify(token, claimed)
	}
	if !ok {
		return nil, nil, fault.New(opBearer, fault.Unauthenticated, "no key of the issuer made the signature (alg %q, kid %q)", claimed.Algorithm, claimed.KeyID)
	}
	claims := jwt.New()
	if err := json.Unmarshal(payload, claims); err != nil {
		return nil, nil, fault.New(opBearer, fault.Unauthenticated, "the token's claims cannot be read").Because(err)
	}
	return claims, ring, nil
}

func (b *bearer) validate(claims jwt.Token) error {
	return jwt.Validate(claims, jwt.WithIssuer(b.issuer), jwt.WithAudience(b.audience), jwt.WithAcceptableSkew(leeway))
}

// maxSigned bounds the tokens remembered. Only the issuer can fill the table.
const maxSigned = 1024

// signedTokens remembers tokens with a good signature, by their hashes: clients send the same
// token again and again, and an RSA signature costs as much as a whole invocation. The zero
// value is ready to use.
type signedTokens struct {
	mu sync.RWMutex // guards m
	m  map[[sha256.Size]byte]signedToken
}

type signedToken struct {
	ring   *keyring // that the signature was checked with; with other keys it counts no more
	claims jwt.Token
}

func (s *signedTokens) find(sum [sha256.Size]byte, ring *keyring) jwt.Token {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if t, ok := s.m[sum]; ok && t.ring == ring {
		return t.claims
	}
	return nil
}

func (s *signedTokens) add(sum [sha256.Size]byte, ring *keyring, claims jwt.Token) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil || len(s.m) >= maxSigned {
		s.m = map[[sha256.Size]byte]signedToken{} // the tokens in use come back at once
	}
	s.m[sum] = signedToken{ring, claims}
}

// jose is what matters of a token's header. None of it is to be believed before a key of the
// issuer's has made the signature; it only says which key to try.
type jose struct {
	Algorithm string          `json:"alg"`
	KeyID     string          `json:"kid"`
	Critical  json.RawMessage `json:"crit"`
}

// readHeader reads the header of a compact token. It refuses extensions that must be
// understood, because none is.
func readHeader(token string) (h jose, err error) {
	if strings.Count(token, ".") != 2 {
		return h, fault.New(opBearer, fault.Unauthenticated, "the token does not have three parts")
	}
	first, _, _ := strings.Cut(token, ".")
	raw, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		return h, fault.New(opBearer, fault.Unauthenticated, "the token's header is not base64url").Because(err)
	}
	if err := json.Unmarshal(raw, &h); err != nil {
		return h, fault.New(opBearer, fault.Unauthenticated, "the token's header is not JSON").Because(err)
	}
	if h.Critical != nil {
		return h, fault.New(opBearer, fault.Unauthenticated, "the token has critical extensions, which are not understood")
	}
	return h, nil
}

// verify tries the keys that the token may have been signed with, and returns its payload.
func (k *keyring) verify(token string, claimed jose) (payload []byte, ok bool) {
	alg, known := jwa.LookupSignatureAlgorithm(claimed.Algorithm)
	if !known {
		return nil, false
	}
	for _, key := range k.keys {
		if claimed.KeyID != "" && key.id != claimed.KeyID || !key.signs(claimed.Algorithm) {
			continue
		}
		if payload, err := jws.VerifyCompactFast(key.public, []byte(token), alg); err == nil {
			return payload, true
		}
	}
	return nil, false
}
