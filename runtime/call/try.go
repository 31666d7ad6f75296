package call

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// MaxSteps is how many steps a chain can have; policy has fewer kinds of them.
const MaxSteps = 8

// Step is one policy step around each attempt: routing, caps, breakers. Enter may refuse the
// attempt; what it returns is handed to Exit, which runs in reverse order for every step
// whose Enter succeeded and sees the attempt's outcome.
type Step interface {
	Enter(c *Call, t *Try) (Token, error)
	Exit(c *Call, t *Try, tok Token)
}

// Token is what a step remembers of one attempt.
type Token struct {
	P, Q any // pointers, so that they cost no allocation
	N    uint64
}

// Try is one attempt of a call. Steps fill it in on the way in and read it on the way out.
type Try struct {
	Ctx context.Context
	// To is where the attempt goes; empty means the target itself. Subset narrows the choice
	// among its endpoints; nil means all.
	To     string
	Subset Labels
	// Way names the route that was taken, where there are several.
	Way string
	// PerTry bounds the attempt from here on; 0 means only the call's deadline does.
	PerTry time.Duration
	// N counts the attempts, 1 in the first; a hedge has the number of the one beside it.
	N int
	// Extra marks a hedge, which runs beside the attempt it may replace.
	Extra bool

	Start   time.Time // when the steps had let it through
	Took    time.Duration
	Err     error
	Status  Status
	Outcome Outcome

	chain   *Chain
	entered int
	tokens  [MaxSteps]Token
	timer   *deadline
	pick    Pick
	went    []string
	open    bool               // the answer is being read
	stop    context.CancelFunc // of a racing attempt's context
}

// Labels select endpoints or components: those that carry all of them.
type Labels map[string]string

// In tells whether have carries all labels.
func (l Labels) In(have map[string]string) bool {
	for k, v := range l {
		if have[k] != v {
			return false
		}
	}
	return true
}

// Picked says which endpoint the attempt goes to, whose load and health it counts for. An
// attempt that goes on to another endpoint ends the count of the first as a connect failure.
func (t *Try) Picked(p Pick) {
	t.unpick(ConnectFailure)
	t.pick = p
	if p != nil {
		p.Begin()
	}
	t.Start = time.Now()
}

// Went are the endpoints this attempt went to, the last one last.
func (t *Try) Went() []string { return t.went }

func (t *Try) unpick(o Outcome) {
	if t.pick != nil {
		t.pick.End(time.Since(t.Start), o)
		t.pick = nil
	}
}

// enter makes an attempt pass the steps. On a refusal it leaves those entered.
func (c *Call) enter(t *Try) bool {
	way := ""
	if !t.Extra && c.Attempt > 1 {
		way = t.Way
	}
	t.cancel()
	*t = Try{chain: c.chain, Ctx: c.ctx, Extra: t.Extra, N: c.Attempt, went: t.went[:0]}
	c.before = way
	if c.chain == nil {
		return true
	}
	if !c.deadline.IsZero() {
		t.bound(c, c.deadline)
	}
	for i, s := range c.chain.Steps {
		tok, err := s.Enter(c, t)
		if err != nil {
			c.refused(t, err)
			return false
		}
		t.tokens[i] = tok
		t.entered++
	}
	if t.entered > 0 { // only steps set PerTry
		t.Start = time.Now()
		if t.PerTry > 0 {
			t.bound(c, t.Start.Add(t.PerTry))
		}
	}
	return true
}

// refused ends an attempt that was not made.
func (c *Call) refused(t *Try, err error) {
	c.leave(t, err, Status{})
	t.cancel()
	c.Err, c.Outcome = c.reached(t.Err), t.Outcome
}

// reached is an attempt's error as the error of the call: a last attempt that was never sent
// does not undo an earlier one that may have been.
func (c *Call) reached(err error) error {
	if !c.pin || fault.SentOf(err) != fault.SentNever {
		return err
	}
	return &fault.Error{Op: "call.Do", Code: fault.Of(err), Reason: fault.ReasonOf(err), Sent: fault.SentMaybe,
		After: fault.AfterOf(err), Rule: fault.RuleOf(err), Err: err}
}

// leave ends an attempt.
func (c *Call) leave(t *Try, err error, st Status) {
	if t.timer != nil && err != nil && t.timer.expired() {
		err = timedOut(c, err)
	}
	t.Err, t.Status = err, st
	if t.chain == nil && err == nil && st == (Status{}) {
		return // nothing looks at it
	}
	t.Outcome = OutcomeOf(err, st)
	if t.chain == nil {
		return
	}
	if st.Open && t.Outcome == OK {
		t.open = true
		return
	}
	if t.entered > 0 {
		t.Took = time.Since(t.Start)
	}
	t.unpick(t.Outcome)
	for t.entered > 0 {
		t.entered--
		t.chain.Steps[t.entered].Exit(c, t, t.tokens[t.entered])
	}
	if c.Safety != Safe && err != nil && t.Outcome != Rejected && fault.SentOf(err) != fault.SentNever {
		c.pinned, c.pin = t.To, true
	}
}

// Before is the route that the attempt before this one took, and how it ended; empty when there
// was none.
func (c *Call) Before() (way string, o Outcome) { return c.before, c.Outcome }

// Pinned is the destination that an earlier attempt of this call may have changed: a write
// that goes elsewhere after it could end up in two places. ok is false when there is none.
func (c *Call) Pinned() (to string, ok bool) { return c.pinned, c.pin }

// timedOut is the error of an attempt that a policy's time limit ended, whatever the other
// side made of the end of its context.
func timedOut(c *Call, err error) error {
	switch fault.Of(err) {
	case fault.Deadline, fault.Canceled, fault.Unavailable, fault.Internal:
	default:
		return err // an answer that came just in time
	}
	sent := fault.SentOf(err)
	if sent == fault.SentUnknown {
		sent = fault.SentMaybe
	}
	return fault.New("call.Do", fault.Deadline, "context deadline exceeded").WithSent(sent).WithRule(c.Policy().rule("timeout"))
}

// rule names the policy that set a field, for rejections.
func (ch *Chain) rule(field string) string {
	if named, ok := ch.About.(interface{ RuleOf(field string) string }); ok {
		return named.RuleOf(field)
	}
	return ""
}

// bound gives the attempt a time limit, or tightens the one it has.
func (t *Try) bound(c *Call, at time.Time) {
	if t.timer == nil {
		t.timer = newDeadline(c.ctx, at, c.Target.Kind == Service || c.Target.Kind == App)
		t.Ctx = t.timer
		return
	}
	t.timer.tighten(at)
}

// settle lifts the time limit: the attempt has succeeded, and what is left is reading its
// answer.
func (t *Try) settle() {
	if t.timer != nil {
		t.timer.lift()
	}
}

func (t *Try) cancel() {
	if t.timer != nil {
		t.timer.cancel(context.Canceled)
		t.timer = nil
	}
	if t.stop != nil {
		t.stop()
		t.stop = nil
	}
}
