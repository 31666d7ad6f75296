package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// live takes one app and its sidecar through their lives and ends both. The result is nil when
// all went well.
func (r *run) live(ctx context.Context, u *unit) *ExitError {
	failed := func(err error) *ExitError {
		r.con.fail("%v", err)
		return &ExitError{Code: 1}
	}
	r.ports.release(u.App)
	if err := r.own.start(u.sidecar); err != nil {
		return failed(err)
	}
	defer r.own.stop(u.sidecar, r.Grace)
	// An app that listens finds out by being called; one that only calls would fail at once.
	if u.program != nil && u.AppPort <= 0 {
		if err := r.awaitOutbound(ctx, u); err != nil {
			return failed(err)
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	var ended <-chan struct{} // stays nil without a program
	if u.program != nil {
		if err := r.own.start(u.program); err != nil {
			return failed(err)
		}
		ended = u.program.done
	}
	var announcing sync.WaitGroup
	announceCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	ready := make(chan struct{})
	announcing.Go(func() { r.announce(announceCtx, u, ready) })
	var end func() *ExitError
	select {
	case <-ended:
		end = func() *ExitError { return r.appEnded(u) }
	case <-u.sidecar.done:
		end = func() *ExitError { return r.sidecarEnded(ctx, u, ready, ended) }
	case <-r.own.lost():
		end = func() *ExitError { return failed(fmt.Errorf("%w; ending all it had started", errOwnerLost)) }
	case <-ctx.Done():
		end = func() *ExitError { return r.ask(u) }
	}
	cancel() // nothing is to be announced after the end
	announcing.Wait()
	return end()
}

var errOwnerLost = errors.New("the guard process that owns the app is gone (was it killed?)")

// ask ends the app because the run is to end.
func (r *run) ask(u *unit) *ExitError {
	if u.program == nil {
		return nil
	}
	r.own.stop(u.program, r.Grace)
	select {
	case <-u.program.done:
	default: // the guard is lost, or the process cannot be killed
		r.con.fail("%s did not end", u.program.name)
		return &ExitError{Code: 1}
	}
	if u.program.exit.endedAsAsked() {
		r.con.note("%s has ended", u.program.name)
		return nil
	}
	r.con.note("%s %s", u.program.name, u.program.exit)
	return &ExitError{Code: u.program.exit.shellCode()}
}

// appEnded passes on the exit code of an app that ended by itself. What it left in its process
// group is ended before the sidecar, which it may still be using.
func (r *run) appEnded(u *unit) *ExitError {
	u.program.out.drained(100 * time.Millisecond) // its last words come first
	r.con.note("%s %s", u.program.name, u.program.exit)
	r.own.stop(u.program, r.Grace)
	if code := u.program.exit.shellCode(); code != 0 {
		return &ExitError{Code: code}
	}
	return nil
}

// sidecarEnded ends the app of a sidecar that ended by itself. One that was told to over its
// API (POST /v1.0/shutdown) ends with 0, and its app, which probably said so, gets the time
// to end by itself.
func (r *run) sidecarEnded(ctx context.Context, u *unit, ready, ended <-chan struct{}) *ExitError {
	u.sidecar.out.drained(time.Second)
	if u.sidecar.exit == (exitStatus{}) {
		r.con.note("%s has ended", u.sidecar.name)
		if ended != nil {
			select {
			case <-ended:
				return r.appEnded(u)
			case <-ctx.Done():
			case <-r.own.lost():
			case <-time.After(r.Grace):
			}
		}
		return r.ask(u)
	}
	r.con.fail("%v", r.sidecarDied(u, ready))
	_ = r.ask(u) // how the app ends is a consequence
	return &ExitError{Code: 1}
}

// sidecarDied says how and, as far as the console has not shown it, what the sidecar said last.
func (r *run) sidecarDied(u *unit, ready <-chan struct{}) error {
	when := "before it was ready"
	select {
	case <-ready:
		when = "while the app was running"
	default:
	}
	last := ""
	if said := u.sidecar.out.tail.String(); said != "" && !u.sidecar.out.toTerm {
		last = "; it said last:\n" + said
	}
	if u.DaprdLogPath != "" {
		last += "\nsee " + u.DaprdLogPath
	}
	return fmt.Errorf("%s %s %s%s", u.sidecar.name, u.sidecar.exit, when, last)
}

// awaitOutbound waits until the app could call its sidecar. It gives up waiting, but not the
// run, after outboundWait.
func (r *run) awaitOutbound(ctx context.Context, u *unit) error {
	wait, cancel := context.WithTimeout(ctx, outboundWait)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- u.api.wait(wait, healthOutbound) }()
	select {
	case err := <-answer:
		if err != nil && ctx.Err() == nil {
			r.con.warn("%s is not ready after %v; starting the app all the same", u.sidecar.name, outboundWait)
		}
		return nil
	case <-u.sidecar.done:
		cancel()
		<-answer
		u.sidecar.out.drained(time.Second)
		return r.sidecarDied(u, nil)
	case <-r.own.lost():
		cancel()
		<-answer
		return errOwnerLost
	}
}

// announce says once that everything is up, closes ready, and tells the sidecar what
// `dapr list` asks for.
func (r *run) announce(ctx context.Context, u *unit, ready chan<- struct{}) {
	if u.api.wait(ctx, healthOutbound) != nil {
		return
	}
	r.describe(ctx, u)
	reminder := time.AfterFunc(outboundWait, func() {
		r.con.warn("%s is not ready yet; does the app listen on port %d?", u.sidecar.name, u.AppPort)
	})
	err := u.api.wait(ctx, healthAll)
	reminder.Stop()
	if err != nil || ctx.Err() != nil {
		return
	}
	close(ready)
	who := fmt.Sprintf("the sidecar of app %q (pid %d)", u.ID, u.sidecar.pid)
	if u.program != nil {
		who = fmt.Sprintf("app %q (pid %d) with its sidecar (pid %d)", u.ID, u.program.pid, u.sidecar.pid)
	}
	where := fmt.Sprintf("HTTP port %d, gRPC port %d, metrics port %d", u.HTTPPort, u.GRPCPort, u.MetricsPort)
	if u.UnixSocketDir != "" {
		where = "sockets in " + u.UnixSocketDir
	}
	logs := ""
	for _, path := range []string{u.AppLogPath, u.DaprdLogPath} {
		if path != "" {
			logs += "; log " + path
		}
	}
	r.con.note("You're up and running! %s: %s%s", who, where, logs)
}

// describe sets the sidecar's metadata. A refusal costs no more than a line in `dapr list`.
func (r *run) describe(ctx context.Context, u *unit) {
	set := func(key, value string) {
		if value == "" {
			return
		}
		if err := u.api.setMetadata(ctx, key, value); err != nil && ctx.Err() == nil {
			r.con.warn("tell %s its %s: %v", u.sidecar.name, key, err)
		}
	}
	set("cliPID", strconv.Itoa(os.Getpid()))
	if u.program != nil {
		set("appPID", strconv.Itoa(u.program.pid))
		set("appCommand", strings.Join(u.Command, " "))
	}
	set("runTemplatePath", r.TemplatePath)
	set("runTemplateName", r.TemplateName)
	set("appLogPath", u.AppLogPath)
	set("daprdLogPath", u.DaprdLogPath)
}
