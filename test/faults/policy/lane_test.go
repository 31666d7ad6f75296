//go:build unix

package policy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// usual is how long an app takes for a call when it is well.
const usual = 2 * time.Millisecond

// app is one replica's app, whose ways to fail can be set while it serves.
type app struct {
	ledger *ledger
	port   int
	srv    *http.Server

	percent atomic.Int64                  // of the calls that fail
	takes   atomic.Int64                  // time.Duration of a call
	single  atomic.Pointer[chan struct{}] // held by a call while the app does one at a time
	served  atomic.Int64                  // calls that arrived
}

func startApp(t testing.TB, g *ledger) *app {
	a := &app{ledger: g}
	a.takes.Store(int64(usual))
	for range 10 { // somebody may take a port between its being found and being used
		a.port = harness.FreePort(t)
		if a.start() == nil {
			break
		}
	}
	if a.srv == nil {
		t.Fatal("no port for an app")
	}
	t.Cleanup(a.kill)
	return a
}

// start serves on the app's port.
func (a *app) start() error {
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(a.port))
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: a}
	a.srv = srv
	go srv.Serve(l)
	return nil
}

// kill ends the listener and all connections, as the end of a process does.
func (a *app) kill() { _ = a.srv.Close() }

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/count" {
		http.NotFound(w, r) // what sidecars ask an app when they start
		return
	}
	a.served.Add(1)
	a.ledger.arrived(r)
	if hold := a.single.Load(); hold != nil {
		select {
		case *hold <- struct{}{}:
			defer func() { <-*hold }()
		case <-r.Context().Done():
			return
		}
	}
	select {
	case <-time.After(time.Duration(a.takes.Load())):
	case <-r.Context().Done():
		return
	}
	if rand.Int64N(100) < a.percent.Load() {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	io.WriteString(w, r.URL.RawQuery)
}

// oneAtATime makes calls wait for each other, or not.
func (a *app) oneAtATime(on bool) {
	if !on {
		a.single.Store(nil)
		return
	}
	hold := make(chan struct{}, 1)
	a.single.Store(&hold)
}

// ledger counts what reached the apps of a lane.
type ledger struct {
	all atomic.Int64
	mu  sync.Mutex
	// writes are how often each POST arrived.
	writes map[string]int
}

func (g *ledger) arrived(r *http.Request) {
	g.all.Add(1)
	if r.Method != http.MethodPost {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.writes[r.URL.RawQuery]++
}

// twice is how many POSTs arrived more than once.
func (g *ledger) twice() (n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, times := range g.writes {
		if times > 1 {
			n++
		}
	}
	return n
}

// replica is an app and its sidecar.
type replica struct {
	mesh *harness.Mesh
	app  *app
	opt  harness.Options
	side *harness.Sidecar
}

// restart starts the sidecar again where it was.
func (r *replica) restart() {
	r.opt.Ports, r.opt.NoWait = r.side.Ports(), false
	r.side = r.mesh.Start(r.opt)
}

// lane is a caller's sidecar under one policy, and the replicas it calls.
type lane struct {
	t        testing.TB
	ledger   *ledger
	replicas []*replica
	caller   *harness.Sidecar
	client   *http.Client
}

const replicas = 3

func newLane(t testing.TB, under regime) *lane {
	t.Helper()
	mesh := harness.NewMesh(t)
	l := &lane{t: t, ledger: &ledger{writes: map[string]int{}}, client: newClient(t)}
	for range replicas {
		r := &replica{mesh: mesh, app: startApp(t, l.ledger)}
		r.opt = harness.Options{AppID: "web", AppPort: r.app.port, NoWait: true}
		r.side = mesh.Start(r.opt)
		l.replicas = append(l.replicas, r)
	}
	l.caller = mesh.Start(harness.Options{AppID: "caller", NoWait: true, Files: under.files()})
	for _, r := range l.replicas {
		r.side.WaitHealthy()
	}
	l.caller.WaitHealthy()
	return l
}

func (r regime) files() map[string]string {
	if r.resource == "" {
		return map[string]string{}
	}
	return map[string]string{"policy.yaml": r.resource}
}

// victim is the replica that faults befall.
func (l *lane) victim() *replica { return l.replicas[0] }

func newClient(t testing.TB) *http.Client {
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256, DisableCompression: true}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// call invokes the app: always the same method, for Resiliency has a breaker for each.
func (l *lane) call(ctx context.Context, verb string, n int64) error {
	query := fmt.Sprintf("n=%d", n)
	return ask(ctx, l.client, verb, l.caller.URL("/v1.0/invoke/web/method/count?"+query), "", query)
}

// ask makes one request. want is what a good answer says; empty: anything.
func ask(ctx context.Context, client *http.Client, verb, url, body, want string) error {
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, verb, url, in)
	if err != nil {
		return err
	}
	req.GetBody = nil // each request once: what the sidecar answers is what counts
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err
	case resp.StatusCode/100 != 2:
		return fmt.Errorf("%d %s", resp.StatusCode, got)
	case want != "" && string(got) != want:
		return fmt.Errorf("%w: %q, want %q", errWrong, got, want)
	}
	return nil
}

// usage is what a sidecar holds.
type usage struct{ goroutines, heap float64 }

// usageOf reads it from the sidecar's metrics.
func usageOf(t testing.TB, s *harness.Sidecar) (u usage) {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", s.Metrics))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch v, _ := strconv.ParseFloat(value, 64); name {
		case "go_goroutines":
			u.goroutines = v
		case "go_memstats_heap_alloc_bytes":
			u.heap = v
		}
	}
	if u.goroutines == 0 || u.heap == 0 {
		t.Fatal("the sidecar's metrics do not tell its goroutines and heap")
	}
	return u
}

// What a sidecar may hold more after a fault than before it: a connection or two more to each
// replica, and what the collector has not looked at.
const (
	moreGoroutines = 15
	moreHeap       = 16 << 20
)

// checkUsage waits for a sidecar to be as small again as it was.
func checkUsage(t *testing.T, s *harness.Sidecar, before usage) {
	t.Helper()
	var now usage
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if now = usageOf(t, s); now.goroutines <= before.goroutines+moreGoroutines && now.heap <= before.heap+moreHeap {
			t.Logf("the caller's sidecar holds %.0f goroutines and %.1f MiB, under load before the fault %.0f and %.1f",
				now.goroutines, now.heap/(1<<20), before.goroutines, before.heap/(1<<20))
			return
		}
	}
	t.Errorf("the caller's sidecar holds %.0f goroutines and %.1f MiB; before the fault %.0f and %.1f",
		now.goroutines, now.heap/(1<<20), before.goroutines, before.heap/(1<<20))
}
