// Package blocktest is the conformance suite of the building blocks: what every backend
// must do so that an app cannot tell one from another. Each block has one function, State,
// PubSub, …, which a backend's test calls with a way to open the component.
//
// The suite learns abilities from the optional interfaces a component offers, never from
// lists: what is offered is tested in full, what is not offered must be refused cleanly.
// What only one product promises is tested in that product's folder.
package blocktest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// patience bounds every single wait of the suites. It is long because test machines stall;
// nothing passes by waiting it out.
const patience = 20 * time.Second

// State checks a state store. open returns a component the subtest may fill with keys of its
// own (they are unique, so the server behind may be shared); the suite closes it.
func State(t *testing.T, open func(t *testing.T) block.State) {
	t.Helper()
	suite(t, block.KindState)
	groups := []struct {
		name string
		run  func(*stateTest)
	}{
		{"missing keys", stateMissing},
		{"write, read, overwrite, delete", stateRoundTrip},
		{"values of every size", stateValues},
		{"keys of every shape", stateKeys},
		{"etags", stateETags},
		{"foreign etags", stateForeignETags},
		{"first write", stateFirstWrite},
		{"time to live", stateTTL},
		{"batches", stateBatch},
		{"transactions", stateTx},
		{"transactions, refused", stateTxRefused},
		{"queries", stateQuery},
		{"concurrent increments", stateIncrements},
		{"one first writer", stateOneFirstWriter},
		{"slices belong to their owners", stateOwnership},
		{"scan: prefixes", stateScan(scanPrefix)},
		{"scan: pages", stateScan(scanPages)},
		{"scan: large values", stateScan(scanLarge)},
		{"scan: tokens", stateScan(scanTokens)},
		{"scan: expired items", stateScan(scanExpired)},
		{"scan: among writers", stateScan(scanChanging)},
		{"scan: thousands of keys", stateScan(scanMany)},
		{"watch: changes", stateWatch(watchChanges)},
		{"watch: expiry", stateWatch(watchExpiry)},
		{"watch: order", stateWatch(watchOrder)},
		{"watch: prefixes", stateWatch(watchPrefix)},
		{"watch: several watchers", stateWatch(watchWatchers)},
		{"watch: a slow callee", stateWatch(watchSlow)},
		{"watch: the end", stateWatch(watchEnd)},
		{"watch: close", stateWatch(watchClose)},
		{"fence: epochs", stateFence(fenceEpochs)},
		{"fence: large epochs", stateFence(fenceLarge)},
		{"fence: all or nothing", stateFence(fenceAtomic)},
		{"fence: nobody's item", stateFence(fenceHidden)},
		{"fence: outlives items and process", stateFence(fenceLasts)},
		{"fence: a race of owners", stateFence(fenceRace)},
		{"fence: crossed transactions", stateFence(fenceCrossed)},
		{"an ended context", stateContext},
		{"close", stateClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			s := &stateTest{T: t, open: open, store: open(t), prefix: unique()}
			t.Cleanup(func() { closeQuietly(t, s.store) })
			g.run(s)
		})
	}
}

// stateTest is one subtest with its store and its own key space.
type stateTest struct {
	*testing.T
	open   func(t *testing.T) block.State
	store  block.State
	prefix string
}

// second opens the store again, as another client, and tells whether that is the same store.
func (s *stateTest) second() (other block.State, shared bool) {
	s.Helper()
	other = s.open(s.T)
	s.Cleanup(func() { closeQuietly(s.T, other) })
	k := s.key("of the first client")
	s.put(k, "v")
	item, err := other.Get(s.ctx(), k, block.StateRead{Strong: true})
	if err != nil {
		s.Fatalf("Get by a second client: %v", err)
	}
	return other, item.Exists
}

func (s *stateTest) ctx() context.Context { return patiently(s.T) }
func (s *stateTest) key(name string) string {
	return s.prefix + "||" + name
}

func (s *stateTest) set(w block.StateWrite) {
	s.Helper()
	if err := s.store.Set(s.ctx(), w); err != nil {
		s.Fatalf("Set(%s): %v", show(w.Key), err)
	}
}

func (s *stateTest) put(key, value string) block.StateItem {
	s.Helper()
	s.set(block.StateWrite{Key: key, Value: []byte(value)})
	return s.want(key, value)
}

func (s *stateTest) get(key string) block.StateItem {
	s.Helper()
	item, err := s.store.Get(s.ctx(), key, block.StateRead{Strong: true})
	if err != nil {
		s.Fatalf("Get(%s): %v", show(key), err)
	}
	if item.Key != key {
		s.Errorf("Get(%s): the item's key is %s", show(key), show(item.Key))
	}
	return item
}

func (s *stateTest) want(key, value string) block.StateItem {
	s.Helper()
	item := s.get(key)
	switch {
	case !item.Exists:
		s.Fatalf("Get(%s): missing, want %s", show(key), show(value))
	case string(item.Value) != value:
		s.Fatalf("Get(%s) = %s, want %s", show(key), show(string(item.Value)), show(value))
	case item.ETag == "":
		s.Fatalf("Get(%s): an existing item without etag", show(key))
	}
	return item
}

func (s *stateTest) wantMissing(key string) {
	s.Helper()
	item := s.get(key)
	if item.Exists || len(item.Value) != 0 || item.ETag != "" || !item.Expires.IsZero() {
		s.Fatalf("Get(%s) = %+v, want missing", show(key), item)
	}
}

func stateMissing(s *stateTest) {
	if err := s.store.Ping(s.ctx()); err != nil {
		s.Fatalf("Ping: %v", err)
	}
	s.wantMissing(s.key("never"))
	if err := s.store.Delete(s.ctx(), block.StateDelete{Key: s.key("never")}); err != nil {
		s.Errorf("Delete of a missing key without etag: %v, want success", err)
	}
	s.wantMissing(s.key("never"))
	eventual, err := s.store.Get(s.ctx(), s.key("never"), block.StateRead{})
	if err != nil || eventual.Exists {
		s.Errorf("eventual Get of a missing key = %+v, %v; want missing, nil", eventual, err)
	}
}

func stateRoundTrip(s *stateTest) {
	k := s.key("k")
	first := s.put(k, "one")
	if !first.Expires.IsZero() {
		s.Errorf("an item without TTL expires at %v", first.Expires)
	}
	second := s.put(k, "two")
	if second.ETag == first.ETag {
		s.Errorf("etag %q did not change with the value", first.ETag)
	}
	if third := s.put(k, "two"); third.ETag == second.ETag {
		s.Errorf("etag %q did not change with an equal write", second.ETag)
	}
	s.set(block.StateWrite{Key: k, Value: []byte("strong"), Strong: true})
	s.want(k, "strong")
	if err := s.store.Delete(s.ctx(), block.StateDelete{Key: k}); err != nil {
		s.Fatalf("Delete: %v", err)
	}
	s.wantMissing(k)
	if again := s.put(k, "again"); again.ETag == first.ETag || again.ETag == second.ETag {
		s.Errorf("etag %q came back after a delete", again.ETag)
	}
}

func stateValues(s *stateTest) {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	values := map[string][]byte{
		"one byte": {0}, "json": []byte(`{"a":[1,"ü"]}`), "every byte": every,
		"crlf": []byte("\r\n\r\n"), "4 KiB": noise(4 << 10), "64 KiB": noise(64 << 10), "1 MiB": noise(1 << 20),
	}
	for name, v := range values {
		s.set(block.StateWrite{Key: s.key(name), Value: v})
	}
	for name, v := range values {
		if got := s.get(s.key(name)); !got.Exists || !bytes.Equal(got.Value, v) {
			s.Errorf("%s: came back as %d bytes (exists %v), want the same %d", name, len(got.Value), got.Exists, len(v))
		}
	}
	s.set(block.StateWrite{Key: s.key("empty")})
	if got := s.get(s.key("empty")); !got.Exists || len(got.Value) != 0 || got.ETag == "" {
		s.Errorf("an empty value came back as %+v, want it to exist", got)
	}
}

// Keys which a careless encoding would confuse with one another or with a pattern.
var awkward = []string{
	"a", "A", "a ", " a", "a.", ".a", "a.b", "a..b", "a/b", "a//b", "/", ".", "..", "*", ">", "a.*", "a.>", "a*",
	"a|b", "a||b", "a|||b", "a||||b", "||", "%41", "=41", "=", "%", "a%", "a=", "_", "-", "a:b", "a{b}", "[a-z]", "?",
	`a\b`, `"a"`, "'a'", "a;b", "a,b", "a\tb", "a\nb", "a\r\nb", "äöü", "键", "🙂", "e\u0301", "é", "$a", "@a", "#", "a+b", "~",
}

func stateKeys(s *stateTest) {
	keys := append([]string{strings.Repeat("k", 1024), strings.Repeat("ü/", 340), strings.Repeat("x||", 64)}, awkward...)
	for i, k := range keys {
		s.set(block.StateWrite{Key: s.key(k), Value: []byte(strconv.Itoa(i))})
	}
	for i, k := range keys {
		s.want(s.key(k), strconv.Itoa(i))
	}
	for i, k := range keys {
		if i%2 == 1 {
			continue
		}
		if err := s.store.Delete(s.ctx(), block.StateDelete{Key: s.key(k)}); err != nil {
			s.Fatalf("Delete(%s): %v", show(k), err)
		}
	}
	for i, k := range keys {
		if i%2 == 1 {
			s.want(s.key(k), strconv.Itoa(i))
		} else {
			s.wantMissing(s.key(k))
		}
	}
}

func stateETags(s *stateTest) {
	k := s.key("k")
	old := s.put(k, "one")
	s.set(block.StateWrite{Key: k, Value: []byte("two"), ETag: old.ETag})
	now := s.want(k, "two")

	err := s.store.Set(s.ctx(), block.StateWrite{Key: k, Value: []byte("x"), ETag: old.ETag})
	wantCode(s, "Set with an old etag", err, fault.Conflict)
	err = s.store.Set(s.ctx(), block.StateWrite{Key: k, Value: []byte("x"), ETag: old.ETag, FirstWrite: true})
	wantCode(s, "first-write Set with an old etag", err, fault.Conflict)
	err = s.store.Delete(s.ctx(), block.StateDelete{Key: k, ETag: old.ETag})
	wantCode(s, "Delete with an old etag", err, fault.Conflict)
	if after := s.want(k, "two"); after.ETag != now.ETag {
		s.Errorf("refused writes changed the etag from %q to %q", now.ETag, after.ETag)
	}

	s.set(block.StateWrite{Key: k, Value: []byte("three"), ETag: now.ETag, FirstWrite: true})
	now = s.want(k, "three")
	if err := s.store.Delete(s.ctx(), block.StateDelete{Key: k, ETag: now.ETag}); err != nil {
		s.Fatalf("Delete with the right etag: %v", err)
	}
	s.wantMissing(k)
	err = s.store.Set(s.ctx(), block.StateWrite{Key: k, Value: []byte("x"), ETag: now.ETag})
	wantCode(s, "Set of a deleted key with its last etag", err, fault.Conflict)
	err = s.store.Delete(s.ctx(), block.StateDelete{Key: k, ETag: now.ETag})
	wantCode(s, "Delete of a deleted key with its last etag", err, fault.Conflict)
	s.wantMissing(k)

	err = s.store.Set(s.ctx(), block.StateWrite{Key: s.key("never"), Value: []byte("x"), ETag: now.ETag})
	wantCode(s, "Set of a missing key with an etag", err, fault.Conflict)
	err = s.store.Delete(s.ctx(), block.StateDelete{Key: s.key("never"), ETag: now.ETag})
	wantCode(s, "Delete of a missing key with an etag", err, fault.Conflict)
	s.wantMissing(s.key("never"))
}

func stateForeignETags(s *stateTest) {
	k := s.key("k")
	s.put(k, "v")
	for _, etag := range []string{"foreign", "0", "-1", "1.5", "99999999999999999999999", "6a3ee0e6-6c0d-4c7f-9d5e-2f1f0b1c2d3e", " ", "W/\"1\"", "\r\nX: y"} {
		for _, key := range []string{k, s.key("never")} {
			err := s.store.Set(s.ctx(), block.StateWrite{Key: key, Value: []byte("x"), ETag: etag})
			wantCode(s, fmt.Sprintf("Set with etag %q", etag), err, fault.Conflict, fault.BadEtag)
			err = s.store.Delete(s.ctx(), block.StateDelete{Key: key, ETag: etag})
			wantCode(s, fmt.Sprintf("Delete with etag %q", etag), err, fault.Conflict, fault.BadEtag)
		}
	}
	s.want(k, "v")
	s.wantMissing(s.key("never"))
}

func stateFirstWrite(s *stateTest) {
	k := s.key("k")
	s.set(block.StateWrite{Key: k, Value: []byte("one"), FirstWrite: true})
	item := s.want(k, "one")
	err := s.store.Set(s.ctx(), block.StateWrite{Key: k, Value: []byte("two"), FirstWrite: true})
	wantCode(s, "second first-write", err, fault.Conflict)
	if again := s.want(k, "one"); again.ETag != item.ETag {
		s.Errorf("a refused first-write changed the etag")
	}
	s.put(k, "plain write after first-write")
	if err := s.store.Delete(s.ctx(), block.StateDelete{Key: k}); err != nil {
		s.Fatalf("Delete: %v", err)
	}
	for range 2 { // a removed key is absent for every later first-write, too
		s.set(block.StateWrite{Key: k, Value: []byte("three"), FirstWrite: true})
		item = s.want(k, "three")
		if err := s.store.Delete(s.ctx(), block.StateDelete{Key: k, ETag: item.ETag}); err != nil {
			s.Fatalf("Delete: %v", err)
		}
	}
}

func stateTTL(s *stateTest) {
	if _, ok := s.store.(block.StateTTL); !ok {
		err := s.store.Set(s.ctx(), block.StateWrite{Key: s.key("k"), Value: []byte("v"), TTL: time.Minute})
		wantCode(s, "Set with a TTL on a store without expiry", err, fault.Unsupported)
		s.wantMissing(s.key("k"))
		return
	}
	long := s.key("long")
	s.set(block.StateWrite{Key: long, Value: []byte("v"), TTL: time.Hour})
	item := s.want(long, "v")
	if left := time.Until(item.Expires); !item.Expires.IsZero() && (left < 55*time.Minute || left > 65*time.Minute) {
		s.Errorf("TTL of an hour expires in %v", left)
	}
	reports := !item.Expires.IsZero()
	if cleared := s.put(long, "w"); !cleared.Expires.IsZero() {
		s.Errorf("a plain write left the expiry %v", cleared.Expires)
	}

	dies, lives, dropped := s.key("dies"), s.key("lives"), s.key("deleted by etag")
	start := time.Now()
	for _, k := range []string{dies, lives, dropped} {
		s.set(block.StateWrite{Key: k, Value: []byte("v"), TTL: time.Second})
	}
	s.put(lives, "plain")
	var etag string
	if got := s.get(dies); got.Exists {
		etag = got.ETag
		if reports && got.Expires.IsZero() {
			s.Errorf("the store reports expiry for some items only")
		}
	}
	for s.get(dies).Exists || s.get(dropped).Exists {
		if time.Since(start) > patience {
			s.Fatalf("a TTL of 1s has not ended after %v", patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if took := time.Since(start); took < 900*time.Millisecond {
		s.Errorf("a TTL of 1s ended after %v", took)
	}
	if etag != "" {
		err := s.store.Set(s.ctx(), block.StateWrite{Key: dies, Value: []byte("x"), ETag: etag})
		wantCode(s, "Set of an expired key with its etag", err, fault.Conflict)
		err = s.store.Delete(s.ctx(), block.StateDelete{Key: dies, ETag: etag})
		wantCode(s, "Delete of an expired key with its etag", err, fault.Conflict)
	}
	s.wantMissing(dies)
	s.set(block.StateWrite{Key: dies, Value: []byte("new"), FirstWrite: true})
	if reborn := s.want(dies, "new"); !reborn.Expires.IsZero() {
		s.Errorf("a new item inherited the expiry %v", reborn.Expires)
	}
	s.want(lives, "plain")
	if tx, ok := s.store.(block.StateTx); ok {
		err := tx.Transact(s.ctx(), []block.StateOp{
			{StateWrite: block.StateWrite{Key: dropped, Value: []byte("tx"), FirstWrite: true}},
			{StateWrite: block.StateWrite{Key: long, Value: []byte("tx"), TTL: time.Hour}}})
		if err != nil {
			s.Fatalf("transaction over an expired key: %v", err)
		}
		s.want(dropped, "tx")
		if got := s.want(long, "tx"); reports && got.Expires.IsZero() {
			s.Errorf("a TTL in a transaction was dropped")
		}
	}
}

func stateIncrements(s *stateTest) {
	const writers, each = 6, 15
	k := s.key("counter")
	s.put(k, "0")
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < each; {
				item, err := s.store.Get(s.ctx(), k, block.StateRead{Strong: true})
				if err != nil {
					s.Errorf("Get: %v", err)
					return
				}
				n, _ := strconv.Atoi(string(item.Value))
				err = s.store.Set(s.ctx(), block.StateWrite{Key: k, Value: []byte(strconv.Itoa(n + 1)), ETag: item.ETag})
				switch fault.Of(err) {
				case fault.OK:
					done++
				case fault.Conflict:
				default:
					s.Errorf("Set: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	s.want(k, strconv.Itoa(writers*each))
}

func stateOneFirstWriter(s *stateTest) {
	const writers = 8
	for round := range 5 {
		k := s.key(fmt.Sprint("round ", round))
		var wg sync.WaitGroup
		var mu sync.Mutex
		var winners []string
		for w := range writers {
			wg.Go(func() {
				v := strconv.Itoa(w)
				err := s.store.Set(s.ctx(), block.StateWrite{Key: k, Value: []byte(v), FirstWrite: true})
				if err == nil {
					mu.Lock()
					winners = append(winners, v)
					mu.Unlock()
				} else if fault.Of(err) != fault.Conflict {
					s.Errorf("first-write: %v, want success or conflict", err)
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 {
			s.Fatalf("%d of %d concurrent first-writes succeeded, want 1", len(winners), writers)
		}
		s.want(k, winners[0])
		if err := s.store.Delete(s.ctx(), block.StateDelete{Key: k}); err != nil {
			s.Fatalf("Delete: %v", err)
		}
	}
}

func stateOwnership(s *stateTest) {
	k := s.key("k")
	mine := []byte("mine")
	s.set(block.StateWrite{Key: k, Value: mine})
	copy(mine, "!!!!")
	got := s.want(k, "mine")
	copy(got.Value, "????")
	s.want(k, "mine")
	if b, ok := s.store.(block.StateBatch); ok {
		items, err := b.GetMany(s.ctx(), []string{k, k}, block.StateRead{})
		if err != nil || len(items) != 2 {
			s.Fatalf("GetMany of one key twice = %d items, %v; want 2", len(items), err)
		}
		copy(items[0].Value, "????")
		if string(items[1].Value) != "mine" {
			s.Errorf("two items of one answer share a value")
		}
		s.want(k, "mine")
	}
}

func stateContext(s *stateTest) {
	k := s.key("k")
	s.put(k, "v")
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	calls := map[string]func() error{
		"Get":    func() error { _, err := s.store.Get(ended, k, block.StateRead{}); return err },
		"Set":    func() error { return s.store.Set(ended, block.StateWrite{Key: k, Value: []byte("x")}) },
		"Delete": func() error { return s.store.Delete(ended, block.StateDelete{Key: k}) },
	}
	if b, ok := s.store.(block.StateBatch); ok {
		calls["GetMany"] = func() error { _, err := b.GetMany(ended, []string{k}, block.StateRead{}); return err }
		calls["SetMany"] = func() error {
			return errors.Join(b.SetMany(ended, []block.StateWrite{{Key: k, Value: []byte("x")}})...)
		}
		calls["DeleteMany"] = func() error { return errors.Join(b.DeleteMany(ended, []block.StateDelete{{Key: k}})...) }
	}
	if tx, ok := s.store.(block.StateTx); ok {
		calls["Transact"] = func() error {
			return tx.Transact(ended, []block.StateOp{{StateWrite: block.StateWrite{Key: k, Value: []byte("x")}}})
		}
	}
	if sc, ok := s.store.(block.StateScan); ok {
		calls["Scan"] = func() error { _, _, err := sc.Scan(ended, s.key(""), "", 10, false); return err }
	}
	if f, ok := s.store.(block.StateFence); ok {
		calls["TransactFenced"] = func() error {
			return f.TransactFenced(ended, s.key("fence"), 9, []block.StateOp{{StateWrite: block.StateWrite{Key: k, Value: []byte("x")}}})
		}
		calls["TransactFenced of nothing"] = func() error { return f.TransactFenced(ended, s.key("fence"), 9, nil) }
		defer func() {
			if err := f.TransactFenced(s.ctx(), s.key("fence"), 1, nil); err != nil {
				s.Errorf("a call with an ended context raised the fence: %v", err)
			}
		}()
	}
	for name, call := range calls {
		start := time.Now()
		wantCode(s, name+" with an ended context", call(), fault.Canceled)
		if took := time.Since(start); took > 2*time.Second {
			s.Errorf("%s with an ended context took %v", name, took)
		}
	}
	s.want(k, "v")
}

func stateClose(s *stateTest) {
	k := s.key("k")
	s.put(k, "v")
	for i := range 2 {
		if err := s.store.Close(s.ctx()); err != nil {
			s.Errorf("Close number %d: %v", i+1, err)
		}
	}
	_, err := s.store.Get(s.ctx(), k, block.StateRead{})
	wantCode(s, "Get after Close", err, fault.Unavailable)
	wantCode(s, "Set after Close", s.store.Set(s.ctx(), block.StateWrite{Key: k}), fault.Unavailable)
	wantCode(s, "Delete after Close", s.store.Delete(s.ctx(), block.StateDelete{Key: k}), fault.Unavailable)
	wantCode(s, "Ping after Close", s.store.Ping(s.ctx()), fault.Unavailable)
	if sc, ok := s.store.(block.StateScan); ok {
		_, _, err := sc.Scan(s.ctx(), s.key(""), "", 10, false)
		wantCode(s, "Scan after Close", err, fault.Unavailable)
	}
	if f, ok := s.store.(block.StateFence); ok {
		wantCode(s, "TransactFenced after Close", f.TransactFenced(s.ctx(), s.key("fence"), 1, nil), fault.Unavailable)
	}
}

// wantCode fails unless err has one of the codes and is of the house's kind.
func wantCode(t testing.TB, what string, err error, codes ...fault.Code) {
	t.Helper()
	got := fault.Of(err)
	ok := false
	for _, c := range codes {
		ok = ok || c == got
	}
	if !ok {
		t.Errorf("%s: %v (%v), want %v", what, err, got, codes)
	}
}

func closeQuietly(t testing.TB, c block.Component) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// patiently is a context for one call that must not hang the suite.
func patiently(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func unique() string { return "t" + hex.EncodeToString(noise(6)) }

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func show(s string) string {
	if len(s) > 40 {
		return fmt.Sprintf("%q… (%d bytes)", s[:40], len(s))
	}
	return strconv.Quote(s)
}
