package launch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
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

// Error is what to print: empty when all has been said.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return ""
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
