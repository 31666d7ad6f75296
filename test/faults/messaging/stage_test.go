//go:build unix

package messaging

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/faults/messaging/app"
	"github.com/mecha-project/mecha/test/faults/messaging/history"
	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// stage is one history being made: publishers, consumers, a broker, and notes of what is broken.
type stage struct {
	t      testing.TB
	sc     scenario
	dice   *rand.Rand
	dir    string
	record *history.Recorder
	seen   *seen
	broker broker
	mesh   *harness.Mesh
	takers []*taker
	pubs   []*publisher
	conn   *grpc.ClientConn // of admin
}

// seen is what was written down so far.
type seen struct {
	mu     sync.Mutex
	follow *history.Follower // guarded by mu
	events []history.Event   // guarded by mu; only added to
}

// process is an app's process.
type process struct {
	name   string
	cmd    *exec.Cmd
	exited chan struct{}
}

// taker is a consumer and its sidecar.
type taker struct {
	s    *stage
	n    int
	role string // stream, callback or native
	// group is "taker", the sidecars' app id, or "replay" of native consumers beside them.
	group string
	port  int
	gate  *servers.Gate // nil: it reaches the broker directly
	gen   int
	app   *process
	side  *harness.Sidecar
	busy  sync.Mutex // held by the fault that it suffers
}

// publisher is a publishing app and its sidecar.
type publisher struct {
	app  *process
	side *harness.Sidecar
}

func newStage(t *testing.T, sc scenario, seed int64) *stage {
	s := &stage{t: t, sc: sc, dice: rand.New(rand.NewPCG(uint64(seed), 2)), broker: newBroker(t), mesh: harness.NewMesh(t)}
	dir, err := os.MkdirTemp("", "history-")
	if err != nil {
		t.Fatal(err)
	}
	s.dir = dir
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the history is in %s; judge it again with go run ./test/faults/messaging/judge %s", dir, dir)
			return
		}
		os.RemoveAll(dir)
	})
	setup := history.Setup{Name: sc.name, Seed: seed, Driver: driver(), API: cmp.Or(sc.api, "dapr"), Groups: []string{"taker"}, DeadLetters: sc.deadLetter != "",
		Exact: sc.api == "native" || sc.api == "sdk", TTL: sessionTTL, Handler: sc.handler(), Partition: sc.ordering == mechav1.Ordering_ORDERING_PARTITION, Limit: sc.limit(), Attempts: sc.attempts, Window: sc.window,
		CommitWindow: 200*time.Millisecond + allowance, Allowance: allowance}
	if sc.replays > 0 {
		setup.Groups = append(setup.Groups, "replay")
	}
	if err := setup.Save(dir); err != nil {
		t.Fatal(err)
	}
	if s.record, err = history.NewRecorder(filepath.Join(dir, "stage.jsonl"), ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.record.Close() })
	s.seen = &seen{follow: history.Follow(dir)}
	for n := range publishers { // first: a broker that is not there is not started through a gate
		side := s.mesh.Start(harness.Options{AppID: fmt.Sprintf("publisher-%d", n), Args: quiet, Files: map[string]string{"pubsub.yaml": s.broker.component(nil)}})
		s.pubs = append(s.pubs, &publisher{side: side})
	}
	for n := range sc.takers {
		s.add(sc.roles()[n%len(sc.roles())], "taker", sc.gates)
	}
	for range sc.replays {
		s.add("native", "replay", false)
	}
	for _, k := range s.takers {
		k.side.WaitHealthy()
	}
	return s
}

// allowance is what a busy machine may add to a bound on time.
const allowance = time.Second

// publishers is how many there are in each history.
const publishers = 2

// quiet sidecars say only what is wrong.
var quiet = []string{"--log-level", "warn"}

// add brings in another consumer, and does not wait for it to be ready.
func (s *stage) add(role, group string, gated bool) *taker {
	k := &taker{s: s, n: len(s.takers) + 1, role: role, group: group}
	if gated {
		k.gate = s.broker.gate(s.t)
	}
	if role == "callback" {
		k.port = harness.FreePort(s.t)
	}
	s.takers = append(s.takers, k)
	k.startSide(harness.Ports{HTTP: harness.FreePort(s.t), GRPC: harness.FreePort(s.t), Metrics: harness.FreePort(s.t), Peer: harness.FreePort(s.t)})
	k.startApp()
	return k
}

func (k *taker) startSide(ports harness.Ports) {
	o := harness.Options{AppID: "taker", Ports: ports, NoWait: true, Args: quiet, Files: map[string]string{"pubsub.yaml": k.s.broker.component(k.gate)}}
	if k.s.sc.stores {
		o.Files["state.yaml"] = k.s.broker.store()
	}
	if k.role == "callback" {
		o.AppPort, o.Protocol = k.port, "grpc"
	}
	k.side = k.s.mesh.Start(o)
}

func (k *taker) startApp() {
	k.gen++
	s := k.s
	state := ""
	if s.sc.stores {
		state = "statestore"
	}
	k.app = s.start(app.Config{State: state, Role: k.role, Proc: fmt.Sprintf("%s-%d.%d", k.group, k.n, k.gen), Sidecar: k.side.Target(), Listen: fmt.Sprintf("127.0.0.1:%d", k.port),
		Group: k.group, Instance: fmt.Sprintf("%s-%d", k.group, k.n), DeadLetter: s.sc.deadLetter, Handler: s.sc.usual(),
		MaxInFlight: s.sc.limit(), Attempts: s.sc.attempts, Window: s.sc.window, Credit: s.sc.credit, Ordering: s.sc.ordering})
}

// start runs an app. It is killed at the end of the test.
func (s *stage) start(c app.Config) *process {
	s.t.Helper()
	c.Dir, c.PubSub, c.Topic, c.Seed = s.dir, "pubsub", "orders", s.dice.Uint64()
	text, err := json.Marshal(c)
	if err != nil {
		s.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	p := &process{name: c.Proc, cmd: exec.Command(self), exited: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), app.Env+"="+string(text))
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.exited) }()
	s.t.Cleanup(p.kill)
	if c.Role == "callback" {
		s.await("the app listens", 10*time.Second, func() bool {
			conn, err := net.Dial("tcp", c.Listen)
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
	}
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may have ended
	<-p.exited
}

func (p *process) signal(sig syscall.Signal) { _ = p.cmd.Process.Signal(sig) }

// end asks a process to end, and waits.
func (p *process) end(t testing.TB, limit time.Duration) {
	t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(limit):
		t.Errorf("%s did not end within %v of being asked", p.name, limit)
		p.kill()
	}
}

// publish starts the publishers, each with keys of its own.
func (s *stage) publish() {
	role := "publisher"
	switch s.sc.api {
	case "native":
		role = "pipeline"
	case "sdk":
		role = "sdk-publisher"
	}
	for n, pub := range s.pubs {
		var keys []string
		poison := map[string]app.Poison{}
		for k := range s.sc.keys() / publishers {
			key := fmt.Sprintf("p%dk%d", n, k)
			keys = append(keys, key)
			if k < s.sc.poisoned {
				poison[key] = app.Poison{Seq: 5, Fails: s.sc.fails}
			}
		}
		pub.app = s.start(app.Config{Role: role, Wrong: s.sc.wrong, Long: s.sc.long, Proc: fmt.Sprintf("publisher-%d.1", n), Sidecar: pub.side.Target(), Keys: keys, Pause: s.sc.pause(), Poison: poison})
	}
	s.awaitFlow()
}

// restart starts the publisher's sidecar again where it was.
func (p *publisher) restart(s *stage) {
	p.side = s.mesh.Start(harness.Options{AppID: p.side.AppID, Ports: p.side.Ports(), Args: quiet, Files: map[string]string{"pubsub.yaml": s.broker.component(nil)}})
}

// note writes what was done to the stage.
func (s *stage) note(e history.Event) {
	if err := s.record.Add(e); err != nil {
		s.t.Fatal(err)
	}
}

// read is all that was written until now.
func (s *stage) read() []history.Event {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	news, err := s.seen.follow.Next()
	if err != nil {
		s.t.Fatal(err)
	}
	s.seen.events = append(s.seen.events, news...)
	return s.seen.events
}

func (s *stage) await(what string, limit time.Duration, done func() bool) bool {
	s.t.Helper()
	for end := time.Now().Add(limit); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Errorf("%s: not within %v", what, limit)
			return false
		}
	}
	return true
}

// awaitFlow waits until every consumer has taken something, and messages of now get through.
func (s *stage) awaitFlow() {
	s.t.Helper()
	seen := map[string]bool{}
	flows := s.await("every consumer takes messages", 15*time.Second, func() bool {
		for _, e := range s.read() {
			if e.Kind == history.Acked {
				seen[e.Proc] = true
			}
		}
		return len(seen) >= len(s.takers)
	})
	if !flows {
		s.t.Fatalf("those that did: %v\n%s", seen, s.sides())
	}
}

// awaitPublished waits until a message is accepted that was sent from now on.
func (s *stage) awaitPublished(limit time.Duration) {
	s.t.Helper()
	from := history.Now()
	s.await("publishing goes on", limit, func() bool {
		for _, e := range slices.Backward(s.read()) {
			if e.Kind == history.Published && e.Outcome == history.OK && e.From > from {
				return true
			}
		}
		return false
	})
}

// drainPatience is how long nothing may happen before what is missing is said to be lost. Refused
// messages come again after pauses that grow.
const drainPatience = 15 * time.Second

// drain ends the publishers and waits until all they were promised is handled.
func (s *stage) drain() {
	s.t.Helper()
	for _, p := range s.pubs {
		p.app.signal(syscall.SIGTERM)
	}
	for _, p := range s.pubs {
		p.app.end(s.t, 30*time.Second)
	}
	type word struct{ group, id string }
	open, done := map[word]bool{}, map[word]bool{}
	groups := s.groups()
	taken := 0
	for last := time.Now(); time.Since(last) < drainPatience; time.Sleep(50 * time.Millisecond) {
		events := s.read()
		for _, e := range events[taken:] {
			w := word{e.Group, e.ID}
			switch {
			case e.Kind == history.Published && e.Outcome == history.OK:
				for _, g := range groups {
					if w.group = g; !done[w] {
						open[w] = true
					}
				}
			case e.Kind == history.Acked || e.Kind == history.DeadLettered:
				done[w] = true
				delete(open, w)
				last = time.Now()
			}
		}
		taken = len(events)
		if len(open) == 0 {
			break
		}
		if s.sc.parks() {
			s.unpark()
		}
	}
	time.Sleep(300 * time.Millisecond) // what comes too often, or too late, shows
	if s.sc.stores {
		s.stored()
	}
	s.note(history.Event{Kind: history.Drained})
}

// stored notes what the store holds.
func (s *stage) stored() {
	conn, err := grpc.NewClient(s.takers[0].side.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	page, err := mechav1.NewStateClient(conn).Scan(ctx, &mechav1.ScanRequest{StoreName: "statestore", PageSize: 1000})
	if err != nil {
		s.t.Fatal("reading the store: ", err)
	}
	for _, item := range page.Items {
		var b struct {
			ID, Key string
			Seq     int
		}
		if err := json.Unmarshal(item.Value, &b); err != nil {
			s.t.Fatalf("the store holds %q under %s", item.Value, item.Key)
		}
		s.note(history.Event{Kind: history.Stored, Group: "taker", Topic: "orders", ID: b.ID, Key: b.Key, Seq: b.Seq, Part: history.NoPart})
	}
}

// groups are those that are promised everything.
func (s *stage) groups() []string {
	if s.sc.replays > 0 {
		return []string{"taker", "replay"}
	}
	return []string{"taker"}
}

// judge ends the history.
func (s *stage) judge() history.Report {
	h, err := history.Load(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	r := history.Check(h)
	if !r.OK() {
		s.t.Errorf("%s, seed %d, violates what was promised:\n%s%s", h.Setup.Name, h.Setup.Seed, r, s.sides())
	}
	return r
}

// sides is what sidecars had to say about their partitions.
func (s *stage) sides() string {
	var b strings.Builder
	for _, k := range s.takers {
		for line := range strings.Lines(k.side.Log()) {
			if strings.Contains(line, "level=error") || strings.Contains(line, "partition") {
				fmt.Fprintf(&b, "sidecar of taker-%d: %s", k.n, line)
			}
		}
	}
	return b.String()
}
