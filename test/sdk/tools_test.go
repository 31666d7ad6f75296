//go:build unix

package sdk

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/untested"
)

// missingTool is the exit code of prepare.sh when the machine lacks the language itself.
const missingTool = 3

// prepare makes a language's program and libraries ready and returns the directory they are in.
// What was prepared before is used again.
func prepare(t *testing.T, language string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "prepare.sh", language)
	cmd.WaitDelay = 5 * time.Second
	start := time.Now()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() == missingTool:
		untested.Skip(t, "the %s SDK, for this machine lacks a tool: %s", language, out)
	case err != nil:
		t.Fatalf("prepare.sh %s: %v\n%s", language, err, out)
	}
	t.Logf("%s is ready after %v", language, time.Since(start).Round(10*time.Millisecond))
	return filepath.Join(repository(t), ".dev", "sdk", language)
}

// repository is the root of the source tree.
func repository(tb testing.TB) string {
	tb.Helper()
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		tb.Fatal(err)
	}
	return root
}
