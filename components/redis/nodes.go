package redis

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	goredis "github.com/redis/go-redis/v9"
)

var errFewerServers = errors.New("there are fewer servers")

// mastersOf are the masters of a cluster, in the order of their addresses.
func mastersOf(ctx context.Context, client goredis.UniversalClient) ([]*goredis.Client, error) {
	cluster, ok := client.(*goredis.ClusterClient)
	if !ok {
		return nil, errors.New("not a cluster")
	}
	var mu sync.Mutex
	var all []*goredis.Client
	err := cluster.ForEachMaster(ctx, func(_ context.Context, node *goredis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, node)
		return nil
	})
	slices.SortFunc(all, func(a, b *goredis.Client) int { return strings.Compare(a.Options().Addr, b.Options().Addr) })
	return all, err
}

// layoutOf reads a server's list of its cluster: a text that says who has which slots, and whether
// this server is giving some away. A line is
//
//	id address flags master ping pong epoch link slot slot-slot [slot->-id] …
func layoutOf(text string) (layout string, moving bool) {
	var owners []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 9 || !strings.Contains(fields[2], "master") {
			continue
		}
		owner := fields[0] // not the address: a server need not know its own
		for _, slots := range fields[8:] {
			if strings.HasPrefix(slots, "[") {
				moving = moving || strings.Contains(slots, "->-")
				continue
			}
			owner += " " + slots
		}
		owners = append(owners, owner)
	}
	slices.Sort(owners)
	return strings.Join(owners, "\n"), moving
}
