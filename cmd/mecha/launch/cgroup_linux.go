package launch

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is a control group for the apps of a run, which no process can leave by changing
// sessions or parents, and which the kernel kills in one stroke. It exists only where the
// system has delegated its own group to us, as a systemd user service has; everything works
// without. Sidecars are not in it: the embedded node they start must survive.
//
// A nil cgroup does nothing.
type cgroup struct {
	dir string
	fd  *os.File // the directory, open for clone3; nil when it is only to be killed
}

// newCgroup makes a group for the apps of the guard calling it, nil where that is not for us.
func newCgroup() *cgroup {
	parent := ownCgroup()
	if parent == "" || !delegated(parent) {
		return nil
	}
	removeStale(parent)
	return makeCgroup(filepath.Join(parent, cgroupName(os.Getpid())))
}

func makeCgroup(dir string) *cgroup {
	if os.Mkdir(dir, 0o755) != nil {
		return nil
	}
	fd, err := os.Open(dir)
	if err != nil {
		os.Remove(dir)
		return nil
	}
	return &cgroup{dir: dir, fd: fd}
}

// cgroupOf is the group a guard, now dead, may have made.
func cgroupOf(guardPid int) *cgroup {
	parent := ownCgroup()
	if parent == "" {
		return nil
	}
	dir := filepath.Join(parent, cgroupName(guardPid))
	if !exists(dir) {
		return nil
	}
	return &cgroup{dir: dir}
}

const cgroupPrefix = "mecha-run-"

func cgroupName(guardPid int) string { return cgroupPrefix + strconv.Itoa(guardPid) }

// removeStale removes the groups of runs that were killed together with their guards. A group
// that is in use cannot be removed.
func removeStale(parent string) {
	old, _ := filepath.Glob(filepath.Join(parent, cgroupPrefix+"*"))
	for _, dir := range old {
		pid, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(dir), cgroupPrefix))
		if err == nil && unix.Kill(pid, 0) == unix.ESRCH {
			_ = os.Remove(dir)
		}
	}
}

// enter makes a child start inside the group.
func (c *cgroup) enter(attr *syscall.SysProcAttr) {
	if c != nil && c.fd != nil {
		attr.UseCgroupFD, attr.CgroupFD = true, int(c.fd.Fd())
	}
}

// leave undoes enter, for a kernel or a sandbox that refused it. It is false when there was
// nothing to undo.
func (c *cgroup) leave(attr *syscall.SysProcAttr) bool {
	was := attr.UseCgroupFD
	attr.UseCgroupFD = false
	return was
}

// kill kills everything in the group (Linux 5.14 and later).
func (c *cgroup) kill() {
	if c != nil {
		_ = os.WriteFile(filepath.Join(c.dir, "cgroup.kill"), []byte("1"), 0)
	}
}

// remove removes the group. Its last processes may need a moment to leave it.
func (c *cgroup) remove() {
	if c == nil {
		return
	}
	for range 50 {
		if err := os.Remove(c.dir); err == nil || os.IsNotExist(err) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// ownCgroup is the directory of this process's group in the unified hierarchy, or "".
func ownCgroup() string {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	const root = "/sys/fs/cgroup"
	var fs unix.Statfs_t
	if unix.Statfs(root, &fs) != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return ""
	}
	for line := range bytes.Lines(data) {
		if path, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("0::")); ok {
			return filepath.Join(root, string(path))
		}
	}
	return ""
}

// delegated says whether the group is ours to divide. For an ordinary user owning it says so;
// root may write everywhere, so root looks for systemd's mark.
func delegated(dir string) bool {
	if os.Geteuid() != 0 {
		return unix.Access(dir, unix.W_OK) == nil
	}
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		buf := make([]byte, 8)
		if n, err := unix.Getxattr(dir, name, buf); err == nil && string(buf[:n]) == "1" {
			return true
		}
	}
	return false
}
