package health

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"
)

// Seed makes the checker's chance repeatable.
func (c *Checker) Seed(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.random = rand.New(rand.NewPCG(n, n))
}

// MaxAtOnce is the bound on checks under way.
const MaxAtOnce = maxAtOnce

// Load is how many checks are under way and in time, how many goroutines probes have, and how many
// hosts are remembered.
func (c *Checker) Load() (flying, probes, hosts int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flying, c.probes, len(c.hosts)
}

// MissedUses lets a call and the loop meet, as many times as there are rounds, and returns how often
// the call was neither noticed nor left a token for the loop.
func MissedUses(rounds int) (missed int) {
	c := New(Config{}, nil, nil, nil)
	c.Close() // the steps below are the loop's
	now := time.Now()
	for i := range 2000 { // the loop takes a while to look through them
		c.add(strconv.Itoa(i), now.Add(time.Hour))
		c.due[i].started = now
	}
	for range rounds {
		c.due[len(c.due)-1].idle = true
		c.used.Store(false)
		c.resting.Store(false)
		var ready, done sync.WaitGroup
		ready.Add(2)
		pause := rand.IntN(20000)
		done.Go(func() {
			ready.Done()
			ready.Wait()
			for range pause { // to meet the step anywhere
				c.resting.Load()
			}
			c.Used()
		})
		done.Go(func() { ready.Done(); ready.Wait(); c.step(context.Background(), now) })
		done.Wait()
		for _, h := range c.due { // where the call was noticed, a plan has changed
			h.idle, h.due = false, now.Add(time.Hour)
		}
		select {
		case <-c.wake:
		default:
			if c.used.Load() {
				missed++
			}
		}
	}
	return missed
}
