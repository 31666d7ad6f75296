package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// job is one repetition of a cell, sent to the load process as a line of JSON.
type job struct {
	Kind    string `json:"kind"` // one of the kinds below
	Addr    string `json:"addr"`
	Callers int    `json:"callers"`

	// An HTTP request. In Path and Body callerMark becomes the caller's number.
	Verb   string `json:"verb,omitempty"`
	Path   string `json:"path,omitempty"`
	Header string `json:"header,omitempty"` // whole lines
	Status int    `json:"status,omitempty"` // that means success
	// A gRPC request; also there, in Body, callerMark becomes the caller's number.
	Call     string            `json:"call,omitempty"` // full method name
	Metadata map[string]string `json:"metadata,omitempty"`

	// A way of messages: the topic, and the data directory of the node.
	Topic string `json:"topic,omitempty"`
	Dir   string `json:"dir,omitempty"`

	Body  []byte `json:"body"`
	Reply int    `json:"reply"` // least length of a right answer's body

	Warm     time.Duration  `json:"warm"`
	Window   time.Duration  `json:"window"`
	Patience time.Duration  `json:"patience,omitempty"` // how long it may take beyond that; 0: patience
	Watch    map[string]int `json:"watch"`              // processes whose time is taken, by name
}

// The kinds of job.
const (
	kindHTTP    = "http"
	kindGRPC    = "grpc"
	kindDeliver = "deliver" // an HTTP publish; done when the event has also been delivered to us
	kindLoad    = "load"    // a GetOrLoad of a cache; done when the value is there, loaded by us if we are asked to
	kindRedis   = "redis"   // a command, without any sidecar
	kindStream  = "stream"  // a batch published on a stream of the native API, many of them without waiting
	kindRead    = "read"    // messages consumed and acknowledged on a stream of the native API
	kindPost    = "post"    // a message published on one stream and delivered on another
	kindDirect  = "direct"  // the same without any sidecar
)

// sample is what a job measured, the answer to it.
type sample struct {
	Error  string                   `json:"error,omitempty"`
	Done   int                      `json:"done"`   // requests that ended within the window
	Total  int                      `json:"total"`  // also those before and after it
	Window time.Duration            `json:"window"` // as it was in truth
	P50    time.Duration            `json:"p50"`
	P99    time.Duration            `json:"p99"`
	CPU    map[string]time.Duration `json:"cpu"`    // used within the window, by name
	Others time.Duration            `json:"others"` // used by everything else on the machine
}

// caller makes one request at a time.
type caller interface {
	call(ctx context.Context) error
	close()
}

// playLoad runs the jobs it reads, one after another.
func playLoad(in *json.Decoder, out *json.Encoder, m *mailbox) int {
	for {
		var j job
		if err := in.Decode(&j); err != nil {
			if errors.Is(err, io.EOF) {
				return 0
			}
			return 1
		}
		s, err := runJob(&j, m)
		if err != nil {
			s = sample{Error: err.Error()}
		}
		if err := out.Encode(s); err != nil {
			return 1
		}
	}
}

// patience is how long a job may take beyond its own time unless it says otherwise.
const patience = 5 * time.Second

// The phases of a job.
const (
	warming int32 = iota
	measuring
	finished
)

// runJob drives the callers in a closed loop: each has one request under way, always.
func runJob(j *job, m *mailbox) (sample, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	wait := cmp.Or(j.Patience, patience)
	over := time.AfterFunc(j.Warm+j.Window+wait, func() { cancel(fmt.Errorf("no answer for %v", wait)) })
	defer over.Stop()
	callers, err := newCallers(ctx, j, m)
	if err != nil {
		return sample{}, err
	}
	var phase atomic.Int32
	tallies := make([]tally, len(callers))
	failed := make(chan error, len(callers))
	var all sync.WaitGroup
	for i, c := range callers {
		all.Go(func() {
			defer c.close()
			if err := tallies[i].loop(ctx, c, &phase); err != nil {
				failed <- err
				cancel(err)
			}
		})
	}
	var s sample
	sleep(ctx, j.Warm)
	before, err := takeClocks(j.Watch)
	phase.Store(measuring)
	sleep(ctx, j.Window)
	phase.Store(finished)
	after, err2 := takeClocks(j.Watch)
	all.Wait()
	select {
	case err := <-failed: // the first says what it was about, the others follow from it
		return sample{}, err
	default:
	}
	if err := errors.Join(err, err2); err != nil {
		return sample{}, err
	}
	s.settle(before, after)
	s.count(tallies)
	if s.Done == 0 {
		return sample{}, fmt.Errorf("no request ended within %v; give a longer -duration", j.Window)
	}
	return s, nil
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// tally is what one caller saw.
type tally struct {
	took  []time.Duration // of requests that ended within the window
	done  int             // those requests, also where none is timed
	total int
	_     [32]byte // callers write these all the time: not on one cache line
}

// loop calls until the job is finished. A request counts where it ends, so that what began
// before the window stands for what ends after it.
func (t *tally) loop(ctx context.Context, c caller, phase *atomic.Int32) error {
	t.took = make([]time.Duration, 0, 1<<14)
	many, _ := c.(counted)
	for start := time.Now(); ; {
		if err := c.call(ctx); err != nil {
			return err
		}
		end := time.Now()
		n := 1
		if many != nil {
			n = many.messages()
		}
		t.total += n
		switch phase.Load() {
		case measuring:
			t.done += n
			if many == nil { // a call of several has no latency that says anything
				t.took = append(t.took, end.Sub(start))
			}
		case finished:
			return nil
		}
		start = end
	}
}

func (s *sample) count(tallies []tally) {
	var took []time.Duration
	for i := range tallies {
		took = append(took, tallies[i].took...)
		s.Total += tallies[i].total
		s.Done += tallies[i].done
	}
	slices.Sort(took)
	s.P50, s.P99 = quantile(took, 0.5), quantile(took, 0.99)
}

// quantile is the smallest value that at least the share q of the sorted values does not
// exceed; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// clocks are readings taken at one moment.
type clocks struct {
	at   time.Time
	cpu  map[string]time.Duration
	busy time.Duration
}

func takeClocks(watch map[string]int) (clocks, error) {
	c := clocks{at: time.Now(), cpu: make(map[string]time.Duration, len(watch))}
	for name, pid := range watch {
		t, err := cpuTime(pid)
		if err != nil {
			return c, fmt.Errorf("%s: %w", name, err)
		}
		c.cpu[name] = t
	}
	var err error
	c.busy, err = busyTime()
	return c, err
}

func (s *sample) settle(before, after clocks) {
	s.Window = after.at.Sub(before.at)
	s.Others = after.busy - before.busy
	s.CPU = make(map[string]time.Duration, len(after.cpu))
	for name, t := range after.cpu {
		s.CPU[name] = t - before.cpu[name]
		s.Others -= s.CPU[name]
	}
	s.Others = max(s.Others, 0) // the machine's clock is coarse
}
