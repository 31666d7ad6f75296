package configfile_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/configfile"
	"github.com/mecha-project/mecha/components/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 20 * time.Second

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

// logLines keeps what a component logs.
type logLines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

func open(t testing.TB, path string) (block.Configuration, *logLines) {
	t.Helper()
	lines := &logLines{}
	s, err := configfile.New(block.Env{Log: slog.New(slog.NewTextHandler(lines, nil))}, &configfile.Config{Path: path})
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return s, lines
}

func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// replace writes as one should: beside the file, then in its place.
func replace(t testing.TB, path, text string) {
	t.Helper()
	put(t, path+".new", text)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestConfiguration(t *testing.T) {
	encode := func(t testing.TB, path string, values map[string]string) string {
		b, err := yaml.Marshal(values)
		if strings.HasSuffix(path, ".json") {
			b, err = json.MarshalIndent(values, "", "\t")
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for name, write := range map[string]func(testing.TB, string, string){"replaced.yaml": replace, "overwritten.yaml": put, "replaced.json": replace} {
		t.Run(name, func(t *testing.T) {
			blocktest.Configuration(t, func(t *testing.T) blocktest.ConfigurationPlace {
				path := filepath.Join(t.TempDir(), name)
				values := map[string]string{}
				flush := func() { write(t, path, encode(t, path, values)) }
				flush()
				return blocktest.ConfigurationPlace{
					Open:   func() block.Configuration { s, _ := open(t, path); return s },
					Set:    func(k, v string) { values[k] = v; flush() },
					Delete: func(k string) { delete(values, k); flush() },
					Keys:   []string{" a ", "a b", ".", "键", "a: b", "# a", "a||b", "-", "null", "true", "\"q\"", "a\nb"},
				}
			})
		})
	}
}

// told follows a store and keeps what it is told.
func told(t *testing.T, s block.Configuration, keys ...string) func() string {
	t.Helper()
	var mu sync.Mutex
	var b strings.Builder
	started, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Subscribe(t.Context(), keys, nil, func() { close(started) }, func(items map[string]block.ConfigItem) {
			mu.Lock()
			defer mu.Unlock()
			for k, it := range items {
				fmt.Fprintf(&b, "%s=%s;", k, it.Value)
			}
		})
	}()
	t.Cleanup(func() { <-done })
	<-started
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return b.String()
	}
}

// Whatever happens to the file, the last good values stay until there are other good ones.
func TestBadVersionsChangeNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	good := "a: 1\nb: 2\n"
	put(t, path, good)
	s, log := open(t, path)
	defer s.Close(t.Context())
	got := told(t, s)
	ways := []struct {
		name string
		harm func()
	}{
		{"no YAML", func() { replace(t, path, "a: [\n") }},
		{"a list", func() { replace(t, path, "- a\n") }},
		{"nested", func() { replace(t, path, "a: {b: 1}\n") }},
		{"empty", func() { put(t, path, "") }},
		{"comments only", func() { put(t, path, "# nothing\n") }},
		{"removed", func() { os.Remove(path) }},
		{"a folder", func() { os.Remove(path); os.Mkdir(path, 0o700) }},
		{"cut off in the middle of a line", func() { put(t, path, "a: [1, 2") }},
	}
	for i, w := range ways {
		w.harm()
		waitFor(t, w.name+": the log", func() bool { return log.count("configuration file is bad") == i+1 })
		items, err := s.Get(t.Context(), nil, nil)
		if err != nil || len(items) != 2 || items["a"].Value != "1" {
			t.Errorf("%s: Get = %v, %v; want the last good values", w.name, items, err)
		}
		if err := s.Ping(t.Context()); err != nil {
			t.Errorf("%s: Ping: %v", w.name, err)
		}
		os.Remove(path)                         // a folder cannot be overwritten
		replace(t, path, good+"# "+w.name+"\n") // with the same values: nothing to tell
		waitFor(t, w.name+": the file to be read again", func() bool { return log.count("loaded again") == i+1 })
	}
	replace(t, path, "a: 3\n")
	waitFor(t, "the change", func() bool { return strings.Contains(got(), "a=3;") })
	if told := got(); told != "a=3;b=;" && told != "b=;a=3;" {
		t.Errorf("told %q, want the one change of good versions", told)
	}
}

// A file written piece by piece is not taken before it is whole.
func TestSlowWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	put(t, path, "a: 1000\nb: 2\n")
	s, _ := open(t, path)
	defer s.Close(t.Context())
	got := told(t, s)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, part := range []string{"a: 1", "00", "0\nb: ", "3\n"} { // never at rest with a whole line
		fmt.Fprint(f, part)
		time.Sleep(150 * time.Millisecond)
	}
	waitFor(t, "the change", func() bool { return got() != "" })
	if got := got(); got != "b=3;" {
		t.Errorf("told %q, want what the finished file changed", got)
	}
}

// A ConfigMap is a link to a link to a folder that is replaced.
func TestLinkedFolder(t *testing.T) {
	dir := t.TempDir()
	version := func(n int) {
		t.Helper()
		name := fmt.Sprint("..v", n)
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		put(t, filepath.Join(dir, name, "c.yaml"), fmt.Sprintf("n: %d\n", n))
		if err := os.Symlink(name, filepath.Join(dir, "..tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version(1)
	path := filepath.Join(dir, "c.yaml")
	if err := os.Symlink(filepath.Join("..data", "c.yaml"), path); err != nil {
		t.Fatal(err)
	}
	s, _ := open(t, path)
	defer s.Close(t.Context())
	got := told(t, s, "n")
	for n := 2; n < 5; n++ {
		version(n)
		waitFor(t, fmt.Sprint("version ", n), func() bool { return strings.HasSuffix(got(), fmt.Sprintf("n=%d;", n)) })
	}
}

func TestFirstRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	s, _ := open(t, path)
	defer s.Close(t.Context())
	if err := s.Ping(t.Context()); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), path) {
		t.Errorf("Ping without a file: %v (%v)", err, fault.Of(err))
	}
	put(t, path, "a: {secret: 1}\na: x\nb: ~\n? [c]\n: 1\n<<: {}\n")
	err := s.Ping(t.Context())
	want := path + `:1: the value of "a" is a mapping`
	for _, text := range []string{want, `:2: key "a" is in line 1 already`, `:3: the value of "b" is ~`, ":4: a key is a list", ":6: a key is"} {
		if fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), text) {
			t.Errorf("Ping = %v (%v), want %q in it", err, fault.Of(err), text)
		}
	}
	put(t, path, "a: 012\nb: yes\nc:\nd: 1.50\n")
	items, err := s.Get(t.Context(), nil, nil)
	if err != nil || len(items) != 4 || items["a"].Value != "012" || items["b"].Value != "yes" || items["d"].Value != "1.50" {
		t.Errorf("Get = %v, %v; want values as they are written", items, err)
	}
}

func TestBackendPart(t *testing.T) {
	set, err := block.NewSet(configfile.Backend())
	if err != nil {
		t.Fatal(err)
	}
	part, ok := set.Find("configuration.file", "v1")
	if !ok {
		t.Fatal("no part for configuration.file")
	}
	if conf.Decode(nil, part.Config()).Err() == nil {
		t.Error("no path: accepted")
	}
	cfg := part.Config()
	if f := conf.Decode(conf.Items("path", "x"), cfg); f.Err() != nil {
		t.Error(f.Err())
	}
	c, err := part.Open(block.Env{}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close(t.Context())
}
