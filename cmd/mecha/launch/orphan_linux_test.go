package launch_test

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestCtrlCEndsAppThenSidecar(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		code string
		want int
	}{
		{"the app ends well", "0", 0},
		{"the app ends with an error", "9", 9},
		{"the app ends with the code of SIGTERM", "143", 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			j := start(t, nil, "", app("trap", c.code)...)
			j.await("app ready")
			// As a terminal does it: to the whole foreground group.
			if err := syscall.Kill(-j.cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if code := j.exit(); code != c.want {
				t.Errorf("exit code: got %d, want %d", code, c.want)
			}
			out := j.output()
			j.want("== APP == app got terminated\n")
			if strings.Contains(out, " too\n") {
				t.Error("the app was told twice")
			}
			if app, side := strings.Index(out, "app ends"), strings.Index(out, "sidecar ends"); app < 0 || side < app {
				t.Errorf("the app's end is at %d, the sidecar's at %d; want the app first", app, side)
			}
		})
	}
}

func TestStubbornAppIsKilledAfterGrace(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", append([]string{"--shutdown-grace", "300ms"}, app("stubborn")...)...)
	pid := j.pid(`app pid (\d+) lingers`)
	_ = j.cmd.Process.Signal(syscall.SIGTERM)
	if code := j.exit(); code != 137 {
		t.Errorf("exit code: got %d, want 137", code)
	}
	gone(t, 0, pid)
}

func TestStoppedAppHearsTheEnd(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", append([]string{"--shutdown-grace", "1h"}, app("linger")...)...)
	pid := j.pid(`app pid (\d+) lingers`)
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	_ = j.cmd.Process.Signal(os.Interrupt)
	if code := j.exit(); code != 0 {
		t.Errorf("exit code: got %d, want 0", code)
	}
	gone(t, 0, pid)
}

func TestSecondCtrlCKillsAtOnce(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", append([]string{"--shutdown-grace", "1h"}, app("stubborn")...)...)
	pid := j.pid(`app pid (\d+) lingers`)
	_ = j.cmd.Process.Signal(os.Interrupt)
	j.await("once more")
	time.Sleep(250 * time.Millisecond) // sooner it would count as the same Ctrl-C
	_ = j.cmd.Process.Signal(os.Interrupt)
	if code := j.exit(); code != 137 {
		t.Errorf("exit code: got %d, want 137", code)
	}
	gone(t, 0, pid)
}

func TestCtrlCBeforeTheAppHasStarted(t *testing.T) {
	t.Parallel()
	j := start(t, []string{"FAKE_SIDECAR=slow"}, "", app("linger")...)
	j.await("sidecar args")
	_ = j.cmd.Process.Signal(os.Interrupt)
	if code := j.exit(); code != 0 {
		t.Errorf("exit code: got %d, want 0", code)
	}
}

// families are the shapes of process trees that must not survive.
var families = []struct {
	name string
	args []string
	pids []string // what the output says of each process
}{
	{"plain app", app("linger"), []string{`app pid (\d+) lingers`}},
	{"behind a shell", []string{"--", "sh", "-c", self + " helper linger; true"}, []string{`app pid (\d+) lingers`}},
	{"in the background of a shell", []string{"--", "sh", "-c", self + " helper stubborn & " + self + " helper fork double; true"},
		[]string{`app pid (\d+) lingers\n(?s:.*)app pid \d+ lingers`, `app pid \d+ lingers\n(?s:.*)app pid (\d+) lingers`}},
	{"double fork with setsid", app("fork", "double"),
		[]string{`app pid (\d+) lingers\n(?s:.*)app pid \d+ lingers`, `app pid \d+ lingers\n(?s:.*)app pid (\d+) lingers`}},
	{"marked as the node, but another program", app("fork", "marked"), []string{`marked pid (\d+) lingers`, `app pid (\d+) lingers`}},
}

// members waits until the whole family is there and returns it with the sidecar.
func members(t *testing.T, j *job, patterns []string) []int {
	t.Helper()
	var pids []int
	for _, p := range append(patterns, `sidecar \S+ pid (\d+) serves`) {
		pids = append(pids, j.pid(p))
	}
	for _, m := range regexp.MustCompile(`pid (\d+) lingers`).FindAllStringSubmatch(j.output(), -1) {
		pid, _ := strconv.Atoi(m[1])
		pids = append(pids, pid)
	}
	return pids
}

func TestNothingSurvives(t *testing.T) {
	t.Parallel()
	const soon, atExit = 2 * time.Second, 0
	ends := []struct {
		name  string
		do    func(*testing.T, *job)
		limit time.Duration // atExit: when run has ended
	}{
		{"run is killed", func(t *testing.T, j *job) { _ = j.cmd.Process.Kill() }, soon},
		{"run's process group is killed", func(t *testing.T, j *job) { _ = syscall.Kill(-j.cmd.Process.Pid, syscall.SIGKILL) }, soon},
		{"the guard is killed", func(t *testing.T, j *job) { _ = syscall.Kill(guardOf(t, j), syscall.SIGKILL) }, soon},
		{"the guard is terminated", func(t *testing.T, j *job) { _ = syscall.Kill(guardOf(t, j), syscall.SIGTERM) }, soon},
		{"ctrl-c", func(t *testing.T, j *job) { _ = j.cmd.Process.Signal(os.Interrupt) }, atExit},
	}
	for _, f := range families {
		for _, e := range ends {
			t.Run(f.name+"/"+e.name, func(t *testing.T) {
				t.Parallel()
				j := start(t, nil, "", append([]string{"-a", "victim", "--shutdown-grace", "500ms"}, f.args...)...)
				pids := append(members(t, j, f.pids), guardOf(t, j))
				e.do(t, j)
				if e.limit == atExit {
					j.exit()
				}
				gone(t, e.limit, pids...)
				j.exit()
			})
		}
	}
}

func TestDirectChildrenDieWithRunAndGuard(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", append([]string{"-a", "victim"}, app("stubborn")...)...)
	pids := members(t, j, []string{`app pid (\d+) lingers`})
	guard := guardOf(t, j)
	// The guard first stands still, so that it cannot act between the two kills.
	_ = syscall.Kill(guard, syscall.SIGSTOP)
	_ = j.cmd.Process.Kill()
	_ = syscall.Kill(guard, syscall.SIGKILL)
	gone(t, 2*time.Second, append(pids, guard)...)
}

func TestGuardLossIsAnError(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", app("linger")...)
	j.pid(`app pid (\d+) lingers`)
	_ = syscall.Kill(guardOf(t, j), syscall.SIGKILL)
	if code := j.exit(); code != 1 {
		t.Errorf("exit code: got %d, want 1", code)
	}
	j.want("the guard process that owns the app is gone")
}

func TestLeftoversOfAnAppThatEnds(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", "--", "sh", "-c", self+" helper linger & "+self+" helper fork second; while ! test -e go; do sleep 0.02; done; exit 6")
	pids := members(t, j, []string{`app pid (\d+) lingers\n(?s:.*)app pid \d+ lingers`})
	letGo(j, j.cmd.Dir)
	if code := j.exit(); code != 6 {
		t.Errorf("exit code: got %d, want 6", code)
	}
	gone(t, 0, pids...)
}

func TestEmbeddedNodeSurvives(t *testing.T) {
	t.Parallel()
	ends := []struct {
		name string
		do   func(*testing.T, *job)
	}{
		{"ctrl-c", func(t *testing.T, j *job) { _ = j.cmd.Process.Signal(os.Interrupt) }},
		{"run is killed", func(t *testing.T, j *job) { _ = j.cmd.Process.Kill() }},
		{"the guard is killed", func(t *testing.T, j *job) { _ = syscall.Kill(guardOf(t, j), syscall.SIGKILL) }},
	}
	for _, e := range ends {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			j := start(t, []string{"FAKE_SIDECAR=node"}, "", append([]string{"-a", "n"}, app("linger")...)...)
			node := j.pid(`node pid (\d+) lingers`)
			defer func() {
				_ = syscall.Kill(node, syscall.SIGKILL)
				gone(t, 2*time.Second, node)
			}()
			pids := []int{j.pid(`app pid (\d+) lingers`), j.pid(`sidecar \S+ pid (\d+) serves`), guardOf(t, j)}
			e.do(t, j)
			gone(t, 2*time.Second, pids...)
			j.exit()
			if !alive(node) {
				t.Error("the embedded node was ended with the run")
			}
		})
	}
}
