//go:build unix && !linux

package launch

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// These systems have no subreaper: a process that leaves its process group and whose parent
// ends cannot be found again. Groups are what can be ended.

func becomeReaper() {}

func sealDescriptors() {
	for fd := 3; fd < 1024; fd++ {
		unix.CloseOnExec(fd)
	}
}

func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// awaitChild sleeps until some child has ended, and reaps it.
func awaitChild() (pid int, ws unix.WaitStatus, err error) {
	pid, err = unix.Wait4(-1, &ws, 0, nil)
	return pid, ws, err
}

func (k *keeper) sweep(grace time.Duration) {
	k.mu.Lock()
	all := make([]*kid, 0, len(k.kids))
	for _, c := range k.kids {
		all = append(all, c)
	}
	k.mu.Unlock()
	for _, c := range all {
		if groupAlive(c) {
			signalGroup(c.pid, unix.SIGTERM)
			signalGroup(c.pid, unix.SIGCONT)
		}
	}
	for deadline := time.Now().Add(grace); ; time.Sleep(10 * time.Millisecond) {
		left := false
		for _, c := range all {
			if !groupAlive(c) {
				continue
			}
			left = true
			if !time.Now().Before(deadline) {
				signalGroup(c.pid, unix.SIGKILL)
			}
		}
		if !left || time.Now().After(deadline.Add(sweepLimit)) {
			return
		}
	}
}

func reclaim(int) {}

// cgroup is a Linux matter.
type cgroup struct{}

func newCgroup() *cgroup                          { return nil }
func (c *cgroup) enter(*syscall.SysProcAttr)      {}
func (c *cgroup) leave(*syscall.SysProcAttr) bool { return false }
func (c *cgroup) remove()                         {}
