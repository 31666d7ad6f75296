package balance

import (
	"math"
	"sync/atomic"
)

// ewma is an average that forgets with time, in one word so that it needs no lock: nanoseconds
// as a float32 in the upper half (seven digits are plenty), the tick of the last change in the
// lower. Zero means nothing was measured.
//
// Samples within one tick of the last change count only when they raise the value. At high
// rates that is a sample of the calls, and spares most of them the write.
type ewma struct{ word atomic.Uint64 }

// tickBits makes a tick 2^17 ns, 131 µs: fine against any decay of milliseconds, and the
// 32-bit count comes round after 6.5 days only.
const tickBits = 17

func tickOf(now int64) uint32 { return uint32(now >> tickBits) }

// elapsed is the nanoseconds from tick a to tick b. Writers race, so b can be a little before
// a: the last 2^16 ticks (8 s) before a count as now, not as nearly a whole round later.
func elapsed(a, b uint32) float64 {
	if d := b - a; d < math.MaxUint32-1<<16 {
		return float64(uint64(d) << tickBits)
	}
	return 0
}

func pack(v float32, tick uint32) uint64 {
	return uint64(math.Float32bits(v))<<32 | uint64(tick)
}

func (e *ewma) load() (v float32, tick uint32) {
	w := e.word.Load()
	return math.Float32frombits(uint32(w >> 32)), uint32(w)
}

// peak takes a sample above the average at once and lets a lower one in with time.
func (e *ewma) peak(sample float32, now uint32, decay float64) {
	for {
		v, at := e.load()
		if v != 0 && sample <= v && at == now {
			return
		}
		next := sample
		if sample < v {
			next = blend(v, sample, fade(elapsed(at, now), decay))
		}
		if e.word.CompareAndSwap(pack(v, at), pack(next, now)) {
			return
		}
	}
}

// average lets every sample in with time.
func (e *ewma) average(sample float32, now uint32, decay float64) {
	v, at := e.load()
	if v != 0 && at == now {
		return
	}
	next := sample
	if v != 0 {
		next = blend(v, sample, fade(elapsed(at, now), decay))
	}
	// Losing the race loses one sample of many.
	e.word.CompareAndSwap(pack(v, at), pack(next, now))
}

func blend(old, sample float32, keep float64) float32 {
	return float32(float64(old)*keep + float64(sample)*(1-keep))
}

// fade is what is left of an old value after so much time.
func fade(elapsed, decay float64) float64 {
	if elapsed == 0 {
		return 1
	}
	return math.Exp(-elapsed / decay)
}

// cost is what the next call to a host is expected to take, in no particular unit.
//
// Latency without news fades, so that a host once slow is tried again. Calls that hang or have
// just begun are no news, and must not make a stale or unmeasured host look free: while calls
// are in flight the value does not fade below what is typical in the cluster. The first call
// alone is given on credit.
func cost(h *Host, scale float64, typical float32, now uint32, decay float64) float64 {
	calls := max(h.inflight.Load(), 0)
	v, at := h.latency.load()
	if v == 0 {
		if calls == 0 {
			return 0
		}
		return float64(max(typical, 1)) * (1 + float64(calls)*scale)
	}
	latency := float64(v) * fade(elapsed(at, now), decay)
	if calls > 0 {
		latency = max(latency, float64(min(v, typical)))
	}
	return latency * (1 + float64(calls)*scale)
}
