package embedded

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/signal"
	"syscall"
)

// MainIfNode is for programs other than mecha that open embedded components, tests above all:
// call it first thing in main or TestMain. In a process which Connect started it serves the
// node and exits; elsewhere it returns at once.
func MainIfNode() {
	if os.Getenv(EnvNode) == "" || len(os.Args) < 2 || os.Args[1] != "embedded" {
		return
	}
	os.Exit(nodeMain(os.Args[2:]))
}

func nodeMain(args []string) int {
	o := NodeOptions{Status: os.Stdout}
	f := flag.NewFlagSet("embedded", flag.ContinueOnError)
	f.StringVar(&o.DataDir, "data-dir", "", "")
	f.DurationVar(&o.Linger, "linger", DefaultLinger, "")
	f.TextVar(&o.Level, "log-level", o.Level, "")
	f.Func("durability", "", func(v string) error {
		o.Durability = Durability(v)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return 2
	}
	signal.Ignore(syscall.SIGPIPE) // the client may be gone before it read the status
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := Run(ctx, o); err != nil && !errors.Is(err, ErrBusy) {
		return 1 // the client was told, and the log knows
	}
	return 0
}
