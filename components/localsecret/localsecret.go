// Package localsecret reads secrets from this host: from a JSON file, or from the sidecar's own
// environment. It is for development, and for places where something else puts secrets into files
// or variables (mounted volumes, a process manager).
//
// Nothing is encrypted here; who may read the file, or start the sidecar, may read the secrets.
// file.go is the file, env.go the environment.
package localsecret

import (
	"context"
	"sync/atomic"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Backend lists the parts of this backend.
func Backend() block.Backend {
	return block.Backend{
		Name: "localsecret",
		Doc:  "Secrets from a file of this host, or from the sidecar's environment.",
		Parts: []block.Part{
			block.SecretPart("local.file", "Secrets from a JSON file.", DefaultFileConfig, NewFile),
			block.SecretPart("local.env", "Secrets from the sidecar's environment variables.", DefaultEnvConfig, NewEnv),
		},
	}
}

// gate refuses use after Close and calls whose context has ended.
type gate struct{ closed atomic.Bool }

func (g *gate) check(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	if g.closed.Load() {
		return fault.New(op, fault.Unavailable, "the secret store is closed").WithSent(fault.SentNever)
	}
	return nil
}

// Close implements block.Component.
func (g *gate) Close(context.Context) error {
	g.closed.Store(true)
	return nil
}

// own is a secret of one value, under its own name.
func own(name, value string) map[string]string { return map[string]string{name: value} }
