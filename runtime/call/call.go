// Package call is the one shape of a request inside the house.
//
// Every operation on a backend, an app or a peer is a Call against a Target and runs inside
// the Target's Chain of policy layers. Services use Do for an operation with one result, or
// Begin for one long call (a streamed invocation). message.go holds the shape of an
// invocation's request and response, shared by the edges, the peer hop and the app channel.
//
// The package knows no layer: runtime/policy builds chains, and decides their order in one
// file. It imports components/fault only.
package call

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// Kind says which block a call belongs to.
type Kind uint8

// The kinds of calls. Append-only: they are metric labels.
const (
	Service Kind = iota // invocation of another app's method
	State
	Publish
	Deliver // an event on its way to the app
	Config
	Lock
	Secret
	Binding
	Crypto
	App // any other call into the app (invocation arriving, callbacks)
	Cache
	kindsEnd // behind the last
)

// Kinds are all kinds of calls.
func Kinds() []Kind {
	out := make([]Kind, 0, kindsEnd)
	for k := range kindsEnd {
		out = append(out, k)
	}
	return out
}

var kindNames = [...]string{"service", "state", "publish", "deliver", "configuration", "lock", "secret", "binding", "crypto", "app", "cache"}

// String is the kind's name in logs and metrics.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind_%d", uint8(k))
}

// Direction tells whether a call leaves the app or comes to it.
type Direction uint8

const (
	// Outbound is app → sidecar → world.
	Outbound Direction = iota
	// Inbound is world → sidecar → app; delivery of events is inbound.
	Inbound
)

// Safety is what repeating a call can do. It comes from the operation, never from hope.
type Safety uint8

const (
	// Unsafe calls may only be repeated when the first certainly was not sent.
	Unsafe Safety = iota
	// Conditional calls carry a version check: a repeat after an ambiguous failure may report a
	// conflict with itself, so they are treated as Unsafe by retries.
	Conditional
	// Idempotent calls may be repeated.
	Idempotent
	// Safe calls change nothing.
	Safe
)

// Target is what calls are for: a component, an app, a peer app. It is made once and its
// chain is swapped by pointer when policy changes.
type Target struct {
	Kind      Kind
	Direction Direction
	Name      string // component name or app id
	Namespace string
	chain     atomic.Pointer[Chain]
}

// SetChain replaces the policy of the target. Calls already begun keep the chain they have.
func (t *Target) SetChain(c *Chain) { t.chain.Store(c) }

// Chain is the target's policy now; nil when it has none.
func (t *Target) Chain() *Chain { return t.chain.Load() }

// Desc describes one call on a target.
type Desc struct {
	Op       string // "get", "publish", an HTTP verb, a gRPC full method
	Resource string // key, topic or method path
	// Key is what a policy that splits or balances by key looks at: a state key, a message's
	// ordering key. Empty means the call has none.
	Key    string
	Safety Safety
	// Streamed calls cannot be repeated: their body is consumed by the first attempt.
	Streamed bool
	// Lasting calls are ended by whoever began them, like a subscription: limits of time and number
	// are not for them, and how long they last or why they end says nothing to breakers.
	Lasting bool
	// Shadow marks a copy of another call, made by a mirror. It is not mirrored again.
	Shadow bool
	// Attrs looks up headers or metadata for rules; nil means there are none.
	Attrs Attrs
	// Caller is who asks.
	Caller Caller
}

// Caller is who asks for a call, as far as it is known.
type Caller struct {
	App       string
	Namespace string
	// Proven is set when the connection proves the rest: the own app behind a local
	// connection, or a certificate. A name alone proves nothing.
	Proven bool
}

// Attrs gives rules access to a call's headers or metadata without copying them.
type Attrs interface {
	Lookup(name string) (string, bool)
}

// Call is one call in progress. Layers read it and keep their per-call state in it; it is
// reused after the call ended, so nothing may keep a pointer to it.
type Call struct {
	Desc
	Target  *Target
	Start   time.Time
	Attempt int     // attempts begun, 1 in the first
	Err     error   // of the last attempt
	Outcome Outcome // of the last attempt
	// Spent tells whether what the call sends can no longer be sent again; nil: it can.
	Spent func() bool

	chain    *Chain
	ctx      context.Context // of the whole call
	depth    int             // whole-call layers entered
	final    bool
	kept     bool // attempts may outlive the call, so it is not used again
	try      Try  // the attempt in progress
	last     Status
	deadline time.Time
	mu       sync.Mutex // guards tried, for attempts that race
	tried    []string   // endpoints the attempts went to; only appended to
	pinned   string     // the destination a write may have reached, if pin
	pin      bool
	before   string // see Before
}

// Layer is one policy step around a whole call. Enter may refuse the call with an error or
// replace its context; Exit sees the outcome and may replace it. Exit runs, in reverse order,
// for every layer whose Enter succeeded.
type Layer interface {
	Enter(ctx context.Context, c *Call) (context.Context, error)
	Exit(c *Call, err error) error
}

// Retry decides after a failed attempt whether to make another, and after what pause.
// c.Attempt counts the attempts made; c.Outcome and err tell how the last one ended.
type Retry func(c *Call, err error) (pause time.Duration, again bool)

// Chain is the compiled policy of a target: immutable, shared by all its calls. A nil Chain
// and a Chain with nothing set are valid and cost nothing.
type Chain struct {
	// Select gives the chain of one call where rules look at more than the target; nil means
	// this one.
	Select func(c *Call) *Chain

	Layers []Layer       // around the call, outermost first
	Steps  []Step        // around each attempt, outermost first; at most MaxSteps
	Retry  Retry         // nil means one attempt
	Hedge  Hedge         // nil means no hedging
	Total  time.Duration // of all attempts and pauses together; 0 means no limit
	Mirror Mirror        // nil means none
	// Balance chooses among the endpoints of a service; nil means the service's own rotation.
	Balance Balancer
	// Place tells where a key's calls go when policy divides the target by key; nil when it does
	// not. It looks at nothing but the key.
	Place func(key string) string
	// Replay asks services to keep what a call sends, so that it can be sent again.
	Replay bool
	// Answer rewrites the header of an invocation's answer; nil leaves it.
	Answer func(c *Call, header *Fields)
	// Request rewrites the header of an invocation; nil leaves it.
	Request func(c *Call, header *Fields)
	// AttemptHeader is set to the attempt's number in invocations after the first attempt; empty
	// sets nothing.
	AttemptHeader string
	// About is what explanations show; the call itself does not look at it.
	About any
}

// Mirror takes copies of calls.
type Mirror interface {
	// Takes tells whether this call is to be copied, and where to.
	Takes(c *Call) (to string, ok bool)
	// Go runs the copy in the background, after earlier ones with the same key. It may drop it
	// instead: copies never slow down or fail the calls they are made of.
	Go(key string, run func(ctx context.Context) error)
	// Compare tells whether this read is to be compared with the copy's, and reports the result.
	Compares(c *Call) bool
	Compared(same bool)
}

var calls = sync.Pool{New: func() any { return new(Call) }}

// Begin opens a call: it runs the layers' Enter in order. On an error the call is over.
// Otherwise the caller loops over Next, and must call End exactly once.
func Begin(ctx context.Context, t *Target, d Desc) (*Call, error) {
	c := calls.Get().(*Call)
	tried, went := c.tried[:0], c.try.went[:0]
	*c = Call{Desc: d, Target: t, Start: time.Now(), ctx: ctx, chain: t.chain.Load(), tried: tried}
	c.try.went = went
	if c.chain == nil {
		return c, nil
	}
	if c.chain.Select != nil {
		c.chain = c.chain.Select(c)
	}
	if c.chain.Total > 0 && !d.Lasting {
		c.deadline = c.Start.Add(c.chain.Total)
	}
	for _, l := range c.chain.Layers {
		next, err := l.Enter(c.ctx, c)
		if err != nil {
			return nil, c.End(err)
		}
		c.ctx = next
		c.depth++
	}
	return c, nil
}

// PolicyOf is the chain that would govern a call; never nil.
func PolicyOf(t *Target, d Desc) *Chain {
	c := Call{Desc: d, Target: t, chain: t.chain.Load()}
	if c.chain != nil && c.chain.Select != nil {
		c.chain = c.chain.Select(&c)
	}
	return c.Policy()
}

// Policy is the chain that governs the call; never nil.
func (c *Call) Policy() *Chain {
	if c.chain == nil {
		return &nothing
	}
	return c.chain
}

var nothing Chain

// Repeats tells whether a failed attempt could be followed by another, so that what the call
// sends is worth keeping.
func (c *Call) Repeats() bool {
	return !c.Streamed && c.chain != nil && (c.chain.Retry != nil || c.chain.Hedge != nil)
}

// Context is the context of the attempt in progress; before the first, of the whole call.
func (c *Call) Context() context.Context {
	if c.try.Ctx != nil {
		return c.try.Ctx
	}
	return c.ctx
}

// Whole is the context of the whole call, as the layers made it.
func (c *Call) Whole() context.Context { return c.ctx }

// To is the destination that policy chose for the attempt in progress; empty means the target
// itself.
func (c *Call) To() string { return c.try.To }

// Tried are the endpoints that attempts went to so far.
func (c *Call) Tried() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tried
}

// WentTo notes that an attempt goes to an endpoint, which others avoid.
func (c *Call) WentTo(t *Try, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tried = append(c.tried, id)
	t.went = append(t.went, id)
}

// Try is the attempt in progress.
func (c *Call) Try() *Try { return &c.try }

// Next reports whether to make an attempt: the first unless a step refuses it, a further one
// when the last failed (see Done) and the retry policy grants it. It waits out the pause
// between attempts; a context that ends meanwhile ends the loop with the last attempt's error.
// After a refusal c.Err says why, and whoever loops ends the call with it.
func (c *Call) Next() bool {
	if c.Attempt > 0 {
		if c.final || c.Outcome == OK || c.chain == nil || c.chain.Retry == nil || c.Streamed || (c.Spent != nil && c.Spent()) {
			return false
		}
		pause, again := c.chain.Retry(c, c.Err)
		if !again || !c.wait(pause) {
			return false
		}
	}
	c.Attempt++
	return c.enter(&c.try)
}

// Done records how an attempt ended when all there is to know is the error.
func (c *Call) Done(err error) { c.Ended(err, statusIn(err)) }

// Ended records how an attempt ended. st is the status of an answer that came, which may be a
// failure although err is nil.
func (c *Call) Ended(err error, st Status) {
	c.leave(&c.try, err, st)
	c.Err, c.Outcome = c.reached(c.try.Err), c.try.Outcome
	if c.try.Err == nil {
		c.try.settle() // the answer is still to be read, without this attempt's deadline
		return
	}
	c.try.cancel()
}

// Final forbids further attempts, because the answer has begun to reach the caller.
func (c *Call) Final() { c.final = true }

// Read tells the status at the end of an answer that was open: a gRPC answer has its own only
// then.
func (c *Call) Read(st Status) { c.last = st }

// End closes the call: the layers' Exit run in reverse order and may replace the outcome,
// which End returns. The Call must not be used afterwards.
func (c *Call) End(err error) error {
	if c.try.open || c.try.entered > 0 { // still being read, or left by a panic
		c.try.open = false
		c.leave(&c.try, err, c.last)
	}
	c.try.cancel()
	for i := c.depth - 1; i >= 0; i-- {
		err = c.chain.Layers[i].Exit(c, err)
	}
	if !c.kept {
		tried, went := c.tried, c.try.went
		clear(tried)
		clear(went)
		*c = Call{tried: tried[:0]}
		c.try.went = went[:0]
		calls.Put(c)
	}
	return err
}

// Do runs fn as one call on t: inside the layers, repeated as the retry policy says. A panic
// in fn becomes a fault.Internal carrying the stack in its text, so that one call's defect
// ends that call only.
func Do[T any](ctx context.Context, t *Target, d Desc, fn func(context.Context) (T, error)) (T, error) {
	var out T
	c, err := Begin(ctx, t, d)
	if err != nil {
		return out, err
	}
	for c.Next() {
		out, err = guarded(c.Context(), fn)
		c.Done(err)
	}
	return out, c.End(c.Err)
}

func guarded[T any](ctx context.Context, fn func(context.Context) (T, error)) (out T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Panicked(p)
		}
	}()
	return fn(ctx)
}

// Panicked turns a recovered panic value into an error.
func Panicked(p any) error {
	return fault.New("call.Do", fault.Internal, "panic: %v\n%s", p, debug.Stack())
}

// wait sleeps for d, or less when the call's context ends; it reports whether the call may go
// on. A pause that would outlast the call's deadline is not begun: the attempt after it could
// not be made.
func (c *Call) wait(d time.Duration) bool {
	if c.ctx.Err() != nil || (!c.deadline.IsZero() && time.Until(c.deadline) <= d) {
		return false
	}
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}
