package outlier

import (
	"math/rand/v2"
	"time"
	"unsafe"
)

// Seed makes the detector's chance repeatable.
func (d *Detector) Seed(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.random = rand.New(rand.NewPCG(n, n))
}

// Armed tells whether the timer is going to wake the process. A timer can only be asked by
// stopping it, so it is set again.
func (d *Detector) Armed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer == nil || !d.timer.Stop() {
		return false
	}
	d.sweeps.Done()
	d.arm(time.Now())
	return true
}

// Sweep ends the interval now.
func (d *Detector) Sweep() { d.change(d.sweep) }

// HotEnd is the offset of what a Host keeps under the lock.
const HotEnd = unsafe.Offsetof(Host{}.ejected)
