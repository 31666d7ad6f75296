package app_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/call"
)

var update = flag.Bool("update", false, "rewrite testdata")

// step is what one probe meets.
type step struct {
	what string
	err  error
	take time.Duration // how long the app thinks
}

func good(n int) []step { return repeat(n, step{what: "200"}) }

func bad(n int) []step {
	return repeat(n, step{what: "503", err: &app.StatusError{Text: "status code: 503"}})
}

func dead(n int) []step { return repeat(n, step{what: "refused", err: errors.New("dial: refused")}) }

func hangs(n int) []step { return repeat(n, step{what: "hangs", take: time.Hour}) }

func repeat(n int, s step) (out []step) {
	for range n {
		out = append(out, s)
	}
	return out
}

// The life of the health gate, written down: what each probe met, what was said, and whether
// calls may pass.
func TestHealthTranscripts(t *testing.T) {
	tests := []struct {
		name  string
		steps []([]step)
	}{
		{"starts_well", [][]step{good(3)}},
		{"starts_late", [][]step{dead(2), bad(2), good(2)}},
		{"below_the_threshold", [][]step{good(1), bad(2), good(1), bad(2), good(1)}},
		{"fails_and_recovers", [][]step{good(1), bad(4), good(1), dead(3), good(1)}},
		{"hangs", [][]step{good(1), hangs(3), good(1)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { compare(t, tt.name, transcript(t, tt.steps)) })
		})
	}
}

func transcript(t *testing.T, parts [][]step) string {
	var steps []step
	for _, p := range parts {
		steps = append(steps, p...)
	}
	var out story
	start := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var probes atomic.Int32
	ch := &fake{invoke: whole, probe: func(ctx context.Context) (err error) {
		s := steps[probes.Add(1)-1]
		out.add("%5.1fs probe: %s\n", time.Since(start).Seconds(), s.what)
		select {
		case <-time.After(s.take):
			return s.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	a := app.New(ch, app.Options{Health: true})
	done := make(chan error)
	go func() {
		done <- a.Watch(ctx, app.HealthOptions{Interval: 5 * time.Second, Timeout: 500 * time.Millisecond, Threshold: 3}, textLog(&out),
			func(healthy bool) { out.add("       changed: healthy=%v\n", healthy) })
	}()
	for {
		time.Sleep(time.Second) // well after a probe, well before the next
		_, err := a.Invoke(t.Context(), &call.Request{})
		out.add("       calls: %s\n", gate(err))
		if int(probes.Load()) == len(steps) {
			break
		}
		time.Sleep(4 * time.Second)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch ended with %v, want the context's error", err)
	}
	return out.text.String()
}

// story collects what happens, whoever tells it. As a writer it takes log lines.
type story struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *story) add(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintf(&s.text, format, args...)
}

func (s *story) Write(p []byte) (int, error) {
	s.add("       log: %s", p)
	return len(p), nil
}

func gate(err error) string {
	if err == nil {
		return "pass"
	}
	return fmt.Sprintf("%v, %s: %v", fault.Of(err), fault.ReasonOf(err), err)
}

func compare(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/health_" + name + ".txt"
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

// A probe may last no longer than its timeout, and Watch must end with its context even while
// a probe hangs.
func TestWatchEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := app.New(&fake{probe: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}, app.Options{Health: true})
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := a.Watch(ctx, app.HealthOptions{Interval: time.Minute, Timeout: 30 * time.Second, Threshold: 1}, slog.New(slog.DiscardHandler), func(bool) {})
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
			t.Errorf("ended with %v after %v", err, time.Since(start))
		}
	})
}

func TestWithoutHealthChecksTheGateIsOpen(t *testing.T) {
	a := app.New(&fake{invoke: whole}, app.Options{})
	if _, err := a.Invoke(t.Context(), &call.Request{}); err != nil || !a.Healthy() {
		t.Errorf("healthy=%v, %v", a.Healthy(), err)
	}
}
