package localstorage_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/localstorage"
	"github.com/mecha-project/mecha/test/untested"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t testing.TB, path string) block.Output {
	t.Helper()
	b, err := localstorage.New(block.Env{}, &localstorage.Config{RootPath: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b.(block.Output)
}

// do is one operation on a file.
func do(t testing.TB, b block.Output, op, name string, data ...string) (string, error) {
	t.Helper()
	r := block.BindingRequest{Operation: op, Data: []byte(strings.Join(data, "")), Metadata: map[string]string{"fileName": name}}
	answer, err := b.Invoke(t.Context(), r)
	if answer == nil {
		return "nothing", err
	}
	return string(answer.Data), err
}

func TestConformance(t *testing.T) {
	blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
		dir := t.TempDir()
		return blocktest.OutputPlace{Open: func() block.Output { return open(t, dir) },
			Works: block.BindingRequest{Operation: "create", Data: []byte("data!"), Metadata: map[string]string{"fileName": "a/b"}}}
	})
}

func TestFiles(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, filepath.Join(dir, "made", "here"))
	root := filepath.Join(dir, "made", "here")
	if got, err := do(t, b, "list", ""); got != "[]" || err != nil {
		t.Errorf("an empty folder: %s, %v", got, err)
	}
	for i, tt := range []struct{ name, data, at, want string }{
		{"plain.txt", "hello world", "plain.txt", "hello world"},
		{"sub/of/x", "\x00\xff", "sub/of/x", "\x00\xff"},
		{"quoted", `"a \"b\" \u00e9"`, "quoted", `a "b" é`},
		{"base64", "aGVsbG8=", "base64", "hello"},
		{"both", `"aGVsbG8="`, "both", "hello"},
		{"object", `{"a":1}`, "object", `{"a":1}`},
		{"half", `"half`, "half", `"half`},
		{"single", `'a'`, "single", `'a'`},
		{"empty", "", "empty", ""},
		{"/absolute", "1!", "absolute", "1!"},
		{"../../../up", "2!", "up", "2!"},
		{"sub/../../../up2", "3!", "up2", "3!"},
		{"sub//of/./y", "4!", "sub/of/y", "4!"},
		{"plain.txt", "again!", "plain.txt", "again!"},
	} {
		said, err := do(t, b, "create", tt.name, tt.data)
		if want := fmt.Sprintf(`{"fileName":%q}`, tt.at); said != want || err != nil {
			t.Errorf("%d: create %s: %s, %v; want %s", i, tt.name, said, err, want)
		}
		if got, err := os.ReadFile(filepath.Join(root, tt.at)); string(got) != tt.want || err != nil {
			t.Errorf("%d: %s holds %q, %v; want %q", i, tt.at, got, err, tt.want)
		}
		if got, err := do(t, b, "get", tt.name); got != tt.want || err != nil {
			t.Errorf("%d: get %s: %q, %v", i, tt.name, got, err)
		}
	}
	want := []string{filepath.Join(root, "sub/of/x"), filepath.Join(root, "sub/of/y")}
	for _, folder := range []string{"sub", "/sub/of", "../sub"} {
		if got := listed(t, b, folder); !slices.Equal(got, want) {
			t.Errorf("list %s: %q", folder, got)
		}
	}
	if got := listed(t, b, ""); len(got) != 13 || !slices.Contains(got, want[0]) {
		t.Errorf("list: %q", got)
	}
	if err := os.WriteFile(filepath.Join(root, "sub", ".mecha-writing-1"), nil, 0o600); err != nil { // an unfinished one
		t.Fatal(err)
	}
	if got := listed(t, b, "sub"); !slices.Equal(got, want) {
		t.Errorf("list beside an unfinished file: %q", got)
	}
	if got, err := do(t, b, "delete", "sub/of/x"); got != "nothing" || err != nil {
		t.Errorf("delete: %s, %v", got, err)
	}
	for op, name := range map[string]string{"get": "sub/of/x", "delete": "sub/of/x", "list": "nowhere"} {
		if _, err := do(t, b, op, name); fault.Of(err) != fault.NotFound || !strings.Contains(err.Error(), "file not found: "+name) {
			t.Errorf("%s of what is not there: %v", op, err)
		}
	}
	for what, tt := range map[string][2]string{"get without a name": {"get", ""}, "delete without a name": {"delete", ""}, "get the root": {"get", ".."},
		"get a folder": {"get", "sub"}, "delete a folder": {"delete", "sub"}, "list a file": {"list", "quoted"}, "create on a folder": {"create", "sub/of"},
		"a name of ours": {"create", "sub/.mecha-writing-1"}} {
		if _, err := do(t, b, tt[0], tt[1], "data"); fault.Of(err) != fault.Invalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := do(t, b, "create", "plain.txt/x", "data"); err == nil {
		t.Error("a file serves as a folder")
	}
}

func listed(t testing.TB, b block.Output, folder string) (out []string) {
	t.Helper()
	text, err := do(t, b, "list", folder)
	if err == nil {
		err = json.Unmarshal([]byte(text), &out)
	}
	if err != nil {
		t.Fatalf("list %s: %s, %v", folder, text, err)
	}
	return out
}

// Without a name the file gets one.
func TestNames(t *testing.T) {
	b := open(t, t.TempDir())
	seen := map[string]bool{}
	for range 3 {
		answer, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "create", Data: []byte("x!")})
		if err != nil {
			t.Fatal(err)
		}
		var said struct{ FileName string }
		if err := json.Unmarshal(answer.Data, &said); err != nil || len(said.FileName) != 36 {
			t.Errorf("%s, %v", answer.Data, err)
		}
		seen[said.FileName] = true
	}
	if len(seen) != 3 {
		t.Errorf("names %v", seen)
	}
}

// Links inside the folder are followed; those that lead out of it are not.
func TestLinks(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"file": secret, "folder": outside, "up": "../..", "in": "real"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			untested.Skip(t, "links: %v", err)
		}
	}
	b := open(t, dir)
	if _, err := do(t, b, "create", "real", "mine!"); err != nil {
		t.Fatal(err)
	}
	if got, err := do(t, b, "get", "in"); got != "mine!" || err != nil {
		t.Errorf("a link inside: %q, %v", got, err)
	}
	for _, tt := range [][2]string{{"get", "file"}, {"get", "folder/secret"}, {"create", "folder/new"}, {"create", "up/new"}, {"delete", "folder/secret"}, {"list", "folder"}, {"list", "up"}} {
		if _, err := do(t, b, tt[0], tt[1], "x!"); fault.Of(err) != fault.Denied || !strings.Contains(err.Error(), "a link leads out of rootPath") {
			t.Errorf("%s %s: %v", tt[0], tt[1], err)
		}
	}
	if _, err := do(t, b, "create", "file", "mine!"); err != nil {
		t.Errorf("a file in the place of a link: %v", err)
	}
	if got, _ := os.ReadFile(secret); string(got) != "secret" {
		t.Errorf("the file outside holds %q", got)
	}
	for _, name := range listed(t, b, "") {
		if filepath.Base(name) != "real" && filepath.Base(name) != "file" {
			t.Errorf("a link is listed: %s", name)
		}
	}
	if got, _ := os.ReadDir(outside); len(got) != 1 {
		t.Errorf("outside there is %v", got)
	}
}

// A file has its name when it is complete: readers see one version or the other.
func TestWholeFiles(t *testing.T) {
	b := open(t, t.TempDir())
	versions := [][]byte{bytes.Repeat([]byte("!"), 1<<20), bytes.Repeat([]byte("?"), 1<<10)}
	write := func(v []byte) {
		if _, err := b.Invoke(t.Context(), block.BindingRequest{Operation: "create", Data: v, Metadata: map[string]string{"fileName": "f"}}); err != nil {
			t.Error(err)
		}
	}
	write(versions[0])
	var writers sync.WaitGroup
	for _, v := range versions {
		writers.Go(func() {
			for range 10 {
				write(v)
			}
		})
	}
	for range 20 {
		got, err := do(t, b, "get", "f")
		if err != nil || got != string(versions[0]) && got != string(versions[1]) {
			t.Fatalf("read %d bytes, %v", len(got), err)
		}
	}
	writers.Wait()
	if got := listed(t, b, ""); len(got) != 1 {
		t.Errorf("left behind: %q", got)
	}
}

func TestConfig(t *testing.T) {
	if os.PathSeparator != '/' {
		untested.Skip(t, "refused folders of the system: their names are those of Unix")
	}
	for path, refused := range map[string]bool{"/": true, "/etc": true, "/etc/mine": true, "/proc/self": true, "/usr": true, "/usr/bin/x": true, "/var/run/secrets/k": true, "/home/me/.ssh": true, "/home/me/.ssh/x": true, "/home/me/.sshow": false,
		"/tmp/../etc": true, "/etcetera": false, "/var/lib/orders": false, "/usr/local/share/x": false, "data": false, "/tmp/x": false} {
		err := conf.Decode(conf.Items("rootPath", path), localstorage.DefaultConfig()).Err()
		if got := err != nil && strings.Contains(err.Error(), "a folder of the system"); got != refused {
			t.Errorf("%s: %v, refused should be %v", path, err, refused)
		}
	}
	if err := conf.Decode(nil, localstorage.DefaultConfig()).Err(); err == nil || !strings.Contains(err.Error(), "rootPath: required") {
		t.Errorf("none: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/etc", link); err != nil {
		untested.Skip(t, "links: %v", err)
	}
	if err := open(t, link).Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "leads to /etc, a folder of the system") {
		t.Errorf("a link to a folder of the system: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(t, file).Ping(t.Context()); fault.Of(err) != fault.Unavailable {
		t.Errorf("a file: %v", err)
	}
	if d := cmp.Diff([]string{"create", "get", "list", "delete"}, open(t, file).Operations()); d != "" {
		t.Errorf("operations (-want +got):\n%s", d)
	}
}
