package embedded_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats/embedded"
)

// patience bounds every wait; nothing passes by waiting it out.
const patience = 20 * time.Second

func connect(t testing.TB, dir string) *embedded.Conn {
	t.Helper()
	c, err := embedded.Connect(t.Context(), embedded.Options{DataDir: dir, Linger: 200 * time.Millisecond})
	if err != nil {
		t.Fatalf("Connect: %v", err)
	}
	t.Cleanup(c.Close)
	return c
}

func refused(t *testing.T, dir string, o embedded.Options, code fault.Code, words ...string) {
	t.Helper()
	o.DataDir = dir
	c, err := embedded.Connect(t.Context(), o)
	if err == nil {
		c.Close()
		t.Fatalf("Connect succeeded, want %v", code)
	}
	if fault.Of(err) != code {
		t.Errorf("Connect: %v (%v), want %v", err, fault.Of(err), code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("Connect: %q does not say %q", err, w)
		}
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func bucket(t testing.TB, c *embedded.Conn) jetstream.KeyValue {
	t.Helper()
	js, err := jetstream.New(c.NATS())
	if err != nil {
		t.Fatal(err)
	}
	kv, err := js.CreateOrUpdateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "b"})
	if err != nil {
		t.Fatalf("bucket: %v", err)
	}
	return kv
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// nodeDir is a directory for a node, which makes its last parts. It is removed after the node
// has left.
func nodeDir(t testing.TB, parts ...string) string {
	t.Helper()
	dir := filepath.Join(append([]string{t.TempDir()}, parts...)...)
	t.Cleanup(func() { waitFor(t, "the node to leave", func() bool { return unlocked(dir) }) })
	return dir
}

// node starts a node process by hand, as a client would.
type node struct {
	cmd   *exec.Cmd
	first string // its status line
}

func startNode(t testing.TB, dir string, args ...string) *node {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{"embedded", "--data-dir", dir}, args...)...)
	cmd.Env = append(os.Environ(), embedded.EnvNode+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := &node{cmd: cmd}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	n.first, _ = bufio.NewReader(out).ReadString('\n')
	return n
}

func (n *node) word(t testing.TB) (w struct{ Ready, Busy bool }) {
	t.Helper()
	if err := json.Unmarshal([]byte(n.first), &w); err != nil {
		t.Fatalf("the node says %q: %v", n.first, err)
	}
	return w
}

func TestConnectStartsANodeWhichLeavesAlone(t *testing.T) {
	dir := nodeDir(t, "made", "on demand")
	c := connect(t, dir)
	if _, err := bucket(t, c).PutString(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "node.sock")
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v, %v; want mode 0600", info, err)
	}
	if d, _ := os.Stat(dir); d.Mode().Perm() != 0o700 {
		t.Errorf("the directory's mode is %v, want 0700", d.Mode())
	}
	c.Close()
	c.Close()
	waitFor(t, "the node to leave", func() bool { _, err := os.Stat(socket); return err != nil })

	if item, err := bucket(t, connect(t, dir)).Get(t.Context(), "k"); err != nil || string(item.Value()) != "v" {
		t.Errorf("after a restart the key is %v, %v; want v", item, err)
	}
}

func TestConnectionIsShared(t *testing.T) {
	dir := nodeDir(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	conns := make([]*embedded.Conn, 4)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			path := dir
			if i%2 == 1 {
				path = link
			}
			var err error
			conns[i], err = embedded.Connect(t.Context(), embedded.Options{DataDir: path, Linger: 200 * time.Millisecond})
			if err != nil {
				t.Errorf("Connect: %v", err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, c := range conns[1:] {
		if c.NATS() != conns[0].NATS() {
			t.Errorf("two connections to one directory in one process")
		}
	}
	for _, c := range conns[1:] {
		c.Close()
	}
	if err := conns[0].NATS().Flush(); err != nil {
		t.Errorf("closing other shares broke the connection: %v", err)
	}
	conns[0].Close()
	if !conns[0].NATS().IsClosed() {
		t.Errorf("the connection is open after the last share was closed")
	}
}

func TestOneNodePerDirectory(t *testing.T) {
	dir := nodeDir(t)
	const starters = 4
	nodes := make([]*node, starters)
	var wg sync.WaitGroup
	for i := range nodes {
		wg.Go(func() { nodes[i] = startNode(t, dir) })
	}
	wg.Wait()
	ready, busy := 0, 0
	for _, n := range nodes {
		if w := n.word(t); w.Ready {
			ready++
		} else if w.Busy {
			busy++
		}
	}
	if ready != 1 || busy != starters-1 {
		t.Fatalf("of %d nodes %d are ready and %d found another; want 1 and %d", starters, ready, busy, starters-1)
	}
	if err := embedded.Run(t.Context(), embedded.NodeOptions{DataDir: dir, Log: io.Discard}); !errors.Is(err, embedded.ErrBusy) {
		t.Errorf("a node beside a running one: %v, want ErrBusy", err)
	}
}

func TestNodeInProcess(t *testing.T) {
	dir := nodeDir(t)
	ctx, stop := context.WithCancel(t.Context())
	ready := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- embedded.Run(ctx, embedded.NodeOptions{DataDir: dir, Status: closer(ready)})
	}()
	<-ready
	c, err := net.Dial("unix", filepath.Join(dir, "node.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, "INFO ") {
		t.Errorf("the node greets with %q, %v", line, err)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("Run returned %v, want nil after its context ended", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("a client is still connected")
	}
	if text, _ := os.ReadFile(filepath.Join(dir, "node.log")); !strings.Contains(string(text), "msg=ready") {
		t.Errorf("node.log says %q", text)
	}
}

type closer chan struct{}

func (c closer) Write(p []byte) (int, error) {
	close(c)
	return len(p), nil
}

func TestFormat(t *testing.T) {
	for name, tc := range map[string]struct {
		text  string
		o     embedded.Options
		code  fault.Code
		words []string
	}{
		"newer":        {"format 7\nshards 3\n", embedded.Options{}, fault.Unsupported, []string{"format 7", "up to 1", "newer mecha"}},
		"no number":    {"format x\n", embedded.Options{}, fault.Invalid, []string{"damaged", "FORMAT"}},
		"empty":        {"", embedded.Options{}, fault.Invalid, []string{"damaged"}},
		"durability":   {"format 1\ndurability maybe\n", embedded.Options{}, fault.Invalid, []string{"maybe"}},
		"other choice": {"format 1\ndurability os\n", embedded.Options{Durability: embedded.DurabilityStrict}, fault.Invalid, []string{"durability os", "strict"}},
		"bad choice":   {"format 1\ndurability os\n", embedded.Options{Durability: "paranoid"}, fault.Invalid, []string{"paranoid", "strict"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := nodeDir(t)
			write(t, filepath.Join(dir, "FORMAT"), tc.text)
			refused(t, dir, tc.o, tc.code, tc.words...)
			// A node started by hand must refuse it too.
			err := embedded.Run(t.Context(), embedded.NodeOptions{DataDir: dir, Durability: tc.o.Durability, Log: io.Discard})
			if fault.Of(err) != tc.code {
				t.Errorf("Run: %v, want %v", err, tc.code)
			}
		})
	}
}

func TestDurabilityIsKept(t *testing.T) {
	dir := nodeDir(t)
	c, err := embedded.Connect(t.Context(), embedded.Options{DataDir: dir, Durability: embedded.DurabilityStrict, Linger: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	refused(t, dir, embedded.Options{Durability: embedded.DurabilityOS}, fault.Invalid, "strict") // while the node runs
	c.Close()
	text, _ := os.ReadFile(filepath.Join(dir, "FORMAT"))
	if string(text) != "format 1\ndurability strict\n" {
		t.Errorf("FORMAT is %q", text)
	}
	connect(t, dir) // without a wish: fine
}

func TestDirectoriesThatCannotBeServed(t *testing.T) {
	t.Run("a file in the way", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		write(t, file, "x")
		refused(t, filepath.Join(file, "dir"), embedded.Options{}, fault.Invalid, file, "--data-dir")
	})
	t.Run("data without FORMAT", func(t *testing.T) {
		dir := nodeDir(t)
		write(t, filepath.Join(dir, "jetstream", "x"), "x")
		refused(t, dir, embedded.Options{}, fault.Invalid, "no FORMAT", dir)
	})
	t.Run("an unwritable log", func(t *testing.T) {
		dir := nodeDir(t)
		write(t, filepath.Join(dir, "node.log", "x"), "x") // a directory in its place
		refused(t, dir, embedded.Options{}, fault.Unavailable, "node.log")
	})
	t.Run("a node that dies", func(t *testing.T) {
		t.Setenv("TEST_NODE_PANICS", "1")
		refused(t, nodeDir(t), embedded.Options{}, fault.Unavailable, "did not start", "exit status 2", "told to panic")
	})
	t.Run("no executable", func(t *testing.T) {
		refused(t, nodeDir(t), embedded.Options{Executable: "/nonexistent/mecha"}, fault.Unavailable, "/nonexistent/mecha")
	})
}

// A stream whose description is damaged is left out by the server library with a warning only.
func TestDamagedStoreIsRefused(t *testing.T) {
	dir := nodeDir(t)
	c := connect(t, dir)
	if _, err := bucket(t, c).PutString(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	c.Close()
	waitFor(t, "the node to leave", func() bool { _, err := os.Stat(filepath.Join(dir, "node.sock")); return err != nil })
	stream := filepath.Join(dir, "jetstream", "$G", "streams", "KV_b")
	meta, err := os.ReadFile(filepath.Join(stream, "meta.inf"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(stream, "meta.inf"), string(meta[:len(meta)/2]))
	refused(t, dir, embedded.Options{}, fault.Lost, "damaged", "KV_b", "restore")

	write(t, filepath.Join(stream, "meta.inf"), string(meta)) // the data itself was never touched
	if item, err := bucket(t, connect(t, dir)).Get(t.Context(), "k"); err != nil || string(item.Value()) != "v" {
		t.Errorf("after repair the key is %v, %v; want v", item, err)
	}
}

// What a crash while a stream is made leaves behind must not lock anybody out.
func TestHalfMadeStreamIsNoDamage(t *testing.T) {
	dir := nodeDir(t)
	connect(t, dir).Close()
	waitFor(t, "the node to leave", func() bool { _, err := os.Stat(filepath.Join(dir, "node.sock")); return err != nil })
	write(t, filepath.Join(dir, "jetstream", "$G", "streams", "half", "msgs", "1.blk"), "")
	connect(t, dir)
}

func TestLongPathsAndDeadSockets(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", shortDir(t))
	dir := nodeDir(t, strings.Repeat("long/", 30))
	c := connect(t, dir)
	if _, err := bucket(t, c).PutString(t.Context(), "k", "v"); err != nil {
		t.Fatal(err)
	}
	record, err := os.ReadFile(filepath.Join(dir, "node.socket"))
	if err != nil || !strings.HasPrefix(string(record), os.Getenv("XDG_RUNTIME_DIR")) {
		t.Errorf("the socket's record is %q, %v", record, err)
	}
	// A client with another environment finds it by the record.
	t.Setenv("XDG_RUNTIME_DIR", shortDir(t))
	if n := startNode(t, dir); !n.word(t).Busy {
		t.Errorf("a second node says %q, want busy", n.first)
	}
	c.Close()

	dead := nodeDir(t)
	l, err := net.Listen("unix", filepath.Join(dead, "node.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	_ = l.Close()
	connect(t, dead)
}

// shortDir is a temporary directory whose path leaves room for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(d) })
	return d
}

func TestContextEndsConnect(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := nodeDir(t)
	if c, err := embedded.Connect(ctx, embedded.Options{DataDir: dir, Linger: 100 * time.Millisecond}); err == nil {
		c.Close() // it may have been faster
	} else if fault.Of(err) != fault.Canceled {
		t.Errorf("Connect: %v, want canceled", err)
	}
	connect(t, dir).Close()
}

func FuzzFormat(f *testing.F) {
	for _, s := range []string{"format 1\ndurability os\n", "format 2\n", "", "format", "format -1", "durability strict\nformat 1", "\x00", strings.Repeat("x", 1<<17)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dir := nodeDir(t)
		write(t, filepath.Join(dir, "FORMAT"), text)
		got, err := embedded.CheckFormat(dir)
		if err == nil && got != embedded.DurabilityOS && got != embedded.DurabilityStrict {
			t.Errorf("FORMAT %q is accepted with durability %q", text, got)
		}
		_ = fmt.Sprint(err)
	})
}

// TestNoNodeForAConnectionThatEnded: the library may try to repair a connection while it is
// being closed; that is no reason to start a node.
func TestNoNodeForAConnectionThatEnded(t *testing.T) {
	dir := nodeDir(t)
	if err := embedded.DialEnded(dir); fault.Of(err) != fault.Unavailable {
		t.Errorf("error %v, want unavailable", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node.log")); err == nil {
		t.Error("a node was started")
	}
}
