package host

import (
	"context"
	"sync"
)

// What brings events to the app, pub/sub and input bindings, starts and stops together.

// resumeEvents lets events come: the app has been found and is healthy.
func (h *Sidecar) resumeEvents() {
	h.services.PubSub.Resume()
	h.services.Binding.Resume()
}

// pauseEvents holds them back.
func (h *Sidecar) pauseEvents() {
	h.services.PubSub.Pause()
	h.services.Binding.Pause()
}

// refreshEvents starts those of a component anew, which was added, replaced or removed.
func (h *Sidecar) refreshEvents(component string) {
	h.services.PubSub.Refresh(component)
	h.services.Binding.Refresh(component)
}

// drainEvents ends them for good, both kinds within the same time.
func (h *Sidecar) drainEvents(ctx context.Context) {
	var all sync.WaitGroup
	all.Go(func() {
		if err := h.services.Binding.Drain(ctx); err != nil {
			h.log.Warn("some events of input bindings were not finished within the grace period", "err", err)
		}
	})
	if err := h.services.PubSub.Drain(ctx); err != nil {
		h.log.Warn("some events were not finished within the grace period; they go back to their brokers", "err", err)
	}
	all.Wait()
}
