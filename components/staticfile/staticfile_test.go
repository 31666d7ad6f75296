package staticfile_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/staticfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, path string) block.Registry {
	t.Helper()
	r, err := staticfile.New(block.Env{Log: slog.New(slog.DiscardHandler), Namespace: "default"}, &staticfile.Config{Path: path})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	return r
}

// replace writes the file as careful tools do: beside it, then renamed.
func replace(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	for _, name := range []string{"apps.json", "apps.yaml"} { // JSON is YAML, tabs apart
		t.Run(name, func(t *testing.T) {
			blocktest.Registry(t, func(t *testing.T) blocktest.RegistryPlace {
				path := filepath.Join(t.TempDir(), name)
				replace(t, path, "{}")
				return blocktest.RegistryPlace{
					Open: func(t *testing.T) block.Registry { return open(t, path) },
					Put:  func(t *testing.T, list []block.Instance) { replace(t, path, encode(t, list)) },
				}
			})
		})
	}
}

func encode(t testing.TB, list []block.Instance) string {
	t.Helper()
	apps := map[string][]map[string]any{}
	for _, in := range list {
		apps[in.App] = append(apps[in.App], map[string]any{"address": in.Address, "id": in.ID,
			"namespace": in.Namespace, "protocol": in.Protocol, "weight": in.Weight, "labels": in.Labels})
		if in.Labels == nil {
			delete(apps[in.App][len(apps[in.App])-1], "labels")
		}
	}
	data, err := json.Marshal(map[string]any{"apps": apps})
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var orders = block.Name{App: "orders", Namespace: "default"}

func addresses(t testing.TB, r block.Registry) string {
	t.Helper()
	got, err := r.Resolve(context.Background(), orders)
	if err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	var out []string
	for _, in := range got {
		out = append(out, in.Address)
	}
	return strings.Join(out, " ")
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 5s: %s", what)
		}
	}
}

func TestReload(t *testing.T) {
	for name, write := range map[string]func(path, text string) error{
		"in place": func(path, text string) error { return os.WriteFile(path, []byte(text), 0o600) },
		"renamed":  func(path, text string) error { replace(t, path, text); return nil },
		"removed between": func(path, text string) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			time.Sleep(60 * time.Millisecond)
			return os.WriteFile(path, []byte(text), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "apps.yaml")
			replace(t, path, "apps: {orders: ['h:1']}")
			r := open(t, path)
			if got := addresses(t, r); got != "h:1" {
				t.Fatalf("addresses = %q, want h:1", got)
			}
			if err := write(path, "apps: {orders: ['h:2', 'h:3']}"); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the new addresses", func() bool { return addresses(t, r) == "h:2 h:3" })
		})
	}
}

// Kubernetes mounts a ConfigMap as links through ..data, which it swaps by renaming.
func TestReloadBehindSwappedLink(t *testing.T) {
	dir := t.TempDir()
	version := func(name, text string) {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		replace(t, filepath.Join(dir, name, "apps.yaml"), text)
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", "apps: {orders: ['h:1']}")
	path := filepath.Join(dir, "apps.yaml")
	if err := os.Symlink(filepath.Join("..data", "apps.yaml"), path); err != nil {
		t.Fatal(err)
	}
	r := open(t, path)
	if got := addresses(t, r); got != "h:1" {
		t.Fatalf("addresses = %q, want h:1", got)
	}
	version("..2", "apps: {orders: ['h:2']}")
	eventually(t, "the swapped version", func() bool { return addresses(t, r) == "h:2" })
}

func TestBadVersionKeepsTheLastGoodOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "apps.yaml")
	replace(t, path, "apps: {orders: ['h:1']}")
	logged := make(chan string, 10)
	log := slog.New(slog.NewTextHandler(writerFunc(func(p []byte) (int, error) {
		logged <- string(p)
		return len(p), nil
	}), nil))
	r, err := staticfile.New(block.Env{Log: log, Namespace: "default"}, &staticfile.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close(context.Background())
	if got := addresses(t, r); got != "h:1" {
		t.Fatalf("addresses = %q, want h:1", got)
	}
	replace(t, path, "apps:\n  orders:\n    - h\n")
	select {
	case line := <-logged:
		if !strings.Contains(line, "apps.yaml:3: ") || !strings.Contains(line, "level=ERROR") {
			t.Errorf("logged %q, want an error with file and line", line)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the bad version was not reported")
	}
	if got := addresses(t, r); got != "h:1" {
		t.Errorf("addresses = %q, want the last good h:1", got)
	}
	replace(t, path, "apps: {orders: ['h:2']}")
	eventually(t, "the good version", func() bool { return addresses(t, r) == "h:2" })
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestFirstVersion(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "apps.yaml")
	r := open(t, path)
	_, err := r.Resolve(t.Context(), orders)
	if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), path) {
		t.Errorf("Resolve without a file = %v (%v), want unavailable naming the file", err, fault.Of(err))
	}
	replace(t, path, "apps: [")
	eventually(t, "a syntax error", func() bool { return fault.Of(r.Ping(context.Background())) == fault.Invalid })
	replace(t, path, "apps: {orders: ['h:1']}")
	eventually(t, "a good version", func() bool { return r.Ping(context.Background()) == nil })
	if got := addresses(t, r); got != "h:1" {
		t.Errorf("addresses = %q, want h:1", got)
	}
}

func TestUnreadablePlaces(t *testing.T) {
	dir := t.TempDir()
	if _, err := staticfile.New(block.Env{}, &staticfile.Config{}); fault.Of(err) != fault.Invalid {
		t.Errorf("New without path = %v, want invalid", err)
	}
	huge := filepath.Join(dir, "huge.yaml")
	if err := os.WriteFile(huge, []byte(strings.Repeat("#", 2<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"a directory": dir, "a huge file": huge, "no folder": filepath.Join(dir, "no", "apps.yaml")} {
		if err := open(t, path).Ping(t.Context()); fault.Of(err) != fault.Unavailable {
			t.Errorf("%s: Ping = %v (%v), want unavailable", name, err, fault.Of(err))
		}
	}
}
