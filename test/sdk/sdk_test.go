//go:build unix

package sdk

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// language is one SDK under test.
type language struct {
	name string
	// command of the program, after its tool chain is ready; dir is where that was prepared.
	command func(dir string) []string
	// fewest is the number of steps that must pass in each mode: a program that skips its work
	// fails.
	fewest map[string]int
	// endsWeb says that the open scenario ends with a shutdown of the HTTP app's sidecar.
	endsWeb bool
}

var languages = []language{
	{"go", func(dir string) []string { return []string{filepath.Join(dir, "scenario")} }, map[string]int{"open": 110, "locked": 5}, false},
	{"js", func(string) []string { return []string{"node", "main.js"} }, map[string]int{"open": 172, "locked": 8}, true},
	{"python", func(string) []string { return []string{"venv/bin/python", "main.py"} }, map[string]int{"open": 100, "locked": 6}, false},
	{"java", func(string) []string {
		return []string{"java", "-XX:TieredStopAtLevel=1", "-cp", "target/classes:target/lib/*", "sdk.Main"}
	}, map[string]int{"open": 78, "locked": 5}, true},
}

// TestSDKs walks each SDK through the scenario, first between two apps ("open"), then through a
// sidecar with TLS in front and an API token, found by environment ("locked").
func TestSDKs(t *testing.T) {
	t.Parallel() // with TestKeepalive; the languages take turns
	redis := servers.StartRedis(t)
	for _, l := range languages {
		t.Run(l.name, func(t *testing.T) {
			dir := prepare(t, l.name)
			s := newStage(t, l.name, redis)
			t.Run("open", func(t *testing.T) {
				l.run(t, dir, "open", s.env())
				if l.endsWeb && !t.Failed() {
					ended(t, s.web)
				}
			})
			t.Run("locked", func(t *testing.T) {
				l.run(t, dir, "locked", s.lockedEnv())
				if !t.Failed() {
					ended(t, s.locked)
				}
			})
		})
	}
}

// ended waits for a sidecar that was shut down through an SDK.
func ended(t *testing.T, s *harness.Sidecar) {
	t.Helper()
	if code := s.Wait(15 * time.Second); code != 0 {
		t.Errorf("sidecar %s, shut down through the SDK, exited with %d, want 0", s.AppID, code)
	}
}

// run runs the program once and judges what it printed.
func (l language) run(t *testing.T, dir, mode string, env []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	argv := append(l.command(dir), mode)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	err := cmd.Run()
	text := out.String()
	passed, failed := len(passLine.FindAllString(text, -1)), failLine.FindAllString(text, -1)
	t.Logf("%s %s: %d steps passed, %d failed, %v", l.name, mode, passed, len(failed), time.Since(start).Round(10*time.Millisecond))
	switch {
	case ctx.Err() != nil:
		t.Errorf("the program did not end in time")
	case len(failed) > 0:
		t.Errorf("failed steps:\n%s", strings.Join(failed, "\n"))
	case err != nil:
		t.Errorf("the program ended with: %v", err)
	case passed < l.fewest[mode]:
		t.Errorf("only %d steps passed, want at least %d: did the program leave some out?", passed, l.fewest[mode])
	}
	if t.Failed() || testing.Verbose() {
		t.Logf("output of the %s program:\n%s", l.name, text)
	}
}

var (
	passLine = regexp.MustCompile(`(?m)^PASS .*$`)
	failLine = regexp.MustCompile(`(?m)^FAIL .*$`)
)
