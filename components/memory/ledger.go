package memory

import (
	"bytes"
	"cmp"
	"slices"
	"strings"
	"sync"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// ledger is the small records of a hub. Values never change once they are in it.
type ledger struct {
	mu       sync.Mutex
	revision uint64                       // guarded by mu; of the last change of any entry
	entries  map[string]block.LedgerEntry // guarded by mu
	watchers map[*ledgerWatcher]struct{}  // guarded by mu
}

// ledgerWatcher is a running LedgerWatch.
type ledgerWatcher struct {
	prefix string
	wake   chan struct{} // one slot: something waits

	reset   bool                         // guarded by ledger.mu; all there is is to be told
	waiting map[string]block.LedgerEntry // guarded by ledger.mu; the last of each key that changed
}

func newLedger() *ledger {
	return &ledger{entries: map[string]block.LedgerEntry{}, watchers: map[*ledgerWatcher]struct{}{}}
}

func (l *ledger) get(key string) block.LedgerEntry {
	l.mu.Lock()
	e, there := l.entries[key]
	l.mu.Unlock()
	if !there {
		return block.LedgerEntry{Key: key}
	}
	e.Value = bytes.Clone(e.Value)
	return e
}

func (l *ledger) put(op fault.Op, writes []block.LedgerWrite) []block.LedgerResult {
	results := make([]block.LedgerResult, len(writes))
	values := make([][]byte, len(writes))
	for i, w := range writes {
		switch {
		case w.Key == "":
			results[i].Err = fault.New(op, fault.Invalid, "an entry of the ledger without a key")
		case w.Remove && w.Revision == 0:
			results[i].Err = fault.New(op, fault.Invalid, "ledger entry %q: a removal names the revision it removes", w.Key)
		case w.Remove:
		case len(w.Value) > entryMax:
			results[i].Err = fault.New(op, fault.TooLarge, "ledger entry %q: %d bytes, at most %d can be kept", w.Key, len(w.Value), entryMax)
		default:
			values[i] = bytes.Clone(w.Value)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, w := range writes {
		if results[i].Err != nil {
			continue
		}
		if has := l.entries[w.Key].Revision; has != w.Revision {
			results[i].Err = fault.New(op, fault.Conflict, "ledger entry %q has revision %d, not %d", w.Key, has, w.Revision)
			continue
		}
		l.revision++
		e := block.LedgerEntry{Key: w.Key, Value: values[i], Revision: l.revision, Removed: w.Remove}
		if w.Remove {
			delete(l.entries, w.Key)
		} else {
			l.entries[w.Key] = e
			results[i].Revision = e.Revision
		}
		l.tell(e)
	}
	return results
}

// tell puts a change before the watchers; mu is held.
func (l *ledger) tell(e block.LedgerEntry) {
	for w := range l.watchers {
		if w.reset || !strings.HasPrefix(e.Key, w.prefix) {
			continue
		}
		w.waiting[e.Key] = e
		// Of what is there, all may wait; of what is gone, so much.
		if len(w.waiting) > len(l.entries)+removalsMax {
			w.reset, w.waiting = true, nil
		}
		w.poke()
	}
}

func (w *ledgerWatcher) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (l *ledger) watch(prefix string) *ledgerWatcher {
	w := &ledgerWatcher{prefix: prefix, wake: make(chan struct{}, 1), reset: true}
	w.poke()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watchers[w] = struct{}{}
	return w
}

func (l *ledger) unwatch(w *ledgerWatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.watchers, w)
}

// take gives what waits for a watcher, in the order it happened.
func (l *ledger) take(w *ledgerWatcher) (out []block.LedgerEntry, reset bool) {
	l.mu.Lock()
	from := w.waiting
	if reset = w.reset; reset {
		from = l.entries
	}
	for key, e := range from {
		if strings.HasPrefix(key, w.prefix) {
			out = append(out, e)
		}
	}
	w.reset, w.waiting = false, map[string]block.LedgerEntry{}
	l.mu.Unlock()
	slices.SortFunc(out, func(a, b block.LedgerEntry) int { return cmp.Compare(a.Revision, b.Revision) })
	for i := range out {
		out[i].Value = bytes.Clone(out[i].Value)
	}
	return out, reset
}
