package nats

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/fault"
)

// makeStream returns what is known of the stream, made as wanted if it does not exist.
// For an existing one, fit says whether it will do and changes what must be changed; if the
// server refuses that, the stream stays as it is.
func makeStream(ctx context.Context, p *period, want jetstream.StreamConfig, fit func(*jetstream.StreamConfig) bool) (*jetstream.StreamInfo, error) {
	have, err := p.js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		have, err = p.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // somebody was faster
			have, err = p.js.Stream(ctx, want.Name)
		}
	}
	if err != nil {
		return nil, err
	}
	found := have.CachedInfo()
	cfg := found.Config
	if fit(&cfg) {
		return found, nil
	}
	if changed, err := p.js.UpdateStream(ctx, cfg); err == nil {
		found = changed.CachedInfo()
	}
	return found, nil
}

// closeWithin closes the connection, and lets the work of it end as long as ctx lasts.
func (c *conn) closeWithin(ctx context.Context, op fault.Op) error {
	done := make(chan struct{})
	go func() {
		c.close()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fault.Wrap(op, fault.Deadline, ctx.Err())
	}
}
