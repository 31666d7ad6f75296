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
)

var kindNames = [...]string{"service", "state", "publish", "deliver", "configuration", "lock", "secret", "binding", "crypto", "app"}

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

// Desc describes one call on a target.
type Desc struct {
	Op       string // "get", "publish", an HTTP verb, a gRPC full method
	Resource string // key, topic or method path
	Safety   Safety
	// Streamed calls cannot be repeated: their body is consumed by the first attempt.
	Streamed bool
	// Attrs looks up headers or metadata for rules; nil means there are none.
	Attrs Attrs
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
	Attempt int   // attempts begun, 1 in the first
	Err     error // outcome of the last attempt

	chain *Chain
	ctx   context.Context // of the whole call
	depth int             // whole-call layers entered
	done  bool
}

// Layer is one policy step around a whole call. Enter may refuse the call with an error or
// replace its context; Exit sees the outcome and may replace it. Exit runs, in reverse order,
// for every layer whose Enter succeeded.
type Layer interface {
	Enter(ctx context.Context, c *Call) (context.Context, error)
	Exit(c *Call, err error) error
}

// Retry decides after a failed attempt whether to make another, and after what pause.
// c.Attempt counts the attempts made.
type Retry func(c *Call, err error) (pause time.Duration, again bool)

// Chain is the compiled policy of a target: immutable, shared by all its calls. A nil Chain
// and a Chain with nothing set are valid and cost nothing.
type Chain struct {
	Layers []Layer // outermost first
	Retry  Retry   // nil means one attempt
}

var calls = sync.Pool{New: func() any { return new(Call) }}

// Begin opens a call: it runs the layers' Enter in order. On an error the call is over.
// Otherwise the caller loops over Next, and must call End exactly once.
func Begin(ctx context.Context, t *Target, d Desc) (*Call, error) {
	c := calls.Get().(*Call)
	*c = Call{Desc: d, Target: t, Start: time.Now(), ctx: ctx, chain: t.chain.Load()}
	if c.chain == nil {
		return c, nil
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

// Context is the context of the whole call, as the layers made it.
func (c *Call) Context() context.Context { return c.ctx }

// Next reports whether to make an attempt: the first always, a further one when the last
// failed (see Done) and the retry policy grants it. It waits out the pause between attempts;
// a context that ends meanwhile ends the loop with the last attempt's error.
func (c *Call) Next() bool {
	if c.Attempt == 0 {
		c.Attempt = 1
		return true
	}
	if c.done || c.Err == nil || c.chain == nil || c.chain.Retry == nil || c.Streamed {
		return false
	}
	pause, again := c.chain.Retry(c, c.Err)
	if !again || !wait(c.ctx, pause) {
		return false
	}
	c.Attempt++
	return true
}

// Done records the outcome of an attempt.
func (c *Call) Done(err error) { c.Err = err }

// Final forbids further attempts, because the answer has begun to reach the caller.
func (c *Call) Final() { c.done = true }

// End closes the call: the layers' Exit run in reverse order and may replace the outcome,
// which End returns. The Call must not be used afterwards.
func (c *Call) End(err error) error {
	for i := c.depth - 1; i >= 0; i-- {
		err = c.chain.Layers[i].Exit(c, err)
	}
	*c = Call{}
	calls.Put(c)
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
		out, err = guarded(c.ctx, fn)
		c.Done(err)
	}
	return out, c.End(err)
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

// wait sleeps for d, or less when ctx ends; it reports whether the call may go on.
func wait(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
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
	case <-ctx.Done():
		return false
	}
}
