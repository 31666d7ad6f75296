package link

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// liveness watches a session while streams are open and measures its round trip. Guarded by
// Session.mu.
//
// One timer exists, and only from the first stream until it next fires without any: an idle
// session has no periodic wake-up. A peer that vanished while the session was idle is found
// at the next stream, which is then accompanied by a ping.
type liveness struct {
	timer  *time.Timer
	armed  bool
	due    time.Time // when the timer should fire
	seen   uint64    // frames received when it last fired
	asked  time.Time // since when a sign of life is awaited; zero if it is not
	token  uint64    // of the last ping
	pings  map[uint64]*ping
	sample time.Time // when the round trip was last measured
}

// ping is one not yet answered.
type ping struct {
	sent time.Time
	done chan time.Duration // nil if nobody waits
}

func (l *liveness) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

func (l *liveness) abandon() { l.pings = nil }

// watch makes sure that somebody looks after the peer while a stream is open. Locked; called
// whenever a stream begins, with whether we opened it.
func (s *Session) watch(ours bool) {
	l := &s.alive
	if l.armed {
		return
	}
	l.armed = true
	l.seen = s.count.framesIn
	l.asked = time.Time{}
	now := time.Now()
	wait := s.cfg.PingInterval
	if ours && !l.due.IsZero() { // it was idle: the way to the peer may be gone
		s.sendPing(now, nil)
		l.asked, wait = now, s.cfg.PingTimeout
	}
	s.schedule(now, wait)
}

func (s *Session) schedule(now time.Time, wait time.Duration) {
	l := &s.alive
	l.due = now.Add(wait)
	if l.timer == nil {
		l.timer = time.AfterFunc(wait, s.lookAfter)
		return
	}
	l.timer.Reset(wait)
}

// lookAfter runs when the timer fires.
func (s *Session) lookAfter() {
	now := time.Now()
	s.mu.Lock()
	l := &s.alive
	if s.cause != nil {
		s.mu.Unlock()
		return
	}
	lost := false
	switch {
	case len(s.streams) == 0:
		l.armed = false
		if len(s.out.pending) == 0 {
			s.out.pending = nil // an idle session keeps no large buffers
		}
		s.out.spare = nil
	case s.count.framesIn != l.seen:
		l.seen = s.count.framesIn
		l.asked = time.Time{}
		s.schedule(now, s.cfg.PingInterval)
	case l.asked.IsZero():
		s.sendPing(now, nil)
		l.asked = now
		s.schedule(now, s.cfg.PingTimeout)
	case now.Sub(l.due) > s.cfg.PingTimeout/2:
		// The timer is late by far: we were stopped, not the peer. It gets its time again.
		l.asked = now
		s.schedule(now, s.cfg.PingTimeout)
	default:
		lost = true
	}
	flush := s.claimFlush()
	s.mu.Unlock()
	if lost {
		s.end(fault.New(opSession, fault.Unavailable, "no sign of life for %s after a ping; the peer hangs or the network is gone", s.cfg.PingTimeout))
		return
	}
	s.flushIf(flush)
}

// maxPings bounds unanswered pings; more are not sent.
const maxPings = 16

// sendPing adds a PING. Locked.
func (s *Session) sendPing(now time.Time, done chan time.Duration) {
	l := &s.alive
	if len(l.pings) >= maxPings && done == nil {
		return
	}
	l.token++
	if l.pings == nil {
		l.pings = make(map[uint64]*ping)
	}
	l.pings[l.token] = &ping{sent: now, done: done}
	l.sample = now
	s.out.pending = appendPing(s.out.pending, kindPing, l.token)
	s.count.framesOut++
}

// sample measures the round trip if that was not done lately. Called when bulk flows, because
// only stream windows need to know. Locked.
func (s *Session) sample(now time.Time) {
	const often = time.Second
	if now.Sub(s.alive.sample) > often {
		s.sendPing(now, nil)
	}
}

// ponged notes a PONG. Locked. Tokens nobody waits for are ignored.
func (s *Session) ponged(token uint64) {
	p := s.alive.pings[token]
	if p == nil {
		return
	}
	delete(s.alive.pings, token)
	took := time.Since(p.sent)
	smooth := took
	if old := time.Duration(s.rtt.Load()); old > 0 && took > old {
		smooth = old + (took-old)/8 // a sample above is mostly queueing; one below is the truth
	}
	s.rtt.Store(int64(smooth))
	if p.done != nil {
		p.done <- took
	}
}

// Ping asks the peer for a sign of life and returns how long it took.
func (s *Session) Ping(ctx context.Context) (time.Duration, error) {
	done := make(chan time.Duration, 1)
	s.mu.Lock()
	if s.cause != nil {
		defer s.mu.Unlock()
		return 0, s.lost(fault.SentNever)
	}
	s.sendPing(time.Now(), done)
	token := s.alive.token
	flush := s.claimFlush()
	s.mu.Unlock()
	s.flushIf(flush)
	select {
	case took := <-done:
		return took, nil
	case <-s.done:
		return 0, s.Err()
	case <-ctx.Done():
		s.mu.Lock()
		delete(s.alive.pings, token)
		s.mu.Unlock()
		return 0, fault.Wrap("link.ping", fault.Deadline, ctx.Err())
	}
}
