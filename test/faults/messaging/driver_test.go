//go:build unix

package messaging

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/servers"
)

// The component under test: a file with a component called "pubsub", in which {{address}} stands
// for where the server is and {{name}} for something that differs between histories. The server's
// own address is in envAddress; members reach it through gates that can be closed. Without the
// variables it is the embedded node.
const (
	envComponent = "MESSAGING_COMPONENT"
	envAddress   = "MESSAGING_ADDRESS"
)

// sessionTTL is how long a member may be silent. It is short, so that much happens in a run.
const sessionTTL = time.Second

// broker is what the members of a history talk to.
type broker interface {
	// component is the resource file of a member, which reaches the broker through its gate if it
	// has one.
	component(gate *servers.Gate) string
	// store is the resource file of a state store called "statestore" that can fence writes.
	store() string
	// gate is a way to the broker that can be closed; nil if there is none.
	gate(t testing.TB) *servers.Gate
	// pid is the broker's process, or 0 if it cannot be harmed.
	pid() int
}

func newBroker(t testing.TB) broker {
	file := os.Getenv(envComponent)
	if file == "" {
		return newEmbedded(t)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(envComponent+": ", err)
	}
	return &external{text: strings.ReplaceAll(string(text), "{{name}}", fmt.Sprintf("h%d", time.Now().UnixNano())), address: os.Getenv(envAddress), dir: newEmbedded(t).dir}
}

// driver names what is tested.
func driver() string {
	if file := os.Getenv(envComponent); file != "" {
		return filepath.Base(file)
	}
	return "embedded node"
}

// external is any broker that a component file can reach.
type external struct {
	text, address string
	dir           string // of an embedded store
}

func (x *external) component(g *servers.Gate) string {
	at := x.address
	if g != nil {
		at = g.Addr
	}
	return strings.ReplaceAll(x.text, "{{address}}", at)
}

// store is an embedded one: what is tested is the broker.
func (x *external) store() string { return embeddedStore(x.dir) }

func (x *external) gate(t testing.TB) *servers.Gate {
	if x.address == "" {
		return nil
	}
	return servers.NewGate(t, "tcp", "127.0.0.1:0", x.address)
}

func (x *external) pid() int { return 0 }

// embedded is a node in a directory of its own.
type embedded struct {
	t   testing.TB
	dir string
}

func newEmbedded(t testing.TB) *embedded {
	b := &embedded{t: t, dir: shortDir(t)}
	t.Cleanup(func() {
		if pid := b.pid(); pid > 0 {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have left
		}
	})
	return b
}

// shortDir is a directory with a short name: a socket lives in it.
func shortDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "msg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (b *embedded) component(g *servers.Gate) string {
	dir := b.dir
	if g != nil {
		dir = filepath.Dir(g.Addr)
	}
	return fmt.Sprintf(`apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: pubsub}
spec:
  type: pubsub.embedded
  version: v1
  metadata:
  - {name: dataDir, value: %q}
  - {name: maxBytes, value: 64Mi}
  - {name: partitions, value: "8"}
  - {name: sessionTTL, value: %s}
`, dir, sessionTTL)
}

func (b *embedded) store() string { return embeddedStore(b.dir) }

func embeddedStore(dir string) string {
	return fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: statestore}\nspec:\n  type: state.embedded\n  version: v1\n  metadata:\n  - {name: dataDir, value: %q}\n", dir)
}

// gate is another directory whose socket leads to the node's. What reaches the node that way never
// starts one: its socket always answers.
func (b *embedded) gate(t testing.TB) *servers.Gate {
	return servers.NewGate(t, "unix", filepath.Join(shortDir(t), "node.sock"), filepath.Join(b.dir, "node.sock"))
}

func (b *embedded) pid() int {
	text, err := os.ReadFile(filepath.Join(b.dir, "lock"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	return pid
}
