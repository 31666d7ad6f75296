//go:build unix

package h1_test

import (
	"syscall"
	"testing"
)

// reportCPU reports the process's processor time per operation, callers and origin included.
func reportCPU(b *testing.B) (stop func()) {
	start := cpuMicros()
	return func() { b.ReportMetric((cpuMicros()-start)/float64(b.N), "cpu-µs/op") }
}

func cpuMicros() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3
}
