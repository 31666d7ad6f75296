//go:build !linux

package main

import (
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"time"
)

var errSystem = fmt.Errorf("%w: the benchmark reads processor time and memory from /proc, run it on Linux, not on %s", errors.ErrUnsupported, runtime.GOOS)

func canMeasure() error                     { return errSystem }
func cpuTime(int) (time.Duration, error)    { return 0, errSystem }
func busyTime() (time.Duration, error)      { return 0, errSystem }
func memory(int) (anon, pss int64, _ error) { return 0, 0, errSystem }
func wakeups(int) (int64, error)            { return 0, errSystem }
func findProcess(_, _ string) int           { return 0 }
func dieWithUs(*exec.Cmd)                   {}
