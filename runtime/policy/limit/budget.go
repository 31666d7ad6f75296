package limit

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultBudgetTTL is how long a call pays for retries unless told otherwise: the default of
// Finagle's RetryBudget, which Linkerd took over.
const DefaultBudgetTTL = 10 * time.Second

const (
	// budgetBuckets is into how many pieces the ttl is cut.
	budgetBuckets = 10
	// wholeRetry is what a retry costs. Deposits are fractions of it, counted as integers so
	// that they can be added atomically.
	wholeRetry = 1_000_000
	// mostRetriesPerCall bounds the ratio, as Finagle does.
	mostRetriesPerCall = 1000
)

// Budget limits retries to a share of the calls, so that retries cannot multiply the load on a
// target that fails everything. Each call deposits a fraction of a retry, each retry withdraws
// a whole one, and both are forgotten after the ttl. A minimum of retries per second is always
// granted, because a target with few calls has nothing saved.
//
// At any time, over the last ttl: retries ≤ ratio × calls + minimum × ttl. The minimum of a
// whole ttl may be used at once. The time is cut into tenths of the ttl, so a deposit or
// withdrawal counts for up to a tenth longer, never shorter.
type Budget struct {
	deposit int64 // per call
	reserve int64 // per ttl
	width   int64 // of a bucket, ns
	// slots are the tenths of the ttl and the one that is running, by the time they began.
	slots [budgetBuckets + 1]atomic.Pointer[budgetBucket]
	// spending makes a withdrawal one step. Retries are rare; deposits do not take it.
	spending sync.Mutex
}

// budgetBucket is the balance of one tenth of the ttl. It is replaced, never reset: a deposit
// that comes late goes to a bucket nobody counts any more.
type budgetBucket struct {
	tick    int64
	balance atomic.Int64
	_       [112]byte // a line of its own: every call of a target writes it
}

// NewBudget allows ratio retries per call (0.2: one for five calls) and minPerSecond on top. A
// ttl of 0 or less means DefaultBudgetTTL. Negative figures count as 0, a ratio over 1000 as
// 1000.
func NewBudget(ratio float64, minPerSecond int, ttl time.Duration) *Budget {
	if ttl <= 0 {
		ttl = DefaultBudgetTTL
	}
	if !(ratio > 0) { // also not a number
		ratio = 0
	}
	ratio = min(ratio, mostRetriesPerCall)
	reserve := float64(max(minPerSecond, 0)) * ttl.Seconds() * wholeRetry
	return &Budget{
		deposit: int64(math.Round(ratio * wholeRetry)),
		reserve: int64(min(math.Round(reserve), math.MaxInt64/4)),
		width:   max(int64(ttl)/budgetBuckets, 1),
	}
}

// Deposit counts one logical call, when it begins. It takes one atomic addition and allocates
// once per tenth of the ttl.
func (b *Budget) Deposit() {
	if b.deposit > 0 {
		b.at(Nanotime() / b.width).balance.Add(b.deposit)
	}
}

// Withdraw pays for one retry and tells whether there was enough. A retry that is refused
// costs nothing.
func (b *Budget) Withdraw() bool {
	b.spending.Lock()
	defer b.spending.Unlock()
	tick := Nanotime() / b.width
	if b.sum(tick) < wholeRetry {
		return false
	}
	b.at(tick).balance.Add(-wholeRetry)
	return true
}

// Balance is how many retries could be made now.
func (b *Budget) Balance() int {
	return int(max(0, b.sum(Nanotime()/b.width)) / wholeRetry)
}

func (b *Budget) sum(tick int64) int64 {
	sum := b.reserve
	for i := range b.slots {
		if s := b.slots[i].Load(); s != nil && tick-s.tick <= budgetBuckets {
			sum += s.balance.Load()
		}
	}
	return sum
}

// at is the bucket of a tick, put in the place of the one that has been there before.
func (b *Budget) at(tick int64) *budgetBucket {
	slot := &b.slots[tick%int64(len(b.slots))]
	for {
		s := slot.Load()
		if s != nil && s.tick >= tick {
			return s
		}
		next := &budgetBucket{tick: tick}
		if slot.CompareAndSwap(s, next) {
			return next
		}
	}
}
