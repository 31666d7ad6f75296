package middleware

import (
	"testing"
	"time"
)

// The table follows the clients of the last moments, not all there ever were.
func TestBucketsAreReused(t *testing.T) {
	b := newBuckets(1000)
	for i := range 100_000 {
		b.takeAt(uint64(i), int64(i)*b.every)
	}
	if len(b.all) > 4 {
		t.Errorf("%d buckets are kept for clients that come one after the other", len(b.all))
	}
}

func TestBucketsAreBounded(t *testing.T) {
	b := newBuckets(1)
	for i := range 2 * maxBuckets {
		if _, ok := b.takeAt(uint64(i), 1); !ok {
			t.Fatalf("the first request of client %d was refused", i)
		}
	}
	if len(b.all) != maxBuckets || len(b.index) != maxBuckets {
		t.Errorf("%d buckets, %d in the index, want %d of both", len(b.all), len(b.index), maxBuckets)
	}
	last, first := uint64(2*maxBuckets-1), uint64(maxBuckets)
	if _, ok := b.takeAt(last, 1); ok {
		t.Error("the bucket used most recently was forgotten")
	}
	if _, ok := b.takeAt(first, 1); ok {
		t.Error("a bucket within the bound was forgotten")
	}
	if _, ok := b.takeAt(0, 1); !ok {
		t.Error("a bucket beyond the bound was kept")
	}
	// The list is whole: walking it from either end meets every bucket once.
	n := 0
	for i := b.head; i >= 0; i = b.all[i].next {
		n++
	}
	m := 0
	for i := b.tail; i >= 0; i = b.all[i].prev {
		m++
	}
	if n != maxBuckets || m != maxBuckets {
		t.Errorf("the list has %d buckets forwards and %d backwards, want %d", n, m, maxBuckets)
	}
}

func TestBucketsAtTheLimitsOfRates(t *testing.T) {
	for _, rate := range []float64{slowest, 0.5, 1, 1.5, 1e3, fastest} {
		b := newBuckets(rate)
		now := int64(time.Hour)
		burst := max(int(rate), 1)
		if left, ok := b.takeAt(1, now); !ok || left != burst-1 {
			t.Errorf("rate %v: %d left, %v; want %d left", rate, left, ok, burst-1)
		}
	}
}
