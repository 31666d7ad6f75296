package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/mecha-project/mecha/cmd/mecha/launch"
)

// newRunCommand is `mecha run`: an app, or all apps of a run template, each with a sidecar.
// Its error, if any, has an ExitCode method; an empty cause means that all has been said and
// only the code is to be passed on.
func newRunCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [flags] [--] [command [args...]]",
		Short: "Run an app with its sidecar, or the apps of a run template (-f)",
		Long: `Run starts a sidecar and the app beside it, shows the logs of both, and passes the
app's exit code on. Without a command it runs the sidecar alone, for an app that is
started elsewhere. The flags are those of "dapr run".

Ctrl-C ends the app, then the sidecar; a second Ctrl-C kills both. Whatever way it
ends, no process that the app or the sidecar started is left.`,
		Example: `  mecha run -- ./app
  mecha run --app-id orders --app-port 3000 -- node app.js
  mecha run -f dapr.yaml`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	flags := launch.BindFlags(cmd.Flags())
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &launch.ExitError{Code: 2, Err: launch.FlagError(c.Flags(), err)}
	})
	cmd.RunE = func(c *cobra.Command, command []string) error {
		o, err := flags.Options(command, os.Stdin)
		if err != nil {
			return &launch.ExitError{Code: 1, Err: err}
		}
		return launch.Run(c.Context(), o)
	}
	return cmd
}

// newGuardCommand is the process that owns what `mecha run` starts. Only `mecha run` starts it.
func newGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "__guard",
		Short:  "Own the processes of a mecha run (internal)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if code := launch.GuardMain(); code != 0 {
				return &launch.ExitError{Code: code}
			}
			return nil
		},
	}
}
