package blocktest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// ConfigurationPlace is where a configuration store keeps its items, and who writes them: the
// block only reads. Keys of the suite are unique to the subtest, so the place may be shared.
type ConfigurationPlace struct {
	// Open makes a component, each time another client. The suite closes it.
	Open func() block.Configuration
	// Set and Delete write as an operator would, and return when the product has it.
	Set    func(key, value string)
	Delete func(key string)
	// Keys are unusual ones that the product can hold.
	Keys []string
	// Interrupt cuts the connections of the components, calls meanwhile and lets them come back;
	// nil when there is nothing to cut.
	Interrupt func(meanwhile func())
}

// Configuration checks a configuration store. What is written may take a moment to be seen.
func Configuration(t *testing.T, place func(t *testing.T) ConfigurationPlace) {
	t.Helper()
	suite(t, block.KindConfig)
	groups := []struct {
		name string
		run  func(*configTest)
	}{
		{"get", configGet},
		{"get all", configGetAll},
		{"values and keys of every shape", configValues},
		{"versions", configVersions},
		{"changes are told", configChanges},
		{"only what was asked for", configSelection},
		{"any key", configAnyKey},
		{"the last change arrives", configOrder},
		{"every subscriber is told", configSubscribers},
		{"a slow subscriber", configSlow},
		{"a lost connection", configInterrupt},
		{"an ended context", configContext},
		{"close", configClose},
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			c := &configTest{T: t, ConfigurationPlace: place(t), prefix: unique()}
			c.store = c.client()
			g.run(c)
		})
	}
}

type configTest struct {
	*testing.T
	ConfigurationPlace
	store  block.Configuration
	prefix string
}

func (c *configTest) client() block.Configuration {
	s := c.Open()
	c.Cleanup(func() { closeQuietly(c.T, s) })
	return s
}

func (c *configTest) ctx() context.Context   { return patiently(c.T) }
func (c *configTest) key(name string) string { return c.prefix + name }

func (c *configTest) get(keys ...string) map[string]block.ConfigItem {
	c.Helper()
	items, err := c.store.Get(c.ctx(), keys, nil)
	if err != nil {
		c.Fatalf("Get(%q): %v", keys, err)
	}
	return items
}

// mine are the values of this subtest's keys.
func (c *configTest) mine(items map[string]block.ConfigItem) map[string]string {
	out := map[string]string{}
	for k, it := range items {
		if strings.HasPrefix(k, c.prefix) {
			out[k] = it.Value
		}
	}
	return out
}

// becomes waits until the keys have these values and no others.
func (c *configTest) becomes(want map[string]string, keys ...string) {
	c.Helper()
	var got map[string]string
	waitUntil(c, func() string { return fmt.Sprintf("Get(%q) is %q, want %q", keys, got, want) }, func() bool {
		got = c.mine(c.get(keys...))
		return maps.Equal(got, want)
	})
}

func waitUntil(t testing.TB, what func() string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", patience, what())
		}
	}
}

// follower is a running Subscribe and what it told, key by key.
type follower struct {
	c    *configTest
	stop context.CancelFunc
	done chan struct{}

	mu    sync.Mutex
	err   error               // guarded by mu; what Subscribe returned
	told  map[string][]string // guarded by mu; values in order, "" for a removal
	over  bool                // guarded by mu; Subscribe has returned
	after int                 // guarded by mu; how often changed was called after that
	slow  time.Duration
}

// follow subscribes and returns when the store says that nothing can be missed.
func (c *configTest) follow(s block.Configuration, slow time.Duration, keys ...string) *follower {
	c.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{c: c, stop: cancel, done: make(chan struct{}), told: map[string][]string{}, slow: slow}
	started := make(chan struct{})
	asked := slices.Clone(keys)
	go func() {
		defer close(f.done)
		err := s.Subscribe(ctx, asked, nil, func() { close(started) }, f.changed)
		f.mu.Lock()
		f.err, f.over = err, true
		f.mu.Unlock()
	}()
	c.Cleanup(func() { f.end() })
	select {
	case <-started: // closed twice, it would panic
	case <-f.done:
		c.Fatalf("Subscribe(%q): %v", keys, f.err)
	case <-time.After(patience):
		c.Fatalf("Subscribe(%q) did not start within %v", keys, patience)
	}
	return f
}

func (f *follower) changed(items map[string]block.ConfigItem) {
	time.Sleep(f.slow)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.over {
		f.after++
	}
	if len(items) == 0 {
		f.c.Errorf("a change of nothing was told")
	}
	for k, it := range items {
		if strings.HasPrefix(k, f.c.prefix) {
			f.told[k] = append(f.told[k], it.Value)
		}
		delete(items, k) // the map is ours
	}
}

func (f *follower) values(key string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.told[key])
}

// hears waits until the last value told of a key is this one.
func (f *follower) hears(key, value string) {
	f.c.Helper()
	var got []string
	waitUntil(f.c, func() string { return fmt.Sprintf("of %s was told %q, want %q last", show(key), got, value) }, func() bool {
		got = f.values(key)
		return len(got) > 0 && got[len(got)-1] == value
	})
}

// end stops the subscription and returns Subscribe's error.
func (f *follower) end() error {
	f.stop()
	select {
	case <-f.done:
	case <-time.After(patience):
		f.c.Fatalf("Subscribe did not return after its context ended")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.after > 0 {
		f.c.Errorf("changes were told %d times after Subscribe had returned", f.after)
	}
	return f.err
}

func configGet(c *configTest) {
	if err := c.store.Ping(c.ctx()); err != nil {
		c.Fatalf("Ping: %v", err)
	}
	a, b, missing := c.key("a"), c.key("b"), c.key("missing")
	c.becomes(map[string]string{}, missing)
	c.Set(a, "1")
	c.Set(b, "2")
	c.becomes(map[string]string{a: "1"}, a)
	c.becomes(map[string]string{a: "1", b: "2"}, a, b, missing, a)
	c.Set(a, "3")
	c.becomes(map[string]string{a: "3", b: "2"}, a, b)
	c.Delete(a)
	c.becomes(map[string]string{b: "2"}, a, b)
	c.Delete(a) // what is not there
	c.Set(a, "4")
	c.becomes(map[string]string{a: "4", b: "2"}, b, a)
	items := c.get(a)
	delete(items, a) // the map is ours
	c.becomes(map[string]string{a: "4"}, a)
}

func configGetAll(c *configTest) {
	want := map[string]string{}
	for i := range 40 {
		k := c.key(fmt.Sprintf("k%02d", i))
		c.Set(k, fmt.Sprint(i))
		want[k] = fmt.Sprint(i)
	}
	if _, err := c.store.Get(c.ctx(), nil, nil); fault.Of(err) == fault.Unsupported {
		notOffered(c.T, "the store cannot list its keys")
		return
	}
	c.becomes(want)
	gone := c.key("k07")
	c.Delete(gone)
	delete(want, gone)
	c.becomes(want)
}

func configValues(c *configTest) {
	values := []string{"plain", "with space", "ünï 键 🙂", "two\nlines\n", "true", "012", "1.50", "null", "~", `{"json": [1, 2]}`, `"quoted"`,
		"- a\n- b", "a: b", "#no comment", " padded ", "''", strings.Repeat("x", 60_000), "=", "%41", "yes", "0x10", "2001-02-03", "\t"}
	want := map[string]string{}
	var keys []string
	for i, v := range values {
		k := c.key(fmt.Sprint("v", i))
		c.Set(k, v)
		want[k] = v
		keys = append(keys, k)
	}
	for i, name := range c.Keys {
		k := c.key(name)
		c.Set(k, fmt.Sprint("of ", i))
		want[k] = fmt.Sprint("of ", i)
		keys = append(keys, k)
	}
	f := c.follow(c.store, 0, keys...)
	c.becomes(want, keys...)
	for i, name := range c.Keys {
		c.Set(c.key(name), fmt.Sprint("new ", i))
	}
	for i, name := range c.Keys {
		f.hears(c.key(name), fmt.Sprint("new ", i))
	}
	for _, k := range []string{"*", ">", "a*", "%", "a b", "键", "?", "[a]", "", strings.Repeat("k", 4000)} { // nothing here is a pattern
		if got := c.get(k); len(got) > 1 || len(got) == 1 && got[k].Value == "" {
			c.Errorf("Get(%s) found %d items", show(k), len(got))
		}
	}
}

func configVersions(c *configTest) {
	k := c.key("k")
	c.Set(k, "1")
	c.becomes(map[string]string{k: "1"}, k)
	first := c.get(k)[k]
	if first.Version == "" {
		notOffered(c.T, "the store has no versions")
		return
	}
	if again := c.get(k)[k]; again.Version != first.Version {
		c.Errorf("the version changed from %q to %q with nothing written", first.Version, again.Version)
	}
	c.Set(k, "2")
	c.becomes(map[string]string{k: "2"}, k)
	if second := c.get(k)[k]; second.Version == first.Version {
		c.Errorf("version %q did not change with the value", first.Version)
	}
}

func configChanges(c *configTest) {
	a, b, later := c.key("a"), c.key("b"), c.key("later")
	c.Set(a, "old")
	c.Set(b, "old")
	c.becomes(map[string]string{a: "old", b: "old"}, a, b)
	f := c.follow(c.store, 0, a, b, later)
	c.Set(a, "new")
	f.hears(a, "new")
	c.Set(later, "first")
	f.hears(later, "first")
	c.Delete(a)
	f.hears(a, "")
	c.Set(a, "back")
	f.hears(a, "back")
	if got := f.values(a); !slices.Equal(got, []string{"new", "", "back"}) {
		c.Errorf("of a was told %q, want every change once, and not what there was before", got)
	}
	if got := f.values(b); len(got) != 0 {
		c.Errorf("of b, which did not change, was told %q", got)
	}
	if err := f.end(); fault.Of(err) != fault.Canceled {
		c.Errorf("Subscribe returned %v, want its context's error", err)
	}
	c.Set(a, "unheard")
	c.becomes(map[string]string{a: "unheard"}, a)
	if got := f.values(a); got[len(got)-1] != "back" {
		c.Errorf("after its end the subscription was told %q", got)
	}
}

func configSelection(c *configTest) {
	a, b := c.key("a"), c.key("ab")
	f := c.follow(c.store, 0, a)
	g := c.follow(c.store, 0, b)
	for i := range 3 {
		c.Set(b, fmt.Sprint("b", i))
		g.hears(b, fmt.Sprint("b", i))
		c.Set(a, fmt.Sprint("a", i))
		f.hears(a, fmt.Sprint("a", i))
	}
	if got := append(f.values(b), g.values(a)...); len(got) != 0 {
		c.Errorf("%q was told of keys that were not asked for", got)
	}
}

func configAnyKey(c *configTest) {
	if _, err := c.store.Get(c.ctx(), nil, nil); fault.Of(err) == fault.Unsupported {
		notOffered(c.T, "the store cannot list its keys")
		return
	}
	a, b := c.key("a"), c.key("b")
	c.Set(a, "old")
	c.becomes(map[string]string{a: "old"}, a)
	f := c.follow(c.store, 0)
	c.Set(b, "1")
	f.hears(b, "1")
	c.Set(a, "2")
	f.hears(a, "2")
	c.Delete(b)
	f.hears(b, "")
	if got := f.values(a); !slices.Equal(got, []string{"2"}) {
		c.Errorf("of a was told %q", got)
	}
}

func configOrder(c *configTest) {
	k := c.key("k")
	f := c.follow(c.store, 0, k)
	var want []string
	for i := range 60 {
		want = append(want, fmt.Sprintf("%02d", i))
		c.Set(k, want[i])
	}
	f.hears(k, want[len(want)-1])
	at := -1
	for _, v := range f.values(k) { // some may be left out, none may come twice or too late
		i := slices.Index(want, v)
		if i <= at {
			c.Fatalf("told %q, which is not in the order of the writes", f.values(k))
		}
		at = i
	}
}

func configSubscribers(c *configTest) {
	k := c.key("k")
	fs := []*follower{c.follow(c.store, 0, k), c.follow(c.store, 0, k, c.key("other")), c.follow(c.client(), 0, k)}
	c.Set(k, "1")
	for _, f := range fs {
		f.hears(k, "1")
	}
	_ = fs[0].end()
	c.Set(k, "2")
	for _, f := range fs[1:] {
		f.hears(k, "2")
	}
	if got := fs[0].values(k); len(got) != 1 {
		c.Errorf("an ended subscription was told %q", got)
	}
}

// configSlow: changed may block, and what happens meanwhile is told later.
func configSlow(c *configTest) {
	var keys []string
	for i := range 30 {
		keys = append(keys, c.key(fmt.Sprintf("k%02d", i)))
	}
	f := c.follow(c.store, 10*time.Millisecond, keys...)
	quick := c.follow(c.store, 0, keys...)
	for round := range 3 {
		for _, k := range keys {
			c.Set(k, fmt.Sprint(round))
		}
	}
	for _, k := range keys {
		quick.hears(k, "2")
	}
	for _, k := range keys {
		f.hears(k, "2")
	}
}

func configInterrupt(c *configTest) {
	if c.Interrupt == nil {
		notOffered(c.T, "there is no connection to lose")
		return
	}
	changed, same, gone, fresh := c.key("changed"), c.key("same"), c.key("gone"), c.key("fresh")
	for _, k := range []string{changed, same, gone} {
		c.Set(k, "old")
	}
	f := c.follow(c.store, 0, changed, same, gone, fresh)
	c.Interrupt(func() {
		c.Set(changed, "between")
		c.Set(changed, "new")
		c.Set(fresh, "new")
		c.Delete(gone)
	})
	f.hears(changed, "new")
	f.hears(fresh, "new")
	f.hears(gone, "")
	c.Set(same, "after")
	f.hears(same, "after")
	if got := f.values(same); len(got) != 1 {
		c.Errorf("of a key that did not change meanwhile was told %q, want what came after only", got)
	}
	c.Interrupt(func() {}) // and once more
	c.Set(changed, "again")
	f.hears(changed, "again")
}

func configContext(c *configTest) {
	k := c.key("k")
	c.Set(k, "v")
	c.becomes(map[string]string{k: "v"}, k)
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	start := time.Now()
	_, err := c.store.Get(ended, []string{k}, nil)
	wantCode(c, "Get with an ended context", err, fault.Canceled)
	err = c.store.Subscribe(ended, []string{k}, nil, func() {}, func(map[string]block.ConfigItem) { c.Error("a change was told") })
	wantCode(c, "Subscribe with an ended context", err, fault.Canceled)
	if took := time.Since(start); took > 2*time.Second {
		c.Errorf("calls with an ended context took %v", took)
	}
}

func configClose(c *configTest) {
	k := c.key("k")
	c.Set(k, "v")
	other := c.follow(c.client(), 0, k)
	f := c.follow(c.store, 0, k)
	for i := range 2 {
		if err := c.store.Close(c.ctx()); err != nil {
			c.Errorf("Close number %d: %v", i+1, err)
		}
	}
	select {
	case <-f.done:
		wantCode(c, "Subscribe at Close", f.err, fault.Unavailable)
	case <-time.After(patience):
		c.Fatalf("Subscribe did not return after Close")
	}
	_, err := c.store.Get(c.ctx(), []string{k}, nil)
	wantCode(c, "Get after Close", err, fault.Unavailable)
	err = c.store.Subscribe(c.ctx(), []string{k}, nil, func() {}, func(map[string]block.ConfigItem) {})
	wantCode(c, "Subscribe after Close", err, fault.Unavailable)
	wantCode(c, "Ping after Close", c.store.Ping(c.ctx()), fault.Unavailable)
	c.Set(k, "new")
	other.hears(k, "new")
}
