package servers

import (
	"os"
	"sync"
	"testing"
)

// Shared starts a server when the first test of a binary asks for it and stops it behind the last
// one: a server that takes seconds to start is started once. A test that kills, halts or configures
// it must leave it as it was. The zero value is ready.
//
//	var rabbit servers.Shared[*servers.RabbitMQ]
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(rabbit.Main(m)) }
//
//	srv := rabbit.Get(t, servers.StartRabbitMQ)
type Shared[S any] struct {
	mu     sync.Mutex
	had    bool // guarded by mu
	server S    // guarded by mu

	ends sync.Mutex // apart from mu, which is held while a server starts
	end  []func()   // guarded by ends
}

// Get is the server; start makes it for the first one that asks. A start that fails, or stands
// aside, does so for each test that asks.
func (s *Shared[S]) Get(tb testing.TB, start func(testing.TB) S) S {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.had {
		s.server = start(&lasting{TB: tb, keep: s.keep})
		s.had = true
	}
	return s.server
}

func (s *Shared[S]) keep(f func()) {
	s.ends.Lock()
	defer s.ends.Unlock()
	s.end = append(s.end, f)
}

// Stop ends the server, if there is one.
func (s *Shared[S]) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends.Lock()
	defer s.ends.Unlock()
	for i := len(s.end) - 1; i >= 0; i-- {
		s.end[i]()
	}
	s.end, s.had = nil, false
}

// Main is a test main that stops the server when all tests have run.
func (s *Shared[S]) Main(m *testing.M) *Main { return &Main{m: m, after: s.Stop} }

// Main runs the tests of a package and does something afterwards; goleak.VerifyTestMain takes it.
type Main struct {
	m     *testing.M
	after func()
}

// Run runs the tests.
func (m *Main) Run() int {
	defer m.after()
	return m.m.Run()
}

// lasting is a test whose cleanups wait for the end of all tests.
type lasting struct {
	testing.TB
	keep func(func())
}

func (l *lasting) Cleanup(f func()) { l.keep(f) }

// TempDir is a folder that goes with the server.
func (l *lasting) TempDir() string {
	l.Helper()
	dir, err := os.MkdirTemp("", "mecha-shared-")
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
