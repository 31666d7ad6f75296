package main

import (
	"io"
	"os"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/cmd/mecha/launch"
	"github.com/mecha-project/mecha/components/nats/embedded"
)

// said runs f and returns what it writes to standard output and error.
func said(t *testing.T, f func()) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, errs := os.Stdout, os.Stderr
	os.Stdout, os.Stderr = w, w
	defer func() { os.Stdout, os.Stderr = out, errs }()
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(r)
		got <- string(b)
	}()
	f()
	w.Close()
	return <-got
}

func TestExitCodes(t *testing.T) {
	sidecar := func(args ...string) func() int {
		return func() int { return sidecarMain("mecha sidecar", args) }
	}
	command := func(args ...string) func() int { return func() int { return commandMain(args) } }
	tests := []struct {
		name string
		run  func() int
		code int
		text string
	}{
		{"run with an unknown flag", command("run", "--no-such-flag"), 2, "mecha run: unknown flag --no-such-flag"},
		{"run with a flag that lacks its value", command("run", "--app-port"), 2, "mecha run: "},
		{"run with a value of the wrong type", command("run", "--app-port", "many"), 2, "mecha run: "},
		{"an unknown command", command("ran"), 1, `mecha: unknown command "ran"`},
		{"an unknown flag of another command", command("version", "--no-such-flag"), 1, "mecha version: unknown flag"},
		{"embedded with a wrong level", command("embedded", "--log-level", "loud"), 1, `mecha embedded: --log-level "loud" is unknown; use debug, info, warn or error`},
		{"embedded with a negative time", command("embedded", "--linger", "-1s"), 1, "must not be negative"},
		{"help", command("--help"), 0, "Usage:"},
		{"version", command("version"), 0, version},
		{"a sidecar's version", sidecar("--version"), 0, version},
		{"a sidecar's build", sidecar("-build-info"), 0, "Git Commit:"},
		{"a sidecar with an unknown flag", sidecar("--no-such-flag"), 2, "no-such-flag"},
		{"a sidecar without an app id", sidecar(), 1, "app-id"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code := -1
			text := said(t, func() { code = tt.run() })
			if code != tt.code || !strings.Contains(text, tt.text) {
				t.Errorf("exit code %d, said %q; want %d and %q", code, text, tt.code, tt.text)
			}
		})
	}
}

// `mecha run` removes the mark of an embedded node from what it starts, but links no part of
// the sidecar: it has its own copy of the name.
func TestTheMarkOfAnEmbeddedNodeHasOneName(t *testing.T) {
	if launch.EmbeddedNodeEnv != embedded.EnvNode {
		t.Errorf("launch says %q, the node %q", launch.EmbeddedNodeEnv, embedded.EnvNode)
	}
}

func TestBackendsFitTogether(t *testing.T) {
	set, err := backends()
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []string{"state.in-memory", "pubsub.in-memory", "state.embedded", "pubsub.embedded", "nameresolution.hostdir", "nameresolution.mdns"} {
		if _, ok := set.Find(typ, ""); !ok {
			t.Errorf("%s is not linked in: the defaults need it", typ)
		}
	}
}
