package call_test

import (
	"context"
	"errors"
	"testing"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/runtime/call"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a layer that writes down what happens to it.
type recorder struct {
	name   string
	log    *[]string
	refuse error                 // Enter answers with it
	exit   func(err error) error // nil passes the outcome on
	ctx    func(context.Context) context.Context
}

func (r recorder) Enter(ctx context.Context, _ *call.Call) (context.Context, error) {
	*r.log = append(*r.log, "enter "+r.name)
	if r.refuse != nil {
		return nil, r.refuse
	}
	if r.ctx != nil {
		ctx = r.ctx(ctx)
	}
	return ctx, nil
}

func (r recorder) Exit(_ *call.Call, err error) error {
	*r.log = append(*r.log, "exit "+r.name+": "+text(err))
	if r.exit != nil {
		return r.exit(err)
	}
	return err
}

func text(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}

var errFirst = errors.New("first")

// target makes a target with a chain; a nil chain leaves it unset.
func target(c *call.Chain) *call.Target {
	t := &call.Target{Kind: call.State, Name: "store"}
	if c != nil {
		t.SetChain(c)
	}
	return t
}
