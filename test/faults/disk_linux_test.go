package faults

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/untested"
)

// smallDisk is a directory on a file system of its own with that many bytes. It needs root.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getuid() != 0 {
		untested.Skip(t, "a full disk: a file system of its own needs root")
	}
	dir := dataDir(t)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal("mounting a small disk: ", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 64<<10); len(chunk) > 0; {
		if _, err := f.Write(chunk); err != nil {
			chunk = chunk[:len(chunk)/2] // down to the last byte
		}
	}
}

// The disk of the embedded node fills up. Callers are told why, soon; what was acknowledged
// before stays; and when there is space again, so does the next write.
func TestDiskFull(t *testing.T) {
	dir, g := smallDisk(t, "48m"), newLedger()
	mesh := harness.NewMesh(t)
	mesh.Start(harness.Options{AppID: "taker", AppPort: harness.Serve(t, g.subscriber(t)), Files: embeddedFiles(dir)})
	writer := mesh.Start(harness.Options{AppID: "writer", Files: embeddedFiles(dir)})
	l := begin(t, "disk of the embedded node full", 8, g.writes(t, writer, 500), g.publishes(t, writer))
	l.warm()
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)
	full := l.now()
	time.Sleep(3 * time.Second)
	told := l.lastError()
	if told == nil {
		t.Fatal("no call failed although the disk is full")
	}
	if text := told.Error(); !strings.Contains(text, "space") && !strings.Contains(text, "full") && !strings.Contains(text, "storage") {
		t.Errorf("the error does not say that there is no room: %s", text)
	}
	t.Logf("calls were told: %v", told)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	back := l.now()
	finish(t, l, back, limits{failures: -1, outage: back - full + 6*time.Second, recovery: 5 * time.Second})
	g.audit(t, writer, 15*time.Second)
}
