package state_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is a state store whose failures the test chooses.
type store struct {
	mu       sync.Mutex
	data     map[string]block.StateItem
	writes   []block.StateWrite
	deletes  []block.StateDelete
	fail     func(key string) error
	inFlight atomic.Int64
	peak     atomic.Int64
	pause    time.Duration
	strong   bool
}

func newStore() *store { return &store{data: map[string]block.StateItem{}} }

func (s *store) Ping(context.Context) error  { return nil }
func (s *store) Close(context.Context) error { return nil }

func (s *store) enter(key string) error {
	n := s.inFlight.Add(1)
	for p := s.peak.Load(); n > p && !s.peak.CompareAndSwap(p, n); p = s.peak.Load() {
	}
	time.Sleep(s.pause)
	s.inFlight.Add(-1)
	if s.fail != nil {
		return s.fail(key)
	}
	return nil
}

func (s *store) Get(_ context.Context, key string, o block.StateRead) (block.StateItem, error) {
	if err := s.enter(key); err != nil {
		return block.StateItem{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.strong = o.Strong
	item := s.data[key]
	item.Key = key
	return item, nil
}

func (s *store) Set(_ context.Context, w block.StateWrite) error {
	if err := s.enter(w.Key); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, w)
	s.data[w.Key] = block.StateItem{Key: w.Key, Exists: true, Value: w.Value, ETag: fmt.Sprint(len(s.writes))}
	return nil
}

func (s *store) Delete(_ context.Context, d block.StateDelete) error {
	if err := s.enter(d.Key); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deletes = append(s.deletes, d)
	delete(s.data, d.Key)
	return nil
}

// batchStore also takes batches.
type batchStore struct {
	*store
	batches int
	err     error
	lost    string // this key alone cannot be read
}

func (b *batchStore) GetMany(ctx context.Context, keys []string, o block.StateRead) ([]block.StateItem, error) {
	b.batches++
	if b.err != nil {
		return nil, b.err
	}
	out := make([]block.StateItem, len(keys))
	for i, k := range keys {
		if out[i], _ = b.Get(ctx, k, o); k == b.lost {
			out[i] = block.StateItem{Key: k, Err: fault.New("t", fault.Lost, "damaged")}
		}
	}
	return out, nil
}

func (b *batchStore) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	b.batches++
	errs := make([]error, len(ws))
	for i, w := range ws {
		errs[i] = b.Set(ctx, w)
	}
	return errs
}

func (b *batchStore) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	b.batches++
	errs := make([]error, len(ds))
	for i, d := range ds {
		errs[i] = b.Delete(ctx, d)
	}
	return errs
}

// txStore also takes transactions of at most two operations.
type txStore struct {
	*store
	ops []block.StateOp
}

func (t *txStore) Transact(_ context.Context, ops []block.StateOp) error {
	t.ops = ops
	return nil
}
func (t *txStore) MaxOps() int { return 2 }

type recorder struct {
	mu  sync.Mutex
	got []string
}

func (r *recorder) State(component, op string, ok bool, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, fmt.Sprintf("%s %s %v", component, op, ok))
}

var shop = identity.Self{App: "shop", Namespace: "default"}

func open(t testing.TB, c block.State, raw map[string]string, chain *call.Chain) (*state.Service, *recorder) {
	t.Helper()
	stores := catalog.NewStore[block.State](block.KindState)
	target := &call.Target{Kind: call.State, Name: "st"}
	target.SetChain(chain)
	stores.Put(catalog.NewHandle[block.State](catalog.Info{Name: "st", Raw: raw}, c, target))
	rec := &recorder{}
	return state.New(stores, shop, rec), rec
}

func wantFault(t *testing.T, err error, code fault.Code, reason fault.Reason, text string) {
	t.Helper()
	if fault.Of(err) != code || fault.ReasonOf(err) != reason {
		t.Errorf("error = %v (%v, %q), want %v, %q", err, fault.Of(err), fault.ReasonOf(err), code, reason)
	}
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error text = %v, want it to contain %q", err, text)
	}
}

func TestKeyPrefix(t *testing.T) {
	cases := []struct{ name, setting, ns, want string }{
		{"default", "", "", "shop||k"},
		{"appid", "AppID", "", "shop||k"},
		{"name", "name", "", "st||k"},
		{"namespace set", "namespace", "prod", "prod.shop||k"},
		{"namespace unset", "namespace", "", "shop||k"},
		{"none", "NONE", "", "k"},
		{"custom is lower-cased", "MyPrefix", "", "myprefix||k"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			st := newStore()
			stores := catalog.NewStore[block.State](block.KindState)
			stores.Put(catalog.NewHandle[block.State](catalog.Info{Name: "st", Raw: map[string]string{"keyprefix": c.setting}}, st, &call.Target{}))
			s := state.New(stores, identity.Self{App: "shop", Namespace: "default", RawNamespace: c.ns}, nil)
			if err := s.Set(t.Context(), "st", []state.Item{{Key: "k", Value: []byte("v")}}); err != nil {
				t.Fatal(err)
			}
			if got := st.writes[0].Key; got != c.want {
				t.Errorf("stored key = %q, want %q", got, c.want)
			}
			item, err := s.Get(t.Context(), "st", "k", state.ReadOptions{})
			if err != nil || !item.Exists || item.Key != "k" || string(item.Value) != "v" {
				t.Errorf("Get = %+v, %v; want key k with value v", item, err)
			}
		})
	}
}

func TestBadPrefix(t *testing.T) {
	raw := map[string]string{"keyprefix": "a||b"}
	wantFault(t, state.CheckPrefix(catalog.Info{Raw: raw}), fault.Invalid, state.BadPrefix, "'a||b' can't contain '||'")
	s, _ := open(t, newStore(), raw, nil)
	_, err := s.Get(t.Context(), "st", "k", state.ReadOptions{})
	wantFault(t, err, fault.Invalid, state.BadPrefix, "a||b")
	if err := state.CheckPrefix(catalog.Info{}); err != nil {
		t.Errorf("CheckPrefix of no setting = %v", err)
	}
}

func TestRefusals(t *testing.T) {
	item := func(change func(*state.Item)) []state.Item {
		i := state.Item{Key: "k", Value: []byte("v")}
		change(&i)
		return []state.Item{i}
	}
	meta := func(k, v string) func(*state.Item) {
		return func(i *state.Item) { i.Metadata = map[string]string{k: v} }
	}
	cases := []struct {
		name   string
		items  []state.Item
		reason fault.Reason
		text   string
	}{
		{"illegal key", item(func(i *state.Item) { i.Key = "a||b" }), fault.IllegalKey, "input key/keyPrefix 'a||b' can't contain '||'"},
		{"empty key", item(func(i *state.Item) { i.Key = "" }), fault.EmptyName, "state key cannot be empty"},
		{"concurrency", item(func(i *state.Item) { i.Concurrency = "zzz" }), state.BadOption, "unrecognized concurrency model 'zzz'"},
		{"consistency", item(func(i *state.Item) { i.Consistency = "zzz" }), state.BadOption, "unrecognized consistency model 'zzz'"},
		{"ttl text", item(meta("ttlInSeconds", "abc")), fault.BadMetadata, "got 'abc'"},
		{"ttl fraction", item(meta("ttlinseconds", "1.5")), fault.BadMetadata, "integer"},
		{"ttl too small", item(meta("ttlInSeconds", "-2")), fault.BadMetadata, "must be -1 or greater"},
		{"value not JSON", item(meta("contentType", "application/json")), state.BadValue, "invalid character 'v' looking for beginning of value"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			st := newStore()
			s, rec := open(t, st, nil, nil)
			good := state.Item{Key: "good"}
			wantFault(t, s.Set(t.Context(), "st", append([]state.Item{good}, c.items...)), fault.Invalid, c.reason, c.text)
			if len(st.writes) != 0 || len(rec.got) != 0 {
				t.Errorf("a refused request wrote %v and recorded %v", st.writes, rec.got)
			}
		})
	}
}

func TestUnknownStore(t *testing.T) {
	s, _ := open(t, newStore(), nil, nil)
	empty := state.New(catalog.NewStore[block.State](block.KindState), shop, nil)
	ctx := t.Context()
	calls := map[string]func(*state.Service) error{
		"get":        func(s *state.Service) error { _, err := s.Get(ctx, "x", "a||b", state.ReadOptions{}); return err },
		"getMany":    func(s *state.Service) error { _, err := s.GetMany(ctx, "x", nil, state.ReadOptions{}, 0); return err },
		"set":        func(s *state.Service) error { return s.Set(ctx, "x", nil) },
		"delete":     func(s *state.Service) error { return s.Delete(ctx, "x", state.Item{}) },
		"deleteMany": func(s *state.Service) error { return s.DeleteMany(ctx, "x", nil) },
		"transact":   func(s *state.Service) error { return s.Transact(ctx, "x", nil) },
		"query":      func(s *state.Service) error { _, err := s.Query(ctx, "x", []byte("{")); return err },
		"check":      func(s *state.Service) error { return s.Check("x") },
	}
	for name, f := range calls {
		t.Run(name, func(t *testing.T) {
			wantFault(t, f(s), fault.NotFound, fault.NoSuchComponent, `"x"`)
			wantFault(t, f(empty), fault.NotReady, fault.NoComponents, "")
		})
	}
}

func TestUnsupported(t *testing.T) {
	s, _ := open(t, newStore(), nil, nil)
	wantFault(t, s.Transact(t.Context(), "st", []state.Operation{{Operation: "bogus"}}), fault.Unsupported, fault.NoTransactions, "state store st doesn't support transactions")
	_, err := s.Query(t.Context(), "st", []byte("{"))
	wantFault(t, err, fault.Unsupported, fault.NoQuery, "state store st doesn't support querying")
}

func TestWriteOptions(t *testing.T) {
	st := newStore()
	s, _ := open(t, st, nil, nil)
	items := []state.Item{
		{Key: "a", Value: []byte("1"), ETag: "7", Metadata: map[string]string{"TTLInSeconds": "60"}, Concurrency: "first-write", Consistency: "strong"},
		{Key: "b", Value: []byte(`{"x":1}`), Metadata: map[string]string{"ttlInSeconds": "-1", "contentType": "application/json; charset=utf-8"}, Concurrency: "last-write", Consistency: "eventual"},
		{Key: "c", Metadata: map[string]string{"ttlInSeconds": "0"}},
	}
	want := []block.StateWrite{
		{Key: "shop||a", Value: []byte("1"), ETag: "7", FirstWrite: true, Strong: true, TTL: time.Minute},
		{Key: "shop||b", Value: []byte(`{"x":1}`), JSON: true},
		{Key: "shop||c"},
	}
	for _, item := range items {
		if err := s.Set(t.Context(), "st", []state.Item{item}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, st.writes); diff != "" {
		t.Error(diff)
	}
	if _, err := s.Get(t.Context(), "st", "a", state.ReadOptions{Consistency: "strong"}); err != nil || !st.strong {
		t.Errorf("strong read: %v, strong = %v", err, st.strong)
	}
	if _, err := s.Get(t.Context(), "st", "", state.ReadOptions{Consistency: "zzz"}); err != nil || st.strong {
		t.Errorf("read with an unknown model: %v, strong = %v; Dapr reads do not validate it", err, st.strong)
	}
	if err := s.Delete(t.Context(), "st", state.Item{Key: "a", ETag: "9"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]block.StateDelete{{Key: "shop||a", ETag: "9"}}, st.deletes); diff != "" {
		t.Error(diff)
	}
	wantFault(t, s.Delete(t.Context(), "st", state.Item{Key: "a", Consistency: "zzz"}), fault.Invalid, state.BadOption, "zzz")
}

func TestGetMany(t *testing.T) {
	t.Run("one by one, bounded, in order, errors per key", func(t *testing.T) {
		st := newStore()
		st.pause = 2 * time.Millisecond
		s, rec := open(t, st, nil, nil)
		keys := make([]string, 20)
		for i := range keys {
			keys[i] = fmt.Sprintf("k%02d", i)
		}
		if err := s.Set(t.Context(), "st", []state.Item{{Key: "k03", Value: []byte("x")}}); err != nil {
			t.Fatal(err)
		}
		st.fail = func(key string) error {
			if key == "shop||k05" {
				return fault.New("t", fault.Unavailable, "down")
			}
			return nil
		}
		st.peak.Store(0)
		got, err := s.GetMany(t.Context(), "st", keys, state.ReadOptions{}, 3)
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range got {
			if r.Key != keys[i] || r.Exists != (i == 3) || (r.Err != nil) != (i == 5) {
				t.Errorf("result %d = %+v", i, r)
			}
		}
		if p := st.peak.Load(); p > 3 || p < 2 {
			t.Errorf("reads in flight = %d, want 2 to 3", p)
		}
		if want := []string{"st set true", "st bulk_get false"}; !cmp.Equal(rec.got, want) {
			t.Errorf("recorded %v, want %v", rec.got, want)
		}
	})
	t.Run("native", func(t *testing.T) {
		b := &batchStore{store: newStore()}
		s, _ := open(t, b, nil, nil)
		got, err := s.GetMany(t.Context(), "st", []string{"a", "b"}, state.ReadOptions{}, 0)
		if err != nil || b.batches != 1 || len(got) != 2 || got[1].Key != "b" || got[1].Err != nil {
			t.Errorf("GetMany = %+v, %v after %d exchanges", got, err, b.batches)
		}
		b.err = fault.New("t", fault.Unavailable, "down")
		_, err = s.GetMany(t.Context(), "st", []string{"a", "b"}, state.ReadOptions{}, 0)
		wantFault(t, err, fault.Unavailable, "", "down")
	})
	t.Run("native, one item that cannot be read", func(t *testing.T) {
		b := &batchStore{store: newStore(), lost: "shop||b"}
		s, rec := open(t, b, nil, nil)
		got, err := s.GetMany(t.Context(), "st", []string{"a", "b", "c"}, state.ReadOptions{}, 0)
		if err != nil || len(got) != 3 {
			t.Fatalf("GetMany = %+v, %v", got, err)
		}
		for i, want := range []bool{false, true, false} {
			if (got[i].Err != nil) != want || got[i].Key != string("abc"[i]) {
				t.Errorf("result %d = %+v, want an error: %v", i, got[i], want)
			}
		}
		if want := []string{"st bulk_get false"}; !cmp.Equal(rec.got, want) {
			t.Errorf("recorded %v, want %v", rec.got, want)
		}
	})
	t.Run("illegal key refuses all", func(t *testing.T) {
		s, _ := open(t, newStore(), nil, nil)
		_, err := s.GetMany(t.Context(), "st", []string{"a", "b||c"}, state.ReadOptions{}, 0)
		wantFault(t, err, fault.Invalid, fault.IllegalKey, "b||c")
	})
	t.Run("no keys", func(t *testing.T) {
		s, rec := open(t, newStore(), nil, nil)
		got, err := s.GetMany(t.Context(), "st", nil, state.ReadOptions{}, 0)
		if len(got) != 0 || err != nil || len(rec.got) != 0 {
			t.Errorf("GetMany of nothing = %v, %v, recorded %v", got, err, rec.got)
		}
	})
	t.Run("a panic in the store is an error, never a missing key", func(t *testing.T) {
		st := newStore()
		st.fail = func(key string) error { panic("boom") }
		s, _ := open(t, st, nil, nil)
		_, err := s.GetMany(t.Context(), "st", []string{"a", "b", "c"}, state.ReadOptions{}, 0)
		wantFault(t, err, fault.Internal, "", "boom")
	})
}

// again is a retry policy that grants n attempts.
func again(n int) *call.Chain {
	return &call.Chain{Retry: func(c *call.Call, err error) (time.Duration, bool) { return 0, c.Attempt < n }}
}

func TestSetManyRetriesOnlyWhatFailed(t *testing.T) {
	stores := map[string]func(*store) block.State{
		"parallel": func(s *store) block.State { return s },
		"batch":    func(s *store) block.State { return &batchStore{store: s} },
	}
	for name, wrap := range stores {
		t.Run(name, func(t *testing.T) {
			st := newStore()
			var mu sync.Mutex
			tries := map[string]int{}
			st.fail = func(key string) error {
				mu.Lock()
				defer mu.Unlock()
				tries[key]++
				switch {
				case key == "shop||flaky" && tries[key] < 3:
					return fault.New("t", fault.Unavailable, "down")
				case key == "shop||stale":
					return fault.New("t", fault.Conflict, "possible etag mismatch")
				}
				return nil
			}
			s, rec := open(t, wrap(st), nil, again(5))
			err := s.Set(t.Context(), "st", []state.Item{{Key: "ok"}, {Key: "flaky"}, {Key: "stale", ETag: "1"}})
			wantFault(t, err, fault.Conflict, "", "etag mismatch")
			// This policy repeats conflicts too; nothing is pending then, so nothing is written.
			want := map[string]int{"shop||ok": 1, "shop||flaky": 3, "shop||stale": 1}
			if diff := cmp.Diff(want, tries); diff != "" {
				t.Error(diff)
			}
			if want := []string{"st set false"}; !cmp.Equal(rec.got, want) {
				t.Errorf("recorded %v, want %v", rec.got, want)
			}
		})
	}
}

func TestSetManyKeepsOrderOfEqualKeys(t *testing.T) {
	st := newStore()
	st.pause = time.Millisecond
	s, _ := open(t, st, nil, nil)
	var items []state.Item
	for i := range 10 {
		items = append(items, state.Item{Key: "same", Value: []byte{byte('0' + i)}})
	}
	if err := s.Set(t.Context(), "st", items); err != nil {
		t.Fatal(err)
	}
	if got := string(st.data["shop||same"].Value); got != "9" {
		t.Errorf("last value = %q, want 9", got)
	}
}

func TestDeleteMany(t *testing.T) {
	st := newStore()
	s, rec := open(t, st, nil, nil)
	if err := s.DeleteMany(t.Context(), "st", []state.Item{{Key: "a"}, {Key: "b", ETag: "1"}}); err != nil {
		t.Fatal(err)
	}
	if len(st.deletes) != 2 || !cmp.Equal(rec.got, []string{"st bulk_delete true"}) {
		t.Errorf("deletes %v, recorded %v", st.deletes, rec.got)
	}
	if err := s.DeleteMany(t.Context(), "st", nil); err != nil {
		t.Errorf("DeleteMany of nothing = %v", err)
	}
}

func TestTransact(t *testing.T) {
	tx := &txStore{store: newStore()}
	s, rec := open(t, tx, nil, nil)
	ctx := t.Context()
	up := func(key string) state.Operation {
		return state.Operation{Operation: "upsert", Item: state.Item{Key: key, Value: []byte("v"), ETag: "3"}}
	}
	if err := s.Transact(ctx, "st", []state.Operation{up("a"), {Operation: "delete", Item: state.Item{Key: "b", ETag: "4"}}}); err != nil {
		t.Fatal(err)
	}
	want := []block.StateOp{
		{StateWrite: block.StateWrite{Key: "shop||a", Value: []byte("v"), ETag: "3"}},
		{Delete: true, StateWrite: block.StateWrite{Key: "shop||b", ETag: "4"}},
	}
	if diff := cmp.Diff(want, tx.ops); diff != "" {
		t.Error(diff)
	}
	if err := s.Transact(ctx, "st", []state.Operation{up("")}); err != nil || tx.ops[0].Key != "shop||" {
		t.Errorf("empty key: %v, stored %q", err, tx.ops[0].Key)
	}
	if err := s.Transact(ctx, "st", nil); err != nil {
		t.Errorf("no operations: %v", err)
	}
	wantFault(t, s.Transact(ctx, "st", []state.Operation{{Operation: "Upsert"}}), fault.Invalid, fault.BadOperation, "operation type Upsert not supported")
	wantFault(t, s.Transact(ctx, "st", []state.Operation{up("a||b")}), fault.Invalid, fault.IllegalKey, "a||b")
	err := s.Transact(ctx, "st", []state.Operation{up("a"), up("b"), up("c")})
	wantFault(t, err, fault.Invalid, fault.TooManyOps, "contains 3 operations")
	var limit *state.LimitError
	if !errors.As(err, &limit) || limit.Ops != 3 || limit.Max != 2 {
		t.Errorf("cause = %+v, want 3 of 2", limit)
	}
	if want := []string{"st transaction true", "st transaction true"}; !cmp.Equal(rec.got, want) {
		t.Errorf("recorded %v, want %v", rec.got, want)
	}
}

func TestItemMetadata(t *testing.T) {
	at := time.Date(2026, 11, 20, 9, 31, 15, 900, time.FixedZone("x", 3600))
	cases := []struct {
		name string
		item block.StateItem
		want map[string]string
	}{
		{"no expiry", block.StateItem{Exists: true}, nil},
		{"missing", block.StateItem{Expires: at}, nil},
		{"expires", block.StateItem{Exists: true, Expires: at}, map[string]string{"ttlExpireTime": "2026-11-20T08:31:15Z"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, state.ItemMetadata(c.item)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func BenchmarkGet(b *testing.B) {
	st := newStore()
	s := state.New(catalogOf(st), shop, nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Get(b.Context(), "st", "some-key", state.ReadOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func catalogOf(c block.State) *catalog.Store[block.State] {
	stores := catalog.NewStore[block.State](block.KindState)
	stores.Put(catalog.NewHandle[block.State](catalog.Info{Name: "st"}, c, &call.Target{}))
	return stores
}
