package blocktest

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// RegistryPlace is one fresh, empty place where instances are known: a folder, a file, a
// network, a database.
type RegistryPlace struct {
	// Open makes another view of the same place, as another sidecar would have. Views that
	// are block.Registrars announce themselves; the suite closes every view.
	Open func(t *testing.T) block.Registry
	// Put makes the place hold exactly these instances. Only for registries that are no
	// Registrar; nil otherwise.
	Put func(t *testing.T, instances []block.Instance)
	// AddressOnly says that the place keeps names and addresses, nothing else of an
	// instance (DNS).
	AddressOnly bool
	// Settle is how long a change may take to reach every view. Zero means 5 s.
	Settle time.Duration
	// Crowd is how many views announce themselves at once in the test of races. Zero means 20.
	Crowd int
}

// Registry runs the conformance suite of name resolution. place is called once per case.
// What a registry can do beyond Resolve is learnt from its optional interfaces.
func Registry(t *testing.T, place func(t *testing.T) RegistryPlace) {
	suite(t, block.KindRegistry)
	for _, c := range []struct {
		name string
		run  func(*registryRun)
	}{
		{"unknown app is an empty list", testUnknownApp},
		{"an instance keeps its fields", testFields},
		{"replicas are all listed", testReplicas},
		{"namespaces do not mix", testNamespaces},
		{"names do not mix", testNames},
		{"results belong to the caller", testOwnership},
		{"ended context", testContext},
		{"ping", testPing},
		{"close twice and use after", testClose},
		{"concurrent resolves", testConcurrentResolve},
		{"registering an id again replaces it", testReplace},
		{"deregister", testDeregister},
		{"close withdraws", testCloseWithdraws},
		{"invalid instances are refused", testInvalid},
		{"a crowd comes and goes", testCrowd},
		{"watch", testWatch},
		{"watch ends with close", testWatchClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := place(t)
			if p.Settle == 0 {
				p.Settle = 5 * time.Second
			}
			if p.Crowd == 0 {
				p.Crowd = 20
			}
			c.run(&registryRun{T: t, place: p, tag: fmt.Sprintf("%08x", rand.Uint32())})
		})
	}
}

// registryRun is one case: a place and the instances put there. tag makes its names differ
// from those of any other run that shares a network.
type registryRun struct {
	*testing.T
	place RegistryPlace
	tag   string
	held  []block.Instance // what a place without Registrars holds
}

func (r *registryRun) app(name string) string { return name + "-" + r.tag }

func (r *registryRun) instance(app, namespace string, n int) block.Instance {
	return block.Instance{
		ID: fmt.Sprintf("%s-%s-%d", r.app(app), namespace, n), App: r.app(app), Namespace: namespace,
		Address: fmt.Sprintf("192.0.2.%d:%d", 10+n%200, 50000+n), Protocol: "mecha", Weight: 1,
	}
}

func (r *registryRun) open() block.Registry {
	r.Helper()
	v := r.place.Open(r.T)
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := v.Close(ctx); err != nil {
			r.Errorf("Close at the end: %v", err)
		}
	})
	return v
}

func (r *registryRun) registrar() bool {
	_, ok := r.open().(block.Registrar)
	if !ok && r.place.Put == nil {
		r.Fatal("the registry is no Registrar and the place has no Put: the suite cannot fill it")
	}
	return ok
}

// put makes an instance known, each through a view of its own, which is returned.
func (r *registryRun) put(in block.Instance) block.Registry {
	r.Helper()
	v := r.open()
	if reg, ok := v.(block.Registrar); ok {
		if err := reg.Register(r.ctx(), in); err != nil {
			r.Fatalf("Register(%+v): %v", in, err)
		}
		return v
	}
	r.held = append(r.held, in)
	r.place.Put(r.T, slices.Clone(r.held))
	return v
}

func (r *registryRun) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	r.Cleanup(cancel)
	return ctx
}

// want waits until v lists exactly these instances under name.
func (r *registryRun) want(v block.Registry, name block.Name, want ...block.Instance) {
	r.Helper()
	deadline := time.Now().Add(r.place.Settle)
	for {
		got, err := v.Resolve(r.ctx(), name)
		if err != nil {
			r.Fatalf("Resolve(%+v): %v", name, err)
		}
		diff := cmp.Diff(r.normal(want), r.normal(got))
		if diff == "" {
			return
		}
		if time.Now().After(deadline) {
			r.Fatalf("Resolve(%+v) after %v (-want +got):\n%s", name, r.place.Settle, diff)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// normal is a list in an order and form that can be compared: the zero values that mean
// the same as a default are replaced by it.
func (r *registryRun) normal(list []block.Instance) []block.Instance {
	out := []block.Instance{}
	for _, in := range list {
		if r.place.AddressOnly {
			in = block.Instance{App: in.App, Namespace: in.Namespace, Address: in.Address}
		}
		in.Labels = maps.Clone(in.Labels)
		if len(in.Labels) == 0 {
			in.Labels = nil
		}
		if in.Protocol == "" {
			in.Protocol = "mecha"
		}
		in.Weight = max(in.Weight, 1)
		out = append(out, in)
	}
	slices.SortFunc(out, func(a, b block.Instance) int {
		return strings.Compare(a.ID+"\x00"+a.Address, b.ID+"\x00"+b.Address)
	})
	return out
}

func testUnknownApp(r *registryRun) {
	r.registrar()
	r.put(r.instance("known", "default", 1))
	r.want(r.open(), block.Name{App: r.app("stranger"), Namespace: "default"})
}

func testFields(r *registryRun) {
	in := r.instance("orders", "prod", 1)
	in.Protocol, in.Weight = "dapr", 7
	in.Labels = map[string]string{"zone": "eu-1", "version": "v2", "note": "a=b; \"c\" ü", "empty": ""}
	self := r.put(in)
	r.want(self, in.Name(), in)
	r.want(r.open(), in.Name(), in)

	six := r.instance("six", "prod", 2)
	six.Address = "[2001:db8::7]:50002"
	r.put(six)
	r.want(r.open(), six.Name(), six)
}

func testReplicas(r *registryRun) {
	var all []block.Instance
	for n := range 4 {
		all = append(all, r.instance("orders", "default", n))
		r.put(all[n])
	}
	r.want(r.open(), all[0].Name(), all...)
}

func testNamespaces(r *registryRun) {
	a, b := r.instance("orders", "alpha", 1), r.instance("orders", "beta", 2)
	r.put(a)
	r.put(b)
	v := r.open()
	r.want(v, a.Name(), a)
	r.want(v, b.Name(), b)
	r.want(v, block.Name{App: a.App, Namespace: "gamma"})
}

func testNames(r *registryRun) {
	names := []string{"orders", "orders-2", "order"}
	if !r.place.AddressOnly {
		// Names that would escape, end or vary a path, a pattern, a statement or a record.
		names = append(names, "Orders", "../orders", "a/b\\c", "a b", "o'rders; --", "%", "_", "*", "größe", "dot.ted", ".", "..", "con")
	}
	var all []block.Instance
	for n, name := range names {
		in := r.instance("x", "default", n)
		if in.App = r.tag + name; r.place.AddressOnly {
			in.App = r.app(name)
		}
		all = append(all, in)
		r.put(in)
	}
	v := r.open()
	for _, in := range all {
		r.want(v, in.Name(), in)
	}
}

func testOwnership(r *registryRun) {
	in := r.instance("orders", "default", 1)
	in.Labels = map[string]string{"zone": "a"}
	given := in
	given.Labels = maps.Clone(in.Labels)
	r.put(given)
	given.Labels["zone"] = "changed by the caller after Register"
	v := r.open()
	r.want(v, in.Name(), in)
	got, err := v.Resolve(r.ctx(), in.Name())
	if err != nil || len(got) != 1 {
		r.Fatalf("Resolve = %v, %v; want one instance", got, err)
	}
	if got[0].Labels != nil {
		got[0].Labels["zone"] = "changed by the caller of Resolve"
	}
	got[0] = block.Instance{}
	r.want(v, in.Name(), in)
}

func testContext(r *registryRun) {
	v := r.open()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	start := time.Now()
	_, err := v.Resolve(ctx, block.Name{App: r.app("orders"), Namespace: "default"})
	if fault.Of(err) != fault.Canceled {
		r.Errorf("Resolve with an ended context = %v (%v), want canceled", err, fault.Of(err))
	}
	if reg, ok := v.(block.Registrar); ok {
		if err := reg.Register(ctx, r.instance("orders", "default", 1)); fault.Of(err) != fault.Canceled {
			r.Errorf("Register with an ended context = %v (%v), want canceled", err, fault.Of(err))
		}
	}
	if took := time.Since(start); took > 2*time.Second {
		r.Errorf("ended contexts were noticed after %v", took)
	}
	r.want(v, block.Name{App: r.app("orders"), Namespace: "default"})
}

func testPing(r *registryRun) {
	r.registrar()
	r.put(r.instance("orders", "default", 1))
	if err := r.open().Ping(r.ctx()); err != nil {
		r.Errorf("Ping = %v", err)
	}
}

func testClose(r *registryRun) {
	for _, used := range []bool{false, true} {
		v := r.open()
		if used {
			r.want(v, block.Name{App: r.app("nobody"), Namespace: "default"})
		}
		for range 2 {
			if err := v.Close(r.ctx()); err != nil {
				r.Errorf("Close (used %v) = %v", used, err)
			}
		}
		if _, err := v.Resolve(r.ctx(), block.Name{App: r.app("x")}); fault.Of(err) != fault.Unavailable {
			r.Errorf("Resolve after Close = %v (%v), want unavailable", err, fault.Of(err))
		}
		if err := v.Ping(r.ctx()); fault.Of(err) != fault.Unavailable {
			r.Errorf("Ping after Close = %v (%v), want unavailable", err, fault.Of(err))
		}
		if reg, ok := v.(block.Registrar); ok {
			if err := reg.Register(r.ctx(), r.instance("x", "default", 1)); fault.Of(err) != fault.Unavailable {
				r.Errorf("Register after Close = %v (%v), want unavailable", err, fault.Of(err))
			}
		}
	}
}

func testConcurrentResolve(r *registryRun) {
	in := r.instance("orders", "default", 1)
	r.put(in)
	v := r.open()
	r.want(v, in.Name(), in)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 5 {
				got, err := v.Resolve(r.ctx(), in.Name())
				if diff := cmp.Diff(r.normal([]block.Instance{in}), r.normal(got)); err != nil || diff != "" {
					r.Errorf("concurrent Resolve: %v %s", err, diff)
				}
			}
		})
	}
	wg.Wait()
}

func testReplace(r *registryRun) {
	if !r.registrar() {
		notOffered(r.T, "instances do not announce themselves here")
		return
	}
	in := r.instance("orders", "default", 1)
	self := r.put(in).(block.Registrar)
	v := r.open()
	r.want(v, in.Name(), in)
	again := in
	again.Address, again.Labels = "192.0.2.99:1234", map[string]string{"n": "2"}
	if err := self.Register(r.ctx(), again); err != nil {
		r.Fatalf("Register again: %v", err)
	}
	r.want(v, in.Name(), again)
	moved := again
	moved.App = r.app("renamed")
	if err := self.Register(r.ctx(), moved); err != nil {
		r.Fatalf("Register under another app: %v", err)
	}
	r.want(v, moved.Name(), moved)
	r.want(v, in.Name())
}

func testDeregister(r *registryRun) {
	if !r.registrar() {
		notOffered(r.T, "instances do not announce themselves here")
		return
	}
	if err := r.open().(block.Registrar).Deregister(r.ctx()); err != nil {
		r.Errorf("Deregister without an announcement = %v, want nil", err)
	}
	a, b := r.instance("orders", "default", 1), r.instance("stock", "default", 2)
	self, v := r.put(a).(block.Registrar), r.open()
	if err := self.Register(r.ctx(), b); err != nil {
		r.Fatalf("Register of a second id: %v", err)
	}
	r.want(v, a.Name(), a)
	r.want(v, b.Name(), b)
	for range 2 {
		if err := self.Deregister(r.ctx()); err != nil {
			r.Errorf("Deregister = %v", err)
		}
	}
	r.want(v, a.Name())
	r.want(v, b.Name())
	if err := self.Register(r.ctx(), a); err != nil {
		r.Fatalf("Register after Deregister: %v", err)
	}
	r.want(v, a.Name(), a)
}

func testCloseWithdraws(r *registryRun) {
	if !r.registrar() {
		notOffered(r.T, "instances do not announce themselves here")
		return
	}
	a, b := r.instance("orders", "default", 1), r.instance("orders", "default", 2)
	self := r.put(a)
	r.put(b)
	v := r.open()
	r.want(v, a.Name(), a, b)
	if err := self.Close(r.ctx()); err != nil {
		r.Errorf("Close = %v", err)
	}
	r.want(v, a.Name(), b)
}

func testInvalid(r *registryRun) {
	if !r.registrar() {
		notOffered(r.T, "instances do not announce themselves here")
		return
	}
	for name, spoil := range map[string]func(*block.Instance){
		"no app":             func(i *block.Instance) { i.App = "" },
		"no id":              func(i *block.Instance) { i.ID = "" },
		"no port":            func(i *block.Instance) { i.Address = "192.0.2.1" },
		"port zero":          func(i *block.Instance) { i.Address = "192.0.2.1:0" },
		"negative weight":    func(i *block.Instance) { i.Weight = -1 },
		"line break in name": func(i *block.Instance) { i.App += "\n" },
		"huge labels":        func(i *block.Instance) { i.Labels = map[string]string{"x": string(make([]byte, 4096))} },
	} {
		in := r.instance("orders", "default", 1)
		spoil(&in)
		if err := r.open().(block.Registrar).Register(r.ctx(), in); fault.Of(err) != fault.Invalid {
			r.Errorf("%s: Register = %v (%v), want invalid", name, err, fault.Of(err))
		}
	}
	r.want(r.open(), block.Name{App: r.app("orders"), Namespace: "default"})
}

func testCrowd(r *registryRun) {
	if !r.registrar() {
		notOffered(r.T, "instances do not announce themselves here")
		return
	}
	stay := r.instance("orders", "default", 0)
	r.put(stay)
	v := r.open()
	var wg sync.WaitGroup
	for n := range r.place.Crowd {
		view := r.open()
		wg.Go(func() {
			reg, in := view.(block.Registrar), r.instance("orders", "default", n+1)
			if err := reg.Register(r.ctx(), in); err != nil {
				r.Errorf("Register in a crowd: %v", err)
			}
			got, err := v.Resolve(r.ctx(), in.Name())
			if err != nil {
				r.Errorf("Resolve in a crowd: %v", err)
			}
			for _, g := range got {
				if err := g.Validate(); err != nil {
					r.Errorf("Resolve in a crowd gave a half-written instance: %v", err)
				}
			}
			if err := view.Close(r.ctx()); err != nil {
				r.Errorf("Close in a crowd: %v", err)
			}
		})
	}
	wg.Wait()
	r.want(v, stay.Name(), stay)
}

func testWatch(r *registryRun) {
	v, ok := r.open().(block.RegistryWatcher)
	if !ok {
		notOffered(r.T, "the registry tells of no changes")
		return
	}
	a, b := r.instance("orders", "default", 1), r.instance("orders", "default", 2)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lists, done := make(chan []block.Instance, 1000), make(chan error, 1)
	go func() { done <- v.Watch(ctx, a.Name(), func(l []block.Instance) { lists <- l }) }()
	next := func(want ...block.Instance) {
		r.Helper()
		timer, diff := time.NewTimer(r.place.Settle), "no call at all"
		defer timer.Stop()
		for {
			select {
			case got := <-lists:
				if diff = cmp.Diff(r.normal(want), r.normal(got)); diff == "" {
					return
				}
			case err := <-done:
				r.Fatalf("Watch ended early: %v", err)
			case <-timer.C:
				r.Fatalf("Watch did not tell within %v; last difference (-want +got):\n%s", r.place.Settle, diff)
			}
		}
	}
	next()
	viewA := r.put(a)
	next(a)
	r.put(b)
	next(a, b)
	r.put(r.instance("other", "default", 3))
	if reg, ok := viewA.(block.Registrar); ok {
		if err := reg.Deregister(r.ctx()); err != nil {
			r.Errorf("Deregister: %v", err)
		}
	} else {
		r.held = r.held[1:]
		r.place.Put(r.T, slices.Clone(r.held))
	}
	next(b)
	cancel()
	select {
	case err := <-done:
		if fault.Of(err) != fault.Canceled {
			r.Errorf("Watch after cancel = %v, want the context's error", err)
		}
	case <-time.After(2 * time.Second):
		r.Error("Watch did not end within 2s of its context")
	}
}

func testWatchClose(r *registryRun) {
	open := r.open()
	v, ok := open.(block.RegistryWatcher)
	if !ok {
		notOffered(r.T, "the registry tells of no changes")
		return
	}
	r.put(r.instance("orders", "default", 1))
	started, done := make(chan struct{}, 1000), make(chan error, 1)
	go func() {
		done <- v.Watch(context.Background(), block.Name{App: r.app("orders"), Namespace: "default"},
			func([]block.Instance) { started <- struct{}{} })
	}()
	select {
	case <-started:
	case <-time.After(r.place.Settle):
		r.Fatalf("Watch did not call within %v", r.place.Settle)
	}
	if err := open.Close(r.ctx()); err != nil {
		r.Errorf("Close during Watch = %v", err)
	}
	select {
	case err := <-done:
		if fault.Of(err) != fault.Unavailable {
			r.Errorf("Watch after Close = %v (%v), want unavailable", err, fault.Of(err))
		}
	case <-time.After(2 * time.Second):
		r.Error("Watch did not end within 2s of Close")
	}
}
