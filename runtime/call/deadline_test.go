package call_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
)

// watched is a context that can be watched and has no channel, as that of an HTTP exchange has
// none until somebody asks for it.
type watched struct {
	context.Context
	t   *testing.T
	mu  sync.Mutex
	f   func() // who watches
	err error
}

func (w *watched) Done() <-chan struct{} {
	w.t.Error("the parent was asked for a channel")
	return nil
}

func (w *watched) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *watched) AfterFunc(f func()) (stop func() bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.f = f
	return func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		was := w.f != nil
		w.f = nil
		return was
	}
}

func (w *watched) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = context.Canceled
	if w.f != nil {
		go w.f()
	}
}

// An attempt with a time limit ends with the call's context, and by itself; it watches the
// call's context without a channel of its own where that is possible, and no longer than it
// lasts.
func TestAttemptsEndWithTheirCall(t *testing.T) {
	for _, tt := range []struct {
		name  string
		act   func(*watched)
		want  error
		after time.Duration
	}{
		{"the call ends", func(w *watched) { time.Sleep(time.Second); w.end() }, context.Canceled, time.Second},
		{"the limit ends", func(*watched) {}, context.DeadlineExceeded, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				parent := &watched{Context: context.Background(), t: t}
				target := &call.Target{Name: "x"}
				target.SetChain(&call.Chain{Total: time.Minute})
				c, err := call.Begin(parent, target, call.Desc{})
				if err != nil || !c.Next() {
					t.Fatal("no attempt:", err)
				}
				start := time.Now()
				ctx := c.Context()
				go tt.act(parent)
				<-ctx.Done()
				if took := time.Since(start); ctx.Err() != tt.want || took != tt.after {
					t.Errorf("%v after %v, want %v after %v", ctx.Err(), took, tt.want, tt.after)
				}
				c.Done(ctx.Err())
				_ = c.End(c.Err)
				synctest.Wait()
				parent.mu.Lock()
				defer parent.mu.Unlock()
				if parent.f != nil && parent.err == nil {
					t.Error("the call is over and still watches its context")
				}
			})
		})
	}
}
