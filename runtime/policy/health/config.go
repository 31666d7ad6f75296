package health

import (
	"errors"
	"fmt"
	"time"
)

// Config is what a user writes. Every figure left at 0 takes its default.
type Config struct {
	// Interval is the time from the start of one check of a host to the start of the next. Default 10s.
	Interval time.Duration `yaml:"interval"`
	// Timeout is how long a check may take; longer is a failure. At most Interval. Default 1s, or
	// Interval if that is shorter.
	Timeout time.Duration `yaml:"timeout"`
	// HealthyThreshold is how many checks in a row must pass before a failing host counts as healthy.
	// Default 2, HAProxy's rise: one pass can be luck, for a host that keeps crashing answers now and
	// then, and each time it is believed it costs UnhealthyThreshold failed checks of real calls.
	HealthyThreshold int `yaml:"healthyThreshold"`
	// UnhealthyThreshold is how many checks in a row must fail before a host counts as failing.
	// Default 3, HAProxy's fall: one lost packet or one long pause should not move traffic.
	UnhealthyThreshold int `yaml:"unhealthyThreshold"`
	// Jitter lengthens each interval by a random share of at most this, in percent, so that sidecars
	// do not check a host in step. From 1 to 100, default 10.
	Jitter int `yaml:"jitterPercent"`
	// IdleInterval takes the place of Interval while no call used the cluster since the last check.
	// Default 60s, or Interval if that is longer.
	IdleInterval time.Duration `yaml:"idleInterval"`
	// Path is what to GET on an app; empty is a check of the transport alone.
	Path string `yaml:"path"` // only carried here, for whoever makes the Probe

	// Line is where the block starts in its file; 0 when it comes from elsewhere.
	Line int `yaml:"-"`
}

// shortest is a guard against a forgotten unit ("interval: 10" is ten nanoseconds), which would
// have every host checked without a pause.
const shortest = 10 * time.Millisecond

// Validate reports every finding, joined, each naming its field and what would be right.
// A nil Config has none.
func (c *Config) Validate() error {
	if c == nil {
		return nil
	}
	var f findings
	f.duration("interval", c.Interval, "10s")
	f.duration("timeout", c.Timeout, "1s")
	f.duration("idleInterval", c.IdleInterval, "60s")
	full := c.filled()
	if c.Timeout > full.Interval {
		f.add("timeout: %v is longer than interval; want %v or less", c.Timeout, full.Interval)
	}
	if c.IdleInterval > 0 && c.IdleInterval < full.Interval {
		f.add("idleInterval: %v is shorter than interval; want %v or more", c.IdleInterval, full.Interval)
	}
	f.count("healthyThreshold", c.HealthyThreshold, 2)
	f.count("unhealthyThreshold", c.UnhealthyThreshold, 3)
	if c.Jitter < 0 || c.Jitter > 100 {
		f.add("jitterPercent: %d; want a percentage from 1 to 100, or 0 for 10", c.Jitter)
	}
	return errors.Join(f...)
}

type findings []error

func (f *findings) add(format string, args ...any) { *f = append(*f, fmt.Errorf(format, args...)) }

func (f *findings) duration(field string, d time.Duration, standard string) {
	switch {
	case d < 0:
		f.add("%s: %v is negative; want a duration, or 0 for %s", field, d, standard)
	case d > 0 && d < shortest:
		f.add("%s: %v is too short; want %v or more, written with its unit, like %s", field, d, shortest, standard)
	}
}

func (f *findings) count(field string, n, standard int) {
	if n < 0 {
		f.add("%s: %d; want 1 or more, or 0 for %d", field, n, standard)
	}
}

// filled is c with every default in place.
func (c Config) filled() Config {
	c.Interval = or(c.Interval, 10*time.Second)
	c.Timeout = or(c.Timeout, min(time.Second, c.Interval))
	c.IdleInterval = max(or(c.IdleInterval, time.Minute), c.Interval)
	c.HealthyThreshold = or(c.HealthyThreshold, 2)
	c.UnhealthyThreshold = or(c.UnhealthyThreshold, 3)
	c.Jitter = or(c.Jitter, 10)
	return c
}

// or is n, or otherwise when n is unset. A negative n, which Validate refuses, counts as unset.
func or[N int | time.Duration](n, otherwise N) N {
	if n > 0 {
		return n
	}
	return otherwise
}
