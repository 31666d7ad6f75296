//go:build unix

package messaging

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/faults/messaging/app"
)

// atOnce is how many histories are made side by side: most of their time is waiting.
const atOnce = "4"

func TestMain(m *testing.M) {
	if os.Getenv(app.Env) != "" {
		app.Main()
		return
	}
	flag.Parse()
	if err := flag.Set("test.parallel", atOnce); err != nil {
		panic(err)
	}
	code := m.Run()
	results.print()
	os.Exit(code)
}

// firstSeed is that of the first round; each further round has the next.
func firstSeed(t *testing.T) int64 {
	text := os.Getenv("MESSAGING_SEED")
	if text == "" {
		return 1
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal("MESSAGING_SEED: ", err)
	}
	return n
}

// TestCampaign makes a history of every scenario, and goes on with other seeds for as long as
// FAULTS_FOR says.
func TestCampaign(t *testing.T) {
	end := time.Now()
	if text := os.Getenv("FAULTS_FOR"); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatal("FAULTS_FOR: ", err)
		}
		end = end.Add(d)
	}
	seed := firstSeed(t)
	for round := int64(0); round == 0 || time.Now().Before(end); round++ {
		t.Run(fmt.Sprintf("seed %d", seed+round), func(t *testing.T) {
			for _, sc := range scenarios {
				t.Run(sc.name, func(t *testing.T) {
					t.Parallel()
					sc.run(t, seed+round)
				})
			}
		})
	}
}

// run makes one history and judges it.
func (sc scenario) run(t *testing.T, seed int64) {
	s := newStage(t, sc, seed)
	s.publish()
	if sc.rounds == 0 {
		for _, f := range sc.faults {
			f(s)
			time.Sleep(s.between(300*time.Millisecond, 600*time.Millisecond))
		}
	}
	for range sc.rounds {
		sc.faults[s.dice.IntN(len(sc.faults))](s)
		time.Sleep(s.between(50*time.Millisecond, 400*time.Millisecond))
	}
	s.drain()
	results.add(sc, s.judge())
}
