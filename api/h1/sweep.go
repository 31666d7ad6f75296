package h1

import (
	"sync"
	"sync/atomic"
	"time"
)

// The sweeper notices callers that vanish while their exchange is being handled, by looking
// at the connections of exchanges that have lasted a while. One timer serves the whole
// server; it is armed when an exchange begins and lets itself run out when none is left, so
// an idle server has no wake-ups and a short exchange costs two atomic writes.
const (
	sweepAge   = 40 * time.Millisecond // younger exchanges are not looked at
	sweepFast  = 50 * time.Millisecond
	sweepSlow  = 500 * time.Millisecond // when every exchange is older than sweepOld
	sweepOld   = 10 * time.Second
	sweepPrice = 30 * time.Microsecond // of pause per look: bounds the sweeper to about 1 % of a core
)

// Pace of the sweeper's timer.
const (
	sweepOff int32 = iota
	sweepAtEase
	sweepAlert
)

type sweeper struct {
	inflight atomic.Int64
	pace     atomic.Int32
	timer    *time.Timer // made before the first exchange

	mu   sync.Mutex // one sweep at a time: a slow one may meet its timer again
	list []*conn    // guarded by mu
}

// begin counts an exchange in and makes sure the timer runs fast.
func (w *sweeper) begin() {
	w.inflight.Add(1)
	w.alert()
}

func (w *sweeper) alert() {
	if w.pace.Load() != sweepAlert && w.pace.Swap(sweepAlert) != sweepAlert {
		w.timer.Reset(sweepFast)
	}
}

func (w *sweeper) end() { w.inflight.Add(-1) }

// run is one sweep, called by the timer.
func (w *sweeper) run(s *Server) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now().UnixNano()
	youngest := int64(sweepOld)
	w.list = w.list[:0]
	s.mu.Lock()
	for c := range s.conns {
		began := c.began.Load()
		if began == 0 {
			continue
		}
		age := now - began
		youngest = min(youngest, age)
		if age >= int64(sweepAge) {
			w.list = append(w.list, c)
		}
	}
	s.mu.Unlock()
	for _, c := range w.list {
		c.look()
	}
	pause := max(sweepFast, time.Duration(len(w.list))*sweepPrice)
	clear(w.list)
	w.again(pause, youngest >= int64(sweepOld))
}

// again arms the timer for the next sweep, or leaves it off when nothing is in flight.
func (w *sweeper) again(pause time.Duration, allOld bool) {
	switch {
	case w.inflight.Load() == 0:
		w.pace.Store(sweepOff)
		if w.inflight.Load() > 0 { // began between the two lines and found the timer armed
			w.alert()
		}
	case allOld:
		w.pace.Store(sweepAtEase)
		w.timer.Reset(max(sweepSlow, pause))
	default:
		w.pace.Store(sweepAlert)
		w.timer.Reset(pause)
	}
}
