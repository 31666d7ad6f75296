package blocktest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// key is a key of the ledger under the subtest's own prefix.
func (l *logTest) key(parts ...string) string {
	return block.LedgerKey(append([]string{l.prefix}, parts...)...)
}

// under is the prefix of the keys that begin with these parts, after the subtest's own.
func (l *logTest) under(parts ...string) string {
	return block.LedgerPrefix(append([]string{l.prefix}, parts...)...)
}

func (l *logTest) get(ledger block.Ledger, key string) block.LedgerEntry {
	l.Helper()
	e, err := ledger.LedgerGet(l.ctx(), key)
	if err != nil {
		l.Fatalf("LedgerGet(%s): %v", show(key), err)
	}
	if e.Key != key || e.Removed || (e.Revision == 0 && len(e.Value) > 0) {
		l.Errorf("LedgerGet(%s) = %+v", show(key), e)
	}
	return e
}

// puts makes writes and returns their results; it fails with Error, for writers run in goroutines.
func (l *logTest) puts(ledger block.Ledger, writes ...block.LedgerWrite) []block.LedgerResult {
	l.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	results := ledger.LedgerPut(ctx, writes)
	if len(results) != len(writes) {
		l.Errorf("LedgerPut of %d writes gave %d results", len(writes), len(results))
		return make([]block.LedgerResult, len(writes))
	}
	for i, r := range results {
		if r.Err == nil && !writes[i].Remove && r.Revision <= writes[i].Revision {
			l.Errorf("LedgerPut over revision %d gave revision %d, want a greater one", writes[i].Revision, r.Revision)
		}
	}
	return results
}

// put writes one entry and returns its revision.
func (l *logTest) put(key, value string, revision uint64) uint64 {
	l.Helper()
	r := l.puts(l.log, block.LedgerWrite{Key: key, Value: []byte(value), Revision: revision})[0]
	if r.Err != nil {
		l.Fatalf("LedgerPut(%s) over revision %d: %v", show(key), revision, r.Err)
	}
	return r.Revision
}

func (l *logTest) remove(key string, revision uint64) {
	l.Helper()
	r := l.puts(l.log, block.LedgerWrite{Key: key, Revision: revision, Remove: true})[0]
	if r.Err != nil {
		l.Fatalf("removal of %s at revision %d: %v", show(key), revision, r.Err)
	}
}

func (l *logTest) conflict(what string, w block.LedgerWrite) {
	l.Helper()
	wantCode(l, what, l.puts(l.log, w)[0].Err, fault.Conflict)
}

func (l *logTest) holds(key, value string, revision uint64) {
	l.Helper()
	if e := l.get(l.log, key); string(e.Value) != value || e.Revision != revision {
		l.Errorf("%s is %q at revision %d, want %q at %d", show(key), e.Value, e.Revision, value, revision)
	}
}

func ledgerRoundTrip(l *logTest) {
	key, other := l.key("one"), l.client()
	l.holds(key, "", 0)
	l.conflict("a change of what is not there", block.LedgerWrite{Key: key, Value: []byte("x"), Revision: 1})
	l.conflict("a removal of what is not there", block.LedgerWrite{Key: key, Revision: 1, Remove: true})
	first := l.put(key, "one", 0)
	l.holds(key, "one", first)
	if e := l.get(other, key); string(e.Value) != "one" || e.Revision != first {
		l.Errorf("another client reads %+v, want revision %d", e, first)
	}
	l.conflict("a second creation", block.LedgerWrite{Key: key, Value: []byte("x")})
	second := l.put(key, "two", first)
	l.conflict("a change over the revision before", block.LedgerWrite{Key: key, Value: []byte("x"), Revision: first})
	l.conflict("a change over a revision to come", block.LedgerWrite{Key: key, Value: []byte("x"), Revision: second + 1})
	l.conflict("a removal at the revision before", block.LedgerWrite{Key: key, Revision: first, Remove: true})
	l.holds(key, "two", second)
	third := l.put(key, "two", second) // the same value is a change as well
	r := other.LedgerPut(l.ctx(), []block.LedgerWrite{{Key: key, Revision: third, Remove: true}})[0]
	if r.Err != nil || r.Revision != 0 {
		l.Errorf("removal by another client: %+v, want no revision", r)
	}
	l.holds(key, "", 0)
	l.conflict("a change of what is removed", block.LedgerWrite{Key: key, Value: []byte("x"), Revision: third})
	l.conflict("a second removal", block.LedgerWrite{Key: key, Revision: third, Remove: true})
	again := l.put(key, "again", 0)
	if again <= third {
		l.Errorf("an entry made again has revision %d, want one greater than all before (%d)", again, third)
	}
	l.conflict("a change over a revision before the removal", block.LedgerWrite{Key: key, Value: []byte("x"), Revision: third})
	l.conflict("a creation over one made again", block.LedgerWrite{Key: key, Value: []byte("x")})
	l.holds(key, "again", again)
	for range 3 {
		l.remove(key, l.get(l.log, key).Revision)
		l.put(key, "and again", 0)
	}
	res := l.puts(l.log, block.LedgerWrite{Key: l.key("none"), Remove: true}, block.LedgerWrite{Key: key, Remove: true})
	wantCode(l, "a removal without revision of what is not there", res[0].Err, fault.Invalid)
	wantCode(l, "a removal without revision", res[1].Err, fault.Invalid)
	if e := l.get(l.log, key); string(e.Value) != "and again" {
		l.Errorf("after refused removals %+v", e)
	}
}

func ledgerKeys(l *logTest) {
	names := []string{"a", "A", "", " ", "|", "||", "%", "%7C", "%25", "a|b", "a||b", "a|", "|a", "a.b", "a..b", ".", "*", ">", "a.*", "a.>",
		"#", "/", "a/b", "\\", "ünï", "键", "🙂", "=41", "$KV", "a\tb", "a\nb", "\x00", "\xff\xfe", "{x}", "[a]", "?", strings.Repeat("k", 200)}
	revisions := map[string]uint64{}
	var keys []string
	for _, a := range names {
		keys = append(keys, l.key(a), l.key("two", a), l.key(a, "two"))
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for _, k := range keys {
		revisions[k] = l.put(k, k, 0)
	}
	for _, k := range keys {
		l.holds(k, k, revisions[k])
		if got := block.LedgerKey(block.LedgerParts(k)...); got != k {
			l.Errorf("the parts of %s make %s", show(k), show(got))
		}
	}
	f := l.follow(l.log, l.under())
	f.hears(l.key("a"), l.key("a"))
	for _, k := range keys {
		f.hears(k, k)
	}
	for i, k := range keys {
		if i%2 == 0 {
			l.remove(k, revisions[k])
			f.hears(k, removed)
		}
	}
	for i, k := range keys {
		if i%2 == 0 {
			l.holds(k, "", 0)
		} else {
			l.holds(k, k, revisions[k])
		}
	}
}

func ledgerValues(l *logTest) {
	limit := l.log.LogFeatures().MaxEntry
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	key := l.key("values")
	revision := uint64(0)
	for _, v := range [][]byte{nil, {}, {0}, all, noise(3 << 10), noise(limit)} {
		mine := bytes.Clone(v)
		revision = l.put(key, string(mine), revision)
		e := l.get(l.log, key)
		if !bytes.Equal(e.Value, v) || e.Revision != revision {
			l.Errorf("a value of %d bytes came as %d other bytes", len(v), len(e.Value))
		}
		for i := range e.Value { // it is ours
			e.Value[i] = '?'
		}
		if e := l.get(l.log, key); !bytes.Equal(e.Value, v) {
			l.Errorf("a value changed with what a reader did to it")
		}
	}
	big, small := l.key("big"), l.key("small")
	mine := []byte("mine")
	res := l.puts(l.log, block.LedgerWrite{Key: big, Value: make([]byte, limit+1)}, block.LedgerWrite{Key: small, Value: mine})
	mine[0] = '?'
	wantCode(l, "a value over the limit", res[0].Err, fault.TooLarge)
	l.holds(big, "", 0)
	l.holds(small, "mine", res[1].Revision)
}

// Of all that write over one revision, from wherever, one wins.
func ledgerRace(l *logTest) {
	const writers, rounds = 8, 12
	clients := []block.Log{l.log, l.client(), l.client()}
	key := l.key("raced")
	revision := uint64(0)
	for round := range rounds {
		results := make([]block.LedgerResult, writers)
		var wg sync.WaitGroup
		start := make(chan struct{})
		for w := range writers {
			wg.Go(func() {
				<-start
				// One call with the key twice is two writers.
				write := block.LedgerWrite{Key: key, Value: []byte(fmt.Sprint(w)), Revision: revision, Remove: w%4 == 3 && revision > 0}
				pair := l.puts(clients[w%len(clients)], write, write)
				results[w] = pair[0]
				if pair[0].Err != nil && pair[1].Err == nil {
					l.Errorf("of two equal writes of one call the second won")
				}
				if pair[0].Err == nil {
					wantCode(l, "the second of two equal writes", pair[1].Err, fault.Conflict)
				}
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for w, r := range results {
			if r.Err == nil {
				if winner >= 0 {
					l.Fatalf("round %d: writers %d and %d both won over revision %d", round, winner, w, revision)
				}
				winner = w
				continue
			}
			wantCode(l, "a writer that lost", r.Err, fault.Conflict)
		}
		if winner < 0 {
			l.Fatalf("round %d: nobody won over revision %d", round, revision)
		}
		want := fmt.Sprint(winner)
		if winner%4 == 3 && revision > 0 {
			want = ""
		}
		revision = results[winner].Revision
		for i, c := range clients {
			if e := l.get(c, key); string(e.Value) != want || e.Revision != revision {
				l.Errorf("round %d: client %d reads %q at %d, want %q at %d of writer %d", round, i, e.Value, e.Revision, want, revision, winner)
			}
		}
	}
}

func ledgerBatch(l *logTest) {
	if res := l.log.LedgerPut(l.ctx(), nil); len(res) != 0 {
		l.Errorf("LedgerPut of nothing gave %d results", len(res))
	}
	const n = 60
	var writes []block.LedgerWrite
	for i := range n {
		writes = append(writes, block.LedgerWrite{Key: l.key("entry", fmt.Sprint(i)), Value: []byte(fmt.Sprint(i))})
	}
	revisions := make([]uint64, n)
	for i, r := range l.puts(l.log, writes...) {
		if r.Err != nil {
			l.Fatalf("creation %d of %d: %v", i, n, r.Err)
		}
		revisions[i] = r.Revision
	}
	for i := range writes { // every third is stale, every fifth a removal
		writes[i].Revision, writes[i].Value = revisions[i], []byte("changed")
		if i%3 == 0 {
			writes[i].Revision += 1 << 40
		}
		writes[i].Remove = i%5 == 0
	}
	for i, r := range l.puts(l.log, writes...) {
		if i%3 == 0 {
			wantCode(l, "a stale write among others", r.Err, fault.Conflict)
			l.holds(writes[i].Key, fmt.Sprint(i), revisions[i])
			continue
		}
		if r.Err != nil {
			l.Errorf("write %d among stale ones: %v", i, r.Err)
		}
		if i%5 == 0 {
			l.holds(writes[i].Key, "", 0)
		} else {
			l.holds(writes[i].Key, "changed", r.Revision)
		}
	}
}

// Counters that many count up end at the right sum: no accepted write is lost to another.
func ledgerCounters(l *logTest) {
	const workers, counters, each = 6, 3, 25
	clients := []block.Log{l.log, l.client()}
	var wg sync.WaitGroup
	for w := range workers {
		ledger := clients[w%len(clients)]
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
			defer cancel()
			for i := range each {
				key := l.key("counter", fmt.Sprint((w+i)%counters))
				for {
					e, err := ledger.LedgerGet(ctx, key)
					if err != nil {
						l.Errorf("LedgerGet: %v", err)
						return
					}
					n := uint64(0)
					if e.Revision > 0 {
						n = binary.BigEndian.Uint64(e.Value)
					}
					r := l.puts(ledger, block.LedgerWrite{Key: key, Value: binary.BigEndian.AppendUint64(nil, n+1), Revision: e.Revision})[0]
					if r.Err == nil {
						break
					}
					if fault.Of(r.Err) != fault.Conflict {
						l.Errorf("LedgerPut: %v", r.Err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	sum := uint64(0)
	for i := range counters {
		if e := l.get(l.log, l.key("counter", fmt.Sprint(i))); len(e.Value) == 8 {
			sum += binary.BigEndian.Uint64(e.Value)
		}
	}
	if sum != workers*each {
		l.Errorf("the counters add up to %d, want %d", sum, workers*each)
	}
}

// ledgerFollower is a running LedgerWatch and what it told.
type ledgerFollower struct {
	l      *logTest
	prefix string
	stop   context.CancelFunc
	done   chan struct{}
	busy   atomic.Bool // tell is running

	mu     sync.Mutex
	err    error               // guarded by mu; what LedgerWatch returned
	over   bool                // guarded by mu; LedgerWatch has returned
	resets int                 // guarded by mu
	told   map[string][]string // guarded by mu; values in order, removed for a removal
	last   map[string]uint64   // guarded by mu; the greatest revision told of each key
}

// follow watches and returns when the first call, with all there is, has come.
func (l *logTest) follow(ledger block.Ledger, prefix string) *ledgerFollower {
	l.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &ledgerFollower{l: l, prefix: prefix, stop: cancel, done: make(chan struct{}), told: map[string][]string{}, last: map[string]uint64{}}
	started := make(chan struct{})
	go func() {
		defer close(f.done)
		err := ledger.LedgerWatch(ctx, prefix, func(entries []block.LedgerEntry, reset bool) {
			if f.tell(entries, reset) {
				close(started)
			}
		})
		f.mu.Lock()
		f.err, f.over = err, true
		f.mu.Unlock()
	}()
	l.Cleanup(func() { f.end() })
	select {
	case <-started:
	case <-f.done:
		l.Fatalf("LedgerWatch(%s): %v", show(prefix), f.result())
	case <-time.After(patience):
		l.Fatalf("LedgerWatch(%s) told nothing within %v", show(prefix), patience)
	}
	return f
}

// tell notes what was told; it reports whether this was the first call.
func (f *ledgerFollower) tell(entries []block.LedgerEntry, reset bool) (first bool) {
	if f.busy.Swap(true) {
		f.l.Errorf("tell was called while it ran")
	}
	defer f.busy.Store(false)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		f.l.Errorf("tell was called after LedgerWatch had returned")
	}
	first = f.resets == 0
	if first != reset {
		f.l.Errorf("LedgerWatch(%s): call with reset=%v, %d times before; want it first and, with a connection that holds, never again", show(f.prefix), reset, f.resets)
	}
	if reset {
		f.resets++
	} else if len(entries) == 0 {
		f.l.Errorf("a change of nothing was told")
	}
	for i, e := range entries {
		if !strings.HasPrefix(e.Key, f.prefix) {
			f.l.Errorf("LedgerWatch(%s) told of %s", show(f.prefix), show(e.Key))
		}
		if e.Revision < f.last[e.Key] && (e.Revision != 0 || !e.Removed) {
			f.l.Errorf("%s was told at revision %d after %d", show(e.Key), e.Revision, f.last[e.Key])
		}
		f.last[e.Key] = max(f.last[e.Key], e.Revision)
		value := string(e.Value)
		if e.Removed {
			if len(e.Value) > 0 || reset {
				f.l.Errorf("the removal of %s was told as %+v, reset=%v", show(e.Key), e, reset)
			}
			value = removed
		} else if e.Revision == 0 {
			f.l.Errorf("%s was told without revision", show(e.Key))
		}
		f.told[e.Key] = append(f.told[e.Key], value)
		for n := range e.Value { // the slice is ours
			e.Value[n] = '?'
		}
		entries[i] = block.LedgerEntry{}
	}
	return first && reset
}

func (f *ledgerFollower) result() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *ledgerFollower) values(key string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.told[key])
}

func (f *ledgerFollower) keys() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for k := range f.told {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// hears waits until the last that was told of a key is this.
func (f *ledgerFollower) hears(key, value string) {
	f.l.Helper()
	var got []string
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if got = f.values(key); len(got) > 0 && got[len(got)-1] == value {
			return
		}
		if time.Now().After(deadline) {
			f.l.Fatalf("of %s was told %q, want %q last", show(key), got, value)
		}
	}
}

// end stops the watch and returns its error.
func (f *ledgerFollower) end() error {
	f.l.Helper()
	f.stop()
	select {
	case <-f.done:
	case <-time.After(patience):
		f.l.Fatalf("LedgerWatch(%s) goes on after its context ended", show(f.prefix))
	}
	return f.result()
}

func ledgerWatch(l *logTest) {
	other := l.client()
	empty := l.follow(l.log, l.under("w"))
	if k := empty.keys(); len(k) != 0 {
		l.Errorf("a watch of nothing began with %q", k)
	}
	a, b := l.key("w", "a"), l.key("w", "b")
	ra, rb := l.put(a, "a1", 0), l.put(b, "b1", 0)
	empty.hears(a, "a1")
	empty.hears(b, "b1")
	foreign := l.follow(other, l.under("w"))
	if k := foreign.keys(); !slices.Equal(k, []string{a, b}) {
		l.Errorf("a watch began with %q, want all there is", k)
	}
	// One after the other has been told, every change is.
	for i := 2; i < 8; i++ {
		ra = l.put(a, fmt.Sprint("a", i), ra)
		empty.hears(a, fmt.Sprint("a", i))
		foreign.hears(a, fmt.Sprint("a", i))
	}
	l.remove(b, rb)
	empty.hears(b, removed)
	foreign.hears(b, removed)
	l.put(b, "", 0)
	empty.hears(b, "")
	foreign.hears(b, "")
	l.remove(a, ra)
	foreign.hears(a, removed)
	empty.hears(a, removed)
	for _, f := range []*ledgerFollower{empty, foreign} {
		if got, want := f.values(a), []string{"a1", "a2", "a3", "a4", "a5", "a6", "a7", removed}; !slices.Equal(got, want) {
			l.Errorf("of a was told %q, want %q", got, want)
		}
		if got, want := f.values(b), []string{"b1", removed, ""}; !slices.Equal(got, want) {
			l.Errorf("of b was told %q, want %q", got, want)
		}
	}
	wantCode(l, "an ended LedgerWatch", foreign.end(), fault.Canceled)
	l.conflict("a write that changes nothing", block.LedgerWrite{Key: b, Value: []byte("x")})
	l.put(l.key("w", "last"), "x", 0)
	empty.hears(l.key("w", "last"), "x")
	if got := empty.values(b); len(got) != 3 {
		l.Errorf("of b was told %q, although its last write was refused", got)
	}
	if got := foreign.values(l.key("w", "last")); len(got) != 0 {
		l.Errorf("a watch that ended told of what came later")
	}
}

func ledgerPrefix(l *logTest) {
	inside := []string{l.key("a", "b", "c"), l.key("a", "b", ""), l.key("a", "b", "|"), l.key("a", "b", "c", "d"), l.key("a", "b", "*"), l.key("a", "b", "ü")}
	outside := []string{l.key("a", "b"), l.key("a", "bc"), l.key("a", "bc", "d"), l.key("a", "B", "c"), l.key("A", "b", "c"), l.key("a", "b|", "c"),
		l.key("a", "", "b", "c"), l.key("a|b", "c"), l.key("a", "b%", "c"), l.key("a"), l.key("a", "b.c", "c"), l.key("a", "*", "c"), l.key("a", ">")}
	write := func(value string, revisions map[string]uint64) {
		for _, k := range slices.Concat(outside, inside) {
			revisions[k] = l.put(k, value, revisions[k])
		}
	}
	slices.Sort(inside)
	revisions := map[string]uint64{}
	before := l.follow(l.log, l.under("a", "b"))
	odd := l.follow(l.log, l.under("a", "*"))
	write("1", revisions)
	after := l.follow(l.log, l.under("a", "b"))
	if got := after.keys(); !slices.Equal(got, inside) {
		l.Errorf("a watch began with %q, want %q", got, inside)
	}
	write("2", revisions)
	for _, f := range []*ledgerFollower{before, after} {
		for _, k := range inside {
			f.hears(k, "2")
		}
		if got := f.keys(); !slices.Equal(got, inside) {
			l.Errorf("a watch told of %q, want %q", got, inside)
		}
	}
	odd.hears(l.key("a", "*", "c"), "2")
	if got := odd.keys(); len(got) != 1 {
		l.Errorf("a watch of a star told of %q, want one entry only", got)
	}
}

// Whatever a watch leaves out, it tells the last value of every entry.
func ledgerLoad(l *logTest) {
	const writers, keys, each = 4, 10, 60
	clients := []block.Log{l.log, l.client()}
	final := make([]map[string]string, writers)
	var early []*ledgerFollower
	for i := range 3 {
		early = append(early, l.follow(clients[i%len(clients)], l.under()))
	}
	var wg sync.WaitGroup
	for w := range writers {
		mine, ledger := map[string]string{}, clients[w%len(clients)]
		final[w] = mine
		wg.Go(func() {
			revisions := map[string]uint64{}
			for i := range each {
				var writes []block.LedgerWrite
				for k := range 4 {
					key := l.key(fmt.Sprint(w), fmt.Sprint((i*3+k)%keys))
					remove := revisions[key] > 0 && (i+k)%7 == 0
					writes = append(writes, block.LedgerWrite{Key: key, Value: []byte(fmt.Sprintf("%d/%d/%d", w, i, k)), Revision: revisions[key], Remove: remove})
				}
				for n, r := range l.puts(ledger, writes...) {
					if r.Err != nil {
						l.Errorf("LedgerPut: %v", r.Err)
						return
					}
					revisions[writes[n].Key], mine[writes[n].Key] = r.Revision, string(writes[n].Value)
					if writes[n].Remove {
						mine[writes[n].Key] = removed
					}
				}
			}
		})
	}
	time.Sleep(5 * time.Millisecond)
	early = append(early, l.follow(l.log, l.under())) // in the middle of it
	wg.Wait()
	late := l.follow(l.log, l.under())
	for _, mine := range final {
		for key, value := range mine {
			for i, f := range early {
				if i == 3 && value == removed && len(f.values(key)) == 0 {
					continue // it was gone before
				}
				f.hears(key, value)
			}
			if got := late.values(key); value == removed && len(got) != 0 || value != removed && !slices.Equal(got, []string{value}) {
				l.Errorf("a late watch began with %q for %s, want %q", got, show(key), value)
			}
		}
	}
}

func ledgerContext(l *logTest) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	key := l.key("key")
	start := time.Now()
	_, err := l.log.LedgerGet(ended, key)
	wantCode(l, "LedgerGet with an ended context", err, fault.Canceled)
	res := l.log.LedgerPut(ended, []block.LedgerWrite{{Key: key}, {Key: l.key("other")}})
	if len(res) != 2 {
		l.Fatalf("LedgerPut with an ended context = %v, want two results", res)
	}
	for _, r := range res {
		wantCode(l, "LedgerPut with an ended context", r.Err, fault.Canceled)
	}
	err = l.log.LedgerWatch(ended, l.under(), func([]block.LedgerEntry, bool) {})
	wantCode(l, "LedgerWatch with an ended context", err, fault.Canceled)
	if took := time.Since(start); took > 3*time.Second {
		l.Errorf("calls with an ended context took %v", took)
	}
	f := l.follow(l.log, l.under())
	start = time.Now()
	wantCode(l, "an idle LedgerWatch", f.end(), fault.Canceled)
	if took := time.Since(start); took > 3*time.Second {
		l.Errorf("LedgerWatch returned %v after its context ended", took)
	}
	l.holds(key, "", 0)
}

func ledgerClose(l *logTest) {
	c := l.client()
	f := l.follow(c, l.under())
	mine := l.follow(l.log, l.under())
	closeQuietly(l, c)
	select {
	case <-f.done:
		wantCode(l, "a LedgerWatch ended by Close", f.result(), fault.Unavailable)
	case <-time.After(patience):
		l.Fatalf("LedgerWatch goes on after Close")
	}
	_, err := c.LedgerGet(l.ctx(), l.key("x"))
	wantCode(l, "LedgerGet after Close", err, fault.Unavailable)
	for _, r := range c.LedgerPut(l.ctx(), []block.LedgerWrite{{Key: l.key("x")}}) {
		wantCode(l, "LedgerPut after Close", r.Err, fault.Unavailable)
	}
	err = c.LedgerWatch(l.ctx(), l.under(), func([]block.LedgerEntry, bool) {})
	wantCode(l, "LedgerWatch after Close", err, fault.Unavailable)
	l.put(l.key("x"), "x", 0)
	mine.hears(l.key("x"), "x")
}
