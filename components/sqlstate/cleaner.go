package sqlstate

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Cleaner removes expired rows at intervals. Reads never show them: this is about room.
type Cleaner struct {
	// Every is the interval. Nothing runs unless it is positive.
	Every time.Duration
	// Claim takes the round for this sidecar, by the mark that all who share the table keep:
	// false says that somebody else has cleaned within the interval.
	Claim func(context.Context) (bool, error)
	// Remove deletes at most limit expired rows and tells how many it did.
	Remove func(ctx context.Context, limit int) (int64, error)
	Log    *slog.Logger

	mu      sync.Mutex
	end     context.CancelFunc // guarded by mu; nil while nothing runs
	stopped bool               // guarded by mu
	work    sync.WaitGroup
}

const (
	// portion bounds one deletion: a long one would hold locks that writers wait for.
	portion = 1000
	// roundTime bounds one round, whatever its number of rows.
	roundTime = 10 * time.Minute
)

// Start begins, unless it has begun or was stopped.
func (c *Cleaner) Start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.Every <= 0 || c.end != nil || c.stopped {
		return
	}
	ctx, end := context.WithCancel(context.Background())
	c.end = end
	c.work.Go(func() { c.run(ctx) })
}

// Stop ends the cleaning and waits until ctx ends at most. It is safe twice.
func (c *Cleaner) Stop(ctx context.Context) {
	c.mu.Lock()
	c.stopped = true
	if c.end != nil {
		c.end()
	}
	c.mu.Unlock()
	done := make(chan struct{})
	go func() { c.work.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (c *Cleaner) run(ctx context.Context) {
	tick := time.NewTicker(c.Every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := c.round(ctx); err != nil && ctx.Err() == nil {
			c.Log.Warn("expired rows were not removed", "error", err)
		}
	}
}

func (c *Cleaner) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	mine, err := c.Claim(ctx)
	if err != nil || !mine {
		return err
	}
	for {
		n, err := c.Remove(ctx, portion)
		if err != nil || n < portion {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), errors.New("more expired rows are left for the next round"))
		}
	}
}
