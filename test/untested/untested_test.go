package untested_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/test/untested"
)

// judge is a test that stands aside, watched.
type judge struct {
	testing.TB
	skipped, failed string
}

func (*judge) Helper()      {}
func (*judge) Name() string { return "TestOfThis" }

func (j *judge) Skipf(format string, args ...any) {
	j.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (j *judge) Fatalf(format string, args ...any) {
	j.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func skip(t *testing.T) *judge {
	j := &judge{TB: t}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		untested.Skip(j, "the moon: %s", "no\nrocket")
	}()
	<-ended
	return j
}

func TestSkip(t *testing.T) {
	list := filepath.Join(t.TempDir(), "list")
	t.Setenv("MECHA_UNTESTED", list)
	t.Setenv("MECHA_FULL", "1")
	if j := skip(t); j.skipped != "" || !strings.Contains(j.failed, "the moon") {
		t.Errorf("in the full gate: %+v", j)
	}
	t.Setenv("MECHA_FULL", "")
	for range 2 {
		if j := skip(t); j.failed != "" || !strings.Contains(j.skipped, "the moon") {
			t.Errorf("at the desk: %+v", j)
		}
	}
	text, err := os.ReadFile(list)
	if want := "TestOfThis: the moon: no rocket\n"; err != nil || string(text) != want+want {
		t.Errorf("noted %q, %v", text, err)
	}
}

// TestNobodySkipsAlone: every skip of the house goes through this package.
func TestNobodySkipsAlone(t *testing.T) {
	alone := regexp.MustCompile(`\b(\w+)\.Skip(f|Now)?\(`)
	seen := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == ".dev" || path == "../../test/untested"):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		seen++
		for _, at := range alone.FindAllSubmatchIndex(text, -1) {
			if string(text[at[2]:at[3]]) != "untested" {
				t.Errorf("%s:%d skips by itself; call untested.Skip", path, 1+strings.Count(string(text[:at[0]]), "\n"))
			}
		}
		return nil
	})
	if err != nil || seen < 100 {
		t.Errorf("read %d files, %v", seen, err)
	}
}
