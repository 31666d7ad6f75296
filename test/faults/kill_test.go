//go:build unix

package faults

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// stage is a caller's sidecar and two callees: an HTTP and a gRPC app, each with its sidecar.
type stage struct {
	mesh          *harness.Mesh
	caller        *harness.Sidecar
	webApp        *app
	rpcApp        *app
	web, rpc      *harness.Sidecar
	webOpt, rpOpt harness.Options
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{mesh: harness.NewMesh(t), webApp: startApp(t, "http"), rpcApp: startApp(t, "grpc")}
	s.webOpt = harness.Options{AppID: "web", AppPort: s.webApp.port}
	s.rpOpt = harness.Options{AppID: "rpc", AppPort: s.rpcApp.port, Protocol: "grpc"}
	s.web, s.rpc = s.mesh.Start(s.webOpt), s.mesh.Start(s.rpOpt)
	s.caller = s.mesh.Start(harness.Options{AppID: "caller"})
	return s
}

// load starts 16 callers over three protocols.
func (s *stage) load(t *testing.T, name string) *load {
	l := begin(t, name, 16, overHTTP(t, s.caller, "web"), overProxy(t, s.caller, "rpc"), overHTTP(t, s.caller, "web"), overInvokeService(t, s.caller, "web"))
	l.warm()
	return l
}

// down is how long a killed part stays away.
const down = 500 * time.Millisecond

// aWhile is how long callers go on after a part is back, for errors that come late to show.
const aWhile = 1200 * time.Millisecond

// finish waits for recovery and judges.
func finish(t *testing.T, l *load, back time.Duration, want limits) {
	t.Helper()
	l.awaitGood(10 * time.Second)
	time.Sleep(aWhile)
	l.judge(back).check(t, want)
}

// A callee's sidecar is killed and comes back, where it was or elsewhere. Recovery counts from
// its being ready.
func TestCalleeSidecarKilled(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ports func(*harness.Sidecar) harness.Ports
	}{
		{"callee's sidecar killed and back", (*harness.Sidecar).Ports},
		{"callee's sidecar killed and back on other ports", func(*harness.Sidecar) harness.Ports { return harness.Ports{} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			l := s.load(t, tt.name)
			s.web.Kill()
			s.rpc.Kill()
			time.Sleep(down)
			s.webOpt.Ports, s.rpOpt.Ports = tt.ports(s.web), tt.ports(s.rpc)
			s.mesh.Start(s.webOpt)
			s.mesh.Start(s.rpOpt)
			finish(t, l, l.now(), limits{failures: -1, outage: 4 * time.Second, recovery: 2 * time.Second})
		})
	}
}

// The caller's own sidecar is killed and comes back on its port.
func TestCallerSidecarKilled(t *testing.T) {
	s := newStage(t)
	l := s.load(t, "caller's sidecar killed")
	s.caller.Kill()
	time.Sleep(down)
	s.mesh.Start(harness.Options{AppID: "caller", Ports: s.caller.Ports()})
	finish(t, l, l.now(), limits{failures: -1, outage: 4 * time.Second, recovery: 2 * time.Second})
}

// The apps are killed and come back.
func TestAppKilled(t *testing.T) {
	s := newStage(t)
	l := s.load(t, "app killed")
	s.webApp.kill()
	s.rpcApp.kill()
	time.Sleep(down)
	s.webApp.start()
	s.rpcApp.start()
	finish(t, l, l.now(), limits{failures: -1, outage: 4 * time.Second, recovery: 2 * time.Second})
}

// Callees' sidecars hang for longer than the callers wait, and go on. Sessions survive it: the
// sidecars did not die, and nobody has to dial again.
func TestCalleeSidecarStopped(t *testing.T) {
	s := newStage(t)
	l := s.load(t, "callee's sidecar stopped for 3.5 s")
	for _, x := range []*harness.Sidecar{s.web, s.rpc} {
		x.Signal(syscall.SIGSTOP)
		t.Cleanup(func() { x.Signal(syscall.SIGCONT) })
	}
	time.Sleep(3500 * time.Millisecond)
	s.web.Signal(syscall.SIGCONT)
	s.rpc.Signal(syscall.SIGCONT)
	finish(t, l, l.now(), limits{failures: -1, outage: 6 * time.Second, recovery: 2 * time.Second})
	for text := range strings.Lines(s.caller.Log()) {
		if strings.Contains(text, "session") {
			t.Errorf("the caller's sidecar lost a session: %s", text)
		}
	}
}

// replicas are two sidecars of one app, each with an app process of its own.
func replicas(t *testing.T, mesh *harness.Mesh, id, kind string) (a, b *harness.Sidecar) {
	t.Helper()
	start := func() *harness.Sidecar {
		return mesh.Start(harness.Options{AppID: id, AppPort: startApp(t, kind).port, Protocol: kind})
	}
	return start(), start()
}

// One of two replicas is killed. Calls it had in flight may fail, and no others.
func TestReplicaKilled(t *testing.T) {
	mesh := harness.NewMesh(t)
	victim, _ := replicas(t, mesh, "web", "http")
	caller := mesh.Start(harness.Options{AppID: "caller"})
	const callers = 16
	l := begin(t, "one of two replicas killed", callers, overHTTP(t, caller, "web"), overInvokeService(t, caller, "web"))
	l.warm()
	killed := l.now()
	victim.Kill()
	finish(t, l, killed, limits{failures: callers, outage: time.Second, recovery: time.Second})
}

// One of two replicas is told to leave while 32 callers are at work: no call may fail, for it
// finishes what it has and its peers take the rest elsewhere.
func TestReplicaLeaves(t *testing.T) {
	mesh := harness.NewMesh(t)
	web, _ := replicas(t, mesh, "web", "http")
	rpc, _ := replicas(t, mesh, "rpc", "grpc")
	caller := mesh.Start(harness.Options{AppID: "caller"})
	l := begin(t, "one of two replicas leaves", 32, overHTTP(t, caller, "web"), overProxy(t, caller, "rpc"), overInvokeService(t, caller, "web"))
	l.warm()
	told := l.now()
	for _, leaver := range []*harness.Sidecar{web, rpc} {
		leaver.Signal(syscall.SIGTERM)
		if code := leaver.Wait(10 * time.Second); code != 0 {
			t.Errorf("the sidecar that was told to leave ended with %d, want 0", code)
		}
	}
	finish(t, l, told, limits{failures: 0, outage: time.Second, recovery: 0})
}
