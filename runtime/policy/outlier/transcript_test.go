package outlier_test

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

var update = flag.Bool("update", false, "rewrite testdata")

// The life of a cluster's hosts, written down. A script line is one of
//
//	<hosts> <result> [count]   report count results for each host ("a,b 5xx 3")
//	sleep <duration>
//	keep <hosts>               hosts, or - for none
//	uneject <host>
//	config <name>              reconfigure with one of the named configurations
//	show                       print the snapshot
//
// Lines with an arrow are what the detector told.
func TestTranscripts(t *testing.T) {
	windows := &outlier.FailurePercentage{Threshold: 50, MinHosts: 2, Volume: 10}
	tests := []struct {
		name    string
		configs map[string]outlier.Config // "" is the first
		script  string
	}{
		{"consecutive_5xx", one(outlier.Config{Consecutive5xx: 3}), `
			keep a,b,c
			a 5xx 2
			a success
			a 5xx 2
			a gateway
			show
			a 5xx 9
			sleep 29.9s
			show
			sleep 0.2s
			show`},
		{"consecutive_gateway", one(outlier.Config{ConsecutiveGateway: 3}), `
			keep a,b,c
			a gateway 2
			a 5xx
			a gateway 2
			a success
			a gateway 2
			a neutral
			a gateway`},
		{"consecutive_local_origin", one(outlier.Config{ConsecutiveLocalOrigin: 3}), `
			keep a,b,c
			a local 2
			a 5xx
			a local 2
			a gateway
			a local 2
			a success
			a local 2
			show
			a local`},
		{"local_origin_not_split", one(outlier.Config{Consecutive5xx: 5, ConsecutiveGateway: 4}), `
			keep a,b,c,d
			a 5xx 2
			a local 2
			show
			a 5xx
			sleep 60s
			a local 3
			a gateway 1`},
		{"local_origin_split", one(outlier.Config{Consecutive5xx: 3, ConsecutiveGateway: 2, ConsecutiveLocalOrigin: 4, SplitLocalOrigin: true}), `
			keep a,b,c
			a 5xx 2
			a local 3
			show
			a 5xx
			sleep 60s
			a gateway
			a local 3
			a gateway
			sleep 60s
			a local 4`},
		{"most_specific_detector_wins", one(outlier.Config{Consecutive5xx: 3, ConsecutiveGateway: 3, ConsecutiveLocalOrigin: 3}), `
			keep a,b,c
			a gateway 3
			sleep 60s
			a local 3`},
		{"success_rate", one(outlier.Config{SuccessRate: &outlier.SuccessRate{}, MaxEjectionPercent: 100}), `
			keep a,b,c,d,e,f
			a,b,c,d,e success 95
			a,b,c,d,e 5xx 5
			f success 60
			f 5xx 40
			sleep 9.9s
			show
			sleep 0.2s
			show`},
		{"success_rate_all_alike", one(outlier.Config{SuccessRate: &outlier.SuccessRate{StdevFactor: 0.01}, MaxEjectionPercent: 100}), `
			keep a,b,c,d,e,f,g
			a,b,c,d,e,f,g success 63
			a,b,c,d,e,f,g 5xx 37
			sleep 11s
			show`},
		{"ejected_hosts_do_not_bend_the_mean", one(outlier.Config{Consecutive5xx: 100, SuccessRate: &outlier.SuccessRate{}, MaxEjectionPercent: 100}), `
			keep a,b,c,d,e,f,g
			a 5xx 100
			b,c,d,e,f success 100
			g success 60
			g 5xx 40
			sleep 11s`},
		{"success_rate_too_few_hosts", one(outlier.Config{SuccessRate: &outlier.SuccessRate{StdevFactor: 0.1}, MaxEjectionPercent: 100}), `
			keep a,b,c,d,e
			a,b,c,d success 100
			e 5xx 99
			sleep 11s
			a,b,c,d success 100
			e 5xx 100
			sleep 11s`},
		{"success_rate_volume", one(outlier.Config{SuccessRate: &outlier.SuccessRate{StdevFactor: 0.1, Volume: 10, MinHosts: 4}, MaxEjectionPercent: 100}), `
			keep a,b,c,d,e,f
			a,b,c success 10
			d success 1
			d 5xx 9
			e success 9
			e neutral 100
			f 5xx 9
			sleep 11s`},
		{"failure_percentage", one(outlier.Config{FailurePercentage: &outlier.FailurePercentage{}, MaxEjectionPercent: 100}), `
			keep a,b,c,d,e,f
			a,b,c success 50
			d success 8
			d 5xx 42
			e success 7
			e 5xx 20
			e gateway 20
			e local 3
			f 5xx 49
			sleep 11s`},
		{"failure_percentage_too_few_hosts", one(outlier.Config{FailurePercentage: &outlier.FailurePercentage{}, MaxEjectionPercent: 100}), `
			keep a,b,c,d,e,f
			a,b,c success 50
			d 5xx 50
			e,f success 49
			sleep 11s
			show`},
		{"intervals_do_not_add_up", one(outlier.Config{FailurePercentage: windows, MaxEjectionPercent: 100}), `
			keep a,b,c
			a 5xx 9
			b success 50
			sleep 10s
			a 5xx 1
			b success 50
			sleep 10s
			a 5xx 10
			b success 50
			sleep 10s`},
		{"split_intervals", one(outlier.Config{FailurePercentage: windows, MaxEjectionPercent: 100, SplitLocalOrigin: true}), `
			keep a,b,c
			a 5xx 6
			a success 4
			a local 4
			b success 20
			c success 10
			c local 10
			d success 6
			d 5xx 5
			d local 10
			sleep 11s`},
		{"split_success_rate", one(outlier.Config{SuccessRate: &outlier.SuccessRate{Volume: 10}, MaxEjectionPercent: 100, SplitLocalOrigin: true}), `
			keep a,b,c,d,e,f
			a,b,c,d,e success 100
			f success 50
			f local 50
			sleep 11s`},
		{"mixture", one(outlier.Config{Consecutive5xx: 5, ConsecutiveGateway: 3, SuccessRate: &outlier.SuccessRate{Volume: 20},
			FailurePercentage: &outlier.FailurePercentage{Volume: 20, Threshold: 40}, MaxEjectionPercent: 50}), `
			keep a,b,c,d,e,f,g,h
			a,b,c,d success 40
			e 5xx 4
			e success 36
			f gateway 3
			g success 20
			g 5xx 4
			g success 4
			g 5xx 4
			h success 23
			h 5xx 4
			h success
			h 5xx 4
			h success
			h 5xx 4
			h success
			h 5xx 4
			show
			sleep 11s
			show
			sleep 60s`},
		{"worst_go_first", one(outlier.Config{FailurePercentage: windows, MaxEjectionPercent: 50}), `
			keep a,b,c,d
			a 5xx 50
			a success 50
			b 5xx 80
			b success 20
			c 5xx 90
			c success 10
			d 5xx 80
			d success 20
			sleep 11s`},
		{"percentage", one(outlier.Config{Consecutive5xx: 2, MaxEjectionPercent: 50}), `
			keep a,b,c,d,e
			a,b,c 5xx 2
			show
			c 5xx
			sleep 5s
			uneject a
			c 5xx`},
		{"percentage_leaves_none", one(outlier.Config{Consecutive5xx: 2, MaxEjectionPercent: 20, AlwaysEjectOne: ptr(false)}), `
			keep a,b,c,d
			a 5xx 20
			keep a,b,c,d,e
			a 5xx 2`},
		{"always_one", one(outlier.Config{Consecutive5xx: 2}), `
			keep a
			a 5xx 2
			keep a,b,c
			b 5xx 2`},
		{"never_kept", one(outlier.Config{Consecutive5xx: 2, MaxEjectionPercent: 50}), `
			b,c,d success
			a,b,c 5xx 2`},
		{"ejections_grow_and_decline", one(outlier.Config{Consecutive5xx: 1, MaxEjection: 100 * time.Second}), `
			keep a,b
			a 5xx
			sleep 30s
			a 5xx
			sleep 60s
			a 5xx
			sleep 90s
			a 5xx
			sleep 100s
			a 5xx
			sleep 100s
			sleep 9.9s
			show
			sleep 0.2s
			show
			sleep 15s
			a 5xx
			sleep 90s
			sleep 1h
			show
			a 5xx`},
		{"jitter", one(outlier.Config{Consecutive5xx: 1, MaxEjectionJitter: 10 * time.Second}), `
			keep a
			a 5xx
			sleep 1h
			a 5xx
			sleep 1h
			a 5xx`},
		{"enforce", map[string]outlier.Config{
			"":     {FailurePercentage: &outlier.FailurePercentage{MinHosts: 1, Volume: 1, Enforce: ptr(0)}, MaxEjectionPercent: 100},
			"half": {FailurePercentage: &outlier.FailurePercentage{MinHosts: 1, Volume: 1, Enforce: ptr(50)}, MaxEjectionPercent: 100},
		}, `
			keep a,b,c,d,e,f
			a,b,c,d,e,f 5xx
			sleep 11s
			config half
			a,b,c,d,e,f 5xx
			sleep 11s`},
		{"uneject", one(outlier.Config{Consecutive5xx: 3, FailurePercentage: windows}), `
			keep a,b,c
			a 5xx 3
			a 5xx 2
			sleep 5s
			uneject a
			uneject a
			uneject b
			uneject nobody
			show
			a 5xx 2
			sleep 30s
			a 5xx`},
		{"late_calls_do_not_eject_again", one(outlier.Config{Consecutive5xx: 3, FailurePercentage: windows, Interval: time.Minute}), `
			keep a,b,c
			b success 40
			a 5xx 3
			a 5xx 22
			show
			sleep 31s
			show
			sleep 31s`},
		{"keep_forgets", one(outlier.Config{Consecutive5xx: 1, MaxEjectionPercent: 100}), `
			keep a,b,c
			a,b 5xx
			keep b,c
			show
			keep a,b,c
			show
			a 5xx
			keep -
			show`},
		{"shrinking_cluster_brings_back", one(outlier.Config{Consecutive5xx: 1, MaxEjectionPercent: 50}), `
			keep a,b,c,d,e,f
			a 5xx
			sleep 1s
			b 5xx
			sleep 1s
			c 5xx
			keep a,b,c,d
			keep a,b,c`},
		{"reconfigure", map[string]outlier.Config{
			"":       {Consecutive5xx: 5, MaxEjectionPercent: 100},
			"strict": {Consecutive5xx: 2, MaxEjectionPercent: 100, BaseEjection: time.Minute},
			"few":    {Consecutive5xx: 2, MaxEjectionPercent: 50, AlwaysEjectOne: ptr(false)},
			"off":    {MaxEjectionPercent: 100},
		}, `
			keep a,b,c
			a,b,c 5xx 4
			config strict
			a 5xx
			sleep 1s
			b 5xx
			config few
			config off
			a,b,c 5xx 9
			config strict
			show
			c 5xx 2`},
		{"reconfigure_interval", map[string]outlier.Config{
			"":     {FailurePercentage: windows, MaxEjectionPercent: 100},
			"long": {FailurePercentage: windows, MaxEjectionPercent: 100, Interval: time.Minute},
			"soon": {FailurePercentage: windows, MaxEjectionPercent: 100, Interval: time.Second},
		}, `
			keep a,b,c
			a 5xx 10
			b success 10
			sleep 5s
			config long
			sleep 54s
			sleep 2s
			c 5xx 10
			b success 10
			sleep 5s
			config soon
			sleep 1ms`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { compare(t, tt.name, play(t, tt.configs, tt.script)) })
		})
	}
}

func one(c outlier.Config) map[string]outlier.Config { return map[string]outlier.Config{"": c} }

var results = map[string]outlier.Result{"success": outlier.Success, "5xx": outlier.Failure5xx,
	"gateway": outlier.FailureGateway, "local": outlier.FailureLocal, "neutral": outlier.Neutral}

func play(t *testing.T, configs map[string]outlier.Config, script string) string {
	t.Helper()
	for name, c := range configs {
		if err := c.Validate(); err != nil {
			t.Fatalf("config %q: %v", name, err)
		}
	}
	out := &story{start: time.Now()}
	marked := map[string]bool{}
	d := outlier.New(configs[""], func(id string, ejected bool) { marked[id] = ejected }, func(e outlier.Event) {
		if marked[e.Host] != e.Ejected {
			t.Errorf("%+v is noted but not set", e)
		}
		out.event(e)
	})
	d.Seed(1)
	defer d.Close()
	for line := range strings.Lines(script) {
		if line = strings.TrimSpace(line); line != "" {
			out.line("%s", line)
			step(t, d, configs, strings.Fields(line), out)
			synctest.Wait()
		}
	}
	return out.text.String()
}

func step(t *testing.T, d *outlier.Detector, configs map[string]outlier.Config, words []string, out *story) {
	t.Helper()
	switch words[0] {
	case "sleep":
		pause, err := time.ParseDuration(words[1])
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause)
	case "keep":
		d.Keep(strings.FieldsFunc(words[1], func(r rune) bool { return r == ',' || r == '-' }))
	case "uneject":
		d.Uneject(words[1])
	case "config":
		d.Reconfigure(configs[words[1]])
	case "show":
		out.snapshot(d)
	default:
		n := 1
		if len(words) > 2 {
			n, _ = strconv.Atoi(words[2])
		}
		for _, id := range strings.Split(words[0], ",") {
			for range n {
				d.Host(id).Report(results[words[1]])
			}
		}
	}
}

// story collects what happens, with the time since its start.
type story struct {
	start time.Time
	mu    sync.Mutex
	text  strings.Builder
}

func (s *story) line(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.text, "%8.3fs  %s\n", time.Since(s.start).Seconds(), fmt.Sprintf(format, args...))
}

func (s *story) event(e outlier.Event) {
	if e.Ejected {
		s.line("  -> %s is ejected by %s, times %d, for %v", e.Host, e.By, e.Times, e.For)
	} else {
		s.line("  -> %s is back by %s, times %d", e.Host, e.By, e.Times)
	}
}

func (s *story) snapshot(d *outlier.Detector) {
	for _, h := range d.Snapshot() {
		state := "in service"
		if h.Ejected {
			state = fmt.Sprintf("ejected by %s until %.3fs", h.By, h.Until.Sub(s.start).Seconds())
		}
		s.line("  %s %s, times %d, runs %d/%d/%d, calls %d/%d/%d", h.ID, state, h.Times,
			h.Run5xx, h.RunGateway, h.RunLocal, h.OK, h.Failed, h.Local)
	}
	s.line("  timer set: %v", d.Armed())
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name + ".txt"
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("the story changed; if that is meant, run with -update (-want +got):\n%s", d)
	}
}
