package redis

import (
	"context"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateQuery = (*state)(nil)

// Queries implements block.StateQuery: there are none.
func (s *state) Queries() bool { return false }

// Query refuses, as a store without indexes does. Queries need the server's search and JSON
// modules, and documents in another form than the hashes that items are stored in here.
func (s *state) Query(context.Context, block.StateSearch) (block.StateFound, error) {
	return block.StateFound{}, fault.New("redis.state.Query", fault.Unsupported,
		"items in Redis cannot be queried: they are stored without search indexes; use a store that can, such as state.postgresql v1").WithSent(fault.SentNever)
}
