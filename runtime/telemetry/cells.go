package telemetry

import (
	"math/rand/v2"
	"runtime"
	"sync/atomic"
)

// maxShards bounds how many copies of a series' cells exist. More copies mean less contention
// between cores and more memory per series; four keep the largest histogram near 1.2 KiB.
const maxShards = 4

// lineWords is the number of 64-bit cells in one cache line of every machine we run on. Shards
// start a line apart so that cores writing to two of them do not share one.
const lineWords = 8

// shardCount is the number of shards on this machine: a power of two.
func shardCount() int {
	n := 1
	for n < runtime.GOMAXPROCS(0) && n < maxShards {
		n *= 2
	}
	return n
}

// pick chooses a shard for one record. A random choice is the cheapest that spreads writers:
// the standard library offers no number of the present core.
func pick() uint32 { return rand.Uint32() }

// cells are the numbers of one series, written without locks. For a counter or a gauge the cell
// of each shard is the number; for a histogram it is the sum followed by one count per bucket.
type cells struct {
	words  []atomic.Uint64
	stride uint32
	mask   uint32
}

// newCells makes shards (a power of two) of the given number of words each.
func newCells(words, shards int) cells {
	stride := (words + lineWords - 1) / lineWords * lineWords
	return cells{words: make([]atomic.Uint64, stride*shards), stride: uint32(stride), mask: uint32(shards - 1)}
}

// add puts n on a counter.
func (c *cells) add(shard uint32, n uint64) {
	c.words[(shard&c.mask)*c.stride].Add(n)
}

// observe puts v into a histogram with these bounds.
func (c *cells) observe(shard uint32, bounds []uint64, v uint64) {
	at := (shard & c.mask) * c.stride
	c.words[at].Add(v)
	c.words[at+1+bucket(bounds, v)].Add(1)
}

// read sums word i over the shards. Shards are read one after another: a scrape during a record
// may see a sum without its count, as every lock-free histogram may.
func (c *cells) read(i uint32) uint64 {
	var n uint64
	for at := uint32(0); int(at) < len(c.words); at += c.stride {
		n += c.words[at+i].Load()
	}
	return n
}

// bucket is the index of the first bound that is not below v, or len(bounds).
func bucket(bounds []uint64, v uint64) uint32 {
	if len(bounds) == 0 || v <= bounds[0] { // most latencies of a sidecar are under a millisecond
		return 0
	}
	lo, hi := 1, len(bounds)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if v <= bounds[mid] {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return uint32(lo)
}
