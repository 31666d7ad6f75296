package health_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	diff "github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/policy/health"
)

var update = flag.Bool("update", false, "rewrite testdata")

// The life of a cluster's hosts under checks, written down. A script line is one of
//
//	keep <hosts>       hosts, or - for none
//	<hosts> <answer>   from now on their checks meet: well, ill, slow (0.5s, then well), late (ends
//	                   with its context), stuck (ignores its context until the answer changes), panic
//	sleep <duration>
//	used               a call uses the cluster
//	config <name>      reconfigure with one of the named configurations
//	show               print the snapshot
//
// Other lines are what happened meanwhile. Hosts are well at first. Times are cut to whole seconds, for
// intervals are lengthened by chance; hosts are checked in no particular order, so what happens in the
// same second is put in the order of hosts.
func TestTranscripts(t *testing.T) {
	plain := health.Config{Jitter: 1, IdleInterval: 10 * time.Second}
	tests := []struct {
		name    string
		configs map[string]health.Config // "" is the first
		script  string
	}{
		{"well", one(plain), `
			keep a
			sleep 25s
			show`},
		{"fails_and_recovers", one(plain), `
			keep a
			sleep 1s
			a ill
			sleep 20s
			show
			sleep 20s
			show
			a well
			sleep 20s
			show`},
		{"below_the_thresholds", one(plain), `
			a ill
			keep a
			sleep 15s
			a well
			sleep 10s
			a ill
			sleep 30s
			a well
			sleep 10s
			a ill
			sleep 10s
			a well
			sleep 20s`},
		{"slow_late_and_panic", one(plain), `
			keep a
			a slow
			sleep 9s
			a late
			sleep 10s
			a panic
			sleep 10s
			show`},
		{"stuck", one(plain), `
			a stuck
			keep a,b
			sleep 35s
			show
			a well
			sleep 1s
			show
			sleep 19s`},
		{"gone_while_failing", one(health.Config{Jitter: 1, UnhealthyThreshold: 1}), `
			a ill
			keep a,b
			sleep 5s
			keep b
			sleep 1s
			keep a,b
			show
			sleep 1s
			keep -
			show
			sleep 1h`},
		{"gone_while_stuck", one(health.Config{Jitter: 1, UnhealthyThreshold: 2}), `
			a stuck
			keep a
			sleep 5s
			keep -
			sleep 5s
			keep a
			show
			sleep 5s
			a well
			sleep 60s
			a stuck
			sleep 60s
			keep -
			a well
			keep a
			sleep 1s`},
		{"gone_while_checked", one(health.Config{Jitter: 1}), `
			a,b,c slow
			keep a,b
			sleep 0.1s
			keep b
			show
			sleep 0.1s
			keep a,b
			sleep 1s
			show
			keep -
			keep c
			sleep 0.1s
			keep -
			sleep 1s
			show`},
		{"idle_and_used", one(health.Config{Jitter: 1}), `
			keep a
			sleep 61s
			used
			sleep 1s
			show
			sleep 15s
			sleep 80s
			sleep 5s
			used
			sleep 6s
			show
			sleep 50s
			used
			used
			sleep 10s`},
		{"used_during_a_check", one(health.Config{Jitter: 1}), `
			a slow
			keep a
			sleep 0.2s
			used
			sleep 12s`},
		{"reconfigure", map[string]health.Config{
			"": plain,
			"fast": {Interval: time.Second, Timeout: 200 * time.Millisecond, IdleInterval: time.Second, Jitter: 1,
				HealthyThreshold: 1, UnhealthyThreshold: 1},
		}, `
			keep a
			sleep 3s
			a ill
			config fast
			sleep 0.1s
			a slow
			sleep 2s
			a well
			sleep 1s
			config
			sleep 9.5s`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { compare(t, tt.name, play(t, tt.configs, tt.script)) })
		})
	}
}

func one(c health.Config) map[string]health.Config { return map[string]health.Config{"": c} }

func play(t *testing.T, configs map[string]health.Config, script string) string {
	t.Helper()
	for name, c := range configs {
		if err := c.Validate(); err != nil {
			t.Fatalf("config %q: %v", name, err)
		}
	}
	s := &story{start: time.Now()}
	w := &world{story: s, answers: map[string]*answer{}}
	c := health.New(configs[""], w.probe, func(id string, failing bool) { s.line(id, "set %s failing=%v", id, failing) }, s.event)
	c.Seed(1)
	for line := range strings.Lines(script) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		s.line("", "%s", strings.Join(words, " "))
		s.flush()
		switch words = append(words, ""); words[0] {
		case "sleep":
			pause, err := time.ParseDuration(words[1])
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(pause)
		case "keep":
			c.Keep(names(words[1]))
		case "used":
			c.Used()
		case "config":
			c.Reconfigure(configs[words[1]])
		case "show":
			s.snapshot(c)
		default:
			w.answer(names(words[0]), words[1])
		}
		synctest.Wait()
		s.flush()
	}
	text := s.text.String()
	w.release()
	c.Close()
	return text
}

func names(word string) []string {
	return strings.FieldsFunc(word, func(r rune) bool { return r == ',' || r == '-' })
}

// world is what probes meet.
type world struct {
	*story
	mu      sync.Mutex
	answers map[string]*answer
}

type answer struct {
	what    string
	changed chan struct{} // closed when another answer took its place
}

func (w *world) answer(ids []string, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range ids {
		if old := w.answers[id]; old != nil {
			close(old.changed)
		}
		w.answers[id] = &answer{what, make(chan struct{})}
	}
}

// release ends the probes that are stuck.
func (w *world) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range w.answers {
		close(a.changed)
	}
}

func (w *world) probe(ctx context.Context, id string) error {
	w.mu.Lock()
	a := w.answers[id]
	w.mu.Unlock()
	if a == nil {
		a = &answer{what: "well"}
	}
	w.line(id, "check %s: %s", id, a.what)
	switch a.what {
	case "ill":
		return errors.New("ill")
	case "slow":
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	case "late":
		<-ctx.Done()
		return nil
	case "stuck":
		<-a.changed
		w.line(id, "the stuck check of %s ends", id)
	case "panic":
		panic("probe out of order")
	}
	return nil
}

// story collects what happens, with the time since its start.
type story struct {
	start time.Time
	mu    sync.Mutex
	lines []line // not in text yet
	text  strings.Builder
}

type line struct {
	second float64
	host   string
	text   string
}

func (s *story) line(host, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line{s.cut(time.Now()), host, fmt.Sprintf(format, args...)})
}

func (s *story) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.SortStableFunc(s.lines, func(a, b line) int {
		return cmp.Or(cmp.Compare(a.second, b.second), cmp.Compare(a.host, b.host))
	})
	for _, l := range s.lines {
		indent := ""
		if l.host != "" {
			indent = "  "
		}
		fmt.Fprintf(&s.text, "%4.0fs  %s%s\n", l.second, indent, l.text)
	}
	s.lines = nil
}

func (s *story) cut(at time.Time) float64 { return at.Sub(s.start).Truncate(time.Second).Seconds() }

func (s *story) event(e health.Event) {
	outcome := "passed"
	if e.Err != nil {
		outcome = "failed: " + e.Err.Error()
	}
	if e.Changed {
		outcome += ", a change"
	}
	s.line(e.Host, "note %s %s after %v, failing=%v", e.Host, outcome, e.Took, e.Failing)
}

func (s *story) snapshot(c *health.Checker) {
	infos := c.Snapshot()
	for _, h := range infos {
		text := fmt.Sprintf("%s failing=%v passed=%d failed=%d hangs=%v", h.ID, h.Failing, h.Passed, h.Failed, h.Hangs)
		if !h.Checked.IsZero() {
			text += fmt.Sprintf(", checked at %.0fs in %v", s.cut(h.Checked), h.Took)
		}
		if !h.Next.IsZero() {
			text += fmt.Sprintf(", next at %.0fs", s.cut(h.Next))
		}
		if h.Err != nil {
			text += ": " + h.Err.Error()
		}
		s.line(h.ID, "%s", text)
	}
	if len(infos) == 0 {
		s.line("-", "no hosts")
	}
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
	if d := diff.Diff(string(want), got); d != "" {
		t.Errorf("the story changed; if that is meant, run with -update (-want +got):\n%s", d)
	}
}
