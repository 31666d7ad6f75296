package pubsub

import (
	"sync"

	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// running are the consumers of logs that run, for those who ask how they are.
type running struct {
	mu  sync.Mutex
	all map[*engine.Consumer]string // guarded by mu; their components
}

// add notes a consumer until the result is called.
func (r *running) add(component string, c *engine.Consumer) (remove func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[*engine.Consumer]string{}
	}
	r.all[c] = component
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.all, c)
	}
}

// PartitionStatus is how a consumer of this sidecar stands with a partition. Its topic has the broker's name.
type PartitionStatus struct {
	Component, Group string
	engine.PartStatus
}

// Partitions is how the consumers of logs are now. It asks their brokers, for a second each at most.
func (s *Service) Partitions() []PartitionStatus {
	s.running.mu.Lock()
	all := make(map[*engine.Consumer]string, len(s.running.all))
	for c, component := range s.running.all {
		all[c] = component
	}
	s.running.mu.Unlock()
	var (
		mu  sync.Mutex
		out []PartitionStatus
		wg  sync.WaitGroup
	)
	for c, component := range all {
		wg.Go(func() {
			st := c.Status()
			mu.Lock()
			defer mu.Unlock()
			for _, p := range st.Parts {
				out = append(out, PartitionStatus{Component: component, Group: c.Options().Group, PartStatus: p})
			}
		})
	}
	wg.Wait()
	return out
}
