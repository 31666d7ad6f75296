package invoke_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/invoke"
)

// announced is a registry that takes announcements and can fail at everything.
type announced struct {
	registry
	self   []block.Instance
	gone   int
	closed int
	err    error
}

func (a *announced) Register(_ context.Context, self block.Instance) error {
	a.self = append(a.self, self)
	return a.err
}
func (a *announced) Deregister(context.Context) error { a.gone++; return a.err }
func (a *announced) Ping(context.Context) error       { return a.err }
func (a *announced) Close(context.Context) error      { a.closed++; return a.err }

func TestRegistriesResolveTheUnion(t *testing.T) {
	down := errors.New("down")
	tests := []struct {
		name string
		a, b []string
		errA error
		errB error
		want []string
		err  error
	}{
		{"both", []string{"1", "2"}, []string{"3"}, nil, nil, []string{"1", "2", "3"}, nil},
		{"one instance known to both counts once", []string{"1", "2"}, []string{"2", "3"}, nil, nil, []string{"1", "2", "3"}, nil},
		{"one fails, the other knows", nil, []string{"3"}, down, nil, []string{"3"}, nil},
		{"one fails, the other does not know", nil, nil, nil, down, nil, down},
		{"nobody knows", nil, nil, nil, nil, nil, nil},
		{"both fail", nil, nil, down, errors.New("x"), nil, down},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var a, b registry
			a.set(shop, tt.a...)
			b.set(shop, tt.b...)
			a.fail(tt.errA)
			b.fail(tt.errB)
			got, err := invoke.Registries(&a, &b).Resolve(t.Context(), shop)
			var ids []string
			for _, in := range got {
				ids = append(ids, in.ID)
			}
			if d := cmp.Diff(tt.want, ids); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if !errors.Is(err, tt.err) || (err != nil) != (tt.err != nil) {
				t.Errorf("got %v, want %v", err, tt.err)
			}
		})
	}
}

func TestRegistriesAnnounceToAll(t *testing.T) {
	broken := errors.New("broken")
	a, quiet, b := &announced{err: broken}, &registry{}, &announced{}
	all := invoke.Registries(a, quiet, b)
	self := block.Instance{ID: "me"}
	r, ok := all.(block.Registrar)
	if !ok {
		t.Fatal("takes no announcements")
	}
	errs := []error{r.Register(t.Context(), self), r.Deregister(t.Context()), all.Ping(t.Context()), all.Close(t.Context())}
	if slices.ContainsFunc(errs, func(err error) bool { return !errors.Is(err, broken) }) {
		t.Errorf("failures are lost: %v", errs)
	}
	for _, x := range []*announced{a, b} { // the second too, though the first failed
		if len(x.self) != 1 || x.self[0].ID != "me" || x.gone != 1 || x.closed != 1 {
			t.Errorf("announced %v, withdrawn %d×, closed %d×", x.self, x.gone, x.closed)
		}
	}
	if _, ok := all.(block.RegistryWatcher); ok {
		t.Error("not all can be watched, so the union cannot")
	}
}
