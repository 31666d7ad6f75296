//go:build unix

package settings_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mecha-project/mecha/runtime/settings"
)

func TestHostileFiles(t *testing.T) {
	dir := writeFiles(t, map[string]string{"ok.yaml": twoComponents})
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/nowhere/at/all", filepath.Join(dir, "dangling.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "huge.yaml"), make([]byte, 9<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := settings.LoadResources([]string{dir}, settings.Selection{})
	if err != nil || len(r.Components) != 2 {
		t.Fatalf("%v, %d components", err, len(r.Components))
	}
	if len(r.Findings) != 2 {
		t.Errorf("got %v, want the dangling link and the huge file", r.Findings)
	}
}
