package h1

import (
	"context"
	"net"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

type key struct{}

func TestExchangeContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := context.WithoutCancel(context.WithValue(t.Context(), key{}, "v"))
		c := &exchangeContext{base: base}
		if c.Value(key{}) != "v" || c.Err() != nil {
			t.Errorf("value %v, err %v", c.Value(key{}), c.Err())
		}
		before := runtime.NumGoroutine()
		child, cancel := context.WithTimeout(context.WithValue(c, key{}, "w"), time.Hour)
		defer cancel()
		stop := context.AfterFunc(child, func() {})
		if n := runtime.NumGoroutine(); n != before || !stop() {
			t.Errorf("children cost %d goroutines", n-before)
		}
		var mu sync.Mutex
		var ran []int
		var all []*watcher
		for i := range 4 {
			all = append(all, c.watch(func() {
				mu.Lock()
				defer mu.Unlock()
				ran = append(ran, i)
			}))
		}
		if !all[1].stop() || all[1].stop() || !all[3].stop() {
			t.Error("stop before the end")
		}
		c.end()
		c.end()
		synctest.Wait()
		if len(ran) != 2 || ran[0]+ran[1] != 2 || all[0].stop() {
			t.Errorf("ran %v", ran)
		}
		<-c.Done()
		if c.Err() != context.Canceled || child.Err() != context.Canceled || context.Cause(c) != context.Canceled || c.Value(key{}) != "v" {
			t.Errorf("err %v, child %v, cause %v", c.Err(), child.Err(), context.Cause(c))
		}
		late := make(chan struct{})
		if c.watch(func() { close(late) }).stop() {
			t.Error("stop after the end")
		}
		<-late
		ended := &exchangeContext{base: base}
		ended.end()
		<-ended.Done()
	})
}

// TestSweeperSleeps: the timer runs while something is in flight and at no other time.
func TestSweeperSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Server{}
		s.prepare()
		near, far := net.Pipe()
		defer near.Close()
		c := newConn(t.Context(), s, far)
		s.conns[c] = struct{}{}
		pace := func(want int32, when string) {
			t.Helper()
			if got := s.sweep.pace.Load(); got != want {
				t.Errorf("%s: pace %d, want %d", when, got, want)
			}
		}
		pace(sweepOff, "at first")
		for range 3 {
			c.began.Store(time.Now().UnixNano())
			s.sweep.begin()
			pace(sweepAlert, "in flight")
			time.Sleep(time.Second)
			pace(sweepAlert, "in flight for a second")
			time.Sleep(sweepOld)
			pace(sweepAtEase, "in flight for long")
			s.sweep.begin()
			pace(sweepAlert, "with a new one")
			s.sweep.end()
			c.began.Store(0)
			s.sweep.end()
			time.Sleep(2 * sweepSlow)
			pace(sweepOff, "afterwards")
		}
	})
}
