package limit

import "time"

// start is never changed. Times are kept relative to it because a time.Time does not fit an
// atomic word.
var start = time.Now()

// origin is the Nanotime of start. It is 73 years, because in a testing/synctest bubble the
// clock begins in 2000, long before start, and no time may be negative.
const origin = 1 << 61

// Nanotime is a monotonic time in nanoseconds, never negative. Only differences mean
// something. Under testing/synctest it follows the clock of the bubble.
func Nanotime() int64 { return origin + int64(time.Since(start)) }
