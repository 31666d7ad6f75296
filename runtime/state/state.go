// Package state is the deciding half of the state block: it checks requests as Dapr does,
// scopes keys to the app, reads TTL and concurrency options, splits requests of several items
// into what the store can do, and runs every store operation as one call under the store's
// policy.
//
// It leaves to the edges: parsing bodies, choosing status codes, quoting values. It leaves to
// the backends: storing bytes. Values are opaque bytes here, with one exception: an item whose
// metadata says contentType application/json must hold valid JSON, and its store is told so.
//
// Start at Service. Keys and their prefixes are in keys.go, the reading of items in items.go,
// requests of several items in many.go, transactions in transact.go, their outbox in outbox.go,
// queries in query.go; what Dapr's API lacks in scan.go, watch.go and fence.go.
//
// # Errors
//
// Every error is a *fault.Error. Where the code alone does not say which answer a wire owes,
// the reason does:
//
//	NotReady,   fault.NoComponents     no state store is configured
//	NotFound,   fault.NoSuchComponent  another name
//	Invalid,    fault.IllegalKey       the key contains "||"
//	Invalid,    fault.EmptyName        a save without a key
//	Invalid,    fault.BadMetadata      ttlInSeconds is not an integer, or below -1
//	Invalid,    BadOption              unknown concurrency or consistency model
//	Invalid,    BadValue               contentType says JSON and the value is not
//	Invalid,    BadPrefix              the store's keyPrefix cannot be used
//	Invalid,    fault.BadOperation     a transaction step that is neither upsert nor delete
//	Invalid,    fault.TooManyOps       more steps than the store takes; the cause is *LimitError
//	Unsupported, fault.NoTransactions  the store has no transactions
//	Unsupported, fault.NoQuery         the store cannot be queried
//	Unsupported, fault.NoScan          it cannot go through its keys, or policy divides it
//	Unsupported, fault.NoWatch         it does not tell of changes, or policy divides it
//	Unsupported, fault.NoFence         it cannot check and raise an epoch with a write
//	Invalid,    fault.BadToken         a page token that is not this store's
//	Invalid,    BadEpoch               an epoch that is none, or of no topic
//	Conflict,   fault.Fenced           a later epoch of the partition has written
//	Invalid,    BadQuery               a query that cannot be read
//	Conflict                           an etag or first-write did not hold
//	BadEtag                            the etag cannot be this store's
//
// On saves and deletes Dapr answers 500 to Invalid errors other than IllegalKey and EmptyName.
package state

import (
	"context"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

// Reasons of this block's own.
const (
	BadOption fault.Reason = "bad_option"
	BadValue  fault.Reason = "bad_value"
	BadPrefix fault.Reason = "bad_key_prefix"
	BadEpoch  fault.Reason = "bad_epoch"
	BadQuery  fault.Reason = "bad_query"
)

// Recorder counts store operations. operation is one of get, set, delete, bulk_get,
// bulk_delete, transaction, query, scan, watch; requests refused before the store are not counted.
type Recorder interface {
	State(component, operation string, ok bool, took time.Duration)
}

// Service serves the state block. It is safe for concurrent use.
type Service struct {
	stores *catalog.Store[block.State]
	self   identity.Self
	caller call.Caller
	rec    Recorder
	outbox Outbox // nil: none

	watches    context.Context // of all watches
	endWatches context.CancelCauseFunc
}

// New makes the service. rec may be nil.
func New(stores *catalog.Store[block.State], self identity.Self, rec Recorder) *Service {
	s := &Service{stores: stores, self: self, rec: rec, caller: call.Caller{App: self.App, Namespace: self.Namespace, Proven: true}}
	s.watches, s.endWatches = context.WithCancelCause(context.Background())
	return s
}

// ReadOptions are options of a read. Consistency "strong" asks the store for a read that sees
// every acknowledged write; as in Dapr anything else, known or not, is an eventual read.
type ReadOptions struct {
	Consistency string
}

func (o ReadOptions) read() block.StateRead {
	return block.StateRead{Strong: o.Consistency == strong}
}

// Check tells whether the store exists. Edges call it before they parse a body, because an
// unknown store wins over a malformed request.
func (s *Service) Check(store string) error {
	_, err := s.stores.Lookup(store)
	return err
}

// Get reads one key. A missing or expired key is not an error: Exists is false. The item
// carries the key as the caller wrote it.
func (s *Service) Get(ctx context.Context, store, key string, opts ReadOptions) (block.StateItem, error) {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return block.StateItem{}, err
	}
	full, err := s.scope(h.Info, key)
	if err != nil {
		return block.StateItem{}, err
	}
	start := time.Now()
	desc := s.desc("get", key, call.Safe)
	item, err := catalog.Read(ctx, h, desc, question{full, opts.read()}, &reading)
	s.record(store, "get", start, err)
	item.Key = key
	return item, err
}

// question is what a read needs; reading is how it is done.
type question struct {
	key  string
	opts block.StateRead
}

var reading = catalog.Reading[block.State, question, block.StateItem]{
	Fn: func(ctx context.Context, store block.State, l question) (block.StateItem, error) {
		return store.Get(ctx, l.key, l.opts)
	},
	Keep: func(l question) question { l.key = strings.Clone(l.key); return l },
	Same: catalog.SameItem,
}

// desc describes an operation on a key. The key in it is the caller's.
func (s *Service) desc(op, key string, safety call.Safety) call.Desc {
	return call.Desc{Op: op, Resource: key, Key: key, Safety: safety, Caller: s.caller}
}

// Delete removes one key, conditionally when the item has an etag. Value is ignored.
func (s *Service) Delete(ctx context.Context, store string, item Item) error {
	h, err := s.stores.Lookup(store)
	if err != nil {
		return err
	}
	d, err := s.removal(h.Info, item)
	if err != nil {
		return err
	}
	start := time.Now()
	desc := s.desc("delete", item.Key, safety(d.ETag != ""))
	_, err = catalog.Do(ctx, h, desc, func(ctx context.Context, store block.State) (struct{}, error) {
		return struct{}{}, store.Delete(ctx, d)
	}, func() func(context.Context, block.State) error {
		key := strings.Clone(d.Key)
		return func(ctx context.Context, store block.State) error {
			return store.Delete(ctx, block.StateDelete{Key: key})
		}
	})
	s.record(store, "delete", start, err)
	return err
}

// ItemMetadata is what a read reports beside value and etag: ttlExpireTime (RFC 3339, UTC,
// whole seconds) when the item expires, else nil.
func ItemMetadata(item block.StateItem) map[string]string {
	if !item.Exists || item.Expires.IsZero() {
		return nil
	}
	return map[string]string{"ttlExpireTime": item.Expires.UTC().Format(time.RFC3339)}
}

func (s *Service) record(store, op string, start time.Time, err error) {
	if s.rec != nil {
		s.rec.State(store, op, err == nil, time.Since(start))
	}
}

// safety is what repeating a single write can do.
func safety(conditional bool) call.Safety {
	if conditional {
		return call.Conditional
	}
	return call.Idempotent
}
