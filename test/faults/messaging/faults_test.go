//go:build unix

package messaging

import (
	"syscall"
	"time"

	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

// between is a random time.
func (s *stage) between(from, to time.Duration) time.Duration {
	return from + time.Duration(s.dice.Int64N(int64(to-from)+1))
}

// any is a random consumer.
func (s *stage) any() *taker { return s.takers[s.dice.IntN(len(s.takers))] }

// broke notes a fault that began at a time and is over now. victims are the apps it hit.
func (s *stage) broke(what string, from time.Duration, e history.Event, victims ...string) {
	e.Kind, e.What, e.T, e.Until, e.Victims, e.Part = history.Fault, what, from, history.Now(), victims, history.NoPart
	s.note(e)
}

// fault is something that breaks, and heals before it returns.
type fault func(s *stage)

// appKilled kills an app; its sidecar stays.
func appKilled(s *stage) {
	k := s.any()
	victim, from := k.app.name, history.Now()
	k.app.kill()
	time.Sleep(s.between(100*time.Millisecond, 600*time.Millisecond))
	k.startApp()
	s.broke("app killed", from, history.Event{}, victim)
}

// sidecarKilled kills a sidecar; its app stays, and sees it come back.
func sidecarKilled(s *stage) {
	k := s.any()
	from := history.Now()
	k.side.Kill()
	time.Sleep(s.between(100*time.Millisecond, 2*sessionTTL))
	k.startSide(k.side.Ports())
	k.side.WaitHealthy()
	s.broke("sidecar killed", from, history.Event{Crash: true}, k.app.name)
}

// bothKilled kills an app and its sidecar at once: a host that fails.
func bothKilled(s *stage) {
	k := s.any()
	victim, from := k.app.name, history.Now()
	k.side.Kill()
	k.app.kill()
	time.Sleep(s.between(100*time.Millisecond, 2*sessionTTL))
	k.startSide(k.side.Ports())
	k.startApp()
	k.side.WaitHealthy()
	s.broke("app and sidecar killed", from, history.Event{Crash: true}, victim)
}

// stopTime is half to three times the session's life.
func (s *stage) stopTime() time.Duration { return s.between(sessionTTL/2, 3*sessionTTL) }

// takenOver is how long a member must be gone for its partitions to be taken over for sure.
const takenOver = sessionTTL + 500*time.Millisecond

// sidecarStopped halts a sidecar for a while: it knows nothing of the time it missed.
func sidecarStopped(s *stage) {
	k, lasts := s.any(), s.stopTime()
	from := history.Now()
	k.side.Signal(syscall.SIGSTOP)
	time.Sleep(lasts)
	k.side.Signal(syscall.SIGCONT)
	s.broke("sidecar stopped", from, history.Event{Crash: lasts > takenOver}, k.app.name)
}

// appStopped halts an app.
func appStopped(s *stage) {
	k, lasts := s.any(), s.stopTime()
	from := history.Now()
	k.app.signal(syscall.SIGSTOP)
	time.Sleep(lasts)
	k.app.signal(syscall.SIGCONT)
	s.broke("app stopped", from, history.Event{}, k.app.name)
}

// restarted has a consumer leave in order, and come back.
func restarted(s *stage) {
	k := s.any()
	victim, from := k.app.name, history.Now()
	k.app.end(s.t, 10*time.Second)
	k.side.Signal(syscall.SIGTERM)
	k.side.Wait(20 * time.Second)
	s.broke("leave", from, history.Event{Graceful: true}, victim)
	time.Sleep(s.between(800*time.Millisecond, 1500*time.Millisecond))
	from = history.Now()
	k.startSide(k.side.Ports())
	k.startApp()
	k.side.WaitHealthy()
	s.broke("join", from, history.Event{Join: true}, k.app.name)
	time.Sleep(s.between(1500*time.Millisecond, 1800*time.Millisecond))
}

// rolling restarts every consumer, one after the other, as a deployment does.
func rolling(s *stage) {
	for _, k := range s.takers {
		victim, from := k.app.name, history.Now()
		k.app.end(s.t, 10*time.Second)
		k.side.Signal(syscall.SIGTERM)
		k.side.Wait(20 * time.Second)
		k.startSide(k.side.Ports())
		k.startApp()
		k.side.WaitHealthy()
		s.broke("rolling restart", from, history.Event{Graceful: true, Join: true}, victim)
	}
}

// joined brings in one more consumer.
func joined(s *stage) {
	from := history.Now()
	k := s.add("stream", false)
	k.side.WaitHealthy()
	s.broke("join", from, history.Event{Join: true}, k.app.name)
	time.Sleep(1600 * time.Millisecond)
}

// linkCut breaks the connections between a sidecar and the broker; they can be made again.
func linkCut(s *stage) {
	k := s.any()
	if k.gate == nil {
		return
	}
	from := history.Now()
	k.gate.Cut()
	s.broke("connection cut", from, history.Event{}, k.app.name)
}

// halfOpen silences the connections between a sidecar and the broker: nothing passes, and nobody
// says so. Then what was held passes, late, or the connections break.
func halfOpen(s *stage) {
	k, lasts := s.any(), s.stopTime()
	if k.gate == nil {
		return
	}
	from := history.Now()
	k.gate.Hold()
	time.Sleep(lasts)
	if s.dice.IntN(2) == 0 {
		k.gate.Cut()
	}
	k.gate.Release()
	s.broke("connection half-open", from, history.Event{Crash: lasts > takenOver}, k.app.name)
}

// brokerKilled kills the embedded node. A sidecar starts it again.
func brokerKilled(s *stage) {
	pid := s.broker.pid()
	if pid == 0 {
		return
	}
	from := history.Now()
	_ = syscall.Kill(pid, syscall.SIGKILL)
	s.awaitPublished(15 * time.Second)
	s.broke("broker killed", from, history.Event{})
}

// brokerSlow makes the embedded node stutter as a slow disk makes it: it answers nothing for up to
// 400 ms, again and again.
func brokerSlow(s *stage) {
	pid := s.broker.pid()
	if pid == 0 {
		return
	}
	from := history.Now()
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		time.Sleep(s.between(50*time.Millisecond, 400*time.Millisecond))
		_ = syscall.Kill(pid, syscall.SIGCONT)
		time.Sleep(s.between(20*time.Millisecond, 100*time.Millisecond))
	}
	s.broke("broker slow", from, history.Event{})
}

// publisherCut kills the sidecar of a publisher while it publishes.
func publisherCut(s *stage) {
	p := s.pubs[s.dice.IntN(len(s.pubs))]
	p.side.Kill()
	time.Sleep(s.between(50*time.Millisecond, 300*time.Millisecond))
	p.restart(s)
}

// calm is a while without faults.
func calm(s *stage) { time.Sleep(s.between(2500*time.Millisecond, 3000*time.Millisecond)) }
