package catalog_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

func TestLookup(t *testing.T) {
	s := catalog.NewStore[block.State](block.KindState)
	_, err := s.Lookup("a")
	if fault.ReasonOf(err) != fault.NoComponents || fault.Of(err) != fault.NotReady {
		t.Errorf("in an empty store: %v, reason %q", err, fault.ReasonOf(err))
	}
	if want := "no state component is configured"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	a := handle("a", &store{})
	s.Put(a)
	if got, err := s.Lookup("a"); err != nil || got != a {
		t.Errorf("got %v, %v", got, err)
	}
	_, err = s.Lookup("A")
	if fault.ReasonOf(err) != fault.NoSuchComponent || fault.Of(err) != fault.NotFound || err.Error() != `state component "A" is not configured` {
		t.Errorf("another name: %v, reason %q; names are exact", err, fault.ReasonOf(err))
	}
	s.Remove("a")
	if _, err := s.Lookup("a"); fault.ReasonOf(err) != fault.NoComponents {
		t.Errorf("after the last has gone: reason %q", fault.ReasonOf(err))
	}
}

func TestPutReplacesAndTellsWhat(t *testing.T) {
	s := catalog.NewStore[block.State](block.KindState)
	first, second := handle("a", &store{}), handle("a", &store{})
	if old := s.Put(first); old != nil {
		t.Errorf("the first replaced %v", old)
	}
	if old := s.Put(second); old != first {
		t.Errorf("replaced %v, want the first: it has to be drained and closed", old)
	}
	if got, _ := s.Lookup("a"); got != second {
		t.Error("the old one is still found")
	}
	if old := s.Remove("a"); old != second {
		t.Errorf("removed %v", old)
	}
	if old := s.Remove("a"); old != nil {
		t.Errorf("removed %v twice", old)
	}
}

func TestListIsSortedAndItsOwn(t *testing.T) {
	s := catalog.NewStore[block.State](block.KindState)
	for _, n := range []string{"c", "a", "b"} {
		s.Put(handle(n, &store{}))
	}
	list := s.List()
	list[0] = nil
	s.Remove("b")
	if d := cmp.Diff([]string{"a", "c"}, names(s.List())); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestCloseClosesAllEvenIfOneFails(t *testing.T) {
	s := catalog.NewStore[block.State](block.KindState)
	broken := errors.New("broken")
	comps := []*store{{plain{closeErr: broken}}, {}, {plain{closeErr: errors.New("second")}}}
	for i, c := range comps {
		s.Put(handle(fmt.Sprint(i), c))
	}
	if err := s.Close(t.Context()); !errors.Is(err, broken) {
		t.Errorf("got %v, want the first error", err)
	}
	for i, c := range comps {
		if n := c.closed.Load(); n != 1 {
			t.Errorf("component %d was closed %d×", i, n)
		}
	}
	if len(s.List()) != 0 {
		t.Error("closed components can still be looked up")
	}
	if err := s.Close(t.Context()); err != nil {
		t.Errorf("closing again: %v", err)
	}
}

// Calls look up while components come and go: no lookup may see a half-changed store.
func TestLookupsDuringChanges(t *testing.T) {
	s := catalog.NewStore[block.State](block.KindState)
	s.Put(handle("stays", &store{}))
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 100 {
				name := fmt.Sprintf("%d-%d", w, i%3)
				s.Put(handle(name, &store{}))
				if i%2 == 0 {
					s.Remove(name)
				}
			}
		})
		wg.Go(func() {
			for range 200 {
				if h, err := s.Lookup("stays"); err != nil || h.Name != "stays" {
					t.Errorf("got %v, %v", h, err)
					return
				}
			}
		})
	}
	wg.Wait()
	// Of each worker's 100 turns the last on name 0 (i=99) puts, on 1 (i=97) puts, on 2 (i=98)
	// removes: what is left is 2 names per worker, and the one that stays.
	if n := len(s.List()); n != 4*2+1 {
		t.Errorf("%d components are left, want 9: a change was lost", n)
	}
}
