package catalog_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

func TestOpenFailuresSayWhatIsWrong(t *testing.T) {
	tests := []struct {
		name string
		spec catalog.Spec
		fail error
		want string // the whole text
		code fault.Code
	}{
		{"a type without a dot", catalog.Spec{Name: "s", Type: "redis", Version: "v1"}, nil,
			"[CREATE_COMPONENT_FAILURE]: initialization error occurred for s (redis/v1): incorrect type redis", fault.Invalid},
		{"a block that does not exist", catalog.Spec{Name: "s", Type: "states.redis", Version: "v1"}, nil,
			"[CREATE_COMPONENT_FAILURE]: initialization error occurred for s (states.redis/v1): incorrect type states.redis", fault.Invalid},
		{"a product that is not linked in", catalog.Spec{Name: "s", Type: "state.zookeeper", Version: "v1"}, nil,
			"[CREATE_COMPONENT_FAILURE]: initialization error occurred for s (state.zookeeper/v1): couldn't find state store state.zookeeper/v1; this version has state.redis", fault.Invalid},
		{"a misspelt product", catalog.Spec{Name: "s", Type: "state.reddis", Version: "v1"}, nil,
			"[CREATE_COMPONENT_FAILURE]: initialization error occurred for s (state.reddis/v1): couldn't find state store state.reddis/v1; did you mean state.redis?", fault.Invalid},
		{"a broker by its block's name", catalog.Spec{Name: "s", Type: "pubsub.kafcca"}, nil,
			"[CREATE_COMPONENT_FAILURE]: initialization error occurred for s (pubsub.kafcca): couldn't find message bus pubsub.kafcca/v1; this version has pubsub.redis", fault.Invalid},
		{"a version it does not have", catalog.Spec{Name: "s", Type: "state.redis", Version: "v9"}, nil,
			"[CREATE_COMPONENT_FAILURE]: initialization error occurred for s (state.redis/v9): couldn't find state store state.redis/v9", fault.Invalid},
		{"a wrong value", catalog.Spec{Name: "s", Type: "state.redis", Items: []conf.Item{{Name: "retries", Value: "many", File: "s.yaml", Line: 7}}}, nil,
			"s.yaml:7", fault.Invalid},
		{"what the backend itself finds", catalog.Spec{Name: "s", Type: "state.redis", Items: conf.Items("host", "bad")}, nil,
			"this host is known to be bad", fault.Invalid},
		{"a constructor that fails keeps its code", catalog.Spec{Name: "s", Type: "state.redis"}, fault.New("x", fault.Denied, "no key"),
			"[INIT_COMPONENT_FAILURE]: initialization error occurred for s (state.redis): no key", fault.Denied},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t)
			k.fail = tt.fail
			_, err := k.Open(tt.spec)
			if err == nil {
				t.Fatal("it opened")
			}
			if !strings.Contains(err.Error(), tt.want) || (strings.HasPrefix(tt.want, "[") && err.Error() != tt.want) {
				t.Errorf("got  %q\nwant %q", err, tt.want)
			}
			if fault.Of(err) != tt.code {
				t.Errorf("code %v, want %v", fault.Of(err), tt.code)
			}
		})
	}
}

func TestOpenDecodesAndLends(t *testing.T) {
	k := newKit(t)
	open(t, k, catalog.Spec{Name: "s", Type: "state.redis", Version: "v2", Items: conf.Items("HOST", "h", "retries", "3", "keyPrefix", "none", "hosst", "x")})
	if want := (config{Host: "h", Retries: 3}); k.config != want {
		t.Errorf("configuration %+v, want %+v", k.config, want)
	}
	if k.opened.Component != "s" || k.opened.AppID != "app" || k.opened.Log == nil {
		t.Errorf("lent %+v", k.opened)
	}
	// keyPrefix is the service's; hosst is nobody's, which is only a warning at run time.
	if log := k.log.String(); !strings.Contains(log, "hosst") || strings.Contains(log, "keyPrefix") || !strings.Contains(log, "host") {
		t.Errorf("log:\n%s", log)
	}
}

func TestPublishedComponentsHaveTheirPolicy(t *testing.T) {
	k := newKit(t)
	o := open(t, k, catalog.Spec{Name: "s", Type: "state.redis", Version: "v1", Items: []conf.Item{{Name: "keyPrefix", Value: "name"}, {Name: "password", Value: "hush", Secret: true}}})
	if _, err := k.State.Lookup("s"); err == nil {
		t.Error("found before it was published")
	}
	k.Publish(o)
	h, err := k.State.Lookup("s")
	if err != nil {
		t.Fatal(err)
	}
	got, err := catalog.Do(t.Context(), h, call.Desc{}, func(_ context.Context, s block.State) (block.State, error) { return s, nil }, nil)
	if err != nil || got != block.State(k.comp) {
		t.Errorf("the handle holds another component (%v): wrapping hides optional interfaces", err)
	}
	if tg := h.Target; tg.Kind != call.State || tg.Direction != call.Outbound || tg.Name != "s" {
		t.Errorf("target %v %v %q", tg.Kind, tg.Direction, tg.Name)
	}
	want := catalog.Info{Name: "s", Type: "state.redis", Version: "v1", Raw: map[string]string{"keyprefix": "name"}, Capabilities: []string{"ETAG"}}
	if d := cmp.Diff(want, h.Info); d != "" {
		t.Errorf("a secret must not be in Raw (-want +got):\n%s", d)
	}
	k.Publish(open(t, k, catalog.Spec{Name: "p", Type: "pubsub.redis"}))
	if h, err := k.PubSub.Lookup("p"); err != nil || h.Target.Kind != call.Publish {
		t.Errorf("broker: %v, %v", h, err)
	}
	var listed []string
	for _, i := range k.Infos() {
		listed = append(listed, i.Name)
	}
	if d := cmp.Diff([]string{"p", "s"}, listed); d != "" {
		t.Errorf("infos (-want +got):\n%s", d)
	}
}

// The keys of an encrypted store are the catalog's: its backend never sees them.
func TestEncryptedStore(t *testing.T) {
	k := newKit(t)
	key := conf.Item{Name: "primaryEncryptionKey", Value: "000102030405060708090a0b0c0d0e0f", Secret: true, SecretName: "keys"}
	o := open(t, k, catalog.Spec{Name: "s", Type: "state.redis", Items: []conf.Item{{Name: "host", Value: "h"}, key}})
	k.Publish(o)
	h, err := k.State.Lookup("s")
	if err != nil {
		t.Fatal(err)
	}
	got, err := catalog.Do(t.Context(), h, call.Desc{}, func(_ context.Context, s block.State) (block.State, error) { return s, nil }, nil)
	if err != nil || got == block.State(k.comp) {
		t.Errorf("calls reach the store without its encryption (%v)", err)
	}
	if log := k.log.String(); strings.Contains(log, "00010203") || strings.Contains(log, "unknown") || !strings.Contains(log, "with the key of secret keys") {
		t.Errorf("log:\n%s", log)
	}
	if _, ok := h.Raw["primaryencryptionkey"]; ok {
		t.Error("the key is in Raw")
	}
	key.SecretName = ""
	_, err = k.Open(catalog.Spec{Name: "s", Type: "state.redis", Items: []conf.Item{key}})
	if err == nil || !strings.HasPrefix(err.Error(), "[INIT_COMPONENT_FAILURE]: initialization error occurred for s (state.redis): ") || strings.Contains(err.Error(), "00010203") {
		t.Errorf("a key that is no secret: %v", err)
	}
	// Elsewhere it is an entry like any other.
	if o := open(t, k, catalog.Spec{Name: "p", Type: "pubsub.redis", Items: []conf.Item{key}}); len(o.Spec.Items) != 1 {
		t.Error("a broker's entry has gone")
	}
}

// both is a product whose one type serves two blocks.
type both struct {
	broker
	store
}

func (b *both) Ping(context.Context) error  { return nil }
func (b *both) Close(context.Context) error { return nil }

func TestAComponentIsPlacedByItsDeclaration(t *testing.T) {
	set, err := block.NewSet(block.Backend{Name: "test", Parts: []block.Part{
		block.StatePart("both", "", defaults, func(block.Env, *config) (block.State, error) { return &both{}, nil }),
		block.PubSubPart("both", "", defaults, func(block.Env, *config) (block.PubSub, error) { return &both{}, nil })}})
	if err != nil {
		t.Fatal(err)
	}
	c := catalog.New(catalog.Options{Backends: set, Log: slog.New(slog.DiscardHandler), Env: func(string, *slog.Logger) block.Env { return block.Env{} },
		Govern: func(*call.Target) {}})
	for _, typ := range []string{"pubsub.both", "state.both"} {
		o, err := c.Open(catalog.Spec{Name: typ, Type: typ})
		if err != nil {
			t.Fatal(err)
		}
		c.Publish(o)
	}
	if _, err := c.PubSub.Lookup("pubsub.both"); err != nil {
		t.Error(err)
	}
	if _, err := c.State.Lookup("state.both"); err != nil {
		t.Error(err)
	}
	if _, err := c.State.Lookup("pubsub.both"); err == nil {
		t.Error("a broker is among the stores")
	}
}

func TestInitWaitsForTheServer(t *testing.T) {
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	refused := fault.New("redis", fault.Unavailable, "dial redis:6379: refused")
	tests := []struct {
		name    string
		ping    func(context.Context) error
		timeout time.Duration
		want    string
		code    fault.Code
		after   time.Duration
	}{
		{"it answers", nil, 0, "", fault.OK, 0},
		{"slowly", func(context.Context) error { time.Sleep(4 * time.Second); return nil }, 0, "", fault.OK, 4 * time.Second},
		{"it refuses", func(context.Context) error { return refused }, 0,
			"[INIT_COMPONENT_FAILURE]: initialization error occurred for s (state.redis/v1): dial redis:6379: refused", fault.Unavailable, 0},
		{"it hangs, for five seconds", hang, 0,
			"[INIT_COMPONENT_FAILURE]: initialization error occurred for s (state.redis/v1): context deadline exceeded: init timeout for component s (state.redis/v1)", fault.Deadline, 5 * time.Second},
		{"or as long as the resource says", hang, time.Minute,
			"[INIT_COMPONENT_FAILURE]: initialization error occurred for s (state.redis/v1): context deadline exceeded: init timeout for component s (state.redis/v1)", fault.Deadline, time.Minute},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKit(t)
				k.comp.ping = tt.ping
				o := open(t, k, catalog.Spec{Name: "s", Type: "state.redis", Version: "v1", InitTimeout: tt.timeout})
				start := time.Now()
				err := k.Init(t.Context(), o)
				if (err == nil) != (tt.want == "") || err != nil && err.Error() != tt.want {
					t.Errorf("got  %v\nwant %s", err, tt.want)
				}
				if fault.Of(err) != tt.code || time.Since(start) != tt.after {
					t.Errorf("%v after %v, want %v after %v", fault.Of(err), time.Since(start), tt.code, tt.after)
				}
			})
		})
	}
}

func TestWithdraw(t *testing.T) {
	k := newKit(t)
	k.Publish(open(t, k, catalog.Spec{Name: "s", Type: "state.redis"}))
	k.Withdraw(t.Context(), "other")
	if k.comp.closed.Load() != 0 {
		t.Error("another's withdrawal closed it")
	}
	k.Withdraw(t.Context(), "s")
	if _, err := k.State.Lookup("s"); err == nil || k.comp.closed.Load() != 1 {
		t.Errorf("withdrawn: lookup %v, closed %d×", err, k.comp.closed.Load())
	}
	k.Withdraw(t.Context(), "s")
	if k.comp.closed.Load() != 1 {
		t.Error("closed twice")
	}
}

func TestCloseOfTheCatalog(t *testing.T) {
	k := newKit(t)
	broken := errors.New("broken")
	k.comp.closeErr = broken
	k.Publish(open(t, k, catalog.Spec{Name: "s", Type: "state.redis", Version: "v1"}))
	k.Publish(open(t, k, catalog.Spec{Name: "p", Type: "pubsub.redis"}))
	if err := k.Close(t.Context()); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if len(k.Infos()) != 0 || k.comp.closed.Load() != 1 {
		t.Errorf("%d are left, closed %d×", len(k.Infos()), k.comp.closed.Load())
	}
	for _, line := range []string{"Shutting down component p (pubsub.redis)", "Shutting down component s (state.redis/v1)"} {
		if !strings.Contains(k.log.String(), line) {
			t.Errorf("the log lacks %q:\n%s", line, k.log.String())
		}
	}
}

func TestCapabilities(t *testing.T) {
	tests := []struct {
		name string
		comp block.Component
		want []string
	}{
		{"a bare store", &store{}, []string{"ETAG"}},
		{"one with expiry", &ttlStore{}, []string{"ETAG", "TTL"}},
		{"one with everything", &richStore{}, []string{"ETAG", "TRANSACTIONAL", "TTL", "ACTOR"}},
		{"a bare broker", &broker{}, []string{}},
		{"one that drops old messages", &ttlBroker{}, []string{"MESSAGE_TTL"}},
		{"something else", &plain{}, []string{}},
	}
	for _, tt := range tests {
		if d := cmp.Diff(tt.want, catalog.Capabilities(tt.comp)); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
}

func TestLogName(t *testing.T) {
	for _, tt := range []struct {
		spec catalog.Spec
		want string
	}{{catalog.Spec{Name: "a", Type: "state.x"}, "a (state.x)"}, {catalog.Spec{Name: "a", Type: "state.x", Version: "v2"}, "a (state.x/v2)"}} {
		if got := tt.spec.LogName(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
