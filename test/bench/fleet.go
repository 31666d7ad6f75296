package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// fleet is the processes of a run. They are started when a row needs them and live until the
// end, so that the repetitions of all rows can be mixed. It is used by one goroutine.
type fleet struct {
	ctx context.Context
	o   *options
	dir string // logs, resources, registry and data of this run

	roles    map[string]*part
	sidecars map[string]*sidecar
	order    []string // of the sidecars' starts
	running  []*process
	redis    *part // the server of the rows on Redis; nil until one needs it
}

// process is a child and where its output went.
type process struct {
	name  string
	cmd   *exec.Cmd
	log   string
	began time.Time     // just before it was executed
	done  chan struct{} // closed when it has ended
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// part is this program in another role.
type part struct {
	*process
	addr string
	in   *json.Encoder
	out  *json.Decoder
}

// sidecar is a running mecha.
type sidecar struct {
	*process
	http, grpc, metrics, profiler string // addresses
	data                          string // its data directory
	node                          int    // process of its embedded node, or 0
}

// sidecarSpec says what a sidecar has beside it and behind it.
type sidecarSpec struct {
	name     string // also the app id
	app      string // the role of its app; empty: none
	protocol string // of the app
	resource string // YAML
	node     bool   // it has an embedded node
}

// start runs a program with its output in a file.
func (f *fleet) start(name string, cmd *exec.Cmd) (*process, error) {
	p := &process{name: name, cmd: cmd, log: filepath.Join(f.dir, name+".log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close() // the child has its own
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	cmd.Stderr = out
	dieWithUs(cmd)
	p.began = time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(p.done)
	}()
	f.running = append(f.running, p)
	return p, nil
}

// stop ends every process. Embedded nodes are no children of ours, and would outlive their
// sidecars and the folder they write to for a while.
func (f *fleet) stop() {
	for _, p := range f.running {
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	}
	for _, p := range f.running {
		p.end()
	}
	for _, s := range f.sidecars {
		if s.node != 0 {
			endNode(f.dataDir(s.name))
		}
	}
	f.running, f.roles, f.sidecars = nil, nil, nil
}

// endNode ends the node of a folder and waits for it.
func endNode(folder string) {
	for range 100 {
		pid := findProcess("embedded", folder)
		if pid == 0 {
			return
		}
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Signal(syscall.SIGTERM)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (p *process) end() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// role returns the process playing a role, started if need be.
func (f *fleet) role(name string) (*part, error) {
	if p := f.roles[name]; p != nil {
		return p, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleEnv+"="+name)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	// Not cmd.StdoutPipe: Wait would close it under the reader.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = w
	proc, err := f.start(name, cmd)
	w.Close()
	if err != nil {
		return nil, err
	}
	p := &part{process: proc, in: json.NewEncoder(in), out: json.NewDecoder(r)}
	var h hello
	if err := p.out.Decode(&h); err != nil {
		return nil, p.failure("did not say where it listens", err)
	}
	p.addr = h.Addr
	if f.roles == nil {
		f.roles = map[string]*part{}
	}
	f.roles[name] = p
	return p, nil
}

// run has the load process do a job.
func (p *part) run(j *job) (*sample, error) {
	if err := p.in.Encode(j); err != nil {
		return nil, p.failure("took no job", err)
	}
	s := &sample{}
	if err := p.out.Decode(s); err != nil {
		return nil, p.failure("did not answer", err)
	}
	if s.Error != "" {
		return nil, errors.New(s.Error)
	}
	return s, nil
}

// failure is an error with the end of the process's log.
func (p *process) failure(what string, err error) error {
	return fmt.Errorf("process %s %s: %w\n%s", p.name, what, err, p.tail())
}

func (p *process) tail() string {
	b, _ := os.ReadFile(p.log)
	return string(b[max(0, len(b)-2000):])
}

// tracingOff is the Configuration of every sidecar: metrics as they are by default, tracing
// sampled at 0.
const tracingOff = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: bench}\nspec: {tracing: {samplingRate: \"0\"}}\n"

// sidecar returns a sidecar that is ready, started if need be.
func (f *fleet) sidecar(spec sidecarSpec) (*sidecar, error) {
	if s := f.sidecars[spec.name]; s != nil {
		return s, nil
	}
	s, err := f.launch(spec)
	if err != nil {
		return nil, err
	}
	if err := s.await(f.ctx, "/v1.0/healthz"); err != nil {
		return nil, err
	}
	if spec.node {
		if s.node = findProcess("embedded", f.dataDir(spec.name)); s.node == 0 {
			return nil, fmt.Errorf("no embedded node of %s is running, although the sidecar is ready", spec.name)
		}
	}
	if f.sidecars == nil {
		f.sidecars = map[string]*sidecar{}
	}
	f.sidecars[spec.name] = s
	f.order = append(f.order, spec.name)
	return s, nil
}

func (f *fleet) dataDir(name string) string { return filepath.Join(f.dir, name+"-data") }

// launch starts a sidecar and does not wait for it.
func (f *fleet) launch(spec sidecarSpec) (*sidecar, error) {
	s := &sidecar{data: f.dataDir(spec.name)}
	ports, err := freePorts(4)
	if err != nil {
		return nil, err
	}
	s.http, s.grpc, s.metrics, s.profiler = local(ports[0]), local(ports[1]), local(ports[2]), local(ports[3])
	files := filepath.Join(f.dir, spec.name+"-resources")
	if err := os.MkdirAll(files, 0o755); err != nil {
		return nil, err
	}
	config := filepath.Join(f.dir, "config.yaml")
	if err := os.WriteFile(config, []byte(tracingOff), 0o644); err != nil {
		return nil, err
	}
	args := []string{"sidecar", "--app-id", spec.name, "--dapr-http-port", ports[0], "--dapr-grpc-port", ports[1], "--metrics-port", ports[2],
		"--config", config, "--data-dir", f.dataDir(spec.name)}
	if spec.resource != "" {
		resource := spec.resource
		if strings.Contains(resource, redisAddr) {
			server, err := f.redisServer()
			if err != nil {
				return nil, err
			}
			resource = strings.ReplaceAll(resource, redisAddr, server.addr)
		}
		if err := os.WriteFile(filepath.Join(files, "all.yaml"), []byte(resource), 0o644); err != nil {
			return nil, err
		}
		args = append(args, "--resources-path", files)
	}
	if spec.app != "" {
		app, err := f.role(spec.app)
		if err != nil {
			return nil, err
		}
		_, port, _ := net.SplitHostPort(app.addr)
		args = append(args, "--app-port", port, "--app-protocol", spec.protocol)
	}
	if f.o.profile != "" {
		args = append(args, "--enable-profiling", "--profile-port", ports[3])
	}
	cmd := exec.Command(f.o.mecha, args...)
	// Folders of its own: no sidecar of the machine is met, and none of a user's files is read.
	run := filepath.Join(f.dir, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(), "MECHA_RUNTIME_DIR="+run, "HOME="+run)
	s.process, err = f.start(spec.name, cmd)
	return s, err
}

// redisServer starts a redis-server, which keeps nothing, unless it runs.
func (f *fleet) redisServer() (*part, error) {
	if f.redis != nil {
		return f.redis, nil
	}
	ports, err := freePorts(1)
	if err != nil {
		return nil, err
	}
	p, err := f.start("redis", exec.Command("redis-server", "--port", ports[0], "--bind", "127.0.0.1", "--save", "", "--dir", f.dir))
	if err != nil {
		return nil, fmt.Errorf("the rows on Redis need redis-server (Debian package redis-server); leave them out with -rows: %w", err)
	}
	for end := time.Now().Add(readyPatience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", local(ports[0])); err == nil {
			c.Close()
			f.redis = &part{process: p, addr: local(ports[0])}
			return f.redis, nil
		}
	}
	return nil, p.failure("does not answer", errors.New("no connection"))
}

func local(port string) string { return net.JoinHostPort("127.0.0.1", port) }

// freePorts finds ports that nobody listens on. Somebody may take one before we do; the sidecar
// then says so and the run fails.
func freePorts(n int) ([]string, error) {
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // after all are found: each is another one
		out = append(out, strconv.Itoa(l.Addr().(*net.TCPAddr).Port))
	}
	return out, nil
}

// readyPatience is how long a sidecar may take to be ready, an embedded node included.
const readyPatience = 20 * time.Second

// await asks a health endpoint, over and over, until it answers 204. The pauses are short
// enough to measure starts by and long enough to leave the starting process its processor.
func (s *sidecar) await(ctx context.Context, path string) error {
	const pause = 200 * time.Microsecond
	request := appendRequest(nil, "GET", s.http, path, "", nil)
	var last error
	for end := time.Now().Add(readyPatience); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(pause) {
		select {
		case <-s.done:
			return s.failure("ended", errors.New("it should run"))
		default:
		}
		c, err := net.DialTimeout("tcp", s.http, time.Second)
		if err != nil {
			last = err
			continue
		}
		last = askHealth(c, request, pause)
		c.Close()
		if last == nil {
			return nil
		}
	}
	return s.failure("is not ready at "+path, errors.Join(last, ctx.Err()))
}

// askHealth asks on one connection until the answer is 204 or the connection fails.
func askHealth(c net.Conn, request []byte, pause time.Duration) error {
	_ = c.SetDeadline(time.Now().Add(readyPatience))
	br := bufio.NewReader(c)
	for {
		if _, err := c.Write(request); err != nil {
			return err
		}
		status, body, err := readReply(br, nil, nil)
		if err != nil {
			return err
		}
		if status == 204 {
			return nil
		}
		if time.Sleep(pause); len(body) > 1<<10 {
			return fmt.Errorf("%d %.100s", status, body)
		}
	}
}

// mallocs is how many objects a sidecar has allocated since it started, from its metrics.
func (s *sidecar) mallocs() (float64, error) {
	c, err := net.DialTimeout("tcp", s.metrics, time.Second)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(appendRequest(nil, "GET", s.metrics, "/metrics", "", nil)); err != nil {
		return 0, err
	}
	status, page, err := readReply(bufio.NewReader(c), nil, nil)
	if err != nil || status != 200 {
		return 0, fmt.Errorf("metrics of sidecar %s: status %d: %w", s.name, status, err)
	}
	const name = "\ngo_memstats_mallocs_total "
	i := bytes.Index(page, []byte(name))
	if i < 0 {
		return 0, errors.New("the sidecar's metrics have no go_memstats_mallocs_total")
	}
	line, _, _ := strings.Cut(string(page[i+len(name):]), "\n")
	return strconv.ParseFloat(strings.TrimSpace(line), 64)
}
