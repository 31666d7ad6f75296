package config_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/config"
	"github.com/mecha-project/mecha/runtime/identity"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type items = map[string]block.ConfigItem

// store is a store whose subscriptions the test drives.
type store struct {
	mu    sync.Mutex
	asked []string // guarded by mu
	now   items    // guarded by mu
	fail  error    // guarded by mu; of Get, and of Subscribe before it begins
	feeds chan *feed
}

// feed is one running Subscribe.
type feed struct {
	keys    []string
	changed func(items)
	fail    chan error
	ended   chan struct{}
}

func newStore() *store { return &store{now: items{}, feeds: make(chan *feed, 16)} }

func (s *store) Ping(context.Context) error  { return nil }
func (s *store) Close(context.Context) error { return nil }

func (s *store) set(now items, fail error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now, s.fail = now, fail
}

func (s *store) Get(_ context.Context, keys []string, metadata map[string]string) (items, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, fmt.Sprintf("get %q %v", keys, metadata))
	return s.now, s.fail
}

func (s *store) Subscribe(ctx context.Context, keys []string, metadata map[string]string, started func(), changed func(items)) error {
	s.mu.Lock()
	s.asked = append(s.asked, fmt.Sprintf("subscribe %q %v", keys, metadata))
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		return fail
	}
	f := &feed{keys: keys, changed: changed, fail: make(chan error, 1), ended: make(chan struct{})}
	defer close(f.ended)
	started()
	s.feeds <- f
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-f.fail:
		return err
	}
}

// channel is an app that keeps what it gets.
type channel struct {
	mu     sync.Mutex
	got    []string // guarded by mu
	status func(n int) int
	hang   bool
}

func (c *channel) Invoke(ctx context.Context, r *call.Request) (*call.Response, error) {
	c.mu.Lock()
	c.got = append(c.got, r.Verb+" "+r.Path+" "+r.Type+" "+string(r.Data))
	n := len(c.got)
	c.mu.Unlock()
	if c.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	status := 200
	if c.status != nil {
		status = c.status(n)
	}
	return &call.Response{Status: status}, nil
}
func (c *channel) Probe(context.Context) error { return nil }
func (c *channel) Close() error                { return nil }

func (c *channel) all() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.got...)
}

type recorder struct {
	mu  sync.Mutex
	got []string
}

func (r *recorder) Configuration(component, op string, ok bool, _ time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, fmt.Sprintf("%s %s %v", component, op, ok))
}

func (r *recorder) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.got...)
}

type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logLines) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

type kit struct {
	*config.Service
	store   *store
	app     *channel
	rec     *recorder
	log     *logLines
	inbound *call.Target
}

func newKit(t testing.TB) *kit {
	k := &kit{store: newStore(), app: &channel{}, rec: &recorder{}, log: &logLines{}, inbound: &call.Target{Kind: call.Config, Direction: call.Inbound, Name: "c"}}
	stores := catalog.NewStore[block.Configuration](block.KindConfig)
	stores.Put(catalog.NewHandle[block.Configuration](catalog.Info{Name: "c"}, k.store, &call.Target{Kind: call.Config, Name: "c"}))
	k.Service = config.New(stores, identity.Self{App: "shop"}, config.Options{Log: slog.New(slog.NewTextHandler(k.log, nil)), Recorder: k.rec,
		App: app.New(k.app, app.Options{}), Inbound: func(string) *call.Target { return k.inbound }})
	t.Cleanup(func() { _ = k.Close(context.Background()) })
	return k
}

func request(keys ...string) config.Request {
	return config.Request{Store: "c", Keys: keys, Metadata: map[string]string{"m": "1"}}
}

func TestGet(t *testing.T) {
	k := newKit(t)
	want := items{"a": {Value: "1", Version: "7"}}
	k.store.set(want, nil)
	got, err := k.Get(t.Context(), request("a", "b"))
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if d := cmp.Diff([]string{`get ["a" "b"] map[m:1]`}, k.store.asked); d != "" {
		t.Errorf("asked (-want +got):\n%s", d)
	}
	k.store.set(nil, fault.New("op", fault.Unavailable, "down"))
	if _, err := k.Get(t.Context(), request()); fault.Of(err) != fault.Unavailable {
		t.Errorf("a store that is down: %v", err)
	}
	if _, err := k.Get(t.Context(), config.Request{Store: "x"}); fault.ReasonOf(err) != fault.NoSuchComponent {
		t.Errorf("another store: %v", err)
	}
	if d := cmp.Diff([]string{"c get true", "c get false"}, k.rec.all()); d != "" {
		t.Errorf("recorded (-want +got):\n%s", d)
	}
}

// heard is what a stream got.
type heard struct {
	mu  sync.Mutex
	got []string
}

func (h *heard) add(s string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.got = append(h.got, s)
}

func (h *heard) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.got...)
}

// follow runs a subscription on a stream.
func (k *kit) follow(ctx context.Context, keys ...string) (h *heard, id func() string, done chan error) {
	h, done = &heard{}, make(chan error, 1)
	var mu sync.Mutex
	var known string
	go func() {
		done <- k.Follow(ctx, request(keys...), func(id string) error {
			mu.Lock()
			defer mu.Unlock()
			known = id
			h.add("opened")
			return nil
		}, func(_ string, its items) error {
			if its["broken"].Value != "" {
				return errors.New("the stream broke")
			}
			h.add(fmt.Sprint(its))
			return nil
		})
	}()
	return h, func() string { mu.Lock(); defer mu.Unlock(); return known }, done
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		ctx, cancel := context.WithCancel(t.Context())
		h, _, done := k.follow(ctx, "a")
		f := <-k.store.feeds
		f.changed(items{"a": {Value: "1"}})
		f.changed(items{"a": {}})
		synctest.Wait()
		want := []string{"opened", fmt.Sprint(items{"a": {Value: "1"}}), fmt.Sprint(items{"a": {}})}
		if d := cmp.Diff(want, h.all()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		cancel() // the end of the stream
		if err := <-done; fault.Of(err) != fault.Canceled {
			t.Errorf("Follow returned %v", err)
		}
		<-f.ended

		_, id, done := k.follow(t.Context(), "a")
		f = <-k.store.feeds
		synctest.Wait()
		if err := k.Unsubscribe(t.Context(), id()); err != nil {
			t.Errorf("Unsubscribe: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("after Unsubscribe Follow returned %v", err)
		}
		<-f.ended
		if err := k.Unsubscribe(t.Context(), id()); fault.ReasonOf(err) != config.NoSubscription || err.Error() != "subscription with id "+id()+" does not exist" {
			t.Errorf("Unsubscribe again: %v", err)
		}

		_, _, done = k.follow(t.Context(), "a")
		f = <-k.store.feeds
		f.changed(items{"broken": {Value: "x"}})
		if err := <-done; err == nil || err.Error() != "the stream broke" {
			t.Errorf("a stream that breaks: %v", err)
		}
		<-f.ended

		_, _, done = k.follow(t.Context(), "a")
		f = <-k.store.feeds
		synctest.Wait()
		if err := k.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("at Close Follow returned %v", err)
		}
		<-f.ended
		if err := k.Follow(t.Context(), request("a"), nil, nil); fault.Of(err) != fault.NotReady {
			t.Errorf("Follow after Close: %v", err)
		}
		wantRec := []string{"c subscribe true", "c subscribe true", "c unsubscribe true", "c subscribe true", "c subscribe true"}
		if d := cmp.Diff(wantRec, k.rec.all()); d != "" {
			t.Errorf("recorded (-want +got):\n%s", d)
		}
	})
}

func TestASubscriptionThatNeverBegan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.store.set(nil, fault.New("op", fault.Unavailable, "down"))
		_, _, done := k.follow(t.Context(), "a")
		if err := <-done; fault.Of(err) != fault.Unavailable {
			t.Errorf("Follow: %v", err)
		}
		if _, err := k.FollowForApp(t.Context(), request("a")); fault.Of(err) != fault.Unavailable {
			t.Errorf("FollowForApp: %v", err)
		}
		if d := cmp.Diff([]string{"c subscribe false", "c subscribe false"}, k.rec.all()); d != "" {
			t.Errorf("recorded (-want +got):\n%s", d)
		}
		k.store.set(nil, nil)
		if err := k.Follow(t.Context(), config.Request{Store: "x"}, nil, nil); fault.ReasonOf(err) != fault.NoSuchComponent {
			t.Errorf("another store: %v", err)
		}
	})
}

// A store that drops a subscription is asked again, and what it missed is told.
func TestNoSilentDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		ctx, cancel := context.WithCancel(t.Context())
		h, _, done := k.follow(ctx, "a", "b", "c")
		f := <-k.store.feeds
		f.changed(items{"a": {Value: "1", Version: "1"}, "b": {Value: "1"}})
		f.changed(items{"c": {Value: "1"}})
		synctest.Wait()
		k.store.set(nil, fault.New("op", fault.Unavailable, "down"))
		f.fail <- fault.New("op", fault.Lost, "the server forgot us")
		time.Sleep(10 * time.Second) // asked again meanwhile, in vain
		synctest.Wait()
		if !k.log.has("level=WARN msg=\"configuration subscription is interrupted") {
			t.Error("the interruption is not in the log")
		}
		k.store.set(items{"a": {Value: "1", Version: "1"}, "b": {Value: "2"}}, nil)
		f = <-k.store.feeds
		synctest.Wait()
		if got := h.all(); len(got) != 4 || got[3] != fmt.Sprint(items{"b": {Value: "2"}, "c": {}}) {
			t.Errorf("after the interruption was told %q, want what changed meanwhile", got[3:])
		}
		f.changed(items{"a": {Value: "3"}})
		synctest.Wait()
		if got := h.all(); len(got) != 5 {
			t.Errorf("then was told %q", got[4:])
		}
		if !k.log.has("subscription is back") {
			t.Error("the return is not in the log")
		}
		cancel()
		<-done
	})
}

func TestUpdatesForTheApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		id, err := k.FollowForApp(t.Context(), request("a", "b"))
		if err != nil {
			t.Fatal(err)
		}
		f := <-k.store.feeds
		k.app.status = func(n int) int { return map[int]int{1: 201, 2: 500}[n] + map[bool]int{true: 200}[n > 2] }
		f.changed(items{"b/c d": {Value: "2", Version: "v", Metadata: map[string]string{"m": "1"}}, "a": {Value: "1"}})
		f.changed(items{"a": {}})
		f.changed(items{"../..": {Value: "x"}})
		synctest.Wait()
		event := `{"id":"` + id + `","items":{"a":{"value":"1"},"b/c d":{"value":"2","version":"v","metadata":{"m":"1"}}}}`
		want := []string{"POST configuration/c/a application/json " + event, "POST configuration/c/b/c%20d application/json " + event,
			`POST configuration/c/a application/json {"id":"` + id + `","items":{"a":{}}}`,
			`POST configuration/c/%2E%2E/%2E%2E application/json {"id":"` + id + `","items":{"../..":{"value":"x"}}}`}
		if d := cmp.Diff(want, k.app.all()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
		for _, text := range []string{"error sending configuration item to the app: the app answered with status 201", "status 500"} {
			if !k.log.has(text) {
				t.Errorf("not in the log: %s", text)
			}
		}
		if err := k.Unsubscribe(t.Context(), id); err != nil {
			t.Errorf("Unsubscribe: %v", err)
		}
		<-f.ended
		f.changed(items{"a": {Value: "late"}})
		synctest.Wait()
		if n := len(k.app.all()); n != len(want) {
			t.Errorf("%d updates after Unsubscribe", n-len(want))
		}
	})
}

// The inbound policy of the store repeats updates; one the app never answers does not hold the
// others up for ever.
func TestInboundPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		k.inbound.SetChain(&call.Chain{Retry: func(c *call.Call, _ error) (time.Duration, bool) {
			return time.Second, c.Attempt < 3 && c.Try().Status.HTTP == 503
		}})
		k.app.status = func(n int) int { return map[bool]int{true: 503, false: 200}[n < 3] }
		if _, err := k.FollowForApp(t.Context(), request("a")); err != nil {
			t.Fatal(err)
		}
		f := <-k.store.feeds
		f.changed(items{"a": {Value: "1"}})
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if n := len(k.app.all()); n != 3 || k.log.has("error sending") {
			t.Errorf("%d attempts, want 3 and no complaint", n)
		}
		k.app.hang = true
		f.changed(items{"a": {Value: "2"}})
		f.changed(items{"a": {Value: "3"}})
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if n := len(k.app.all()); n != 5 {
			t.Errorf("%d updates were sent, want the one behind the hanging one too", n)
		}
		if err := k.Close(t.Context()); err != nil { // although the app hangs
			t.Errorf("Close: %v", err)
		}
	})
}

func TestNoApp(t *testing.T) {
	stores := catalog.NewStore[block.Configuration](block.KindConfig)
	stores.Put(catalog.NewHandle[block.Configuration](catalog.Info{Name: "c"}, newStore(), &call.Target{Kind: call.Config, Name: "c"}))
	s := config.New(stores, identity.Self{App: "shop"}, config.Options{App: app.New(nil, app.Options{})})
	defer s.Close(t.Context())
	if _, err := s.FollowForApp(t.Context(), request("a")); fault.ReasonOf(err) != fault.NoApp {
		t.Errorf("without an app: %v", err)
	}
	if _, err := s.FollowForApp(t.Context(), config.Request{Store: "x"}); fault.ReasonOf(err) != fault.NoSuchComponent {
		t.Errorf("the store is looked at first: %v", err)
	}
}

// Whoever asked for a subscription of the app and left does not know its id, so it ends.
func TestCallerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := newKit(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if id, err := k.FollowForApp(ctx, request("a")); err == nil {
			_ = k.Unsubscribe(t.Context(), id) // it was quicker
		}
		f := <-k.store.feeds
		<-f.ended
	})
}
