package outlier

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Config is what a user writes. A consecutive detector at 0 and an interval detector that is
// absent are off; with all of them off no host is ever ejected. The figures that have a default
// take it when they are 0. Names, defaults and meanings follow Envoy's OutlierDetection message
// unless a field says otherwise.
type Config struct {
	// Consecutive5xx ejects a host after this many failures in a row. 0 is off.
	Consecutive5xx int `yaml:"consecutive5xx"`
	// ConsecutiveGateway ejects a host after this many gateway failures (502, 503, 504 and their
	// like) in a row; any other failure ends the row. 0 is off.
	ConsecutiveGateway int `yaml:"consecutiveGatewayFailure"`
	// ConsecutiveLocalOrigin ejects a host after this many failures in a row to get any answer:
	// connect failures, resets, timeouts on this side. 0 is off. It works with and without
	// SplitLocalOrigin; Envoy ignores it without.
	ConsecutiveLocalOrigin int `yaml:"consecutiveLocalOrigin"`
	// SplitLocalOrigin judges local-origin failures apart. When false they count as 5xx and as
	// gateway failures too, and the interval detectors see one sum.
	SplitLocalOrigin bool `yaml:"splitExternalLocalOriginErrors"`

	// Interval is how long the interval detectors gather before they judge, and how long a host
	// stays out of trouble before its next ejection gets shorter by one step. Default 10s.
	Interval time.Duration `yaml:"interval"`
	// BaseEjection is the length of a first ejection; later ones are longer by this much each.
	// Default 30s.
	BaseEjection time.Duration `yaml:"baseEjection"`
	// MaxEjection bounds an ejection before jitter. Default 300s, or BaseEjection if that is longer.
	MaxEjection time.Duration `yaml:"maxEjection"`
	// MaxEjectionJitter adds a random time of at most this to every ejection, so that sidecars do
	// not come back to a host all at once. Default 0.
	MaxEjectionJitter time.Duration `yaml:"maxEjectionJitter"`
	// MaxEjectionPercent is the largest share of the cluster out at once, in percent, counted after
	// the ejection and rounded down. Default 10.
	MaxEjectionPercent int `yaml:"maxEjectionPercent"`
	// AlwaysEjectOne lets one host go whatever MaxEjectionPercent says. Default true, where Envoy has
	// false: 10 percent of the small clusters sidecars mostly see is no host at all.
	AlwaysEjectOne *bool `yaml:"alwaysEjectOneHost"`

	// SuccessRate compares hosts with each other. Absent is off.
	SuccessRate *SuccessRate `yaml:"successRate"`
	// FailurePercentage compares hosts with a fixed bound. Absent is off.
	FailurePercentage *FailurePercentage `yaml:"failurePercentage"`

	// Line is where the block starts in its file; 0 when it comes from elsewhere.
	Line int `yaml:"-"`
}

// SuccessRate ejects hosts whose share of successes in an interval is lower than the mean of all
// by more than StdevFactor standard deviations.
type SuccessRate struct {
	// StdevFactor is how many standard deviations below the mean are still fine. Default 1.9.
	StdevFactor float64 `yaml:"stdevFactor"`
	// MinHosts is how many hosts must have reached Volume for the comparison to mean anything. Default 5.
	MinHosts int `yaml:"minHosts"`
	// Volume is how many calls in an interval make a host comparable. Default 100.
	Volume int `yaml:"volume"`
	// Enforce is the chance, in percent, that an outlier found is ejected. Default 100; 0 never ejects.
	Enforce *int `yaml:"enforce"`
}

// FailurePercentage ejects hosts whose share of failures in an interval reaches Threshold.
type FailurePercentage struct {
	// Threshold is the share of failures, in percent, that is too much. Default 85.
	Threshold int `yaml:"threshold"`
	// MinHosts is how many hosts must have reached Volume before any is judged. Default 5.
	MinHosts int `yaml:"minHosts"`
	// Volume is how many calls in an interval a host needs to be judged. Default 50.
	Volume int `yaml:"volume"`
	// Enforce is the chance, in percent, that an outlier found is ejected. Default 100; 0 never ejects.
	Enforce *int `yaml:"enforce"`
}

// shortestInterval is a guard against a forgotten unit ("interval: 10" is ten nanoseconds), which
// would keep a core busy with sweeps.
const shortestInterval = 10 * time.Millisecond

// Validate reports every finding, joined, each naming its field and what would be right.
// A nil Config has none.
func (c *Config) Validate() error {
	if c == nil {
		return nil
	}
	var f findings
	f.atLeastZero("consecutive5xx", c.Consecutive5xx, "0 (off)")
	f.atLeastZero("consecutiveGatewayFailure", c.ConsecutiveGateway, "0 (off)")
	f.atLeastZero("consecutiveLocalOrigin", c.ConsecutiveLocalOrigin, "0 (off)")
	f.duration("interval", c.Interval, "10s")
	if c.Interval > 0 && c.Interval < shortestInterval {
		f.add("interval: %v is too short; want %v or more, written with its unit, like 10s", c.Interval, shortestInterval)
	}
	f.duration("baseEjection", c.BaseEjection, "30s")
	f.duration("maxEjection", c.MaxEjection, "300s")
	f.duration("maxEjectionJitter", c.MaxEjectionJitter, "no jitter")
	if base := c.filled().BaseEjection; c.MaxEjection > 0 && c.MaxEjection < base {
		f.add("maxEjection: %v is shorter than baseEjection; want %v or more", c.MaxEjection, base)
	}
	f.percent("maxEjectionPercent", c.MaxEjectionPercent)
	if s := c.SuccessRate; s != nil {
		if !(s.StdevFactor >= 0) || math.IsInf(s.StdevFactor, 0) { // the negation catches NaN
			f.add("successRate.stdevFactor: %v; want a number above 0, like 1.9, or 0 for that default", s.StdevFactor)
		}
		f.interval("successRate", s.MinHosts, s.Volume, s.Enforce)
	}
	if p := c.FailurePercentage; p != nil {
		f.percent("failurePercentage.threshold", p.Threshold)
		f.interval("failurePercentage", p.MinHosts, p.Volume, p.Enforce)
	}
	return errors.Join(f...)
}

type findings []error

func (f *findings) add(format string, args ...any) { *f = append(*f, fmt.Errorf(format, args...)) }

func (f *findings) atLeastZero(field string, n int, zero string) {
	if n < 0 {
		f.add("%s: %d; want %s or more", field, n, zero)
	}
}

func (f *findings) duration(field string, d time.Duration, zero string) {
	if d < 0 {
		f.add("%s: %v is negative; want a duration like 30s, or 0 for %s", field, d, zero)
	}
}

func (f *findings) percent(field string, n int) {
	if n < 0 || n > 100 {
		f.add("%s: %d; want a percentage from 0 to 100", field, n)
	}
}

func (f *findings) interval(block string, minHosts, volume int, enforce *int) {
	f.atLeastZero(block+".minHosts", minHosts, "0 (the default of 5)")
	f.atLeastZero(block+".volume", volume, "0 (the default)")
	if enforce != nil {
		f.percent(block+".enforce", *enforce)
	}
}

// filled is c with every default in place and no memory shared with it.
func (c Config) filled() Config {
	c.Interval = or(c.Interval, 10*time.Second)
	c.BaseEjection = or(c.BaseEjection, 30*time.Second)
	c.MaxEjection = max(or(c.MaxEjection, 300*time.Second), c.BaseEjection)
	c.MaxEjectionJitter = max(c.MaxEjectionJitter, 0)
	c.MaxEjectionPercent = or(c.MaxEjectionPercent, 10)
	c.AlwaysEjectOne = copied(c.AlwaysEjectOne, true)
	if c.SuccessRate != nil {
		s := *c.SuccessRate
		s.StdevFactor = or(s.StdevFactor, 1.9)
		s.MinHosts = or(s.MinHosts, 5)
		s.Volume = or(s.Volume, 100)
		s.Enforce = copied(s.Enforce, 100)
		c.SuccessRate = &s
	}
	if c.FailurePercentage != nil {
		p := *c.FailurePercentage
		p.Threshold = or(p.Threshold, 85)
		p.MinHosts = or(p.MinHosts, 5)
		p.Volume = or(p.Volume, 50)
		p.Enforce = copied(p.Enforce, 100)
		c.FailurePercentage = &p
	}
	return c
}

// or is n, or otherwise when n is unset. A negative n, which Validate refuses, counts as unset:
// the arithmetic below relies on positive figures.
func or[N int | float64 | time.Duration](n, otherwise N) N {
	if n > 0 {
		return n
	}
	return otherwise
}

// copied is *p, or otherwise when p is nil, in memory of its own.
func copied[T any](p *T, otherwise T) *T {
	if p != nil {
		otherwise = *p
	}
	return &otherwise
}
