package state

import (
	"context"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Sizes of a page of a scan.
const (
	defaultPage = 100
	largestPage = 1000
)

// Scan asks for one page of the items whose keys begin with Prefix.
type Scan struct {
	Prefix   string // as the app writes keys; empty: all of the app's
	Token    string // of the page before; empty: the first page
	Size     int    // the most items wanted, at most 1000; 0: 100
	KeysOnly bool
}

// Scan gives one page of items, with keys as the app writes them, and the token of the next page;
// an empty one marks the last. See block.StateScan for what a scan promises.
func (s *Service) Scan(ctx context.Context, store string, q Scan) (items []block.StateItem, next string, err error) {
	const op fault.Op = "state.Scan"
	h, err := s.stores.Lookup(store)
	if err != nil {
		return nil, "", err
	}
	if q.Size < 0 || q.Size > largestPage {
		return nil, "", fault.New(op, fault.Invalid, "a page of %d items is asked for; it can have 1 to %d (0 means %d)", q.Size, largestPage, defaultPage).With(BadOption)
	}
	if q.Size == 0 {
		q.Size = defaultPage
	}
	desc := s.desc("scan", q.Prefix, call.Safe)
	own, err := s.reach(h, desc, q.Prefix, fault.NoScan)
	if err != nil {
		return nil, "", err
	}
	if !catalog.Able[block.StateScan](h) {
		return nil, "", fault.New(op, fault.Unsupported, "state store %s cannot go through its keys", store).With(fault.NoScan)
	}
	start := time.Now()
	q.Prefix = own.stored(q.Prefix)
	page, err := catalog.Read(ctx, h, desc, q, &scanning)
	s.record(store, "scan", start, err)
	return own.only(page.items), page.next, err
}

// page is what a scan gives.
type page struct {
	items []block.StateItem
	next  string
}

var scanning = catalog.Reading[block.State, Scan, page]{
	Fn: func(ctx context.Context, store block.State, q Scan) (p page, err error) {
		scanner, ok := block.As[block.StateScan](store)
		if !ok {
			return p, fault.New("state.Scan", fault.Unsupported, "the state store behind this name cannot go through its keys").With(fault.NoScan)
		}
		p.items, p.next, err = scanner.Scan(ctx, q.Prefix, q.Token, q.Size, q.KeysOnly)
		return p, err
	},
	Keep: func(q Scan) Scan {
		q.Prefix, q.Token = strings.Clone(q.Prefix), strings.Clone(q.Token)
		return q
	},
}

// keyRange is the part of a store that belongs to the app.
type keyRange struct {
	before string // what stands before the app's keys
}

// reach finds the app's part of a store for a request about a prefix of keys.
func (s *Service) reach(h *catalog.Handle[block.State], desc call.Desc, prefix string, why fault.Reason) (keyRange, error) {
	if strings.Contains(prefix, separator) {
		return keyRange{}, illegalKey(prefix, fault.IllegalKey)
	}
	if catalog.Divided(h, desc) {
		return keyRange{}, fault.New("state."+fault.Op(desc.Op), fault.Unsupported,
			"traffic policy divides state store %s by key over several stores; ask those by their own names", h.Name).With(why)
	}
	before, err := s.prefix(h.Info)
	if err != nil {
		return keyRange{}, err
	}
	if before != "" {
		before += separator
	}
	return keyRange{before}, nil
}

func (r keyRange) stored(prefix string) string { return r.before + prefix }

// own is the key as the app writes it. A key with another separator is not an item of the app:
// in a store without prefixes it is one of an app that has some, elsewhere our own bookkeeping.
func (r keyRange) own(stored string) (string, bool) {
	key, ok := strings.CutPrefix(stored, r.before)
	return key, ok && !strings.Contains(key, separator)
}

// only keeps the app's items, under the app's keys.
func (r keyRange) only(items []block.StateItem) []block.StateItem {
	kept := items[:0]
	for _, it := range items {
		if key, ok := r.own(it.Key); ok {
			it.Key = key
			kept = append(kept, it)
		}
	}
	return kept
}
