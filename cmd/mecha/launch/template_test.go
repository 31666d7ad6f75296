package launch_test

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/cmd/mecha/launch"
)

// tree makes files and directories (names that end with a slash) below a new directory, which
// is also the home directory of the test.
func tree(t *testing.T, names ...string) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if dir != path {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("HOME", filepath.Join(root, "home"))
	return root
}

func load(t *testing.T, root, text string) (launch.Options, error) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, "dapr.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return launch.FromTemplate(root, nil)
}

func TestTemplateMerging(t *testing.T) {
	root := tree(t, "one/", "two.app/", "res/", "home/")
	o, err := load(t, root, `
version: 1
name: shop
common:
  appProtocol: grpc
  logLevel: debug
  enableProfiling: true
  enableApiLogging: true
  appMaxConcurrency: 4
  placementHostAddress: common:50005
  daprdLogDestination: console
  env: {SHARED: common, BOTH: common, NUMBER: 3}
apps:
  - appID: first
    appDirPath: one
    appPort: 3000
    daprHTTPPort: 3501
    appProtocol: http
    enableProfiling: false
    enableApiLogging: false
    appMaxConcurrency: 0
    placementHostAddress: ""
    appLogDestination: file
    env: {BOTH: app, DEBUG: true}
    command: [python3, app.py, 1]
  - appDirPath: ./two.app/
    resourcesPath: ../res
`)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Apps) != 2 || !o.Multi || o.TemplateName != "shop" || o.TemplatePath != filepath.Join(root, "dapr.yaml") {
		t.Fatalf("options: %+v", o)
	}
	a, b := o.Apps[0], o.Apps[1]
	for _, c := range []struct {
		name      string
		got, want any
	}{
		{"app id", a.ID, "first"},
		{"app id from the directory", b.ID, "two-app"},
		{"directory", a.Dir, filepath.Join(root, "one")},
		{"app wins", a.AppProtocol, "http"},
		{"common fills in", b.AppProtocol, "grpc"},
		{"common fills in beside other keys", a.LogLevel, "debug"},
		{"false does not win", a.EnableProfiling, true},
		{"false does not win for a pointer", *a.EnableAPILogging, true},
		{"zero does not win", a.AppMaxConcurrency, 4},
		{"an empty address wins", *a.PlacementHostAddress, ""},
		{"address from common", *b.PlacementHostAddress, "common:50005"},
		{"log destination said", a.AppLogDestination, launch.ToFile},
		{"log destination not said", b.AppLogDestination, launch.ToFileAndConsole},
		{"log destination from common", b.DaprdLogDestination, launch.ToConsole},
		{"env merges", a.Env, map[string]string{"SHARED": "common", "BOTH": "app", "NUMBER": "3", "DEBUG": "true"}},
		{"env of common", b.Env, map[string]string{"SHARED": "common", "BOTH": "common", "NUMBER": "3"}},
		{"command", a.Command, []string{"python3", "app.py", "1"}},
		{"ports", []int{a.AppPort, a.HTTPPort, a.GRPCPort}, []int{3000, 3501, 0}},
		{"older spelling of resources", b.ResourcesPaths, []string{filepath.Join(root, "res")}},
	} {
		if d := cmp.Diff(c.want, c.got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
}

func TestTemplatePathPrecedence(t *testing.T) {
	const apps = "apps: [{appDirPath: app}]\n"
	cases := []struct {
		name          string
		files         []string
		text          string
		resources     []string // relative to the root
		configuration string
	}{
		{"nothing anywhere", nil, apps, nil, ""},
		{"home", []string{"home/.dapr/components/", "home/.dapr/config.yaml"}, apps,
			[]string{"home/.dapr/components"}, "home/.dapr/config.yaml"},
		{"common before home", []string{"home/.dapr/components/", "home/.dapr/config.yaml", "r/", "c.yaml"},
			"common: {resourcesPaths: [r], configFilePath: ./c.yaml}\n" + apps, []string{"r"}, "c.yaml"},
		{"the app's .dapr before common", []string{"r/", "c.yaml", "app/.dapr/resources/", "app/.dapr/config.yaml"},
			"common: {resourcesPaths: [r], configFilePath: c.yaml}\n" + apps,
			[]string{"app/.dapr/resources"}, "app/.dapr/config.yaml"},
		{"the app's keys before all", []string{"r/", "c.yaml", "app/.dapr/resources/", "app/.dapr/config.yaml", "app/x/", "app/x.yaml", "home/y/"},
			"common: {resourcesPaths: [r], configFilePath: c.yaml}\napps: [{appDirPath: app, resourcesPaths: [x, ~/y], configFilePath: x.yaml}]\n",
			[]string{"app/x", "home/y"}, "app/x.yaml"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			root := tree(t, append([]string{"app/", "home/"}, c.files...)...)
			o, err := load(t, root, "version: 1\n"+c.text)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range o.Apps[0].ResourcesPaths {
				rel, _ := filepath.Rel(root, p)
				got = append(got, filepath.ToSlash(rel))
			}
			if !slices.Equal(got, c.resources) {
				t.Errorf("resources: got %q, want %q", got, c.resources)
			}
			want := c.configuration
			if want != "" {
				want = filepath.Join(root, want)
			}
			if got := o.Apps[0].ConfigFilePath; got != want {
				t.Errorf("config: got %q, want %q", got, want)
			}
		})
	}
}

func TestTemplateFindings(t *testing.T) {
	root := tree(t, "app/", "home/")
	cases := []struct {
		name string
		text string
		want []string
	}{
		{"empty", "", []string{"is empty"}},
		{"no YAML", "a: [", []string{"dapr.yaml: line 1"}},
		{"no mapping", "- a", []string{"dapr.yaml:1: the run template must be a mapping", "not a list"}},
		{"version missing", "apps: [{appDirPath: app}]", []string{"version: 1 is the only one"}},
		{"version unknown", "version: 2\napps: [{appDirPath: app}]", []string{"version is 2"}},
		{"no apps", "version: 1", []string{"apps is empty"}},
		{"no directory", "version: 1\napps:\n- appID: x", []string{"dapr.yaml:3: an app needs appDirPath"}},
		{"directory not there", "version: 1\napps: [{appDirPath: nope}]", []string{"nope does not exist"}},
		{"resources not there", "version: 1\napps: [{appDirPath: app, resourcesPaths: [nope]}]", []string{"app/nope does not exist"}},
		{"unknown key at the top", "version: 1\nappz: []", []string{`dapr.yaml:2: the run template has no key "appz" (did you mean apps?)`}},
		{"unknown key in common", "common:\n  loglevel: x\n", []string{`dapr.yaml:2: common has no key "loglevel" (did you mean logLevel?)`}},
		{"unknown key in an app", "apps:\n- appDirPat: x", []string{`dapr.yaml:2: an app has no key "appDirPat" (did you mean appDirPath?)`}},
		{"key given twice", "version: 1\nversion: 1", []string{"given twice"}},
		{"wrong type", "apps:\n- appPort: abc", []string{`dapr.yaml:2: appPort must be a whole number, not "abc"`}},
		{"command as text", "apps:\n- command: python3 app.py", []string{`command must be a list, such as ["python3", "app.py"]`}},
		{"apps as mapping", "apps: {a: 1}", []string{"apps must be a list, not a mapping"}},
		{"two findings", "apps:\n- appPort: abc\n  appId: x", []string{":2:", ":3:", "appID"}},
		{"same id twice", "version: 1\napps:\n- {appID: a, appDirPath: app}\n- {appID: a, appDirPath: app}", []string{"dapr.yaml:4: app id \"a\" is taken by the app at line 3"}},
		{"bad destination", "version: 1\napps: [{appDirPath: app, appLogDestination: files}]", []string{`log destination "files" is unknown`}},
		{"bad protocol", "version: 1\napps: [{appDirPath: app, appProtocol: tcp}]", []string{`app protocol "tcp" is unknown`}},
		{"dots in the id", "version: 1\napps: [{appDirPath: app, appID: a.b}]", []string{"an app id must not"}},
		{"two documents", "version: 1\napps: [{appDirPath: app}]\n---\na: 1", []string{"one document"}},
		{"anchor in itself", "version: 1\ncommon: &c {env: {<<: *c}}\napps: [{appDirPath: app}]", []string{"env must be"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(t, root, c.text)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error lacks %q: %v", w, err)
				}
			}
		})
	}
}

func TestTemplateMergeKey(t *testing.T) {
	root := tree(t, "app/", "home/")
	o, err := load(t, root, "version: 1\napps:\n- &a {appID: a, appDirPath: app, appPort: 3000}\n- {<<: *a, appID: b}\n")
	if err != nil {
		t.Fatal(err)
	}
	if b := o.Apps[1]; b.ID != "b" || b.AppPort != 3000 {
		t.Errorf("merged app: %+v", b)
	}
}

func TestTemplateIgnoredKeysAreWarnings(t *testing.T) {
	root := tree(t, "app/", "home/")
	o, err := load(t, root, "version: 1\ncommon: {runtimePath: /x}\napps: [{appDirPath: app, containerImage: i, createService: true}]")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(o.Warnings, "\n")
	for _, key := range []string{"containerImage", "createService", "runtimePath"} {
		if !strings.Contains(got, key+` of app "app" is ignored`) {
			t.Errorf("no warning about %s in %q", key, got)
		}
	}
}

func TestTemplateFromStdin(t *testing.T) {
	root := tree(t, "app/", "home/")
	t.Chdir(root)
	o, err := launch.FromTemplate("-", strings.NewReader("version: 1\napps: [{appDirPath: app}]"))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := o.Apps[0].Dir, filepath.Join(root, "app"); got != want {
		t.Errorf("directory: got %q, want %q", got, want)
	}
}

func TestTemplateThatIsNotThere(t *testing.T) {
	_, err := launch.FromTemplate(t.TempDir(), nil)
	if err == nil || !strings.Contains(err.Error(), "there is no") || !strings.Contains(err.Error(), "dapr.yaml") {
		t.Errorf("error: %v", err)
	}
}

func TestTemplateThatIsTooLarge(t *testing.T) {
	_, err := launch.FromTemplate("-", io.MultiReader(strings.NewReader(strings.Repeat("#", 2<<20))))
	if err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("error: %v", err)
	}
}

// Whatever bytes come, the parser answers with an error or with apps that can be started.
func FuzzTemplate(f *testing.F) {
	f.Add([]byte("version: 1\napps: [{appDirPath: .}]"))
	f.Add([]byte("version: 1\ncommon: &c {env: {A: b}, resourcesPaths: [.]}\napps:\n- appDirPath: .\n  appPort: 1\n  command: [a, 1]\n  env: {A: c}\n"))
	f.Add([]byte("a: &a [*a]\nversion: *a"))
	f.Add([]byte("version: 1\napps: [{<<: {<<: {appDirPath: .}}}]"))
	f.Add([]byte("version: !!int x\nname: !!binary YQ=="))
	f.Add([]byte("? [a]: b\n: c"))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := launch.FromTemplate("-", strings.NewReader(string(data)))
		if err != nil {
			return
		}
		if len(o.Apps) == 0 {
			t.Error("accepted without apps")
		}
		ids := map[string]bool{}
		for _, a := range o.Apps {
			if a.ID == "" || ids[a.ID] || !filepath.IsAbs(a.Dir) {
				t.Errorf("app %q in %q", a.ID, a.Dir)
			}
			ids[a.ID] = true
		}
	})
}
