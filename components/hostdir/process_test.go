package hostdir_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/hostdir"
)

// childEnv makes the test binary a registrant: "<dir> <n>". It registers instance n, starts
// a sleeping process of its own when n is odd, says "ready" and waits for its stdin to end.
const childEnv = "MECHA_HOSTDIR_TEST_CHILD"

func childMain() {
	var dir string
	var n int
	if _, err := fmt.Sscan(os.Getenv(childEnv), &dir, &n); err != nil {
		fmt.Println("bad child arguments:", err)
		os.Exit(1)
	}
	r, err := hostdir.New(block.Env{Log: slog.New(slog.DiscardHandler)}, &hostdir.Config{Dir: dir})
	if err == nil {
		err = r.(block.Registrar).Register(context.Background(), instance(n))
	}
	if err != nil {
		fmt.Println("child:", err)
		os.Exit(1)
	}
	grandchild := 0
	if n%2 == 1 {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), childEnv+"="+dir+"-elsewhere 0")
		c.Stdin = os.Stdin // the grandchild outlives us: the test holds the other end
		if err := c.Start(); err != nil {
			fmt.Println("child:", err)
			os.Exit(1)
		}
		grandchild = c.Process.Pid
	}
	fmt.Println("ready", grandchild)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// startChild runs a registrant in a process of its own and waits until it is announced.
func startChild(t *testing.T, dir string, n int) *exec.Cmd {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", childEnv, dir, n))
	stdin, hold, err := os.Pipe() // Wait must not close it under a grandchild
	if err != nil {
		t.Fatal(err)
	}
	c.Stdin = stdin
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = hold.Close()
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready") {
		t.Fatalf("child said %q, %v", line, err)
	}
	return c
}

func TestKilledProcessIsGoneAtOnce(t *testing.T) {
	dir := dirOf(t)
	r := open(t, dir, nil)
	a := startChild(t, dir, 1) // has a child of its own, which must not inherit the lock
	startChild(t, dir, 2)
	if n := count(t, r); n != 2 {
		t.Fatalf("%d instances, want 2", n)
	}
	if err := a.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = a.Wait()
	got, err := r.Resolve(t.Context(), orders)
	if err != nil || len(got) != 1 || got[0].ID != "id-2" {
		t.Errorf("right after the kill: %v, %v; want the survivor alone", got, err)
	}
	if files := entries(t, dir); len(files) != 1 {
		t.Errorf("files after the kill: %v, want the survivor's alone", files)
	}
}

func TestWatchHearsOfAKill(t *testing.T) {
	dir := dirOf(t)
	r := open(t, dir, nil)
	victim := startChild(t, dir, 2)
	ctx, cancel := context.WithCancel(t.Context())
	lists, done := make(chan int, 100), make(chan error, 1)
	go func() {
		done <- r.(block.RegistryWatcher).Watch(ctx, orders, func(l []block.Instance) { lists <- len(l) })
	}()
	if n := <-lists; n != 1 {
		t.Fatalf("first list has %d instances, want 1", n)
	}
	start := time.Now()
	if err := victim.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Nobody asks: only the kernel's event can bring the news, and only on Linux. Elsewhere
	// a Resolve of anybody does.
	if hearsOfKills {
		select {
		case n := <-lists:
			if n != 0 {
				t.Errorf("list after the kill has %d instances, want 0", n)
			}
			t.Logf("heard of the kill after %v", time.Since(start))
		case <-time.After(5 * time.Second):
			t.Error("nothing heard of the kill within 5s")
		}
	}
	cancel()
	<-done
}

func TestDeadFilesAreIgnoredByACrowd(t *testing.T) {
	dir := dirOf(t)
	for n := 2; n <= 6; n += 2 {
		c := startChild(t, dir, n)
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	register(t, open(t, dir, nil), instance(1))
	results := make(chan int, 20)
	for range cap(results) {
		r := open(t, dir, nil)
		go func() {
			got, err := r.Resolve(context.Background(), orders)
			if err != nil {
				t.Errorf("Resolve: %v", err)
			}
			results <- len(got)
		}()
	}
	for range cap(results) {
		if n := <-results; n != 1 {
			t.Errorf("a reader in a crowd saw %d instances, want the living one", n)
		}
	}
}
