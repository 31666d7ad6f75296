package policy_test

import (
	"fmt"
	"testing"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy"
)

// Messages without a key have no order to keep, so weights hold for them one by one; in a
// store the empty key is a key like any other.
func TestOnlyMessagesWithoutAKeyAreSpread(t *testing.T) {
	for _, tt := range []struct {
		kind   call.Kind
		key    string
		spread bool
	}{{call.Publish, "", true}, {call.Publish, "k", false}, {call.State, "", false}, {call.State, "k", false}} {
		t.Run(fmt.Sprintf("%v %q", tt.kind, tt.key), func(t *testing.T) {
			e := policy.New(policy.Options{})
			e.Swap(&policy.Snapshot{Policies: []policy.Policy{{Name: "p", Spec: policy.Spec{Route: []policy.Destination{{To: "a"}, {To: "b"}}}}}})
			tg := &call.Target{Kind: tt.kind, Name: "x"}
			e.Govern(tg)
			desc := call.Desc{Op: "set", Key: tt.key}
			went := map[string]int{}
			for range 100 {
				c, err := call.Begin(t.Context(), tg, desc)
				if err != nil {
					t.Fatal(err)
				}
				for c.Next() {
					went[c.To()]++
					c.Done(nil)
				}
				_ = c.End(nil)
			}
			if (len(went) == 2) != tt.spread {
				t.Errorf("went to %v", went)
			}
			if together := call.PolicyOf(tg, desc).Place(tt.key); (together == "") != tt.spread {
				t.Errorf("in a bulk request it is put with those for %q", together)
			}
		})
	}
}
