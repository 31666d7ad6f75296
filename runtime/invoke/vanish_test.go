package invoke_test

import (
	"runtime"
	"sync"
	"testing"

	"github.com/mecha-project/mecha/components/fault"
)

// An app whose last instance vanishes while a call looks for it is not found; the call never
// ends without an answer and without an error.
func TestInstancesThatComeAndGoDuringACall(t *testing.T) {
	reg := newWatched()
	k := newKit(t, withRegistry(reg))
	reg.set(shop, "a")
	if body, err := k.do(t, "shop"); body != "a" || err != nil {
		t.Fatalf("%q, %v", body, err)
	}
	stop := make(chan struct{})
	var flicker sync.WaitGroup
	for range 2 {
		flicker.Go(func() {
			for {
				select {
				case <-stop:
					return
				case reg.push <- nil:
				}
			}
		})
	}
	defer flicker.Wait()
	defer close(stop)
	for range 20000 {
		body, err := k.do(t, "shop")
		switch {
		case err == nil && body == "a":
		case fault.Of(err) == fault.NotFound:
		default:
			t.Fatalf("%q, %v", body, err)
		}
		runtime.Gosched()
	}
}
