package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func canMeasure() error { return nil }

// cpuTime is the processor time a process has used, user and system, all threads, also those
// that have ended, in nanoseconds. /proc/<pid>/stat has the same in steps of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED of the kernel's clock ids for processes
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		return 0, fmt.Errorf("processor time of process %d: %w; has it ended?", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// busyTime is the processor time used by everything on the machine, in steps of 10 ms. Time
// stolen by the host counts too: it was not ours either.
func busyTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 9 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7, 8} { // user nice system irq softirq steal
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat begins with %q", line)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

// memory is what a process holds, in bytes: its anonymous memory, and its proportional share
// of all it maps.
func memory(pid int) (anonymous, pss int64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseRollup(string(b))
}

func parseRollup(text string) (anonymous, pss int64, err error) {
	want := map[string]*int64{"Anonymous:": &anonymous, "Pss:": &pss}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 || want[f[0]] == nil {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("smaps_rollup: %q", line)
		}
		*want[f[0]] = n << 10
		delete(want, f[0])
	}
	if len(want) > 0 {
		return 0, 0, fmt.Errorf("smaps_rollup has no Anonymous or no Pss:\n%s", text)
	}
	return anonymous, pss, nil
}

// wakeups counts how often the threads of a process went to sleep by themselves.
func wakeups(pid int) (int64, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		_, rest, _ := strings.Cut(string(b), "\nvoluntary_ctxt_switches:")
		line, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: voluntary_ctxt_switches %q", f, line)
		}
		sum += n
	}
	return sum, nil
}

// findProcess returns the process that runs a subcommand with an argument in a folder, or 0.
func findProcess(subcommand, folder string) int {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // it has ended
		}
		args := bytes.Split(b, []byte{0})
		if len(args) < 2 || string(args[1]) != subcommand || !bytes.Contains(b, append([]byte{0}, folder...)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			return pid
		}
	}
	return 0
}

// dieWithUs makes a child end when we do, however we do. It holds for children started by the
// thread that is locked by main.
func dieWithUs(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
}
