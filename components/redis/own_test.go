package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

func set(t testing.TB, s block.State, w block.StateWrite) {
	t.Helper()
	if err := s.Set(t.Context(), w); err != nil {
		t.Fatalf("Set(%s): %v", w.Key, err)
	}
}

func get(t testing.TB, s block.State, key string) block.StateItem {
	t.Helper()
	item, err := s.Get(t.Context(), key, block.StateRead{})
	if err != nil {
		t.Fatalf("Get(%s): %v", key, err)
	}
	return item
}

func wantCode(t testing.TB, what string, err error, code fault.Code) {
	t.Helper()
	if got := fault.Of(err); got != code {
		t.Errorf("%s: %v (%v), want %v", what, err, got, code)
	}
}

// daprWrites does by hand what a sidecar of Dapr does to write a value: an item with another
// version than the one given is refused, versions count from 1, and a first write leaves a mark.
// It returns the new version.
func daprWrites(t testing.TB, r *goredis.Client, key, version, value string, first bool) (int64, error) {
	t.Helper()
	stored, err := r.HGet(t.Context(), key, "version").Result()
	if err == nil && stored != version {
		return 0, errors.New("version mismatch")
	}
	fields := []any{"data", value}
	if first {
		fields = append(fields, "first-write", 0)
	}
	if err := r.HSet(t.Context(), key, fields...).Err(); err != nil {
		t.Fatal(err)
	}
	return r.HIncrBy(t.Context(), key, "version", 1).Result()
}

// What Dapr wrote is read, and goes on from its version.
func TestReadsDaprsFormat(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	for i, first := range []bool{false, true} {
		key := fmt.Sprint("app||k", i)
		for _, v := range []string{`{"a":1}`, "\x00\xff"} {
			version := "0"
			if item := get(t, s, key); item.Exists {
				version = item.ETag
			}
			if _, err := daprWrites(t, r, key, version, v, first); err != nil {
				t.Fatal(err)
			}
			if item := get(t, s, key); !item.Exists || string(item.Value) != v || !item.Expires.IsZero() {
				t.Fatalf("read %+v, want %q", item, v)
			}
		}
		item := get(t, s, key)
		if item.ETag != "2" {
			t.Errorf("etag %q, want the version Dapr counted, 2", item.ETag)
		}
		set(t, s, block.StateWrite{Key: key, Value: []byte("ours"), ETag: item.ETag})
		set(t, s, block.StateWrite{Key: key, Value: []byte("ours")})
		want := map[string]string{"data": "ours", "version": "4"}
		if first {
			want["first-write"] = "0" // Dapr's mark stays, for Dapr
		}
		if diff := cmp.Diff(want, r.HGetAll(t.Context(), key).Val()); diff != "" {
			t.Errorf("stored (-want +got):\n%s", diff)
		}
	}
	if _, err := daprWrites(t, r, "app||ttl", "0", "v", false); err != nil {
		t.Fatal(err)
	}
	r.Expire(t.Context(), "app||ttl", time.Hour)
	if left := time.Until(get(t, s, "app||ttl").Expires); left < 55*time.Minute || left > time.Hour {
		t.Errorf("an item Dapr wrote with a TTL of an hour expires in %v", left)
	}
}

// What we write is Dapr's format, and Dapr goes on with it.
func TestWritesDaprsFormat(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	ctx := t.Context()
	cases := []struct {
		name  string
		write block.StateWrite
		marks string
	}{
		{"plain", block.StateWrite{Value: []byte(`{"a":"ü"}`)}, ""},
		{"first write", block.StateWrite{Value: []byte{0, 255}, FirstWrite: true}, "0"},
		{"ttl", block.StateWrite{Value: []byte("v"), TTL: 90*time.Minute + 7*time.Millisecond}, ""},
		{"empty", block.StateWrite{}, ""},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			key := "app||" + tc.name
			tc.write.Key = key
			set(t, s, tc.write)
			version := get(t, s, key).ETag
			n, err := strconv.Atoi(version) // as Dapr reads it
			if err != nil || strconv.Itoa(n) != version {
				t.Fatalf("version %q: %v", version, err)
			}
			want := map[string]string{"data": string(tc.write.Value), "version": version}
			if tc.marks != "" {
				want["first-write"] = tc.marks
			}
			if diff := cmp.Diff(want, r.HGetAll(ctx, key).Val()); diff != "" {
				t.Errorf("stored (-want +got):\n%s", diff)
			}
			left := r.PTTL(ctx, key).Val()
			if ttl := tc.write.TTL; ttl == 0 && left >= 0 || ttl > 0 && (left > ttl || left <= ttl-time.Minute) {
				t.Errorf("lives %v, want %v", left, ttl)
			}
			next, err := daprWrites(t, r, key, version, "dapr", false)
			if err != nil || next != int64(n+1) {
				t.Errorf("Dapr's conditional write: version %d, %v; want %d", next, err, n+1)
			}
			wantCode(t, "our write after Dapr's", s.Set(ctx, block.StateWrite{Key: key, ETag: version}), fault.Conflict)
			if item := get(t, s, key); string(item.Value) != "dapr" || item.ETag != strconv.Itoa(n+1) {
				t.Errorf("after Dapr's write: %+v", item)
			}
		})
	}
}

// Strings are what very old versions of Dapr wrote.
func TestPlainStrings(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	ctx := t.Context()
	r.Set(ctx, "old", "value", time.Hour)
	item := get(t, s, "old")
	if !item.Exists || string(item.Value) != "value" || len(item.ETag) != 40 || item.Expires.IsZero() {
		t.Fatalf("read %+v, want value with etag and expiry", item)
	}
	wantCode(t, "first write", s.Set(ctx, block.StateWrite{Key: "old", FirstWrite: true}), fault.Conflict)
	r.Set(ctx, "old", "other", 0)
	wantCode(t, "etag of the earlier value", s.Set(ctx, block.StateWrite{Key: "old", ETag: item.ETag}), fault.Conflict)
	set(t, s, block.StateWrite{Key: "old", Value: []byte("new"), ETag: get(t, s, "old").ETag})
	if typ := r.Type(ctx, "old").Val(); typ != "hash" || string(get(t, s, "old").Value) != "new" {
		t.Errorf("after a write it is a %s with %q", typ, get(t, s, "old").Value)
	}
	r.Set(ctx, "old2", "value", 0)
	set(t, s, block.StateWrite{Key: "old2", Value: []byte("new")})
	r.Set(ctx, "old3", "value", 0)
	if err := s.Delete(ctx, block.StateDelete{Key: "old3", ETag: get(t, s, "old3").ETag}); err != nil {
		t.Errorf("delete by etag: %v", err)
	}
}

func TestForeignTypes(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	ctx := t.Context()
	r.LPush(ctx, "list", "a")
	r.HSet(ctx, "hash", "field", "a")
	r.HSet(ctx, "half", "version", "7")
	r.HSet(ctx, "odd", "data", "a", "version", "seven")
	for _, key := range []string{"list", "hash", "half"} {
		_, err := s.Get(ctx, key, block.StateRead{})
		wantCode(t, "read of "+key, err, fault.Unsupported)
		wantCode(t, "first write of "+key, s.Set(ctx, block.StateWrite{Key: key, FirstWrite: true}), fault.Conflict)
		wantCode(t, "write by etag of "+key, s.Set(ctx, block.StateWrite{Key: key, ETag: "1"}), fault.Conflict)
	}
	for _, key := range []string{"list", "hash", "half", "odd"} {
		set(t, s, block.StateWrite{Key: key, Value: []byte("new")})
		if item := get(t, s, key); string(item.Value) != "new" {
			t.Errorf("%s = %+v, want new", key, item)
		}
	}
	if n := r.HLen(ctx, "hash").Val(); n != 2 {
		t.Errorf("an overwritten hash has %d fields, want data and version", n)
	}
}

func TestMalformedETags(t *testing.T) {
	s := opened(t, "redisHost", servers.StartRedis(t).Addr)
	for _, etag := range []string{"x", "1.5", "01", "+1", " 1", "99999999999999999999", strings.Repeat("G", 40)} {
		wantCode(t, "Set with "+etag, s.Set(t.Context(), block.StateWrite{Key: "k", ETag: etag}), fault.BadEtag)
		wantCode(t, "Delete with "+etag, s.Delete(t.Context(), block.StateDelete{Key: "k", ETag: etag}), fault.BadEtag)
	}
}

func TestDefaultTTL(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr, "ttlInSeconds", "3600"), direct(t, srv.Addr)
	set(t, s, block.StateWrite{Key: "default"})
	set(t, s, block.StateWrite{Key: "own", TTL: time.Minute})
	if got := r.TTL(t.Context(), "default").Val(); got < 55*time.Minute || got > time.Hour {
		t.Errorf("an item written without TTL lives %v, want the store's hour", got)
	}
	if got := r.TTL(t.Context(), "own").Val(); got > time.Minute {
		t.Errorf("an item written with a TTL of a minute lives %v", got)
	}
	never := opened(t, "redisHost", srv.Addr, "ttlInSeconds", "-1")
	set(t, never, block.StateWrite{Key: "default"})
	if got := r.TTL(t.Context(), "default").Val(); got >= 0 {
		t.Errorf("an item of a store with TTL -1 lives %v, want for ever", got)
	}
}

// A TTL shorter than a second is kept; one shorter than a millisecond is not "for ever".
func TestShortTTL(t *testing.T) {
	s := opened(t, "redisHost", servers.StartRedis(t).Addr)
	for _, ttl := range []time.Duration{1, 150 * time.Millisecond} {
		set(t, s, block.StateWrite{Key: "k", Value: []byte("v"), TTL: ttl})
		waitFor(t, fmt.Sprint("the end of a TTL of ", ttl), func() bool { return !get(t, s, "k").Exists })
	}
}

// A server that forgot the scripts, or never knew them, gets their text. Writes of one key in a
// batch keep their order all the same, also when somebody teaches the server in the middle.
func TestForgottenScripts(t *testing.T) {
	srv := servers.StartRedis(t)
	s, other, r := opened(t, "redisHost", srv.Addr), opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	r.ConfigSet(t.Context(), "appendonly", "no")
	b := s.(block.StateBatch)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer func() { close(stop); wg.Wait() }()
	for _, f := range []func(){
		func() { r.ScriptFlush(context.Background()) },
		func() { _ = other.Set(context.Background(), block.StateWrite{Key: "other"}) },
	} {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					f()
				}
			}
		})
	}
	for round := range 20 {
		var ws []block.StateWrite
		for i := range 40 { // more than the server reads in one go
			ws = append(ws, block.StateWrite{Key: "same", Value: append(make([]byte, 16<<10), fmt.Sprint(round, ".", i)...)})
		}
		if errs := b.SetMany(t.Context(), ws); errs != nil {
			t.Fatal(errors.Join(errs...))
		}
		if got, want := string(get(t, s, "same").Value[16<<10:]), fmt.Sprint(round, ".", 39); got != want {
			t.Fatalf("the last of several writes is %s, want %s", got, want)
		}
	}
}

// A version does not come back after its key was deleted, however fast.
func TestVersionsDoNotReturn(t *testing.T) {
	s := opened(t, "redisHost", servers.StartRedis(t).Addr)
	seen := map[string]bool{}
	for range 200 {
		set(t, s, block.StateWrite{Key: "k"})
		set(t, s, block.StateWrite{Key: "k"})
		etag := get(t, s, "k").ETag
		if seen[etag] {
			t.Fatalf("etag %s came back", etag)
		}
		seen[etag] = true
		if err := s.Delete(t.Context(), block.StateDelete{Key: "k"}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStrongWrites(t *testing.T) {
	master := servers.StartRedis(t)
	replica := servers.StartRedis(t, "--replicaof", "127.0.0.1 "+strconv.Itoa(master.Port))
	s, r := opened(t, "redisHost", master.Addr), direct(t, replica.Addr)
	waitFor(t, "the replica", func() bool {
		info, _ := servers.RedisCommand(master.Port, "INFO", "replication")
		return strings.Contains(info, "state=online")
	})
	for i := range 50 {
		v := strconv.Itoa(i)
		set(t, s, block.StateWrite{Key: "k", Value: []byte(v), Strong: true})
		if got := r.HGet(t.Context(), "k", "data").Val(); got != v {
			t.Fatalf("after a strong write the replica has %q, want %q", got, v)
		}
	}
	errs := s.(block.StateBatch).SetMany(t.Context(), []block.StateWrite{{Key: "a", Value: []byte("1")}, {Key: "b", Value: []byte("1"), Strong: true}})
	if errs != nil || r.HGet(t.Context(), "b", "data").Val() != "1" {
		t.Errorf("strong batch: %v, the replica has %q", errs, r.HGet(t.Context(), "b", "data").Val())
	}
	wantCode(t, "strong write with an old etag", s.Set(t.Context(), block.StateWrite{Key: "k", ETag: "1", Strong: true}), fault.Conflict)
	replica.Freeze()
	defer replica.Thaw()
	err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("alone"), Strong: true})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("strong write with a frozen replica: %v (%v, sent %v), want unavailable, maybe", err, fault.Of(err), fault.SentOf(err))
	}
	set(t, s, block.StateWrite{Key: "k", Value: []byte("eventual")})
}

func TestClusterStrongBatch(t *testing.T) {
	nodes := servers.StartRedisCluster(t)
	s := opened(t, "redisHost", hosts(nodes), "redisType", "cluster")
	var ws []block.StateWrite
	for i := range 20 {
		ws = append(ws, block.StateWrite{Key: fmt.Sprint("k", i), Value: []byte("v"), Strong: true})
	}
	if errs := s.(block.StateBatch).SetMany(t.Context(), ws); errs != nil {
		t.Fatal(errors.Join(errs...))
	}
	for i := range ws {
		if item := get(t, s, ws[i].Key); string(item.Value) != "v" {
			t.Errorf("%s = %+v", ws[i].Key, item)
		}
	}
}

// A slot that moves is followed.
func TestClusterMovedSlot(t *testing.T) {
	nodes := servers.StartRedisCluster(t)
	s := opened(t, "redisHost", hosts(nodes), "redisType", "cluster")
	set(t, s, block.StateWrite{Key: "before", Value: []byte("v")})
	r := direct(t, nodes[0].Addr)
	slot := r.ClusterKeySlot(t.Context(), "moves").Val()
	to := nodes[0]
	if slot < 16384/3 {
		to = nodes[1]
	}
	id := direct(t, to.Addr).Do(t.Context(), "cluster", "myid").Val()
	for _, n := range append([]*servers.Redis{to}, nodes...) { // the new owner first: the others believe it
		if err := direct(t, n.Addr).Do(t.Context(), "cluster", "setslot", slot, "node", id).Err(); err != nil {
			t.Fatal(err)
		}
	}
	set(t, s, block.StateWrite{Key: "moves", Value: []byte("v")})
	if item := get(t, s, "moves"); string(item.Value) != "v" {
		t.Errorf("read %+v", item)
	}
	if n := direct(t, to.Addr).Exists(t.Context(), "moves").Val(); n != 1 {
		t.Error("the item is not at the slot's new owner")
	}
	waitFor(t, "a strong write to the moved slot", func() bool {
		err := s.Set(t.Context(), block.StateWrite{Key: "moves", Value: []byte("strong"), Strong: true})
		if err != nil && fault.SentOf(err) != fault.SentNever {
			t.Fatalf("%v, sent %v", err, fault.SentOf(err))
		}
		return err == nil
	})
}
