package embedded_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/nats/embedded"
)

// cpuOf is the processor time used by a process so far.
func cpuOf(tb testing.TB, pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0 // not Linux
	}
	fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+1:])
	user, _ := strconv.Atoi(fields[11])
	sys, _ := strconv.Atoi(fields[12])
	return time.Duration(user+sys) * 10 * time.Millisecond
}

func ownCPU() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPutThroughSocket(b *testing.B) {
	dir := b.TempDir()
	c, err := embedded.Connect(b.Context(), embedded.Options{DataDir: dir, Linger: 100 * time.Millisecond})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	js, _ := jetstream.New(c.NATS())
	kv, err := js.CreateKeyValue(context.Background(), jetstream.KeyValueConfig{Bucket: "b"})
	if err != nil {
		b.Fatal(err)
	}
	lock, _ := os.ReadFile(dir + "/lock")
	pid, _ := strconv.Atoi(strings.TrimSpace(string(lock)))
	value := make([]byte, 1024)
	run := func(name string, op func()) {
		b.Run(name, func(b *testing.B) {
			node, own := cpuOf(b, pid), ownCPU()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					op()
				}
			})
			b.ReportMetric(float64((cpuOf(b, pid)-node).Microseconds())/float64(b.N), "node-µs/op")
			b.ReportMetric(float64((ownCPU()-own).Microseconds())/float64(b.N), "client-µs/op")
		})
	}
	run("put", func() { _, _ = kv.Put(context.Background(), "k", value) })
	run("get", func() { _, _ = kv.Get(context.Background(), "k") })
}
