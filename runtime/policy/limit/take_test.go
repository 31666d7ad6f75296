package limit

import "testing"

// TestTakeNeverOvertakes looks at the moment when a slot is free and the first in line has not
// got it yet. From outside it is too short to be caught.
func TestTakeNeverOvertakes(t *testing.T) {
	c := NewCaps(Config{MaxRequests: 2})
	c.load.Store(onePending + 1)
	if c.take() {
		t.Error("a newcomer took the slot of who waits")
	}
}
