package nats_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

func set(t testing.TB, s block.State, key, value string) {
	t.Helper()
	if err := s.Set(t.Context(), block.StateWrite{Key: key, Value: []byte(value)}); err != nil {
		t.Fatalf("Set(%q): %v", key, err)
	}
}

// scanned is all of a scan, and its number of pages. No page may give a key twice.
func scanned(t testing.TB, s block.State, prefix string, limit int) (items map[string]block.StateItem, pages int) {
	t.Helper()
	items = map[string]block.StateItem{}
	for token := ""; ; {
		page, next, err := s.(block.StateScan).Scan(t.Context(), prefix, token, limit, false)
		if err != nil {
			t.Fatalf("Scan(%q, %q): %v", prefix, token, err)
		}
		if pages++; len(page) > limit {
			t.Fatalf("Scan gave %d items, %d were asked for", len(page), limit)
		}
		for _, item := range page {
			if !item.Exists || item.ETag == "" || !strings.HasPrefix(item.Key, prefix) {
				t.Errorf("Scan(%q) gave %+v", prefix, item)
			}
			items[item.Key] = item
		}
		if next == "" {
			return items, pages
		}
		token = next
	}
}

func wantKeys(t testing.TB, s block.State, prefix string, limit int, want ...string) {
	t.Helper()
	items, _ := scanned(t, s, prefix, limit)
	var got []string
	for k := range items {
		got = append(got, k)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("Scan(%q) by %d gave %q, want %q", prefix, limit, got, want)
	}
}

// Prefixes end anywhere in a key, also within a separator, and what looks like a wildcard is none.
func TestScanPrefixes(t *testing.T) {
	s := serverState(t, startServer(t).ClientURL(), "store")
	defer s.Close(t.Context())
	keys := []string{"a", "ab", "a||", "a||b", "a||bc", "a|||b", "a||b||c", "a||b||cd", "a||ü", "a||*", "a||>", "a||.", "b||a", "||", "||a", "*", "a||b|", "a|"}
	for _, k := range keys {
		set(t, s, k, "value of "+k)
	}
	prefixes := append([]string{"", "|", "a||b||", "a||\xc3", "c", "a||b||x", "a||=", "a||b.", "a|||"}, keys...)
	for _, p := range prefixes {
		var want []string
		for _, k := range keys {
			if strings.HasPrefix(k, p) {
				want = append(want, k)
			}
		}
		for _, limit := range []int{1, 3, 100} {
			wantKeys(t, s, p, limit, want...)
		}
	}
	items, _ := scanned(t, s, "a||b", 100)
	for k, item := range items {
		read, err := s.Get(t.Context(), k, block.StateRead{})
		if err != nil || item.ETag != read.ETag || string(item.Value) != string(read.Value) {
			t.Errorf("Scan gave %+v, Get gives %+v, %v", item, read, err)
		}
	}
	if _, _, err := s.(block.StateScan).Scan(t.Context(), strings.Repeat("ü", 3000)+"||", "", 1, false); fault.Of(err) != fault.Invalid {
		t.Errorf("a prefix longer than any key: %v, want invalid", err)
	}
}

// What is gone, has expired, or was put into the bucket by other tools under names that are no
// keys, is not given; neither are fences.
func TestScanLeavesOut(t *testing.T) {
	url := startServer(t).ClientURL()
	s := serverState(t, url, "store")
	defer s.Close(t.Context())
	set(t, s, "a||stays", "1")
	set(t, s, "a||removed", "1")
	if err := s.Delete(t.Context(), block.StateDelete{Key: "a||removed"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(t.Context(), block.StateWrite{Key: "a||short", Value: []byte("1"), TTL: 10 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	if err := s.Set(t.Context(), block.StateWrite{Key: "a||long", Value: []byte("1"), TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	if err := s.(block.StateFence).TransactFenced(t.Context(), "a||fence", 1, nil); err != nil {
		t.Fatal(err)
	}
	kv, err := admin(t, url).KeyValue(t.Context(), "store")
	if err != nil {
		t.Fatal(err)
	}
	for _, foreign := range []string{"a.=4", "a.=6A", "a.b=c"} {
		if _, err := kv.PutString(t.Context(), foreign, "foreign"); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the end of an item", func() bool {
		item, err := s.Get(t.Context(), "a||short", block.StateRead{})
		return err == nil && !item.Exists
	})
	wantKeys(t, s, "a||", 10, "a||stays", "a||long")
	items, _ := scanned(t, s, "", 10)
	if end := items["a||long"].Expires; time.Until(end) < 50*time.Minute || time.Until(end) > time.Hour {
		t.Errorf("the item ends %v, want in an hour", end)
	}
	page, _, err := s.(block.StateScan).Scan(t.Context(), "a||stays", "", 1, true)
	if err != nil || len(page) != 1 || page[0].Value != nil || page[0].ETag == "" {
		t.Errorf("keys only: %+v, %v", page, err)
	}
}

func TestScanTokens(t *testing.T) {
	url := startServer(t).ClientURL()
	s, other := serverState(t, url, "store"), serverState(t, url, "other")
	defer s.Close(t.Context())
	defer other.Close(t.Context())
	for i := range 3 {
		set(t, s, "a||"+strconv.Itoa(i), "v")
	}
	_, token, err := s.(block.StateScan).Scan(t.Context(), "a||", "", 1, false)
	if err != nil || token == "" {
		t.Fatalf("the first of three pages: token %q, %v", token, err)
	}
	refuse := func(what string, in block.State, prefix, token string) {
		t.Helper()
		_, _, err := in.(block.StateScan).Scan(t.Context(), prefix, token, 1, false)
		if fault.Of(err) != fault.Invalid || fault.ReasonOf(err) != fault.BadToken {
			t.Errorf("%s: %v (%v), want a bad token", what, err, fault.Of(err))
		}
	}
	refuse("another prefix", s, "a||1", token)
	refuse("another store", other, "a||", token)
	for _, bad := range []string{"x", token + "A", token[1:], "AAAAAAAAAAAAAAAAAAAAAA", "0", token + "\n", strings.Repeat("z", 5000)} {
		refuse(bad[:1], s, "a||", bad)
	}
	for _, limit := range []int{0, -1} {
		if _, _, err := s.(block.StateScan).Scan(t.Context(), "", "", limit, false); fault.Of(err) != fault.Invalid {
			t.Errorf("a page of %d: %v, want invalid", limit, err)
		}
	}
}

func FuzzScanToken(f *testing.F) {
	s := serverState(f, startServer(f).ClientURL(), "store")
	f.Cleanup(func() { _ = s.Close(context.Background()) })
	set(f, s, "a", "v")
	set(f, s, "b", "v")
	_, token, err := s.(block.StateScan).Scan(f.Context(), "", "", 1, false)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("")
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		_, _, err := s.(block.StateScan).Scan(t.Context(), "", text, 1, false)
		if text != "" && text != token && fault.ReasonOf(err) != fault.BadToken {
			t.Errorf("token %q: %v, want a bad token", text, err)
		}
	})
}

// Every item that stays is given although all of them are written again and again meanwhile, and
// the node is killed between pages.
func TestScanWhileWritten(t *testing.T) {
	s := serverState(t, startServer(t).ClientURL(), "store")
	defer s.Close(t.Context())
	const keys = 500
	write := func(round int) {
		ws := make([]block.StateWrite, keys)
		for i := range ws {
			ws[i] = block.StateWrite{Key: fmt.Sprintf("a||%d", (i*7+round)%keys), Value: []byte("v")}
		}
		if errs := s.(block.StateBatch).SetMany(t.Context(), ws); errs != nil {
			t.Errorf("SetMany: %v", errs)
		}
	}
	write(0)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 1; i < 4; i++ {
			write(i)
		}
		<-stop
	})
	items, pages := scanned(t, s, "a||", 50)
	close(stop)
	wg.Wait()
	if len(items) != keys {
		t.Errorf("%d items were given in %d pages, want %d", len(items), pages, keys)
	}
}

// Pages are bounded in bytes too.
func TestScanLargeValues(t *testing.T) {
	s := embeddedState(t, nodeDir(t), "statestore")
	defer s.Close(t.Context())
	value := strings.Repeat("x", 3<<20)
	var want []string
	for i := range 8 {
		set(t, s, "a||"+strconv.Itoa(i), value)
		want = append(want, "a||"+strconv.Itoa(i))
	}
	page, next, err := s.(block.StateScan).Scan(t.Context(), "a||", "", 100, false)
	if err != nil || len(page) >= 8 || next == "" {
		t.Errorf("the first page of 24 MiB has %d items, %v", len(page), err)
	}
	wantKeys(t, s, "a||", 100, want...)
}

// A bucket that somebody made to remember earlier values gives the last ones only.
func TestScanOfHistory(t *testing.T) {
	url := startServer(t).ClientURL()
	if _, err := admin(t, url).CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "store", History: 5}); err != nil {
		t.Fatal(err)
	}
	s := serverState(t, url, "store")
	defer s.Close(t.Context())
	for i := range 4 {
		set(t, s, "a", strconv.Itoa(i))
		set(t, s, "b", strconv.Itoa(i))
	}
	items, _ := scanned(t, s, "", 3)
	for _, k := range []string{"a", "b"} {
		if string(items[k].Value) != "3" {
			t.Errorf("%s = %q, want 3", k, items[k].Value)
		}
	}
}
