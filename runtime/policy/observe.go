package policy

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
)

// observe is the outermost layer: it reports each call once, with the outcome that leaves.
type observe struct{ to Observer }

func (o observe) Enter(ctx context.Context, _ *call.Call) (context.Context, error) { return ctx, nil }

func (o observe) Exit(c *call.Call, err error) error {
	o.to.CallEnded(c, err, time.Since(c.Start))
	return err
}
