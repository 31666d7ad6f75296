package group

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"
)

// explore goes through the states of a scenario. It returns how many there are, how many steps lead
// between them, and the first wrong one.
func explore(sc *scenario, limit int) (states, steps, settled int, wrong *world) {
	w := begin(sc)
	if w.wrong != "" {
		return 0, 0, 0, w
	}
	seen := map[[32]byte]int{} // the most ticks left
	// Time goes on when all is done that can be done before: so a state is met first with the most
	// time left.
	todo := make([][]*world, sc.ticks+1)
	todo[sc.ticks] = []*world{w}
	for at := sc.ticks; at >= 0 && (limit == 0 || states < limit); {
		n := len(todo[at])
		if n == 0 {
			at--
			continue
		}
		w := todo[at][n-1]
		todo[at] = todo[at][:n-1]
		k := w.key()
		had, known := seen[k]
		if known && had >= w.tick {
			continue
		}
		seen[k] = w.tick
		if !known {
			states++
			// Settling takes long, so it is done for a part of the states: they are many, and
			// what is wrong with one is wrong with its neighbours.
			if w.faults == 0 && (w.tick == 0 && k[0] < 32 || k[0] < 2) {
				settled++
				x := w.next("(no more disturbances)")
				if x.settle(); x.wrong != "" {
					return states, steps, settled, x
				}
			}
		}
		w.steps(func(x *world) {
			steps++
			if x.wrong == "" {
				x.look()
			}
			if x.wrong != "" {
				if wrong == nil {
					wrong = x
				}
				return
			}
			todo[x.tick] = append(todo[x.tick], x)
		})
		if wrong != nil {
			return states, steps, settled, wrong
		}
	}
	return states, steps, settled, nil
}

// begin is a settled group.
func begin(sc *scenario) *world {
	w := &world{cfg: sc, ledger: map[string]stored{}, tick: sc.ticks, faults: sc.faults, commits: sc.commits, top: map[Part]uint64{}}
	for i, instance := range sc.nodes {
		name := string(rune('a' + i))
		w.nodes = append(w.nodes, &node{name: name, instance: strings.TrimSuffix(instance, "*")})
		if !strings.HasSuffix(instance, "*") {
			w.come(i)
			w.quiet()
		}
	}
	for range 2 {
		w.quiet()
		w.forward()
	}
	w.quiet()
	w.look()
	x := *w
	x.parent, x.last = nil, ""
	return &x
}

// TestModel explores each scenario, with one disturbance at any time. MECHA_MODEL_FAULTS=2 allows two,
// which takes many minutes; MECHA_MODEL_STATES bounds how many states of each are looked at.
func TestModel(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	deeper, _ := strconv.Atoi(os.Getenv("MECHA_MODEL_FAULTS"))
	limit, _ := strconv.Atoi(os.Getenv("MECHA_MODEL_STATES"))
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			if deeper > 0 {
				sc.faults = deeper
			}
			start := time.Now()
			states, steps, settled, wrong := explore(&sc, limit)
			t.Logf("%d states, %d steps, %d settled, %v; %d faults, %d ticks", states, steps, settled, time.Since(start).Round(time.Millisecond), sc.faults, sc.ticks)
			if wrong != nil {
				t.Errorf("wrong: %s\n    %s\n%s", wrong.wrong, wrong.trace(), wrong.dump())
			}
		})
	}
}
