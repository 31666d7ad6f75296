package invoke_test

import (
	"context"
	"testing"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/invoke"
)

// balance counts calls that a layer let in and out.
type balance struct{ in, out, failed int }

func (b *balance) Enter(ctx context.Context, _ *call.Call) (context.Context, error) {
	b.in++
	return ctx, nil
}

func (b *balance) Exit(_ *call.Call, err error) error {
	b.out++
	if fault.Of(err) == fault.Internal {
		b.failed++
	}
	return err
}

// A call that panics is over for the policy around it too: what a layer lends (a place under a
// limit, a probe of a breaker) must come back.
func TestAPanicLeavesThePolicy(t *testing.T) {
	for _, where := range []string{"app", "answer"} {
		for _, way := range []string{"out", "in"} {
			t.Run(where+", "+way, func(t *testing.T) {
				b := &balance{}
				govern := func(t *call.Target) { t.SetChain(&call.Chain{Layers: []call.Layer{b}}) }
				k := newKit(t, func(o *invoke.Options) { o.Govern = govern })
				out := &answer{panics: where == "answer"}
				if where == "app" {
					k.local.see = func(context.Context, *call.Request) { panic("in the app's channel") }
				}
				func() {
					defer func() {
						if recover() == nil {
							t.Error("the edge, which logs panics, heard nothing of it")
						}
					}()
					req := &call.Request{Target: "me", Verb: "GET"}
					if way == "out" {
						_ = k.Invoke(t.Context(), req, out)
					} else {
						_ = k.Serve(t.Context(), req, "shop", out)
					}
				}()
				if b.in != 1 || b.out != 1 || b.failed != 1 {
					t.Errorf("entered %d times, left %d times, %d as failed", b.in, b.out, b.failed)
				}
			})
		}
	}
}
