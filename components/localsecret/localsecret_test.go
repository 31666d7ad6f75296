package localsecret_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/localsecret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type values = map[string]string

func secretsFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secrets.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func openFile(t *testing.T, c *localsecret.FileConfig) block.Secret {
	t.Helper()
	s, err := localsecret.NewFile(block.Env{}, c)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const nested = `{"plain": "p", "Plain": "P", "db": {"password": "s3cret", "hosts": ["a", "b"], "deep": {"er": "x"}},
 "number": 5.10, "big": 12345678901234567890, "yes": true, "nothing": null, "a-b/c": "slashes"}`

func TestFile(t *testing.T) {
	want := map[string]values{"plain": {"plain": "p"}, "db:password": {"db:password": "s3cret"}, "a-b/c": {"a-b/c": "slashes"}, "number": {"number": "5.10"}}
	blocktest.Secret(t, want, func(t *testing.T) block.Secret {
		return openFile(t, &localsecret.FileConfig{SecretsFile: secretsFile(t, nested), NestedSeparator: ":"})
	})
}

func TestFileOfManyValues(t *testing.T) {
	want := map[string]values{"plain": {"plain": "p"}, "db": {"password": "s3cret", "hosts:0": "a", "hosts:1": "b", "deep:er": "x"}}
	blocktest.Secret(t, want, func(t *testing.T) block.Secret {
		return openFile(t, &localsecret.FileConfig{SecretsFile: secretsFile(t, nested), NestedSeparator: ":", MultiValued: true})
	})
}

func TestEnv(t *testing.T) {
	t.Setenv("MECHATEST_ONE", "1")
	t.Setenv("MECHATEST_TWO", "a=b c")
	t.Setenv("MECHATEST_", "the prefix alone names no secret")
	want := map[string]values{"MECHATEST_ONE": {"MECHATEST_ONE": "1"}, "MECHATEST_TWO": {"MECHATEST_TWO": "a=b c"}}
	for _, prefix := range []string{"", "MECHATEST_"} {
		t.Run("prefix "+prefix, func(t *testing.T) {
			named := map[string]values{}
			for name, v := range want {
				short := strings.TrimPrefix(name, prefix)
				named[short] = values{short: v[name]}
			}
			blocktest.Secret(t, named, func(t *testing.T) block.Secret {
				s, err := localsecret.NewEnv(block.Env{}, &localsecret.EnvConfig{Prefix: prefix})
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}

// What belongs to the sidecar is neither read nor listed, however it is spelt.
func TestEnvHidesTheSidecarsOwn(t *testing.T) {
	hidden := []string{"APP_API_TOKEN", "DAPR_API_TOKEN", "dapr_x", "Dapr_Y", "app_api_token"}
	for _, name := range hidden {
		t.Setenv(name, "token")
	}
	t.Setenv("DAPRISH", "seen")
	for _, prefix := range []string{"", "DAPR_", "APP_", "dapr"} {
		s, err := localsecret.NewEnv(block.Env{}, &localsecret.EnvConfig{Prefix: prefix})
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.GetAll(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for name, v := range all {
			if v[name] == "token" {
				t.Errorf("prefix %q: %s is listed", prefix, name)
			}
		}
		for _, name := range hidden {
			name = strings.TrimPrefix(name, prefix)
			if got, err := s.Get(t.Context(), name, nil); err != nil || got[name] != "" {
				t.Errorf("prefix %q: Get(%s) = %q, %v; want it empty", prefix, name, got, err)
			}
		}
		if got, _ := s.Get(t.Context(), "DAPRISH", nil); prefix == "" && got["DAPRISH"] != "seen" {
			t.Errorf("DAPRISH is hidden too")
		}
	}
}

func TestFileSeparator(t *testing.T) {
	s := openFile(t, &localsecret.FileConfig{SecretsFile: secretsFile(t, `{"a":{"b":["x"]}}`), NestedSeparator: "."})
	got, err := s.GetAll(t.Context(), nil)
	if d := cmp.Diff(map[string]values{"a.b.0": {"a.b.0": "x"}}, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}

// A file that cannot be used is an error that says where, and never what stands there.
func TestFileRefused(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"cut off":      {"{\n\"a\": \"hush", "ends too early"},
		"empty":        {"", "ends too early"},
		"not quoted":   {"{\n\"a\":\n hush}", "line 3"},
		"a list":       {`["hush"]`, "line 1"},
		"null":         {"null", "holds null"},
		"more follows": {"{}\n{\"hush\": 1}", "see line"},
		"two of a kind": {`{"a": {"b": "hush"}, "a:b": "hush"}`,
			`two values called "a:b"`},
	} {
		t.Run(name, func(t *testing.T) {
			path := secretsFile(t, tt.text)
			s := openFile(t, &localsecret.FileConfig{SecretsFile: path, NestedSeparator: ":"})
			for range 2 {
				err := s.Ping(t.Context())
				if fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("%v, want unavailable with the path and %q", err, tt.want)
				}
				if strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "'h'") {
					t.Errorf("the error quotes the file: %v", err)
				}
			}
			if _, err := s.Get(t.Context(), "a", nil); fault.Of(err) != fault.Unavailable {
				t.Errorf("Get: %v, want unavailable", err)
			}
		})
	}
	folder := t.TempDir()
	for path, want := range map[string]string{filepath.Join(folder, "none.json"): "no such file", folder: "is not a file"} {
		s := openFile(t, &localsecret.FileConfig{SecretsFile: path})
		if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), path) != 1 {
			t.Errorf("%v, want %q and the path once", err, want)
		}
	}
}

// The file is read once: a later version, even a broken one, changes nothing. One that could not
// be used is tried again.
func TestFileIsReadOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.json")
	s := openFile(t, &localsecret.FileConfig{SecretsFile: path})
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if s.Ping(t.Context()) == nil {
		t.Fatal("a missing file answers")
	}
	for _, text := range []string{`{"a":"1"}`, `{"a":"2"}`, `{`} {
		write(text)
		if got, err := s.Get(t.Context(), "a", nil); err != nil || got["a"] != "1" {
			t.Fatalf("with %s: %q, %v", text, got, err)
		}
	}
}

func TestParts(t *testing.T) {
	set, err := block.NewSet(localsecret.Backend())
	if err != nil {
		t.Fatal(err)
	}
	for typ, tt := range map[string]struct {
		items []conf.Item
		bad   string
	}{
		"secretstores.local.file": {nil, "secretsFile: required"},
		"secretstores.local.env":  {nil, ""},
	} {
		part, ok := set.Find(typ, "v1")
		if !ok {
			t.Fatalf("no part for %s", typ)
		}
		err := conf.Decode(tt.items, part.Config()).Err()
		if (err == nil) != (tt.bad == "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
			t.Errorf("%s without metadata: %v, want %q", typ, err, tt.bad)
		}
	}
	part, _ := set.Find("secretstores.local.file", "")
	cfg := part.Config()
	if err := conf.Decode(conf.Items("SecretsFile", "x", "multivalued", "true", "nestedSeparator", ""), cfg).Err(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(&localsecret.FileConfig{SecretsFile: "x", MultiValued: true, NestedSeparator: ":"}, cfg); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}
