package localkeys

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lestrrat-go/jwx/v3/jwk"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

const (
	maxSet  = 1 << 20 // bytes of a key set
	maxKeys = 1024    // keys in one
	// retryEvery is the least time between two fetches after a failure.
	retryEvery = time.Second
)

// JWKSConfig configures a JSON Web Key Set.
type JWKSConfig struct {
	// JWKS is the set (RFC 7517): its JSON, plain or as base64, the URL it is to be fetched from, or
	// the path of a file. Keys are called by their kid. A relative path starts at the sidecar's
	// working directory.
	JWKS conf.Secret `yaml:"jwks" required:"true"`
	// RequestTimeout bounds a fetch from a URL.
	RequestTimeout time.Duration `yaml:"requestTimeout" unit:"s"`
	// MinRefreshInterval is the least time between two fetches from a URL. Keys older than it are
	// fetched again when they are next used.
	MinRefreshInterval time.Duration `yaml:"minRefreshInterval" unit:"s"`
}

// DefaultJWKSConfig is the configuration without any metadata.
func DefaultJWKSConfig() *JWKSConfig {
	return &JWKSConfig{RequestTimeout: 30 * time.Second, MinRefreshInterval: 10 * time.Minute}
}

// Validate checks values that fit their types and nothing else.
func (c *JWKSConfig) Validate() error {
	var found []error
	if c.RequestTimeout <= 0 {
		found = append(found, errors.New("requestTimeout: must be longer than 0"))
	}
	if c.MinRefreshInterval < time.Second {
		found = append(found, errors.New("minRefreshInterval: must be 1s or longer: who serves the set would be asked for every call"))
	}
	return errors.Join(found...)
}

// NewJWKS opens a key set. A file or a URL is not touched before the first use.
func NewJWKS(env block.Env, c *JWKSConfig) (block.Crypto, error) {
	const op fault.Op = "localkeys.NewJWKS"
	text := strings.TrimSpace(c.JWKS.Reveal())
	if text == "" {
		return nil, fault.New(op, fault.Invalid, "jwks is required: the set itself, a URL or the path of a file")
	}
	if doc := inline(text); doc != nil {
		keys, err := parseSet(doc)
		if err != nil {
			return nil, fault.New(op, fault.Invalid, "jwks").Because(err)
		}
		return &provider{ring: keys}, nil
	}
	if u, err := url.Parse(text); err == nil && (u.Scheme == "http" || u.Scheme == "https") {
		if u.Host == "" {
			return nil, fault.New(op, fault.Invalid, "jwks: the URL names no host")
		}
		return &provider{ring: newRemote(env.Log, u, c)}, nil
	}
	return &provider{ring: &file{path: text, log: env.Log}}, nil
}

// inline is the set if that is what the setting holds, nil otherwise.
func inline(text string) []byte {
	if text[0] == '{' {
		return []byte(text)
	}
	joined := strings.Join(strings.Fields(text), "") // base64 is often written in lines
	bare := strings.TrimRight(joined, "=")
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if doc, err := enc.DecodeString(bare); err == nil && bytes.HasPrefix(bytes.TrimSpace(doc), []byte("{")) {
			return bytes.TrimSpace(doc)
		}
	}
	return nil
}

// set is keys by name. It does not change.
type set map[string]*key

func (s set) find(_ context.Context, op fault.Op, name string) (*key, error) {
	if k, ok := s[name]; ok {
		return k, nil
	}
	return nil, fault.New(op, fault.NotFound, "there is no key %s in the set", shown(name))
}

func (s set) ping(context.Context, fault.Op) error { return nil }
func (s set) close()                               {}

// parseSet reads a set. A key without a name cannot be asked for, and one of a kind to come is not
// in the way of others; a set of which nothing can be used is an error, which quotes nothing of it.
func parseSet(doc []byte) (set, error) {
	from, err := jwk.Parse(doc, jwk.WithIgnoreParseError(true))
	if err != nil {
		return nil, errors.New("is no JSON Web Key Set (RFC 7517)")
	}
	if from.Len() > maxKeys {
		return nil, fmt.Errorf("has %d keys, more than %d", from.Len(), maxKeys)
	}
	out := set{}
	for i := range from.Len() {
		k, _ := from.Key(i)
		name, _ := k.KeyID()
		if name == "" {
			continue
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("has two keys with the kid %s", shown(name))
		}
		if usable, err := fromJWK(name, k); err == nil {
			out[name] = usable
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("has no key that can be used among its %d: keys need a kid, and to be RSA, EC, Ed25519 or symmetric ones", from.Len())
	}
	return out, nil
}

// file is a set in a file, which is read again when it has changed.
type file struct {
	path string
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	keys   set        // the last good ones; nil before
	seen   os.FileInfo
	broken string // what was said of the present version; empty when it is good
	looked time.Time
}

func (f *file) close() {}

func (f *file) ping(_ context.Context, op fault.Op) error {
	_, err := f.current(op)
	return err
}

func (f *file) find(ctx context.Context, op fault.Op, name string) (*key, error) {
	keys, err := f.current(op)
	if err != nil {
		return nil, err
	}
	return keys.find(ctx, op, name)
}

// current is the set as it is now. A version that cannot be used is told once, and changes nothing.
func (f *file) current(op fault.Op) (set, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err == nil && f.same(info) && f.broken == "" {
		return f.keys, nil
	}
	looked := time.Now()
	var keys set
	if err == nil {
		keys, err = f.read(info)
	}
	if err == nil {
		f.keys, f.seen, f.looked, f.broken = keys, info, looked, ""
		return keys, nil
	}
	err = fault.New(op, fault.Unavailable, "jwks file %s", f.path).Because(cause(err))
	if f.keys == nil {
		return nil, err
	}
	if text := err.Error(); text != f.broken {
		f.broken = text
		f.log.Warn("the changed key set cannot be used; the keys before stay in use", "err", err)
	}
	return f.keys, nil
}

// same tells whether the file is the one that was read. One that had only just been written then
// may have been written again within the clock's step, so it is read once more.
func (f *file) same(now os.FileInfo) bool {
	return f.seen != nil && os.SameFile(f.seen, now) && now.ModTime().Equal(f.seen.ModTime()) && now.Size() == f.seen.Size() &&
		f.looked.Sub(now.ModTime()) > 2*time.Second
}

func (f *file) read(info os.FileInfo) (set, error) {
	if !info.Mode().IsRegular() { // opening a pipe would wait for ever
		return nil, errNoFile
	}
	in, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }() // read only: nothing can be lost
	doc, err := io.ReadAll(io.LimitReader(in, maxSet+1))
	if err != nil {
		return nil, err
	}
	if len(doc) > maxSet {
		return nil, errSetTooLarge
	}
	return parseSet(doc)
}

var errSetTooLarge = errors.New("has more than 1 MiB")

// remote is a set at a URL. The first use waits for it. Later ones use what is there; when that is
// old, or lacks a key, it is fetched again, not more often than the interval says. The last good
// keys stay in use while it cannot be had.
type remote struct {
	url    *url.URL
	client *http.Client
	log    *slog.Logger
	within time.Duration
	every  time.Duration

	life    context.Context // ends with close
	end     context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex    // guards what follows
	keys    set           // nil before the first success
	fetched time.Time     // of the last success
	failed  time.Time     // of the last failure since; zero otherwise
	err     error         // of it
	flight  chan struct{} // closed when the fetch that is under way ends; nil when there is none
}

func newRemote(log *slog.Logger, u *url.URL, c *JWKSConfig) *remote {
	if u.Scheme == "http" {
		log.Warn("the key set comes over http: whoever is on the way can read and change the keys; use https")
	}
	t := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true} // asked too rarely to keep a connection
	r := &remote{url: u, client: &http.Client{Transport: t, CheckRedirect: noDowngrade}, log: log, within: c.RequestTimeout, every: c.MinRefreshInterval}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// place is the URL without what may be a credential in it.
func (r *remote) place() string {
	return (&url.URL{Scheme: r.url.Scheme, Host: r.url.Host, Path: r.url.Path}).String()
}

// noDowngrade follows a few redirects, none from https to http.
func noDowngrade(req *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return errors.New("more than 5 redirects")
	}
	if req.URL.Scheme != "https" && via[0].URL.Scheme == "https" {
		return errors.New("redirected from https to http")
	}
	return nil
}

func (r *remote) close() {
	r.mu.Lock() // so that a fetch either has begun or will not
	r.end()
	r.mu.Unlock()
	r.running.Wait()
}

func (r *remote) ping(ctx context.Context, op fault.Op) error {
	_, err := r.current(ctx, op)
	return err
}

func (r *remote) find(ctx context.Context, op fault.Op, name string) (*key, error) {
	keys, err := r.current(ctx, op)
	if err != nil {
		return nil, err
	}
	if k, ok := keys[name]; ok {
		return k, nil
	}
	if flight := r.fetch(); flight != nil { // it may be new
		if err := wait(ctx, op, flight); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.keys.find(ctx, op, name)
}

func wait(ctx context.Context, op fault.Op, flight <-chan struct{}) error {
	select {
	case <-flight:
		return nil
	case <-ctx.Done():
		return fault.Wrap(op, fault.Canceled, ctx.Err())
	}
}

// current is the keys there are; the first callers wait for them, old ones are renewed meanwhile.
func (r *remote) current(ctx context.Context, op fault.Op) (set, error) {
	flight := r.fetch()
	r.mu.Lock()
	keys := r.keys
	r.mu.Unlock()
	if keys != nil {
		return keys, nil
	}
	if flight != nil {
		if err := wait(ctx, op, flight); err != nil {
			return nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys != nil {
		return r.keys, nil
	}
	return nil, fault.New(op, fault.Unavailable, "the key set at %s cannot be had", r.place()).Because(r.err)
}

// fetch starts a fetch if one is due. The result is closed when the fetch under way ends; nil means
// that there is none.
func (r *remote) fetch() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.flight != nil {
		return r.flight
	}
	early := r.keys != nil && time.Since(r.fetched) < r.every || !r.failed.IsZero() && time.Since(r.failed) < retryEvery
	if early || r.life.Err() != nil {
		return nil
	}
	flight := make(chan struct{})
	r.flight = flight
	r.running.Go(func() {
		defer close(flight)
		keys, err := r.get()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.flight, r.err = nil, err
		if err == nil {
			r.keys, r.fetched, r.failed = keys, time.Now(), time.Time{}
			return
		}
		first := r.failed.IsZero()
		r.failed = time.Now()
		if r.keys != nil && first && r.life.Err() == nil {
			r.log.Warn("the key set cannot be fetched again; the keys before stay in use", "err", err)
		}
	})
	return flight
}

// get fetches the set. Its errors hold nothing of a URL's credentials, nor of the answer.
func (r *remote) get() (set, error) {
	const op fault.Op = "localkeys.fetch"
	ctx, cancel := context.WithTimeout(r.life, r.within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url.String(), nil)
	if err != nil {
		return nil, fault.New(op, fault.Invalid, "the URL cannot be used")
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := r.client.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // it quotes the URL
		}
		return nil, fault.Wrap(op, fault.Unavailable, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fault.New(op, fault.Unavailable, "the server answered %d; is the URL right?", resp.StatusCode)
	}
	doc, err := io.ReadAll(io.LimitReader(resp.Body, maxSet+1))
	if err != nil {
		return nil, fault.Wrap(op, fault.Unavailable, err)
	}
	if len(doc) > maxSet {
		return nil, fault.New(op, fault.Unavailable, "what is there").Because(errSetTooLarge)
	}
	keys, err := parseSet(doc)
	if err != nil {
		return nil, fault.New(op, fault.Unavailable, "what is there").Because(err)
	}
	return keys, nil
}
