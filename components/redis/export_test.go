package redis

import (
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// SetRecheck makes a store look more often whether the server still tells it.
func SetRecheck(s block.Configuration, d time.Duration) { s.(*configuration).recheck = d }
