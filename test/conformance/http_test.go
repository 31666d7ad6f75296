//go:build unix

package conformance_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// web is a client of the HTTP API.
type web struct {
	*life
	base    string
	client  *http.Client
	updates *updates
}

func newWeb(t *testing.T, base string, u *updates) *web {
	t.Helper()
	c := &web{life: newLife(), base: base, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}, updates: u}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func (c *web) state(component string) block.State { return &webState{c, component} }
func (c *web) lock(component string) block.Lock   { return &webLock{c, component} }
func (c *web) configuration(component string) block.Configuration {
	return &webConfiguration{c, component}
}

func (c *web) Ping(ctx context.Context) error {
	_, err := c.do(ctx, "http.Ping", http.MethodGet, "/v1.0/healthz", nil, nil)
	return err
}

func (c *web) Close(context.Context) error { return c.close(c.client.CloseIdleConnections) }

// answer is what came back of a call that was answered with 2xx.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends one request; a body that is not nil is sent as JSON.
func (c *web) do(ctx context.Context, op fault.Op, method, path string, body any, header http.Header) (answer, error) {
	if err := c.judge(ctx, op, nil); err != nil {
		return answer{}, err
	}
	a, err := c.send(ctx, method, path, body, header)
	switch {
	case err != nil:
		err = fault.Wrap(op, fault.Unavailable, err)
	case a.status/100 != 2:
		code := fault.Internal
		switch a.status {
		case http.StatusConflict:
			code = fault.Conflict
		case http.StatusBadRequest:
			code = fault.Invalid
		case http.StatusServiceUnavailable:
			code = fault.Unavailable
		}
		err = fault.New(op, code, "%s %s: %d %s", method, path, a.status, a.body)
	}
	return a, c.judge(ctx, op, err)
}

func (c *web) send(ctx context.Context, method, path string, body any, header http.Header) (answer, error) {
	var in io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		in = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, in)
	if err != nil {
		return answer{}, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, out}, err
}

// webState is a state store behind the HTTP API. It is no block.StateBatch: of several writes the
// wire says that one failed and not which, and it has no removal of several keys.
type webState struct {
	*web
	store string
}

var (
	_ block.StateTx  = (*webState)(nil)
	_ block.StateTTL = (*webState)(nil)
)

func (s *webState) ExpiresItems() {}
func (s *webState) MaxOps() int   { return 0 }

func (s *webState) path(key string) string {
	return "/v1.0/state/" + s.store + "/" + url.PathEscape(wireKey(key))
}

// webValue is a value as HTTP can save it, which is as JSON: what is JSON goes as it is, other bytes
// as the text of their base64. A value that is a JSON text goes so, too, to be told from those.
func webValue(value []byte) json.RawMessage {
	if json.Valid(value) && value[0] != '"' && len(bytes.TrimSpace(value)) == len(value) && !bytes.Equal(value, []byte("null")) {
		return value
	}
	return json.RawMessage(strconv.Quote(base64.StdEncoding.EncodeToString(value)))
}

func plainValue(body []byte) ([]byte, error) {
	if len(body) == 0 || body[0] != '"' {
		return body, nil
	}
	return base64.StdEncoding.DecodeString(strings.Trim(string(body), `"`))
}

func (s *webState) Get(ctx context.Context, key string, opts block.StateRead) (block.StateItem, error) {
	const op fault.Op = "http.state.Get"
	path := s.path(key)
	if opts.Strong {
		path += "?consistency=strong"
	}
	a, err := s.do(ctx, op, http.MethodGet, path, nil, nil)
	if err != nil || a.status == http.StatusNoContent {
		return block.StateItem{Key: key}, err
	}
	item := block.StateItem{Key: key, Exists: true, ETag: a.header.Get("ETag")}
	if item.Value, err = plainValue(a.body); err != nil {
		return block.StateItem{}, fault.Wrap(op, fault.Internal, err)
	}
	if at := a.header.Get("Metadata.ttlExpireTime"); at != "" {
		if item.Expires, err = time.Parse(time.RFC3339, at); err != nil {
			return block.StateItem{}, fault.Wrap(op, fault.Internal, err)
		}
	}
	return item, nil
}

// webItem is an element of a save and the request of a transaction's step.
type webItem struct {
	Key      string            `json:"key"`
	Value    json.RawMessage   `json:"value"`
	ETag     string            `json:"etag,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
}

func newWebItem(w block.StateWrite) webItem {
	item := webItem{Key: wireKey(w.Key), Value: webValue(w.Value), ETag: w.ETag, Options: map[string]string{}}
	if w.FirstWrite {
		item.Options["concurrency"] = "first-write"
	}
	if w.Strong {
		item.Options["consistency"] = "strong"
	}
	if w.TTL > 0 {
		item.Metadata = map[string]string{"ttlInSeconds": strconv.FormatInt(seconds(w.TTL), 10)}
	}
	return item
}

func (s *webState) Set(ctx context.Context, w block.StateWrite) error {
	_, err := s.do(ctx, "http.state.Set", http.MethodPost, "/v1.0/state/"+s.store, []webItem{newWebItem(w)}, nil)
	return badEtag(w.ETag, err)
}

func (s *webState) Delete(ctx context.Context, d block.StateDelete) error {
	const op fault.Op = "http.state.Delete"
	header := http.Header{}
	if d.ETag != "" {
		if strings.TrimSpace(d.ETag) != d.ETag || strings.ContainsAny(d.ETag, "\r\n") {
			return fault.New(op, fault.BadEtag, "no header can carry the etag %q", d.ETag) // so no answer had it
		}
		header.Set("If-Match", d.ETag)
	}
	_, err := s.do(ctx, op, http.MethodDelete, s.path(d.Key), nil, header)
	return badEtag(d.ETag, err)
}

func (s *webState) Transact(ctx context.Context, ops []block.StateOp) error {
	const op fault.Op = "http.state.Transact"
	type step struct {
		Operation string  `json:"operation"`
		Request   webItem `json:"request"`
	}
	steps := make([]step, len(ops))
	for i, o := range ops {
		steps[i] = step{"upsert", newWebItem(o.StateWrite)}
		if o.Delete {
			steps[i].Operation = "delete"
		}
	}
	_, err := s.do(ctx, op, http.MethodPost, "/v1.0/state/"+s.store+"/transaction", map[string]any{"operations": steps}, nil)
	if fault.Of(err) != fault.Internal {
		return err
	}
	return refused(ctx, s, op, ops, err)
}

// webLock is a lock store behind the HTTP API, which neither renews locks nor numbers grants.
type webLock struct {
	*web
	store string
}

func (l *webLock) post(ctx context.Context, op fault.Op, call string, in, out any) error {
	a, err := l.do(ctx, op, http.MethodPost, "/v1.0-alpha1/"+call+"/"+l.store, in, nil)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(a.body, out); err != nil {
		return fault.Wrap(op, fault.Internal, err)
	}
	return nil
}

func (l *webLock) TryLock(ctx context.Context, name, owner string, ttl time.Duration) (bool, error) {
	var out struct{ Success bool }
	err := l.post(ctx, "http.lock.TryLock", "lock", map[string]any{"resourceId": wireKey(name), "lockOwner": owner, "expiryInSeconds": seconds(ttl)}, &out)
	return out.Success, err
}

func (l *webLock) Unlock(ctx context.Context, name, owner string) (block.UnlockStatus, error) {
	var out struct{ Status block.UnlockStatus }
	err := l.post(ctx, "http.lock.Unlock", "unlock", map[string]any{"resourceId": wireKey(name), "lockOwner": owner}, &out)
	return out.Status, err
}

// webConfiguration is a configuration store behind the HTTP API. Changes are calls to the app.
type webConfiguration struct {
	*web
	store string
}

// webConfigItem is an item on this wire.
type webConfigItem struct {
	Value    string
	Version  string
	Metadata map[string]string
}

func plainItems(in map[string]webConfigItem) map[string]block.ConfigItem {
	out := make(map[string]block.ConfigItem, len(in))
	for k, it := range in {
		out[k] = block.ConfigItem(it)
	}
	return out
}

func (c *webConfiguration) query(keys []string, metadata map[string]string) string {
	q := url.Values{"key": keys}
	for k, v := range metadata {
		q.Set("metadata."+k, v)
	}
	return "?" + q.Encode()
}

func (c *webConfiguration) Get(ctx context.Context, keys []string, metadata map[string]string) (map[string]block.ConfigItem, error) {
	const op fault.Op = "http.configuration.Get"
	a, err := c.do(ctx, op, http.MethodGet, "/v1.0/configuration/"+c.store+c.query(keys, metadata), nil, nil)
	if err != nil || a.status == http.StatusNoContent {
		return map[string]block.ConfigItem{}, err
	}
	var items map[string]webConfigItem
	if err := json.Unmarshal(a.body, &items); err != nil {
		return nil, fault.Wrap(op, fault.Internal, err)
	}
	return plainItems(items), nil
}

func (c *webConfiguration) Subscribe(ctx context.Context, keys []string, metadata map[string]string, started func(), changed func(map[string]block.ConfigItem)) error {
	const op fault.Op = "http.configuration.Subscribe"
	a, err := c.do(ctx, op, http.MethodGet, "/v1.0/configuration/"+c.store+"/subscribe"+c.query(keys, metadata), nil, nil)
	if err != nil {
		return err
	}
	var out struct{ ID string }
	if err := json.Unmarshal(a.body, &out); err != nil || out.ID == "" {
		return fault.New(op, fault.Internal, "the answer is %s (%v), want an id", a.body, err)
	}
	started()
	told := c.updates.of(out.ID)
	for {
		select {
		case <-told.more:
			for _, items := range told.take() {
				changed(items)
			}
			continue
		case <-ctx.Done():
		case <-c.ended:
		}
		// The client may be closed and the context has ended, and yet there is something to say.
		last, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		a, err := c.send(last, http.MethodGet, "/v1.0/configuration/"+c.store+"/"+out.ID+"/unsubscribe", nil, nil)
		if err != nil || a.status != http.StatusOK || string(a.body) != "{\"ok\":true}\n" {
			return fault.New(op, fault.Internal, "unsubscribing: %d %s %v", a.status, a.body, err)
		}
		return c.judge(ctx, op, context.Canceled)
	}
}

// updates is the app: it is sent the changes of all subscriptions.
type updates struct {
	mu   sync.Mutex
	subs map[string]*inbox // guarded by mu; by id of the subscription
}

func newUpdates() *updates { return &updates{subs: map[string]*inbox{}} }

// of is where the changes of a subscription are; they may come before its id is known here.
func (u *updates) of(id string) *inbox {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.subs[id] == nil {
		u.subs[id] = &inbox{more: make(chan struct{}, 1)}
	}
	return u.subs[id]
}

func (u *updates) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.URL.Path, "/configuration/") {
		http.NotFound(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	var in struct {
		ID    string
		Items map[string]webConfigItem
	}
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	if err != nil || in.ID == "" || len(in.Items) == 0 {
		http.Error(w, fmt.Sprint("no update: ", err), http.StatusBadRequest)
		return
	}
	u.of(in.ID).put(string(body), plainItems(in.Items))
}

// inbox keeps the changes of one subscription.
type inbox struct {
	more chan struct{}

	mu    sync.Mutex
	items []map[string]block.ConfigItem // guarded by mu
	last  string                        // guarded by mu; the body that came last
	again int                           // guarded by mu; how often it is still to come
}

// put keeps an update. One of several keys comes once for each of them, whole each time.
func (i *inbox) put(body string, items map[string]block.ConfigItem) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.again > 0 && body == i.last {
		i.again--
		return
	}
	i.items, i.last, i.again = append(i.items, items), body, len(items)-1
	select {
	case i.more <- struct{}{}:
	default:
	}
}

func (i *inbox) take() []map[string]block.ConfigItem {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := i.items
	i.items = nil
	return out
}
