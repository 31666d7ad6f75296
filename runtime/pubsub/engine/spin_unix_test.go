//go:build unix

package engine_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// TestFullAppDoesNotSpin: repetitions that are due while the app takes no more cost nothing.
func TestFullAppDoesNotSpin(t *testing.T) {
	b := newBroker(t, 1)
	e := b.engine()
	publish(t, e, "t", 10, 0, 10)
	o := engine.ConsumeOptions{Topics: []string{"t"}, Retry: forever(), Limits: engine.Limits{Concurrency: 2}}
	a := consume(t, e, o, func(a *app, d engine.Deliver) {
		for _, m := range d.Messages {
			if string(m.Data) == "0" && m.Attempt == 1 {
				_ = a.c.Nack(engine.Refusal{Part: d.Part, Epoch: d.Epoch, Position: m.Position, Delay: time.Millisecond})
			}
		}
	})
	a.wait("three messages", func() bool { return len(a.got) == 3 })
	before := cpuTime(t)
	time.Sleep(300 * time.Millisecond)
	if used := cpuTime(t) - before; used > 100*time.Millisecond {
		t.Errorf("an app that is full cost %v of CPU in 300ms", used)
	}
}

func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
