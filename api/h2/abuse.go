package h2

import "time"

// abuse counts what a peer may do now and then, and not all the time. Guarded by conn.mu,
// trifles excepted, which only the reader counts.
type abuse struct {
	resets    int // streams reset soon or by a fault of the peer, less those that completed
	strikes   int // pings that came too soon
	pinged    time.Time
	trifles   int
	since     time.Time // trifles are counted from here
	recent    [256]uint32
	recentPos int
}

const (
	rapidReset = 20 * time.Millisecond // a stream reset within was hardly meant; few deadlines are as short
	maxResets  = 200
	maxStrikes = 2
	maxTrifles = 2000 // in trifleTime
	trifleTime = time.Second
)

// reset counts a reset; true means it is enough.
func (a *abuse) reset() bool {
	a.resets++
	return a.resets > maxResets
}

// completed counts a stream that ran to its end.
func (a *abuse) completed() {
	if a.resets > 0 {
		a.resets--
	}
}

// ping counts a peer's ping; true means they come too often. Pings in answer to something we
// sent are not counted: peers measure the round trip with them.
func (a *abuse) ping(now time.Time, atLeast time.Duration) bool {
	if atLeast <= 0 {
		return false
	}
	soon := now.Sub(a.pinged) < atLeast
	a.pinged = now
	if !soon {
		return false
	}
	a.strikes++
	return a.strikes > maxStrikes
}

// answered notes that we sent a header or body.
func (a *abuse) answered() { a.strikes, a.pinged = 0, time.Time{} }

// trifle counts a frame without use; true means there are too many.
func (a *abuse) trifle(now time.Time) bool {
	if now.Sub(a.since) > trifleTime {
		a.since, a.trifles = now, 0
	}
	a.trifles++
	return a.trifles > maxTrifles
}

// forgot remembers a stream that we reset: frames of it may still be on their way.
func (a *abuse) forgot(id uint32) {
	a.recent[a.recentPos%len(a.recent)] = id
	a.recentPos++
}

// forgotten reports whether we reset a stream lately.
func (a *abuse) forgotten(id uint32) bool {
	for _, r := range a.recent {
		if r == id {
			return true
		}
	}
	return false
}
