package main

import (
	"os"
	"testing"
	"time"
)

func TestOwnProcess(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 2*time.Millisecond; {
	}
	after, err := cpuTime(os.Getpid())
	if err != nil || after <= before {
		t.Errorf("processor time: %v then %v, %v", before, after, err)
	}
	anonymous, pss, err := memory(os.Getpid())
	if err != nil || anonymous <= 0 || pss < anonymous/2 {
		t.Errorf("memory: %d anonymous, PSS %d, %v", anonymous, pss, err)
	}
	if n, err := wakeups(os.Getpid()); err != nil || n <= 0 {
		t.Errorf("wake-ups: %d, %v", n, err)
	}
	if busy, err := busyTime(); err != nil || busy <= 0 {
		t.Errorf("the machine's busy time: %v, %v", busy, err)
	}
	if pid := findProcess("no such subcommand", "/"); pid != 0 {
		t.Errorf("found process %d, want none", pid)
	}
}

func TestEndedProcess(t *testing.T) {
	const never = 1 << 22 // beyond the kernel's largest process id
	if _, err := cpuTime(never); err == nil {
		t.Error("processor time of no process: no error")
	}
	if _, _, err := memory(never); err == nil {
		t.Error("memory of no process: no error")
	}
}

func TestParseRollup(t *testing.T) {
	anonymous, pss, err := parseRollup("00400000-7ffd ---p 00000000 00:00 0 [rollup]\nRss: 30 kB\nPss: 20 kB\nPss_Anon: 9 kB\nAnonymous: 10 kB\n")
	if err != nil || anonymous != 10<<10 || pss != 20<<10 {
		t.Errorf("got %d, %d, %v; want 10240, 20480", anonymous, pss, err)
	}
	for _, bad := range []string{"", "Pss: 20 kB\n", "Pss: x kB\nAnonymous: 1 kB\n"} {
		if _, _, err := parseRollup(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
