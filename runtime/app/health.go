package app

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// HealthOptions say how the app is probed.
type HealthOptions struct {
	Interval  time.Duration // between probes
	Timeout   time.Duration // of one probe; shorter than Interval
	Threshold int           // consecutive failures before the app counts as unhealthy
}

// Watch probes the app until ctx ends and calls changed on every change of health, from the
// probing goroutine. The app starts unhealthy; one success makes it healthy.
func (a *App) Watch(ctx context.Context, o HealthOptions, log *slog.Logger, changed func(healthy bool)) error {
	log.Info("App health probes starting")
	defer log.Info("App health probes stopping")
	failures := 0
	tick := time.NewTicker(o.Interval)
	defer tick.Stop()
	for {
		err := a.probe(ctx, o.Timeout)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var status *StatusError
		switch {
		case err == nil:
			failures = 0
			if a.healthy.CompareAndSwap(false, true) {
				log.Info("App entered healthy status")
				changed(true)
			}
		default:
			if !errors.As(err, &status) {
				log.Error("App health probe could not complete with error: " + err.Error())
			}
			if failures++; failures != o.Threshold {
				break
			}
			if a.healthy.CompareAndSwap(true, false) {
				log.Warn("App entered un-healthy status: " + err.Error())
				changed(false)
			} else { // or an app that refuses its probes would wait for its events in silence
				log.Warn("App has not been healthy yet, so it gets no calls and no events: " + err.Error())
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (a *App) probe(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return a.channel.Probe(ctx)
}

// StatusError is a probe that was answered, with a status that means unhealthy.
type StatusError struct{ Text string }

func (e *StatusError) Error() string { return "Health check failed with " + e.Text }
