package catalog_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plain is a component whose server answers, or does not.
type plain struct {
	ping     func(context.Context) error
	closed   atomic.Int32
	closeErr error
}

func (p *plain) Ping(ctx context.Context) error {
	if p.ping == nil {
		return nil
	}
	return p.ping(ctx)
}

func (p *plain) Close(context.Context) error { p.closed.Add(1); return p.closeErr }

// store is a state store without optional abilities.
type store struct{ plain }

func (*store) Get(context.Context, string, block.StateRead) (block.StateItem, error) {
	return block.StateItem{}, nil
}
func (*store) Set(context.Context, block.StateWrite) error     { return nil }
func (*store) Delete(context.Context, block.StateDelete) error { return nil }

// richStore can do everything.
type richStore struct{ store }

func (*richStore) Transact(context.Context, []block.StateOp) error { return nil }
func (*richStore) MaxOps() int                                     { return 0 }
func (*richStore) ExpiresItems()                                   {}

type ttlStore struct{ store }

func (*ttlStore) ExpiresItems() {}

// broker is a message broker without optional abilities.
type broker struct{ plain }

func (*broker) Publish(context.Context, []block.Message) []error { return nil }
func (*broker) Consume(ctx context.Context, _ block.ConsumeOptions, _ func(block.Delivery)) error {
	<-ctx.Done()
	return ctx.Err()
}

type ttlBroker struct{ broker }

func (*ttlBroker) ExpiresMessages() {}

// config is what the test backend reads.
type config struct {
	Host    string `yaml:"host"`
	Retries int    `yaml:"retries"`
}

func (c *config) Validate() error {
	if c.Host == "bad" {
		return errors.New("host: this host is known to be bad")
	}
	return nil
}

func defaults() *config { return &config{} }

// kit is a catalog over test backends, with its log.
type kit struct {
	*catalog.Catalog
	opened block.Env // of the last part opened
	config config
	comp   *store
	fail   error // opening fails with it
	log    syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newKit(t testing.TB) *kit {
	t.Helper()
	k := &kit{comp: &store{}}
	set, err := block.NewSet(block.Backend{Name: "test", Parts: []block.Part{
		block.StatePart("redis", "", defaults, func(env block.Env, c *config) (block.State, error) {
			k.opened, k.config = env, *c
			return k.comp, k.fail
		}, block.Version("v2")),
		block.PubSubPart("redis", "", defaults, func(block.Env, *config) (block.PubSub, error) { return &broker{}, nil }),
	}})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&k.log, nil))
	k.Catalog = catalog.New(catalog.Options{Backends: set, Log: log,
		Env: func(component string, log *slog.Logger) block.Env {
			return block.Env{Log: log, AppID: "app", Component: component}
		},
		Govern: func(t *call.Target) {
			t.SetChain(&call.Chain{Retry: func(*call.Call, error) (time.Duration, bool) { return 0, false }})
		}})
	return k
}

func handle(name string, c block.State) *catalog.Handle[block.State] {
	return catalog.NewHandle[block.State](catalog.Info{Name: name}, c, &call.Target{})
}

func names[T any](hs []*catalog.Handle[T]) (out []string) {
	for _, h := range hs {
		out = append(out, h.Name)
	}
	return out
}

func open(t testing.TB, k *kit, s catalog.Spec) *catalog.Opened {
	t.Helper()
	o, err := k.Open(s)
	if err != nil {
		t.Fatal(fmt.Errorf("opening %s: %w", s.LogName(), err))
	}
	return o
}
