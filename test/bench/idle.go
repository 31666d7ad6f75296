package main

import (
	"fmt"
	"os"
	"slices"
	"time"
)

// idleFigures are what a sidecar costs that does nothing.
type idleFigures struct {
	Anonymous int64   `json:"anonymous_bytes"`
	PSS       int64   `json:"pss_bytes"`
	CPU       float64 `json:"cpu_ms_per_s"`
	Wakeups   float64 `json:"wakeups_per_s"`
	Binary    int64   `json:"binary_bytes"`
}

// startFigures are about the time from exec to healthy.
type startFigures struct {
	Healthy []time.Duration `json:"healthy_ns"` // of every start, sorted
	CPU     []time.Duration `json:"cpu_ns"`     // used by the sidecar until then, sorted
}

// lone is a sidecar without an app and without components.
var lone = sidecarSpec{name: "lone"}

// measureIdle looks at a lone sidecar: its memory after it has settled, then its processor
// time over a longer while. Its health is asked only until it is ready.
func measureIdle(f *fleet) (*idleFigures, error) {
	settle, watch := 5*time.Second, 20*time.Second
	if f.o.quick {
		settle, watch = time.Second, 2*time.Second
	}
	s, err := f.launch(lone)
	if err != nil {
		return nil, err
	}
	defer s.end()
	if err := s.await(f.ctx, "/v1.0/healthz"); err != nil {
		return nil, err
	}
	sleep(f.ctx, settle)
	var g idleFigures
	if g.Anonymous, g.PSS, err = memory(s.pid()); err != nil {
		return nil, err
	}
	began, cpu, woken, err := idleClocks(s.pid())
	if err != nil {
		return nil, err
	}
	sleep(f.ctx, watch)
	ended, cpu2, woken2, err := idleClocks(s.pid())
	if err != nil {
		return nil, err
	}
	seconds := ended.Sub(began).Seconds()
	g.CPU = float64(cpu2-cpu) / float64(time.Millisecond) / seconds
	g.Wakeups = float64(woken2-woken) / seconds
	info, err := os.Stat(f.o.mecha)
	if err != nil {
		return nil, err
	}
	g.Binary = info.Size()
	return &g, f.ctx.Err()
}

func idleClocks(pid int) (at time.Time, cpu time.Duration, woken int64, err error) {
	if cpu, err = cpuTime(pid); err != nil {
		return
	}
	woken, err = wakeups(pid)
	return time.Now(), cpu, woken, err
}

// measureStart starts and ends sidecars one after another, and takes the time until they can
// serve. The binary is in the page cache after the first, which does not count.
func measureStart(f *fleet) (*startFigures, error) {
	g := &startFigures{}
	for i := range f.o.starts + 1 {
		s, err := f.launch(lone)
		if err != nil {
			return nil, err
		}
		if err := s.await(f.ctx, "/v1.0/healthz/outbound"); err != nil {
			return nil, fmt.Errorf("start %d: %w", i, err)
		}
		took := time.Since(s.began)
		cpu, err := cpuTime(s.pid())
		if err != nil {
			return nil, err
		}
		s.end()
		if i > 0 {
			g.Healthy, g.CPU = append(g.Healthy, took), append(g.CPU, cpu)
		}
	}
	slices.Sort(g.Healthy)
	slices.Sort(g.CPU)
	return g, nil
}
