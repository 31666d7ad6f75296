package group

import (
	"cmp"
	"slices"
	"strings"
)

// sharer is a seat as far as the sharing of partitions goes.
type sharer struct {
	id     string
	joined uint64
	topics []string
	manual []Part
}

func bySeniority(a, b sharer) int {
	return cmp.Or(cmp.Compare(a.joined, b.joined), strings.Compare(a.id, b.id))
}

// share says which seat each partition belongs to. It is a pure function: members that see the
// same seats and layouts come to the same answer without a word to each other.
//
// Of each topic, the loads of its seats differ by one at most. Seats are added in the order they
// joined, and each takes just its share from those before it, so that a join moves nothing but
// what the newcomer gets, and the leaving of the youngest nothing but what it had. Which of a
// seat's partitions move, and who has one more than others, is decided by hashes, which keeps
// the answer near to what it was when another one leaves, and spreads small topics over the seats.
func share(seats []sharer, layouts map[string]Layout) map[Part]string {
	seats = slices.Clone(seats)
	slices.SortFunc(seats, bySeniority)
	target := map[Part]string{}
	for _, s := range seats {
		for _, p := range s.manual {
			if _, taken := target[p]; !taken {
				target[p] = s.id
			}
		}
	}
	for topic, l := range layouts {
		var ids []string
		for _, s := range seats {
			if len(s.manual) == 0 && slices.Contains(s.topics, topic) {
				ids = append(ids, s.id)
			}
		}
		if len(ids) == 0 {
			continue
		}
		var free []Part
		for p := range l.parts(topic) {
			if _, taken := target[p]; !taken {
				free = append(free, p)
			}
		}
		for i, held := range deal(topic, free, ids) {
			for _, p := range held {
				target[p] = ids[i]
			}
		}
	}
	return target
}

// deal divides the partitions of a topic among seats given in order of seniority.
func deal(topic string, parts []Part, ids []string) [][]Part {
	held := make([][]Part, 1, len(ids))
	held[0] = parts
	rank := []uint64{hash(topic, 0, ids[0])}
	for n := 1; n < len(ids); n++ {
		newcomer := ids[n]
		rank = append(rank, hash(topic, 0, newcomer))
		bar := lucky(rank, len(parts)%(n+1))
		var got []Part
		for i, mine := range held {
			keep := len(parts) / (n + 1)
			if rank[i] >= bar {
				keep++
			}
			if keep >= len(mine) {
				continue
			}
			slices.SortFunc(mine, func(a, b Part) int {
				return cmp.Or(cmp.Compare(hash(topic, a.ID, newcomer), hash(topic, b.ID, newcomer)), cmp.Compare(a.ID, b.ID))
			})
			got = append(got, mine[keep:]...)
			held[i] = mine[:keep:keep]
		}
		held = append(held, got)
	}
	return held
}

// lucky is the rank from which on a seat has one partition more than the others, for n seats to
// have it. Seats of equal rank, which hardly exist, would upset the balance and nothing else.
func lucky(rank []uint64, n int) uint64 {
	if n == 0 {
		return ^uint64(0)
	}
	sorted := slices.Clone(rank)
	slices.Sort(sorted)
	return sorted[len(sorted)-n]
}

// hash mixes its arguments (FNV-1a, then the finalizer of splitmix64, for the former alone
// leaves the numbers of neighbours close to each other).
func hash(topic string, part int32, seat string) uint64 {
	h := uint64(14695981039346656037)
	mix := func(b byte) { h = (h ^ uint64(b)) * 1099511628211 }
	for i := range len(topic) {
		mix(topic[i])
	}
	mix(0xff)
	for i := range len(seat) {
		mix(seat[i])
	}
	mix(0xff)
	for shift := 0; shift < 32; shift += 8 {
		mix(byte(part >> shift))
	}
	h ^= h >> 30
	h *= 0xbf58476d1ce4e5b9
	h ^= h >> 27
	h *= 0x94d049bb133111eb
	return h ^ h>>31
}
