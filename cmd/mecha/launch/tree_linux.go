package launch

import (
	"bytes"
	"math"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// becomeReaper makes this process the one that orphans below it fall to.
func becomeReaper() { _ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// sealDescriptors keeps what this process inherited from its children.
func sealDescriptors() {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Linux before 5.11.
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// childAttr gives a child a session of its own and lets the kernel kill it with the guard.
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitChild sleeps until some child has ended, and leaves it to be reaped by collect (pid 0).
func awaitChild() (pid int, ws unix.WaitStatus, err error) {
	err = unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOWAIT, nil)
	return 0, 0, err
}

// sweep ends everything below the guard: SIGTERM, and SIGKILL to what is left after grace.
func (k *keeper) sweep(grace time.Duration) {
	spare := func(p procID) bool { return !k.started(p.pid) && isEmbeddedNode(p.pid) }
	sweepTree(spare, grace, k.cgroup.kill)
}

// reclaim ends what fell to `mecha run` when its guard was killed.
func reclaim(guardPid int) {
	cg := cgroupOf(guardPid)
	sweepTree(func(p procID) bool { return isEmbeddedNode(p.pid) }, orphanGrace, cg.kill)
	cg.remove()
}

// sweepTree ends all descendants of this process that are not spared. force, which is called
// in every round once grace is over, kills by other means.
func sweepTree(spare func(procID) bool, grace time.Duration, force func()) {
	deadline := time.Now().Add(grace)
	told := map[procID]bool{}
	for empty := 0; empty < 2; {
		var found []procID
		for _, p := range descendants(os.Getpid()) {
			if !spare(p) {
				found = append(found, p)
			}
		}
		now := time.Now()
		pause := 10 * time.Millisecond
		switch {
		case len(found) == 0:
			// A process can change parents while /proc is being read and be missed once.
			empty++
			pause = time.Millisecond
		case now.After(deadline.Add(sweepLimit)):
			return
		case !now.Before(deadline):
			empty = 0
			force()
			for _, p := range found {
				p.signal(unix.SIGKILL)
			}
			pause = time.Millisecond
		default:
			empty = 0
			for _, p := range found {
				if !told[p] {
					told[p] = true
					p.signal(unix.SIGTERM)
					p.signal(unix.SIGCONT) // one that is stopped could not hear it
				}
			}
		}
		time.Sleep(pause)
	}
}

// procID is a process for good: a number that is used again comes with another start time.
type procID struct {
	pid   int
	start uint64 // in clock ticks since boot
}

// signal signals the process, and never another one that has got its number since.
func (p procID) signal(sig unix.Signal) {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		if err == unix.ENOSYS || err == unix.EPERM { // old kernel, or a sandbox
			_ = unix.Kill(p.pid, sig)
		}
		return
	}
	defer unix.Close(fd)
	if st, ok := readStat(p.pid); ok && st.start == p.start {
		_ = unix.PidfdSendSignal(fd, sig, nil, 0)
	}
}

// descendants lists the living processes below root.
func descendants(root int) []procID {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	names, _ := dir.Readdirnames(-1)
	dir.Close()
	children := map[int][]procStat{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if st, ok := readStat(pid); ok {
			children[st.ppid] = append(children[st.ppid], st)
		}
	}
	var out []procID
	for todo := []int{root}; len(todo) > 0; todo = todo[1:] {
		for _, c := range children[todo[0]] {
			todo = append(todo, c.pid)
			if c.alive {
				out = append(out, c.procID)
			}
		}
		delete(children, todo[0]) // numbers reused while we read must not make a circle
	}
	return out
}

type procStat struct {
	procID
	ppid  int
	alive bool // runs, or could; a zombie does not
}

func readStat(pid int) (procStat, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return procStat{}, false
	}
	return parseStat(pid, data)
}

// parseStat reads a line of /proc/<pid>/stat. The command in parentheses may contain anything.
func parseStat(pid int, data []byte) (procStat, bool) {
	end := bytes.LastIndexByte(data, ')')
	if end < 0 {
		return procStat{}, false
	}
	// Field 3 of proc_pid_stat(5) is the first here.
	f := bytes.Fields(data[end+1:])
	if len(f) < 20 {
		return procStat{}, false
	}
	ppid, err1 := strconv.Atoi(string(f[1]))
	threads, err2 := strconv.Atoi(string(f[17]))
	start, err3 := strconv.ParseUint(string(f[19]), 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return procStat{}, false
	}
	// A main thread that has ended shows as a zombie while the others live on.
	dead := (f[0][0] == 'Z' && threads <= 1) || f[0][0] == 'X'
	return procStat{procID{pid, start}, ppid, !dead}, true
}

// isEmbeddedNode says whether pid is the embedded node: marked in its environment, and this
// very executable, so that no app can be spared by accident.
func isEmbeddedNode(pid int) bool {
	proc := "/proc/" + strconv.Itoa(pid)
	env, err := os.ReadFile(proc + "/environ")
	if err != nil {
		return false
	}
	marked := false
	for _, kv := range bytes.Split(env, []byte{0}) {
		marked = marked || string(kv) == EmbeddedNodeEnv+"=1"
	}
	if !marked {
		return false
	}
	self, err1 := os.Stat("/proc/self/exe")
	exe, err2 := os.Stat(proc + "/exe")
	return err1 == nil && err2 == nil && os.SameFile(self, exe)
}
