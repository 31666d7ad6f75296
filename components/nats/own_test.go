package nats_test

import (
	"context"
	"errors"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/nats"
	"github.com/mecha-project/mecha/components/nats/embedded"
)

func admin(t *testing.T, url string) jetstream.JetStream {
	t.Helper()
	nc, err := natsgo.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func TestBackendParts(t *testing.T) {
	set, err := block.NewSet(nats.Backend())
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []string{"state.embedded", "state.nats", "pubsub.embedded", "pubsub.nats", "lock.embedded", "lock.nats", "configuration.embedded", "configuration.nats"} {
		part, ok := set.Find(typ, "v1")
		if !ok {
			t.Fatalf("no part for %s", typ)
		}
		cfg := part.Config()
		items := conf.Items()
		if strings.HasSuffix(typ, ".nats") {
			items = conf.Items("natsURL", "nats://127.0.0.1:1")
		}
		if f := conf.Decode(items, cfg); len(f) > 0 {
			t.Errorf("%s: the defaults are refused: %v", typ, f)
		}
		c, err := part.Open(block.Env{Component: "c", DataDir: t.TempDir()}, cfg)
		if err != nil {
			t.Fatalf("%s: %v", typ, err)
		}
		if err := c.Close(t.Context()); err != nil { // never used: nothing was started
			t.Errorf("%s: Close: %v", typ, err)
		}
	}
}

func TestConfigIsValidated(t *testing.T) {
	for name, tc := range map[string]struct {
		into  any
		items []conf.Item
		key   string
	}{
		"no server":     {nats.DefaultStateConfig(), conf.Items(), "natsURL"},
		"half a jwt":    {nats.DefaultStateConfig(), conf.Items("natsURL", "x", "jwt", "y"), "seedKey"},
		"no user":       {nats.DefaultPubSubConfig(), conf.Items("natsURL", "x", "password", "y"), "password"},
		"replicas":      {nats.DefaultPubSubConfig(), conf.Items("natsURL", "x", "replicas", "9"), "replicas"},
		"durability":    {nats.DefaultEmbeddedStateConfig(), conf.Items("durability", "none"), "durability"},
		"linger":        {nats.DefaultEmbeddedStateConfig(), conf.Items("linger", "0s"), "linger"},
		"age":           {nats.DefaultEmbeddedPubSubConfig(), conf.Items("maxAge", "500ms", "dedupWindow", "200ms"), "maxAge"},
		"bytes":         {nats.DefaultEmbeddedPubSubConfig(), conf.Items("maxBytes", "0"), "maxBytes"},
		"dedup":         {nats.DefaultEmbeddedPubSubConfig(), conf.Items("dedupWindow", "200h"), "dedupWindow"},
		"ack wait":      {nats.DefaultEmbeddedPubSubConfig(), conf.Items("ackWait", "1ms"), "ackWait"},
		"client cert":   {nats.DefaultStateConfig(), conf.Items("natsURL", "x", "clientCert", "y"), "clientKey"},
		"misspelt name": {nats.DefaultEmbeddedStateConfig(), conf.Items("bukcet", "x"), "bukcet"},
	} {
		t.Run(name, func(t *testing.T) {
			f := conf.Decode(tc.items, tc.into)
			if len(f) != 1 || f[0].Key != tc.key {
				t.Errorf("findings %v, want one about %s", f, tc.key)
			}
		})
	}
}

func TestUnreachableServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "nats://user:hush@" + l.Addr().String()
	_ = l.Close()
	s := serverState(t, url, "c")
	defer s.Close(t.Context())
	start := time.Now()
	err = s.Set(t.Context(), block.StateWrite{Key: "k"})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("Set: %v (%v, sent %v); want unavailable, never sent", err, fault.Of(err), fault.SentOf(err))
	}
	if strings.Contains(err.Error(), "hush") {
		t.Errorf("the error shows a password: %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v to say so", took)
	}
}

func TestWrongPassword(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(),
		Users: []*server.User{{Username: "ann", Password: "right"}}})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(patience) {
		t.Fatal("no server")
	}
	for password, want := range map[string]fault.Code{"right": fault.OK, "wrong": fault.Unauthenticated} {
		s := serverState(t, srv.ClientURL(), "c", "user", "ann", "password", password)
		if err := s.Ping(t.Context()); fault.Of(err) != want || err != nil && strings.Contains(err.Error(), "wrong") {
			t.Errorf("Ping with the %s password: %v", password, err)
		}
		_ = s.Close(t.Context())
	}
}

func TestServerWithoutJetStream(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(patience) {
		t.Fatal("no server")
	}
	s := serverState(t, srv.ClientURL(), "c")
	defer s.Close(t.Context())
	if err := s.Ping(t.Context()); fault.Of(err) != fault.Unavailable || !strings.Contains(err.Error(), "JetStream") {
		t.Errorf("Ping: %v (%v), want unavailable, and why", err, fault.Of(err))
	}
}

func TestRemovedBucketIsMadeAgain(t *testing.T) {
	url := startServer(t).ClientURL()
	s := serverState(t, url, "store", "bucket", "mine")
	defer s.Close(t.Context())
	set := func(key string) {
		t.Helper()
		if err := s.Set(t.Context(), block.StateWrite{Key: key, Value: []byte("v")}); err != nil {
			t.Fatalf("Set: %v", err)
		}
	}
	set("a")
	js := admin(t, url)
	for range 2 {
		if err := js.DeleteStream(t.Context(), "KV_mine"); err != nil {
			t.Fatal(err)
		}
		// The server may answer from the removed bucket a moment longer, and cannot make another
		// while it clears that away.
		waitFor(t, "the key to be missing", func() bool {
			item, err := s.Get(t.Context(), "a", block.StateRead{})
			if fault.Of(err) == fault.Unavailable {
				return false
			}
			if err != nil {
				t.Fatalf("Get from a removed bucket: %v, want missing", err)
			}
			return !item.Exists
		})
		if err := js.DeleteStream(t.Context(), "KV_mine"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		set("a")
		if item, err := s.Get(t.Context(), "a", block.StateRead{}); err != nil || !item.Exists {
			t.Errorf("Get of a key written after the removal = %+v, %v", item, err)
		}
	}
}

// The bucket is one the product's own tools can read and write.
func TestBucketIsAnOrdinaryOne(t *testing.T) {
	url := startServer(t).ClientURL()
	s := serverState(t, url, "my store!")
	defer s.Close(t.Context())
	if err := s.Set(t.Context(), block.StateWrite{Key: "app||order/1", Value: []byte("one")}); err != nil {
		t.Fatal(err)
	}
	js := admin(t, url)
	var name string
	for n := range js.KeyValueStoreNames(t.Context()).Name() {
		name = n
	}
	if !strings.HasPrefix(name, "my_store__") {
		t.Errorf("the bucket is %q, want a readable name", name)
	}
	kv, err := js.KeyValue(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if e, err := kv.Get(t.Context(), "app.order/1"); err != nil || string(e.Value()) != "one" {
		t.Errorf("the tool reads %v, %v; want one", e, err)
	}
	if _, err := kv.PutString(t.Context(), "app.order/2", "two"); err != nil {
		t.Fatal(err)
	}
	item, err := s.Get(t.Context(), "app||order/2", block.StateRead{})
	if err != nil || string(item.Value) != "two" {
		t.Errorf("we read %+v, %v; want two", item, err)
	}
	if err := kv.Purge(t.Context(), "app.order/2"); err != nil {
		t.Fatal(err)
	}
	if item, err := s.Get(t.Context(), "app||order/2", block.StateRead{}); err != nil || item.Exists {
		t.Errorf("a key purged by the tool reads as %+v, %v; want missing", item, err)
	}
	if err := s.Set(t.Context(), block.StateWrite{Key: "app||order/2", FirstWrite: true}); err != nil {
		t.Errorf("first write over a purge marker: %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	dir := nodeDir(t)
	s, p := embeddedState(t, dir, "s"), embeddedPubSub(t, dir, "p")
	defer s.Close(t.Context())
	defer p.Close(t.Context())
	for size, want := range map[int]fault.Code{4 << 20: fault.OK, 9 << 20: fault.TooLarge} {
		if err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: make([]byte, size)}); fault.Of(err) != want {
			t.Errorf("Set of %d bytes: %v, want %v", size, err, want)
		}
		err := errors.Join(appendMessages(t, p, []block.Message{{Topic: "t", Data: make([]byte, size)}})...)
		if fault.Of(err) != want {
			t.Errorf("Publish of %d bytes: %v, want %v", size, err, want)
		}
	}
	long := strings.Repeat("ü", 2000)
	if err := s.Set(t.Context(), block.StateWrite{Key: long}); fault.Of(err) != fault.Invalid || fault.ReasonOf(err) != fault.IllegalKey {
		t.Errorf("Set of a key of %d bytes: %v", len(long), err)
	}
	err := errors.Join(appendMessages(t, p, []block.Message{{Topic: "t", Data: []byte("x")}, {Topic: long}})...)
	if fault.Of(err) != fault.Invalid {
		t.Errorf("Publish to a topic of %d bytes: %v", len(long), err)
	}
}

func TestServerRestart(t *testing.T) {
	dir := t.TempDir()
	start := func(port int) *server.Server {
		srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, NoSigs: true, NoLog: true, JetStream: true, StoreDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		srv.Start()
		if !srv.ReadyForConnections(patience) {
			t.Fatal("no server")
		}
		return srv
	}
	srv := start(-1)
	addr, _ := srv.Addr().(*net.TCPAddr)
	s := serverState(t, srv.ClientURL(), "c")
	defer s.Close(context.Background())
	if err := s.Set(t.Context(), block.StateWrite{Key: "k", Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	srv.Shutdown()
	srv.WaitForShutdown()
	waitFor(t, "the loss to be noticed", func() bool {
		begin := time.Now()
		_, err := s.Get(t.Context(), "k", block.StateRead{})
		if fault.Of(err) != fault.Unavailable || time.Since(begin) > 6*time.Second {
			t.Errorf("Get without a server: %v (%v) after %v, want unavailable soon", err, fault.Of(err), time.Since(begin))
		}
		return fault.SentOf(err) == fault.SentNever
	})
	srv = start(addr.Port)
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	waitFor(t, "the connection to be back", func() bool {
		item, err := s.Get(t.Context(), "k", block.StateRead{})
		return err == nil && string(item.Value) == "v"
	})
}

// A store at the server's limit refuses writes; removing keys must work, and make room.
func TestFullStoreCanBeEmptied(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, JetStream: true, StoreDir: t.TempDir(), JetStreamMaxStore: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer srv.WaitForShutdown()
	defer srv.Shutdown()
	if !srv.ReadyForConnections(patience) {
		t.Fatal("no server")
	}
	s := serverState(t, srv.ClientURL(), "c")
	defer s.Close(t.Context())
	set := func(key string) error {
		return s.Set(t.Context(), block.StateWrite{Key: key, Value: make([]byte, 100<<10)})
	}
	for i := 0; err == nil && i < 100; i++ {
		err = set(strconv.Itoa(i))
	}
	if fault.Of(err) != fault.Exhausted {
		t.Fatalf("Set in a full store: %v (%v), want exhausted", err, fault.Of(err))
	}
	etag := func(key string) string {
		item, err := s.Get(t.Context(), key, block.StateRead{})
		if err != nil || !item.Exists {
			t.Fatalf("Get %s: %v, %v", key, item.Exists, err)
		}
		return item.ETag
	}
	if err := s.Delete(t.Context(), block.StateDelete{Key: "2", ETag: etag("0")}); fault.Of(err) != fault.Conflict {
		t.Errorf("Delete with another key's etag: %v, want conflict", err)
	}
	for _, d := range []block.StateDelete{{Key: "0", ETag: etag("0")}, {Key: "1"}, {Key: "never"}, {Key: "2"}, {Key: "3", ETag: etag("3")}} {
		if err := s.Delete(t.Context(), d); err != nil {
			t.Errorf("Delete %+v: %v", d, err)
		}
		if item, _ := s.Get(t.Context(), d.Key, block.StateRead{}); item.Exists {
			t.Errorf("key %s is still there", d.Key)
		}
	}
	if err := set("0"); err != nil {
		t.Errorf("Set after making room: %v", err)
	}
}

// TestOneTooLargeAmongMany: a message that cannot be sent fails alone; the others are written,
// and said to be.
func TestOneTooLargeAmongMany(t *testing.T) {
	dir := nodeDir(t)
	big := make([]byte, embedded.MaxPayload+1)
	only := func(t *testing.T, errs []error, at int) {
		t.Helper()
		for i, err := range errs {
			if want := map[bool]fault.Code{true: fault.TooLarge, false: fault.OK}[i == at]; fault.Of(err) != want {
				t.Errorf("%d: %v, want %v", i, err, want)
			}
		}
		if len(errs) == 0 {
			t.Error("no error")
		}
	}
	for _, at := range []int{0, 1, 2} {
		t.Run(strconv.Itoa(at), func(t *testing.T) {
			p, s := embeddedPubSub(t, dir, "pubsub"), embeddedState(t, dir, "statestore")
			defer s.Close(t.Context())
			defer p.Close(t.Context())
			msgs, writes := make([]block.Message, 3), make([]block.StateWrite, 3)
			for i := range msgs {
				msgs[i], writes[i] = block.Message{Topic: "t", Data: []byte("x")}, block.StateWrite{Key: strconv.Itoa(i), Value: []byte("x")}
			}
			msgs[at].Data, writes[at].Value = big, big
			only(t, appendMessages(t, p, msgs), at)
			only(t, s.(block.StateBatch).SetMany(t.Context(), writes), at)
		})
	}
}

// TestNoCredentialsInErrors: an address that cannot be used is told without its credentials,
// the library's own words included.
func TestNoCredentialsInErrors(t *testing.T) {
	for _, url := range []string{
		"nats://user:s3cr%et@127.0.0.1:1", "nats://user:s3cret@127.0.0.1:port", "nats://user:s3cret@[::1", "user:s3c ret@127.0.0.1:1",
		"nats://user:s3cret@127.0.0.1:1,nats://s3cret@127.0.0.1:1 x", "nats://user:s3cret@127.0.0.1:1", "nats://user:s3/cret@127.0.0.1:1", "nats://user:s3c,ret@127.0.0.1:1",
	} {
		s := serverState(t, url, "s")
		err := s.Ping(t.Context())
		if err == nil || strings.Contains(err.Error(), "s3c") || strings.Contains(err.Error(), "cret") || strings.Contains(err.Error(), "%et") {
			t.Errorf("%s: %v", url, err)
		}
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// appendMessages appends messages to partition 0 of their topics, and returns their errors.
func appendMessages(t *testing.T, l block.Log, msgs []block.Message) []error {
	t.Helper()
	recs := make([]block.LogRecord, len(msgs))
	for i := range msgs {
		recs[i].Message = msgs[i]
	}
	var errs []error
	for _, r := range l.Append(t.Context(), recs) {
		errs = append(errs, r.Err)
	}
	return errs
}
