package breaker_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/mecha-project/mecha/runtime/policy/breaker"
)

func plain(string) *breaker.Breaker { return breaker.New(breaker.Config{}, nil) }

func TestGroup(t *testing.T) {
	var made []string
	g := breaker.NewGroup(2, func(key string) *breaker.Breaker {
		made = append(made, key)
		return plain(key)
	})
	a, b := g.For("a"), g.For("b")
	if a == b {
		t.Error("two keys share a breaker")
	}
	if g.For("a") != a {
		t.Error("a key has two breakers")
	}
	g.For("c") // b was used longest ago
	var kept []string
	g.Each(func(key string, br *breaker.Breaker) {
		if (key == "a") != (br == a) {
			t.Errorf("key %s has another's breaker", key)
		}
		kept = append(kept, key)
	})
	slices.Sort(kept)
	if !slices.Equal(kept, []string{"a", "c"}) || g.Len() != 2 {
		t.Errorf("kept %q, Len() = %d, want a and c", kept, g.Len())
	}
	if g.For("b") == b {
		t.Error("a forgotten breaker came back")
	}
	if want := []string{"a", "b", "c", "b"}; !slices.Equal(made, want) {
		t.Errorf("made %q, want %q", made, want)
	}
}

func TestGroupDefault(t *testing.T) {
	g := breaker.NewGroup(0, plain)
	for i := range breaker.DefaultGroup + 10 {
		g.For(fmt.Sprint(i))
	}
	if g.Len() != breaker.DefaultGroup {
		t.Errorf("Len() = %d, want %d", g.Len(), breaker.DefaultGroup)
	}
}

// TestGroupOnce has many ask for the same new keys; all must get the same breakers.
func TestGroupOnce(t *testing.T) {
	g := breaker.NewGroup(1000, plain)
	var wg sync.WaitGroup
	got := make([][100]*breaker.Breaker, 4)
	for n := range got {
		wg.Go(func() {
			for i := range got[n] {
				got[n][i] = g.For(fmt.Sprint(i))
			}
		})
	}
	wg.Wait()
	for n := range got {
		if got[n] != got[0] {
			t.Error("a key has two breakers")
		}
	}
}
