package policy

import (
	"context"
	"fmt"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
)

// totalling bounds the time of the whole call.
func totalling(b *builder) (does, field string) {
	if b.r.Timeout == nil || b.r.Timeout.Total <= 0 {
		return "", ""
	}
	b.c.Total = b.r.Timeout.Total
	return fmt.Sprintf("at most %v in all", b.c.Total), "timeout"
}

// trying bounds the time of each attempt: by policy, or by Resiliency.
func trying(b *builder) (does, field string) {
	switch {
	case b.r.Timeout != nil:
		if d := b.r.Timeout.PerTry; d > 0 {
			b.step(perTry{d: d})
			return fmt.Sprintf("at most %v for each attempt", d), "timeout"
		}
	case b.r.dapr != nil && b.r.dapr.Timeout != nil && b.r.dapr.Timeout.After > 0:
		d := b.r.dapr.Timeout
		b.step(perTry{d: d.After, series: b.series(d.Named, "timeout")})
		return fmt.Sprintf("at most %v for each attempt", d.After), "timeout"
	}
	return "", ""
}

type perTry struct {
	d      time.Duration
	series Series // nil: not counted
}

func (s perTry) Enter(c *call.Call, t *call.Try) (call.Token, error) {
	if c.Lasting {
		return call.Token{}, nil
	}
	t.PerTry = s.d
	if s.series != nil {
		s.series.Count(NoState)
	}
	return call.Token{}, nil
}

func (s perTry) Exit(_ *call.Call, t *call.Try, _ call.Token) {
	if s.series != nil && t.Outcome == call.Deadline {
		s.series.Activate(NoState)
	}
}

// entering is what a layer does that only judges.
type entering func(ctx context.Context, c *call.Call) (context.Context, error)

func (f entering) Enter(ctx context.Context, c *call.Call) (context.Context, error) { return f(ctx, c) }
func (entering) Exit(_ *call.Call, err error) error                                 { return err }
