package middleware

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
)

// RateLimitConfig says how much is too much.
type RateLimitConfig struct {
	// MaxRequestsPerSecond is how many requests one client may make to one path, per second on
	// average and at once. Fractions are fine: 0.5 is one request in two seconds.
	MaxRequestsPerSecond float64 `yaml:"maxRequestsPerSecond"`
}

func defaultRateLimit() *RateLimitConfig { return &RateLimitConfig{MaxRequestsPerSecond: 100} }

// Limits of MaxRequestsPerSecond: the time between two requests is counted in nanoseconds.
const (
	slowest = 1e-6
	fastest = 1e9
)

// Validate checks the rate.
func (c *RateLimitConfig) Validate() error {
	if v := c.MaxRequestsPerSecond; !(v >= slowest && v <= fastest) { // so that NaN is refused
		return conf.Bad("maxRequestsPerSecond", "%v must be a positive number, from %v to %v", v, slowest, fastest)
	}
	return nil
}

func newRateLimit(_ Env, c *RateLimitConfig) (*Middleware, error) {
	l := &rateLimit{buckets: newBuckets(c.MaxRequestsPerSecond)}
	l.limit = strconv.Itoa(int(math.Round(c.MaxRequestsPerSecond)))
	l.exact = strconv.FormatFloat(c.MaxRequestsPerSecond, 'f', 2, 64)
	return gated(l.judge), nil
}

type rateLimit struct {
	buckets      *buckets
	limit, exact string // header values
}

func (l *rateLimit) judge(_ context.Context, h head) verdict {
	client, forwarded := clientOf(h)
	left, ok := l.buckets.take(client, h.Path)
	v := verdict{Add: make(call.Fields, 0, 6)}
	v.Add.Add("RateLimit-Limit", l.limit)
	v.Add.Add("RateLimit-Remaining", strconv.Itoa(left))
	v.Add.Add("RateLimit-Reset", "1")
	v.Add.Add("X-Rate-Limit-Limit", l.exact)
	v.Add.Add("X-Rate-Limit-Duration", "1")
	switch {
	case forwarded != "":
		v.Add.Add("X-Rate-Limit-Request-Forwarded-For", forwarded)
	case h.Remote != "":
		v.Add.Add("X-Rate-Limit-Request-Remote-Addr", h.Remote)
	}
	if !ok {
		v.Status, v.Text = http.StatusTooManyRequests, "You have reached maximum request limit."
	}
	return v
}

// clientOf names the client of a request, and gives its X-Forwarded-For. Of that the last
// address counts: it is the one the nearest proxy saw.
func clientOf(h head) (client, forwarded string) {
	forwarded = h.Header.Get("X-Forwarded-For")
	if client = strings.TrimSpace(forwarded[strings.LastIndexByte(forwarded, ',')+1:]); client != "" {
		return client, forwarded
	}
	if client = strings.TrimSpace(h.Header.Get("X-Real-IP")); client != "" {
		return client, forwarded
	}
	return h.Host, forwarded
}
