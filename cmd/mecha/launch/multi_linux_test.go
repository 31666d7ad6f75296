package launch_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// template writes a run template whose apps are helpers, with a directory for each.
func template(t *testing.T, common string, apps ...string) string {
	t.Helper()
	dir := t.TempDir()
	var b strings.Builder
	fmt.Fprintf(&b, "version: 1\nname: shop\n%s\napps:\n", common)
	for i, a := range apps {
		id := string(rune('a' + i))
		if err := os.Mkdir(filepath.Join(dir, id), 0o755); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "- {appID: app-%s, appDirPath: %s, %s}\n", id, id, strings.ReplaceAll(a, "SELF", self))
	}
	if err := os.WriteFile(filepath.Join(dir, "dapr.yaml"), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// logText is what the log files of an app and what hold.
func logText(t *testing.T, dir, app, id, what string) string {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(dir, app, ".dapr", "logs", id+"_"+what+"_*.log"))
	if len(files) != 1 {
		return ""
	}
	if !regexp.MustCompile(`_\d{14}\.log$`).MatchString(files[0]) {
		t.Errorf("name of the log file: %s", files[0])
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestTemplateRunsAllApps(t *testing.T) {
	t.Parallel()
	dir := template(t, "common: {env: {SHARED: common}}",
		`command: [SELF, helper, env], appLogDestination: file, daprdLogDestination: console`,
		`command: [SELF, helper, streams], env: {SHARED: own}`,
		`command: [SELF, helper, exit, 0], appLogDestination: console, daprdLogDestination: fileAndConsole`)
	j := start(t, []string{"DAPR_HOST_IP="}, "", "-f", dir)
	if code := j.exit(); code != 0 {
		t.Errorf("exit code: got %d, want 0", code)
	}
	for _, c := range []struct{ name, app, what, want string }{
		{"app to file", "a", "app", "env SHARED=common\n"},
		{"sidecar to console only", "a", "daprd", ""},
		{"app to both by default", "b", "app", "out partial\n"},
		{"sidecar to file by default", "b", "daprd", "--app-id app-b "},
		{"app to console only", "c", "app", ""},
		{"sidecar to both", "c", "daprd", "--app-id app-c "},
	} {
		got := logText(t, dir, c.app, "app-"+c.app, c.what)
		if !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: log is %q, want %q in it", c.name, got, c.want)
		}
	}
	j.want("== APP - app-b == out two\n", "== MECHA - app-a == sidecar args: --app-id app-a ", "== MECHA - app-c == sidecar args")
	for _, unwanted := range []string{"== APP - app-a ==", "== MECHA - app-b =="} {
		if strings.Contains(j.output(), unwanted) {
			t.Errorf("the console shows %q", unwanted)
		}
	}
}

func TestTemplateTellsTheSidecar(t *testing.T) {
	t.Parallel()
	dir := template(t, "common: {daprdLogDestination: console}", `command: [SELF, helper, linger]`)
	j := start(t, nil, "", "-f", dir)
	j.await("You're up and running! app \"app-a\".*; log .*app-a_app_")
	j.want("metadata runTemplateName=shop ", "metadata runTemplatePath="+filepath.Join(dir, "dapr.yaml"), "metadata appLogPath="+dir,
		"sidecar env: DAPR_HOST_IP=127.0.0.1 ")
	_ = j.cmd.Process.Signal(os.Interrupt)
	j.exit()
}

func TestTemplateStopsAsOne(t *testing.T) {
	t.Parallel()
	linger := `command: [SELF, helper, linger], appLogDestination: console`
	trap := `command: [SELF, helper, trap, 0], appLogDestination: console`
	wait := "while ! test -e ../go; do sleep 0.02; done; "
	cases := []struct {
		name string
		apps []string
		end  func(*job, string)
		want int
	}{
		{"an app fails", []string{linger, trap, `command: [sh, -c, "` + wait + `exit 5"]`}, letGo, 5},
		{"ctrl-c", []string{linger, trap}, func(j *job, _ string) { _ = syscall.Kill(-j.cmd.Process.Pid, syscall.SIGINT) }, 0},
		{"one app ends well, then ctrl-c", []string{linger, trap, `command: ["true"]`}, func(j *job, _ string) {
			j.await(`app "app-c" exited with code 0`)
			time.Sleep(100 * time.Millisecond)
			_ = j.cmd.Process.Signal(os.Interrupt)
		}, 0},
		{"a sidecar dies", []string{linger, trap, `command: [sh, -c, "` + wait + `SELF helper sidecar-exit 7"]`}, letGo, 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := template(t, "", c.apps...)
			j := start(t, nil, "", "-f", dir)
			pid := j.pid(`app pid (\d+) lingers`)
			j.await("== APP - app-b == app ready")
			c.end(j, dir)
			if code := j.exit(); code != c.want {
				t.Errorf("exit code: got %d, want %d", code, c.want)
			}
			gone(t, 0, pid)
			j.want("== APP - app-b == app ends\n")
		})
	}
}

// letGo lets an app that waits for ../go go on.
func letGo(j *job, dir string) {
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		j.t.Error(err)
	}
}

func TestTemplateShowsWhyASidecarDied(t *testing.T) {
	t.Parallel()
	j := start(t, []string{"FAKE_SIDECAR=die"}, "", "-f", template(t, "", `command: [SELF, helper, linger]`))
	if code := j.exit(); code != 1 {
		t.Errorf("exit code: got %d, want 1", code)
	}
	// Its log goes to a file by default, so the last lines must be shown.
	j.want("exited with code 3 before it was ready; it said last:", "cannot load component \"broken\"", "see ")
}

func TestCommandIsFoundBeforeAnythingStarts(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", "-f", template(t, "", `command: [SELF, helper, linger]`, `command: [./nope]`))
	if code := j.exit(); code != 1 {
		t.Errorf("exit code: got %d, want 1", code)
	}
	j.want(`app "app-b": cannot start "./nope": no such program at `)
	if strings.Contains(j.output(), "lingers") {
		t.Error("an app was started")
	}
}
