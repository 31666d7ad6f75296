package httpapi_test

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/state"
)

var update = flag.Bool("update", false, "rewrite testdata")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// invokeFunc is service invocation.
type invokeFunc func(ctx context.Context, req *call.Request, out call.Responder) error

func (f invokeFunc) Invoke(ctx context.Context, req *call.Request, out call.Responder) error {
	return f(ctx, req, out)
}

// answers makes an invoker with one answer.
func answers(resp *call.Response) invokeFunc {
	return func(ctx context.Context, _ *call.Request, out call.Responder) error { return out.Respond(ctx, resp) }
}

// stateService keeps what it was asked and answers as told.
type stateService struct {
	store, key string
	opts       state.ReadOptions
	keys       []string
	par        int
	items      []state.Item
	ops        []state.Operation
	item       block.StateItem
	results    []state.Result
	query      string
	check, err error
}

func (s *stateService) Check(string) error { return s.check }

func (s *stateService) Get(_ context.Context, store, key string, o state.ReadOptions) (block.StateItem, error) {
	s.store, s.key, s.opts = store, key, o
	return s.item, s.err
}

func (s *stateService) GetMany(_ context.Context, store string, keys []string, o state.ReadOptions, par int) ([]state.Result, error) {
	s.store, s.keys, s.opts, s.par = store, keys, o, par
	return s.results, s.err
}

func (s *stateService) Set(_ context.Context, store string, items []state.Item) error {
	s.store, s.items = store, items
	return s.err
}

func (s *stateService) Delete(_ context.Context, store string, item state.Item) error {
	s.store, s.items = store, []state.Item{item}
	return s.err
}

func (s *stateService) Transact(_ context.Context, store string, ops []state.Operation) error {
	s.store, s.ops = store, ops
	return s.err
}

func (s *stateService) Query(_ context.Context, store string, query []byte) (state.Found, error) {
	s.store, s.query = store, string(query)
	return state.Found{Results: s.results, Token: "5"}, s.err
}

// publisher keeps what it was asked.
type publisher struct {
	one        pubsub.PublishRequest
	many       pubsub.BulkRequest
	failed     []pubsub.FailedEntry
	check, err error
}

func (p *publisher) Check(string, string) error { return p.check }

func (p *publisher) Publish(_ context.Context, r pubsub.PublishRequest) error {
	p.one = r
	return p.err
}

func (p *publisher) BulkPublish(_ context.Context, r pubsub.BulkRequest) ([]pubsub.FailedEntry, error) {
	p.many = r
	return p.failed, p.err
}

// served keeps what the observer is told.
type served struct {
	mu  sync.Mutex
	log []httpapi.Served
}

func (s *served) HTTPServed(r httpapi.Served) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, r)
}

func (s *served) last(t testing.TB) httpapi.Served {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.log) == 0 {
		t.Fatal("nothing was observed")
	}
	return s.log[len(s.log)-1]
}

type kit struct {
	*httpapi.Server
	state  *stateService
	pubsub *publisher
	secret *secrets
	lock   *lockService
	config *configService
	bind   *bindingService
	about  *about.Sidecar
	served *served
}

func newKit(change ...func(*httpapi.Options)) *kit {
	k := &kit{state: &stateService{}, pubsub: &publisher{}, secret: &secrets{}, lock: &lockService{}, config: &configService{}, bind: &bindingService{}, about: about.New("app"), served: &served{}}
	o := httpapi.Options{AppID: "app", MaxBody: 1 << 20, Invoke: answers(&call.Response{Status: 200}), State: k.state, PubSub: k.pubsub, Secret: k.secret, Lock: k.lock, Config: k.config, Crypto: noProviders, Binding: k.bind, About: k.about,
		Observe: k.served, Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	k.Server = httpapi.New(o)
	return k
}

func withInvoke(f invokeFunc) func(*httpapi.Options) {
	return func(o *httpapi.Options) { o.Invoke = f }
}

// do asks for something; headers are alternating names and values.
func (k *kit) do(method, target, body string, headers ...string) *httpapi.Exchange {
	x := &httpapi.Exchange{Verb: method, To: target, Payload: []byte(body), Fields: fields(headers...)}
	k.Do(x)
	return x
}

func fields(nv ...string) (fs call.Fields) {
	for i := 0; i < len(nv); i += 2 {
		fs.Add(nv[i], nv[i+1])
	}
	return fs
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("%s; if that is meant, run with -update (-want +got):\n%s", path, d)
	}
}
