package policy

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/limit"
)

// retrying decides after a failed attempt whether there is another: as the policy says, else as
// Resiliency does, else as the sidecar does by itself for calls to other apps.
func retrying(b *builder) (does, field string) {
	if b.t.Direction == call.Inbound && (b.t.Kind == call.App || b.t.Kind == call.Service) {
		return "", "" // its caller's to repeat; what a component sends to the app is ours
	}
	switch {
	case b.r.Retry != nil:
		return b.ownRetry(b.r.Retry), "retry"
	case b.r.dapr != nil && b.r.dapr.Retry != nil:
		return b.daprRetry(b.r.dapr.Retry), "retry"
	case b.t.Kind == call.Service && b.t.Direction == call.Outbound:
		b.c.Retry = builtinServiceRetry
		return fmt.Sprintf("%d times, %v apart, when the other sidecar cannot be reached", builtinRetries, builtinPause), ""
	}
	return "", ""
}

// Dapr's DaprBuiltInServiceRetries: three tries, one second apart.
const (
	builtinRetries = 3
	builtinPause   = time.Second
)

// builtinServiceRetry repeats a call to another app whose sidecar could not be reached or was
// lost. A call that certainly was not seen may be repeated; one that may have been seen only if
// its verb says that a repetition does no harm: a POST could act twice. An error with a reason
// was given by a sidecar that answered (its app is down or unhealthy): that is an answer, not a
// transport failure. Other codes (a certificate that does not fit, a head too large) fail the
// same way again.
func builtinServiceRetry(c *call.Call, err error) (time.Duration, bool) {
	if err == nil || c.Attempt > builtinRetries || fault.Of(err) != fault.Unavailable || fault.ReasonOf(err) != "" {
		return 0, false
	}
	switch fault.SentOf(err) {
	case fault.SentNever:
		return builtinPause, true
	case fault.SentMaybe:
		return builtinPause, c.Safety >= call.Idempotent
	}
	return 0, false
}

// The names that Retry.On takes beside the outcomes' own: Envoy's and gRPC's.
var retryAliases = map[string][]call.Outcome{
	"5xx":                {call.AppError, call.Unavailable, call.Deadline, call.Reset, call.ConnectFailure},
	"gateway-error":      {call.Unavailable, call.Deadline},
	"refused-stream":     {call.ConnectFailure},
	"retriable-4xx":      {call.Conflict},
	"envoy-ratelimited":  {call.Throttled},
	"deadline-exceeded":  {call.Deadline},
	"internal":           {call.AppError},
	"resource-exhausted": {call.Throttled},
	// By status; says the same as Statuses being set.
	"retriable-status-codes": {},
}

// RetryNames are the words that Retry.On takes.
func RetryNames() []string {
	var out []string
	for o := call.AppError; o < call.Rejected; o++ {
		out = append(out, o.String())
	}
	for name := range retryAliases {
		out = append(out, name)
	}
	return out
}

// outcomes is a set of outcomes.
type outcomes uint32

func (s outcomes) has(o call.Outcome) bool { return s&(1<<o) != 0 }

func retryOn(words []string) (s outcomes) {
	if len(words) == 0 {
		words = []string{"connect-failure", "reset", "unavailable", "throttled"}
	}
	for _, w := range words {
		if o, ok := call.ParseOutcome(w); ok {
			s |= 1 << o
		}
		for _, o := range retryAliases[w] {
			s |= 1 << o
		}
	}
	return s
}

// statusSet is a set of HTTP statuses or gRPC codes.
type statusSet []span

type span struct{ from, to int }

func parseStatuses(list string) (out statusSet, err error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(list, ",") {
		from, to, ranged := strings.Cut(strings.TrimSpace(part), "-")
		if !ranged {
			to = from
		}
		lo, err1 := strconv.Atoi(strings.TrimSpace(from))
		hi, err2 := strconv.Atoi(strings.TrimSpace(to))
		if err1 != nil || err2 != nil || lo < 0 || lo > hi || hi > 599 {
			return nil, fmt.Errorf("%q is no status or range like 502-504", strings.TrimSpace(part))
		}
		out = append(out, span{lo, hi})
	}
	return out, nil
}

func (s statusSet) has(status int) bool {
	for _, sp := range s {
		if sp.from <= status && status <= sp.to {
			return true
		}
	}
	return false
}

// longestBase keeps ten times a backoff within 64 bits.
const longestBase = time.Duration(math.MaxInt64 / 10)

// retry is a policy's own.
type retry struct {
	max         int
	on          outcomes
	statuses    statusSet
	base, limit time.Duration
	atLeastOnce bool
	nested      bool
	budget      *limit.Budget
	series      *retrySeries
}

func (b *builder) ownRetry(p *Retry) string {
	r := &retry{max: 2, on: retryOn(p.On), base: cmp.Or(p.Backoff.Base, 25*time.Millisecond), atLeastOnce: p.AtLeastOnce, nested: p.Nested}
	r.limit = min(cmp.Or(p.Backoff.Max, 10*min(r.base, longestBase)), math.MaxInt64-1)
	if p.Max != nil {
		r.max = *p.Max
	}
	if r.max == 0 {
		return "never"
	}
	r.statuses, _ = parseStatuses(p.Statuses)
	r.series = b.e.retrySeries(b.t, b.r.source("retry"))
	does := fmt.Sprintf("up to %d times", r.max)
	if g := p.Budget; g != nil {
		ratio, least := g.Ratio, g.MinPerSecond
		if ratio == 0 && least == 0 {
			ratio, least = 0.2, 10
		}
		r.budget = kept(b.e, fmt.Sprintf("%s/%v/%d", b.stateKey("budget", b.r.source("retry")), ratio, least),
			func() *limit.Budget { return limit.NewBudget(ratio, least, 10*time.Second) })
		b.layer(entering(func(ctx context.Context, c *call.Call) (context.Context, error) {
			r.budget.Deposit()
			return ctx, nil
		}))
		does += fmt.Sprintf(", at most %.0f%% of the calls and %d a second", ratio*100, least)
	}
	b.c.Replay = true
	b.c.Retry = r.decide
	return does
}

// decide is the policy's answer after a failed attempt.
func (r *retry) decide(c *call.Call, err error) (time.Duration, bool) {
	if c.Attempt > r.max || !r.worth(c) || !r.harmless(c, err) || (!r.nested && isNested(c)) {
		return 0, false
	}
	if r.budget != nil && !r.budget.Withdraw() {
		r.series.exhausted()
		return 0, false
	}
	r.series.retried()
	pause := time.Duration(rand.Int64N(int64(r.most(c.Attempt)) + 1))
	if after := fault.AfterOf(err); after > 0 && c.Outcome == call.Throttled {
		pause = max(pause, after)
	}
	return pause, true
}

// most is the longest pause after an attempt.
func (r *retry) most(attempt int) time.Duration {
	d := r.base
	for range attempt - 1 {
		if d >= r.limit/2 { // also keeps the double within 64 bits
			return r.limit
		}
		d *= 2
	}
	return min(d, r.limit)
}

// worth tells whether the outcome is one that another attempt may better.
func (r *retry) worth(c *call.Call) bool {
	st := c.Try().Status
	switch {
	case c.Outcome == call.Rejected || c.Outcome == call.Canceled && c.Whole().Err() != nil:
		return false
	case r.on.has(c.Outcome):
		return true
	case st.Code:
		return r.statuses.has(int(st.GRPC))
	}
	return st.HTTP > 0 && r.statuses.has(st.HTTP)
}

// harmless tells whether the call may be made again after this failure.
func (r *retry) harmless(c *call.Call, err error) bool {
	return r.atLeastOnce || c.Safety >= call.Idempotent || (err != nil && fault.SentOf(err) == fault.SentNever)
}

// attemptHeader tells the next sidecar that a call is somebody's further attempt, so that two
// who retry do not multiply. The name is Envoy's.
const attemptHeader = "x-envoy-attempt-count"

func isNested(c *call.Call) bool {
	if c.Attrs == nil {
		return false
	}
	v, ok := c.Attrs.Lookup(attemptHeader)
	return ok && v != "" && v != "1"
}
