//go:build !linux

package main

import (
	"errors"
	"os/exec"
	"runtime"
	"time"
)

var errSystem = errors.New("the benchmark reads processor time and memory from Linux's /proc; " + runtime.GOOS + " has none, run it on Linux")

func canMeasure() error                     { return errSystem }
func cpuTime(int) (time.Duration, error)    { return 0, errSystem }
func busyTime() (time.Duration, error)      { return 0, errSystem }
func memory(int) (anon, pss int64, _ error) { return 0, 0, errSystem }
func wakeups(int) (int64, error)            { return 0, errSystem }
func findProcess(_, _ string) int           { return 0 }
func dieWithUs(*exec.Cmd)                   {}
