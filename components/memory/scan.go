package memory

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// Scan gives items in the order of their keys. The first scan puts the keys in order; from then
// on writes of new keys keep them so.
func (s *State) Scan(ctx context.Context, prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string, error) {
	const op fault.Op = "memory.state.Scan"
	last, begun, err := block.PageAfter(op, prefix, token)
	if err != nil {
		return nil, "", err
	}
	if limit < 1 {
		return nil, "", fault.New(op, fault.Invalid, "a page of %d items; want 1 or more", limit).WithSent(fault.SentNever)
	}
	if err := s.putInOrder(op, ctx); err != nil {
		return nil, "", err
	}
	s.mu.RLock()
	if err := s.usable(op, ctx); err != nil {
		s.mu.RUnlock()
		return nil, "", err
	}
	now := time.Now()
	var found []*item
	more, size := false, 0
	s.order.from(prefix, last, begun, func(key string) bool {
		if !strings.HasPrefix(key, prefix) {
			return false
		}
		it := s.live(key, now)
		if it == nil {
			return true
		}
		if more = len(found) == limit || size >= block.PageBytes; more {
			return false
		}
		found = append(found, it)
		size += len(key)
		if !keysOnly {
			size += len(it.value)
		}
		return true
	})
	s.mu.RUnlock()
	items := make([]block.StateItem, len(found))
	for i, it := range found {
		if keysOnly {
			items[i] = block.StateItem{Key: it.key, Exists: true, ETag: it.etag(), Expires: it.expires}
		} else {
			items[i] = it.export(it.key)
		}
	}
	if !more {
		return items, "", nil
	}
	return items, block.PageToken(prefix, found[len(found)-1].key), nil
}

// putInOrder makes the order of keys if there is none.
func (s *State) putInOrder(op fault.Op, ctx context.Context) error {
	s.mu.RLock()
	there := s.order != nil
	s.mu.RUnlock()
	if there {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(op, ctx); err != nil || s.order != nil {
		return err
	}
	keys := make([]string, 0, len(s.items))
	for k := range s.items {
		keys = append(keys, k)
	}
	s.order = newKeyOrder(keys)
	return nil
}

// keyOrder is a sorted list in pieces: a new key moves the rest of its piece, not of the list.
type keyOrder struct {
	pieces [][]string // none is empty; each is sorted and before the next
}

// pieceMax is the most keys in a piece. Half of it moves, at 16 bytes each, when a key comes or
// goes.
const pieceMax = 512

func newKeyOrder(keys []string) *keyOrder {
	slices.Sort(keys)
	o := &keyOrder{}
	for part := range slices.Chunk(keys, pieceMax/2) {
		o.pieces = append(o.pieces, append(make([]string, 0, pieceMax), part...))
	}
	return o
}

// find is the place of key, or where it would be: in the last piece that begins before or at it.
func (o *keyOrder) find(key string) (piece, place int, there bool) {
	n, exact := slices.BinarySearchFunc(o.pieces, key, func(p []string, key string) int { return strings.Compare(p[0], key) })
	if exact || n == 0 {
		return n, 0, exact
	}
	place, there = slices.BinarySearch(o.pieces[n-1], key)
	return n - 1, place, there
}

// add puts in a key that is not there.
func (o *keyOrder) add(key string) {
	n, place, _ := o.find(key)
	if len(o.pieces) == 0 {
		o.pieces = [][]string{append(make([]string, 0, pieceMax), key)}
		return
	}
	p := o.pieces[n]
	if len(p) == pieceMax {
		upper := append(make([]string, 0, pieceMax), p[pieceMax/2:]...)
		clear(p[pieceMax/2:])
		p = p[:pieceMax/2]
		o.pieces[n] = p
		o.pieces = slices.Insert(o.pieces, n+1, upper)
		if place > len(p) {
			n, place, p = n+1, place-len(p), upper
		}
	}
	o.pieces[n] = slices.Insert(p, place, key)
}

// remove takes out a key that is there. Small neighbours become one piece.
func (o *keyOrder) remove(key string) {
	n, place, there := o.find(key)
	if !there {
		return
	}
	p := slices.Delete(o.pieces[n], place, place+1)
	o.pieces[n] = p
	switch {
	case len(p) == 0:
		o.pieces = slices.Delete(o.pieces, n, n+1)
	case n+1 < len(o.pieces) && len(p)+len(o.pieces[n+1]) <= pieceMax/4:
		o.pieces[n] = append(p, o.pieces[n+1]...)
		o.pieces = slices.Delete(o.pieces, n+1, n+2)
	}
}

// from calls each with the keys behind last, or, unless begun, from prefix on, until it reports
// false.
func (o *keyOrder) from(prefix, last string, begun bool, each func(key string) bool) {
	if !begun {
		last = prefix
	}
	n, place, there := o.find(last)
	if begun && there {
		place++
	}
	for ; n < len(o.pieces); n++ {
		for _, key := range o.pieces[n][min(place, len(o.pieces[n])):] {
			if !each(key) {
				return
			}
		}
		place = 0
	}
}
