package nats

import "time"

// RecheckEvery changes how often a follower looks whether its bucket is still there.
func (c *Configuration) RecheckEvery(d time.Duration) { c.recheck = d }
