package launch_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal starts `mecha run` as the foreground job of a new terminal and returns the hand
// that types.
func terminal(t *testing.T, env []string, args ...string) (*job, *os.File) {
	t.Helper()
	ptm, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("open a pseudo terminal: %v; is /dev/ptmx there?", err)
	}
	// Not by Fd, which would make it blocking: its Close must end the copying below.
	raw, err := ptm.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var lockErr, nameErr error
	_ = raw.Control(func(fd uintptr) {
		lockErr = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		n, nameErr = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
	})
	if lockErr != nil || nameErr != nil {
		t.Fatal(lockErr, nameErr)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	j := &job{t: t, done: make(chan struct{})}
	j.cmd = exec.Command(self, append([]string{"run"}, args...)...)
	j.cmd.Dir = t.TempDir()
	j.cmd.Env = append(append(os.Environ(), "HOME="+j.cmd.Dir, "TERM=xterm", "GORACE=atexit_sleep_ms=0"), env...)
	j.cmd.Stdin, j.cmd.Stdout, j.cmd.Stderr = pts, pts, pts
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	// A terminal's hang-up counts for its programs even where these tests run under nohup: a
	// signal that is handled here is not ignored there.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	err = j.cmd.Start()
	signal.Stop(hangup)
	if err != nil {
		t.Fatal(err)
	}
	pts.Close()
	copied := make(chan struct{})
	go func() { _, _ = io.Copy(j, ptm); close(copied) }()
	go func() { _ = j.cmd.Wait(); close(j.done) }()
	t.Cleanup(func() {
		_ = j.cmd.Process.Kill()
		<-j.done
		ptm.Close()
		<-copied // the last end of the terminal is closed, so the reading ends
		if t.Failed() {
			t.Logf("output of run %q:\n%s", args, j.output())
		}
	})
	return j, ptm
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	t.Run("the app reads it", func(t *testing.T) {
		t.Parallel()
		j, hand := terminal(t, nil, "--", "sh", "-c", "echo asks; read line; echo \"got $line\"; test -t 0 && exit 3")
		j.await("asks")
		_, _ = io.WriteString(hand, "hello\n")
		if code := j.exit(); code != 3 {
			t.Errorf("exit code: got %d, want 3", code)
		}
		j.want("got hello")
	})
	t.Run("ctrl-c reaches the app once, as SIGTERM", func(t *testing.T) {
		t.Parallel()
		j, hand := terminal(t, nil, app("trap", "0")...)
		j.await("app ready")
		_, _ = io.WriteString(hand, "\x03")
		if code := j.exit(); code != 0 {
			t.Errorf("exit code: got %d, want 0", code)
		}
		j.want("app got terminated")
		if strings.Contains(j.output(), " too") {
			t.Error("the app was told twice")
		}
	})
	t.Run("closing it ends everything", func(t *testing.T) {
		t.Parallel()
		j, hand := terminal(t, nil, app("linger")...)
		pid := j.pid(`app pid (\d+) lingers`)
		hand.Close()
		j.exit()
		gone(t, 2*time.Second, pid)
	})
	t.Run("colours", func(t *testing.T) {
		t.Parallel()
		j, _ := terminal(t, nil, app("streams")...)
		j.exit()
		j.want("\x1b[36m== APP == \x1b[0mout one")
	})
	t.Run("NO_COLOR", func(t *testing.T) {
		t.Parallel()
		j, _ := terminal(t, []string{"NO_COLOR=1"}, app("streams")...)
		j.exit()
		j.want("== APP == out one")
		if strings.Contains(j.output(), "\x1b[") {
			t.Error("coloured all the same")
		}
	})
}
