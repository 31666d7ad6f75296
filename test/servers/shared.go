package servers

import (
	"os"
	"sync"
	"testing"
)

// Main runs the tests of a binary and then stops the servers they shared:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(servers.Main{M: m}) }
type Main struct{ M *testing.M }

// Run implements goleak.TestingM.
func (m Main) Run() int {
	code := m.M.Run()
	shared.Lock()
	defer shared.Unlock()
	shared.life.end()
	return code
}

var shared struct {
	sync.Mutex
	life  lasting
	kafka *Kafka
}

// SharedKafka is a broker that all tests of the binary use, each with topics and groups of its own:
// one with the settings of StartKafka, not to be stopped, killed or halted. It needs Main.
func SharedKafka(tb testing.TB) *Kafka {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.kafka == nil {
		shared.kafka = StartKafka(&outliving{tb, &shared.life})
	}
	return shared.kafka
}

// lasting is what ends with the test binary.
type lasting struct{ undo []func() }

func (l *lasting) end() {
	for i := len(l.undo) - 1; i >= 0; i-- {
		l.undo[i]()
	}
	l.undo = nil
}

// outliving is a test whose servers and folders outlive it.
type outliving struct {
	testing.TB
	life *lasting
}

func (o *outliving) Cleanup(f func()) { o.life.undo = append(o.life.undo, f) }

func (o *outliving) TempDir() string {
	dir, err := os.MkdirTemp("", "mecha-shared-")
	if err != nil {
		o.TB.Fatal(err)
	}
	o.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
