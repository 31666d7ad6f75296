package cron_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/cron"
	"github.com/mecha-project/mecha/components/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, schedule string, log *slog.Logger) block.Input {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c, err := cron.New(block.Env{Log: log}, &cron.Config{Schedule: schedule})
	if err != nil {
		t.Fatal(err)
	}
	return c.(block.Input)
}

func TestConformance(t *testing.T) {
	blocktest.Input(t, func(t *testing.T) blocktest.InputPlace {
		return blocktest.InputPlace{Open: func() block.Input { return open(t, "@every 1s", nil) }, Cause: func() {}}
	})
}

// start is where the clock of a synctest bubble stands.
const start = "2000-01-01 00:00:00"

// times are when a schedule fires, within a span of a bubble's time.
func times(t *testing.T, schedule string, span time.Duration) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	var mu sync.Mutex
	var got []string
	err := open(t, schedule, nil).Read(ctx, func(_ context.Context, e block.BindingEvent) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, strings.TrimSuffix(e.Metadata["readTimeUTC"], " +0000 UTC"))
		if e.Data != nil || e.Metadata["timeZone"] != time.Local.String() || len(e.Metadata) != 2 {
			t.Errorf("event %q %v", e.Data, e.Metadata)
		}
		return nil, nil
	})
	if fault.Of(err) != fault.Deadline {
		t.Errorf("Read: %v", err)
	}
	return got
}

func TestSchedules(t *testing.T) {
	local := time.Local
	t.Cleanup(func() { time.Local = local })
	time.Local = time.UTC // times below are the zone's
	for _, tt := range []struct {
		schedule string
		span     time.Duration
		want     []string
	}{
		{"*/20 * * * *", time.Hour + time.Second, []string{"2000-01-01 00:20:00", "2000-01-01 00:40:00", "2000-01-01 01:00:00"}},
		{"*/20 * * * * *", time.Minute + time.Millisecond, []string{"2000-01-01 00:00:20", "2000-01-01 00:00:40", "2000-01-01 00:01:00"}},
		{"@every 90s", 4 * time.Minute, []string{"2000-01-01 00:01:30", "2000-01-01 00:03:00"}},
		{"@every 1h30m", 4 * time.Hour, []string{"2000-01-01 01:30:00", "2000-01-01 03:00:00"}},
		{"@hourly", 170 * time.Minute, []string{"2000-01-01 01:00:00", "2000-01-01 02:00:00"}},
		{"@daily", 36 * time.Hour, []string{"2000-01-02 00:00:00"}},
		{"@midnight", 36 * time.Hour, []string{"2000-01-02 00:00:00"}},
		{"@weekly", 4 * 24 * time.Hour, []string{"2000-01-02 00:00:00"}},
		{"@monthly", 40 * 24 * time.Hour, []string{"2000-02-01 00:00:00"}},
		{"@yearly", 370 * 24 * time.Hour, []string{"2001-01-01 00:00:00"}},
		{"@annually", 370 * 24 * time.Hour, []string{"2001-01-01 00:00:00"}},
		{"0 30 9 * * MON-FRI", 3 * 24 * time.Hour, []string{"2000-01-03 09:30:00"}},
		{"CRON_TZ=UTC 0 12 * * *", 13 * time.Hour, []string{"2000-01-01 12:00:00"}},
		{"0 0 30 2 *", 24 * time.Hour, nil},
	} {
		t.Run(tt.schedule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if now := time.Now().UTC().Format(time.DateTime); now != start {
					t.Fatalf("the clock says %s", now)
				}
				if d := cmp.Diff(tt.want, times(t, tt.schedule, tt.span)); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			})
		})
	}
}

func TestBadSchedules(t *testing.T) {
	for schedule, want := range map[string]string{
		"nope":                       "invalid schedule format 'nope': expected 5 to 6 fields, found 1: [nope]",
		"* * * *":                    "expected 5 to 6 fields, found 4",
		"* * * * * * *":              "expected 5 to 6 fields, found 7",
		"61 * * * *":                 "end of range (61) above maximum (59)",
		"*/0 * * * *":                "step of range should be a positive number",
		", * * * *":                  "field , has no value",
		"@every":                     "unrecognized descriptor",
		"@every soon":                "failed to parse duration",
		"@every 0s":                  "0s is no time between events",
		"@every -5s":                 "-5s is no time between events",
		"@sometimes":                 "unrecognized descriptor: @sometimes",
		"TZ=":                        "a time zone is to be followed by a space",
		"CRON_TZ=UTC":                "a time zone is to be followed by a space",
		"CRON_TZ=No/Where":           "a time zone is to be followed by a space",
		"CRON_TZ=No/Where * * * * *": "provided bad location No/Where",
		"CRON_TZ=UTC @every 5s":      "means nothing to @every",
	} {
		found := conf.Decode(conf.Items("schedule", schedule), cron.DefaultConfig(), conf.Also(conf.ServiceKeys("bindings")...))
		if err := found.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", schedule, err, want)
		}
		if _, err := cron.New(block.Env{Log: slog.New(slog.DiscardHandler)}, &cron.Config{Schedule: schedule}); fault.Of(err) != fault.Invalid {
			t.Errorf("New %q: %v", schedule, err)
		}
	}
	if err := conf.Decode(nil, cron.DefaultConfig()).Err(); err == nil || !strings.Contains(err.Error(), "schedule: required") {
		t.Errorf("no schedule: %v", err)
	}
}

// An event that the app still works on does not hold the next one up, but there is an end to it.
func TestSlowApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex
		inside, came := 0, 0
		release := make(chan struct{})
		done := make(chan error)
		go func() {
			done <- open(t, "* * * * * *", slog.New(slog.NewTextHandler(&log, nil))).Read(ctx, func(context.Context, block.BindingEvent) ([]byte, error) {
				mu.Lock()
				inside++
				came++
				mu.Unlock()
				<-release
				mu.Lock()
				inside--
				mu.Unlock()
				return nil, nil
			})
		}()
		time.Sleep(100*time.Second + time.Millisecond)
		synctest.Wait()
		mu.Lock()
		if inside != 64 || came != 64 {
			t.Errorf("%d events are at the app after %d, want 64", inside, came)
		}
		mu.Unlock()
		close(release)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		mu.Lock()
		if came != 74 {
			t.Errorf("%d events came, want 10 more once the app answers", came)
		}
		mu.Unlock()
		cancel()
		if err := <-done; fault.Of(err) != fault.Canceled {
			t.Errorf("Read: %v", err)
		}
		if n := strings.Count(log.String(), "64 events are still at the app"); n != 1 {
			t.Errorf("told %d times of the slow app, want once:\n%s", n, log.String())
		}
	})
}

// What cannot happen, or only more slowly than asked for, is told.
func TestOddSchedules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l := slog.New(slog.NewTextHandler(&log, nil))
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		n := 0
		_ = open(t, "@every 100ms", l).Read(ctx, func(context.Context, block.BindingEvent) ([]byte, error) { n++; return nil, nil })
		if n != 2 || !strings.Contains(log.String(), "once a second at most, not every 100ms") {
			t.Errorf("%d events; said %s", n, log.String())
		}
		ctx, cancel = context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		_ = open(t, "0 0 31 4 *", l).Read(ctx, func(context.Context, block.BindingEvent) ([]byte, error) { t.Error("an event"); return nil, nil })
		if !strings.Contains(log.String(), "there is no such time") {
			t.Errorf("said %s", log.String())
		}
	})
}

// Close ends a reader that its context does not.
func TestCloseEndsReading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := open(t, "@daily", nil)
		done := make(chan error)
		go func() { done <- in.Read(t.Context(), nil) }()
		synctest.Wait()
		if err := in.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-done; fault.Of(err) != fault.Unavailable {
			t.Errorf("Read: %v", err)
		}
	})
}
