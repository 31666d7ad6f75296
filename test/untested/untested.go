// Package untested is the one way for a test to stand aside: never silently, and never in the full
// gate.
package untested

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Full reports whether every test must run: MECHA_FULL is set, as the full gate does.
func Full() bool { return os.Getenv("MECHA_FULL") != "" }

// Skip ends the test because the machine lacks what it needs; the text says what is not tested and
// what would be needed. In the full gate that is a failure. Elsewhere the test is skipped and, for
// go test is silent about skips in a package that passes, a line is added to the file that
// MECHA_UNTESTED names: deploy/dev/loud prints it at the end.
func Skip(tb testing.TB, format string, args ...any) {
	tb.Helper()
	text := fmt.Sprintf(format, args...)
	if Full() {
		tb.Fatalf("NOT TESTED: %s. MECHA_FULL is set: this machine must have what the test needs", text)
	}
	if name := os.Getenv("MECHA_UNTESTED"); name != "" {
		if err := note(name, tb.Name()+": "+text); err != nil {
			tb.Fatal("noting that a test is skipped: ", err)
		}
	}
	tb.Skipf("NOT TESTED: %s (MECHA_FULL=1 makes it a failure)", text)
}

// note appends one line with a single write, for packages are tested side by side.
func note(name, line string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	if later := f.Close(); err == nil {
		err = later
	}
	return err
}
