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

// share says which seat each partition belongs to. It is a pure function of the seats and the
// layouts, whatever was before: members that see the same come to the same answer without a word
// to each other, and a seat that comes back gets what it had.
//
// Of each topic the loads of its seats differ by one at most. A join or a leave moves little more
// than the share of the one who came or went (share_test.go has the figures).
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
		deal(target, free, ids)
	}
	return target
}

// deal divides the partitions of a topic among seats. Each pair of a partition and a seat has a
// number drawn by hashing (rendezvous hashing); the highest numbers win, as long as the seat has
// room. So who comes or goes changes nothing between the others, but for the room there is.
func deal(target map[Part]string, parts []Part, ids []string) {
	type pair struct {
		draw       uint64
		part, seat int32
	}
	pairs := make([]pair, 0, len(parts)*len(ids))
	for i, p := range parts {
		for k, id := range ids {
			pairs = append(pairs, pair{hash(p.Topic, p.ID, id), int32(i), int32(k)})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(b.draw, a.draw), cmp.Compare(a.part, b.part), cmp.Compare(a.seat, b.seat))
	})
	least, more := len(parts)/len(ids), len(parts)%len(ids)
	load := make([]int, len(ids))
	for _, x := range pairs {
		p := parts[x.part]
		if _, taken := target[p]; taken {
			continue
		}
		switch {
		case load[x.seat] < least:
		case load[x.seat] == least && more > 0:
			more--
		default:
			continue
		}
		load[x.seat]++
		target[p] = ids[x.seat]
	}
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
