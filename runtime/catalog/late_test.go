package catalog_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// lateBinding learns what it can do from its server.
type lateBinding struct{ up, closed bool }

func (b *lateBinding) Ping(context.Context) error {
	if !b.up {
		return errors.New("not yet")
	}
	return nil
}
func (b *lateBinding) Close(context.Context) error { b.closed = true; return nil }

func (b *lateBinding) when(words ...string) []string {
	if !b.up {
		return nil
	}
	return words
}
func (b *lateBinding) Features() []string   { return b.when("OUTPUT_BINDING") }
func (b *lateBinding) Operations() []string { return b.when("create") }
func (b *lateBinding) Invoke(context.Context, block.BindingRequest) (*block.BindingAnswer, error) {
	return nil, nil
}

// What a component learns from its server is known once Init has met it, published or not.
func TestLateAbilities(t *testing.T) {
	for _, published := range []bool{false, true} {
		b := &lateBinding{}
		set, err := block.NewSet(block.Backend{Name: "b", Parts: []block.Part{block.BindingPart("late", "", func() *struct{} { return &struct{}{} },
			func(block.Env, *struct{}) (block.Component, error) { return b, nil })}})
		if err != nil {
			t.Fatal(err)
		}
		c := catalog.New(catalog.Options{Backends: set, Log: slog.New(slog.DiscardHandler), Govern: func(*call.Target) {},
			Env: func(string, *slog.Logger) block.Env { return block.Env{} }})
		o, err := c.Open(catalog.Spec{Name: "x", Type: "bindings.late"})
		if err != nil {
			t.Fatal(err)
		}
		if published {
			c.Publish(o)
		}
		if err := c.Init(t.Context(), o); err == nil {
			t.Fatal("Init although it does not answer")
		}
		b.up = true
		if err := c.Init(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		if !published {
			if _, err := c.Binding.Lookup("x"); err == nil {
				t.Error("Init published it")
			}
			c.Publish(o)
		}
		h, err := c.Binding.Lookup("x")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"create"}, h.Operations) + cmp.Diff([]string{"OUTPUT_BINDING"}, h.Capabilities); d != "" {
			t.Errorf("published before Init: %v: %s", published, d)
		}
		if b.closed {
			t.Error("it was closed")
		}
		if err := c.Close(t.Context()); err != nil || !b.closed {
			t.Errorf("Close = %v, closed %v", err, b.closed)
		}
	}
}
