package launch

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

func TestDefaultAppID(t *testing.T) {
	cases := []struct {
		name    string
		command []string
		dir     string
		want    string
	}{
		{"program", []string{"./bin/orders"}, "/src/shop", "orders"},
		{"extension goes", []string{"./orders.v2"}, "/src/shop", "orders"},
		{"odd letters become dashes", []string{"./my app!"}, "/src/shop", "my-app"},
		{"interpreter: the directory", []string{"node", "app.js"}, "/src/shop", "shop"},
		{"interpreter with a path", []string{"/usr/bin/python3", "app.py"}, "/src/my.shop", "my-shop"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if got := defaultAppID(c.command, c.dir); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	for _, silly := range [][]string{nil, {"..."}} {
		if got := defaultAppID(silly, "/"); cleanAppID(got) != got || got == "" {
			t.Errorf("command %q: no usable name: %q", silly, got)
		}
	}
}

func TestLastWins(t *testing.T) {
	got := lastWins([]string{"A=1", "B=2", "A=3", EmbeddedNodeEnv + "=1", "broken", "C=x=y"})
	if d := cmp.Diff([]string{"B=2", "A=3", "C=x=y"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestTemplateEnvWins(t *testing.T) {
	a := &App{ID: "x", HTTPPort: 1, GRPCPort: 2, Shared: Shared{Env: map[string]string{"DAPR_HTTP_PORT": "9", "K": "v"}}}
	got := a.appEnv([]string{"APP_PORT=7", "K=outer"})
	slices.Sort(got)
	want := []string{"APP_CHANNEL_ADDRESS=127.0.0.1", "APP_ID=x", "APP_PORT=7", "APP_PROTOCOL=http", "DAPR_GRPC_PORT=2", "DAPR_HTTP_PORT=9", "K=v"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestReservePorts(t *testing.T) {
	apps := []*App{{ID: "a", HTTPPort: 3500}, {ID: "b", Shared: Shared{EnableProfiling: true}}}
	r, err := reservePorts(apps)
	if err != nil {
		t.Fatal(err)
	}
	defer r.releaseAll()
	seen := map[int]bool{}
	for _, a := range apps {
		for _, p := range a.ports() {
			if *p.at <= 0 || seen[*p.at] {
				t.Errorf("%s of %s is %d", p.name, a.ID, *p.at)
			}
			seen[*p.at] = true
		}
	}
	if len(seen) != 9 || apps[0].HTTPPort != 3500 {
		t.Errorf("%d ports, the one asked for is %d", len(seen), apps[0].HTTPPort)
	}
	again := &App{ID: "c", HTTPPort: 1, GRPCPort: 2, InternalPort: 3}
	other, err := reservePorts([]*App{again})
	if err != nil {
		t.Fatal(err)
	}
	defer other.releaseAll()
	if seen[again.MetricsPort] {
		t.Errorf("port %d was given twice while it was held", again.MetricsPort)
	}
}

func TestReservePortsRefusesTwins(t *testing.T) {
	cases := []struct {
		name string
		apps []*App
	}{
		{"two apps", []*App{{ID: "a", HTTPPort: 3500}, {ID: "b", GRPCPort: 3500}}},
		{"one app", []*App{{ID: "a", HTTPPort: 3500, GRPCPort: 3500}}},
		{"the app's own", []*App{{ID: "a", HTTPPort: 3500, AppPort: 3500}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if _, err := reservePorts(c.apps); err == nil || !strings.Contains(err.Error(), "port 3500 is asked for twice") {
				t.Errorf("error: %v", err)
			}
		})
	}
}

func TestLineWriter(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	cases := []struct {
		name string
		in   []string
		want string
	}{
		{"whole lines", []string{"a\nb\n"}, "> a\n> b\n"},
		{"in pieces", []string{"a", "b\nc", "\n"}, "> ab\n> c\n"},
		{"partial last line", []string{"a\nb"}, "> a\n> b\n"},
		{"empty lines", []string{"\n\n"}, "> \n> \n"},
		{"nothing", nil, ""},
		{"a long line", []string{long, "y\n"}, "> " + long[:maxLine] + "\n> " + long[maxLine:] + "y\n"},
		{"exactly the bound", []string{long[:maxLine], "\n"}, "> " + long[:maxLine] + "\n> \n"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var got bytes.Buffer
			l := (&console{w: &got}).lines("> ", colourNone)
			for _, p := range c.in {
				_, _ = io.WriteString(l, p)
			}
			l.flush()
			if got.String() != c.want {
				t.Errorf("got %.80q, want %.80q", got.String(), c.want)
			}
		})
	}
}

// Whatever the pieces, no byte of a stream is lost and every line has its prefix.
func FuzzLineWriter(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("\n\n\x00\xff"), 2)
	f.Add(bytes.Repeat([]byte("x"), 3*maxLine), 1000)
	f.Fuzz(func(t *testing.T, data []byte, piece int) {
		piece = max(1, piece%(2*maxLine))
		var got bytes.Buffer
		l := (&console{w: &got}).lines("", colourNone)
		for p := range slices.Chunk(data, piece) {
			_, _ = l.Write(p)
		}
		l.flush()
		strip := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), nil) }
		if !bytes.Equal(strip(got.Bytes()), strip(data)) {
			t.Error("bytes were lost or added")
		}
		if n := got.Len(); n > 0 && got.Bytes()[n-1] != '\n' {
			t.Error("the last line has no end")
		}
	})
}

func TestConsoleKeepsLinesApart(t *testing.T) {
	var out bytes.Buffer
	c := &console{w: &out}
	var writers sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		writers.Go(func() {
			l := c.lines(name+" ", colourNone)
			for range 500 {
				_, _ = io.WriteString(l, name+name)
				_, _ = io.WriteString(l, name+"\n")
			}
		})
	}
	writers.Wait()
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 1500 {
		t.Errorf("got %d lines, want 1500", len(lines))
	}
	for _, l := range lines {
		if l != "a aaa" && l != "b bbb" && l != "c ccc" {
			t.Fatalf("mixed line %q", l)
		}
	}
}

func TestConsoleStyles(t *testing.T) {
	var plain, coloured, asJSON bytes.Buffer
	newConsole(&plain, false).warn("x %d", 1)
	(&console{w: &coloured, colour: true}).note("x")
	newConsole(&asJSON, true).fail(`x "y"`)
	for _, c := range []struct{ got, want string }{
		{plain.String(), "mecha: warn: x 1\n"},
		{coloured.String(), "\x1b[32mmecha: \x1b[0mx\n"},
		{asJSON.String(), `{"level":"error","msg":"x \"y\"","scope":"mecha.run"}` + "\n"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}

func TestTail(t *testing.T) {
	var l tail
	for range 1000 {
		_, _ = io.WriteString(&l, "a line that is not the last one\n")
	}
	_, _ = io.WriteString(&l, "the last\n")
	got := l.String()
	if len(got) > maxTail || !strings.HasSuffix(got, "\nthe last") || !strings.HasPrefix(got, "a line") {
		t.Errorf("%d bytes: %.40q … %q", len(got), got, got[max(0, len(got)-20):])
	}
}

func TestFlagErrors(t *testing.T) {
	cases := []struct {
		name string
		args []string
		want string
	}{
		{"near an existing flag", []string{"--app-prot", "1"}, "unknown flag --app-prot; did you mean --app-port?"},
		{"near an alias", []string{"--component-path", "x"}, "did you mean --components-path?"},
		{"near nothing", []string{"--zzzzzzzzz"}, "unknown flag --zzzzzzzzz (flags of the app itself go after --)"},
		{"unknown letter", []string{"-z"}, "unknown flag -z"},
		{"bad value", []string{"-p", "abc"}, "mecha run --help"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
			BindFlags(fs)
			err := fs.Parse(c.args)
			if err == nil {
				t.Fatal("accepted")
			}
			if got := FlagError(fs, err).Error(); !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q in it", got, c.want)
			}
		})
	}
}

func TestFlagOptions(t *testing.T) {
	cases := []struct {
		name, want string // want: part of the error
		args       []string
	}{
		{"Kubernetes", "does not deploy to Kubernetes", []string{"-k"}},
		{"run file and command", "were both given", []string{"-f", "x", "--", "app"}},
		{"resources not there", "nowhere does not exist", []string{"-d", "nowhere", "--", "app"}},
		{"config not there", "nowhere.yaml does not exist", []string{"-c", "nowhere.yaml", "--", "app"}},
		{"dots in the id", "must not be empty or contain dots", []string{"-a", "a.b", "--", "app"}},
		{"not a port", "HTTP port 70000 is not a port", []string{"-H", "70000", "--", "app"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
			f := BindFlags(fs)
			if err := fs.Parse(c.args); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Options(fs.Args(), nil); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestFlagsBesidesARunFileAreWarnings(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/dapr.yaml", []byte("version: 1\napps: [{appDirPath: .}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	fs := pflag.NewFlagSet("run", pflag.ContinueOnError)
	f := BindFlags(fs)
	if err := fs.Parse([]string{"-f", dir, "--app-port", "1", "--log-as-json", "--runtime-path", "/x"}); err != nil {
		t.Fatal(err)
	}
	o, err := f.Options(fs.Args(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Warnings) != 2 || !o.LogAsJSON || o.Apps[0].AppPort != 0 {
		t.Errorf("warnings %q, log as JSON %v, app port %d", o.Warnings, o.LogAsJSON, o.Apps[0].AppPort)
	}
}
