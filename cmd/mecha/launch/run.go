package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"
)

// outboundWait is how long an app that listens to nothing is held back until its sidecar can
// be called, and how long an app that should listen may take before somebody asks about it.
const outboundWait = 60 * time.Second

// secondSignal is how much later a second Ctrl-C must come to count as one: what runs us
// (make, npm, a terminal) may pass the same Ctrl-C on once more.
const secondSignal = 200 * time.Millisecond

// ExitError ends `mecha run` with a code other than 0.
type ExitError struct {
	Code int
	Err  error // what to print; nil when all has been said, as when an app's code is passed on
}

func (e *ExitError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap gives the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is what the process should exit with.
func (e *ExitError) ExitCode() int { return e.Code }

// Run starts the apps of o with their sidecars and returns when all of them have ended and
// nothing they started is left. The error is nil or an *ExitError: the exit code of the first
// app that failed, or 1 for a failure of ours.
//
// SIGINT, SIGTERM, SIGHUP and the end of ctx end the apps with SIGTERM, then the sidecars;
// a second signal kills everything at once. Run takes over these signals of the process, and
// on Linux the process becomes a child subreaper.
func Run(ctx context.Context, o Options) error {
	r, err := newRun(o)
	if err != nil {
		return &ExitError{Code: 1, Err: err}
	}
	return r.run(ctx)
}

// run is one `mecha run`.
type run struct {
	Options
	con   *console
	units []*unit
	ports *reservation
	own   owner

	mu    sync.Mutex // guards first
	first *ExitError // the first failure, which ends the run
	stop  context.CancelFunc
}

// unit is an app and its sidecar.
type unit struct {
	*App
	sidecar *process
	program *process // nil without a command
	api     *client
}

func newRun(o Options) (*run, error) {
	r := &run{Options: o}
	r.Grace = cmp.Or(r.Grace, DefaultGrace)
	if r.Stdout == nil {
		r.Stdout = os.Stdout
	}
	r.con = newConsole(r.Stdout, o.LogAsJSON)
	for _, w := range o.Warnings {
		r.con.warn("%s", w)
	}
	var errs []error
	for _, a := range o.Apps {
		errs = append(errs, a.check())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	var err error
	if r.ports, err = reservePorts(o.Apps); err != nil {
		return nil, err
	}
	if err := r.assemble(); err != nil {
		r.ports.releaseAll()
		r.discard()
		return nil, err
	}
	return r, nil
}

// assemble makes the processes of all units, ready to be started.
func (r *run) assemble() error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find our own executable to start sidecars: %w", err)
	}
	// Sidecars stay where `mecha run` is, as with Dapr's CLI: resources name files from there.
	here, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the current directory: %w", err)
	}
	inherited, now := os.Environ(), time.Now()
	for i, a := range r.Apps {
		u := &unit{App: a, api: newClient(a, os.Getenv("DAPR_API_TOKEN"))}
		r.units = append(r.units, u)
		if r.Multi && a.DaprdLogDestination.file() {
			a.DaprdLogPath = logName(a, "daprd", now)
		}
		out, err := newOutput(r.con, r.prefix("MECHA", a), colourMecha, a.DaprdLogPath, !r.Multi || a.DaprdLogDestination.console())
		if err != nil {
			return err
		}
		u.sidecar = &process{
			name: fmt.Sprintf("the sidecar of app %q", a.ID), path: exe, dir: here, out: out, done: make(chan struct{}),
			args: append([]string{"sidecar"}, a.sidecarArgs(r.LogAsJSON)...), env: sidecarEnv(inherited, r.Multi),
		}
		if len(a.Command) == 0 {
			continue
		}
		if r.Multi && a.AppLogDestination.file() {
			a.AppLogPath = logName(a, "app", now)
		}
		env := a.appEnv(inherited)
		path, err := a.lookCommand(env)
		if err != nil {
			return err
		}
		out, err = newOutput(r.con, r.prefix("APP", a), appColours[i%len(appColours)], a.AppLogPath, !r.Multi || a.AppLogDestination.console())
		if err != nil {
			return err
		}
		u.program = &process{
			name: fmt.Sprintf("app %q", a.ID), app: true, path: path, args: a.Command[1:], env: env, dir: a.Dir,
			out: out, done: make(chan struct{}),
		}
		if !r.Multi {
			u.program.stdin = terminalInput(r.Stdin)
		}
	}
	return nil
}

// prefix is what stands before the lines of a process.
func (r *run) prefix(what string, a *App) string {
	if r.Multi {
		return "== " + what + " - " + a.ID + " == "
	}
	return "== " + what + " == "
}

func (r *run) processes() []*process {
	var ps []*process
	for _, u := range r.units {
		for _, p := range []*process{u.sidecar, u.program} {
			if p != nil {
				ps = append(ps, p)
			}
		}
	}
	return ps
}

func (r *run) discard() {
	for _, p := range r.processes() {
		p.out.discard()
	}
}

func (r *run) run(ctx context.Context) error {
	own, err := newOwner(r.processes())
	if err != nil {
		r.ports.releaseAll()
		r.discard()
		return &ExitError{Code: 1, Err: err}
	}
	r.own = own
	ctx, r.stop = context.WithCancel(ctx)
	defer r.stop()
	defer r.watchSignals()()
	for _, p := range r.processes() {
		p.out.follow()
	}
	var units sync.WaitGroup
	for _, u := range r.units {
		units.Go(func() { r.fail(r.live(ctx, u)) })
	}
	units.Wait()
	r.ports.releaseAll()
	r.own.close()
	for _, p := range r.processes() {
		p.out.close()
	}
	if r.first == nil {
		return nil
	}
	return r.first
}

// watchSignals makes the first signal end the run and a second one kill it. The function it
// returns ends the watch.
func (r *run) watchSignals() func() {
	var want []os.Signal
	for _, s := range stopSignals() {
		if !signal.Ignored(s) { // as SIGHUP is under nohup
			want = append(want, s)
		}
	}
	ch := make(chan os.Signal, 8)
	done := make(chan struct{})
	var watch sync.WaitGroup
	if len(want) > 0 {
		signal.Notify(ch, want...)
	}
	watch.Go(func() {
		var first time.Time
		for {
			select {
			case <-done:
				return
			case s := <-ch:
				switch {
				case first.IsZero():
					first = time.Now()
					r.con.note("%v: ending the app, then its sidecar; once more (Ctrl-C) kills them at once", s)
					r.stop()
				case time.Since(first) >= secondSignal:
					r.con.warn("%v once more: killing everything", s)
					r.own.kill()
				}
			}
		}
	})
	return func() {
		signal.Stop(ch)
		close(done)
		watch.Wait()
	}
}

// fail records the outcome of a unit; the first bad one is the run's and ends the others.
func (r *run) fail(e *ExitError) {
	if e == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.first == nil {
		r.first = e
		r.stop()
	}
}

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
