package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// headroom is how much the heap may grow between two garbage collections, at the least. Go's
// own rule doubles the live heap, but a sidecar's is 3 to 5 MiB, so under load it would collect
// a hundred times a second; measured, that was a tenth of its CPU. The idle sidecar does not
// pay: memory it has not touched is not used.
const headroom = 16 << 20

// paceGC keeps the collector's pace at headroom for small heaps and at Go's rule for others. It
// does nothing when GOGC says otherwise. Each collection finalizes a sentinel, which looks at
// the live heap again; nothing runs while nothing is allocated.
func paceGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	last := 0
	var again func(*sentinel)
	again = func(*sentinel) {
		if p := gcPercent(liveHeap()); p != last {
			last = p
			debug.SetGCPercent(p)
		}
		runtime.SetFinalizer(&sentinel{}, again)
	}
	again(nil)
}

// sentinel is not empty, since pointers to empty values need not differ.
type sentinel struct{ _ [16]byte }

// gcPercent is the growth in percent that gives a heap of live bytes its headroom, in coarse
// steps, because changing it stops the world for a moment.
func gcPercent(live uint64) int {
	p := headroom * 100 / max(live, 1<<20)
	switch {
	case p <= 100:
		return 100
	case p > 800:
		return 800
	}
	return int(p / 100 * 100)
}

func liveHeap() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}
