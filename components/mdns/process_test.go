package mdns_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/mdns"
)

// childEnv makes the test binary a registrant of the instance it holds as JSON; it stays
// until its stdin ends or it is killed.
const childEnv = "MECHA_MDNS_TEST_CHILD"

func childMain() {
	var in block.Instance
	err := json.Unmarshal([]byte(os.Getenv(childEnv)), &in)
	if err == nil {
		var r block.Registry
		if r, err = mdns.New(block.Env{Log: slog.New(slog.DiscardHandler)}, mdns.DefaultConfig()); err == nil {
			err = r.(block.Registrar).Register(context.Background(), in)
		}
	}
	if err != nil {
		fmt.Println("child:", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// startChild runs a registrant in a process of its own, in a network namespace if one is
// named. The returned function kills it, so that it says no goodbye.
func startChild(t *testing.T, netns string, in block.Instance) (kill func()) {
	t.Helper()
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{os.Args[0]}
	if netns != "" {
		argv = append([]string{"ip", "netns", "exec", netns}, argv...) // execs: the pid is the child's
	}
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(os.Environ(), childEnv+"="+string(text))
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = c.Process.Kill()
		_ = stdin.Close()
		_ = c.Wait()
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready") {
		t.Fatalf("child said %q, %v", line, err)
	}
	return kill
}
