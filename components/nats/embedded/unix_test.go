//go:build unix

package embedded_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats/embedded"
)

func TestHolderThatDoesNotAnswer(t *testing.T) {
	dir := nodeDir(t)
	write(t, filepath.Join(dir, "node.sock"), "no socket")
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	refused(t, dir, embedded.Options{}, fault.Unavailable, "locked by process")
}

// nodePID is the process of the node serving dir.
func nodePID(t testing.TB, dir string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid == os.Getpid() {
		t.Fatalf("lock says %q, want the node's process", text)
	}
	return pid
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestKilledNodeComesBack(t *testing.T) {
	dir := nodeDir(t)
	c := connect(t, dir)
	kv := bucket(t, c)
	last := ""
	for round := range 3 {
		last = fmt.Sprint("value ", round)
		if _, err := kv.PutString(t.Context(), "k", last); err != nil {
			t.Fatal(err)
		}
		pid := nodePID(t, dir)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "another node", func() bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			item, err := kv.Get(ctx, "k")
			if err != nil {
				return false
			}
			if string(item.Value()) != last {
				t.Errorf("round %d: the key is %q, want %q", round, item.Value(), last)
			}
			return true
		})
		if now := nodePID(t, dir); now == pid {
			t.Errorf("round %d: the node is still process %d", round, pid)
		}
		if err := c.Err(); err != nil {
			t.Errorf("round %d: Err says %v although the node is back", round, err)
		}
	}
}

func TestTerminatedNodeLeavesCleanly(t *testing.T) {
	n := startNode(t, nodeDir(t), "--linger", "1h")
	if !n.word(t).Ready {
		t.Fatalf("the node says %q", n.first)
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Wait(); err != nil {
		t.Errorf("the node ended with %v, want exit code 0", err)
	}
}

// A node outlives the client that started it, and serves others.
func TestNodeOutlivesItsStarter(t *testing.T) {
	dir := nodeDir(t)
	exe, _ := os.Executable()
	starter := exec.Command(exe, "-test.run=TestStarterProcess$", "-test.v")
	starter.Env = append(os.Environ(), "TEST_STARTER_DIR="+dir)
	starter.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan() && lines.Text() != "connected"; {
	}
	pid := nodePID(t, dir)
	_ = syscall.Kill(-starter.Process.Pid, syscall.SIGKILL) // its whole group, as a terminal would
	_ = starter.Wait()
	if sid, err := sessionOf(pid); err != nil || sid != pid {
		t.Errorf("the node is in session %d, %v; want one of its own (%d)", sid, err, pid)
	}
	connect(t, dir)
	if now := nodePID(t, dir); now != pid {
		t.Errorf("process %d serves now, want still %d", now, pid)
	}
}

// TestStarterProcess is the other process of TestNodeOutlivesItsStarter.
func TestStarterProcess(t *testing.T) {
	dir := os.Getenv("TEST_STARTER_DIR")
	if dir == "" {
		return
	}
	if _, err := embedded.Connect(t.Context(), embedded.Options{DataDir: dir, Linger: 2 * time.Second}); err != nil {
		t.Fatal(err)
	}
	fmt.Println("connected")
	time.Sleep(time.Minute)
}

func sessionOf(pid int) (int, error) {
	sid, _, errno := syscall.Syscall(syscall.SYS_GETSID, uintptr(pid), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(sid), nil
}

// The last client gone, the process is gone, and its memory with it.
func TestNodeProcessEnds(t *testing.T) {
	dir := nodeDir(t)
	c := connect(t, dir)
	pid := nodePID(t, dir)
	if !alive(pid) {
		t.Fatal("there is no node")
	}
	start := time.Now()
	c.Close()
	waitFor(t, "the process to end", func() bool { return !alive(pid) })
	if took := time.Since(start); took < 150*time.Millisecond {
		t.Errorf("the node left after %v, before its linger time of 200ms", took)
	}
}

func TestRuntimeDirectoryMustBePrivate(t *testing.T) {
	run := shortDir(t)
	t.Setenv("XDG_RUNTIME_DIR", run)
	if err := os.Mkdir(filepath.Join(run, "mecha"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(run, "mecha"), 0o777); err != nil {
		t.Fatal(err)
	}
	dir := nodeDir(t, strings.Repeat("long/", 30))
	_, err := embedded.Connect(t.Context(), embedded.Options{DataDir: dir})
	if err == nil || !strings.Contains(err.Error(), "not safe") {
		t.Errorf("Connect with an open runtime directory: %v", err)
	}
}

// unlocked tells that no node serves dir: nobody holds its lock.
func unlocked(dir string) bool {
	f, err := os.Open(filepath.Join(dir, "lock"))
	if err != nil {
		return true
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// TestNodeKilledBeforeItsFirstWord: a node that is killed while it starts (out of memory, an
// impatient user) is started once more; one that keeps being killed is reported.
func TestNodeKilledBeforeItsFirstWord(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		deaths int
		works  bool
	}{"once": {1, true}, "always": {99, false}} {
		t.Run(name, func(t *testing.T) {
			dir, lives := nodeDir(t), t.TempDir()
			script := filepath.Join(lives, "node.sh")
			write(t, script, fmt.Sprintf("#!/bin/sh\nif [ $(ls %[1]s/dead* 2>/dev/null | wc -l) -lt %[2]d ]; then : >%[1]s/dead$$; kill -9 $$; fi\nexec %[3]s \"$@\"\n", lives, tc.deaths, self))
			if err := os.Chmod(script, 0o700); err != nil {
				t.Fatal(err)
			}
			c, err := embedded.Connect(t.Context(), embedded.Options{DataDir: dir, Linger: 200 * time.Millisecond, Executable: script, Args: []string{"embedded"}})
			if (err == nil) != tc.works {
				t.Fatalf("Connect: %v, want success to be %v", err, tc.works)
			}
			if err == nil {
				c.Close()
			} else if !strings.Contains(err.Error(), "killed") {
				t.Errorf("error %v does not tell that the node was killed", err)
			}
		})
	}
}
