package redis

import (
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// SetRecheck makes a store look more often whether the server still tells it.
func SetRecheck(s block.Configuration, d time.Duration) { s.(*configuration).recheck = d }

// SetWatchRecheck makes a store's watches look more often whether they are told all.
func SetWatchRecheck(s block.State, d time.Duration) { s.(*state).recheck = d }

// SetWatchSilence makes a store's watches ask sooner for a sign of life.
func SetWatchSilence(s block.State, d time.Duration) { s.(*state).silence = d }
