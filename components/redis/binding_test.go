package redis_test

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/redis"
	"github.com/mecha-project/mecha/test/servers"
)

func openBinding(t testing.TB, items ...string) block.Output {
	t.Helper()
	c := redis.DefaultBindingConfig()
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	b, err := redis.NewBinding(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
	if err != nil {
		t.Fatalf("NewBinding: %v", err)
	}
	return b.(block.Output)
}

// openedBinding is openBinding with the component closed when the test ends.
func openedBinding(t testing.TB, items ...string) block.Output {
	t.Helper()
	b := openBinding(t, items...)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

// request is an operation; metadata are pairs.
func request(op, data string, metadata ...string) block.BindingRequest {
	r := block.BindingRequest{Operation: op, Data: []byte(data), Metadata: map[string]string{}}
	for i := 0; i+1 < len(metadata); i += 2 {
		r.Metadata[metadata[i]] = metadata[i+1]
	}
	return r
}

func invoke(t testing.TB, b block.Output, r block.BindingRequest) *block.BindingAnswer {
	t.Helper()
	answer, err := b.Invoke(t.Context(), r)
	if err != nil {
		t.Fatalf("%s of %s: %v", r.Operation, r.Metadata["key"], err)
	}
	return answer
}

// wantSaid fails unless a get of the key answers value.
func wantSaid(t testing.TB, b block.Output, key, value string) {
	t.Helper()
	if a := invoke(t, b, request("get", "", "key", key)); a == nil || string(a.Data) != value || a.Metadata != nil {
		t.Errorf("get of %s answers %+v, want %q", key, a, value)
	}
}

func TestBinding(t *testing.T) {
	srv, master := servers.StartRedis(t), servers.StartRedis(t)
	sentinel := servers.StartSentinel(t, master.Port)
	for name, items := range map[string][]string{
		"node":     {"redisHost", srv.Addr},
		"sentinel": {"redisHost", sentinel.Addr, "failover", "true", "sentinelMasterName", "mymaster"},
		"cluster":  {"redisHost", hosts(servers.StartRedisCluster(t)), "redisType", "cluster"},
	} {
		t.Run(name, func(t *testing.T) {
			for op, works := range map[string]block.BindingRequest{
				"create": request("create", "v", "key", "suite"), "get": request("get", "", "key", "suite"), "delete": request("delete", "", "key", "suite"),
				"increment": request("increment", "", "key", "suite-n"), "get and delete": request("get", "", "key", "suite", "delete", "true"),
			} {
				t.Run(op, func(t *testing.T) {
					blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
						return blocktest.OutputPlace{Open: func() block.Output { return openBinding(t, items...) }, Works: works}
					})
				})
			}
			bindingOperations(t, openedBinding(t, items...))
		})
	}
}

// bindingOperations is what the operations do, one after the other.
func bindingOperations(t *testing.T, b block.Output) {
	wantSaid(t, b, "k", "") // missing: an answer, and nothing in it
	if a := invoke(t, b, request("create", `"one"`, "key", "k")); a != nil {
		t.Errorf("create answers %+v, want nothing", a)
	}
	wantSaid(t, b, "k", `"one"`)
	invoke(t, b, request("create", "\x00\xff two", "key", "k", "delete", "true")) // of no meaning here
	wantSaid(t, b, "k", "\x00\xff two")
	invoke(t, b, request("create", "", "key", "empty"))
	wantSaid(t, b, "empty", "")
	for _, word := range []string{"true", "True", "1", "yes"} {
		invoke(t, b, request("create", word, "key", "once"))
		if a := invoke(t, b, request("get", "", "key", "once", "delete", word)); string(a.Data) != word {
			t.Errorf("get with delete %s answers %q", word, a.Data)
		}
		wantSaid(t, b, "once", "")
	}
	invoke(t, b, request("get", "", "key", "k", "delete", "false"))
	wantSaid(t, b, "k", "\x00\xff two")
	for range 2 { // a missing key is none the less deleted
		if a := invoke(t, b, request("delete", "", "key", "k")); a != nil {
			t.Errorf("delete answers %+v, want nothing", a)
		}
		wantSaid(t, b, "k", "")
	}
	for i := 1; i <= 3; i++ {
		if a := invoke(t, b, request("increment", "ignored", "key", "n")); a != nil {
			t.Errorf("increment answers %+v, want nothing", a)
		}
		wantSaid(t, b, "n", strconv.Itoa(i))
	}
	invoke(t, b, request("create", "41", "key", "n"))
	invoke(t, b, request("increment", "", "key", "n"))
	wantSaid(t, b, "n", "42")
}

func TestBindingTTL(t *testing.T) {
	srv := servers.StartRedis(t)
	b, r := openedBinding(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	left := func(key string) time.Duration { return r.PTTL(t.Context(), key).Val() }
	near := func(key string, want time.Duration) {
		t.Helper()
		if d := left(key); d <= want-30*time.Second || d > want {
			t.Errorf("%s lives for %v, want %v", key, d, want)
		}
	}
	invoke(t, b, request("create", "v", "key", "k", "ttlInSeconds", "90"))
	near("k", 90*time.Second)
	invoke(t, b, request("create", "v", "key", "k"))
	if d := left("k"); d != -1 {
		t.Errorf("a create without a time leaves %v, want for ever", d)
	}
	invoke(t, b, request("increment", "", "key", "n", "ttlInSeconds", "90"))
	near("n", 90*time.Second)
	invoke(t, b, request("increment", "", "key", "n"))
	near("n", 90*time.Second) // it keeps what it has
	invoke(t, b, request("increment", "", "key", "n", "ttlInSeconds", "300"))
	near("n", 300*time.Second)
	invoke(t, b, request("create", "v", "key", "far", "ttlInSeconds", "9223372036854775807"))
	if d := left("far"); d < 250*365*24*time.Hour {
		t.Errorf("the longest time is %v", d)
	}
	invoke(t, b, request("create", "v", "key", "short", "ttlInSeconds", "1"))
	waitFor(t, "the key to end", func() bool { return string(invoke(t, b, request("get", "", "key", "short")).Data) == "" })
}

func TestBindingBadRequests(t *testing.T) {
	srv := servers.StartRedis(t)
	b, r := openedBinding(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	r.LPush(t.Context(), "list", "x")
	r.Set(t.Context(), "text", "x", 0)
	r.Set(t.Context(), "most", "9223372036854775807", 0)
	for name, tt := range map[string]struct {
		r    block.BindingRequest
		code fault.Code
		text string
	}{
		"no metadata":          {block.BindingRequest{Operation: "create"}, fault.Invalid, "redis binding: missing key in request metadata"},
		"no key":               {request("get", "", "Key", "k"), fault.Invalid, "missing key"},
		"an empty key":         {request("delete", "", "key", ""), fault.Invalid, "missing key"},
		"no number of seconds": {request("create", "v", "key", "k", "ttlInSeconds", "1m"), fault.Invalid, `ttlInSeconds is "1m"; want`},
		"no time":              {request("create", "v", "key", "k", "ttlInSeconds", "0"), fault.Invalid, "above 0"},
		"a time that is over":  {request("increment", "", "key", "k", "ttlInSeconds", "-1"), fault.Invalid, "above 0"},
		"another operation":    {request("list", "", "key", "k"), fault.Unsupported, "invalid operation: list; known are create, get, delete, increment"},
		"something else":       {request("get", "", "key", "list"), fault.Unsupported, "another kind"},
		"taking it away":       {request("get", "", "key", "list", "delete", "true"), fault.Unsupported, "another kind"},
		"no number":            {request("increment", "", "key", "text", "ttlInSeconds", "9"), fault.Invalid, "something else than a number"},
		"the largest number":   {request("increment", "", "key", "most", "ttlInSeconds", "9"), fault.Invalid, "as large as it can be"},
	} {
		answer, err := b.Invoke(t.Context(), tt.r)
		if answer != nil || fault.Of(err) != tt.code || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %+v, %v (%v, sent %v); want %v, %s", name, answer, err, fault.Of(err), fault.SentOf(err), tt.code, tt.text)
		}
	}
	if r.Exists(t.Context(), "k").Val() != 0 || r.LLen(t.Context(), "list").Val() != 1 || r.TTL(t.Context(), "text").Val() != -1 || r.TTL(t.Context(), "most").Val() != -1 {
		t.Error("a refused operation changed something")
	}
}

// Callers who take a value away get it once among them, and no increment is lost.
func TestBindingAtOnce(t *testing.T) {
	srv := servers.StartRedis(t)
	bs := []block.Output{openedBinding(t, "redisHost", srv.Addr), openedBinding(t, "redisHost", srv.Addr)}
	const rounds = 20
	var taken atomic.Int32
	for i := range rounds {
		key := "k" + strconv.Itoa(i)
		invoke(t, bs[0], request("create", "v", "key", key))
		var wg sync.WaitGroup
		for w := range 6 {
			wg.Go(func() {
				b := bs[w%2]
				if a, err := b.Invoke(t.Context(), request("get", "", "key", key, "delete", "true")); err != nil {
					t.Errorf("get: %v", err)
				} else if len(a.Data) > 0 {
					taken.Add(1)
				}
				if _, err := b.Invoke(t.Context(), request("increment", "", "key", "n")); err != nil {
					t.Errorf("increment: %v", err)
				}
			})
		}
		wg.Wait()
	}
	if n := taken.Load(); n != rounds {
		t.Errorf("%d values were taken away %d times", rounds, n)
	}
	wantSaid(t, bs[0], "n", strconv.Itoa(6*rounds))
}

// An increment that was acknowledged is there after a crash; one that failed says whether it may be.
func TestBindingKilledServer(t *testing.T) {
	srv := servers.StartRedis(t)
	b := openedBinding(t, "redisHost", srv.Addr)
	stop := make(chan struct{})
	var acked, unsure atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, err := b.Invoke(context.Background(), request("increment", "", "key", "n"))
				switch {
				case err == nil:
					acked.Add(1)
				case fault.Of(err) != fault.Unavailable:
					t.Errorf("increment: %v (%v)", err, fault.Of(err))
				case fault.SentOf(err) == fault.SentMaybe:
					unsure.Add(1)
				case fault.SentOf(err) != fault.SentNever:
					t.Errorf("increment: %v: nobody knows how far it got", err)
				}
				if err != nil {
					time.Sleep(5 * time.Millisecond)
				}
			}
		})
	}
	for range 3 {
		before := acked.Load()
		waitFor(t, "increments", func() bool { return acked.Load() > before+20 })
		srv.Kill()
		srv.Restart(t)
	}
	before := acked.Load()
	waitFor(t, "increments after the last restart", func() bool { return acked.Load() > before })
	close(stop)
	wg.Wait()
	n, err := strconv.ParseInt(string(invoke(t, b, request("get", "", "key", "n")).Data), 10, 64)
	if err != nil || n < acked.Load() || n > acked.Load()+unsure.Load() {
		t.Errorf("the number is %d (%v); %d were acknowledged, %d may have happened", n, err, acked.Load(), unsure.Load())
	}
}

// Nothing is repeated behind the caller's back, and a caller's data are its own again.
func TestBindingCutAndSilent(t *testing.T) {
	srv := servers.StartRedis(t)
	proxy := newCutter(t, srv.Addr)
	r := direct(t, srv.Addr)
	b := openedBinding(t, "redisHost", proxy.Addr().String())
	invoke(t, b, request("increment", "", "key", "n"))
	proxy.cut.Store(all)
	_, err := b.Invoke(t.Context(), request("increment", "", "key", "n"))
	wantSent(t, "increment", err, fault.Unavailable, fault.SentMaybe)
	if n, _ := r.Get(t.Context(), "n").Int(); n != 2 {
		t.Errorf("the number is %d, want 2", n)
	}
	_, err = b.Invoke(t.Context(), request("increment", "", "key", "n"))
	wantSent(t, "increment over a new connection that is cut", err, fault.Unavailable, fault.SentNever)
	proxy.cut.Store(0)
	invoke(t, b, request("increment", "", "key", "n"))
	wantSaid(t, b, "n", "3")

	srv.Freeze()
	defer srv.Thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
	defer cancel()
	req := block.BindingRequest{Operation: "create", Data: make([]byte, 4<<20), Metadata: map[string]string{"key": "large"}}
	_, err = b.Invoke(ctx, req)
	wantSent(t, "create", err, fault.Deadline, fault.SentMaybe)
	for i := range req.Data {
		req.Data[i] = 1 // the race detector looks
	}
	req.Metadata["key"] = "other"
	srv.Thaw()
	waitFor(t, "the server", func() bool { return b.Ping(t.Context()) == nil })
	if v := r.Get(t.Context(), "large").Val(); v != "" && v[len(v)-1] != 0 {
		t.Error("the abandoned create stored what its caller wrote later")
	}
}

func TestBindingTLSAndPassword(t *testing.T) {
	cert, key := certificate(t)
	port := strconv.Itoa(servers.Port(t))
	servers.StartRedis(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--requirepass", "s3cret")
	secure := []string{"redisHost", "127.0.0.1:" + port, "enableTLS", "true", "caCert", cert, "clientCert", cert, "clientKey", key}
	b := openedBinding(t, append(secure, "redisPassword", "s3cret")...)
	invoke(t, b, request("create", "v", "key", "k"))
	wantSaid(t, b, "k", "v")
	_, err := openedBinding(t, append(secure, "redisPassword", "gu3ss")...).Invoke(t.Context(), request("get", "", "key", "k"))
	wantSent(t, "a wrong password", err, fault.Unauthenticated, fault.SentNever)
	if strings.Contains(err.Error(), "gu3ss") {
		t.Errorf("the error holds the password: %v", err)
	}
	_, err = openedBinding(t, "redisHost", "127.0.0.1:"+port, "redisPassword", "gu3ss").Invoke(t.Context(), request("get", "", "key", "k"))
	wantSent(t, "no TLS", err, fault.Unavailable, fault.SentNever)
	if strings.Contains(err.Error(), "gu3ss") {
		t.Errorf("the error holds the password: %v", err)
	}
}
