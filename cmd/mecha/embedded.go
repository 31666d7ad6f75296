package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/mecha-project/mecha/components/nats/embedded"
)

// newEmbeddedCommand is `mecha embedded`: the embedded node of one data directory. Clients
// start it on demand; starting it by hand keeps it warm or shows its log.
func newEmbeddedCommand() *cobra.Command {
	var dir, durability, level string
	var linger time.Duration
	cmd := &cobra.Command{
		Use:   "embedded",
		Short: "Serve state and messages from a directory, without a server to install",
		Long: `Serves one data directory to the sidecars of this user on this host, on a Unix socket
in the directory. Sidecars with components of a type *.embedded start it when they need it; it
leaves when the last of them has left. There is no need to start it by hand.

Durability is chosen when the directory is first used and stays:
  os      acknowledged writes survive the death of any process, not of the machine
  strict  writes are synced to the disk before they are acknowledged`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: os.Getenv(embedded.EnvNode) != "", // the client gets it in the status line
		RunE: func(cmd *cobra.Command, _ []string) error {
			lvl, err := nodeLevel(level)
			if err != nil {
				return err
			}
			if linger < 0 {
				return fmt.Errorf("--linger %v: must not be negative; 0 means stay until told to leave", linger)
			}
			o := embedded.NodeOptions{DataDir: dir, Durability: embedded.Durability(durability), Linger: linger, Level: lvl}
			return runNode(cmd.Context(), o, cmd.ErrOrStderr())
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "data-dir", "", "directory to serve (default ~/.mecha/embedded)")
	f.StringVar(&durability, "durability", "", "os or strict; default: what the directory has, os for a new one")
	f.DurationVar(&linger, "linger", embedded.DefaultLinger, "leave this long after the last client; 0: stay")
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// runNode serves until a signal, or nobody needs it. A node started by a client answers it on
// standard output and logs to its directory; one started by hand logs to stderr.
func runNode(parent context.Context, o embedded.NodeOptions, stderr io.Writer) error {
	ctx, stop := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv(embedded.EnvNode) == "" {
		o.Log = stderr
	} else {
		o.Status = os.Stdout
		signal.Ignore(syscall.SIGPIPE) // the client may be gone before it read the status
	}
	err := embedded.Run(ctx, o)
	if errors.Is(err, embedded.ErrBusy) {
		return fmt.Errorf("%w; nothing to do", err)
	}
	return err
}

func nodeLevel(text string) (slog.Level, error) {
	var l slog.Level
	if strings.EqualFold(text, "warning") {
		text = "warn"
	}
	if err := l.UnmarshalText([]byte(text)); err != nil {
		return 0, fmt.Errorf("--log-level %q is unknown; use debug, info, warn or error", text)
	}
	return l, nil
}
