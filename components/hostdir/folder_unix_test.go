//go:build unix

package hostdir_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/untested"
)

func TestUnsafeFoldersAreRefused(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(dir string) error
		words string
	}{
		{"readable by others", func(d string) error { return os.Mkdir(d, 0o755) }, "chmod 700"},
		{"a link", func(d string) error { return os.Symlink(filepath.Dir(d), d) }, "not a directory"},
		{"a file", func(d string) error { return os.WriteFile(d, nil, 0o600) }, "not a directory"},
		{"parent writable by all", func(d string) error { return os.Chmod(filepath.Dir(d), 0o777) }, "writable by others"},
		{"parent missing", func(d string) error { return os.Remove(filepath.Dir(d)) }, "no such file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "parent", "registry")
			if err := os.Mkdir(filepath.Dir(dir), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			err := open(t, dir, nil).Ping(t.Context())
			if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), c.words) ||
				!strings.Contains(err.Error(), "MECHA_RUNTIME_DIR") {
				t.Errorf("Ping = %v (%v), want unavailable with %q and what to do", err, fault.Of(err), c.words)
			}
		})
	}
}

func TestFolderOfAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		untested.Skip(t, "a folder of another user: only root can make one")
	}
	dir := dirOf(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 4242, 4242); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir, nil).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "belongs to user 4242") {
		t.Errorf("Ping = %v, want a refusal naming the owner", err)
	}
}

func TestLinksAndPipesAreNotRead(t *testing.T) {
	dir := dirOf(t)
	var log lockedBuffer
	r := open(t, dir, slog.New(slog.NewTextHandler(&log, nil)))
	register(t, r, instance(1))
	own := entries(t, dir)[0]
	prefix := strings.Split(filepath.Base(own), "-")[0]
	if err := os.Symlink(own, filepath.Join(dir, prefix+"-0000000000000001.json")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, prefix+"-0000000000000002.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if n := count(t, r); n != 1 {
		t.Errorf("%d instances, want 1", n)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("Resolve took %v: it waited for a pipe", took)
	}
	if got := strings.Count(log.String(), "ignored"); got != 2 {
		t.Errorf("%d warnings, want 2:\n%s", got, log.String())
	}
}

func TestOldDraftsAreRemoved(t *testing.T) {
	dir := dirOf(t)
	r := open(t, dir, nil)
	count(t, r)
	old, young := filepath.Join(dir, "draft-0000000000000001"), filepath.Join(dir, "draft-0000000000000002")
	for _, p := range []string{old, young} {
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(old, time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	count(t, r)
	if got := entries(t, dir); len(got) != 1 || got[0] != young {
		t.Errorf("files = %v, want the young draft alone", got)
	}
}
