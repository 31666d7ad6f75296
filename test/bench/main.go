// Command bench prints what Mecha costs: for each workload the CPU time per request of every
// process on the way, requests per second and latency, beside a direct baseline taken in the
// same run; and what a sidecar costs that does nothing. It judges the figures against the
// budgets in budget.go, but never fails because of them: only a request that failed makes the
// exit code 1.
//
// It starts real processes: the mecha binary as sidecars, an echo app for HTTP and one for gRPC,
// and a closed-loop load generator. The apps and the generator are this program again in
// another role, so that the processor time of each is counted apart. They are as cheap as we
// could make them, for they share the machine with what is measured.
//
// CPU time per request is the figure to trust. It survives a busy machine; requests per second
// and p99 do not.
//
// Start reading at run; rows.go says what is measured, load.go how.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	mecha    string
	rows     *regexp.Regexp
	quick    bool
	duration time.Duration
	reps     int
	starts   int
	json     string
	profile  string
	seed     uint64
	keep     bool
}

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(playRole(role))
	}
	runtime.LockOSThread() // children are tied to the thread that starts them
	o, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string) (*options, error) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.mecha, "mecha", "", "mecha `binary` to measure; empty builds one")
	rows := fs.String("rows", "", "measure only cells whose name, like http/invoke/1KiB/32 or idle, matches this `regexp`")
	fs.BoolVar(&o.quick, "quick", false, "a smoke run: one short repetition of each cell; the figures are rough")
	fs.DurationVar(&o.duration, "duration", time.Second, "measured time of one repetition of a cell")
	fs.IntVar(&o.reps, "reps", 5, "repetitions of each cell; the table shows medians")
	fs.IntVar(&o.starts, "starts", 20, "starts for the time from exec to healthy")
	fs.StringVar(&o.json, "json", "", "also write every repetition to this `file`")
	fs.StringVar(&o.profile, "profile", "", "afterwards run each cell once more, for -duration, and write CPU and allocation profiles of its sidecars to this `folder`")
	fs.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the random order")
	fs.BoolVar(&o.keep, "keep", false, "keep the temporary folder with the logs of all processes")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	var err error
	if o.rows, err = regexp.Compile(*rows); err != nil {
		return nil, fmt.Errorf("-rows: %w", err)
	}
	if o.quick {
		o.duration, o.reps, o.starts = min(o.duration, 150*time.Millisecond), 1, min(o.starts, 3)
	}
	switch {
	case fs.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q; all input is flags", fs.Arg(0))
	case o.duration < 10*time.Millisecond:
		return nil, fmt.Errorf("-duration %v is too short to measure; use at least 10ms", o.duration)
	case o.reps < 1 || o.starts < 1:
		return nil, errors.New("-reps and -starts must be at least 1")
	}
	return o, nil
}

// run measures everything selected and prints the tables. What was measured is printed even
// when a cell failed; the error then says so.
func run(ctx context.Context, o *options) error {
	if err := canMeasure(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "mecha-bench-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Fprintln(os.Stderr, "logs are kept in", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	if o.mecha == "" {
		if o.mecha, err = build(ctx, dir); err != nil {
			return err
		}
	}
	if o.mecha, err = filepath.Abs(o.mecha); err != nil {
		return err
	}
	if _, err := os.Stat(o.mecha); err != nil {
		return fmt.Errorf("-mecha: %w; build it, or leave the flag out", err)
	}
	f := &fleet{ctx: ctx, o: o, dir: dir}
	defer f.stop()
	rep := newReport(o)
	// The lone sidecar comes first: pages of the binary shared with others would flatter it.
	if o.rows.MatchString("idle") {
		if rep.Idle, err = measureIdle(f); err != nil {
			return err
		}
	}
	if o.rows.MatchString("start") {
		if rep.Start, err = measureStart(f); err != nil {
			return err
		}
	}
	if err := measureCells(f, rep); err != nil {
		return err
	}
	if err := rep.write(os.Stdout, o.json); err != nil {
		return err
	}
	if n := rep.failures(); n > 0 {
		return fmt.Errorf("%d cells failed; see the notes below the table", n)
	}
	return ctx.Err()
}

// build makes the binary to measure the way `make build` does: static, without debug information.
func build(ctx context.Context, dir string) (string, error) {
	bin := filepath.Join(dir, "mecha")
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "grpcnotrace", "-trimpath", "-ldflags", "-s -w", "-o", bin, "github.com/mecha-project/mecha/cmd/mecha")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build ./cmd/mecha: %w\n%s\nrun from within the repository, or give -mecha", err, out)
	}
	return bin, nil
}
