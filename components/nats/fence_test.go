package nats_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

func writing(key, value string) block.StateOp {
	return block.StateOp{StateWrite: block.StateWrite{Key: key, Value: []byte(value)}}
}

func fenced(t testing.TB, s block.State, fence string, epoch uint64, ops ...block.StateOp) {
	t.Helper()
	if err := s.(block.StateFence).TransactFenced(t.Context(), fence, epoch, ops); err != nil {
		t.Fatalf("TransactFenced(%q, %d, %d operations): %v", fence, epoch, len(ops), err)
	}
}

func wantFenced(t testing.TB, s block.State, fence string, epoch uint64, ops ...block.StateOp) {
	t.Helper()
	err := s.(block.StateFence).TransactFenced(t.Context(), fence, epoch, ops)
	if fault.Of(err) != fault.Conflict || fault.ReasonOf(err) != fault.Fenced {
		t.Fatalf("TransactFenced(%q, %d): %v (%v, %q), want fenced", fence, epoch, err, fault.Of(err), fault.ReasonOf(err))
	}
}

func wantValue(t testing.TB, s block.State, key, value string) block.StateItem {
	t.Helper()
	item, err := s.Get(t.Context(), key, block.StateRead{Strong: true})
	if err != nil || item.Exists != (value != "") || string(item.Value) != value {
		t.Fatalf("%s = %+v, %v; want %q", key, item, err, value)
	}
	return item
}

// Each way a fenced transaction can be sent is refused to a lower number and allowed to the same
// and a higher one.
func TestFence(t *testing.T) {
	url := startServer(t).ClientURL()
	former, owner := serverState(t, url, "store"), serverState(t, url, "store")
	defer former.Close(t.Context())
	defer owner.Close(t.Context())
	etag := func(o block.StateOp) block.StateOp {
		o.ETag = wantValue(t, owner, o.Key, "start").ETag
		return o
	}
	for name, ops := range map[string]func() []block.StateOp{
		"nothing":         func() []block.StateOp { return nil },
		"a write":         func() []block.StateOp { return []block.StateOp{writing("a", "new")} },
		"a conditional":   func() []block.StateOp { return []block.StateOp{etag(writing("a", "new"))} },
		"writes":          func() []block.StateOp { return []block.StateOp{writing("a", "new"), writing("b", "new")} },
		"some conditions": func() []block.StateOp { return []block.StateOp{etag(writing("a", "new")), writing("b", "new")} },
		"all conditional": func() []block.StateOp { return []block.StateOp{etag(writing("a", "new")), etag(writing("b", "new"))} },
		"a removal":       func() []block.StateOp { return []block.StateOp{{Delete: true, StateWrite: block.StateWrite{Key: "a"}}} },
		"a first write": func() []block.StateOp {
			return []block.StateOp{{StateWrite: block.StateWrite{Key: "c", FirstWrite: true}}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			fence := "app||fence " + name
			begin := func() {
				set(t, owner, "a", "start")
				set(t, owner, "b", "start")
				if err := owner.Delete(t.Context(), block.StateDelete{Key: "c"}); err != nil {
					t.Fatal(err)
				}
			}
			begin()
			fenced(t, former, fence, 5, ops()...) // raises
			begin()
			fenced(t, former, fence, 5, ops()...) // leaves it
			begin()
			fenced(t, former, fence, 5, ops()...) // knows it
			begin()
			late := ops()
			fenced(t, owner, fence, 6)
			wantFenced(t, former, fence, 5, late...)
			wantFenced(t, former, fence, 0, late...)
			for _, k := range []string{"a", "b"} {
				wantValue(t, owner, k, "start")
			}
			fenced(t, owner, fence, 6, ops()...)
			wantValue(t, owner, fence, "") // nobody's item
		})
	}
}

func TestFenceNumbers(t *testing.T) {
	s := serverState(t, startServer(t).ClientURL(), "store")
	defer s.Close(t.Context())
	fenced(t, s, "f", 0)
	fenced(t, s, "f", 0, writing("a", "0"))
	fenced(t, s, "f", 9)
	fenced(t, s, "f", 10)
	wantFenced(t, s, "f", 9)
	for n := uint64(math.MaxUint64 - 3); ; n++ {
		fenced(t, s, "f", n, writing("a", strconv.FormatUint(n, 10)))
		wantFenced(t, s, "f", n-1, writing("a", "late"))
		wantValue(t, s, "a", strconv.FormatUint(n, 10))
		if n == math.MaxUint64 {
			break
		}
	}
	fenced(t, s, "other", 1, writing("a", "1"))
}

// A condition that does not hold is a conflict and not fenced, and leaves the number where it was.
func TestFenceWithFailedCondition(t *testing.T) {
	s := serverState(t, startServer(t).ClientURL(), "store")
	defer s.Close(t.Context())
	set(t, s, "a", "1")
	old := wantValue(t, s, "a", "1").ETag
	set(t, s, "a", "2")
	stale := writing("a", "3")
	stale.ETag = old
	for _, ops := range [][]block.StateOp{{stale}, {writing("b", "3"), stale}} {
		err := s.(block.StateFence).TransactFenced(t.Context(), "f", 7, ops)
		if fault.Of(err) != fault.Conflict || fault.ReasonOf(err) == fault.Fenced {
			t.Errorf("a stale etag: %v (%v, %q), want a conflict", err, fault.Of(err), fault.ReasonOf(err))
		}
	}
	wantValue(t, s, "b", "")
	fenced(t, s, "f", 6)
	err := s.(block.StateFence).TransactFenced(t.Context(), "f", 6, make([]block.StateOp, 1000))
	if fault.ReasonOf(err) != fault.TooManyOps {
		t.Errorf("1000 operations: %v, want too many", err)
	}
	many := make([]block.StateOp, 999)
	for i := range many {
		many[i] = writing(fmt.Sprint("many", i), "v")
	}
	fenced(t, s, "f", 8, many...)
}

// Many writers of growing numbers: what is written never comes from a lower number than something
// written before, and writers of the same number do not disturb each other.
func TestFenceRace(t *testing.T) {
	url := startServer(t).ClientURL()
	var stores []block.State
	for range 3 {
		s := serverState(t, url, "store")
		defer s.Close(t.Context())
		stores = append(stores, s)
	}
	const writers, rounds = 9, 30
	var wrote, refused atomic.Int64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			s := stores[w%len(stores)]
			for r := range rounds {
				epoch := uint64(1 + r/3 + w%2)
				// The number before this one is in the item: each writer reads, checks, and writes on
				// top of what it has read.
				item, err := s.Get(context.Background(), "last", block.StateRead{Strong: true})
				if err != nil {
					t.Error(err)
					return
				}
				o := writing("last", strconv.FormatUint(epoch, 10))
				o.ETag, o.FirstWrite = item.ETag, true
				err = s.(block.StateFence).TransactFenced(context.Background(), "f", epoch, []block.StateOp{o, writing(fmt.Sprint("w", w), "v")})
				switch before, _ := strconv.ParseUint(string(item.Value), 10, 64); {
				case err == nil && before > epoch:
					t.Errorf("%d was written over %d", epoch, before)
				case err == nil:
					wrote.Add(1)
				case fault.Of(err) != fault.Conflict:
					t.Errorf("TransactFenced: %v (%v)", err, fault.Of(err))
				default:
					refused.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if wrote.Load() == 0 {
		t.Error("nobody wrote")
	}
	t.Logf("%d written, %d refused", wrote.Load(), refused.Load())
	for w := range writers { // all of one number, each its own key
		wg.Go(func() {
			s := stores[w%len(stores)]
			for range rounds {
				key := fmt.Sprint("own", w)
				item, err := s.Get(context.Background(), key, block.StateRead{Strong: true})
				o := writing(key, "v")
				o.ETag, o.FirstWrite = item.ETag, true
				err = errors.Join(err, s.(block.StateFence).TransactFenced(context.Background(), "f", 100, []block.StateOp{o}))
				err = errors.Join(err, s.(block.StateFence).TransactFenced(context.Background(), "f", 100, []block.StateOp{writing(key, "w")}))
				if err != nil {
					t.Errorf("a writer with its own key: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// A bucket that is removed takes its fences along.
func TestFenceOfRemovedBucket(t *testing.T) {
	url := startServer(t).ClientURL()
	s := serverState(t, url, "mine")
	defer s.Close(t.Context())
	fenced(t, s, "f", 9, writing("a", "v"))
	fenced(t, s, "f", 9, writing("a", "v"))
	if err := admin(t, url).DeleteStream(t.Context(), "KV_mine"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a new bucket", func() bool {
		err := s.(block.StateFence).TransactFenced(t.Context(), "f", 1, []block.StateOp{writing("a", "w")})
		if err != nil && fault.Of(err) != fault.Unavailable && !strings.Contains(err.Error(), "fence") {
			t.Fatalf("TransactFenced: %v", err)
		}
		return err == nil
	})
	wantValue(t, s, "a", "w")
}
