package hostdir_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/hostdir"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, dir string, log *slog.Logger) block.Registry {
	t.Helper()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	r, err := hostdir.New(block.Env{Log: log}, &hostdir.Config{Dir: dir})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

func dirOf(t testing.TB) string { return filepath.Join(t.TempDir(), "registry") }

func instance(n int) block.Instance {
	return block.Instance{ID: fmt.Sprint("id-", n), App: "orders", Namespace: "default", Address: fmt.Sprint("127.0.0.1:", 1000+n)}
}

var orders = block.Name{App: "orders", Namespace: "default"}

func register(t testing.TB, r block.Registry, in block.Instance) {
	t.Helper()
	if err := r.(block.Registrar).Register(t.Context(), in); err != nil {
		t.Fatalf("Register: %v", err)
	}
}

func count(t testing.TB, r block.Registry) int {
	t.Helper()
	got, err := r.Resolve(context.Background(), orders)
	if err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	return len(got)
}

func entries(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestConformance(t *testing.T) {
	blocktest.Registry(t, func(t *testing.T) blocktest.RegistryPlace {
		dir := dirOf(t)
		return blocktest.RegistryPlace{
			Crowd: 100,
			Open:  func(t *testing.T) block.Registry { return open(t, dir, nil) },
		}
	})
}

func TestConfigValidate(t *testing.T) {
	for name, c := range map[string]struct {
		dir string
		ok  bool
	}{"empty": {"", true}, "absolute": {t.TempDir(), true}, "relative": {"some/where", false}} {
		err := (&hostdir.Config{Dir: c.dir}).Validate()
		if (err == nil) != c.ok {
			t.Errorf("%s: Validate = %v, want ok %v", name, err, c.ok)
		}
	}
}

func TestBackendOpensByType(t *testing.T) {
	set, err := block.NewSet(hostdir.Backend())
	if err != nil {
		t.Fatal(err)
	}
	part, ok := set.Find("nameresolution.hostdir", "v1")
	if !ok {
		t.Fatalf("nameresolution.hostdir is not among %v", set.Types())
	}
	c, err := part.Open(block.Env{Log: slog.New(slog.DiscardHandler)}, part.Config())
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestFolderFromEnvironment(t *testing.T) {
	root := t.TempDir()
	for _, c := range []struct{ name, mecha, xdg, tmp, want string }{
		{"mecha first", filepath.Join(root, "m"), filepath.Join(root, "x"), root, "m/mecha/registry"},
		{"then xdg", "", filepath.Join(root, "x"), root, "x/mecha/registry"},
		{"then a folder per user", "", "", root, fmt.Sprintf("mecha-%d/mecha/registry", os.Getuid())},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("MECHA_RUNTIME_DIR", c.mecha)
			t.Setenv("XDG_RUNTIME_DIR", c.xdg)
			t.Setenv("TMPDIR", c.tmp)
			r := open(t, "", nil)
			register(t, r, instance(1))
			if got := entries(t, filepath.Join(root, c.want)); len(got) != 1 {
				t.Errorf("%s holds %v, want one entry", c.want, got)
			}
			if info, err := os.Stat(filepath.Join(root, c.want)); err == nil && info.Mode().Perm() != 0o700 {
				t.Errorf("mode of the folder = %v, want 0700", info.Mode().Perm())
			}
		})
	}
}

// The kill test and the tests with files of others are in the _unix file.

func TestSameIDInTwoProcessesShowsTheNewest(t *testing.T) {
	dir := dirOf(t)
	a, b := open(t, dir, nil), open(t, dir, nil)
	in := instance(1)
	register(t, a, in)
	in.Address = "127.0.0.1:9999"
	register(t, b, in)
	got, err := open(t, dir, nil).Resolve(t.Context(), orders)
	if err != nil || len(got) != 1 || got[0].Address != in.Address {
		t.Errorf("Resolve = %v, %v; want the newer entry alone", got, err)
	}
	if err := a.Close(t.Context()); err != nil { // must not take b's entry with it
		t.Error(err)
	}
	if n := count(t, b); n != 1 {
		t.Errorf("after the first left: %d instances, want 1", n)
	}
}

func TestForeignFilesAreHarmless(t *testing.T) {
	dir := dirOf(t)
	var log lockedBuffer
	r := open(t, dir, slog.New(slog.NewTextHandler(&log, nil)))
	register(t, r, instance(1))
	prefix := strings.Split(filepath.Base(entries(t, dir)[0]), "-")[0]
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("README", "hello")
	write(prefix+"-0000000000000001.json", "not json")
	write(prefix+"-0000000000000002.json", `{"format":99,"id":"x","app":"orders","namespace":"default","address":"1.2.3.4:5"}`)
	write(prefix+"-0000000000000003.json", strings.Repeat(" ", 1<<20))
	write(prefix+"-0000000000000004.json", `{"format":1,"id":"x","app":"orders","namespace":"default","address":"nonsense"}`)
	write(prefix+"-0000000000000005.json", "")
	if err := os.Mkdir(filepath.Join(dir, prefix+"-0000000000000006.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	before := len(entries(t, dir))
	for range 3 {
		if n := count(t, r); n != 1 {
			t.Fatalf("Resolve gave %d instances, want only ours", n)
		}
	}
	if after := len(entries(t, dir)); after != before {
		t.Errorf("foreign files: %d left of %d, want all", after, before)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 7 {
		t.Errorf("%d warnings, want one for each of 7 files:\n%s", len(lines), log.String())
	}
	if !strings.Contains(log.String(), "a newer mecha wrote it") {
		t.Errorf("no warning names the newer format:\n%s", log.String())
	}
}

func TestRemovedEntryIsWrittenAgain(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"the file":   func(dir string) error { return os.Remove(entries(t, dir)[0]) },
		"the folder": os.RemoveAll,
	} {
		t.Run(name, func(t *testing.T) {
			dir := dirOf(t)
			r, other := open(t, dir, nil), open(t, dir, nil)
			register(t, r, instance(1))
			time.Sleep(20 * time.Millisecond) // the guard's first look is over
			for range 2 {
				if err := remove(dir); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the entry is back", func() bool { return count(t, other) == 1 })
			}
			if err := r.(block.Registrar).Deregister(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			if n := count(t, other); n != 0 {
				t.Errorf("after Deregister %d instances, want none: the guard brought it back", n)
			}
		})
	}
}

func TestCloseFromInsideWatch(t *testing.T) {
	r := open(t, dirOf(t), nil)
	done := make(chan error, 1)
	go func() {
		done <- r.(block.RegistryWatcher).Watch(context.Background(), orders,
			func([]block.Instance) { _ = r.Close(context.Background()) })
	}()
	select {
	case err := <-done:
		if fault.Of(err) != fault.Unavailable {
			t.Errorf("Watch = %v, want unavailable", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Close from inside Watch hangs")
	}
}

// Readers must not remove a file on its way in: every registration is visible from the
// moment Register returns, however many others look and remove.
func TestReadersNeverRemoveTheLiving(t *testing.T) {
	dir := dirOf(t)
	readers, stop := sync.WaitGroup{}, make(chan struct{})
	for range 4 {
		r := open(t, dir, nil)
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if _, err := r.Resolve(context.Background(), orders); err != nil {
						t.Errorf("Resolve: %v", err)
						return
					}
				}
			}
		})
	}
	var writers sync.WaitGroup
	for w := range 4 {
		r := open(t, dir, nil)
		writers.Go(func() {
			for n := range 50 {
				in := instance(w*1000 + n)
				if err := r.(block.Registrar).Register(context.Background(), in); err != nil {
					t.Errorf("Register: %v", err)
					return
				}
				if got, err := r.Resolve(context.Background(), orders); err != nil || !has(got, in.ID) {
					t.Errorf("just registered %s is not in %v (%v)", in.ID, got, err)
					return
				}
				if err := r.(block.Registrar).Deregister(context.Background()); err != nil {
					t.Errorf("Deregister: %v", err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	if left := entries(t, dir); len(left) != 0 {
		t.Errorf("files left behind: %v", left)
	}
}

func has(list []block.Instance, id string) bool {
	for _, in := range list {
		if in.ID == id {
			return true
		}
	}
	return false
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5s: %s", what)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func BenchmarkResolve(b *testing.B) {
	dir := dirOf(b)
	r := open(b, dir, nil)
	for n := range 3 {
		register(b, r, instance(n))
	}
	for n := range 30 { // other apps of the host
		in := instance(100 + n)
		in.App = fmt.Sprint("other-", n)
		register(b, r, in)
	}
	for b.Loop() {
		if n := count(b, r); n != 3 {
			b.Fatal(n)
		}
	}
}
