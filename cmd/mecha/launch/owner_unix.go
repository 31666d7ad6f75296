//go:build unix

package launch

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guard is the owner on Unix: `mecha run`'s end of the guard process.
type guard struct {
	cmd    *exec.Cmd
	orders *os.File // the end whose closing ends everything
	keys   map[*process]int
	files  map[*process][3]int
	gone   chan struct{} // closed when the guard process has ended

	sendMu sync.Mutex // guards enc: one order at a time
	enc    *json.Encoder

	mu      sync.Mutex // guards what follows
	closing bool
	waits   map[int]*waits
}

// waits is what may be waited for in the life of one process.
type waits struct {
	p       *process
	started chan report   // one: started or failed
	stopped chan struct{} // closed
}

// newOwner starts the guard with everything that the processes will need from here.
func newOwner(ps []*process) (owner, error) {
	becomeReaper()
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find our own executable to start the guard: %w", err)
	}
	ordersR, ordersW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the guard's pipe: %w", err)
	}
	reportsR, reportsW, err := os.Pipe()
	if err != nil {
		ordersR.Close()
		ordersW.Close()
		return nil, fmt.Errorf("make the guard's pipe: %w", err)
	}
	g := &guard{
		orders: ordersW, enc: json.NewEncoder(ordersW), gone: make(chan struct{}),
		keys: map[*process]int{}, files: map[*process][3]int{}, waits: map[int]*waits{},
	}
	extra := []*os.File{ordersR, reportsW}
	number := func(f *os.File) int {
		if f == nil {
			return 0
		}
		extra = append(extra, f)
		return firstOutFD + len(extra) - 3
	}
	for i, p := range ps {
		g.keys[p] = i
		g.files[p] = [3]int{number(p.stdin), number(p.out.writes[0]), number(p.out.writes[1])}
		g.waits[i] = &waits{p: p, started: make(chan report, 1), stopped: make(chan struct{})}
	}
	g.cmd = exec.Command(exe, "__guard")
	g.cmd.ExtraFiles = extra
	g.cmd.Stderr = os.Stderr
	g.cmd.Env = lastWins(append(os.Environ(), "GOMAXPROCS=1")) // it has next to nothing to do
	// A session of its own: Ctrl-C and kills of our process group do not reach it.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = g.cmd.Start()
	ordersR.Close()
	reportsW.Close()
	if err != nil {
		ordersW.Close()
		reportsR.Close()
		return nil, fmt.Errorf("start the guard process: %w", err)
	}
	go g.listen(reportsR)
	return g, nil
}

// listen takes the guard's reports until it ends.
func (g *guard) listen(reports *os.File) {
	dec := json.NewDecoder(reports)
	for {
		var r report
		if err := dec.Decode(&r); err != nil {
			break
		}
		g.heard(r)
	}
	_, _ = io.Copy(io.Discard, reports)
	reports.Close()
	_ = g.cmd.Wait() // how it ended changes nothing: it is gone
	close(g.gone)
}

func (g *guard) heard(r report) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.waits[r.Key]
	if w == nil {
		return
	}
	switch r.Verb {
	case reportStarted:
		// Set here and not by start: the end of a short process may be the next report.
		w.p.pid = r.Pid
		w.started <- r
	case reportFailed:
		w.started <- r
	case reportExited:
		w.p.exit = exitStatus{code: r.Code, signal: r.Signal}
		close(w.p.done)
	case reportStopped:
		close(w.stopped)
	}
}

func (g *guard) send(o order) error {
	g.sendMu.Lock()
	defer g.sendMu.Unlock()
	if err := g.enc.Encode(o); err != nil {
		return errOwnerLost
	}
	return nil
}

func (g *guard) start(p *process) error {
	key := g.keys[p]
	err := g.send(order{
		Verb: orderStart, Key: key, App: p.app, Path: []byte(p.path), Args: toBytes(p.args),
		Env: toBytes(p.env), Dir: []byte(p.dir), Files: g.files[p],
	})
	if err != nil {
		return err
	}
	select {
	case r := <-g.waits[key].started:
		if r.Verb == reportFailed {
			return fmt.Errorf("start %s (%s in %s): %s", p.name, p.path, p.dir, r.Err)
		}
		return nil
	case <-g.gone:
		return errOwnerLost
	}
}

func (g *guard) stop(p *process, grace time.Duration) {
	key := g.keys[p]
	if g.send(order{Verb: orderStop, Key: key, Grace: int64(grace)}) != nil {
		return
	}
	select {
	case <-g.waits[key].stopped:
	case <-g.gone:
	}
}

func (g *guard) kill() { _ = g.send(order{Verb: orderKill}) }

func (g *guard) lost() <-chan struct{} { return g.gone }

// close lets the guard end what is left, and does it here if the guard cannot.
func (g *guard) close() {
	g.mu.Lock()
	again := g.closing
	g.closing = true
	g.mu.Unlock()
	if again {
		return
	}
	g.orders.Close()
	select {
	case <-g.gone:
	case <-time.After(orphanGrace + sweepLimit + 2*time.Second):
		_ = g.cmd.Process.Kill()
		<-g.gone
	}
	// With the guard's work well done this finds nothing.
	reclaim(g.cmd.Process.Pid)
}

// terminalInput is f if a process may read it: not when f is a terminal that somebody else is
// using, as for a job in the background.
func terminalInput(f *os.File) *os.File {
	if f == nil {
		return nil
	}
	front, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP)
	if err != nil || front == unix.Getpgrp() {
		return f
	}
	return nil
}

// stopSignals are the signals that end a run.
func stopSignals() []os.Signal { return []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP} }
