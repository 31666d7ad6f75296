package servers

import (
	"net"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"os"
)

var component struct {
	once   sync.Once
	binary string
	out    []byte
	err    error
}

// Pluggable is a component in a process of its own, of the program in the folder component.
type Pluggable struct {
	*Process
	Socket string
	args   []string
}

// StartPluggable runs the component on a socket of this name in a folder.
func StartPluggable(tb testing.TB, folder, name string, args ...string) *Pluggable {
	tb.Helper()
	p := &Pluggable{Socket: filepath.Join(folder, name+".sock"), args: args}
	p.Restart(tb)
	return p
}

// Restart runs it again, after Kill. It knows nothing of what was before.
func (p *Pluggable) Restart(tb testing.TB) {
	tb.Helper()
	_ = os.Remove(p.Socket)
	p.Process = Start(tb, exec.Command(componentProgram(tb), append([]string{"-socket", p.Socket}, p.args...)...), func() error {
		c, err := net.Dial("unix", p.Socket)
		if err == nil {
			_ = c.Close()
		}
		return err
	})
}

// componentProgram builds the program once per test process.
func componentProgram(tb testing.TB) string {
	tb.Helper()
	c := &component
	c.once.Do(func() {
		var dir string
		if dir, c.err = os.MkdirTemp("", "mecha-component-"); c.err != nil {
			return
		}
		c.binary = filepath.Join(dir, "component")
		c.out, c.err = exec.Command("go", "build", "-o", c.binary, "github.com/mecha-project/mecha/test/servers/component").CombinedOutput()
	})
	if c.err != nil {
		tb.Fatalf("build the component: %v\n%s", c.err, c.out)
	}
	return c.binary
}
