package blocktest

import (
	"encoding/base64"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// scanning is a subtest of a store that can go through its keys.
type scanning struct {
	*stateTest
	scan block.StateScan
}

// stateScan gives the scan part of a suite to stores that have one.
func stateScan(run func(*scanning)) func(*stateTest) {
	return func(s *stateTest) {
		sc, ok := s.store.(block.StateScan)
		if !ok {
			notOffered(s.T, "the store cannot go through its keys")
			return
		}
		run(&scanning{s, sc})
	}
}

// scanTime bounds a whole scan: a store with many foreign keys may need many pages.
const scanTime = 3 * patience

// page reads one page and checks what holds for every page.
func (s *scanning) page(prefix, token string, limit int, keysOnly bool) ([]block.StateItem, string) {
	s.Helper()
	items, next, err := s.scan.Scan(s.ctx(), prefix, token, limit, keysOnly)
	if err != nil {
		s.Fatalf("Scan(%s, %q, %d): %v", show(prefix), token, limit, err)
	}
	s.check(items, prefix, limit)
	return items, next
}

func (s *scanning) check(items []block.StateItem, prefix string, limit int) {
	s.Helper()
	if len(items) > limit {
		s.Fatalf("Scan(%s) gave %d items, at most %d were asked for", show(prefix), len(items), limit)
	}
	seen := map[string]bool{}
	for _, it := range items {
		switch {
		case !strings.HasPrefix(it.Key, prefix):
			s.Fatalf("Scan(%s) gave the foreign key %s", show(prefix), show(it.Key))
		case !it.Exists || it.ETag == "":
			s.Fatalf("Scan(%s) gave %s with Exists %v and etag %q", show(prefix), show(it.Key), it.Exists, it.ETag)
		case seen[it.Key]:
			s.Fatalf("Scan(%s) gave %s twice in a page", show(prefix), show(it.Key))
		}
		seen[it.Key] = true
	}
}

// all reads all pages. Of a key given twice the later item counts.
func (s *scanning) all(prefix string, limit int, keysOnly bool) map[string]block.StateItem {
	s.Helper()
	out := map[string]block.StateItem{}
	token, pages := "", 0
	for end := time.Now().Add(scanTime); ; pages++ {
		items, next := s.page(prefix, token, limit, keysOnly)
		for _, it := range items {
			out[it.Key] = it
		}
		if next == "" {
			return out
		}
		if time.Now().After(end) {
			s.Fatalf("Scan(%s) with limit %d has not ended after %d pages in %v", show(prefix), limit, pages, scanTime)
		}
		token = next
	}
}

// gives checks that a scan gives exactly these keys.
func (s *scanning) gives(prefix string, limit int, want []string) {
	s.Helper()
	got := slices.Sorted(maps.Keys(s.all(prefix, limit, true)))
	want = slices.Clone(want)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		s.Fatalf("Scan(%s) with limit %d gave\n%q, want\n%q", show(prefix), limit, got, want)
	}
}

// fill writes items with values that begin with their keys.
func (s *scanning) fill(keys []string, size int) {
	s.Helper()
	ws := make([]block.StateWrite, len(keys))
	for i, k := range keys {
		ws[i] = block.StateWrite{Key: k, Value: append([]byte(k), noise(size)...)}
	}
	b, ok := s.store.(block.StateBatch)
	if !ok {
		for _, w := range ws {
			s.set(w)
		}
		return
	}
	for part := range slices.Chunk(ws, 500) {
		if errs := b.SetMany(s.ctx(), part); errs != nil {
			s.Fatalf("SetMany of %d keys: %v", len(part), errs)
		}
	}
}

func scanPrefix(s *scanning) {
	s.gives(s.key(""), 10, nil)
	var mine, every []string
	for _, k := range awkward {
		mine = append(mine, s.key(k))
	}
	every = append(every, mine...)
	// Neighbours of the prefix, for which a careless pattern or order would take it.
	for _, k := range []string{s.prefix, s.prefix + "|", s.prefix + "|a", s.prefix + "|}", s.prefix + "a||a", strings.ToUpper(s.prefix) + "||a", "a" + s.key("a"),
		s.prefix + "|| a", s.prefix[:len(s.prefix)-1] + "~||a", s.prefix[:len(s.prefix)-1]} {
		if k != s.key(" a") {
			every = append(every, k)
		}
	}
	s.fill(every, 0)
	defer func() {
		for _, k := range every[len(mine):] { // some lie outside of what is unique to the subtest
			if err := s.store.Delete(s.ctx(), block.StateDelete{Key: k}); err != nil {
				s.Errorf("Delete(%s): %v", show(k), err)
			}
		}
	}()
	prefixes := []string{"", "b", "a||||b~", "zzz", "|", "=4", "\t", "\n", "\u0301", "🙂🙂", strings.Repeat("p", 1000)}
	for _, k := range awkward {
		prefixes = append(prefixes, k)
		if r := []rune(k); len(r) > 1 {
			prefixes = append(prefixes, string(r[:len(r)-1]))
		}
	}
	for _, p := range prefixes {
		var want []string
		for _, k := range every {
			if strings.HasPrefix(k, s.key(p)) {
				want = append(want, k)
			}
		}
		s.gives(s.key(p), 1000, want)
		if len(p) < 2 {
			s.gives(s.key(p), 3, want)
		}
	}
}

func scanPages(s *scanning) {
	const n = 17
	var keys []string
	for i := range n {
		keys = append(keys, s.key(fmt.Sprintf("p/%d", i)))
	}
	s.fill(keys, 10)
	if _, ok := s.store.(block.StateTTL); ok {
		s.set(block.StateWrite{Key: keys[3], Value: []byte("v"), TTL: time.Hour})
	}
	for limit := 1; limit <= n+2; limit++ {
		s.gives(s.key("p/"), limit, keys)
	}
	s.gives(s.key("p/"), 1_000_000, keys)
	whole := s.all("", 1000, true)
	for _, k := range keys {
		if _, ok := whole[k]; !ok {
			s.Errorf("a scan of all keys left out %s", show(k))
		}
	}

	// Items are those that Get gives, and belong to the caller.
	for k, it := range s.all(s.key("p/"), 5, false) {
		want := s.get(k)
		if string(it.Value) != string(want.Value) || it.ETag != want.ETag || !it.Expires.Equal(want.Expires) {
			s.Errorf("Scan gave %+v, want %+v as Get says", it, want)
		}
		for i := range it.Value {
			it.Value[i] = '?'
		}
		if again := s.get(k); string(again.Value) != string(want.Value) {
			s.Errorf("what a scan gave shares memory with the store")
		}
	}
	for k, it := range s.all(s.key("p/"), 5, true) {
		want := s.get(k)
		if len(it.Value) > 0 && string(it.Value) != string(want.Value) || it.ETag != want.ETag || !it.Expires.Equal(want.Expires) {
			s.Errorf("Scan of keys only gave %+v, want %+v as Get says", it, want)
		}
	}
	for _, k := range keys {
		if err := s.store.Delete(s.ctx(), block.StateDelete{Key: k}); err != nil {
			s.Fatalf("Delete: %v", err)
		}
	}
	s.gives(s.key("p/"), 5, nil)
}

// scanLarge goes through values of which a page cannot have many.
func scanLarge(s *scanning) {
	var keys []string
	for i := range 12 {
		keys = append(keys, s.key(fmt.Sprint("big/", i)))
		s.fill(keys[i:], 1<<20)
	}
	got := s.all(s.key("big/"), 1000, false)
	for _, k := range keys {
		if it := got[k]; len(it.Value) != len(k)+1<<20 || !strings.HasPrefix(string(it.Value), k) {
			s.Errorf("%s came with %d bytes", show(k), len(it.Value))
		}
	}
	if len(got) != len(keys) {
		s.Errorf("%d items, want %d", len(got), len(keys))
	}
}

func scanTokens(s *scanning) {
	var keys []string
	for i := range 40 {
		keys = append(keys, s.key(fmt.Sprintf("p/%d", i)), s.key(fmt.Sprintf("q/%d", i)))
	}
	s.fill(keys, 0)
	long := strings.Repeat("A", 1<<16)
	for _, token := range []string{"garbage", "0", "1", "-1", "17", "18446744073709551616", " ", "\x00", "%", "ü", "\xff", "AA", "AAAA", "AAAAAAAA", "AAAAAAAAAAAA", "{}", "null",
		keys[0], base64.RawURLEncoding.EncodeToString([]byte(keys[0])), base64.StdEncoding.EncodeToString(noise(16)), long, "' OR 1=1 --"} {
		_, _, err := s.scan.Scan(s.ctx(), s.key("p/"), token, 5, true)
		wantBadToken(s, fmt.Sprintf("Scan with token %s", show(token)), err)
	}
	token := ""
	for range 1000 { // the first page may be the last only for a store that ignores the limit
		if _, token = s.page(s.key("p/"), token, 1, true); token != "" {
			break
		}
	}
	if token == "" {
		s.Fatalf("80 items and no second page of one")
	}
	// What resembles a token, or is one of another scan, is refused or names some place in this.
	for i := range len(token) {
		changed := []byte(token)
		changed[i] ^= 1 << (i % 7)
		s.tries(s.key("p/"), string(changed))
	}
	for _, other := range []string{token + token, token[:len(token)-1], token[1:], token + "A", token + "=", token + " ", strings.ToLower(token), token + long} {
		s.tries(s.key("p/"), other)
	}
	for _, prefix := range []string{s.key("q/"), s.key(""), s.key("p/1"), s.key("nobody")} {
		s.tries(prefix, token)
	}
}

// tries reads a page whose token may be refused.
func (s *scanning) tries(prefix, token string) {
	s.Helper()
	items, _, err := s.scan.Scan(s.ctx(), prefix, token, 5, true)
	if err != nil {
		wantBadToken(s, fmt.Sprintf("Scan of %s with token %s", show(prefix), show(token)), err)
		return
	}
	s.check(items, prefix, 5)
}

func wantBadToken(s *scanning, what string, err error) {
	s.Helper()
	if fault.Of(err) != fault.Invalid || fault.ReasonOf(err) != fault.BadToken {
		s.Errorf("%s: %v (%v, reason %q), want %v with reason %q", what, err, fault.Of(err), fault.ReasonOf(err), fault.Invalid, fault.BadToken)
	}
}

func scanExpired(s *scanning) {
	if _, ok := s.store.(block.StateTTL); !ok {
		return
	}
	var lives, dies []string
	for i := range 12 {
		k := s.key(fmt.Sprint("p/", i))
		w := block.StateWrite{Key: k, Value: []byte(k)}
		switch i % 3 {
		case 0:
			w.TTL = time.Second
			dies = append(dies, k)
		case 1:
			w.TTL = time.Hour
			fallthrough
		default:
			lives = append(lives, k)
		}
		s.set(w)
	}
	for _, k := range dies {
		waitUntil(s, func() string { return show(k) + " with a TTL of 1s is there" }, func() bool { return !s.get(k).Exists })
	}
	for _, limit := range []int{1, 2, 5, 100} {
		s.gives(s.key("p/"), limit, lives)
	}
}

// scanChanging scans while others write: what is there all the time is given, what was gone
// before is not.
func scanChanging(s *scanning) {
	name := func(kind string, i int) string { return s.key(fmt.Sprintf("p/%02x/%s", i*37%251, kind)) }
	var stable, gone []string
	for i := range 60 {
		stable, gone = append(stable, name("stable", i)), append(gone, name("gone", i))
	}
	s.fill(append(slices.Clone(gone), stable...), 4)
	for _, k := range gone {
		if err := s.store.Delete(s.ctx(), block.StateDelete{Key: k}); err != nil {
			s.Fatalf("Delete: %v", err)
		}
	}
	var over atomic.Bool
	var written atomic.Int64
	var writers sync.WaitGroup
	stop := func() { over.Store(true); writers.Wait() }
	defer stop()
	for w := range 3 {
		random := rand.New(rand.NewPCG(uint64(w), 1))
		writers.Go(func() {
			for !over.Load() {
				k := name(fmt.Sprint("churn", w), random.IntN(60))
				var err error
				switch random.IntN(3) {
				case 0:
					err = s.store.Delete(s.ctx(), block.StateDelete{Key: k})
				case 1:
					k = stable[random.IntN(len(stable))]
					fallthrough
				default:
					err = s.store.Set(s.ctx(), block.StateWrite{Key: k, Value: append([]byte(k), noise(4)...)})
				}
				if err != nil {
					s.Errorf("a write during scans: %v", err)
					written.Add(1 << 32)
					return
				}
				written.Add(1)
			}
		})
	}
	for round := 0; round < 12 || written.Load() < 100; round++ {
		limit := 1 + round%12*3
		got := s.all(s.key("p/"), limit, round%4 == 3)
		for _, k := range stable {
			if _, ok := got[k]; !ok {
				s.Fatalf("a scan with limit %d left out %s, which was there all the time (%d items given)", limit, show(k), len(got))
			}
		}
		for k, it := range got {
			if strings.HasSuffix(k, "/gone") {
				s.Fatalf("a scan gave %s, which was removed before", show(k))
			}
			if round%4 != 3 && !strings.HasPrefix(string(it.Value), k) {
				s.Fatalf("a scan gave %s with another's value %s", show(k), show(string(it.Value)))
			}
		}
	}
	stop()
	// Once it is quiet the scan gives what Get gives.
	for k, it := range s.all(s.key("p/"), 7, false) {
		if want := s.get(k); !want.Exists || it.ETag != want.ETag {
			s.Errorf("Scan gave %+v, Get gives %+v", it, want)
		}
	}
}

// scanMany goes through thousands of keys. The cheapest page tells what a page takes.
func scanMany(s *scanning) {
	const n, size, limit = 3000, 2 << 10, 10
	var keys []string
	for i := range n {
		keys = append(keys, s.key(fmt.Sprintf("many/%d", i)))
	}
	s.fill(keys, size)
	s.gives(s.key("many/"), 1000, keys)
	s.gives(s.key("many/"), 190, keys)
	s.gives(s.key("many/29"), 7, slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return !strings.HasPrefix(k, s.key("many/29")) }))

	least, token := uint64(1<<62), ""
	for range 8 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var items []block.StateItem
		items, token = s.page(s.key("many/"), token, limit, false)
		runtime.ReadMemStats(&after)
		if len(items) > 0 {
			least = min(least, after.TotalAlloc-before.TotalAlloc)
		}
		if token == "" {
			break
		}
	}
	if least > n*size/4 && least != 1<<62 {
		s.Errorf("a page of %d items of %d bytes takes %d bytes of memory: as if all %d were read", limit, size, least, n)
	}
}
