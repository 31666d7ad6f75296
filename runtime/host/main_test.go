package host_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/host"
	"github.com/mecha-project/mecha/runtime/invoke"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/settings"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// story is what happened, in order, whoever did it.
type story struct {
	mu    sync.Mutex
	lines []string
	log   bytes.Buffer
}

func (s *story) add(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

func (s *story) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

func (s *story) has(line string) bool { return slices.Contains(s.all(), line) }

// Write takes log lines.
func (s *story) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(p)
}

func (s *story) logged(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.log.String(), text)
}

// until waits for something to have happened.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// component is what all have in common, telling its story.
type component struct {
	*story
	name string
	ping error
	hang bool
}

func (c *component) Ping(ctx context.Context) error {
	c.add("ping %s", c.name)
	if c.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return c.ping
}
func (c *component) Close(context.Context) error { c.add("close %s", c.name); return nil }
func (*state) Get(context.Context, string, block.StateRead) (block.StateItem, error) {
	return block.StateItem{}, nil
}
func (*state) Set(context.Context, block.StateWrite) error     { return nil }
func (*state) Delete(context.Context, block.StateDelete) error { return nil }
func (r *registry) Resolve(context.Context, block.Name) ([]block.Instance, error) {
	return nil, nil
}

func (r *registry) Register(_ context.Context, self block.Instance) error {
	host, port, err := net.SplitHostPort(self.Address)
	if err != nil || port == "0" {
		return fault.New("test", fault.Invalid, "address %q", self.Address)
	}
	r.add("register %s.%s at %s", self.App, self.Namespace, host)
	return nil
}
func (r *registry) Deregister(context.Context) error { r.add("deregister"); return nil }

type (
	state    struct{ component }
	registry struct{ component }
)

// broker delivers nothing.
type broker struct{ component }

func (b *broker) Publish(context.Context, []block.Message) []error { return nil }
func (b *broker) Consume(ctx context.Context, o block.ConsumeOptions, _ func(block.Delivery)) error {
	b.add("consume %s", o.Topic)
	<-ctx.Done()
	b.add("consumed %s", o.Topic)
	return ctx.Err()
}

type none struct{}

// keyed is a configuration with a password.
type keyed struct {
	Token conf.Secret `yaml:"token"`
	Other conf.Secret `yaml:"other"`
}

// vault is a secret store that holds db: {db: hush, user: me}, empty: {empty: ""}, own, which is its
// own token, and one secret that cannot be read.
type vault struct {
	component
	token string
}

func (v *vault) Get(_ context.Context, name string, md map[string]string) (map[string]string, error) {
	v.add("read %s of %s %v", name, v.name, md)
	switch name {
	case "db":
		return map[string]string{"db": "hush", "user": "me"}, nil
	case "empty":
		return map[string]string{"empty": ""}, nil
	case "own":
		return map[string]string{"own": v.token}, nil
	case "broken":
		return nil, fault.New("test", fault.Denied, "permission denied")
	}
	return nil, fault.New("test", fault.NotFound, "no secret %s", name)
}

func (v *vault) GetAll(context.Context, map[string]string) (map[string]map[string]string, error) {
	return map[string]map[string]string{"db": {"db": "hush", "user": "me"}, "empty": {"empty": ""}}, nil
}

func backends(t testing.TB, s *story) *block.Set {
	t.Helper()
	config := func() *none { return &none{} }
	store := func(c component) func(block.Env, *none) (block.State, error) {
		return func(env block.Env, _ *none) (block.State, error) {
			c.story, c.name = s, env.Component
			s.add("open %s", c.name)
			return &state{c}, nil
		}
	}
	set, err := block.NewSet(block.Backend{Name: "test", Parts: []block.Part{
		block.StatePart("good", "", config, store(component{})),
		block.StatePart("down", "", config, store(component{ping: fault.New("test", fault.Unavailable, "dial db:1: refused")})),
		block.StatePart("hangs", "", config, store(component{hang: true})),
		block.PubSubPart("good", "", config, func(env block.Env, _ *none) (block.PubSub, error) {
			return &broker{component{story: s, name: env.Component}}, nil
		}),
		block.StatePart("locked", "", func() *keyed { return &keyed{} }, func(env block.Env, k *keyed) (block.State, error) {
			s.add("open %s with %s", env.Component, k.Token.Reveal())
			return &state{component{story: s, name: env.Component}}, nil
		}),
		block.SecretPart("good", "", func() *keyed { return &keyed{} }, func(env block.Env, k *keyed) (block.Secret, error) {
			s.add("open %s with %s", env.Component, k.Token.Reveal())
			return &vault{component{story: s, name: env.Component}, k.Token.Reveal()}, nil
		}),
		block.SecretPart("down", "", config, func(env block.Env, _ *none) (block.Secret, error) {
			return &vault{component: component{story: s, name: env.Component, ping: fault.New("test", fault.Unavailable, "dial vault:1: refused")}}, nil
		}),
		block.RegistryPart("hostdir", "", config, func(block.Env, *none) (block.Registry, error) {
			return &registry{component{story: s, name: "registry"}}, nil
		}),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// edges are the ways in and out, telling their story.
type edges struct {
	*story
	app      host.AppSide
	services *host.Services
	fail     error         // Servers answers with it
	breaks   chan error    // ends the HTTP server from inside
	drain    time.Duration // how long the HTTP server's calls take to end
	stop     chan struct{} // ends servers that nobody drains
}

func (e *edges) AppSide() (host.AppSide, error) { return e.app, nil }
func (e *edges) Peers() invoke.Peers            { return nil }
func (e *edges) External() invoke.External      { return nil }
func (e *edges) Close(context.Context)          { e.add("edges closed") }

func (e *edges) Servers(s *host.Services) ([]host.Server, error) {
	e.services = s
	var all []host.Server
	for _, name := range []string{"HTTP", "gRPC"} {
		drained := make(chan struct{})
		var once sync.Once
		all = append(all, host.Server{Name: name,
			Opened: func() { e.add("%s opened", name) },
			Serve: func(ctx context.Context) error {
				var breaks chan error
				if name == "HTTP" {
					breaks = e.breaks
				}
				select {
				case <-drained:
				case <-ctx.Done():
					e.add("%s cut", name)
				case <-e.stop:
				case err := <-breaks:
					return err
				}
				return nil
			},
			Drain: func(ctx context.Context) error {
				e.add("%s draining", name)
				if name == "HTTP" {
					select {
					case <-time.After(e.drain):
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				once.Do(func() { close(drained) })
				return nil
			}})
	}
	return all, e.fail
}

// kit is a sidecar to run.
type kit struct {
	*story
	edges *edges
	o     host.Options
	ctx   context.Context
	end   context.CancelFunc
	done  chan error
}

// newKit prepares a sidecar with ports of its own and the given resources.
func newKit(t testing.TB, yaml string) *kit {
	t.Helper()
	s := &story{}
	k := &kit{story: s, edges: &edges{story: s, breaks: make(chan error, 1), stop: make(chan struct{})}, done: make(chan error, 1)}
	set := settings.Defaults()
	set.AppID, set.HTTPPort, set.GRPCPort, set.PeerPort = "app", 0, 0, 0
	set.ListenAddresses = []string{"127.0.0.1"}
	res := settings.ParseResources("test.yaml", []byte(yaml))
	for _, f := range res.Findings {
		t.Logf("resources: %s", f.String())
	}
	k.o = host.Options{Settings: set, Config: &settings.Configuration{}, Resources: res, Backends: backends(t, s), Version: "1.2.3",
		Log: slog.New(slog.NewTextHandler(s, nil)), Edges: k.edges, ListenFor: 50 * time.Millisecond}
	k.ctx, k.end = context.WithCancel(context.Background())
	t.Cleanup(k.end)
	return k
}

func (k *kit) start() { go func() { k.done <- host.Run(k.ctx, k.o) }() }

// ready waits until the sidecar says so.
func (k *kit) ready(t testing.TB) {
	t.Helper()
	until(t, "readiness", func() bool { return k.logged("dapr initialized. Status: Running") })
}

func (k *kit) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-k.done:
		return err
	case <-time.After(15 * time.Second):
		t.Fatal("Run does not return")
		return nil
	}
}

// appSide is an app, telling its story.
type appSide struct {
	*story
	subs  []pubsub.Subscription
	fails error // asking for subscriptions
}

func (a *appSide) Invoke(context.Context, *call.Request) (*call.Response, error) {
	return &call.Response{Status: 200}, nil
}
func (a *appSide) Probe(context.Context) error { return nil }
func (a *appSide) Close() error                { a.add("app closed"); return nil }
func (a *appSide) Subscriptions(context.Context, host.Invoke) ([]pubsub.Subscription, error) {
	a.add("asked for subscriptions")
	return a.subs, a.fails
}
func (a *appSide) Configured(context.Context, host.Invoke) error {
	a.add("asked for configuration")
	return errors.New("none")
}
func (a *appSide) Sink() pubsub.EventSink { return nil }
func (a *appSide) Bindings() binding.Sink { return nil }
