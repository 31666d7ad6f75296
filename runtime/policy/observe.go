package policy

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Observer learns of finished calls. It is called on the caller's goroutine and must be
// quick.
type Observer interface {
	CallEnded(c *call.Call, err error, took time.Duration)
}

// observing builds the outermost layer: it reports each call once, with the outcome that
// leaves.
func observing(b *builder) (does, field string) {
	if t := b.e.tap.Load(); t != nil {
		b.layer(observe{t}) // told by itself; not a part worth explaining
	}
	if b.e.o.Observe == nil {
		return "", ""
	}
	b.layer(observe{b.e.o.Observe})
	return "counts the call", "observe"
}

type observe struct{ to Observer }

func (o observe) Enter(ctx context.Context, _ *call.Call) (context.Context, error) { return ctx, nil }

func (o observe) Exit(c *call.Call, err error) error {
	o.to.CallEnded(c, err, time.Since(c.Start))
	return err
}

// rejection is the error of a call that a policy refuses: never sent, and with the policy's
// name, so that whoever wonders finds the line.
func (b *builder) rejection(part, rule string) *refusal {
	return &refusal{e: b.e, t: b.t, part: part, rule: rule, seen: kept(b.e, b.stateKey("seen "+part, rule), func() *decision { return &decision{} })}
}

// refusal makes the errors of one part of a chain and counts them.
type refusal struct {
	e          *Engine
	t          *call.Target
	part, rule string
	seen       *decision
}

// fault is the error of one refused call.
func (r *refusal) fault(c *call.Call, code fault.Code, format string, args ...any) *fault.Error {
	r.e.rejected(r, c)
	return fault.New("policy", code, format, args...).With(fault.PolicyRejected).WithSent(fault.SentNever).WithRule(r.rule)
}
