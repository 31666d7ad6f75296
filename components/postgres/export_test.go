package postgres

import (
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// SetRecheck makes a store look more often at its table and its connection.
func SetRecheck(s block.Configuration, d time.Duration) { s.(*configuration).recheck = d }
