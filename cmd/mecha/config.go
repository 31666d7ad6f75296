package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/nats"
	"github.com/mecha-project/mecha/runtime/call"
)

// newConfigCommand is `mecha config`: it reads and writes the configuration that apps get from
// the embedded node. Apps only read and follow it, and the node's socket is not one that the
// product's own tools can use.
func newConfigCommand() *cobra.Command {
	var o configOptions
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Read and write configuration in the embedded node",
		Long: `Reads and writes the items of a component of type configuration.embedded. With
"mecha run" there is one called ` + implicitNames(call.Config)[0] + ` for every app; apps that follow a key are told
of a change at once.`,
		Example: `  mecha config set orders.limit 10
  mecha config get orders.limit`,
	}
	f := cmd.PersistentFlags()
	f.StringVar(&o.store, "store", implicitNames(call.Config)[0], "name of the component, or its bucket")
	f.StringVar(&o.dir, "data-dir", "", "directory of the embedded node (default ~/.mecha/embedded)")
	cmd.AddCommand(
		&cobra.Command{Use: "get [KEY...]", Short: "Print items as \"key: value\"; without keys all of them",
			RunE: func(c *cobra.Command, keys []string) error {
				return o.with(c.Context(), func(ctx context.Context, s *nats.Configuration) error {
					return printItems(ctx, c.OutOrStdout(), s, keys)
				})
			}},
		&cobra.Command{Use: "set KEY VALUE", Short: "Set an item; a value of - is read from standard input", Args: cobra.ExactArgs(2),
			RunE: func(c *cobra.Command, args []string) error {
				value, err := valueOf(args[1], c.InOrStdin())
				if err != nil {
					return err
				}
				return o.with(c.Context(), func(ctx context.Context, s *nats.Configuration) error {
					_, err := s.Set(ctx, args[0], value)
					return err
				})
			}},
		&cobra.Command{Use: "delete KEY...", Short: "Remove items", Args: cobra.MinimumNArgs(1),
			RunE: func(c *cobra.Command, keys []string) error {
				return o.with(c.Context(), func(ctx context.Context, s *nats.Configuration) error {
					for _, k := range keys {
						if err := s.Delete(ctx, k); err != nil {
							return err
						}
					}
					return nil
				})
			}},
	)
	return cmd
}

type configOptions struct{ store, dir string }

// configPatience bounds one command, the start of the node included.
const configPatience = 30 * time.Second

// with runs f on the store.
func (o *configOptions) with(ctx context.Context, f func(context.Context, *nats.Configuration) error) error {
	ctx, cancel := context.WithTimeout(ctx, configPatience)
	defer cancel()
	s := nats.OpenEmbeddedConfiguration(block.Env{AppID: "mecha config", Component: o.store, DataDir: o.dir}, nats.DefaultEmbeddedConfigurationConfig())
	defer s.Close(ctx)
	return f(ctx, s)
}

// valueOf is a value as given, or what standard input holds.
func valueOf(arg string, stdin io.Reader) (string, error) {
	if arg != "-" {
		return arg, nil
	}
	const most = 8 << 20 // of the node
	b, err := io.ReadAll(io.LimitReader(stdin, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("the value is over %v", conf.ByteSize(most))
	}
	if err != nil {
		return "", fmt.Errorf("reading the value from standard input: %w", err)
	}
	return string(b), nil
}

// printItems writes items in the order of their keys. A key asked for that does not exist is an
// error, after the others were written.
func printItems(ctx context.Context, w io.Writer, s *nats.Configuration, keys []string) error {
	items, err := s.Get(ctx, keys, nil)
	if err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(items)) {
		if _, err := fmt.Fprintf(w, "%s: %s\n", k, items[k].Value); err != nil {
			return err
		}
	}
	for _, k := range keys {
		if _, ok := items[k]; !ok {
			fmt.Fprintf(os.Stderr, "mecha config: there is no item %q\n", k)
			err = &silentError{}
		}
	}
	return err
}

// silentError ends a command with code 1 after it has said why.
type silentError struct{}

func (*silentError) Error() string { return "" }
