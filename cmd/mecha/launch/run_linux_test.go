package launch_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// self is this test binary, which plays every part.
var self, _ = os.Executable()

// patience bounds every wait of these tests; none is meant to last that long.
const patience = 15 * time.Second

// job is a `mecha run` under test.
type job struct {
	t   *testing.T
	cmd *exec.Cmd

	mu   sync.Mutex // guards text
	text bytes.Buffer
	done chan struct{}
}

func (j *job) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *job) output() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// start starts `mecha run` with args.
func start(t *testing.T, env []string, stdin string, args ...string) *job {
	t.Helper()
	j := &job{t: t, done: make(chan struct{})}
	j.cmd = exec.Command(self, append([]string{"run"}, args...)...)
	j.cmd.Stdout, j.cmd.Stderr = j, j
	home := t.TempDir()
	j.cmd.Dir = home
	// Under the race detector every process would take a second to end.
	j.cmd.Env = append(os.Environ(), "HOME="+home, "GORACE=atexit_sleep_ms=0")
	j.cmd.Env = append(j.cmd.Env, env...)
	j.cmd.Stdin = strings.NewReader(stdin)
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// The output pipe must not hold up Wait when run is killed and others still hold it.
	j.cmd.WaitDelay = 5 * time.Second
	if err := j.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = j.cmd.Wait(); close(j.done) }()
	t.Cleanup(func() {
		_ = j.cmd.Process.Kill()
		<-j.done
		if t.Failed() {
			t.Logf("output of run %q:\n%s", args, j.output())
		}
	})
	return j
}

// exit waits for the end and returns the exit code.
func (j *job) exit() int {
	j.t.Helper()
	select {
	case <-j.done:
	case <-time.After(patience):
		j.t.Fatal("mecha run does not end")
	}
	return j.cmd.ProcessState.ExitCode()
}

// await waits until the output matches and returns the first group, if there is one.
func (j *job) await(pattern string) string {
	j.t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if m := re.FindStringSubmatch(j.output()); m != nil {
			return m[len(m)-1]
		}
	}
	j.t.Fatalf("the output never matched %q", pattern)
	return ""
}

func (j *job) pid(pattern string) int {
	j.t.Helper()
	n, err := strconv.Atoi(j.await(pattern))
	if err != nil {
		j.t.Fatal(err)
	}
	return n
}

func (j *job) want(lines ...string) {
	j.t.Helper()
	for _, l := range lines {
		if !strings.Contains(j.output(), l) {
			j.t.Errorf("the output lacks %q", l)
		}
	}
}

func alive(pid int) bool {
	// It may have fallen to us, a subreaper too (see TestMain). An error says that it has not.
	_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	return f[0] != "Z" && f[0] != "X"
}

// gone waits until the processes have ended, at most limit.
func gone(t *testing.T, limit time.Duration, pids ...int) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for _, pid := range pids {
		for alive(pid) {
			if time.Now().After(deadline) {
				cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				t.Errorf("process %d (%q) is still there after %v", pid, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '}), limit)
				_ = syscall.Kill(pid, syscall.SIGKILL)
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// below lists the living processes below pid, by their command lines.
func below(pid int) map[int]string {
	out := map[int]string{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	parents := map[int]int{}
	for _, s := range stats {
		data, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		child, _ := strconv.Atoi(strings.Split(s, "/")[2])
		parents[child], _ = strconv.Atoi(f[1])
	}
	for p := range parents {
		for a := parents[p]; a != 0; a = parents[a] {
			if a == pid {
				cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
				out[p] = string(bytes.ReplaceAll(cmd, []byte{0}, []byte{' '}))
				break
			}
		}
	}
	return out
}

func guardOf(t *testing.T, j *job) int {
	t.Helper()
	for pid, cmd := range below(j.cmd.Process.Pid) {
		if strings.Contains(cmd, "__guard") {
			return pid
		}
	}
	t.Fatal("no guard below mecha run")
	return 0
}

func app(args ...string) []string { return append([]string{"--", self, "helper"}, args...) }

func TestExitCodes(t *testing.T) {
	cases := []struct {
		name string
		args []string
		want int
	}{
		{"success", app("exit", "0"), 0},
		{"the app's own code", app("exit", "7"), 7},
		{"through a shell", []string{"--", "sh", "-c", "exit 42"}, 42},
		{"death by signal", []string{"--", "sh", "-c", "kill -KILL $$"}, 137},
		{"a program that is not there", []string{"--", "no-such-program"}, 1},
		{"a flag that is not there", []string{"--no-such-flag"}, 2},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if got := start(t, nil, "", c.args...).exit(); got != c.want {
				t.Errorf("exit code: got %d, want %d", got, c.want)
			}
		})
	}
}

func TestAppGetsItsEnvironment(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	j := start(t, []string{"APP_ID=outer", "MECHA_EMBEDDED_NODE=1", "DAPR_API_TOKEN=secret"}, "",
		append([]string{"-a", "orders", "-p", port, "-P", "grpc", "-M", "0"}, app("env")...)...)
	if code := j.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	j.want("env APP_ID=orders\n", "env APP_PORT="+port+"\n", "env APP_PROTOCOL=grpc\n", "env APP_CHANNEL_ADDRESS=127.0.0.1\n",
		"env DAPR_HTTP_PORT=", "env DAPR_GRPC_PORT=", "env DAPR_METRICS_PORT=")
	for _, unwanted := range []string{"APP_ID=outer", "env MECHA_EMBEDDED_NODE"} {
		if strings.Contains(j.output(), unwanted) {
			t.Errorf("the app's environment has %q", unwanted)
		}
	}
}

func TestSidecarGetsFlagsAndEnvironment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	j := start(t, []string{"MECHA_EMBEDDED_NODE=1"}, "", append([]string{
		"-a", "orders", "-P", "grpc", "-c", config, "-d", dir, "--components-path", filepath.Dir(dir),
		"--app-max-concurrency", "3", "--log-level", "debug", "--enable-profiling", "--enable-api-logging=false",
		"--enable-app-health-check", "--app-health-probe-interval", "7", "--max-body-size", "8Mi",
		"--placement-host-address", "", "--data-dir", "/data", "--dapr-http-read-buffer-size", "16",
	}, app("exit", "0")...)...)
	if code := j.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	args := j.await(`sidecar args: (.*)`)
	for _, want := range []string{
		"--app-id orders ", "--app-protocol grpc ", "--app-max-concurrency 3 ", "--config " + config + " ",
		"--resources-path " + dir + " --resources-path " + filepath.Dir(dir) + " ", "--log-level debug ",
		"--placement-host-address  ", "--enable-api-logging=false ", "--enable-profiling --profile-port ",
		"--enable-app-health-check --app-health-probe-interval 7 ", "--max-body-size 8Mi ", "--read-buffer-size 16Ki ",
		"--data-dir /data",
	} {
		if !strings.Contains(args+" ", want) {
			t.Errorf("the sidecar's flags lack %q: %s", want, args)
		}
	}
	for _, unwanted := range []string{"--scheduler-host-address", "--app-port"} {
		if strings.Contains(args, unwanted) {
			t.Errorf("the sidecar's flags have %q: %s", unwanted, args)
		}
	}
	j.want("sidecar env: DAPR_HOST_IP=" + os.Getenv("DAPR_HOST_IP") + " implicit=1 node=\n")
}

func TestLinesAreWholeAndPrefixed(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", app("streams")...)
	j.exit()
	j.want("== APP == out one\n", "== APP == out two\n", "== APP == out partial\n", "== APP == err one\n", "== APP == err partial\n",
		"== MECHA == sidecar args: ")
	for line := range strings.Lines(j.output()) {
		if !strings.HasPrefix(line, "== APP == ") && !strings.HasPrefix(line, "== MECHA == ") && !strings.HasPrefix(line, "mecha: ") {
			t.Errorf("line without a prefix: %q", line)
		}
	}
}

func TestStdinReachesTheApp(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "hello\n", app("cat")...)
	j.exit()
	j.want("== APP == hello\n", "== APP == read 6 bytes\n")
}

func TestNoDescriptorLeaksIntoTheApp(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	j := &job{t: t}
	cmd := exec.Command(self, "run", "--", "sh", "-c", "ls -l /proc/$$/fd; echo descriptors done")
	cmd.Stdout = j
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	j.want("descriptors done")
	found := regexp.MustCompile(`(\d+) -> (\S+)`).FindAllStringSubmatch(j.output(), -1)
	for _, m := range found {
		if m[1] != "0" && m[1] != "1" && m[1] != "2" {
			t.Errorf("the app has descriptor %s on %s", m[1], m[2])
		}
	}
	if len(found) != 3 {
		t.Errorf("the app has %d descriptors, want 3:\n%s", len(found), j.output())
	}
}

// Many programs cannot deal with a stdout that answers "try again".
func TestStreamsOfTheAppBlock(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "x", "--", "sh", "-c", "for n in 0 1 2; do echo fd $n $(grep flags /proc/$$/fdinfo/$n); done")
	if code := j.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	found := regexp.MustCompile(`fd \d flags: (\d+)`).FindAllStringSubmatch(j.output(), -1)
	if len(found) != 3 {
		t.Fatalf("%d streams, want 3", len(found))
	}
	for _, m := range found {
		flags, err := strconv.ParseInt(m[1], 8, 64)
		if err != nil || flags&unix.O_NONBLOCK != 0 {
			t.Errorf("%s: not blocking (%v)", m[0], err)
		}
	}
}

func TestMetadataAndReadiness(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	j := start(t, []string{"DAPR_API_TOKEN=tok"}, "", append([]string{"-a", "web", "-p", strconv.Itoa(port)}, app("listen")...)...)
	pid := j.pid(`app pid (\d+) lingers`)
	j.await(`You're up and running! app "web" \(pid ` + strconv.Itoa(pid) + `\)`)
	j.want(fmt.Sprintf("metadata cliPID=%d token=tok\n", j.cmd.Process.Pid), fmt.Sprintf("metadata appPID=%d ", pid),
		"metadata appCommand="+self+" helper listen ")
	_ = j.cmd.Process.Signal(syscall.SIGTERM)
	if code := j.exit(); code != 0 {
		t.Errorf("exit code after SIGTERM: %d", code)
	}
	gone(t, 0, pid)
}

func TestSidecarOverUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "m") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	j := start(t, nil, "", append([]string{"-a", "sock", "-u", dir}, app("linger")...)...)
	j.await("You're up and running!.*sockets in " + regexp.QuoteMeta(dir))
	_ = j.cmd.Process.Signal(os.Interrupt)
	if code := j.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestSidecarAlone(t *testing.T) {
	t.Parallel()
	j := start(t, nil, "", "-a", "elsewhere")
	j.await(`You're up and running! the sidecar of app "elsewhere"`)
	_ = j.cmd.Process.Signal(os.Interrupt)
	if code := j.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	j.want("== MECHA == sidecar ends\n")
}

func TestSidecarThatDiesAtStart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, port string }{{"app waits for it", "0"}, {"app is started beside it", "1"}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			j := start(t, []string{"FAKE_SIDECAR=die"}, "", append([]string{"-p", c.port}, app("linger")...)...)
			if code := j.exit(); code != 1 {
				t.Errorf("exit code: got %d, want 1", code)
			}
			j.want("== MECHA == cannot load component \"broken\"\n", "exited with code 3 before it was ready")
			if m := regexp.MustCompile(`app pid (\d+)`).FindStringSubmatch(j.output()); m != nil {
				pid, _ := strconv.Atoi(m[1])
				gone(t, 0, pid)
			}
		})
	}
}

func TestSidecarThatEndsLater(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name string
		args []string
		want int
		says string
	}{
		{"killed", []string{"sidecar-exit", "5"}, 1, "exited with code 5 while the app was running"},
		{"shut down by an app that ends by itself", []string{"sidecar-exit", "0", "4"}, 4, "exited with code 4"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			wait := "while ! test -e go; do sleep 0.02; done; "
			j := start(t, nil, "", append([]string{"--", "sh", "-c", wait + `exec "$@"`, "sh", self, "helper"}, c.args...)...)
			j.await("You're up and running!")
			letGo(j, j.cmd.Dir)
			if code := j.exit(); code != c.want {
				t.Errorf("exit code: got %d, want %d", code, c.want)
			}
			j.want(c.says)
		})
	}
}
