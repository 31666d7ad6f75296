package policy_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// engine is an engine with policies in force, in order.
func engine(t testing.TB, o policy.Options, ps ...policy.Policy) *policy.Engine {
	t.Helper()
	e := policy.New(o)
	t.Cleanup(e.Close)
	e.Swap(&policy.Snapshot{Policies: ps})
	return e
}

// pol is a policy for every call.
func pol(name string, s policy.Spec) policy.Policy {
	return policy.Policy{Name: name, Spec: s, Where: name + ".yaml:1"}
}

// under is a target of a kind under one policy.
func under(t testing.TB, kind call.Kind, s policy.Spec) *call.Target {
	t.Helper()
	return governed(engine(t, policy.Options{}, pol("p", s)), kind, "orders")
}

func governed(e *policy.Engine, kind call.Kind, name string) *call.Target {
	tg := &call.Target{Kind: kind, Name: name}
	if kind == call.Deliver {
		tg.Direction = call.Inbound
	}
	e.Govern(tg)
	return tg
}

func ptr[T any](v T) *T { return &v }

// do makes one call and gives its error.
func do(ctx context.Context, tg *call.Target, d call.Desc, fn func(context.Context) error) error {
	_, err := call.Do(ctx, tg, d, func(ctx context.Context) (struct{}, error) { return struct{}{}, fn(ctx) })
	return err
}

func fine(context.Context) error { return nil }

func failing(err error) func(context.Context) error {
	return func(context.Context) error { return err }
}

// answered runs a call whose attempts answer with a status, as invocations do. It gives the
// attempts made.
func answered(ctx context.Context, tg *call.Target, d call.Desc, st func(n int) call.Status) (n int, err error) {
	c, err := call.Begin(ctx, tg, d)
	if err != nil {
		return 0, err
	}
	_, err = call.Run(c, 0, nil, nil, func(context.Context, *call.Try, int) (int, call.Status, error) {
		n++
		return 0, st(n), nil
	})
	return n, c.End(err)
}

// errOf is an error with a code that went so far.
func errOf(code fault.Code, sent fault.Sent) error {
	return fault.New("t", code, "%v", code).WithSent(sent)
}

var (
	errNever = errOf(fault.Unavailable, fault.SentNever)
	errMaybe = errOf(fault.Unavailable, fault.SentMaybe)
)
