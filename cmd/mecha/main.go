// Command mecha is the one binary: it runs sidecars, apps with their sidecars, the embedded
// node, and the tools around them. Each subcommand is a file of this package; sidecar.go is
// the one that wires the house together. Under the name daprd the binary is `mecha sidecar`.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

func main() {
	name := strings.TrimSuffix(filepath.Base(os.Args[0]), ".exe")
	if name == "daprd" {
		os.Exit(sidecarMain(name, os.Args[1:]))
	}
	// The sidecar's flags are Go's, with one dash or two, so cobra does not see them.
	if len(os.Args) > 1 && os.Args[1] == "sidecar" {
		os.Exit(sidecarMain("mecha sidecar", os.Args[2:]))
	}
	os.Exit(commandMain(os.Args[1:]))
}

// commandMain runs any other subcommand and returns the exit code.
func commandMain(args []string) int {
	set, err := backends()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mecha:", err)
		return 1
	}
	root := &cobra.Command{
		Use:   "mecha",
		Short: "A distributed runtime beside each application",
		Long: `Mecha runs beside each application and does the distributed part of its work:
calls to other apps, state, messages. The app speaks Dapr's API to it on localhost.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(newRunCommand(), newGuardCommand(), newSidecarCommand(), newEmbeddedCommand(), newConfigCommand(), newCheckCommand(set), newExplainCommand(), newVersionCommand())
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(context.Background())
	if err == nil {
		return 0
	}
	code := 1
	var coded interface{ ExitCode() int }
	if errors.As(err, &coded) {
		code = coded.ExitCode()
	}
	if text := err.Error(); text != "" {
		fmt.Fprintf(os.Stderr, "%s: %s\n", cmd.CommandPath(), text)
	}
	return code
}

// newSidecarCommand exists for the help text; main dispatches the command itself.
func newSidecarCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "sidecar [flags]",
		Short:              "Run a sidecar, with daprd's flags and environment",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			os.Exit(sidecarMain("mecha sidecar", args))
			return nil
		},
	}
}
