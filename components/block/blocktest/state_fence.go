package blocktest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// fencing is a subtest of a store whose transactions can depend on an epoch.
type fencing struct {
	*stateTest
	fence block.StateFence
}

// stateFence gives the fence part of the suite to stores that have one.
func stateFence(run func(*fencing)) func(*stateTest) {
	return func(s *stateTest) {
		f, ok := s.store.(block.StateFence)
		if !ok {
			notOffered(s.T, "the store has no fenced transactions")
			return
		}
		run(&fencing{s, f})
	}
}

// do writes with an epoch that must be accepted.
func (f *fencing) do(fence string, epoch uint64, ops ...block.StateOp) {
	f.Helper()
	if err := f.fence.TransactFenced(f.ctx(), fence, epoch, ops); err != nil {
		f.Fatalf("TransactFenced(%s, %d, %d operations): %v", show(fence), epoch, len(ops), err)
	}
}

// refused writes with an epoch that must not be.
func (f *fencing) refused(fence string, epoch uint64, ops ...block.StateOp) {
	f.Helper()
	wantFenced(f, fmt.Sprintf("TransactFenced(%s, %d, %d operations)", show(fence), epoch, len(ops)), f.fence.TransactFenced(f.ctx(), fence, epoch, ops))
}

func wantFenced(f *fencing, what string, err error) {
	f.Helper()
	if fault.Of(err) != fault.Conflict || fault.ReasonOf(err) != fault.Fenced {
		f.Fatalf("%s: %v (%v, reason %q), want %v with reason %q", what, err, fault.Of(err), fault.ReasonOf(err), fault.Conflict, fault.Fenced)
	}
}

func fenceEpochs(f *fencing) {
	k, fence := f.key("k"), f.key("fence")
	f.do(fence, 0, set(k, "0")) // a fence never seen is 0
	f.want(k, "0")
	f.do(fence, 5, set(k, "5"))
	f.refused(fence, 4, set(k, "4"))
	f.refused(fence, 0, set(k, "0"))
	at := f.want(k, "5")
	f.do(fence, 5, set(k, "5 again"))
	f.want(k, "5 again")
	f.refused(fence, 4, del(k, ""))
	f.refused(fence, 4, del(k, at.ETag))
	f.refused(fence, 4)
	f.refused(fence, 4, setNew(f.key("new"), "x"))
	f.wantMissing(f.key("new"))
	f.want(k, "5 again")

	f.do(fence, 9) // an empty list raises
	f.refused(fence, 8, set(k, "8"))
	f.do(fence, 10, set(k, "10")) // numbers, not text
	f.refused(fence, 9, set(k, "9"))
	f.do(fence, 100, set(k, "100"))
	f.refused(fence, 99, set(k, "99"))
	f.refused(fence, 11, set(k, "11"))
	f.want(k, "100")

	f.do(f.key("other"), 1, set(k, "other")) // fences do not know each other
	f.do(f.key("fence2"), 1, set(k, "other"))
	f.do(f.key("fenc"), 1, set(k, "other"))
	f.refused(fence, 99, set(k, "99"))
	f.put(k, "plain") // nor hinder those who do not ask
	f.do(f.key("alone"), 3)
	f.refused(f.key("alone"), 2)
	f.do(f.key("alone"), 3)
	for i, name := range awkward {
		f.do(f.key("f/"+name), uint64(i)+1, set(k, name))
	}
	for i, name := range awkward {
		f.refused(f.key("f/"+name), uint64(i), set(k, "x"))
		f.do(f.key("f/"+name), uint64(i)+1)
	}
	f.want(k, awkward[len(awkward)-1])
}

func fenceLarge(f *fencing) {
	k, fence := f.key("k"), f.key("fence")
	last := uint64(1)
	for _, epoch := range []uint64{1<<31 + 1, 1<<32 + 1, 1 << 53, 1<<53 + 1, 1<<53 + 2, 1<<62 + 1, math.MaxInt64 - 1, math.MaxInt64} {
		f.do(fence, epoch, set(k, strconv.FormatUint(epoch, 10)))
		f.refused(fence, last, set(k, "x"))
		f.refused(fence, epoch-1, set(k, "x"))
		f.want(k, strconv.FormatUint(epoch, 10))
		last = epoch
	}
	// Above that a store may refuse, but then always and for that reason.
	above := []uint64{math.MaxInt64 + 1, math.MaxInt64 + 2, math.MaxUint64 - 1, math.MaxUint64}
	now := f.want(k, strconv.FormatUint(last, 10))
	err := f.fence.TransactFenced(f.ctx(), fence, above[0], []block.StateOp{set(k, "above")})
	if err != nil {
		for _, epoch := range above {
			wantCode(f, fmt.Sprint("epoch ", epoch), f.fence.TransactFenced(f.ctx(), fence, epoch, []block.StateOp{set(k, "above")}), fault.Invalid)
			wantCode(f, fmt.Sprintf("epoch %d on a new fence", epoch), f.fence.TransactFenced(f.ctx(), f.key("new"), epoch, nil), fault.Invalid)
		}
		if again := f.get(k); again.ETag != now.ETag {
			f.Errorf("a refused epoch changed the item to %+v", again)
		}
		f.do(fence, math.MaxInt64, set(k, "still"))
		f.do(f.key("new"), 1)
		return
	}
	for _, epoch := range above {
		f.do(fence, epoch, set(k, strconv.FormatUint(epoch, 10)))
		f.refused(fence, epoch-1, set(k, "x"))
		f.refused(fence, math.MaxInt64, set(k, "x"))
		f.refused(fence, 1, set(k, "x"))
		f.want(k, strconv.FormatUint(epoch, 10))
	}
}

// fenceAtomic: operations, etags and the fence happen together or not at all.
func fenceAtomic(f *fencing) {
	a, b, c, gone, fence := f.key("a"), f.key("b"), f.key("c"), f.key("gone"), f.key("fence")
	f.do(fence, 7, set(a, "1"), set(b, "1"), del(c, ""), setNew(f.key("new"), "n"))
	stale := f.want(a, "1")
	f.want(f.key("new"), "n")
	ia, ib := f.put(a, "1"), f.want(b, "1")
	unchanged := func(what string) {
		f.Helper()
		if now := f.want(a, "1"); now.ETag != ia.ETag {
			f.Errorf("%s: the etag of a changed", what)
		}
		if now := f.want(b, "1"); now.ETag != ib.ETag {
			f.Errorf("%s: the etag of b changed", what)
		}
		f.wantMissing(c)
		f.wantMissing(gone)
	}
	for _, epoch := range []uint64{0, 6} {
		f.refused(fence, epoch, setIf(a, "x", ia.ETag), set(b, "x"), setNew(c, "x"))
		f.refused(fence, epoch, del(a, ia.ETag), del(b, ""), set(c, "x"))
		f.refused(fence, epoch, setIf(a, "x", ia.ETag))
		unchanged("a low epoch")
	}
	once := []fault.Code{fault.Conflict}
	cases := []struct {
		name  string
		codes []fault.Code
		ops   []block.StateOp
	}{
		{"old etag alone", once, []block.StateOp{setIf(a, "x", stale.ETag)}},
		{"old etag first", once, []block.StateOp{setIf(a, "x", stale.ETag), set(c, "x"), del(b, "")}},
		{"old etag last", once, []block.StateOp{set(c, "x"), del(b, ""), setIf(a, "x", stale.ETag)}},
		{"removal with an old etag", once, []block.StateOp{set(c, "x"), del(a, stale.ETag)}},
		{"removal of a missing key with an etag", once, []block.StateOp{set(c, "x"), del(gone, stale.ETag)}},
		{"write of a missing key with an etag", once, []block.StateOp{setIf(gone, "x", stale.ETag), set(c, "x")}},
		{"first write of an existing key", once, []block.StateOp{set(c, "x"), setNew(b, "x")}},
		{"first write of an existing key alone", once, []block.StateOp{setNew(b, "x")}},
		{"foreign etag", []fault.Code{fault.Conflict, fault.BadEtag}, []block.StateOp{set(c, "x"), setIf(a, "x", "foreign")}},
	}
	for _, tc := range cases {
		for _, epoch := range []uint64{7, 1000} {
			err := f.fence.TransactFenced(f.ctx(), fence, epoch, tc.ops)
			wantCode(f, fmt.Sprintf("%s with epoch %d", tc.name, epoch), err, tc.codes...)
			if fault.ReasonOf(err) == fault.Fenced {
				f.Errorf("%s with epoch %d is taken for a low epoch: %v", tc.name, epoch, err)
			}
			unchanged(tc.name)
			f.do(fence, 7) // the fence was not raised
		}
		if err := f.fence.TransactFenced(f.ctx(), f.key("fresh "+tc.name), 1000, tc.ops); err == nil {
			f.Errorf("%s on a new fence: success", tc.name)
		}
		f.do(f.key("fresh "+tc.name), 0)
	}
	unchanged("refused operations")

	f.do(fence, 8, setIf(a, "2", ia.ETag), del(b, ib.ETag), setNew(c, "2"))
	f.want(a, "2")
	f.wantMissing(b)
	f.want(c, "2")
	// Operations take effect in their order.
	f.do(fence, 8, set(a, "x"), set(a, "y"))
	f.want(a, "y")
	f.do(fence, 8, set(a, "z"), del(a, ""), del(c, ""), setNew(c, "new"))
	f.wantMissing(a)
	f.want(c, "new")

	n := 100
	if tx, ok := f.store.(block.StateTx); ok && tx.MaxOps() > 0 && tx.MaxOps() <= n {
		n = tx.MaxOps() - 1
	}
	var many []block.StateOp
	for i := range n {
		many = append(many, set(f.key(fmt.Sprint("many/", i)), strconv.Itoa(i)))
	}
	f.refused(fence, 7, many...)
	f.wantMissing(f.key("many/0"))
	f.do(fence, 9, many...)
	for _, i := range []int{0, n / 2, n - 1} {
		f.want(f.key(fmt.Sprint("many/", i)), strconv.Itoa(i))
	}
	if _, ok := f.store.(block.StateTTL); !ok {
		op := set(c, "x")
		op.TTL = time.Minute
		wantCode(f, "TTL on a store without expiry", f.fence.TransactFenced(f.ctx(), fence, 1000, []block.StateOp{set(a, "x"), op}), fault.Unsupported)
		f.do(fence, 9)
		f.wantMissing(a)
	}
}

// fenceHidden: a fence is nobody's item.
func fenceHidden(f *fencing) {
	fence, k := f.key("p/fence"), f.key("p/k")
	var told *watcher
	if w, ok := f.store.(block.StateWatch); ok {
		told = (&watching{f.stateTest, w}).follow(w, f.key(""), nil)
	}
	f.do(fence, 3)
	f.do(fence, 5, set(k, "v"))
	f.wantMissing(fence)
	if b, ok := f.store.(block.StateBatch); ok {
		items, err := b.GetMany(f.ctx(), []string{fence, k}, block.StateRead{Strong: true})
		if err != nil || len(items) != 2 || items[0].Exists || !items[1].Exists {
			f.Errorf("GetMany of a fence and an item = %+v, %v; want the item only", items, err)
		}
	}
	if sc, ok := f.store.(block.StateScan); ok {
		scan := &scanning{f.stateTest, sc}
		for _, limit := range []int{1, 100} {
			scan.gives(f.key(""), limit, []string{k})
			scan.gives(f.key("p/"), limit, []string{k})
			scan.gives(fence, limit, nil)
		}
		for key := range scan.all("", 1000, true) {
			if strings.Contains(key, fence) {
				f.Errorf("a scan of all keys gave %s", show(key))
			}
		}
	}
	if err := f.store.Delete(f.ctx(), block.StateDelete{Key: fence}); err != nil { // of an item that does not exist
		f.Errorf("Delete of an item with the fence's key: %v", err)
	}
	f.refused(fence, 4, set(k, "x"))
	if told != nil {
		told.hears(k, "v")
		f.do(fence, 6)
		f.put(k, "w")
		told.hears(k, "w")
		for _, key := range told.keys() {
			if key != k && key != fence || len(told.values(fence)) > 0 && told.values(fence)[0] != removed {
				f.Errorf("a watch told of %s: %q", show(key), told.values(key))
			}
		}
	}
}

// fenceLasts: a fence outlives the items that were written with it, and the process.
func fenceLasts(f *fencing) {
	k, kept, fence := f.key("k"), f.key("kept"), f.key("fence")
	f.do(fence, 8, set(kept, "v"))
	if _, ok := f.store.(block.StateTTL); ok {
		op := set(k, "v")
		op.TTL = time.Second
		f.do(f.key("short"), 8, op)
		f.want(k, "v")
		waitUntil(f, func() string { return "an item with a TTL of 1s is there" }, func() bool { return !f.get(k).Exists })
		f.refused(f.key("short"), 7, set(k, "x"))
		f.do(f.key("short"), 8, setNew(k, "v"))
		if item := f.want(k, "v"); !item.Expires.IsZero() {
			f.Errorf("an item without TTL expires at %v", item.Expires)
		}
	}
	if err := f.store.Delete(f.ctx(), block.StateDelete{Key: kept}); err != nil {
		f.Fatalf("Delete: %v", err)
	}
	f.refused(fence, 7, set(kept, "x"))
	f.put(kept, "v")
	f.refused(fence, 7, set(kept, "x"))
	closeQuietly(f.T, f.store)
	again := f.open(f.T)
	f.Cleanup(func() { closeQuietly(f.T, again) })
	item, err := again.Get(f.ctx(), kept, block.StateRead{Strong: true})
	if err != nil {
		f.Fatalf("Get after opening again: %v", err)
	}
	if !item.Exists {
		return // what items do not outlive fences need not
	}
	err = again.(block.StateFence).TransactFenced(f.ctx(), fence, 7, []block.StateOp{set(kept, "x")})
	wantFenced(f, "a low epoch after opening again", err)
	if err := again.(block.StateFence).TransactFenced(f.ctx(), fence, 8, []block.StateOp{set(kept, "y")}); err != nil {
		f.Errorf("the same epoch after opening again: %v", err)
	}
}

// fenceRace lets owners with rising epochs write against each other, through all clients there
// are, and looks at the order in which the store took their writes.
//
// log is written under its etag and holds every write so far: its value is that order. last is
// written blindly in the same transactions, and read all the time.
func fenceRace(f *fencing) {
	const owners, epochs = 6, 60
	seed := uint64(time.Now().UnixNano())
	f.Logf("seed %d", seed)
	clients := []block.State{f.store}
	if other, shared := f.second(); shared {
		clients = append(clients, other)
	}
	log, last, fence := f.key("log"), f.key("last"), f.key("fence")
	f.put(log, "")
	var next, acknowledged atomic.Uint64 // the newest epoch given to an owner; the highest that a write was acknowledged with
	var mu sync.Mutex
	done, not := map[string]bool{}, map[string]bool{} // guarded by mu; writes that were acknowledged, and refused
	var over atomic.Bool
	var wg, reader sync.WaitGroup
	for o := range owners {
		random := rand.New(rand.NewPCG(seed, uint64(o)))
		store := clients[o%len(clients)]
		wg.Go(func() {
			epoch := next.Add(1)
			for n := 0; ; n++ {
				item, err := store.Get(f.ctx(), log, block.StateRead{Strong: true})
				if err != nil {
					f.Errorf("Get: %v", err)
					return
				}
				name := fmt.Sprintf("%d:%d:%d", epoch, o, n)
				ops := []block.StateOp{setIf(log, string(item.Value)+" "+name, item.ETag), set(last, name)}
				switch random.IntN(4) {
				case 0:
					ops = []block.StateOp{set(last, name)} // not in the log
				case 1:
					ops = nil
				}
				before := acknowledged.Load()
				err = store.(block.StateFence).TransactFenced(f.ctx(), fence, epoch, ops)
				switch {
				case err == nil:
					if before > epoch {
						f.Errorf("epoch %d wrote after a write with epoch %d was acknowledged", epoch, before)
						return
					}
					for now := acknowledged.Load(); now < epoch && !acknowledged.CompareAndSwap(now, epoch); now = acknowledged.Load() {
					}
				case fault.Of(err) != fault.Conflict:
					f.Errorf("TransactFenced with epoch %d: %v", epoch, err)
					return
				}
				if len(ops) == 2 {
					mu.Lock()
					if err == nil {
						done[name] = true
					} else {
						not[name] = true
					}
					mu.Unlock()
				}
				if fault.ReasonOf(err) == fault.Fenced || random.IntN(8) == 0 {
					if epoch = next.Add(1); epoch > epochs {
						return
					}
				}
			}
		})
	}
	for _, store := range clients {
		reader.Go(func() {
			for highest := uint64(0); !over.Load(); {
				item, err := store.Get(f.ctx(), last, block.StateRead{Strong: true})
				if err != nil {
					f.Errorf("Get: %v", err)
					return
				}
				epoch := epochOf(string(item.Value))
				if epoch < highest {
					f.Errorf("a write of epoch %d came behind one of %d", epoch, highest)
					return
				}
				highest = epoch
				time.Sleep(time.Millisecond) // some products let readers hold up writers
			}
		})
	}
	wg.Wait()
	over.Store(true)
	reader.Wait()
	if f.Failed() {
		return
	}

	highest := uint64(0)
	order := strings.Fields(string(f.get(log).Value))
	for i, name := range order {
		epoch := epochOf(name)
		if epoch < highest {
			f.Fatalf("write %d of %q has a lower epoch than one before it", i, order)
		}
		highest = epoch
		if !done[name] {
			f.Errorf("write %s is stored; acknowledged: false, refused: %v", name, not[name])
		}
		delete(done, name)
	}
	if len(done) > 0 {
		f.Errorf("acknowledged writes are not stored: %v", done)
	}
	if len(order) == 0 {
		f.Errorf("no write was acknowledged")
	}
	if got := epochOf(string(f.get(last).Value)); got < highest {
		f.Errorf("the last write has epoch %d, want %d or more", got, highest)
	}
	f.refused(fence, acknowledged.Load()-1, set(last, "x"))
	f.do(fence, acknowledged.Load())
}

func epochOf(name string) uint64 {
	text, _, _ := strings.Cut(name, ":")
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// fenceCrossed has transactions with different fences write the same keys in different orders:
// nobody may wait for ever, or fail.
func fenceCrossed(f *fencing) {
	const writers, each = 6, 15
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(w), 7))
			for n := range each {
				var ops []block.StateOp
				for _, i := range random.Perm(6)[:4] {
					ops = append(ops, set(f.key(fmt.Sprint("k", i)), fmt.Sprint(w, n)))
				}
				fence := f.key(fmt.Sprint("fence ", random.IntN(3)))
				if err := f.fence.TransactFenced(f.ctx(), fence, 1, ops); err != nil {
					f.Errorf("TransactFenced: %v", err)
					return
				}
				if tx, ok := f.store.(block.StateTx); ok && n%3 == 0 {
					if err := tx.Transact(f.ctx(), ops); err != nil {
						f.Errorf("Transact beside it: %v", err)
						return
					}
				}
			}
		})
	}
	// New fences, made by several at once.
	for round := range 10 {
		for range 3 {
			wg.Go(func() {
				if err := f.fence.TransactFenced(f.ctx(), f.key(fmt.Sprint("new ", round)), 2, []block.StateOp{set(f.key(fmt.Sprint("n", round)), "v")}); err != nil {
					f.Errorf("TransactFenced of a new fence: %v", err)
				}
			})
		}
	}
	wg.Wait()
}
