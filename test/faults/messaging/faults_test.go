//go:build unix

package messaging

import (
	"context"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

// between is a random time.
func (s *stage) between(from, to time.Duration) time.Duration {
	return from + time.Duration(s.dice.Int64N(int64(to-from)+1))
}

// any is a random consumer that suffers nothing else until its busy is unlocked.
func (s *stage) any() *taker {
	k := s.takers[s.dice.IntN(len(s.takers))]
	k.busy.Lock()
	return k
}

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
	defer k.busy.Unlock()
	victim, from := k.app.name, history.Now()
	k.app.kill()
	time.Sleep(s.between(100*time.Millisecond, 600*time.Millisecond))
	k.startApp()
	s.broke("app killed", from, history.Event{}, victim)
}

// sidecarKilled kills a sidecar; its app stays, and sees it come back.
func sidecarKilled(s *stage) {
	k := s.any()
	defer k.busy.Unlock()
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
	defer k.busy.Unlock()
	victim, from := k.app.name, history.Now()
	k.side.Kill()
	k.app.kill()
	time.Sleep(s.between(100*time.Millisecond, 2*sessionTTL))
	k.startSide(k.side.Ports())
	k.startApp()
	k.side.WaitHealthy()
	s.broke("app and sidecar killed", from, history.Event{Crash: true}, victim)
}

// hostLost kills an app and its sidecar, and they stay away for longer than the session lives.
func hostLost(s *stage) {
	k := s.any()
	defer k.busy.Unlock()
	victim, from := k.app.name, history.Now()
	k.side.Kill()
	k.app.kill()
	time.Sleep(3 * sessionTTL)
	k.startSide(k.side.Ports())
	k.startApp()
	k.side.WaitHealthy()
	s.broke("host lost", from, history.Event{Crash: true}, victim)
}

// stopTime is half to three times the session's life.
func (s *stage) stopTime() time.Duration { return s.between(sessionTTL/2, 3*sessionTTL) }

// takenOver is how long a member must be gone for its partitions to be taken over for sure.
const takenOver = sessionTTL + 500*time.Millisecond

// sidecarStopped halts a sidecar for a while: it knows nothing of the time it missed.
func sidecarStopped(s *stage) {
	k, lasts := s.any(), s.stopTime()
	defer k.busy.Unlock()
	from := history.Now()
	k.side.Signal(syscall.SIGSTOP)
	time.Sleep(lasts)
	k.side.Signal(syscall.SIGCONT)
	s.broke("sidecar stopped", from, history.Event{Crash: lasts > takenOver}, k.app.name)
}

// sidecarOutlived halts a sidecar until another has its partitions for sure.
func sidecarOutlived(s *stage) {
	k := s.any()
	defer k.busy.Unlock()
	from := history.Now()
	k.side.Signal(syscall.SIGSTOP)
	time.Sleep(s.between(2*sessionTTL, 3*sessionTTL))
	k.side.Signal(syscall.SIGCONT)
	s.broke("sidecar stopped", from, history.Event{Crash: true}, k.app.name)
}

// appStopped halts an app.
func appStopped(s *stage) {
	k, lasts := s.any(), s.stopTime()
	defer k.busy.Unlock()
	from := history.Now()
	k.app.signal(syscall.SIGSTOP)
	time.Sleep(lasts)
	k.app.signal(syscall.SIGCONT)
	s.broke("app stopped", from, history.Event{}, k.app.name)
}

// restarted has a consumer leave in order, and come back.
func restarted(s *stage) {
	k := s.any()
	defer k.busy.Unlock()
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
	k := s.add(s.sc.roles()[0], "taker", false)
	k.side.WaitHealthy()
	s.broke("join", from, history.Event{Join: true}, k.app.name)
	time.Sleep(1600 * time.Millisecond)
}

// linkCut breaks the connections between a sidecar and the broker; they can be made again.
func linkCut(s *stage) {
	k := s.any()
	defer k.busy.Unlock()
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
	defer k.busy.Unlock()
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

// brokerHalted halts the embedded node for so long that every member has to think itself dead.
func brokerHalted(s *stage) {
	pid, lasts := s.broker.pid(), s.stopTime()
	if pid == 0 {
		return
	}
	from := history.Now()
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	time.Sleep(lasts)
	_ = syscall.Kill(pid, syscall.SIGCONT)
	s.broke("broker halted", from, history.Event{})
}

// together makes two faults happen at the same time. Each has dice of its own, so that the seed still
// says what happens.
func together(f, g fault) fault {
	return func(s *stage) {
		var both sync.WaitGroup
		for _, h := range []fault{f, g} {
			x := *s
			x.dice = rand.New(rand.NewPCG(s.dice.Uint64(), 3))
			both.Go(func() { h(&x) })
			time.Sleep(s.between(0, sessionTTL))
		}
		both.Wait()
	}
}

// publisherCut kills the sidecar of a publisher while it publishes.
func publisherCut(s *stage) {
	p := s.pubs[s.dice.IntN(len(s.pubs))]
	p.side.Kill()
	time.Sleep(s.between(50*time.Millisecond, 300*time.Millisecond))
	p.restart(s)
}

// resized gives the topic more partitions, then fewer.
func resized(s *stage) {
	for _, n := range []uint32{12, 5} {
		s.resize(n)
		time.Sleep(s.between(2500*time.Millisecond, 3*time.Second)) // publishers go over after two seconds
	}
}

// resizedUnnoticed resizes while the sidecar of a publisher is halted in the middle of its work.
func resizedUnnoticed(s *stage) {
	p := s.pubs[1] // the other one takes the order
	from := history.Now()
	p.side.Signal(syscall.SIGSTOP)
	s.resize(11)
	time.Sleep(s.between(2500*time.Millisecond, 3500*time.Millisecond))
	p.side.Signal(syscall.SIGCONT)
	s.broke("publisher's sidecar stopped", from, history.Event{}, p.app.name)
	time.Sleep(time.Second)
}

func (s *stage) resize(n uint32) {
	s.note(history.Event{Kind: history.Resized, Topic: "orders", N: int(n)})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := s.admin().ResizeTopic(ctx, &mechav1.ResizeTopicRequest{PubsubName: "pubsub", Topic: "orders", Partitions: n}); err != nil {
		s.t.Errorf("resizing to %d: %v", n, err)
	}
}

// rewound moves the group that replays to the beginning.
func rewound(s *stage) {
	s.note(history.Event{Kind: history.Seek, Group: "replay", Topic: "orders"})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err := s.admin().ResetGroup(ctx, &mechav1.ResetGroupRequest{PubsubName: "pubsub", Group: "replay", Topic: "orders", To: &mechav1.Place{Place: &mechav1.Place_Earliest{Earliest: true}}})
	if err != nil {
		s.t.Errorf("rewinding: %v", err)
	}
	time.Sleep(s.between(300*time.Millisecond, 800*time.Millisecond))
}

// unpark lets all keys go on that are set aside.
func (s *stage) unpark() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	list, err := s.admin().ListParked(ctx, &mechav1.ListParkedRequest{PubsubName: "pubsub", Group: "taker", Topic: "orders"})
	if err != nil {
		s.t.Errorf("listing what is parked: %v", err)
		return
	}
	for _, k := range list.Keys {
		s.note(history.Event{Kind: history.Unparked, Group: "taker", Topic: "orders", Key: k.Key})
		_, err := s.admin().Unpark(ctx, &mechav1.UnparkRequest{PubsubName: "pubsub", Group: "taker", Topic: "orders", Partition: k.Partition, Key: k.Key})
		if err != nil && status.Code(err) != codes.NotFound {
			s.t.Errorf("unparking %s: %v", k.Key, err)
		}
	}
}

// unparked lets keys go on again and again for a while.
func unparked(s *stage) {
	for range 8 {
		s.unpark()
		time.Sleep(s.between(100*time.Millisecond, 400*time.Millisecond))
	}
}

// admin is a connection to the first publisher's sidecar.
func (s *stage) admin() mechav1.MessagingClient {
	if s.conn == nil {
		conn, err := grpc.NewClient(s.pubs[0].side.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { conn.Close() })
		s.conn = conn
	}
	return mechav1.NewMessagingClient(s.conn)
}

// calm is a while without faults.
func calm(s *stage) { time.Sleep(s.between(2500*time.Millisecond, 3000*time.Millisecond)) }
