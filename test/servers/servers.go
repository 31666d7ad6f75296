// Package servers starts the real servers that tests of backends need: one process per test
// package, on a free port of loopback, with its data in a temporary folder. A server that is
// running already is used when its variable says where (see each file). A machine without the
// server's program makes the test stand aside loudly, through package untested.
//
// Start reading at Process; each product has a file.
package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is a server that a test started. It is stopped when the test ends.
type Process struct {
	cmd  *exec.Cmd
	out  buffer
	done chan struct{}
}

// Start runs a server and waits until ready says so, at most for three minutes: a machine that is
// busy with other tests is slow.
func Start(tb testing.TB, cmd *exec.Cmd, ready func() error) *Process {
	tb.Helper()
	p := &Process{cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &p.out, &p.out
	attr := cmd.SysProcAttr
	if attr == nil {
		attr = &syscall.SysProcAttr{}
	}
	attr.Setpgid = true              // so that helpers of the server end with it
	attr.Pdeathsig = syscall.SIGKILL // a test that is killed leaves no server behind
	cmd.SysProcAttr = attr
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start %s: %v", cmd.Path, err)
	}
	go func() { _ = cmd.Wait(); close(p.done) }()
	tb.Cleanup(p.Kill)
	var last error
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if last = ready(); last == nil {
			return p
		}
		select {
		case <-p.done:
			tb.Fatalf("%s ended before it was ready: %v\n%s", cmd.Path, last, p.out.String())
		default:
		}
	}
	tb.Fatalf("%s is not ready: %v\n%s", cmd.Path, last, p.out.String())
	return nil
}

// Kill ends the server at once, as kill -9 does, and waits for its end. It is safe twice.
func (p *Process) Kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.done
}

// Freeze stops the server from doing anything, as SIGSTOP does; Thaw lets it go on.
func (p *Process) Freeze() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGSTOP) }

// Thaw lets a frozen server go on.
func (p *Process) Thaw() { _ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGCONT) }

// Port is a free port of loopback.
func Port(tb testing.TB) int {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// Answers tells whether something listens on a port of loopback.
func Answers(port int) error {
	var d net.Dialer
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	return c.Close()
}

// program finds a program in PATH or in the folders given.
func program(name string, folders ...string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	for _, dir := range folders {
		if p := dir + "/" + name; isProgram(p) {
			return p, nil
		}
	}
	return "", errors.New(name + " is not installed")
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir() && info.Mode()&0o111 != 0
}

// buffer keeps what a server prints.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
