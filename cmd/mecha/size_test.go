package main

import (
	"bytes"
	"os/exec"
	"testing"
)

// A binary in which something looks methods up by name (text/template is the usual culprit)
// keeps every exported method of every type: with the client libraries in it that is a quarter
// of its size.
func TestUnusedMethodsAreLeftOut(t *testing.T) {
	cmd := exec.Command("go", "build", "-tags", "grpcnotrace", "-o", t.TempDir()+"/mecha", "-ldflags=-dumpdep", ".")
	var dump bytes.Buffer
	cmd.Stdout, cmd.Stderr = &dump, &dump
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, tail(dump.Bytes()))
	}
	for line := range bytes.Lines(dump.Bytes()) {
		if bytes.Contains(line, []byte("<ReflectMethod>")) {
			t.Fatalf("the linker cannot leave out unused methods, because of: %s", line)
		}
	}
}

func tail(b []byte) []byte { return b[max(0, len(b)-2000):] }
