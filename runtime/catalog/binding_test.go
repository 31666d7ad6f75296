package catalog_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

type in struct{ closed int }

func (*in) Ping(context.Context) error    { return nil }
func (i *in) Close(context.Context) error { i.closed++; return nil }
func (*in) Read(ctx context.Context, _ func(context.Context, block.BindingEvent) ([]byte, error)) error {
	<-ctx.Done()
	return ctx.Err()
}

type inOut struct{ in }

func (*inOut) Operations() []string { return []string{"create"} }
func (*inOut) Invoke(context.Context, block.BindingRequest) (*block.BindingAnswer, error) {
	return nil, nil
}

// A binding is one component, whether it is called, read or both.
func TestBindings(t *testing.T) {
	both := &inOut{}
	set, err := block.NewSet(block.Backend{Name: "test", Parts: []block.Part{
		block.BindingPart("in", "", defaults, func(block.Env, *config) (block.Component, error) { return &in{}, nil }),
		block.BindingPart("both", "", defaults, func(block.Env, *config) (block.Component, error) { return both, nil })}})
	if err != nil {
		t.Fatal(err)
	}
	var governed []string
	c := catalog.New(catalog.Options{Backends: set, Log: slog.New(slog.DiscardHandler),
		Env:    func(string, *slog.Logger) block.Env { return block.Env{} },
		Govern: func(t *call.Target) { governed = append(governed, t.Kind.String()+" "+t.Name) }})
	for _, s := range []catalog.Spec{{Name: "i", Type: "bindings.in"}, {Name: "b", Type: "bindings.both", Items: conf.Items("Route", "/r", "direction", "input")}} {
		o, err := c.Open(s)
		if err != nil {
			t.Fatal(err)
		}
		c.Publish(o)
	}
	if d := cmp.Diff([]string{"binding i", "binding b"}, governed); d != "" {
		t.Errorf("governed (-want +got):\n%s", d)
	}
	want := []catalog.Info{
		{Name: "b", Type: "bindings.both", Raw: map[string]string{"route": "/r", "direction": "input"}, Capabilities: []string{"INPUT_BINDING", "OUTPUT_BINDING"}, Operations: []string{"create"}},
		{Name: "i", Type: "bindings.in", Raw: map[string]string{}, Capabilities: []string{"INPUT_BINDING"}}}
	if d := cmp.Diff(want, c.Infos()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	h, err := c.Binding.Lookup("b")
	if err != nil || !catalog.Able[block.Output](h) || !catalog.Able[block.Input](h) {
		t.Errorf("b is both: %v", err)
	}
	if h, err = c.Binding.Lookup("i"); err != nil || catalog.Able[block.Output](h) {
		t.Errorf("i is an input: %v", err)
	}
	c.Withdraw(t.Context(), "b")
	if both.closed != 1 || len(c.Infos()) != 1 {
		t.Errorf("closed %d times, %d are left", both.closed, len(c.Infos()))
	}
	if err := c.Close(t.Context()); err != nil || len(c.Infos()) != 0 {
		t.Errorf("Close: %v, %d are left", err, len(c.Infos()))
	}
}
