package pubsub

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// TestLanesWakeOneWorkerPerMessage: two messages that come before the only idle worker has got
// up must not end in one pair of hands, or the second waits for as long as the first takes.
func TestLanesWakeOneWorkerPerMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		busy, release := make(chan string, 8), make(chan struct{})
		l := newLanes(8, func(j *job) time.Duration {
			if j.Position != "first" {
				busy <- j.Position
				<-release
			}
			return 0
		})
		defer l.stop()
		defer close(release)
		l.add(block.Delivery{Position: "first"})
		synctest.Wait() // its worker idles now
		l.mu.Lock()     // nobody gets up between the two
		for _, position := range []string{"second", "third"} {
			j := &job{received: received{Delivery: block.Delivery{Position: position}}}
			j.own.head, j.own.tail, j.own.size = j, j, 1
			l.push(&j.own)
		}
		l.mu.Unlock()
		synctest.Wait()
		if len(busy) != 2 {
			t.Errorf("%d of 2 messages are being worked on, with room for 8", len(busy))
		}
	})
}
