package main

import (
	"encoding/json"
	"strings"
	"testing"
)

const module = "github.com/mecha-project/mecha/"

// said writes output of go test: each line is "package action test [key value | output]".
func said(lines ...[]string) string {
	var b strings.Builder
	for _, l := range lines {
		e := event{Package: module + l[0], Action: l[1]}
		if len(l) > 2 {
			e.Test = l[2]
		}
		switch {
		case e.Action == "attr":
			e.Key, e.Value = l[3], l[4]
		case len(l) > 3:
			e.Output = l[3]
		}
		text, err := json.Marshal(e)
		if err != nil {
			panic(err) // strings only
		}
		b.Write(text)
		b.WriteByte('\n')
	}
	return b.String()
}

func suiteOf(pkg, test, block string) []string {
	return []string{pkg, "attr", test, "conformance-block", block}
}

const page = "# Component types\n\n## redis\n\nText.\n\n### `state.redis`\n\n### `lock.redis`\n\n## memory\n\n### `state.in-memory`\n"

var good = said(
	[]string{"components/redis", "run", "TestState"}, suiteOf("components/redis", "TestState", "state"),
	[]string{"components/redis", "run", "TestState/a"}, []string{"components/redis", "run", "TestState/a/inner"}, []string{"components/redis", "pass", "TestState/a/inner"}, []string{"components/redis", "pass", "TestState/a"},
	[]string{"components/redis", "run", "TestState/b/c"}, []string{"components/redis", "attr", "TestState/b/c", "conformance-not-offered", "it cannot"}, []string{"components/redis", "pass", "TestState/b/c"}, []string{"components/redis", "pass", "TestState"},
	[]string{"components/redis", "run", "TestCluster/x"}, suiteOf("components/redis", "TestCluster/x", "state"), []string{"components/redis", "pass", "TestCluster/x/a"}, []string{"components/redis", "pass", "TestCluster/x"}, []string{"components/redis", "pass", "TestCluster"},
	suiteOf("components/redis", "TestLock", "lock"), []string{"components/redis", "pass", "TestLock/a"}, []string{"components/redis", "pass", "TestLock"},
	[]string{"components/redis", "pass", "TestOther"}, []string{"components/redis", "pass"},
	suiteOf("components/memory", "TestState", "state"), []string{"components/memory", "pass", "TestState/a"}, []string{"components/memory", "pass", "TestState"}, []string{"components/memory", "pass"},
	[]string{"test/conformance", "attr", "TestEdge", "conformance-backend", "gRPC: memory"}, suiteOf("test/conformance", "TestEdge", "state"), []string{"test/conformance", "pass", "TestEdge/a"}, []string{"test/conformance", "pass", "TestEdge"}, []string{"test/conformance", "pass"},
)

func TestTable(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		ok       bool
		want     []string // each is in what is printed, blanks aside
	}{
		{"all well", good, true, []string{
			"block backend set-ups run passed failed not offered",
			"lock redis 1 1 1 0 0", "state gRPC: memory 1 1 1 0 0", "state memory 1 1 1 0 0", "state redis 2 2 2 0 1", "all 5 5 5 0 1",
			"Not offered: state of redis: b/c",
			"Other tests of these packages: 1 passed, 0 failed.", "pass components/redis"}},
		{"a failure", good + said([]string{"components/redis", "output", "TestState/d", "it broke\n"}, []string{"components/redis", "fail", "TestState/d"}, []string{"components/redis", "fail", "TestState"}, []string{"components/redis", "fail"}), false,
			[]string{"state redis 2 3 2 1 1", "--- FAILED: components/redis TestState/d it broke"}},
		{"no server: the test ends before the suite", said([]string{"components/redis", "output", "TestState", "NOT TESTED: no redis-server\n"}, []string{"components/redis", "fail", "TestState"}, []string{"components/redis", "fail"}), false,
			[]string{"NO SUITE RAN: state of backend redis", "NO SUITE RAN: lock of backend redis", "NO SUITE RAN: state of backend memory", "NOT TESTED: no redis-server", "0 passed, 1 failed"}},
		{"a subtest that stands aside", good + said([]string{"components/redis", "skip", "TestState/d"}, []string{"components/redis", "pass", "TestState"}), false, []string{"state redis 2 3 2 1 1"}},
		{"a suite that stops at once", good + said(suiteOf("components/redis", "TestMore", "state"), []string{"components/redis", "fail", "TestMore"}), false, []string{"state redis 3 3 2 1 1"}},
		{"a process that dies", good + said([]string{"components/redis", "run", "TestState/d"}, []string{"components/redis", "output", "TestState/d", "panic: oh\n"}, []string{"components/redis", "fail"}), false,
			[]string{"state redis 2 3 2 1 1", "panic: oh"}},
		{"a package that does not build", good + `{"ImportPath":"x","Action":"build-output","Output":"x.go:1: undefined: y\n"}` + "\n" + said([]string{"components/vault", "fail"}), false,
			[]string{"--- FAILED: components/vault x.go:1: undefined: y"}},
		{"a test that is cut off", strings.TrimSuffix(good, said([]string{"test/conformance", "pass"})), false, []string{"--- FAILED: test/conformance"}},
		{"nothing", "", false, []string{"NOTHING RAN"}},
		{"no JSON", "go: cannot find main module\n", false, []string{"go: cannot find main module", "NOTHING RAN"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			ok, err := run(strings.NewReader(tt.in), strings.NewReader(page), &out)
			if err != nil || ok != tt.ok {
				t.Errorf("run = %v, %v; want %v", ok, err, tt.ok)
			}
			flat := strings.Join(strings.Fields(out.String()), " ")
			for _, w := range tt.want {
				if !strings.Contains(flat, w) {
					t.Errorf("printed\n%s\nwithout %q", out.String(), w)
				}
			}
		})
	}
	if _, err := run(strings.NewReader(good), strings.NewReader("# Empty\n"), &strings.Builder{}); err == nil {
		t.Error("a reference page without components is taken")
	}
}
