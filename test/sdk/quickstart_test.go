//go:build linux

package sdk

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/untested"
)

// TestQuickstart runs the sample as its README says, follows every hint it prints, presses Ctrl-C
// and looks for anything that is left.
func TestQuickstart(t *testing.T) {
	prepare(t, "quickstart")
	q := startQuickstart(t)
	q.waitFor(t, 60*time.Second, "Ctrl-C stops both apps")
	text := q.String()
	for _, want := range []string{
		`checkout  -> inventory   POST /reserve 3 apple      through both sidecars`,
		`checkout  -> statestore  save order`,
		`checkout  -> pubsub      publish on "orders"`,
		`pubsub    -> inventory   POST /orders`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the summary lacks %q", want)
		}
	}
	if n := len(timed.FindAllString(text, -1)); n != 12 {
		t.Errorf("the summary has %d timed rows, want 12: four for each of three orders", n)
	}
	t.Run("hints", q.followHints)
	if n := len(q.left()); n < 7 {
		t.Errorf("%d processes run, want two apps, two sidecars, the run, its guard and the embedded node: does this test still see them?", n)
	}
	q.interrupt(t)
	if t.Failed() {
		t.Logf("output:\n%s", q.String())
	}
}

var (
	timed = regexp.MustCompile(`through .* \d+\.\d ms`)
	hint  = regexp.MustCompile(`(?m)^== APP - checkout ==\s+(curl .*)$`)
)

// quickstart is a run of the sample.
type quickstart struct {
	cmd    *exec.Cmd
	binary string
	marker string // in the environment of everything it starts
	done   chan error

	mu  sync.Mutex // guards out
	out bytes.Buffer
}

func (q *quickstart) Write(p []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.out.Write(p)
}

func (q *quickstart) String() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.out.String()
}

// startQuickstart runs run.sh with a home of its own, and with free ports in its template.
func startQuickstart(t *testing.T) *quickstart {
	t.Helper()
	sample := filepath.Join(repository(t), "deploy", "samples", "quickstart")
	template, err := os.ReadFile(filepath.Join(sample, "mecha.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, port := range []string{"7101", "7102"} {
		if !bytes.Contains(template, []byte(port)) {
			t.Fatalf("mecha.yaml has no port %s", port)
		}
		template = bytes.ReplaceAll(template, []byte(port), fmt.Append(nil, harness.FreePort(t)))
	}
	mesh := harness.NewMesh(t)
	q := &quickstart{binary: harness.Binary(t), marker: "MECHA_QUICKSTART_TEST=" + filepath.Base(mesh.Dir), done: make(chan error, 1)}
	q.cmd = exec.Command("./run.sh", "-f", "-")
	q.cmd.Dir, q.cmd.Stdin = sample, bytes.NewReader(template)
	q.cmd.Stdout, q.cmd.Stderr = q, q
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // as a shell with job control does
	q.cmd.WaitDelay = 5 * time.Second
	q.cmd.Env = append(os.Environ(), "MECHA_BIN="+q.binary, "HOME="+mesh.Dir, "MECHA_RUNTIME_DIR="+mesh.Dir, q.marker,
		"GOCACHE="+goEnv(t, "GOCACHE"), "GOMODCACHE="+goEnv(t, "GOMODCACHE"))
	if err := q.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { q.done <- q.cmd.Wait() }()
	t.Cleanup(func() {
		for _, pid := range q.left() {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended meanwhile
		}
	})
	return q
}

func goEnv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func (q *quickstart) waitFor(t *testing.T, limit time.Duration, text string) {
	t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		if strings.Contains(q.String(), text) {
			return
		}
		select {
		case err := <-q.done:
			t.Fatalf("the quickstart ended (%v) before it said %q:\n%s", err, text, q.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("the quickstart did not say %q within %v:\n%s", text, limit, q.String())
		}
	}
}

// followHints runs the printed curl lines and looks for what the last order does.
func (q *quickstart) followHints(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		untested.Skip(t, "the printed curl lines, for there is no curl")
	}
	hints := hint.FindAllStringSubmatch(q.String(), -1)
	wants := []string{`"item":"plum","quantity":4`, `"item":"apple"`, `"receivedAt":`, ``, `"id":"checkout"`}
	if len(hints) != len(wants) {
		t.Fatalf("%d hints were printed, want %d", len(hints), len(wants))
	}
	for i, h := range hints {
		line := strings.Replace(h[1], "curl ", "curl -sS --fail-with-body -m 10 ", 1)
		out, err := exec.Command("bash", "-c", line).CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte(wants[i])) {
			t.Errorf("%s\nanswered %q (%v), want %s in it", h[1], out, err, wants[i])
		}
	}
	q.waitFor(t, 10*time.Second, "packing order by-hand: 1 fig")
}

// interrupt presses Ctrl-C and waits until everything is gone. The embedded node leaves a few
// seconds after its last client.
func (q *quickstart) interrupt(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-q.cmd.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-q.done:
		if err != nil {
			t.Errorf("after Ctrl-C the run ended with %v, want success", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the run did not end within 20 s of Ctrl-C")
	}
	if left := q.leftButNode(); len(left) > 0 {
		t.Errorf("processes left when the run had ended: %v", left)
	}
	for end := time.Now().Add(15 * time.Second); len(q.left()) > 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("processes left 15 s after the end: %v", q.commands())
		}
	}
}

// left lists the processes that carry the marker.
func (q *quickstart) left() []int {
	var pids []int
	for pid := range q.commands() {
		pids = append(pids, pid)
	}
	return pids
}

// leftButNode lists them without the embedded node.
func (q *quickstart) leftButNode() map[int]string {
	all := q.commands()
	for pid, command := range all {
		if strings.HasPrefix(command, q.binary+" embedded ") {
			delete(all, pid)
		}
	}
	return all
}

func (q *quickstart) commands() map[int]string {
	found := map[int]string{}
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil
	}
	for _, path := range environs {
		env, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(env, []byte(q.marker)) {
			continue // another user's, or gone
		}
		var pid int
		if _, err := fmt.Sscanf(path, "/proc/%d/environ", &pid); err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err != nil || len(line) == 0 {
			continue // gone, or a zombie
		}
		found[pid] = string(bytes.ReplaceAll(line, []byte{0}, []byte(" ")))
	}
	return found
}
