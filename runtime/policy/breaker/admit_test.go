package breaker

import (
	"sync"
	"sync/atomic"
	"testing"
)

// TestAdmitConcurrent makes sure that no place is given twice.
func TestAdmitConcurrent(t *testing.T) {
	const places = 100_000
	var g generation
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for g.admit(places) {
				admitted.Add(1)
			}
		})
	}
	wg.Wait()
	if got := admitted.Load(); got != places {
		t.Errorf("%d admitted, want %d", got, places)
	}
}
