package blocktest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// watching is a subtest of a store that tells of changes.
type watching struct {
	*stateTest
	watch block.StateWatch
}

// stateWatch gives the watch part of the suite to stores that have one.
func stateWatch(run func(*watching)) func(*stateTest) {
	return func(s *stateTest) {
		w, ok := s.store.(block.StateWatch)
		if !ok {
			notOffered(s.T, "the store tells of no changes")
			return
		}
		run(&watching{s, w})
	}
}

// removed is how a removal stands in what a watcher was told.
const removed = "(removed)"

// watcher is a running Watch and what it told, key by key.
type watcher struct {
	w      *watching
	prefix string
	stop   context.CancelFunc
	done   chan struct{}
	gate   chan struct{} // while it is open, nil, changed does not block

	busy atomic.Bool // changed is running

	mu    sync.Mutex
	err   error               // guarded by mu; what Watch returned
	over  bool                // guarded by mu; Watch has returned
	after int                 // guarded by mu; how often changed was called after that
	told  map[string][]string // guarded by mu; values in order, removed for a removal
	etags map[string]string   // guarded by mu; the last of each key
}

// follow watches with the store, and returns when nothing can be missed any more. A gate that is
// not nil holds changed until it is closed.
func (w *watching) follow(store block.StateWatch, prefix string, gate chan struct{}) *watcher {
	w.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &watcher{w: w, prefix: prefix, stop: cancel, done: make(chan struct{}), gate: gate, told: map[string][]string{}, etags: map[string]string{}}
	started := make(chan struct{})
	go func() {
		defer close(f.done)
		err := store.Watch(ctx, prefix, func() { close(started) }, f.changed)
		f.mu.Lock()
		f.err, f.over = err, true
		f.mu.Unlock()
	}()
	w.Cleanup(func() { f.end() })
	select {
	case <-started: // closed twice, it would panic
	case <-f.done:
		w.Fatalf("Watch(%s): %v", show(prefix), f.err)
	case <-time.After(patience):
		w.Fatalf("Watch(%s) did not start within %v", show(prefix), patience)
	}
	return f
}

func (f *watcher) changed(items []block.StateItem) {
	if f.busy.Swap(true) {
		f.w.Errorf("changed was called while it ran")
	}
	defer f.busy.Store(false)
	if f.gate != nil {
		<-f.gate
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		f.after++
	}
	if len(items) == 0 {
		f.w.Errorf("a change of nothing was told")
	}
	for i, it := range items {
		if !strings.HasPrefix(it.Key, f.prefix) {
			f.w.Errorf("Watch(%s) told of %s", show(f.prefix), show(it.Key))
		}
		value := string(it.Value)
		switch {
		case it.Exists && it.ETag == "":
			f.w.Errorf("%s was told without etag", show(it.Key))
		case !it.Exists:
			if len(it.Value) != 0 || it.ETag != "" {
				f.w.Errorf("the removal of %s was told as %+v", show(it.Key), it)
			}
			value = removed
		}
		f.told[it.Key] = append(f.told[it.Key], value)
		f.etags[it.Key] = it.ETag
		for n := range it.Value { // the slice is ours
			it.Value[n] = '?'
		}
		items[i] = block.StateItem{}
	}
}

func (f *watcher) values(key string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.told[key])
}

func (f *watcher) keys() []string {
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
func (f *watcher) hears(key, value string) {
	f.w.Helper()
	var got []string
	waitUntil(f.w, func() string { return fmt.Sprintf("of %s was told %q, want %q last", show(key), got, value) }, func() bool {
		got = f.values(key)
		return len(got) > 0 && got[len(got)-1] == value
	})
}

// end stops the watch and returns its error.
func (f *watcher) end() error {
	f.stop()
	select {
	case <-f.done:
	case <-time.After(patience):
		f.w.Fatalf("Watch did not return after its context ended")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.after > 0 {
		f.w.Errorf("changed was called %d times after Watch had returned", f.after)
	}
	return f.err
}

func (w *watching) remove(key string) {
	w.Helper()
	if err := w.store.Delete(w.ctx(), block.StateDelete{Key: key}); err != nil {
		w.Fatalf("Delete(%s): %v", show(key), err)
	}
}

func watchChanges(w *watching) {
	a, b, old := w.key("a"), w.key("b"), w.key("old")
	w.put(a, "before")
	w.put(old, "before")
	f := w.follow(w.watch, w.key(""), nil)
	step := func(key, value string) {
		w.Helper()
		if value == removed {
			w.remove(key)
		} else {
			w.put(key, value)
		}
		f.hears(key, value)
	}
	step(b, "1")
	step(a, "2")
	step(a, "3")
	step(a, removed)
	step(a, "4")
	step(a, "5")
	step(b, "")
	if got := f.values(a); !slices.Equal(got, []string{"2", "3", removed, "4", "5"}) {
		w.Errorf("of a was told %q, want every change once, and not what there was before", got)
	}
	if got := f.values(old); len(got) != 0 {
		w.Errorf("of a key that did not change was told %q", got)
	}
	f.mu.Lock()
	etag := f.etags[a]
	f.mu.Unlock()
	w.set(block.StateWrite{Key: a, Value: []byte("6"), ETag: etag}) // what was told is what a write can depend on
	f.hears(a, "6")

	w.remove(w.key("never"))
	err := w.store.Set(w.ctx(), block.StateWrite{Key: a, Value: []byte("x"), FirstWrite: true})
	wantCode(w, "first write of an existing key", err, fault.Conflict)
	if b, ok := w.store.(block.StateBatch); ok {
		if errs := b.SetMany(w.ctx(), []block.StateWrite{{Key: w.key("m1"), Value: []byte("m")}, {Key: w.key("m2"), Value: []byte("m")}}); errs != nil {
			w.Fatalf("SetMany: %v", errs)
		}
		f.hears(w.key("m1"), "m")
		f.hears(w.key("m2"), "m")
		if errs := b.DeleteMany(w.ctx(), []block.StateDelete{{Key: w.key("m1")}, {Key: w.key("m2")}}); errs != nil {
			w.Fatalf("DeleteMany: %v", errs)
		}
		f.hears(w.key("m1"), removed)
		f.hears(w.key("m2"), removed)
	}
	if tx, ok := w.store.(block.StateTx); ok {
		stale := "no etag of this store"
		err := tx.Transact(w.ctx(), []block.StateOp{set(a, "undone"), setIf(b, "undone", stale)})
		wantCode(w, "a transaction with a foreign etag", err, fault.Conflict, fault.BadEtag)
		step(w.key("behind"), "it") // before something later takes the place of what must not be told
		if err := tx.Transact(w.ctx(), []block.StateOp{set(a, "7"), set(w.key("t"), "7"), del(b, "")}); err != nil {
			w.Fatalf("Transact: %v", err)
		}
		f.hears(a, "7")
		f.hears(w.key("t"), "7")
		f.hears(b, removed)
	}
	want := []string{"2", "3", removed, "4", "5", "6"}
	if _, ok := w.store.(block.StateTx); ok {
		want = append(want, "7")
	}
	if got := f.values(a); !slices.Equal(got, want) {
		w.Errorf("of a was told %q, want %q: nothing of writes that were refused", got, want)
	}
	for _, v := range f.values(w.key("never")) { // harmless, if the product tells of it
		if v != removed {
			w.Errorf("of a key that never was was told %q", v)
		}
	}
}

func watchExpiry(w *watching) {
	if _, ok := w.store.(block.StateTTL); !ok {
		return
	}
	k, kept := w.key("k"), w.key("kept")
	f := w.follow(w.watch, w.key(""), nil)
	w.set(block.StateWrite{Key: kept, Value: []byte("v"), TTL: time.Second})
	w.put(kept, "for ever")
	w.set(block.StateWrite{Key: k, Value: []byte("v"), TTL: time.Second})
	f.hears(k, "v")
	waitUntil(w, func() string { return fmt.Sprintf("of an expired item was told %q", f.values(k)) }, func() bool {
		w.get(k) // some stores notice when they are asked
		got := f.values(k)
		return got[len(got)-1] == removed
	})
	w.wantMissing(k)
	w.put(k, "again")
	f.hears(k, "again")
	f.hears(kept, "for ever")
}

func watchOrder(w *watching) {
	const writers, each = 4, 100
	f := w.follow(w.watch, w.key(""), nil)
	var wg sync.WaitGroup
	shared := w.key("shared")
	for i := range writers {
		wg.Go(func() {
			for n := range each {
				ws := []block.StateWrite{{Key: w.key(fmt.Sprint("own", i)), Value: []byte(strconv.Itoa(n))}, {Key: shared, Value: fmt.Appendf(nil, "%d %d", i, n)}}
				for _, wr := range ws {
					if err := w.store.Set(w.ctx(), wr); err != nil {
						w.Errorf("Set: %v", err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	rising := func(key string, values []string) {
		last := -1
		for _, v := range values {
			n, err := strconv.Atoi(v)
			if err != nil || n <= last {
				w.Fatalf("of %s was told %q, which is not in the order of the writes", show(key), values)
			}
			last = n
		}
	}
	for i := range writers {
		k := w.key(fmt.Sprint("own", i))
		f.hears(k, strconv.Itoa(each-1))
		rising(k, f.values(k))
	}
	// The writes of one writer are in order on a key that others write, too; and the end is what
	// the store has.
	f.hears(shared, string(w.get(shared).Value))
	by := map[string][]string{}
	for _, v := range f.values(shared) {
		writer, n, _ := strings.Cut(v, " ")
		by[writer] = append(by[writer], n)
	}
	for _, values := range by {
		rising(shared, values)
	}
}

func watchPrefix(w *watching) {
	prefixes := []string{"", "a", "a.", "a*", "a||b", "%", "_", "?", "[a-z]", `a\`, "*", ">", "ü", "键", "e\u0301", " ", "$", "^", "nobody"}
	var fs []*watcher
	for _, p := range prefixes {
		fs = append(fs, w.follow(w.watch, w.key(p), nil))
	}
	keys := append([]string{"ü1", "键2", "a\\", "_x", "%x", "?x", "*x", "[a-z]x", "^x", "bx"}, awkward...)
	for _, k := range []string{w.prefix, w.prefix + "|", w.prefix + "a||a", strings.ToUpper(w.prefix) + "||a"} { // neighbours
		w.put(k, "foreign")
		defer w.remove(k)
	}
	for i, k := range keys {
		w.put(w.key(k), strconv.Itoa(i))
	}
	for n, p := range prefixes {
		var want []string
		for i, k := range keys {
			if strings.HasPrefix(k, p) {
				fs[n].hears(w.key(k), strconv.Itoa(i))
				want = append(want, w.key(k))
			}
		}
		slices.Sort(want)
		if got := fs[n].keys(); !slices.Equal(got, want) {
			w.Errorf("Watch(%s) told of %q, want %q", show(w.key(p)), got, want)
		}
	}
}

func watchWatchers(w *watching) {
	k := w.key("k")
	f, g := w.follow(w.watch, w.key(""), nil), w.follow(w.watch, k, nil)
	w.put(k, "1")
	f.hears(k, "1")
	g.hears(k, "1")
	w.want(k, "1") // watchers write into what they get
	_ = f.end()
	w.put(k, "2")
	g.hears(k, "2")
	if got := f.values(k); len(got) != 1 {
		w.Errorf("a watch that had ended was told %q", got)
	}
	h := w.follow(w.watch, k, nil)
	w.put(k, "3")
	g.hears(k, "3")
	h.hears(k, "3")
	if got := h.values(k); len(got) != 1 {
		w.Errorf("a watch was told %q, of which it began after two", got)
	}
	other, shared := w.second()
	if !shared {
		return
	}
	far := w.follow(other.(block.StateWatch), w.key(""), nil)
	w.put(k, "4")
	far.hears(k, "4")
	if err := other.Set(w.ctx(), block.StateWrite{Key: k, Value: []byte("5")}); err != nil {
		w.Fatalf("Set by the second client: %v", err)
	}
	far.hears(k, "5")
	g.hears(k, "5")
}

// watchSlow: a callee that takes its time holds up neither writers nor other watchers, and hears
// of every key in the end.
func watchSlow(w *watching) {
	const n, rounds = 40, 15
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	f, quick := w.follow(w.watch, w.key(""), gate), w.follow(w.watch, w.key(""), nil)
	for round := range rounds {
		for i := range n {
			w.set(block.StateWrite{Key: w.key(fmt.Sprint(i)), Value: []byte(strconv.Itoa(round))})
		}
	}
	for i := range n / 2 {
		w.remove(w.key(fmt.Sprint(i)))
	}
	last := func(i int) string {
		if i < n/2 {
			return removed
		}
		return strconv.Itoa(rounds - 1)
	}
	for i := range n {
		quick.hears(w.key(fmt.Sprint(i)), last(i))
	}
	if got := f.keys(); len(got) != 0 {
		w.Errorf("a blocked callee was told of %q", got)
	}
	open()
	for i := range n {
		f.hears(w.key(fmt.Sprint(i)), last(i))
	}
}

func watchEnd(w *watching) {
	f := w.follow(w.watch, w.key(""), nil)
	if err := f.end(); !errors.Is(err, context.Canceled) || fault.Of(err) != fault.Canceled {
		w.Errorf("Watch returned %v (%v), want its context's error", err, fault.Of(err))
	}
	w.put(w.key("a"), "unheard")
	if got := f.keys(); len(got) != 0 {
		w.Errorf("after its end the watch was told of %q", got)
	}

	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	err := w.watch.Watch(ctx, w.key(""), func() {}, func([]block.StateItem) {})
	if !errors.Is(err, context.DeadlineExceeded) || fault.Of(err) != fault.Deadline {
		w.Errorf("Watch with a deadline returned %v (%v), want its context's error", err, fault.Of(err))
	}

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	start := time.Now()
	err = w.watch.Watch(ended, w.key(""), func() {}, func([]block.StateItem) { w.Error("a change was told") })
	if !errors.Is(err, context.Canceled) {
		w.Errorf("Watch with an ended context: %v, want its error", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		w.Errorf("Watch with an ended context took %v", took)
	}

	// A callee at work is waited for.
	gate := make(chan struct{})
	g := w.follow(w.watch, w.key(""), gate)
	w.put(w.key("a"), "1")
	waitUntil(w, func() string { return "changed was not called" }, g.busy.Load)
	g.stop()
	select {
	case <-g.done:
		w.Errorf("Watch returned while changed ran")
	case <-time.After(50 * time.Millisecond):
	}
	close(gate)
	if err := g.end(); fault.Of(err) != fault.Canceled {
		w.Errorf("Watch returned %v, want its context's error", err)
	}
}

func watchClose(w *watching) {
	f := w.follow(w.watch, w.key(""), nil)
	if err := w.store.Close(w.ctx()); err != nil {
		w.Errorf("Close: %v", err)
	}
	select {
	case <-f.done:
		wantCode(w, "Watch at Close", f.err, fault.Unavailable)
	case <-time.After(patience):
		w.Fatalf("Watch did not return after Close")
	}
	err := w.watch.Watch(w.ctx(), w.key(""), func() { w.Error("a watch of a closed store started") }, func([]block.StateItem) {})
	wantCode(w, "Watch after Close", err, fault.Unavailable)
}
