package redis_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

func onePage(t testing.TB, s block.State, prefix, token string, limit int) (keys []string, next string, err error) {
	t.Helper()
	items, next, err := s.(block.StateScan).Scan(t.Context(), prefix, token, limit, false)
	if len(items) > limit {
		t.Fatalf("Scan gave %d items, %d were asked for", len(items), limit)
	}
	for _, it := range items {
		if !it.Exists || it.ETag == "" || !strings.HasPrefix(it.Key, prefix) || slices.Contains(keys, it.Key) {
			t.Fatalf("Scan(%q) gave %+v on one page with %q", prefix, it, keys)
		}
		keys = append(keys, it.Key)
	}
	return keys, next, err
}

// scanned are the keys of a whole scan, sorted. between is called after each page.
func scanned(t testing.TB, s block.State, prefix string, limit int, between func()) []string {
	t.Helper()
	var all []string
	for token := ""; ; {
		keys, next, err := onePage(t, s, prefix, token, limit)
		if err != nil {
			t.Fatalf("Scan(%q): %v", prefix, err)
		}
		if all = append(all, keys...); next == "" {
			slices.Sort(all)
			return slices.Compact(all)
		}
		token = next
		if between != nil {
			between()
		}
	}
}

func wantBadToken(t testing.TB, what string, err error) {
	t.Helper()
	if fault.Of(err) != fault.Invalid || fault.ReasonOf(err) != fault.BadToken {
		t.Errorf("%s: %v (%v), want a bad token", what, err, fault.Of(err))
	}
}

// Items are hashes in the format and the strings of old versions of Dapr; nothing else.
func TestScanOfForeignKeys(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	set(t, s, block.StateWrite{Key: "a||item", Value: []byte("v")})
	r.Set(t.Context(), "a||string", "old", 0)
	r.HSet(t.Context(), "a||other", "field", "v")
	r.HSet(t.Context(), "a||half", "data", "v")
	r.LPush(t.Context(), "a||list", "v")
	r.SAdd(t.Context(), "a||set", "v")
	r.ZAdd(t.Context(), "a||sorted", goredis.Z{Member: "v"})
	r.XAdd(t.Context(), &goredis.XAddArgs{Stream: "a||stream", Values: []string{"a", "b"}})
	if err := s.(block.StateFence).TransactFenced(t.Context(), "a||fence", 7, nil); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"", "a||"} {
		if got := scanned(t, s, prefix, 100, nil); !slices.Equal(got, []string{"a||item", "a||string"}) {
			t.Errorf("Scan(%q) gave %q", prefix, got)
		}
	}
	for _, keysOnly := range []bool{true, false} {
		items, _, err := s.(block.StateScan).Scan(t.Context(), "a||s", "", 10, keysOnly)
		if err != nil || len(items) != 1 || items[0].ETag != get(t, s, "a||string").ETag || (string(items[0].Value) == "old") == keysOnly {
			t.Errorf("the string came as %+v, %v", items, err)
		}
	}
}

// The server's table grows and shrinks during a scan; what stays is given all the same, also when
// pages are smaller than what the server gives at once.
func TestScanWhileTheTableChanges(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	r.ConfigSet(t.Context(), "appendonly", "no")
	var want []string
	for i := range 300 {
		key := fmt.Sprintf("a||%03d", i)
		want = append(want, key)
		r.HSet(t.Context(), key, "data", "v", "version", "1")
	}
	const grow = `for i = 1, 20000 do redis.call('SET', 'b||' .. i, 'v') end`
	const shrink = `for i = 1, 20000 do redis.call('DEL', 'b||' .. i) end`
	for _, limit := range []int{1, 2, 7, 50} {
		turn := 0
		got := scanned(t, s, "a||", limit, func() {
			if turn++; turn > 6 {
				return
			}
			if err := r.Eval(t.Context(), []string{shrink, grow}[turn%2], nil).Err(); err != nil && err != goredis.Nil { //nolint:errorlint // the library's
				t.Fatal(err)
			}
		})
		if !slices.Equal(got, want) {
			t.Errorf("%d of %d keys were given by pages of %d", len(got), len(want), limit)
		}
	}
}

// A token ends with the process that gave its cursor: another one's table has another order.
func TestScanTokenOfRestartedServer(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr)
	for i := range 50 {
		set(t, s, block.StateWrite{Key: fmt.Sprint("k", i)})
	}
	_, token, err := onePage(t, s, "", "", 5)
	if err != nil || token == "" {
		t.Fatalf("the first page: %q, %v", token, err)
	}
	if _, _, err := onePage(t, s, "", token, 5); err != nil {
		t.Errorf("the same server: %v", err)
	}
	_, _, err = onePage(t, opened(t, "redisHost", srv.Addr, "redisDB", "1"), "", token, 5)
	wantBadToken(t, "another database", err)
	_, _, err = onePage(t, s, "k", token, 5)
	wantBadToken(t, "another prefix", err)
	srv.Kill()
	srv.Restart(t)
	waitFor(t, "an answer", func() bool {
		_, _, err = onePage(t, s, "", token, 5)
		return fault.Of(err) != fault.Unavailable
	})
	wantBadToken(t, "the server restarted", err)
	if got := scanned(t, s, "", 5, nil); len(got) != 50 {
		t.Errorf("another scan gave %d items", len(got))
	}
	for _, limit := range []int{0, -1} {
		_, _, err := s.(block.StateScan).Scan(t.Context(), "", "", limit, false)
		wantCode(t, fmt.Sprint("a page of ", limit), err, fault.Invalid)
	}
}

// Pages are bounded in bytes too.
func TestScanLargeValues(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr, "readTimeout", "20s")
	const n, size = 300, 64 << 10
	for i := range n {
		set(t, s, block.StateWrite{Key: fmt.Sprint("k", i), Value: make([]byte, size)})
	}
	keys, next, err := onePage(t, s, "", "", 1000)
	if err != nil || next == "" || len(keys)*size > 3*block.PageBytes {
		t.Errorf("the first page of %d MiB has %d, %v", n*size>>20, len(keys)*size>>20, err)
	}
	if got := scanned(t, s, "", 1000, nil); len(got) != n {
		t.Errorf("%d items were given, want %d", len(got), n)
	}
}

// What a scan cannot know for certain in a cluster it refuses: while slots are being moved, and
// across a change of who has them.
func TestClusterScanWhileSlotsMove(t *testing.T) {
	nodes := servers.StartRedisCluster(t)
	s := opened(t, "redisHost", hosts(nodes), "redisType", "cluster")
	clients := make([]*goredis.Client, len(nodes))
	ids := make([]string, len(nodes))
	for i, n := range nodes {
		clients[i] = direct(t, n.Addr)
		id, err := clients[i].Do(t.Context(), "cluster", "myid").Text()
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = id
	}
	var want []string
	for i := range 200 {
		key := fmt.Sprintf("k%03d", i)
		want = append(want, key)
		set(t, s, block.StateWrite{Key: key, Value: []byte("v")})
	}
	if got := scanned(t, s, "k", 7, nil); !slices.Equal(got, want) {
		t.Fatalf("%d of %d keys were given", len(got), len(want))
	}
	_, token, err := onePage(t, s, "k", "", 7)
	if err != nil || token == "" {
		t.Fatalf("the first page: %v", err)
	}
	slot := int(clients[0].ClusterKeySlot(t.Context(), "k000").Val())
	from := slot * len(nodes) / 16384
	to := (from + 1) % len(nodes)
	do := func(i int, args ...any) {
		t.Helper()
		if err := clients[i].Do(t.Context(), args...).Err(); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	do(to, "cluster", "setslot", slot, "importing", ids[from])
	do(from, "cluster", "setslot", slot, "migrating", ids[to])
	var moved error
	for token := ""; ; {
		_, token, moved = onePage(t, s, "k", token, 7)
		if moved != nil || token == "" {
			break
		}
	}
	wantCode(t, "a scan while a slot is moved", moved, fault.Unavailable)
	for _, key := range clients[from].ClusterGetKeysInSlot(t.Context(), slot, 100).Val() {
		do(from, "migrate", "127.0.0.1", nodes[to].Port, key, 0, 5000)
	}
	for i := range nodes {
		do(i, "cluster", "setslot", slot, "node", ids[to])
	}
	waitFor(t, "all to agree", func() bool {
		var err error
		for token := ""; ; {
			if _, token, err = onePage(t, s, "k", token, 7); err != nil || token == "" {
				return err == nil
			}
		}
	})
	_, _, err = onePage(t, s, "k", token, 7)
	wantBadToken(t, "a token from before a slot was moved", err)
	if got := scanned(t, s, "k", 7, nil); !slices.Equal(got, want) {
		t.Errorf("%d of %d keys were given after a slot was moved", len(got), len(want))
	}
}

func FuzzScanToken(f *testing.F) {
	srv := servers.StartRedis(f)
	s := open(f, "redisHost", srv.Addr)
	f.Cleanup(func() { _ = s.Close(context.Background()) })
	for i := range 30 {
		set(f, s, block.StateWrite{Key: strconv.Itoa(i)})
	}
	_, token, err := onePage(f, s, "", "", 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(token)
	f.Add("")
	f.Add("AAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, text string) {
		_, _, err := onePage(t, s, "", text, 1)
		if text != "" && text != token && fault.ReasonOf(err) != fault.BadToken {
			t.Errorf("token %q: %v, want a bad token", text, err)
		}
	})
}

// Numbers beyond what the server's scripts can count are compared exactly.
func TestFenceNumbers(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	f := s.(block.StateFence)
	before := uint64(0)
	for _, n := range []uint64{1, 9, 10, 99, 100, 1 << 53, 1<<53 + 1, 1<<53 + 2, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64 - 1, math.MaxUint64} {
		ops := []block.StateOp{{StateWrite: block.StateWrite{Key: "k", Value: []byte(strconv.FormatUint(n, 10))}}}
		if err := f.TransactFenced(t.Context(), "f", n, ops); err != nil {
			t.Fatalf("epoch %d: %v", n, err)
		}
		err := f.TransactFenced(t.Context(), "f", before, []block.StateOp{{StateWrite: block.StateWrite{Key: "k"}}})
		if fault.Of(err) != fault.Conflict || fault.ReasonOf(err) != fault.Fenced {
			t.Errorf("epoch %d after %d: %v, want fenced", before, n, err)
		}
		if got := string(get(t, s, "k").Value); got != strconv.FormatUint(n, 10) {
			t.Errorf("the item is of %s, want %d", got, n)
		}
		before = n
	}
	if got := r.HGetAll(t.Context(), "mecha||fence||f").Val(); len(got) != 1 || got["fence"] != "18446744073709551615" {
		t.Errorf("the fence is stored as %v", got)
	}
	strong := []block.StateOp{{StateWrite: block.StateWrite{Key: "k", Value: []byte("strong"), Strong: true}}}
	if err := f.TransactFenced(t.Context(), "f", before, strong); err != nil || string(get(t, s, "k").Value) != "strong" {
		t.Errorf("a strong write: %v", err)
	}
	r.LPush(t.Context(), "mecha||fence||list", "v")
	wantCode(t, "a fence of another kind", f.TransactFenced(t.Context(), "list", 1, nil), fault.Unsupported)
}

// A server whose memory is full refuses a fenced transaction before it changes anything.
func TestFenceOfFullServer(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	f := s.(block.StateFence)
	if err := f.TransactFenced(t.Context(), "f", 1, nil); err != nil {
		t.Fatal(err)
	}
	r.ConfigSet(t.Context(), "maxmemory", "1")
	ops := []block.StateOp{{StateWrite: block.StateWrite{Key: "k"}}}
	wantCode(t, "a full server", f.TransactFenced(t.Context(), "f", 2, ops), fault.Exhausted)
	wantCode(t, "a full server, alone", f.TransactFenced(t.Context(), "f", 2, nil), fault.Exhausted)
	r.ConfigSet(t.Context(), "maxmemory", "0")
	if err := f.TransactFenced(t.Context(), "f", 1, ops); err != nil {
		t.Errorf("the number was raised although the transaction was refused: %v", err)
	}
}
