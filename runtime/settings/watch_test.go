package settings_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/runtime/settings"
)

func componentText(name, value string) string {
	return fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: %s}\nspec: {type: state.x, metadata: [{name: k, value: %q}]}\n", name, value)
}

// watch starts a watcher on dir and gives what it reports, as "+added ~changed -removed !finding".
func watch(t *testing.T, dir string) <-chan string {
	t.Helper()
	w, err := settings.NewWatcher([]string{dir}, settings.Selection{AppID: "a"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	out, done := make(chan string, 100), make(chan error, 1)
	go func() {
		done <- w.Run(ctx, func(d settings.Diff) { out <- describe(d) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Run returned %v", err)
		}
		if err := w.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		_ = w.Close() // twice is allowed
	})
	return out
}

func describe(d settings.Diff) string {
	var parts []string
	for _, c := range d.Components.Added {
		parts = append(parts, "+"+c.Name)
	}
	for _, c := range d.Components.Changed {
		parts = append(parts, "~"+c.Name)
	}
	for _, c := range d.Components.Removed {
		parts = append(parts, "-"+c.Name)
	}
	for _, c := range d.Subscriptions.Added {
		parts = append(parts, "+sub:"+c.Name)
	}
	slices.Sort(parts)
	for _, f := range d.Findings {
		parts = append(parts, "!"+f.Msg)
	}
	return strings.Join(parts, " ")
}

// next waits for a report that starts with want.
func next(t *testing.T, reports <-chan string, want string) {
	t.Helper()
	select {
	case got := <-reports:
		if !strings.HasPrefix(got, want) {
			t.Fatalf("reported %q, want %q", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("nothing was reported, want %q", want)
	}
}

// quiet checks that nothing is reported while a change is read that must not matter: the
// marker written after it is the next report.
func quiet(t *testing.T, dir string, reports <-chan string, marker string) {
	t.Helper()
	writeFile(t, filepath.Join(dir, marker+".yaml"), componentText(marker, "1"))
	next(t, reports, "+"+marker)
}

func TestWatchReportsDifferences(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a.yaml": componentText("a", "1") + "---\n" + componentText("b", "1")})
	reports := watch(t, dir)
	a := filepath.Join(dir, "a.yaml")

	writeFile(t, a, componentText("a", "1")+"---\n"+componentText("b", "2")+"---\n"+componentText("c", "1"))
	next(t, reports, "+c ~b")
	writeFile(t, a, componentText("a", "1"))
	next(t, reports, "-b -c")
	writeFile(t, filepath.Join(dir, "s.yml"), "apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata: {name: s}\nspec: {pubsubname: p, topic: t, route: /r}\n")
	next(t, reports, "+sub:s")
	writeFile(t, a, "# moved down\n\n"+componentText("a", "1")) // same content, other line
	writeFile(t, filepath.Join(dir, "notes.txt"), "not a resource")
	writeFile(t, filepath.Join(dir, "other.yaml"), "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: o}\nspec: {type: a.b}\nscopes: [z]\n")
	quiet(t, dir, reports, "m")
	if err := os.Remove(a); err != nil {
		t.Fatal(err)
	}
	next(t, reports, "-a")
}

func TestWatchKeepsTheLastGoodFile(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a.yaml": componentText("a", "1")})
	reports := watch(t, dir)
	a := filepath.Join(dir, "a.yaml")

	writeFile(t, a, componentText("a", "2")+"---\nkind: [\n")
	next(t, reports, "!not valid YAML")
	quiet(t, dir, reports, "m1") // the mistake is told once
	writeFile(t, a, componentText("a", "3"))
	next(t, reports, "~a")
	writeFile(t, filepath.Join(dir, "b.yaml"), componentText("a", "4"))
	next(t, reports, "!failed to load components: duplicate definition of Component name a (state.x) with existing a (state.x); the resources read before stay in force")
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	quiet(t, dir, reports, "m2")
}

func TestWatchForgivesAMomentaryEmptyFile(t *testing.T) {
	dir := writeFiles(t, map[string]string{"a.yaml": componentText("a", "1")})
	reports := watch(t, dir)
	a := filepath.Join(dir, "a.yaml")
	if err := os.Truncate(a, 0); err != nil {
		t.Fatal(err)
	}
	next(t, reports, "-a") // empty for good, seen only after the second look
	writeFile(t, a, componentText("a", "2"))
	next(t, reports, "+a")
}

func TestWatchSurvivesItsFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "res")
	writeFile(t, filepath.Join(dir, "a.yaml"), componentText("a", "1"))
	reports := watch(t, dir)
	aside := dir + ".aside"
	if err := os.Rename(dir, aside); err != nil {
		t.Fatal(err)
	}
	next(t, reports, "!cannot be read; the resources read from it before stay in force")
	writeFile(t, filepath.Join(aside, "b.yaml"), componentText("b", "1"))
	if err := os.Rename(aside, dir); err != nil {
		t.Fatal(err)
	}
	next(t, reports, "+b")
	writeFile(t, filepath.Join(dir, "c.yaml"), componentText("c", "1"))
	next(t, reports, "+c")
}

func TestWatchMountedFolder(t *testing.T) {
	dir := t.TempDir() // as Kubernetes mounts a map: files are links through ..data
	writeFile(t, filepath.Join(dir, "..v1", "a.yaml"), componentText("a", "1"))
	writeFile(t, filepath.Join(dir, "..v2", "a.yaml"), componentText("a", "2"))
	if err := os.Symlink("..v1", filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml")); err != nil {
		t.Fatal(err)
	}
	reports := watch(t, dir)
	if err := os.Symlink("..v2", filepath.Join(dir, "..new")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	next(t, reports, "~a")
}

func TestWatchMissingFolder(t *testing.T) {
	_, err := settings.NewWatcher([]string{filepath.Join(t.TempDir(), "none")}, settings.Selection{})
	if err == nil || !strings.HasPrefix(err.Error(), "failed to create watcher") {
		t.Errorf("got %v", err)
	}
}
