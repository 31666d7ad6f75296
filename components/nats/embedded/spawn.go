package embedded

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// start runs a node as a process of its own and waits for its first word. False without an
// error means another node has the directory.
//
// A goroutine stays behind as long as the node runs, to reap it: nothing can end it earlier,
// for the node is meant to outlive the connection and, if others use it, this process.
func (l *link) start(ctx context.Context) (bool, error) {
	if os.Getenv(EnvNode) != "" {
		return false, fault.New(opConnect, fault.Unavailable, "an embedded node does not start another one (%s is set)", EnvNode).WithSent(fault.SentNever)
	}
	cmd, err := l.command()
	if err != nil {
		return false, err
	}
	logFile, err := os.OpenFile(l.dir.file(logName), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return false, fault.New(opConnect, fault.Unavailable, "cannot write %s; is the directory writable and the disk not full?", l.dir.file(logName)).Because(err).WithSent(fault.SentNever)
	}
	defer logFile.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return false, fault.Wrap(opConnect, fault.Unavailable, err)
	}
	defer read.Close()
	cmd.Stdout, cmd.Stderr = write, logFile
	err = cmd.Start()
	_ = write.Close()
	if err != nil {
		return false, fault.New(opConnect, fault.Unavailable, "cannot start the embedded node: %s", cmd.Path).Because(err).WithSent(fault.SentNever)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }() // reaps it, whenever that is; the node outlives us
	return l.firstWord(ctx, read, exited)
}

func (l *link) command() (*exec.Cmd, error) {
	exe, args := l.o.Executable, l.o.Args
	if exe == "" {
		var err error
		if exe, err = os.Executable(); err != nil {
			return nil, fault.New(opConnect, fault.Unavailable, "cannot find this executable to start the embedded node").Because(err)
		}
	}
	if filepath.Base(exe) != exe { // the node starts in its own directory
		if abs, err := filepath.Abs(exe); err == nil {
			exe = abs
		}
	}
	if len(args) == 0 {
		args = []string{"embedded"}
	}
	linger := l.o.Linger
	if linger == 0 {
		linger = DefaultLinger
	}
	args = append(args[:len(args):len(args)], "--data-dir", string(l.dir), "--linger", linger.String(), "--log-level", l.o.LogLevel.String())
	if l.o.Durability != "" {
		args = append(args, "--durability", string(l.o.Durability))
	}
	cmd := exec.Command(exe, args...) // without a context: it must outlive this process
	cmd.Env = append(os.Environ(), EnvNode+"=1")
	cmd.Dir = string(l.dir) // keeps no other file system busy
	detach(cmd)
	return cmd, nil
}

// firstWord waits for the node's status line, or its end, or the end of ctx.
func (l *link) firstWord(ctx context.Context, from *os.File, exited <-chan error) (bool, error) {
	word := make(chan status, 1)
	go func() {
		var s status
		line, err := bufio.NewReader(io.LimitReader(from, 64<<10)).ReadBytes('\n')
		if err != nil || json.Unmarshal(line, &s) != nil {
			s = status{}
		}
		word <- s
	}()
	select {
	case s := <-word:
		switch {
		case s.Ready:
			return true, nil
		case s.Busy:
			return false, nil
		case s.Error != "":
			return false, fault.New(opConnect, s.Code, "embedded node: %s", s.Error).WithSent(fault.SentNever)
		}
	case <-ctx.Done():
		_ = from.SetReadDeadline(time.Now()) // frees the reader
		return false, fault.New(opConnect, fault.Unavailable, "the embedded node of %s was started and is not ready yet; see %s", l.dir, l.dir.file(logName)).WithSent(fault.SentNever)
	}
	// It ended, or closed its output, without a word.
	how, byOthers := "closed its output", false
	select {
	case err := <-exited:
		how = "exited"
		if err != nil {
			how = err.Error()
		}
		exit, ok := errors.AsType[*exec.ExitError](err)
		byOthers = ok && exit.ExitCode() < 0
	case <-time.After(time.Second):
	}
	tail := l.dir.logTail()
	if tail != "" {
		tail = fmt.Sprintf("; the end of its log:\n%s", tail)
	}
	err := fault.New(opConnect, fault.Unavailable, "the embedded node of %s did not start (%s)%s", l.dir, how, tail).WithSent(fault.SentNever)
	if byOthers {
		return false, killedError{err}
	}
	return false, err
}

// killedError is a start that ended by a signal. That says nothing about the directory: another
// start may do.
type killedError struct{ error }

// Unwrap gives the fault.
func (e killedError) Unwrap() error { return e.error }
