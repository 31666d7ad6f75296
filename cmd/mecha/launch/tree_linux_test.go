package launch

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mecha-project/mecha/test/untested"
)

const statTail = " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 %d 0 12345 1000 10"

func TestParseStat(t *testing.T) {
	cases := []struct {
		name  string
		line  string
		ok    bool
		alive bool
	}{
		{"plain", "7 (sh) S" + fmt.Sprintf(statTail, 1), true, true},
		{"a name made to confuse", "7 (a) Z 0 (b) R" + fmt.Sprintf(statTail, 1), true, true},
		{"zombie", "7 (sh) Z" + fmt.Sprintf(statTail, 1), true, false},
		{"only the main thread has ended", "7 (sh) Z" + fmt.Sprintf(statTail, 3), true, true},
		{"empty", "", false, false},
		{"cut off", "7 (sh) S 1 1", false, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			st, ok := parseStat(7, []byte(c.line))
			if ok != c.ok {
				t.Fatalf("ok: got %v, want %v", ok, c.ok)
			}
			if ok && (st.ppid != 1 || st.start != 12345 || st.pid != 7 || st.alive != c.alive) {
				t.Errorf("got %+v", st)
			}
		})
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("7 (sh) S" + fmt.Sprintf(statTail, 1)))
	f.Add([]byte(")"))
	f.Add([]byte(") " + "Z"))
	f.Fuzz(func(_ *testing.T, data []byte) { parseStat(1, data) })
}

// A number that another process has by now must not be signalled.
func TestSignalSparesSuccessors(t *testing.T) {
	cmd := exec.Command("sleep", "30")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	st, ok := readStat(cmd.Process.Pid)
	if !ok {
		t.Fatal("no stat of a child")
	}
	procID{st.pid, st.start + 1}.signal(unix.SIGKILL)
	if st, ok := readStat(st.pid); !ok || !st.alive {
		t.Error("the successor was killed")
	}
	st.signal(unix.SIGKILL)
	if err := cmd.Wait(); err == nil {
		t.Error("the process itself was not killed")
	}
}

func TestDescendantsSeesGrandchildren(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 30 & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}()
	for deadline := time.Now().Add(10 * time.Second); len(descendants(cmd.Process.Pid)) != 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("below the shell: %v", descendants(cmd.Process.Pid))
		}
	}
	found := false
	for _, p := range descendants(os.Getpid()) {
		found = found || p.pid == descendants(cmd.Process.Pid)[0].pid
	}
	if !found {
		t.Error("the grandchild is not among our descendants")
	}
}

func TestCgroupKillsAndGoes(t *testing.T) {
	root := ""
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC && unix.Access(dir, unix.W_OK) == nil {
			root = dir
		}
	}
	if root == "" {
		untested.Skip(t, "cgroup.kill: no cgroup v2 hierarchy that we may write to; root has one")
	}
	c := makeCgroup(filepath.Join(root, cgroupName(os.Getpid())))
	if c == nil {
		untested.Skip(t, "cgroup.kill: no group can be made in %s, as in a read-only container", root)
	}
	defer c.remove()
	cmd := exec.Command("sleep", "30")
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	c.enter(cmd.SysProcAttr)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start inside %s: %v", c.dir, err)
	}
	c.kill()
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v, want SIGKILL", err)
	}
	c.remove()
	if exists(c.dir) {
		t.Errorf("%s is still there", c.dir)
	}
}

func TestWireKeepsBytes(t *testing.T) {
	in := []string{"A=\xff\xfe", "", "ä"}
	if got := toStrings(toBytes(in)); !slices.Equal(got, in) {
		t.Errorf("got %q, want %q", got, in)
	}
}
