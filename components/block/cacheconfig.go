package block

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
)

// CacheConfig is what all caches are configured with beside their connection: a part of each
// backend's own configuration.
type CacheConfig struct {
	// Coherence is how near entries are kept true to the shared ones.
	Coherence Coherence `yaml:"coherence" enum:"local,invalidate,strong"`
	// NearBytes bounds the near cache, in this sidecar's memory: keys, values and about 200 bytes
	// of bookkeeping for each entry. 0 means none.
	NearBytes conf.ByteSize `yaml:"nearBytes"`
	// MaxAge is the longest time a near entry is believed without asking the shared store, where
	// coherence is invalidate.
	MaxAge time.Duration `yaml:"maxAge" unit:"s"`
	// DefaultTTL is how long entries are fresh that are written without a ttl.
	DefaultTTL time.Duration `yaml:"defaultTTL" unit:"s"`
	// NegativeTTL is how long the news are kept that there is no value; 0 means not at all.
	NegativeTTL time.Duration `yaml:"negativeTTL" unit:"s"`
	// Jitter spreads ends: each ttl is changed at random by up to this part of it, 0 to 1.
	Jitter float64 `yaml:"jitter"`
	// Namespaces are parts of the cache with settings of their own: a JSON or YAML map from
	// namespace to any of the settings above, such as {"prices": {"coherence": "strong"}}.
	Namespaces CacheNamespaces `yaml:"namespaces"`
}

// DefaultCacheConfig returns the defaults.
func DefaultCacheConfig() CacheConfig {
	return CacheConfig{Coherence: CoherenceInvalidate, NearBytes: 16 << 20, MaxAge: 30 * time.Second, DefaultTTL: time.Hour,
		NegativeTTL: 10 * time.Second, Jitter: 0.1}
}

// Of is the configuration of one namespace; that of the empty namespace is c's own.
func (c CacheConfig) Of(namespace string) CacheConfig {
	if over, ok := c.Namespaces[namespace]; ok {
		over.onto(&c)
	}
	c.Namespaces = nil
	return c
}

// Validate reports what cannot work.
func (c *CacheConfig) Validate() error {
	errs := []error{c.check("")}
	for name := range c.Namespaces {
		of := c.Of(name)
		errs = append(errs, of.check(name))
	}
	return errors.Join(errs...)
}

func (c *CacheConfig) check(namespace string) error {
	bad := func(key, format string, args ...any) error {
		text := fmt.Sprintf(format, args...)
		if namespace != "" {
			return conf.Bad("namespaces", "namespace %q: %s: %s", namespace, key, text)
		}
		return conf.Bad(key, "%s", text)
	}
	var errs []error
	switch c.Coherence {
	case CoherenceLocal, CoherenceInvalidate, CoherenceStrong:
	default:
		errs = append(errs, bad("coherence", "%q is not one of local, invalidate, strong", c.Coherence))
	}
	if c.NearBytes < 0 {
		errs = append(errs, bad("nearBytes", "is negative; 0 turns the near cache off"))
	}
	if c.MaxAge < time.Millisecond {
		errs = append(errs, bad("maxAge", "%v is too short; use at least 1ms, or coherence strong", c.MaxAge))
	}
	if c.DefaultTTL < time.Second {
		errs = append(errs, bad("defaultTTL", "%v is too short; use at least 1s", c.DefaultTTL))
	}
	if c.NegativeTTL < 0 {
		errs = append(errs, bad("negativeTTL", "is negative; 0 keeps no such news"))
	}
	if !(c.Jitter >= 0 && c.Jitter <= 1) {
		errs = append(errs, bad("jitter", "%v is not from 0 to 1", c.Jitter))
	}
	return errors.Join(errs...)
}

// CacheNamespaces are settings of parts of a cache, by namespace.
type CacheNamespaces map[string]cacheOverlay

// cacheOverlay is what a namespace sets.
type cacheOverlay struct {
	Coherence   *Coherence     `yaml:"coherence"`
	NearBytes   *conf.ByteSize `yaml:"nearBytes"`
	MaxAge      *conf.Duration `yaml:"maxAge"`
	DefaultTTL  *conf.Duration `yaml:"defaultTTL"`
	NegativeTTL *conf.Duration `yaml:"negativeTTL"`
	Jitter      *float64       `yaml:"jitter"`
}

func (o *cacheOverlay) onto(c *CacheConfig) {
	set(&c.Coherence, o.Coherence)
	set(&c.NearBytes, o.NearBytes)
	set(&c.Jitter, o.Jitter)
	for _, d := range []struct {
		to   *time.Duration
		from *conf.Duration
	}{{&c.MaxAge, o.MaxAge}, {&c.DefaultTTL, o.DefaultTTL}, {&c.NegativeTTL, o.NegativeTTL}} {
		if d.from != nil {
			*d.to = d.from.Std()
		}
	}
}

func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// OwnNear tells whether a namespace has a near cache of its own size.
func (c CacheConfig) OwnNear(namespace string) bool { return c.Namespaces[namespace].NearBytes != nil }

// UnmarshalText reads a JSON or YAML map. Unknown keys are errors.
func (n *CacheNamespaces) UnmarshalText(text []byte) error {
	if strings.TrimSpace(string(text)) == "" {
		*n = nil
		return nil
	}
	d := yaml.NewDecoder(strings.NewReader(string(text)))
	d.KnownFields(true)
	out := map[string]cacheOverlay{}
	if err := d.Decode(&out); err != nil {
		return fmt.Errorf("not a map of namespaces to settings, such as {\"prices\": {\"coherence\": \"strong\"}}: %w", err)
	}
	if _, ok := out[""]; ok {
		return errors.New("the empty namespace is the one the component's own settings are for")
	}
	*n = out
	return nil
}
