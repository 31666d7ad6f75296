package group

import (
	"fmt"
	"slices"
	"testing"
)

func sharers(n int, topics ...string) []sharer {
	var out []sharer
	for i := range n {
		out = append(out, sharer{id: fmt.Sprint("seat-", i), joined: uint64(i + 1), topics: topics})
	}
	return out
}

// moved counts the partitions that have another seat.
func moved(a, b map[Part]string) (n int) {
	for p, s := range a {
		if b[p] != s {
			n++
		}
	}
	return n
}

func loads(target map[Part]string, seats []sharer) (least, most int) {
	n := map[string]int{}
	for _, s := range target {
		n[s]++
	}
	least = len(target)
	for _, s := range seats {
		least, most = min(least, n[s.id]), max(most, n[s.id])
	}
	return least, most
}

// TestShareMoves: loads are even, and a join or a leave moves little more than it must.
func TestShareMoves(t *testing.T) {
	for _, n := range []int32{8, 16, 32, 100, 1024} {
		for _, k := range []int{1, 2, 3, 4, 8, 12} {
			join, leave := 0, 0
			const topics = 10
			for i := range topics {
				topic := fmt.Sprint("topic ", i)
				l := map[string]Layout{topic: {Generations: []Generation{{Count: n}}}}
				seats := sharers(k, topic)
				before := share(seats, l)
				if least, most := loads(before, seats); len(before) != int(n) || most-least > 1 {
					t.Fatalf("%d partitions, %d seats: %d are shared, loads from %d to %d", n, k, len(before), least, most)
				}
				newcomer := sharer{id: "new", joined: uint64(k + 1), topics: []string{topic}}
				join += moved(before, share(append(slices.Clone(seats), newcomer), l))
				for i := range seats {
					if k > 1 {
						leave += moved(before, share(slices.Delete(slices.Clone(seats), i, i+1), l))
					}
				}
			}
			j, v := float64(join)/topics, float64(leave)/topics/float64(k)
			least, leastLeave := float64(n)/float64(k+1), float64(n)/float64(k)
			t.Logf("%4d partitions, %2d seats: a join moves %.1f (least %.1f), a leave %.1f (least %.1f)", n, k, j, least, v, leastLeave)
			if slack := 1 + float64(n)/25; j > 1.35*least+slack || v > 1.35*leastLeave+slack {
				t.Errorf("%d partitions, %d seats: a join moves %.1f, a leave %.1f", n, k, j, v)
			}
		}
	}
}

// TestShareReturns: who leaves and comes back, in whatever order, gets what it had.
func TestShareReturns(t *testing.T) {
	seats := sharers(5, "t")
	before := share(seats, one(32))
	seats[1].joined = 17
	slices.Reverse(seats)
	if n := moved(before, share(seats, one(32))); n != 0 {
		t.Errorf("%d partitions moved", n)
	}
}

// TestShareSmallTopics: many topics with one partition do not land on one seat.
func TestShareSmallTopics(t *testing.T) {
	layouts := map[string]Layout{}
	var topics []string
	for i := range 200 {
		topic := fmt.Sprint("topic ", i)
		topics = append(topics, topic)
		layouts[topic] = Layout{Generations: []Generation{{Count: 1}}}
	}
	seats := sharers(4, topics...)
	if least, most := loads(share(seats, layouts), seats); least < 30 || most > 70 {
		t.Errorf("of 200 topics the seats have from %d to %d", least, most)
	}
}

func TestShareManual(t *testing.T) {
	m1 := sharer{id: "m1", joined: 7, topics: []string{"t"}, manual: []Part{{"t", 1}, {"t", 2}}}
	m2 := sharer{id: "m2", joined: 8, topics: []string{"t"}, manual: []Part{{"t", 2}, {"x", 0}}}
	target := share(append(sharers(2, "t"), m2, m1), one(6))
	for p, want := range map[Part]string{{"t", 1}: "m1", {"t", 2}: "m1", {"x", 0}: "m2"} {
		if target[p] != want {
			t.Errorf("%s belongs to %q, want %q", p, target[p], want)
		}
	}
	if least, most := loads(target, sharers(2)); least != 2 || most != 2 {
		t.Errorf("the others have from %d to %d, want 2 each", least, most)
	}
	// A manual seat takes nothing else, and without others the rest is nobody's.
	if target := share([]sharer{m1}, one(6)); len(target) != 2 {
		t.Errorf("alone a manual seat has %v", target)
	}
}

func TestShareTopics(t *testing.T) {
	layouts := one(6)
	layouts["u"] = Layout{Generations: []Generation{{0, 2}, {2, 4}}}
	seats := append(sharers(2, "t"), sharer{id: "both", joined: 9, topics: []string{"t", "u"}})
	target := share(seats, layouts)
	for p, s := range target {
		if p.Topic == "u" && s != "both" {
			t.Errorf("%s belongs to %s, which does not want it", p, s)
		}
	}
	if len(target) != 12 {
		t.Errorf("%d of 12 partitions are shared", len(target))
	}
}
