// Package cron brings events to the app at times that a schedule names.
//
// Schedules are those of cron: five fields, six with leading seconds, "@every 90s", and names such
// as "@daily". schedule.go reads them; here they are waited for.
package cron

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

const doc = "Events at times that a schedule names."

// Backend lists the parts: an input binding.
func Backend() block.Backend {
	return block.Backend{Name: "cron", Doc: doc, Parts: []block.Part{block.BindingPart("cron", doc, DefaultConfig, New)}}
}

// Config configures the schedule.
type Config struct {
	// Schedule is when events come: five fields of cron (minute, hour, day, month, weekday), six
	// with leading seconds, `@every 1h30m`, or `@hourly`, `@daily`, `@weekly`, `@monthly`,
	// `@yearly`. Times are the host's; `CRON_TZ=Europe/Berlin ` before the fields names another zone.
	Schedule string `yaml:"schedule" required:"true"`
}

// DefaultConfig is the configuration with nothing set.
func DefaultConfig() *Config { return &Config{} }

// Validate judges the schedule.
func (c *Config) Validate() error {
	if _, err := parse(c.Schedule); err != nil {
		return conf.Bad("schedule", "%v", err)
	}
	return nil
}

var _ block.Input = (*input)(nil)

// input is one schedule.
type input struct {
	when   schedule
	text   string
	log    *slog.Logger
	closed atomic.Bool
	done   chan struct{} // closed by Close
	once   sync.Once
}

// New makes a schedule. Nothing runs before Read.
func New(env block.Env, c *Config) (block.Component, error) {
	when, err := parse(c.Schedule)
	if err != nil {
		return nil, fault.New("cron.New", fault.Invalid, "%v", err)
	}
	i := &input{when: when, text: c.Schedule, log: env.Log, done: make(chan struct{})}
	if every, short := tooShort(c.Schedule); short {
		i.log.Warn(fmt.Sprintf("schedule %q: events come once a second at most, not every %v", c.Schedule, every))
	}
	return i, nil
}

// Ping succeeds until Close.
func (i *input) Ping(ctx context.Context) error { return i.usable(ctx, "cron.Ping") }

// Close ends readers.
func (i *input) Close(context.Context) error {
	i.once.Do(func() { i.closed.Store(true); close(i.done) })
	return nil
}

func (i *input) usable(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	if i.closed.Load() {
		return fault.New(op, fault.Unavailable, "the schedule is closed").WithSent(fault.SentNever)
	}
	return nil
}

// most is how many events may be at the app at once. An app that never answers must not have its
// sidecar grow with every tick.
const most = 64

// Read delivers an event at each time of the schedule. One that the app still works on does not
// hold the next one up. An event that the app did not take does not come again: the next one will.
func (i *input) Read(ctx context.Context, deliver func(context.Context, block.BindingEvent) ([]byte, error)) error {
	const op fault.Op = "cron.Read"
	if err := i.usable(ctx, op); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel() // first, so that deliveries hear of Close too
	slots := make(chan struct{}, most)
	crowded := false
	for last := time.Now(); ; {
		next := i.when.Next(last)
		if next.IsZero() {
			i.log.Warn(fmt.Sprintf("schedule %q: there is no such time, so no event will come", i.text))
		}
		now, err := i.await(ctx, last, next)
		if err != nil {
			return err
		}
		if last = now; now.Before(next) {
			continue // the clock was set back
		}
		select {
		case slots <- struct{}{}:
			crowded = false
			work.Go(func() {
				defer func() { <-slots }()
				_, _ = deliver(ctx, event(now)) // the reader of events has told what went wrong
			})
		default:
			if !crowded {
				i.log.Warn(fmt.Sprintf("schedule %q: %d events are still at the app; times are passed over until it answers", i.text, most))
			}
			crowded = true
		}
	}
}

// A clock may be set while we wait, and a timer does not notice: it is looked at again after
// lookAgain. One set back by more than that starts the schedule anew from there.
const lookAgain = time.Minute

// await returns the time it is when next has come, or when the clock was set back; a zero next
// never comes.
func (i *input) await(ctx context.Context, last, next time.Time) (time.Time, error) {
	const op fault.Op = "cron.Read"
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		now := time.Now().Round(0) // the clock alone
		if !next.IsZero() && !now.Before(next) || now.Before(last.Round(0).Add(-lookAgain)) {
			return now, nil
		}
		var tick <-chan time.Time
		if !next.IsZero() {
			t.Reset(min(next.Sub(now), lookAgain))
			tick = t.C
		}
		select {
		case <-ctx.Done():
			return now, fault.Wrap(op, fault.Canceled, ctx.Err())
		case <-i.done:
			return now, fault.New(op, fault.Unavailable, "the schedule is closed")
		case <-tick:
		}
	}
}

// event is what the app is told: nothing but the time.
func event(now time.Time) block.BindingEvent {
	return block.BindingEvent{Metadata: map[string]string{"timeZone": time.Local.String(), "readTimeUTC": now.UTC().String()}}
}
