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

// LoseOne takes a message away from a reader that it has fetched ahead.
func LoseOne(t testing.TB, r block.LogReader) {
	t.Helper()
	select {
	case <-r.(*logReader).pull.in:
	case <-time.After(10 * time.Second):
		t.Fatal("no message came ahead")
	}
}
