package nats

import (
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// RecheckEvery changes how often a follower looks whether its bucket is still there.
func (c *Configuration) RecheckEvery(d time.Duration) { c.recheck = d }

// RememberFor changes how long a store's watches believe that removed keys leave markers.
func RememberFor(s block.State, d time.Duration) { s.(*state).memory = d }

// ParkAfter changes after what time the log's readers park.
func ParkAfter(l block.Log, d time.Duration) { l.(*pubsub).log.idle = d }

// Parked is how many readers of the log are parked.
func Parked(l block.Log) (n int) {
	s := l.(*pubsub).log
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lot := range s.lots {
		lot.mu.Lock()
		n += len(lot.here)
		lot.mu.Unlock()
	}
	return n
}

// WakeAll wakes the parked readers of the log.
func WakeAll(l block.Log) {
	s := l.(*pubsub).log
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, lot := range s.lots {
		lot.wake(func(*parkSpot) bool { return true })
	}
}

// LoseOne takes a message away from a reader that it has fetched ahead.
func LoseOne(t testing.TB, r block.LogReader) {
	t.Helper()
	select {
	case <-r.(*logReader).pull.in:
	case <-time.After(10 * time.Second):
		t.Fatal("no message came ahead")
	}
}
