// Package harness starts real sidecars for black-box tests: the binary, its processes, their
// ports and logs. Tests bring the apps. Start at Start.
package harness

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	buildOnce sync.Once
	binary    string
	buildErr  error
)

// Binary is the path of the mecha binary under test: MECHA_BIN, or one built for this test
// process.
func Binary(tb testing.TB) string {
	tb.Helper()
	buildOnce.Do(func() {
		if binary = os.Getenv("MECHA_BIN"); binary != "" {
			binary, buildErr = filepath.Abs(binary)
			return
		}
		dir, err := os.MkdirTemp("", "mecha-test-")
		if err != nil {
			buildErr = err
			return
		}
		binary = filepath.Join(dir, "mecha")
		cmd := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", binary, "github.com/mecha-project/mecha/cmd/mecha")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("go build: %w\n%s", err, out)
		}
	})
	if buildErr != nil {
		tb.Fatal(buildErr)
	}
	return binary
}

// Mesh is a set of sidecars that find each other: one runtime directory.
type Mesh struct {
	tb  testing.TB
	Dir string // runtime directory, holds the registry
}

// NewMesh makes an empty mesh in a directory of its own.
func NewMesh(tb testing.TB) *Mesh {
	tb.Helper()
	dir, err := os.MkdirTemp("", "mesh-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	return &Mesh{tb: tb, Dir: dir}
}

// Options describe a sidecar. The zero value is a sidecar without an app.
type Options struct {
	AppID    string
	AppPort  int
	Protocol string // empty: http
	Args     []string
	Env      []string          // NAME=value
	Files    map[string]string // resource files by name
	Config   string            // text of a Configuration file
	// NoWait returns as soon as the process runs.
	NoWait bool
	// Ports are taken where they are not zero: a sidecar that starts again where it was.
	Ports Ports
	// Launch starts the process in place of cmd.Start, in another network for example; health
	// is then asked for through Dial.
	Launch func(cmd *exec.Cmd) error
	Dial   func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Ports are those a sidecar listens on.
type Ports struct{ HTTP, GRPC, Metrics, Peer int }

// Sidecar is a running sidecar process.
type Sidecar struct {
	tb      testing.TB
	Cmd     *exec.Cmd
	AppID   string
	HTTP    int // ports
	GRPC    int
	Metrics int
	Peer    int
	Dir     string // its resources
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	log     *logBuffer
	exited  chan struct{}
	err     error
}

// Start runs a sidecar and waits until it is healthy (outbound healthy, if its app does not
// listen). It is killed at the end of the test.
func (m *Mesh) Start(o Options) *Sidecar {
	m.tb.Helper()
	s := &Sidecar{tb: m.tb, AppID: o.AppID, HTTP: o.Ports.HTTP, GRPC: o.Ports.GRPC, Metrics: o.Ports.Metrics, Peer: o.Ports.Peer,
		dial: o.Dial, log: &logBuffer{}, exited: make(chan struct{})}
	for _, p := range []*int{&s.HTTP, &s.GRPC, &s.Metrics, &s.Peer} {
		if *p == 0 {
			*p = FreePort(m.tb)
		}
	}
	s.Dir = m.tb.TempDir()
	args := []string{"sidecar", "--app-id", o.AppID, "--dapr-http-port", strconv.Itoa(s.HTTP), "--dapr-grpc-port", strconv.Itoa(s.GRPC),
		"--metrics-port", strconv.Itoa(s.Metrics), "--dapr-internal-grpc-port", strconv.Itoa(s.Peer), "--resources-path", s.Dir}
	if o.AppPort > 0 {
		args = append(args, "--app-port", strconv.Itoa(o.AppPort))
	}
	if o.Protocol != "" {
		args = append(args, "--app-protocol", o.Protocol)
	}
	for name, text := range o.Files {
		write(m.tb, filepath.Join(s.Dir, name), text)
	}
	if o.Config != "" {
		path := filepath.Join(m.tb.TempDir(), "config.yaml")
		write(m.tb, path, o.Config)
		args = append(args, "--config", path)
	}
	s.Cmd = exec.Command(Binary(m.tb), append(args, o.Args...)...)
	s.Cmd.Env = append(os.Environ(), "MECHA_RUNTIME_DIR="+m.Dir, "HOME="+m.Dir)
	s.Cmd.Env = append(s.Cmd.Env, o.Env...)
	s.Cmd.Stdout, s.Cmd.Stderr = s.log, s.log
	launch := o.Launch
	if launch == nil {
		launch = (*exec.Cmd).Start
	}
	if err := launch(s.Cmd); err != nil {
		m.tb.Fatal(err)
	}
	go func() { s.err = s.Cmd.Wait(); close(s.exited) }()
	m.tb.Cleanup(s.cleanup)
	if !o.NoWait {
		s.WaitHealthy()
	}
	return s
}

func write(tb testing.TB, path, text string) {
	tb.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

func (s *Sidecar) cleanup() {
	s.Kill()
	if s.tb.Failed() {
		s.tb.Logf("log of sidecar %s:\n%s", s.AppID, s.Log())
	}
}

// Ports are what the sidecar listens on, to start another in its place.
func (s *Sidecar) Ports() Ports { return Ports{s.HTTP, s.GRPC, s.Metrics, s.Peer} }

// URL is the address of an API path.
func (s *Sidecar) URL(path string) string { return fmt.Sprintf("http://127.0.0.1:%d%s", s.HTTP, path) }

// Dial connects to the sidecar from where it runs (Options.Dial), for clients on its host.
func (s *Sidecar) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if s.dial != nil {
		return s.dial(ctx, network, addr)
	}
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

// Target is the gRPC API's address.
func (s *Sidecar) Target() string { return fmt.Sprintf("127.0.0.1:%d", s.GRPC) }

// WaitHealthy waits for /v1.0/healthz.
func (s *Sidecar) WaitHealthy() { s.tb.Helper(); s.waitFor("/v1.0/healthz") }

// WaitOutbound waits for /v1.0/healthz/outbound.
func (s *Sidecar) WaitOutbound() { s.tb.Helper(); s.waitFor("/v1.0/healthz/outbound") }

func (s *Sidecar) waitFor(path string) {
	s.tb.Helper()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: s.dial}}
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		select {
		case <-s.exited:
			s.tb.Fatalf("sidecar %s exited: %v\n%s", s.AppID, s.err, s.Log())
		default:
		}
		resp, err := client.Get(s.URL(path))
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusNoContent {
			return
		}
	}
	s.tb.Fatalf("sidecar %s is not ready after 20 s (%s)\n%s", s.AppID, path, s.Log())
}

// Log is what the sidecar printed so far.
func (s *Sidecar) Log() string { return s.log.String() }

// WaitLog waits until the log contains text.
func (s *Sidecar) WaitLog(text string) {
	s.tb.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(s.Log(), text) {
			return
		}
	}
	s.tb.Fatalf("sidecar %s never logged %q\n%s", s.AppID, text, s.Log())
}

// Kill ends the process at once.
func (s *Sidecar) Kill() {
	_ = s.Cmd.Process.Kill() // it may have ended
	<-s.exited
}

// Signal sends a signal.
func (s *Sidecar) Signal(sig syscall.Signal) { _ = s.Cmd.Process.Signal(sig) }

// Exited is closed when the process has ended.
func (s *Sidecar) Exited() <-chan struct{} { return s.exited }

// Wait waits for the process to end by itself and returns its exit code.
func (s *Sidecar) Wait(limit time.Duration) int {
	s.tb.Helper()
	select {
	case <-s.exited:
		return s.Cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		s.tb.Fatalf("sidecar %s still runs after %v\n%s", s.AppID, limit, s.Log())
		return -1
	}
}

// FreePort finds a port nobody listens on. It comes from below the system's range for
// outgoing connections, so that none of those takes it meanwhile, and from a block that no
// other test process uses: they run side by side, and between this and the start of a sidecar
// nobody listens.
func FreePort(tb testing.TB) int {
	tb.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	for range 2 * blocks * blockSize {
		if ports.next%blockSize == 0 && !ports.claim() {
			break
		}
		port := ports.next
		ports.next++
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil {
			continue
		}
		l.Close()
		return port
	}
	tb.Fatal("no free port")
	return 0
}

const (
	firstPort = 10000
	blockSize = 250 // a few dozen sidecars
	blocks    = 80
)

// portBlocks hands out ports of the blocks that this process has claimed.
type portBlocks struct {
	mu    sync.Mutex
	next  int            // guarded by mu; a multiple of blockSize asks for another block
	tried int            // guarded by mu
	held  []net.Listener // guarded by mu
}

var ports portBlocks

// claim takes a block by listening on its first port for as long as the process lives. Once all
// blocks were tried it begins again: ports of long ago are free by then.
func (p *portBlocks) claim() bool {
	for range blocks {
		base := firstPort + (os.Getpid()+p.tried)%blocks*blockSize
		p.tried++
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(base))
		if err == nil {
			p.held = append(p.held, l)
			p.next = base + 1
			return true
		}
	}
	if len(p.held) == 0 {
		return false
	}
	for _, l := range p.held { // nobody else's are free: our own, once more
		l.Close()
	}
	p.held = nil
	return p.claim()
}

// Serve runs an HTTP app on a free port until the test ends, and returns the port.
func Serve(tb testing.TB, h http.Handler) int {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	tb.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// Do sends a request and reads the whole answer.
func Do(tb testing.TB, method, url string, body []byte, header ...string) (*http.Response, []byte) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		tb.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		tb.Fatalf("%s %s: %v", method, url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		tb.Fatalf("%s %s: reading the answer: %v", method, url, err)
	}
	return resp, b
}

var client = &http.Client{
	Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// logBuffer collects output of a process.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
