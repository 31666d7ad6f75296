package invoke_test

import (
	"context"
	"io"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/invoke"
	"github.com/mecha-project/mecha/runtime/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// registry answers from a map. It can fail, and counts what it is asked.
type registry struct {
	mu    sync.Mutex
	apps  map[block.Name][]block.Instance // guarded by mu
	err   error                           // guarded by mu
	asked []block.Name                    // guarded by mu
}

func (r *registry) Resolve(_ context.Context, name block.Name) ([]block.Instance, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked = append(r.asked, name)
	return slices.Clone(r.apps[name]), r.err
}

func (r *registry) set(name block.Name, ids ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.apps == nil {
		r.apps = map[block.Name][]block.Instance{}
	}
	r.apps[name] = instances(ids...)
}

func (r *registry) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *registry) lookups() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.asked)
}

func (*registry) Ping(context.Context) error  { return nil }
func (*registry) Close(context.Context) error { return nil }

// instances makes instances whose address is their id.
func instances(ids ...string) (out []block.Instance) {
	for _, id := range ids {
		out = append(out, block.Instance{ID: id, Address: id})
	}
	return out
}

// watched is a registry that can be watched; tests push lists.
type watched struct {
	registry
	push chan []block.Instance
	fail chan error // ends a watch
}

func newWatched() *watched {
	return &watched{push: make(chan []block.Instance), fail: make(chan error)}
}

func (w *watched) Watch(ctx context.Context, _ block.Name, changed func([]block.Instance)) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-w.fail:
			return err
		case list := <-w.push:
			changed(list)
		}
	}
}

// peers are the other sidecars, by address.
type peers struct {
	mu     sync.Mutex
	down   map[string]error // guarded by mu: what calling an address meets
	called []string         // guarded by mu
	eats   bool             // reads from a streamed body before it fails
	see    func(req *call.Request)
}

func (p *peers) Invoke(_ context.Context, to block.Instance, req *call.Request) (*call.Response, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.called = append(p.called, to.Address)
	if p.see != nil {
		p.see(req)
	}
	if p.eats && req.Stream != nil {
		_, _ = req.Stream.Read(make([]byte, 1))
	}
	if err := p.down[to.Address]; err != nil {
		return nil, err
	}
	return &call.Response{Status: 200, Data: []byte(to.Address)}, nil
}

func (p *peers) set(addr string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.down == nil {
		p.down = map[string]error{}
	}
	p.down[addr] = err
}

// take returns the addresses called so far and forgets them.
func (p *peers) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.called
	p.called = nil
	return out
}

// local is the own app.
type local struct {
	see  func(ctx context.Context, req *call.Request)
	resp *call.Response
	err  error
}

func (l *local) Invoke(ctx context.Context, req *call.Request) (*call.Response, error) {
	if l.see != nil {
		l.see(ctx, req)
	}
	if l.err != nil {
		return nil, l.err
	}
	if l.resp != nil {
		return l.resp, nil
	}
	return &call.Response{Status: 200, Data: []byte("local")}, nil
}

// external is the world outside.
type external struct {
	got []invoke.Endpoint
	see func(req *call.Request)
}

func (e *external) Invoke(_ context.Context, to invoke.Endpoint, req *call.Request) (*call.Response, error) {
	e.got = append(e.got, to)
	if e.see != nil {
		e.see(req)
	}
	return &call.Response{Status: 200, Data: []byte("external")}, nil
}

// answer keeps what a caller would see.
type answer struct {
	status int
	body   string
	err    error // writing it fails
	panics bool
}

func (a *answer) Respond(_ context.Context, resp *call.Response) error {
	if a.panics {
		panic("writing the answer")
	}
	a.status, a.body = resp.Status, string(resp.Data)
	if resp.Stream != nil {
		b, err := io.ReadAll(resp.Stream)
		if err != nil {
			return err
		}
		a.body = string(b)
	}
	return a.err
}

type kit struct {
	*invoke.Service
	reg   *registry
	peers *peers
	local *local
	ext   *external
}

// newKit makes the service of app "me" in namespace "home".
func newKit(t testing.TB, change ...func(*invoke.Options)) *kit {
	t.Helper()
	k := &kit{reg: &registry{}, peers: &peers{}, local: &local{}, ext: &external{}}
	o := invoke.Options{Self: identity.Self{App: "me", Namespace: "home"}, HostIP: "10.0.0.9", HostName: "host9",
		Local: k.local, Peers: k.peers, External: k.ext, Registry: k.reg, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&o)
	}
	k.Service = invoke.New(o)
	t.Cleanup(k.Close)
	return k
}

// withRetries gives calls the built-in policy.
func withRetries(o *invoke.Options) {
	o.Govern = policy.New(policy.Options{}).Govern
}

func withRegistry(r block.Registry) func(*invoke.Options) {
	return func(o *invoke.Options) { o.Registry = r }
}

// do makes a call and returns the body.
func (k *kit) do(t testing.TB, target string) (string, error) {
	t.Helper()
	var out answer
	err := k.Invoke(t.Context(), &call.Request{Target: target, Verb: "POST", Path: "m"}, &out)
	return out.body, err
}

var (
	shop   = block.Name{App: "shop", Namespace: "home"}
	unsent = fault.New("peer", fault.Unavailable, "refused").WithSent(fault.SentNever)
	maybe  = fault.New("peer", fault.Unavailable, "reset").WithSent(fault.SentMaybe)
)
