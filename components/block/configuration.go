package block

import "context"

// Configuration is a store of settings that others write and apps read and follow.
type Configuration interface {
	Component
	// Get reads items by key; no keys means all there are, where the store can list them, else
	// fault.Unsupported. Keys that do not exist are left out. metadata is the request's, for
	// options of the product.
	Get(ctx context.Context, keys []string, metadata map[string]string) (map[string]ConfigItem, error)
	// Subscribe tells of every change to the keys (none: to any key) until ctx ends, and then
	// returns ctx's error. It calls changed from one goroutine, in the order the store reports
	// the changes of a key, and never with the values there were at the beginning. Changes of a
	// key that follow each other closely may come as the last of them. A key that was removed
	// comes as an item without a value. The map belongs to the callee; changed may block.
	//
	// started is called once, as soon as no later change can be missed. A connection that is
	// lost is repaired inside: after it the keys are read again and what differs from what was
	// told last is told, so that a change made meanwhile is late, not lost. Subscribe returns
	// early only when it cannot go on.
	Subscribe(ctx context.Context, keys []string, metadata map[string]string, started func(), changed func(map[string]ConfigItem)) error
}

// ConfigItem is one setting.
type ConfigItem struct {
	Value    string
	Version  string            // as the store writes it; empty when it has none
	Metadata map[string]string // never nil when the store has some
}
