//go:build unix

// Command judge judges saved histories again: directories that a run of the messaging campaign
// left because they violate an invariant.
package main

import (
	"fmt"
	"os"

	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: judge DIRECTORY…")
		os.Exit(2)
	}
	code := 0
	for _, dir := range os.Args[1:] {
		h, err := history.Load(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		r := history.Check(h)
		fmt.Printf("%s: %s, seed %d, on %s\n%s", dir, h.Setup.Name, h.Setup.Seed, h.Setup.Driver, r)
		if !r.OK() {
			code = 1
		}
	}
	os.Exit(code)
}
