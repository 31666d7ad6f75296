package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Names of the processes in the figures, beside those of the sidecars.
const (
	procLoad = "load"
	procApp  = "app"
	procNode = "node"
)

// measureCells runs every selected cell as often as asked, all mixed in random order: what
// else happens on the machine then hits all cells alike. A cell that fails is reported and not
// run again.
func measureCells(f *fleet, rep *report) error {
	rows := allRows()
	cells := selectCells(rows, f.o.rows)
	if len(cells) == 0 {
		return nil
	}
	load, err := f.role(roleLoad)
	if err != nil {
		return err
	}
	var ready []*prepared
	for _, c := range cells {
		p, err := f.prepare(c, rows, load)
		if err != nil {
			rep.cell(c).fail(err)
			continue
		}
		rep.cell(c)
		ready = append(ready, p)
	}
	random := rand.New(rand.NewPCG(f.o.seed, 0))
	for range f.o.reps {
		random.Shuffle(len(ready), func(i, k int) { ready[i], ready[k] = ready[k], ready[i] })
		for _, p := range ready {
			if err := f.ctx.Err(); err != nil {
				return err
			}
			if r := rep.cell(p.cell); r.Error == "" {
				r.add(p.measure(load, f.o.duration))
			}
		}
	}
	if f.o.profile != "" {
		if err := profileCells(f, ready, load); err != nil {
			return err
		}
	}
	return rep.weigh(f)
}

// prepared is a cell whose processes run and have answered.
type prepared struct {
	*cell
	job      *job
	sidecars []*sidecar
}

// prepare starts what a cell needs and waits until its request succeeds once.
func (f *fleet) prepare(c *cell, rows []row, load *part) (*prepared, error) {
	if c.row.prepare != "" {
		for i := range rows {
			if rows[i].name != c.row.prepare {
				continue
			}
			// With the most callers, whose keys then all exist.
			before := &cell{&rows[i], c.size, callerCounts[len(callerCounts)-1]}
			if _, err := f.prepare(before, rows, load); err != nil {
				return nil, err
			}
		}
	}
	p := &prepared{cell: c}
	for _, spec := range c.row.sidecars {
		s, err := f.sidecar(spec)
		if err != nil {
			return nil, err
		}
		p.sidecars = append(p.sidecars, s)
	}
	addr, watch := "", map[string]int{procLoad: load.pid()}
	if c.app != "" {
		find := f.role
		if c.app == roleRedis {
			find = func(string) (*part, error) { return f.redisServer() }
		}
		app, err := find(c.app)
		if err != nil {
			return nil, err
		}
		addr, watch[procApp] = app.addr, app.pid()
	}
	for _, s := range p.sidecars {
		watch[s.name] = s.pid()
		if s.node != 0 {
			watch[procNode] = s.node
		}
	}
	var err error
	if p.job, err = c.row.job(addr, p.sidecars, c.size); err != nil {
		return nil, err
	}
	p.job.Callers, p.job.Watch = c.callers, watch
	return p, p.settle(load)
}

// settle repeats the request until it succeeds: the registry, or a broker's group, may take a
// moment longer than the sidecar.
func (p *prepared) settle(load *part) (err error) {
	j := *p.job
	j.Window = 50 * time.Millisecond
	for range 3 {
		if _, err = load.run(&j); err == nil {
			return nil
		}
		time.Sleep(300 * time.Millisecond)
	}
	return err
}

// measure runs one repetition.
func (p *prepared) measure(load *part, d time.Duration) (*sample, float64, error) {
	j := *p.job
	j.Warm, j.Window = max(d/4, 30*time.Millisecond), d
	var before, cost []float64
	for _, s := range p.sidecars {
		// Asking allocates too. Asking twice tells how much.
		a, err := s.mallocs()
		b, err2 := s.mallocs()
		if err := errors.Join(err, err2); err != nil {
			return nil, 0, err
		}
		before, cost = append(before, b), append(cost, b-a)
	}
	got, err := load.run(&j)
	if err != nil {
		return nil, 0, err
	}
	var allocs float64
	for i, s := range p.sidecars {
		after, err := s.mallocs()
		if err != nil {
			return nil, 0, err
		}
		allocs += max(0, after-before[i]-cost[i])
	}
	return got, allocs / float64(got.Total), nil
}

// profiles are fetched of every sidecar while a cell runs: processor time, and what was
// allocated meanwhile.
var profiles = []string{"profile", "allocs"}

// profileCells runs each cell once more, outside of the figures, and writes the profiles of
// its sidecars.
func profileCells(f *fleet, ready []*prepared, load *part) error {
	if err := os.MkdirAll(f.o.profile, 0o755); err != nil {
		return err
	}
	seconds := max(1, int(f.o.duration/time.Second))
	for _, p := range ready {
		n := len(p.sidecars) * len(profiles)
		done := make(chan error, n)
		for _, s := range p.sidecars {
			for _, kind := range profiles {
				name := strings.ReplaceAll(p.id(), "/", "-") + "." + s.name + "." + kind + ".pprof"
				url := fmt.Sprintf("http://%s/debug/pprof/%s?seconds=%d", s.profiler, kind, seconds)
				go func() { done <- download(url, filepath.Join(f.o.profile, name)) }()
			}
		}
		j := *p.job
		j.Warm, j.Window = 0, time.Duration(seconds)*time.Second+200*time.Millisecond
		_, err := load.run(&j)
		for range n {
			err = errors.Join(err, <-done)
		}
		if err != nil {
			return fmt.Errorf("profile of %s: %w", p.id(), err)
		}
	}
	return nil
}

func download(url, file string) error {
	resp, err := http.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, resp.Body)
	return errors.Join(err, out.Close())
}
