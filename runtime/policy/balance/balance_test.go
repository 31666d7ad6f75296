package balance

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata")

// seeded makes a cluster whose chances are the same in every run.
func seeded(cfg Config, eps []Endpoint) *Cluster {
	c := New(Config{})
	var mu sync.Mutex
	source := rand.NewPCG(1, 2)
	c.env.random = func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return source.Uint64()
	}
	c.Update(cfg, eps)
	return c
}

// plain lists n equal endpoints: h0, h1, …
func plain(n int) []Endpoint {
	eps := make([]Endpoint, n)
	for i := range eps {
		eps[i].ID = fmt.Sprintf("h%d", i)
	}
	return eps
}

func weighted(weights ...int) []Endpoint {
	eps := plain(len(weights))
	for i, w := range weights {
		eps[i].Weight = w
	}
	return eps
}

// tally counts where n picks go.
func tally(t testing.TB, pick func(Request) (*Host, bool), r Request, n int) map[string]int {
	t.Helper()
	got := make(map[string]int)
	for range n {
		h, ok := pick(r)
		if !ok {
			t.Fatal("Pick found no host")
		}
		got[h.ID()]++
	}
	return got
}

// near fails when a count is further than four standard deviations from its expected share.
func near(t *testing.T, what string, got, n int, share float64) {
	t.Helper()
	sigma := math.Sqrt(float64(n) * share * (1 - share))
	if d := math.Abs(float64(got) - float64(n)*share); d > 4*sigma+1 {
		t.Errorf("%s: %d of %d, want %.1f ± %.1f", what, got, n, float64(n)*share, 4*sigma)
	}
}

func policies() []Policy {
	return []Policy{RoundRobin, LeastRequest, PeakEWMA, Random, RingHash, Maglev}
}

func TestNames(t *testing.T) {
	for i, name := range Names() {
		p, ok := ParsePolicy(name)
		if !ok || p != Policy(i) || p.String() != name {
			t.Errorf("policy %q: parsed as %v, %v", name, p, ok)
		}
	}
	for i, name := range []string{"off", "failover", "weighted"} {
		l, ok := ParseLocality(name)
		if !ok || l != Locality(i) || l.String() != name {
			t.Errorf("locality %q: parsed as %v, %v", name, l, ok)
		}
	}
	if _, ok := ParsePolicy("fastest"); ok {
		t.Error("an unknown policy was parsed")
	}
	if _, ok := ParseLocality("near"); ok {
		t.Error("an unknown locality was parsed")
	}
}

func TestValidate(t *testing.T) {
	good := Config{Policy: Maglev, Choices: 3, Decay: time.Second, TableSize: 101, RingSize: 64,
		SlowStart: time.Minute, Panic: 100, Zone: "eu/a", Locality: LocalityWeighted}
	cases := []struct {
		name string
		edit func(*Config)
		want []string
	}{
		{"good", func(*Config) {}, nil},
		{"zero", func(c *Config) { *c = Config{} }, nil},
		{"policy", func(c *Config) { c.Policy = 6 }, []string{"policy"}},
		{"one choice", func(c *Config) { c.Choices = 1 }, []string{"choices"}},
		{"many choices", func(c *Config) { c.Choices = 129 }, []string{"choices"}},
		{"decay", func(c *Config) { c.Decay = time.Microsecond }, []string{"decay"}},
		{"table not prime", func(c *Config) { c.TableSize = 65536 }, []string{"table_size"}},
		{"table negative", func(c *Config) { c.TableSize = -7 }, []string{"table_size"}},
		{"table huge", func(c *Config) { c.TableSize = 5_000_077 }, []string{"table_size"}},
		{"ring", func(c *Config) { c.RingSize = 8<<20 + 1 }, []string{"ring_size"}},
		{"slow start", func(c *Config) { c.SlowStart = -1 }, []string{"slow_start"}},
		{"panic", func(c *Config) { c.Panic = 101 }, []string{"panic"}},
		{"locality", func(c *Config) { c.Locality = 3 }, []string{"locality"}},
		{"all findings", func(c *Config) { c.Choices, c.Panic, c.RingSize = -1, -1, -1 }, []string{"choices", "ring_size", "panic"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			c := good
			tc.edit(&c)
			var got []string
			if err := c.Validate(); err != nil {
				for line := range strings.Lines(err.Error()) {
					got = append(got, line[:strings.Index(line, ":")])
				}
			}
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Errorf("findings (-want +got):\n%s", d)
			}
			// Whatever was found, a cluster must work with it.
			if err := c.resolved().Validate(); err != nil && c.Locality < 3 {
				t.Errorf("resolved config does not validate: %v", err)
			}
			tally(t, seeded(c, plain(3)).Pick, Request{Hashed: true}, 10)
		})
	}
}

func TestDefaults(t *testing.T) {
	want := Config{Choices: 2, Decay: 10 * time.Second, TableSize: 65537, RingSize: 1024}
	if d := cmp.Diff(want, Config{}.resolved()); d != "" {
		t.Errorf("defaults (-want +got):\n%s", d)
	}
}

func TestNothingToPick(t *testing.T) {
	for _, p := range policies() {
		c := New(Config{Policy: p, Panic: 50})
		for _, r := range []Request{{}, {Hashed: true}, {Sticky: "h0"}, {Filter: func(*Host) bool { return true }}} {
			if h, ok := c.Pick(r); ok || h != nil {
				t.Errorf("%v: an empty cluster gave %v", p, h)
			}
		}
		if len(c.Hosts()) != 0 {
			t.Errorf("%v: an empty cluster has hosts", p)
		}
	}
}

func TestUpdateKeepsState(t *testing.T) {
	c := seeded(Config{}, weighted(1, 2, 3))
	h0, _ := c.Host("h0")
	h1, _ := c.Host("h1")
	h0.Begin()
	h0.Begin()
	h0.End(5*time.Millisecond, true)
	h0.SetEjected(true)

	next := []Endpoint{{ID: "h9"}, {ID: "h0", Weight: 7, Zone: "eu"}, {ID: "h9", Weight: 5}, {ID: "h2", Weight: 3}}
	c.Update(Config{Policy: Random}, next)

	var ids []string
	for _, h := range c.Hosts() {
		ids = append(ids, h.ID())
	}
	if d := cmp.Diff([]string{"h9", "h0", "h2"}, ids); d != "" {
		t.Errorf("hosts (-want +got):\n%s", d)
	}
	same, _ := c.Host("h0")
	if same != h0 {
		t.Fatal("the host that stayed is another one")
	}
	if d := cmp.Diff(next[1], h0.Endpoint()); d != "" {
		t.Errorf("endpoint (-want +got):\n%s", d)
	}
	if h0.Inflight() != 1 || h0.Latency() != 5*time.Millisecond || !h0.Ejected() || h0.Healthy() {
		t.Errorf("state is lost: %d in flight, %v, ejected %v", h0.Inflight(), h0.Latency(), h0.Ejected())
	}
	if h9, _ := c.Host("h9"); h9.Endpoint().Weight != 0 {
		t.Error("of two endpoints with one ID the second won")
	}
	if _, ok := c.Host("h1"); ok {
		t.Error("the host that left is still found")
	}
	h1.Begin()
	h1.End(time.Second, false)
	h1.SetEjected(true)
	c.Update(Config{}, weighted(1, 2, 3))
	if again, _ := c.Host("h1"); again == h1 || !again.Healthy() || again.Latency() != 0 {
		t.Error("a host that came back has its old state")
	}
}

func TestUpdateWithoutChange(t *testing.T) {
	eps := weighted(1, 2, 3)
	c := seeded(Config{}, eps)
	before := c.whole.snap.Load()
	c.Update(Config{}, slices.Clone(eps))
	if c.whole.snap.Load() != before {
		t.Error("an equal Update built a snapshot")
	}
	eps[0].Weight = 5 // the caller's own slice again
	c.Update(Config{}, eps)
	if c.whole.snap.Load() == before {
		t.Error("a change within the caller's slice was missed")
	}
}

func TestHealthFlags(t *testing.T) {
	for _, p := range policies() {
		t.Run(p.String(), func(t *testing.T) {
			c := seeded(Config{Policy: p}, plain(3))
			h, _ := c.Host("h1")
			steps := []struct {
				name    string
				do      func()
				healthy bool
			}{
				{"ejected", func() { h.SetEjected(true) }, false},
				{"ejected again", func() { h.SetEjected(true) }, false},
				{"failing too", func() { h.SetFailing(true) }, false},
				{"let in, still failing", func() { h.SetEjected(false) }, false},
				{"passing", func() { h.SetFailing(false) }, true},
			}
			for _, s := range steps {
				s.do()
				var got int
				for i := range 300 {
					picked, _ := c.Pick(Request{Hashed: true, Hash: uint64(i)})
					if picked == h {
						got++
					}
				}
				if h.Healthy() != s.healthy || (got > 0) != s.healthy {
					t.Errorf("%s: healthy %v, picked %d times", s.name, h.Healthy(), got)
				}
			}
		})
	}
}
