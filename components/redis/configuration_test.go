//go:build unix

package redis_test

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/redis"
	"github.com/mecha-project/mecha/test/servers"
	"github.com/mecha-project/mecha/test/untested"
)

func openConfiguration(t testing.TB, items ...string) block.Configuration {
	t.Helper()
	c := redis.DefaultConfigurationConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	s, err := redis.NewConfiguration(block.Env{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}, c)
	if err != nil {
		t.Fatalf("NewConfiguration: %v", err)
	}
	return s
}

// place is a server's database, behind a gate.
func place(t *testing.T, srv *servers.Redis, more ...string) blocktest.ConfigurationPlace {
	r, g := direct(t, srv.Addr), newGate(t, srv.Addr)
	set := func(key, value string) {
		if err := r.Set(t.Context(), key, value, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	return blocktest.ConfigurationPlace{
		Open: func() block.Configuration {
			return openConfiguration(t, append([]string{"redisHost", g.l.Addr().String(), "dialTimeout", "1s"}, more...)...)
		},
		Set: set,
		Delete: func(key string) {
			if err := r.Del(t.Context(), key).Err(); err != nil {
				t.Fatal(err)
			}
		},
		Keys: []string{"*", "a*b", "[x]", "?", "with space", "ünï", "a||b", "new\nline", "__keyspace@0__:a", ":"},
		Interrupt: func(meanwhile func()) {
			g.set(false)
			meanwhile()
			g.set(true)
		},
	}
}

func TestConfiguration(t *testing.T) {
	srv := servers.StartRedis(t)
	r := direct(t, srv.Addr)
	r.HSet(t.Context(), "app||state", "data", "v") // not an item
	r.LPush(t.Context(), "list", "v")
	blocktest.Configuration(t, func(t *testing.T) blocktest.ConfigurationPlace { return place(t, srv) })
}

func TestSentinelConfiguration(t *testing.T) {
	master := servers.StartRedis(t)
	sentinel := servers.StartSentinel(t, master.Port)
	blocktest.Configuration(t, func(t *testing.T) blocktest.ConfigurationPlace {
		p := place(t, master)
		p.Interrupt = nil
		p.Open = func() block.Configuration {
			return openConfiguration(t, "redisHost", sentinel.Addr, "failover", "true", "sentinelMasterName", "mymaster")
		}
		return p
	})
}

func TestConfigurationFormat(t *testing.T) {
	srv := servers.StartRedis(t)
	s := openConfiguration(t, "redisHost", srv.Addr, "redisDB", "3")
	defer s.Close(context.Background())
	db := goredis.NewClient(&goredis.Options{Addr: srv.Addr, DB: 3, Protocol: 2, DisableIdentity: true})
	defer db.Close()
	want := map[string]block.ConfigItem{"a": {Value: "v"}, "b": {Value: "v", Version: "7"}, "c": {Value: "v", Version: "7"}, "d": {Version: "1"}, "e": {}}
	for k, stored := range map[string]string{"a": "v", "b": "v||7", "c": "v||7||dropped", "d": "||1", "e": ""} {
		db.Set(t.Context(), k, stored, 0)
	}
	db.HSet(t.Context(), "hash", "data", "v")
	for _, keys := range [][]string{nil, {"a", "b", "c", "d", "e", "hash", "none"}} {
		got, err := s.Get(t.Context(), keys, nil)
		if err != nil || len(got) != len(want) {
			t.Fatalf("Get(%q) = %v, %v", keys, got, err)
		}
		for k, w := range want {
			if g := got[k]; g.Value != w.Value || g.Version != w.Version {
				t.Errorf("%s = %+v, want %+v", k, g, w)
			}
		}
	}
	f := follow(t, s, "b")
	db.Set(t.Context(), "b", "v||8", 0)
	if it := f.next(t)["b"]; it.Value != "v" || it.Version != "8" {
		t.Errorf("told %+v, want version 8", it)
	}
	db.PExpire(t.Context(), "b", 50*time.Millisecond)
	if it, is := f.next(t)["b"]; !is || it.Value != "" || it.Version != "" {
		t.Errorf("told %+v, want that it ended", it)
	}
}

type following struct {
	told chan map[string]block.ConfigItem
	done chan error
}

func follow(t *testing.T, s block.Configuration, keys ...string) *following {
	t.Helper()
	f := &following{told: make(chan map[string]block.ConfigItem, 100), done: make(chan error, 1)}
	started := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	t.Cleanup(func() { cancel(); work.Wait() })
	work.Go(func() {
		f.done <- s.Subscribe(ctx, keys, nil, func() { close(started) }, func(m map[string]block.ConfigItem) { f.told <- m })
	})
	select {
	case <-started:
	case err := <-f.done:
		t.Fatalf("Subscribe: %v", err)
	case <-time.After(patience):
		t.Fatal("Subscribe does not start")
	}
	return f
}

func (f *following) next(t *testing.T) map[string]block.ConfigItem {
	t.Helper()
	select {
	case m := <-f.told:
		return m
	case err := <-f.done:
		t.Fatalf("the subscription ended: %v", err)
	case <-time.After(patience):
		t.Fatal("nothing is told")
	}
	return nil
}

// What others want to be told of stays.
func TestConfigurationSetting(t *testing.T) {
	for has, want := range map[string]string{"": "K$gxe", "El": "K$gxeEl", "KEA": "KEA", "AE": "AKE", "Kg$xe": "Kg$xe"} {
		srv := servers.StartRedis(t, "--notify-keyspace-events", has)
		s, r := openConfiguration(t, "redisHost", srv.Addr), direct(t, srv.Addr)
		f := follow(t, s, "k")
		got := r.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"]
		for _, flag := range want {
			if !strings.ContainsRune(got, flag) {
				t.Errorf("with %q: the setting is %q, want all of %q", has, got, want)
			}
		}
		if len(got) != len(want) {
			t.Errorf("with %q: the setting is %q, want no more than %q", has, got, want)
		}
		r.Set(t.Context(), "k", "v", 0)
		f.next(t)
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A user who may not see settings is told all the same, if the server tells.
func TestConfigurationWithoutRights(t *testing.T) {
	srv := servers.StartRedis(t, "--notify-keyspace-events", "Kg$xe")
	r := direct(t, srv.Addr)
	if err := r.Do(t.Context(), "acl", "setuser", "app", "on", ">pw", "~*", "&*", "+get", "+mget", "+scan", "+ping", "+subscribe", "+psubscribe", "+select").Err(); err != nil {
		untested.Skip(t, "users of a Redis server, which it has from version 6 on: %v", err)
	}
	s := openConfiguration(t, "redisHost", srv.Addr, "redisUsername", "app", "redisPassword", "pw")
	defer s.Close(context.Background())
	f, all := follow(t, s, "k"), follow(t, s)
	r.Set(t.Context(), "k", "v", 0)
	if f.next(t)["k"].Value != "v" || all.next(t)["k"].Value != "v" {
		t.Error("the change was told wrongly")
	}
	r.Do(t.Context(), "acl", "setuser", "deaf", "on", ">pw", "~*", "resetchannels", "+get", "+mget", "+ping", "+subscribe")
	deaf := openConfiguration(t, "redisHost", srv.Addr, "redisUsername", "deaf", "redisPassword", "pw")
	defer deaf.Close(context.Background())
	err := deaf.Subscribe(t.Context(), []string{"k"}, nil, func() { t.Error("started") }, nil)
	wantCode(t, "Subscribe without the right to", err, fault.Denied)
}

// What the server does not tell is found: a database that is emptied as a whole, and changes
// while its setting was taken back.
func TestConfigurationRecheck(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := openConfiguration(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	defer s.Close(context.Background())
	redis.SetRecheck(s, 50*time.Millisecond)
	r.Set(t.Context(), "k", "v", 0)
	for name, keys := range map[string][]string{"a key": {"k"}, "all keys": nil} {
		f := follow(t, s, keys...)
		r.Set(t.Context(), "k", "old", 0)
		for f.next(t)["k"].Value != "old" {
		}
		r.FlushDB(t.Context())
		if it, is := f.next(t)["k"]; !is || it.Value != "" {
			t.Errorf("%s: told %+v, want that it is gone", name, it)
		}
		r.ConfigSet(t.Context(), "notify-keyspace-events", "")
		r.Set(t.Context(), "k", "new", 0)
		if it := f.next(t)["k"]; it.Value != "new" {
			t.Errorf("%s: told %+v, want new", name, it)
		}
	}
}

// A connection that has died without a word is found out.
func TestConfigurationSilence(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := openConfiguration(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	defer s.Close(context.Background())
	redis.SetRecheck(s, 300*time.Millisecond)
	f := follow(t, s, "k")
	ears := func() string {
		text, _ := r.Do(t.Context(), "client", "list", "type", "pubsub").Text()
		return text
	}
	id, _, _ := strings.Cut(ears(), " ")
	time.Sleep(time.Second) // nothing to tell
	if now, _, _ := strings.Cut(ears(), " "); now != id || id == "" {
		t.Errorf("a quiet connection is not kept: %q became %q", id, now)
	}
	srv.Freeze()
	time.Sleep(time.Second)
	srv.Thaw()
	r.Set(t.Context(), "k", "v", 0)
	if it := f.next(t)["k"]; it.Value != "v" {
		t.Errorf("told %+v", it)
	}
}

// The server dies and comes again; what changed meanwhile is told.
func TestConfigurationServerRestarts(t *testing.T) {
	srv := servers.StartRedis(t)
	s := openConfiguration(t, "redisHost", srv.Addr)
	defer s.Close(context.Background())
	f := follow(t, s, "k", "l")
	for _, v := range []string{"1", "2"} {
		srv.Kill()
		srv.Restart(t) // with notifications off again
		r := direct(t, srv.Addr)
		if err := r.Set(t.Context(), "k", v, 0).Err(); err != nil {
			t.Fatal(err)
		}
		if it := f.next(t)["k"]; it.Value != v {
			t.Errorf("told %+v, want %s", it, v)
		}
	}
}

func TestConfigurationConfig(t *testing.T) {
	c := redis.DefaultConfigurationConfig()
	if f := conf.Decode(conf.Items("redisHost", "localhost", "redisType", "cluster"), c); len(f) != 1 {
		t.Errorf("a cluster: %v, want one finding", f)
	}
	s := openConfiguration(t, "redisHost", "127.0.0.1:1")
	defer s.Close(context.Background())
	err := s.Subscribe(t.Context(), []string{"k"}, nil, func() {}, nil)
	wantCode(t, "Subscribe without a server", err, fault.Unavailable)
}

// gate passes connections on to a server while it is open.
type gate struct {
	l    net.Listener
	to   string
	mu   sync.Mutex
	open bool              // guarded by mu
	all  map[net.Conn]bool // guarded by mu
	work sync.WaitGroup
}

func newGate(t *testing.T, to string) *gate {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l, to: to, open: true, all: map[net.Conn]bool{}}
	g.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.pass(c)
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.set(false)
		g.work.Wait()
	})
	return g
}

func (g *gate) pass(c net.Conn) {
	s, err := net.Dial("tcp", g.to)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err != nil || !g.open {
		c.Close()
		if s != nil {
			s.Close()
		}
		return
	}
	g.all[c], g.all[s] = true, true
	for _, ends := range [][2]net.Conn{{c, s}, {s, c}} {
		g.work.Go(func() {
			_, _ = io.Copy(ends[0], ends[1])
			ends[0].Close()
			ends[1].Close()
		})
	}
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = open
	if !open {
		for c := range g.all {
			c.Close()
		}
		clear(g.all)
	}
}
