package mesh

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Whichever policy: all replicas get calls, and all calls succeed.
func TestEveryBalancingPolicy(t *testing.T) {
	for _, policy := range []string{"round_robin", "least_request", "peak_ewma", "random", "ring_hash", "maglev"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			g := newGuide(t, "balancing/maglev.yaml")
			g.file = strings.Replace(g.file, "maglev", policy, 1)
			g.replica("a")
			g.replica("b")
			s := g.caller()
			got := map[string]int{}
			for i := range 100 {
				for name, n := range g.tally(s, 1, "x-user", fmt.Sprint(i)) {
					got[name] += n
				}
			}
			least := 15
			if policy == "peak_ewma" {
				least = 1 // it follows small differences of latency
			}
			if got["a"] < least || got["b"] < least {
				t.Errorf("%v", got)
			}
		})
	}
}

// A replica that is busy gets fewer calls than one that is idle.
func showLeastRequest(g *guide) {
	release := make(chan struct{})
	app := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, name)
			if r.URL.Path == "/hold" {
				w.(http.Flusher).Flush()
				select {
				case <-release:
				case <-r.Context().Done():
				}
			}
		})
	}
	g.app("orders", app("a"))
	g.app("orders", app("b"))
	s := g.caller()
	req, err := http.NewRequestWithContext(limited(g.t), "GET", s.URL("/v1.0/invoke/orders/method/hold"), nil)
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req) // its head is there, the rest is held back
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	first := make([]byte, 1)
	if _, err := resp.Body.Read(first); err != nil {
		g.t.Fatal(err)
	}
	if got := g.tally(s, 30); got[string(first)] != 0 {
		g.t.Errorf("%v, though %s is busy and the other is not", got, first)
	}
	close(release)
}

func showPeakEWMA(g *guide) {
	g.app("orders", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(100 * time.Millisecond)
		fmt.Fprint(w, "slow")
	}))
	g.replica("fast")
	within(g.t, "calls of 60 to the slow replica", g.tally(g.caller(), 60)["slow"], 0, 12)
}

func showMaglev(g *guide) {
	for _, name := range []string{"a", "b", "c"} {
		g.replica(name)
	}
	s, used := g.caller(), map[string]bool{}
	for i := range 20 {
		got := g.tally(s, 3, "x-user", fmt.Sprint("user-", i))
		if len(got) != 1 {
			g.t.Errorf("user %d was at %v", i, got)
		}
		for name := range got {
			used[name] = true
		}
	}
	if len(used) < 2 {
		g.t.Errorf("20 users are all at %v", used)
	}
}

func showSticky(g *guide) {
	for _, name := range []string{"a", "b", "c"} {
		g.replica(name)
	}
	s := g.caller()
	resp, home := g.call(s, "GET", "/who")
	var sticks *http.Cookie
	for _, c := range resp.Cookies() {
		if c.Name == "orders-at" {
			sticks = c
		}
	}
	if sticks == nil || sticks.MaxAge != 3600 {
		g.t.Fatalf("the first answer sets %v", resp.Header.Values("Set-Cookie"))
	}
	if got := g.tally(s, 20, "cookie", "orders-at="+sticks.Value); got[home] != 20 {
		g.t.Errorf("with the cookie of %s: %v", home, got)
	}
	if got := g.tally(s, 20); len(got) != 3 {
		g.t.Errorf("without a cookie: %v", got)
	}
}

func showLocality(g *guide) {
	near := g.replica("near", "MECHA_ZONE=eu/eu-1")
	g.replica("far", "MECHA_ZONE=eu/eu-2")
	s := g.caller("MECHA_ZONE=eu/eu-1")
	if got := g.tally(s, 20); got["near"] != 20 {
		g.t.Errorf("%v, though there is a replica in the own zone", got)
	}
	end(near)
	eventually(g.t, 15*time.Second, "calls go to the other zone", func() bool {
		resp, body := g.call(s, "GET", "/who")
		return resp.StatusCode == http.StatusOK && body == "far"
	})
}

func showSlowStart(g *guide) {
	g.replica("old")
	s := g.caller()
	began := time.Now()
	eventually(g.t, 30*time.Second, "the first replica is warm", func() bool {
		g.tally(s, 1)
		return time.Since(began) > 10*time.Second
	})
	g.replica("new")
	eventually(g.t, 15*time.Second, "the new replica is found", func() bool { return g.tally(s, 1)["new"] > 0 })
	within(g.t, "calls of 60 to the new replica", g.tally(s, 60)["new"], 0, 24)
	eventually(g.t, 30*time.Second, "it has its full share", func() bool { return g.tally(s, 60)["new"] > 24 })
}

func showWeightedZones(g *guide) {
	for i := range 3 {
		g.replica(fmt.Sprint("near", i), "MECHA_ZONE=eu/eu-1")
		g.replica(fmt.Sprint("far", i), "MECHA_ZONE=eu/eu-2")
	}
	s := g.caller("MECHA_ZONE=eu/eu-1")
	for name, n := range g.tally(s, 60) {
		if strings.HasPrefix(name, "far") {
			g.t.Errorf("%s got %d calls of 60, though both zones are as large and the callers are as many", name, n)
		}
	}
}
