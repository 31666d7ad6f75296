package policy

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// injecting builds the layer that delays or fails calls on purpose.
func injecting(b *builder) (does, field string) {
	f := b.r.Fault
	if f == nil || (f.Delay == nil && f.Abort == nil) {
		return "", ""
	}
	l := &inject{refuse: b.rejection("fault", b.r.source("fault"))}
	var words []string
	if d := f.Delay; d != nil {
		l.pause, l.pauseShare, l.pauseHeader = d.Fixed, share(d.Percent), d.Header
		words = append(words, fmt.Sprintf("delays %v%% by %v", l.pauseShare*100, d.Fixed))
	}
	if a := f.Abort; a != nil {
		l.abortShare, l.abortHeader = share(a.Percent), a.Header
		l.outcome, _ = call.ParseOutcome(a.Outcome)
		if a.Outcome == "" {
			l.outcome = call.Unavailable
		}
		words = append(words, fmt.Sprintf("fails %v%% as %v", l.abortShare*100, l.outcome))
	}
	b.layer(l)
	return strings.Join(words, ", "), "fault"
}

// share is a percentage as a number from 0 to 1; nil means all.
func share(percent *float64) float64 {
	if percent == nil {
		return 1
	}
	return *percent / 100
}

type inject struct {
	pause       time.Duration
	pauseShare  float64
	pauseHeader string
	abortShare  float64
	abortHeader string
	outcome     call.Outcome
	refuse      *refusal
}

func (l *inject) Enter(ctx context.Context, c *call.Call) (context.Context, error) {
	if l.pause > 0 && chosen(c, l.pauseShare, l.pauseHeader) {
		t := time.NewTimer(l.pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil, fault.New("policy", fault.Of(ctx.Err()), "delayed by policy %s", l.refuse.rule).WithSent(fault.SentNever).WithRule(l.refuse.rule).Because(ctx.Err())
		}
	}
	if l.abortShare > 0 && chosen(c, l.abortShare, l.abortHeader) {
		code, sent := faultOf(l.outcome)
		return nil, l.refuse.fault(c, code, "fault injected by policy %s: %v", l.refuse.rule, l.outcome).WithSent(sent)
	}
	return ctx, nil
}

func (l *inject) Exit(_ *call.Call, err error) error { return err }

// chosen tells whether a call is one of the share, among those with the header.
func chosen(c *call.Call, share float64, header string) bool {
	if header != "" {
		if c.Attrs == nil {
			return false
		}
		if _, ok := c.Attrs.Lookup(header); !ok {
			return false
		}
	}
	return share >= 1 || rand.Float64() < share
}

// faultOf is the error that has an outcome.
func faultOf(o call.Outcome) (fault.Code, fault.Sent) {
	switch o {
	case call.AppError:
		return fault.Internal, fault.SentMaybe
	case call.NotFound:
		return fault.NotFound, fault.SentMaybe
	case call.Conflict:
		return fault.Conflict, fault.SentMaybe
	case call.Throttled:
		return fault.Exhausted, fault.SentMaybe
	case call.ConnectFailure:
		return fault.Unavailable, fault.SentNever
	case call.Reset:
		return fault.Unavailable, fault.SentMaybe
	case call.Deadline:
		return fault.Deadline, fault.SentMaybe
	case call.Canceled:
		return fault.Canceled, fault.SentMaybe
	case call.Permanent:
		return fault.Invalid, fault.SentMaybe
	case call.Rejected:
		return fault.Denied, fault.SentNever
	}
	return fault.Unavailable, fault.SentUnknown
}
