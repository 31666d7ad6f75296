//go:build unix

package launch

import (
	"encoding/json"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// GuardMain is the guard process: it starts what `mecha run` orders on descriptor 3, reports
// on descriptor 4 how it went, and when descriptor 3 ends, ends everything below itself. It
// returns the exit code. It is of no use when started by hand.
//
// While nothing happens the guard sleeps in two system calls, read and waitid.
func GuardMain() int {
	// Children are killed when the thread that forked them ends, so that thread must be one
	// that lasts as long as the process.
	runtime.LockOSThread()
	orders := os.NewFile(ordersFD, "orders")
	if _, err := orders.Stat(); err != nil {
		os.Stderr.WriteString("mecha __guard is started by mecha run, not by hand\n")
		return 2
	}
	sealDescriptors()
	becomeReaper()
	k := newKeeper(os.NewFile(reportsFD, "reports"))
	go k.reap()
	go k.endOnSignal()
	dec := json.NewDecoder(orders)
	for {
		var o order
		if dec.Decode(&o) != nil {
			break // mecha run has closed its end, or is gone
		}
		k.obey(o)
	}
	k.endAll(orphanGrace)
	return 0
}

// keeper is the guard's table of the processes it started.
type keeper struct {
	null   *os.File // the empty stdin
	cgroup *cgroup  // for apps; nil where there is none
	forked chan struct{}
	ending sync.Mutex // held while everything is ended

	mu    sync.Mutex // guards what follows, and every fork, reap and signal: see collect
	kids  map[int]*kid
	byPid map[int]*kid
	out   *json.Encoder
}

type kid struct {
	key, pid int
	app      bool
	gone     chan struct{} // closed when reaped
}

func newKeeper(reports *os.File) *keeper {
	null, _ := os.Open(os.DevNull)
	return &keeper{
		null: null, cgroup: newCgroup(), forked: make(chan struct{}, 1),
		kids: map[int]*kid{}, byPid: map[int]*kid{}, out: json.NewEncoder(reports),
	}
}

func (k *keeper) obey(o order) {
	switch o.Verb {
	case orderStart:
		k.start(o)
	case orderStop:
		go k.stop(o.Key, time.Duration(o.Grace))
	case orderKill:
		go k.endAll(0)
	}
}

// send reports. The caller holds mu. A reader that is gone is found out by the read of orders.
func (k *keeper) send(r report) { _ = k.out.Encode(r) }

func (k *keeper) start(o order) {
	k.mu.Lock()
	defer k.mu.Unlock()
	files := []uintptr{k.null.Fd(), k.null.Fd(), k.null.Fd()}
	for i, fd := range o.Files {
		if fd > 0 {
			files[i] = uintptr(fd)
			defer unix.Close(fd)
		}
	}
	attr := &syscall.ProcAttr{Dir: string(o.Dir), Env: toStrings(o.Env), Files: files, Sys: childAttr()}
	if o.App {
		k.cgroup.enter(attr.Sys)
	}
	path, args := string(o.Path), append([]string{string(o.Path)}, toStrings(o.Args)...)
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil && k.cgroup.leave(attr.Sys) {
		pid, err = syscall.ForkExec(path, args, attr)
	}
	if err != nil {
		k.send(report{Verb: reportFailed, Key: o.Key, Err: err.Error()})
		return
	}
	c := &kid{key: o.Key, pid: pid, app: o.App, gone: make(chan struct{})}
	k.kids[o.Key], k.byPid[pid] = c, c
	k.send(report{Verb: reportStarted, Key: o.Key, Pid: pid})
	select {
	case k.forked <- struct{}{}:
	default:
	}
}

// reap collects children as they end, those that fell to the guard by their parents' death
// included.
func (k *keeper) reap() {
	for {
		switch pid, ws, err := awaitChild(); err {
		case nil:
			k.mu.Lock()
			if pid > 0 {
				k.ended(pid, ws)
			}
			k.collect()
			k.mu.Unlock()
		case unix.ECHILD:
			<-k.forked
		}
	}
}

// collect reaps what has ended. The caller holds mu: a process that is signalled under mu
// cannot have been reaped before, so its number cannot be somebody else's.
func (k *keeper) collect() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		k.ended(pid, ws)
	}
}

// ended reports the end of a process the guard started. The caller holds mu.
func (k *keeper) ended(pid int, ws unix.WaitStatus) {
	c := k.byPid[pid]
	if c == nil {
		return // an orphan that fell to the guard
	}
	delete(k.byPid, pid)
	close(c.gone)
	r := report{Verb: reportExited, Key: c.key, Pid: pid}
	if ws.Signaled() {
		r.Signal = syscall.Signal(ws.Signal())
	} else {
		r.Code = ws.ExitStatus()
	}
	k.send(r)
}

// stop ends one process and its process group: SIGTERM, and after grace SIGKILL.
func (k *keeper) stop(key int, grace time.Duration) {
	k.mu.Lock()
	c := k.kids[key]
	k.mu.Unlock()
	if c != nil {
		signalGroup(c.pid, unix.SIGTERM)
		signalGroup(c.pid, unix.SIGCONT) // one that is stopped could not hear it
		deadline := time.Now().Add(grace)
		for groupAlive(c) {
			now := time.Now()
			if now.After(deadline.Add(sweepLimit)) {
				break
			}
			if now.After(deadline) {
				signalGroup(c.pid, unix.SIGKILL)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.send(report{Verb: reportStopped, Key: key})
}

// signalGroup signals the process group led by pid. Its number stays taken while the group
// has a member, so it cannot hit a stranger as long as groupAlive was true just before.
func signalGroup(pid int, sig unix.Signal) { _ = unix.Kill(-pid, sig) }

// groupAlive says whether c or anything else in its process group is still there.
func groupAlive(c *kid) bool {
	select {
	case <-c.gone:
		return unix.Kill(-c.pid, 0) != unix.ESRCH
	default:
		return true
	}
}

// endOnSignal takes a signal for the guard as the end of the run.
func (k *keeper) endOnSignal() {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	<-ch
	k.endAll(orphanGrace)
	os.Exit(1)
}

// endAll ends everything below the guard but the embedded node.
func (k *keeper) endAll(grace time.Duration) {
	k.ending.Lock()
	defer k.ending.Unlock()
	k.sweep(grace)
	k.cgroup.remove()
}

// started says whether the guard itself started the living process pid.
func (k *keeper) started(pid int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.byPid[pid] != nil
}
