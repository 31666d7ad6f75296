package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// partition names a partition.
type partition struct {
	topic string
	id    int32
}

// lane gives the records of one partition to the app, one at a time and in their order. One that
// the app does not handle is given to it again and again; what is behind waits.
type lane struct {
	m      *member
	at     partition
	ctx    context.Context // of deliveries; ends with the reader's, and when the partition is somebody else's
	cut    context.CancelFunc
	stop   chan struct{} // closed when no further record is to begin
	done   chan struct{} // closed when no record is at the app any more
	before *lane         // of the same partition, which may still have one there; nil: none

	// Guarded by m.mu:
	queue   []*kgo.Record
	bytes   int
	paused  bool // the client does not fetch the partition
	mark    int  // when paused: it does again when the queue is as short
	stopped bool // stop is closed
	lost    bool // what is handled from now on is not to be committed
	news    chan struct{}
}

// laneBytes bounds what waits in a lane, beyond one fetch.
const laneBytes = 4 << 20

func (l *lane) run() {
	defer close(l.done)
	if l.before != nil {
		<-l.before.done
		l.before = nil
	}
	for {
		r := l.next()
		if r == nil || !l.see(r) {
			return
		}
		l.m.handled(l, r)
	}
}

// next waits for a record; nil when the lane is to stop.
func (l *lane) next() *kgo.Record {
	for {
		l.m.mu.Lock()
		if l.stopped || l.ctx.Err() != nil {
			l.m.mu.Unlock()
			return nil
		}
		if len(l.queue) > 0 {
			r := l.queue[0]
			l.queue[0] = nil
			l.queue, l.bytes = l.queue[1:], l.bytes-size(r)
			l.m.throttle(l)
			l.m.mu.Unlock()
			return r
		}
		l.m.mu.Unlock()
		select {
		case <-l.news:
		case <-l.stop:
		case <-l.ctx.Done():
		}
	}
}

func size(r *kgo.Record) int { return len(r.Key) + len(r.Value) }

// see gives a record to the app until it is handled; false when the lane stops before.
func (l *lane) see(r *kgo.Record) bool {
	for attempt := 1; ; attempt++ {
		if attempt > 1 {
			t := time.NewTimer(l.m.retry.pause(attempt))
			select {
			case <-t.C:
			case <-l.stop:
				t.Stop()
				return false
			case <-l.ctx.Done():
				t.Stop()
				return false
			}
		}
		err := l.m.deliver(l.ctx, r)
		if err == nil {
			return true
		}
		select {
		case <-l.stop:
			return false
		case <-l.ctx.Done():
			return false
		default:
		}
	}
}
