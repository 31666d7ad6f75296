// Package engine consumes and publishes partitioned logs for the app: it is what the messaging promises
// rest on, whichever API the app uses and whichever broker is behind.
//
// It leaves to the service above (runtime/pubsub) who may use which topic, CloudEvents, policy and the
// Dapr API; to package lane what may be delivered next; to package group who owns what; to the broker
// appending, reading and the ledger.
//
// Start at Engine, one per broker, and Consumer, one per subscription: consumer.go (its life and what it
// tells), answers.go (what the app says), membership.go (what the group says), owned.go (one partition from
// claim to release), commit.go (what is durable), aside.go (copies of messages that failed), replay.go
// (parked ones that come back), admin.go. Publishing is in publish.go; how topics are divided in topics.go,
// resize.go and follow.go.
//
// # The promise
//
// Whoever consumes gets every message that was acknowledged to its publisher, at least once. A group's
// progress never passes a message that is not resolved: acknowledged by the app, dropped by its word,
// copied to the dead-letter topic or set aside in the park log. Messages of one key are resolved in order,
// over retries, changes of owner and crashes. A crash delivers again what was at the app, and what was
// acknowledged since the last commit: commitEvery or commitAcks ago at most.
package engine

import (
	"context"
	"log/slog"
	"strconv"
	"sync"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/pubsub/group"
)

// Engine works on one broker. It is safe for concurrent use.
type Engine struct {
	log    block.Log
	logger *slog.Logger
	topics *topics

	ctx  context.Context // ends with Close
	stop context.CancelFunc
	run  sync.WaitGroup

	mu   sync.Mutex
	hubs map[string]*hubRef // guarded by mu; by group
}

// hubRef is a group's hub and how many consumers use it.
type hubRef struct {
	hub  *group.Hub
	uses int
}

// New makes the engine of a broker. logger must not be nil.
func New(log block.Log, logger *slog.Logger) *Engine {
	e := &Engine{log: log, logger: logger, hubs: map[string]*hubRef{}}
	e.ctx, e.stop = context.WithCancel(context.Background())
	e.topics = newTopics(e.ctx, log, &e.run)
	return e
}

// Close ends what runs in the background. Consumers must have ended, or end by it.
func (e *Engine) Close() {
	e.stop()
	e.mu.Lock()
	hubs := make([]*group.Hub, 0, len(e.hubs))
	for _, r := range e.hubs {
		hubs = append(hubs, r.hub)
	}
	e.mu.Unlock()
	for _, h := range hubs {
		h.Close()
	}
	e.run.Wait()
}

// hub is this process's membership in a group; release is called when it is not used any more.
func (e *Engine) hub(name string) (h *group.Hub, release func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.hubs[name]
	if r == nil {
		r = &hubRef{hub: group.NewHub(e.log, group.HubOptions{Group: name, TTL: e.log.LogFeatures().SessionTTL, Log: e.logger})}
		e.hubs[name] = r
	}
	r.uses++
	return r.hub, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if r.uses--; r.uses == 0 && e.hubs[name] == r {
			delete(e.hubs, name)
		}
	}
}

// Features are the broker's.
func (e *Engine) Features() block.LogFeatures { return e.log.LogFeatures() }

func partName(id int32) string { return strconv.Itoa(int(id)) }
