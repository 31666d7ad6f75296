package sim_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

var (
	seedFlag   = flag.Int64("seed", -1, "run the history of this seed only")
	seedsFlag  = flag.Int("seeds", 0, "how many histories to run; 0 means MECHA_SIM_SEEDS, or as many as the time allows")
	themeFlag  = flag.String("theme", "", "only histories of this theme")
	showFlag   = flag.Int("show", 3, "how many violated histories to print")
	wholeFlag  = flag.Bool("whole", false, "print what happened to other keys of the partition too")
	linesFlag  = flag.Int("lines", 60, "how many events to print of a violated history")
	spinFlag   = flag.Duration("patience", 60*time.Second, "how long a history may take, in real time")
	untilFlag  = flag.Bool("until", false, "end at the first history that is violated")
	budgetFlag = flag.Duration("budget", 25*time.Second, "how long to go on with histories when their number is not given")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// now running, for the watchdog.
var running atomic.Int64

// watchdog ends a history that makes no progress: one that spins at one instant would never end.
func watchdog(stop <-chan struct{}) {
	last, since := int64(-1), time.Now()
	for {
		select {
		case <-stop:
			return
		case <-time.After(500 * time.Millisecond):
		}
		if now := running.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) > *spinFlag {
			fmt.Fprintf(os.Stderr, "SIM SPINS: seed %d does not end\n", last)
			debug.SetTraceback("all")
			panic(fmt.Sprintf("the history of seed %d does not end: -seed %d repeats it", last, last))
		}
	}
}

// TestHistories runs as many histories as asked for, or as fit into the time.
func TestHistories(t *testing.T) {
	n := *seedsFlag
	if n == 0 {
		n, _ = strconv.Atoi(os.Getenv("MECHA_SIM_SEEDS"))
	}
	first := uint64(0)
	if *seedFlag >= 0 {
		first, n = uint64(*seedFlag), 1
	}
	stop := make(chan struct{})
	defer close(stop)
	go watchdog(stop)
	began := time.Now()
	tried := map[string]int{}
	violated := map[string]int{}
	checks := map[string]int{}
	histories, bad := 0, 0
	for seed := first; n == 0 && time.Since(began) < *budgetFlag || n > 0 && seed < first+uint64(n); seed++ {
		c := plan(seed)
		if *themeFlag != "" && c.theme != *themeFlag {
			if n > 0 {
				n++
			}
			continue
		}
		w := history(t, seed, c)
		histories++
		for inv, k := range w.checks {
			checks[inv] += k
			tried[inv]++
		}
		if len(w.broken) == 0 {
			continue
		}
		seen := map[string]bool{}
		for _, v := range w.broken {
			if !seen[v.inv] {
				violated[v.inv]++
			}
			seen[v.inv] = true
		}
		if bad++; bad <= *showFlag {
			v := w.broken[0]
			t.Errorf("SIM VIOLATED %s seed %d theme %s: %s\n%s\nrepeat it with: go test ./runtime/pubsub/engine/sim -run TestHistories -seed %d -count 5",
				v.inv, seed, w.cfg.theme, v.text, w.story(v, *linesFlag), seed)
		}
		if *untilFlag {
			break
		}
	}
	var b strings.Builder
	for _, inv := range slices.SortedFunc(maps.Keys(tried), func(a, b string) int { return number(a) - number(b) }) {
		fmt.Fprintf(&b, "  %-4s %6d histories %9d checks %4d violated\n", inv, tried[inv], checks[inv], violated[inv])
	}
	t.Logf("%d histories in %v, %d violated\n%s", histories, time.Since(began).Round(time.Millisecond), bad, b.String())
}

func number(inv string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(inv, "I"))
	return n
}

// history runs one seed.
func history(t *testing.T, seed uint64, c config) (w *world) {
	running.Store(int64(seed))
	w = &world{seed: seed, cfg: c}
	defer func() {
		if r := recover(); r != nil {
			w.broken = append([]violation{{inv: "I1", text: fmt.Sprintf("it does not end: %v", r), part: everywhere, at: time.Hour}}, w.broken...)
		}
	}()
	synctest.Test(t, func(t *testing.T) { simulate(t, w) })
	return w
}
