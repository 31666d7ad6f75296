package blocktest

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

func stateBatch(s *stateTest) {
	b, ok := s.store.(block.StateBatch)
	if !ok {
		notOffered(s.T, "the store has no batches, the service emulates them")
		return
	}
	const n = 150 // more than any sensible window of a pipelining client
	var ws []block.StateWrite
	var keys []string
	for i := range n {
		keys = append(keys, s.key(fmt.Sprintf("b/%d", i)))
		ws = append(ws, block.StateWrite{Key: keys[i], Value: []byte(strconv.Itoa(i))})
	}
	if errs := b.SetMany(s.ctx(), ws); errs != nil {
		s.Fatalf("SetMany: %v, want nil", errs)
	}
	// The answer stands in the order of the question, repeats and gaps included.
	order := []string{keys[n-1], s.key("never"), keys[0], keys[0], keys[3]}
	order = append(order, keys...)
	items, err := b.GetMany(s.ctx(), order, block.StateRead{Strong: true})
	if err != nil || len(items) != len(order) {
		s.Fatalf("GetMany of %d keys = %d items, %v", len(order), len(items), err)
	}
	for i, it := range items {
		want := s.get(order[i])
		if it.Key != order[i] || it.Exists != want.Exists || string(it.Value) != string(want.Value) || it.ETag != want.ETag {
			s.Errorf("GetMany[%d] = %+v, want %+v as Get says", i, it, want)
		}
	}

	etag := s.get(keys[0]).ETag
	errs := b.SetMany(s.ctx(), []block.StateWrite{
		{Key: keys[0], Value: []byte("new"), ETag: etag},
		{Key: keys[1], Value: []byte("new"), ETag: etag + "0"},
		{Key: keys[2], Value: []byte("new"), FirstWrite: true},
		{Key: s.key("fresh"), Value: []byte("new"), FirstWrite: true},
		{Key: keys[3], Value: []byte("new")},
	})
	wantEach(s, "SetMany", errs, true, false, true, true, false, false)
	s.want(keys[0], "new")
	s.want(keys[1], "1")
	s.want(keys[2], "2")
	s.want(s.key("fresh"), "new")
	s.want(keys[3], "new")

	fresh := s.get(s.key("fresh")).ETag
	errs = b.DeleteMany(s.ctx(), []block.StateDelete{
		{Key: s.key("never")}, {Key: s.key("fresh"), ETag: fresh}, {Key: keys[4], ETag: fresh}, {Key: s.key("never"), ETag: fresh}, {Key: keys[5]},
	})
	wantEach(s, "DeleteMany", errs, true, false, false, true, true, false)
	s.wantMissing(s.key("fresh"))
	s.want(keys[4], "4")
	s.wantMissing(keys[5])

	var ds []block.StateDelete
	for _, k := range keys {
		ds = append(ds, block.StateDelete{Key: k})
	}
	if errs := b.DeleteMany(s.ctx(), ds); errs != nil {
		s.Fatalf("DeleteMany: %v, want nil", errs)
	}
	s.wantMissing(keys[7])
	if items, err := b.GetMany(s.ctx(), nil, block.StateRead{}); err != nil || len(items) != 0 {
		s.Errorf("GetMany of nothing = %v, %v", items, err)
	}
	if errs := b.SetMany(s.ctx(), nil); errs != nil {
		s.Errorf("SetMany of nothing = %v", errs)
	}
	if errs := b.DeleteMany(s.ctx(), nil); errs != nil {
		s.Errorf("DeleteMany of nothing = %v", errs)
	}
}

// wantEach checks per-item errors: failed[i] tells whether item i must be a conflict.
func wantEach(s *stateTest, what string, errs []error, any bool, failed ...bool) {
	s.Helper()
	if any && len(errs) != len(failed) {
		s.Fatalf("%s: %d errors, want one per item (%d): %v", what, len(errs), len(failed), errs)
	}
	for i, bad := range failed {
		if bad {
			wantCode(s, fmt.Sprintf("%s[%d]", what, i), errs[i], fault.Conflict, fault.BadEtag)
		} else if errs[i] != nil {
			s.Errorf("%s[%d]: %v, want nil", what, i, errs[i])
		}
	}
}

func set(key, value string) block.StateOp {
	return block.StateOp{StateWrite: block.StateWrite{Key: key, Value: []byte(value)}}
}

func setIf(key, value, etag string) block.StateOp {
	return block.StateOp{StateWrite: block.StateWrite{Key: key, Value: []byte(value), ETag: etag}}
}

func setNew(key, value string) block.StateOp {
	return block.StateOp{StateWrite: block.StateWrite{Key: key, Value: []byte(value), FirstWrite: true}}
}

func del(key, etag string) block.StateOp {
	return block.StateOp{Delete: true, StateWrite: block.StateWrite{Key: key, ETag: etag}}
}

func stateTx(s *stateTest) {
	tx, ok := s.store.(block.StateTx)
	if !ok {
		notOffered(s.T, "the store has no transactions, the service refuses them")
		return
	}
	a, b, c := s.key("a"), s.key("b"), s.key("c")
	do := func(what string, ops ...block.StateOp) {
		s.Helper()
		if err := tx.Transact(s.ctx(), ops); err != nil {
			s.Fatalf("%s: %v", what, err)
		}
	}
	do("nothing")
	do("one write", set(a, "1"))
	s.want(a, "1")
	do("one removal", del(a, ""))
	s.wantMissing(a)

	do("writes and a removal of nothing", set(a, "1"), set(b, "1"), del(c, ""), setNew(s.key("new"), "n"))
	ia, ib := s.want(a, "1"), s.want(b, "1")
	s.want(s.key("new"), "n")
	s.wantMissing(c)
	do("etags", setIf(a, "2", ia.ETag), del(b, ib.ETag), setNew(c, "2"))
	if again := s.want(a, "2"); again.ETag == ia.ETag {
		s.Errorf("a transaction left the etag %q", ia.ETag)
	}
	s.wantMissing(b)
	s.want(c, "2")

	// Operations take effect in their order.
	do("one key twice", set(a, "x"), set(a, "y"))
	s.want(a, "y")
	do("written, then removed", set(a, "z"), del(a, ""))
	s.wantMissing(a)
	do("removed, then written", del(c, ""), set(c, "back"))
	s.want(c, "back")
	do("removed, then first-written", del(c, ""), setNew(c, "new"))
	ic := s.want(c, "new")
	do("etag, then plain", setIf(c, "x", ic.ETag), set(c, "y"))
	s.want(c, "y")

	n := 100
	if max := tx.MaxOps(); max > 0 && max < n {
		n = max
	}
	var many []block.StateOp
	for i := range n {
		many = append(many, set(s.key(fmt.Sprint("many/", i)), strconv.Itoa(i)))
	}
	do("as many as allowed", many...)
	for _, i := range []int{0, n / 2, n - 1} {
		s.want(s.key(fmt.Sprint("many/", i)), strconv.Itoa(i))
	}
}

func stateTxRefused(s *stateTest) {
	tx, ok := s.store.(block.StateTx)
	if !ok {
		notOffered(s.T, "the store has no transactions")
		return
	}
	a, b, c, gone := s.key("a"), s.key("b"), s.key("c"), s.key("gone")
	ia, ib := s.put(a, "1"), s.put(b, "1")
	stale := ia.ETag
	ia = s.put(a, "1")
	unchanged := func(what string) {
		s.Helper()
		if now := s.want(a, "1"); now.ETag != ia.ETag {
			s.Errorf("%s: the etag of a changed", what)
		}
		if now := s.want(b, "1"); now.ETag != ib.ETag {
			s.Errorf("%s: the etag of b changed", what)
		}
		s.wantMissing(c)
	}
	once := []fault.Code{fault.Conflict}
	cases := []struct {
		name  string
		codes []fault.Code
		ops   []block.StateOp
	}{
		{"old etag last", once, []block.StateOp{set(c, "x"), set(b, "x"), setIf(a, "x", stale)}},
		{"old etag first", once, []block.StateOp{setIf(a, "x", stale), set(c, "x"), del(b, "")}},
		{"old etag alone", once, []block.StateOp{setIf(a, "x", stale)}},
		{"removal with an old etag", once, []block.StateOp{set(c, "x"), del(a, stale), del(b, "")}},
		{"removal of a missing key with an etag", once, []block.StateOp{set(c, "x"), del(gone, stale)}},
		{"write of a missing key with an etag", once, []block.StateOp{set(c, "x"), setIf(gone, "x", stale)}},
		{"first-write of an existing key", once, []block.StateOp{set(c, "x"), setNew(b, "x")}},
		{"first-write after a write", once, []block.StateOp{set(c, "x"), setNew(c, "y")}},
		{"foreign etag", []fault.Code{fault.Conflict, fault.BadEtag}, []block.StateOp{set(c, "x"), setIf(a, "x", "foreign")}},
		// After a write in the same transaction the version is a new one which nobody can know.
		{"etag after a write", []fault.Code{fault.Conflict, fault.Invalid, fault.Unsupported}, []block.StateOp{set(c, "x"), set(a, "x"), setIf(a, "y", ia.ETag)}},
		{"etag after a removal", []fault.Code{fault.Conflict, fault.Invalid, fault.Unsupported}, []block.StateOp{set(c, "x"), del(a, ""), setIf(a, "y", ia.ETag)}},
		{"the same etag twice", []fault.Code{fault.Conflict, fault.Invalid, fault.Unsupported}, []block.StateOp{set(c, "x"), setIf(a, "x", ia.ETag), setIf(a, "y", ia.ETag)}},
	}
	for _, tc := range cases {
		wantCode(s, tc.name, tx.Transact(s.ctx(), tc.ops), tc.codes...)
		unchanged(tc.name)
	}
	if max := tx.MaxOps(); max > 0 {
		ops := make([]block.StateOp, max+1)
		for i := range ops {
			ops[i] = set(s.key(fmt.Sprint("over/", i)), "x")
		}
		wantCode(s, "one operation too many", tx.Transact(s.ctx(), ops), fault.Invalid, fault.TooLarge)
		s.wantMissing(s.key("over/0"))
	}
	if _, ok := s.store.(block.StateTTL); !ok {
		op := set(c, "x")
		op.TTL = time.Minute
		wantCode(s, "TTL on a store without expiry", tx.Transact(s.ctx(), []block.StateOp{set(b, "x"), op}), fault.Unsupported)
		unchanged("TTL on a store without expiry")
	}
	stateTxRace(s, tx)
}

// stateTxRace moves units between two accounts from several sides at once. Half-applied
// transactions would change the sum.
func stateTxRace(s *stateTest, tx block.StateTx) {
	const movers, each, sum = 4, 5, 1000
	x, y := s.key("account x"), s.key("account y")
	s.put(x, strconv.Itoa(sum))
	s.put(y, "0")
	var wg sync.WaitGroup
	for range movers {
		wg.Go(func() {
			for done := 0; done < each; {
				ix, errX := s.store.Get(s.ctx(), x, block.StateRead{Strong: true})
				iy, errY := s.store.Get(s.ctx(), y, block.StateRead{Strong: true})
				if errX != nil || errY != nil {
					s.Errorf("Get: %v, %v", errX, errY)
					return
				}
				nx, _ := strconv.Atoi(string(ix.Value))
				ny, _ := strconv.Atoi(string(iy.Value))
				err := tx.Transact(s.ctx(), []block.StateOp{setIf(x, strconv.Itoa(nx-1), ix.ETag), setIf(y, strconv.Itoa(ny+1), iy.ETag)})
				switch fault.Of(err) {
				case fault.OK:
					done++
				case fault.Conflict:
				default:
					s.Errorf("Transact: %v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	s.want(x, strconv.Itoa(sum-movers*each))
	s.want(y, strconv.Itoa(movers*each))
}
