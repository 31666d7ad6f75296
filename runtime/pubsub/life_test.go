package pubsub_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// journal is an app that writes down what it gets and answers as the test says.
type journal struct {
	mu     sync.Mutex
	got    []string
	answer func(data string, attempt string) (*call.Response, error)
}

func (j *journal) Invoke(_ context.Context, r *call.Request) (*call.Response, error) {
	data := dataOf(r.Data)
	attempt := r.Header.Get(pubsub.AttemptHeader)
	j.mu.Lock()
	j.got = append(j.got, data+"/"+attempt)
	j.mu.Unlock()
	if j.answer == nil {
		return status(200, "")
	}
	return j.answer(data, attempt)
}

func (j *journal) all() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.got)
}

func dataOf(body []byte) string {
	_, rest, _ := strings.Cut(string(body), `"data":"`)
	data, _, _ := strings.Cut(rest, `"`)
	return data
}

func TestBackoffGrowsForEver(t *testing.T) {
	for _, key := range []string{"", "k"} {
		t.Run("key "+key, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var times []time.Time
				j := &journal{answer: func(string, string) (*call.Response, error) {
					times = append(times, time.Now())
					return status(500, "")
				}}
				b := newBroker()
				s := open(t, b, nil, pubsub.Options{App: j})
				defer drain(t, s)
				subscribe(t, s, sub("t"))
				b.put(event("t", key, "x"))
				time.Sleep(time.Hour)
				synctest.Wait()
				if len(times) < 60 {
					t.Fatalf("%d deliveries in an hour, want one a minute at least", len(times))
				}
				for i := 1; i < len(times); i++ {
					want := min(500*time.Millisecond<<min(i-1, 10), time.Minute)
					got := times[i].Sub(times[i-1])
					if got < want*8/10 || got > min(want*12/10, time.Minute) {
						t.Errorf("pause %d = %v, want about %v", i, got, want)
					}
				}
				if got, want := j.all()[20], "x/21"; got != want {
					t.Errorf("delivery 21 = %q, want %q", got, want)
				}
			})
		})
	}
}

func TestPolicyAttemptsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		j := &journal{answer: func(string, string) (*call.Response, error) { return status(500, "") }}
		target := &call.Target{Kind: call.Deliver}
		var causes []int
		target.SetChain(&call.Chain{Retry: func(c *call.Call, err error) (time.Duration, bool) {
			var status *pubsub.StatusError
			if errors.As(err, &status) {
				causes = append(causes, status.Status)
			}
			return 0, c.Attempt < 3
		}})
		s := open(t, b, nil, pubsub.Options{App: j, Inbound: func(string) *call.Target { return target }})
		defer drain(t, s)
		subscribe(t, s, sub("t", withDeadLetter))
		b.put(event("t", "", "x"))
		synctest.Wait()
		if want := []string{"x/1", "x/2", "x/3"}; !slices.Equal(j.all(), want) {
			t.Errorf("delivered %q, want %q", j.all(), want)
		}
		if got := b.topics(); !slices.Equal(got, []string{"t", "dead"}) {
			t.Errorf("published to %q", got)
		}
		if !slices.Equal(causes, []int{500, 500, 500}) {
			t.Errorf("the policy saw %v", causes)
		}
	})
}

// TestKeyOrder: a failing message keeps its key waiting and nobody else.
func TestKeyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		j := &journal{answer: func(data, attempt string) (*call.Response, error) {
			if data == "a1" && attempt < "4" {
				return status(500, "")
			}
			return status(200, "")
		}}
		s := open(t, b, nil, pubsub.Options{App: j})
		defer drain(t, s)
		subscribe(t, s, sub("t"))
		for i := 1; i <= 3; i++ {
			b.put(event("t", "a", fmt.Sprint("a", i)))
			b.put(event("t", "b", fmt.Sprint("b", i)))
		}
		synctest.Wait()
		if got := j.all(); !slices.Contains(got, "b3/1") || slices.Contains(got, "a2/1") {
			t.Errorf("while a1 fails: %q", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		var a []string
		for _, g := range j.all() {
			if g[0] == 'a' {
				a = append(a, g)
			}
		}
		if want := []string{"a1/1", "a1/2", "a1/3", "a1/4", "a2/1", "a3/1"}; !slices.Equal(a, want) {
			t.Errorf("key a got %q, want %q", a, want)
		}
	})
}

// TestPoisonKey: a key that keeps failing delays the others only when its backlog fills the
// window; then nothing is lost and nothing overtakes.
func TestPoisonKey(t *testing.T) {
	for backlog, freely := range map[int]bool{20: true, 50: false} {
		t.Run(fmt.Sprint(backlog), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker()
				var healed atomic.Bool
				j := &journal{answer: func(data, _ string) (*call.Response, error) {
					if data[0] == 'p' && !healed.Load() {
						return status(500, "")
					}
					return status(200, "")
				}}
				s := open(t, b, nil, pubsub.Options{App: j, MaxInFlight: 8})
				defer drain(t, s)
				subscribe(t, s, sub("t"))
				for i := range backlog {
					b.put(event("t", "poison", fmt.Sprintf("p%02d", i)))
				}
				for i := range 20 {
					b.put(event("t", fmt.Sprint("k", i%3), fmt.Sprintf("good%02d", i)))
				}
				good := func() (n int) {
					for _, g := range j.all() {
						if strings.HasPrefix(g, "good") {
							n++
						}
					}
					return n
				}
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if got := good(); (got == 20) != freely {
					t.Errorf("%d good messages came through", got)
				}
				healed.Store(true)
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				var poison []string
				for _, g := range j.all() {
					if data, _, _ := strings.Cut(g, "/"); data[0] == 'p' && data != "p00" {
						poison = append(poison, data)
					}
				}
				if good() != 20 || len(poison) != backlog-1 || !slices.IsSorted(poison) {
					t.Errorf("in the end: %d good, poison %q", good(), poison)
				}
			})
		})
	}
}

func TestConcurrency(t *testing.T) {
	cases := []struct {
		name     string
		metadata map[string]string
		key      string
		want     int64
	}{
		{"default", nil, "", 64},
		{"of the subscription", map[string]string{"maxInFlight": "3"}, "", 3},
		{"nonsense", map[string]string{"maxInFlight": "-1"}, "", 64},
		{"one key", nil, "k", 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker()
				var now, peak atomic.Int64
				s := open(t, b, nil, pubsub.Options{App: app(func(context.Context, *call.Request) (*call.Response, error) {
					n := now.Add(1)
					defer now.Add(-1)
					for p := peak.Load(); n > p && !peak.CompareAndSwap(p, n); p = peak.Load() {
					}
					time.Sleep(time.Second)
					return status(200, "")
				})})
				defer drain(t, s)
				subscribe(t, s, sub("t", func(s *pubsub.Subscription) { s.Metadata = c.metadata }))
				for i := range 100 {
					b.put(event("t", c.key, fmt.Sprint(i)))
				}
				time.Sleep(5 * time.Second)
				synctest.Wait()
				if got := peak.Load(); got != c.want {
					t.Errorf("at most %d at once, want %d", got, c.want)
				}
			})
		})
	}
}

// TestDrain: messages in progress finish and are acknowledged; the others go back unanswered.
func TestDrain(t *testing.T) {
	cases := []struct {
		name     string
		patience time.Duration
		handler  time.Duration
		want     []string // of the broker, after the publishes
		err      bool
	}{
		{"in time", 10 * time.Second, 5 * time.Second, []string{"ack 1", "returned 2"}, false},
		{"cut short", time.Second, 5 * time.Second, []string{"returned 1", "returned 2"}, true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker()
				s := open(t, b, nil, pubsub.Options{App: app(func(ctx context.Context, _ *call.Request) (*call.Response, error) {
					select {
					case <-time.After(c.handler):
						return status(200, "")
					case <-ctx.Done():
						return nil, ctx.Err()
					}
				})})
				subscribe(t, s, sub("t", withDeadLetter))
				b.put(event("t", "k", "x"))
				b.put(event("t", "k", "y"))
				synctest.Wait()
				log := b.record()
				ctx, cancel := context.WithTimeout(t.Context(), c.patience)
				defer cancel()
				start := time.Now()
				err := s.Drain(ctx)
				if (err != nil) != c.err || time.Since(start) > c.handler {
					t.Errorf("Drain = %v after %v", err, time.Since(start))
				}
				b.put(event("t", "k", "z"))
				if want := append(c.want, "publish t"); !slices.Equal(log(), want) {
					t.Errorf("log %q, want %q", log(), want)
				}
				if err := s.Drain(t.Context()); err != nil {
					t.Errorf("second Drain = %v", err)
				}
				s.Resume()
				synctest.Wait()
				if b.consumed != 1 {
					t.Error("something consumed after Drain")
				}
			})
		})
	}
}

// TestFailureWhileDraining: no dead letters, no nacks, the message goes back.
func TestFailureWhileDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := open(t, b, nil, pubsub.Options{App: app(func(context.Context, *call.Request) (*call.Response, error) {
			time.Sleep(time.Second)
			return status(500, "")
		})})
		subscribe(t, s, sub("t", withDeadLetter))
		b.put(event("t", "", "x"))
		synctest.Wait()
		log := b.record()
		if err := s.Drain(t.Context()); err != nil {
			t.Error(err)
		}
		if want := []string{"returned 1"}; !slices.Equal(log(), want) {
			t.Errorf("log %q, want %q", log(), want)
		}
	})
}

func TestPauseResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		j := &journal{}
		s := open(t, b, nil, pubsub.Options{App: j})
		defer drain(t, s)
		if err := s.SetDeclarative([]pubsub.Subscription{sub("t")}); err != nil {
			t.Fatal(err)
		}
		put := func(data string) { b.put(event("t", "", data)); synctest.Wait() }
		put("early")
		if len(j.all()) != 0 {
			t.Error("delivered before the app was found")
		}
		s.Resume()
		synctest.Wait()
		s.Pause()
		synctest.Wait()
		put("meanwhile")
		s.Pause()
		s.Resume()
		s.Resume()
		synctest.Wait()
		put("late")
		if want := []string{"early/1", "meanwhile/1", "late/1"}; !slices.Equal(j.all(), want) {
			t.Errorf("delivered %q, want %q", j.all(), want)
		}
	})
}

// TestIsolation: what fails is tried again and disturbs nobody.
func TestIsolation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		fails := 0
		b.failConsume = func(topic string, _ int) error {
			if topic == "bad" && fails < 5 {
				fails++
				if fails == 2 {
					panic("backend defect")
				}
				return fault.New("t", fault.Unavailable, "no such stream")
			}
			return nil
		}
		j := &journal{}
		s := open(t, b, map[string]string{"subscriptionscopes": "shop=bad,good"}, pubsub.Options{App: j})
		defer drain(t, s)
		subscribe(t, s, sub("bad"), sub("good"), sub("refused"), pubsub.Subscription{PubSub: "unknown", Topic: "t", Rules: []pubsub.Rule{{Path: "x"}}})
		b.put(event("good", "", "g"))
		b.put(event("bad", "", "b"))
		b.put(event("refused", "", "r"))
		synctest.Wait()
		if want := []string{"g/1"}; !slices.Equal(j.all(), want) {
			t.Errorf("at once: %q, want %q", j.all(), want)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if want := []string{"g/1", "b/1"}; !slices.Equal(j.all(), want) {
			t.Errorf("later: %q, want %q", j.all(), want)
		}
		if got := len(s.List()); got != 4 {
			t.Errorf("%d subscriptions listed, want all 4", got)
		}
	})
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stores := catalog.NewStore[block.PubSub](block.KindPubSub)
		j := &journal{}
		s := pubsub.New(stores, shop, pubsub.Options{App: j})
		defer drain(t, s)
		subscribe(t, s, sub("t"))
		synctest.Wait()
		b := newBroker()
		put := func(raw map[string]string) {
			stores.Put(catalog.NewHandle[block.PubSub](catalog.Info{Name: "ps", Raw: raw}, b, &call.Target{}))
			s.Refresh("ps")
			synctest.Wait()
		}
		put(map[string]string{"subscriptionscopes": "shop="})
		b.put(event("t", "", "x"))
		synctest.Wait()
		if len(j.all()) != 0 {
			t.Errorf("delivered %q against the scopes", j.all())
		}
		put(map[string]string{"consumerid": "group", "prefix": "{namespace}"})
		if b.opts.Group != "group" || b.opts.Topic != "defaultt" {
			t.Errorf("consuming %+v", b.opts)
		}
		put(nil)
		if b.opts.Group != "shop" || !slices.Equal(j.all(), []string{"x/1"}) {
			t.Errorf("group %q, delivered %q", b.opts.Group, j.all())
		}
	})
}

func TestUnchangedSubscriptionsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBroker()
		s := open(t, b, nil, pubsub.Options{App: &journal{}})
		defer drain(t, s)
		subscribe(t, s, sub("a"), sub("b"))
		synctest.Wait()
		if err := s.SetDeclarative([]pubsub.Subscription{sub("b"), sub("c")}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if b.consumed != 3 {
			t.Errorf("%d consumers were started, want 3: b was not to be disturbed", b.consumed)
		}
	})
}

// TestHungHandler: one call the app never answers must not keep a subscription from coming
// back after a pause. A drain waits for as long as it was told to.
func TestHungHandler(t *testing.T) {
	hanging := func(served *atomic.Int64, cut *atomic.Bool) app {
		return func(ctx context.Context, r *call.Request) (*call.Response, error) {
			if strings.Contains(string(r.Data), "hang") && !cut.Load() {
				<-ctx.Done()
				cut.Store(true)
				return nil, ctx.Err()
			}
			served.Add(1)
			return status(200, "")
		}
	}
	t.Run("pause", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBroker()
			var served atomic.Int64
			var cut atomic.Bool
			s := open(t, b, nil, pubsub.Options{App: hanging(&served, &cut)})
			defer drain(t, s)
			subscribe(t, s, sub("t"))
			b.put(event("t", "", "hang"))
			synctest.Wait()
			s.Pause()
			b.put(event("t", "", "next"))
			s.Resume()
			time.Sleep(5 * time.Minute)
			synctest.Wait()
			if got := served.Load(); got != 2 {
				t.Errorf("%d of 2 messages were handled", got)
			}
		})
	})
	t.Run("drain", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := newBroker()
			var served atomic.Int64
			var cut atomic.Bool
			s := open(t, b, nil, pubsub.Options{App: hanging(&served, &cut)})
			subscribe(t, s, sub("t"))
			b.put(event("t", "", "hang"))
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			began := time.Now()
			if err := s.Drain(ctx); err == nil || time.Since(began) != 10*time.Minute {
				t.Errorf("Drain: %v after %v", err, time.Since(began))
			}
		})
	})
}
