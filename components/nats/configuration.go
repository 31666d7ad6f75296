package nats

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// endPatience bounds how long an end waits for the server.
const endPatience = 2 * time.Second

var _ block.Configuration = (*Configuration)(nil)

// EmbeddedConfigurationConfig configures a configuration store in the embedded node.
type EmbeddedConfigurationConfig struct {
	Node  NodeConfig
	Store StoreConfig
}

// DefaultEmbeddedConfigurationConfig returns the defaults.
func DefaultEmbeddedConfigurationConfig() *EmbeddedConfigurationConfig {
	return &EmbeddedConfigurationConfig{Node: defaultNode()}
}

// ConfigurationConfig configures a configuration store in a NATS server.
type ConfigurationConfig struct {
	Conn  ConnConfig
	Store StoreConfig
	// Replicas is how many servers of a cluster keep the bucket, when it is created.
	Replicas int `yaml:"replicas"`
}

// DefaultConfigurationConfig returns the defaults.
func DefaultConfigurationConfig() *ConfigurationConfig { return &ConfigurationConfig{Replicas: 1} }

// Validate reports what cannot work.
func (c *ConfigurationConfig) Validate() error { return checkReplicas(c.Replicas) }

// NewEmbeddedConfiguration opens a configuration store in the embedded node.
func NewEmbeddedConfiguration(env block.Env, c *EmbeddedConfigurationConfig) (block.Configuration, error) {
	return OpenEmbeddedConfiguration(env, c), nil
}

// OpenEmbeddedConfiguration is NewEmbeddedConfiguration for those who also write.
func OpenEmbeddedConfiguration(env block.Env, c *EmbeddedConfigurationConfig) *Configuration {
	return newConfiguration(env, newBucket(env, &c.Store, 1, c.Node.dialer(env), aboutConfiguration))
}

// NewConfiguration opens a configuration store in a NATS server.
func NewConfiguration(env block.Env, c *ConfigurationConfig) (block.Configuration, error) {
	return newConfiguration(env, newBucket(env, &c.Store, c.Replicas, c.Conn.dialer(env), aboutConfiguration)), nil
}

const aboutConfiguration = "configuration of Mecha"

func newConfiguration(env block.Env, s *state) *Configuration {
	return &Configuration{s: s, bucket: strings.TrimPrefix(s.stream, "KV_"), recheck: recheck, log: logger(env)}
}

// Configuration is a bucket whose keys are written as the product's own tools write them: `nats
// kv put configstore orders.limit 10` sets the item orders.limit. Keys that those tools refuse
// do not exist here. An item's version is its revision, the sequence in the stream.
type Configuration struct {
	s       *state
	bucket  string
	recheck time.Duration
	log     *slog.Logger
}

// plainKey tells which keys a bucket can hold as they are, as the client library does.
func plainKey(key string) bool {
	if key == "" || len(key) > maxEncoded || key[0] == '.' || key[len(key)-1] == '.' || strings.Contains(key, "..") {
		return false
	}
	for i := range len(key) {
		if c := key[i]; !plain(c) && c != '.' && c != '=' {
			return false
		}
	}
	return true
}

// Ping checks that the server answers and the bucket exists or can be made.
func (c *Configuration) Ping(ctx context.Context) error {
	const op fault.Op = "nats.configuration.Ping"
	p, err := c.s.conn.acquire(ctx, op)
	if err != nil {
		return err
	}
	return c.s.create(ctx, op, p)
}

// Close gives the connection back and ends subscriptions.
func (c *Configuration) Close(ctx context.Context) error {
	return c.s.conn.closeWithin(ctx, "nats.configuration.Close")
}

// Get reads items; no keys means all.
func (c *Configuration) Get(ctx context.Context, keys []string, _ map[string]string) (map[string]block.ConfigItem, error) {
	const op fault.Op = "nats.configuration.Get"
	if len(keys) == 0 {
		return c.all(ctx, op)
	}
	var asked []string
	var msgs []*natsgo.Msg
	for _, k := range keys {
		if plainKey(k) {
			asked = append(asked, k)
			msgs = append(msgs, &natsgo.Msg{Subject: c.s.getter + k})
		}
	}
	if len(asked) == 0 { // nothing to ask, and all the same nothing to say without a server
		return map[string]block.ConfigItem{}, c.Ping(ctx)
	}
	answers, err := c.s.ask(ctx, op, msgs...)
	if err != nil {
		return nil, err
	}
	out := make(map[string]block.ConfigItem, len(asked))
	for i, m := range answers {
		v, err := parseVersion(op, m)
		if err != nil {
			return nil, err
		}
		if v.live() {
			out[asked[i]] = configItem(v.value, v.seq)
		}
	}
	return out, nil
}

func configItem(value []byte, revision uint64) block.ConfigItem {
	return block.ConfigItem{Value: string(value), Version: strconv.FormatUint(revision, 10)}
}

// all reads every item, by watching until what there was has come.
func (c *Configuration) all(ctx context.Context, op fault.Op) (map[string]block.ConfigItem, error) {
	p, err := c.s.conn.acquire(ctx, op)
	if err != nil {
		return nil, err
	}
	w, err := c.watch(ctx, op, p, nil)
	if err != nil {
		return nil, err
	}
	defer w.stop()
	seen, err := w.present(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]block.ConfigItem, len(seen))
	for k, e := range seen {
		out[k] = configItem(e.Value(), e.Revision())
	}
	return out, nil
}

// Set writes an item, and returns its version. It is not part of the block: operators write.
func (c *Configuration) Set(ctx context.Context, key, value string) (version string, err error) {
	const op fault.Op = "nats.configuration.Set"
	seq, err := c.write(ctx, op, key, &natsgo.Msg{Data: []byte(value)})
	return strconv.FormatUint(seq, 10), err
}

// Delete removes an item; it is no error when there is none.
func (c *Configuration) Delete(ctx context.Context, key string) error {
	const op fault.Op = "nats.configuration.Delete"
	h := natsgo.Header{headerOp: []string{opDelete}}
	if a, err := c.s.able(ctx, op); err != nil {
		return err
	} else if a.ttl {
		h[headerTTL] = []string{markerLife}
	}
	_, err := c.write(ctx, op, key, &natsgo.Msg{Header: h})
	return err
}

func (c *Configuration) write(ctx context.Context, op fault.Op, key string, m *natsgo.Msg) (uint64, error) {
	if !plainKey(key) {
		return 0, fault.New(op, fault.Invalid, "key %.60q: a key has letters, digits and - _ / = . (no dot at either end, no two together), at most %d bytes", key, maxEncoded).
			With(fault.IllegalKey)
	}
	m.Subject = c.s.prefix + key
	return c.s.publish(ctx, op, "key "+strconv.Quote(key), m)
}

// Subscribe follows keys. A lost connection is waited out; then the keys are read again and what
// differs is told.
func (c *Configuration) Subscribe(ctx context.Context, keys []string, _ map[string]string, started func(), changed func(map[string]block.ConfigItem)) error {
	f := &follower{c: c, keys: wanted(keys), changed: changed, started: started}
	if len(keys) > 0 && len(f.keys) == 0 {
		return f.nothing(ctx)
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := f.round(ctx)
		switch {
		case ctx.Err() != nil:
			return fault.Wrap(opSubscribe, fault.Canceled, ctx.Err())
		case c.s.conn.life.Err() != nil:
			return closedError(opSubscribe)
		case !f.begun:
			return err
		case f.fresh: // it worked for a while
			pause = firstPause
		}
		if err != nil {
			c.log.Warn("following the configuration bucket is interrupted; trying again", "bucket", c.bucket, "error", err, "after", pause)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-c.s.conn.life.Done():
		}
	}
}

const opSubscribe fault.Op = "nats.configuration.Subscribe"

// Pauses between attempts to follow a bucket again.
const (
	firstPause = 20 * time.Millisecond
	lastPause  = 5 * time.Second
)

// recheck is how often a follower makes sure that the bucket is still the one it follows: one
// that was removed and made again tells it nothing.
const recheck = 30 * time.Second

func wanted(keys []string) (out []string) {
	for _, k := range keys {
		if plainKey(k) {
			out = append(out, k)
		}
	}
	return out
}

// follower is a subscription at work.
type follower struct {
	c       *Configuration
	keys    []string
	started func()
	changed func(map[string]block.ConfigItem)

	begun bool              // started was called
	fresh bool              // the last round read the bucket
	told  map[string]uint64 // revisions the subscriber knows, of keys that exist
}

// nothing follows keys that cannot exist.
func (f *follower) nothing(ctx context.Context) error {
	if err := f.c.Ping(ctx); err != nil {
		return err
	}
	f.started()
	select {
	case <-ctx.Done():
		return fault.Wrap(opSubscribe, fault.Canceled, ctx.Err())
	case <-f.c.s.conn.life.Done():
		return closedError(opSubscribe)
	}
}

// round follows the bucket through one uninterrupted connection.
func (f *follower) round(ctx context.Context) error {
	f.fresh = false
	p, err := f.c.s.conn.acquire(ctx, opSubscribe)
	if err != nil {
		return err
	}
	w, err := f.c.watch(ctx, opSubscribe, p, f.keys)
	if err != nil {
		return err
	}
	defer w.stop()
	seen, err := w.present(ctx)
	if err != nil {
		return err
	}
	f.fresh = true
	f.compare(seen)
	tick := time.NewTicker(f.c.recheck)
	defer tick.Stop()
	for {
		select {
		case e, ok := <-w.kw.Updates():
			if !ok {
				return fault.New(opSubscribe, fault.Unavailable, "the server ended the watch of bucket %s", f.c.bucket)
			}
			if e != nil {
				f.tell(e)
			}
		case <-tick.C:
			if err := w.same(ctx); err != nil {
				return err
			}
		case <-p.over:
			return fault.New(opSubscribe, fault.Unavailable, "the connection was lost")
		case <-ctx.Done():
			return fault.Wrap(opSubscribe, fault.Canceled, ctx.Err())
		}
	}
}

// compare takes what there is when a round begins: the first time in silence, later telling what
// differs from what was told.
func (f *follower) compare(seen map[string]jetstream.KeyValueEntry) {
	before := f.told
	f.told = make(map[string]uint64, len(seen))
	news := map[string]block.ConfigItem{}
	for k, e := range seen {
		f.told[k] = e.Revision()
		if before[k] != e.Revision() {
			news[k] = configItem(e.Value(), e.Revision())
		}
	}
	for k := range before {
		if _, is := seen[k]; !is {
			news[k] = block.ConfigItem{}
		}
	}
	switch {
	case !f.begun:
		f.begun = true
		f.started()
	case len(news) > 0:
		f.changed(news)
	}
}

// tell passes one change on. What was told already (the library may repeat) is not.
func (f *follower) tell(e jetstream.KeyValueEntry) {
	known, is := f.told[e.Key()]
	switch {
	case e.Operation() == jetstream.KeyValuePut && e.Revision() > known:
		f.told[e.Key()] = e.Revision()
		f.changed(map[string]block.ConfigItem{e.Key(): configItem(e.Value(), e.Revision())})
	case e.Operation() != jetstream.KeyValuePut && is:
		delete(f.told, e.Key())
		f.changed(map[string]block.ConfigItem{e.Key(): {}})
	}
}

// watcher is the library's watch of a bucket.
type watcher struct {
	c    *Configuration
	p    *period
	op   fault.Op
	kw   jetstream.KeyWatcher
	made time.Time // when the bucket was
}

func (c *Configuration) watch(ctx context.Context, op fault.Op, p *period, keys []string) (*watcher, error) {
	if err := c.s.create(ctx, op, p); err != nil {
		return nil, err
	}
	kv, err := p.js.KeyValue(ctx, c.bucket)
	if err != nil {
		return nil, adminError(op, "bucket "+c.s.stream, err)
	}
	w := &watcher{c: c, p: p, op: op}
	if w.made, err = w.born(ctx); err != nil {
		return nil, err
	}
	if w.kw, err = kv.WatchFiltered(ctx, append([]string(nil), keys...)); err != nil {
		return nil, adminError(op, "watch of bucket "+c.s.stream, err)
	}
	return w, nil
}

// born is when the bucket was made.
func (w *watcher) born(ctx context.Context) (time.Time, error) {
	s, err := w.p.js.Stream(ctx, w.c.s.stream)
	if err != nil {
		return time.Time{}, adminError(w.op, "bucket "+w.c.s.stream, err)
	}
	return s.CachedInfo().Created, nil
}

// same makes sure that the bucket is still there.
func (w *watcher) same(ctx context.Context) error {
	made, err := w.born(ctx)
	if err == nil && !made.Equal(w.made) {
		err = fault.New(w.op, fault.Unavailable, "bucket %s was made anew", w.c.s.stream)
	}
	return err
}

// present collects what the bucket holds when the watch begins.
func (w *watcher) present(ctx context.Context) (map[string]jetstream.KeyValueEntry, error) {
	seen := map[string]jetstream.KeyValueEntry{}
	for {
		select {
		case e, ok := <-w.kw.Updates():
			switch {
			case !ok:
				return nil, fault.New(w.op, fault.Unavailable, "the server ended the watch of bucket %s", w.c.bucket)
			case e == nil:
				return seen, nil
			case e.Operation() == jetstream.KeyValuePut:
				seen[e.Key()] = e
			default:
				delete(seen, e.Key())
			}
		case <-w.p.over:
			return nil, fault.New(w.op, fault.Unavailable, "the connection was lost while reading bucket %s", w.c.bucket)
		case <-ctx.Done():
			return nil, fault.Wrap(w.op, fault.Canceled, ctx.Err())
		}
	}
}

// stop ends the watch. The library may be waiting to hand over a change; until it has noticed
// the end, somebody has to take them.
func (w *watcher) stop() {
	if err := w.kw.Stop(); err != nil && !errors.Is(err, natsgo.ErrConnectionClosed) && !errors.Is(err, natsgo.ErrBadSubscription) {
		w.c.log.Debug("ending a watch", "bucket", w.c.bucket, "error", err)
	}
	for {
		select {
		case _, ok := <-w.kw.Updates():
			if !ok {
				return
			}
		case <-time.After(endPatience):
			return
		}
	}
}
