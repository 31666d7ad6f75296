package balance

import (
	"cmp"
	"math/bits"
	"slices"
	"sort"
)

// Where a key lives is a contract between sidecars, also of different versions: all of them
// must place it on the same host given the same endpoints. So nothing here may depend on a
// seed, on the order of the list or on the health of hosts, and testdata/placement.txt holds
// the outcome.

// Salts make independent numbers of one hash. Any odd constants do; the first is the golden
// ratio, the others are fractional parts of the square roots of 2 and 3.
const (
	golden    = 0x9e3779b97f4a7c15
	saltSkip  = 0x6a09e667f3bcc909
	saltRoute = 0xbb67ae8584caa73b
)

// mix spreads every bit of x over the whole word (the finalizer of SplitMix64).
func mix(x uint64) uint64 {
	x += golden
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// hashID is FNV-1a, mixed because IDs often differ in the last letter only.
func hashID(id string) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 0x100000001b3
	}
	return mix(h)
}

// table maps places to hosts for ring hash and Maglev. It is immutable.
type table struct {
	policy  Policy
	size    int
	hosts   []*Host // by ID
	weights []int

	cells []uint32 // positions in hosts
	ring  []uint64 // hash of each cell, ascending; nil: Maglev
	jump  []uint32 // ring: first cell at or after each even part of the hashes
	shift uint     // ring: a hash's part of jump
}

// tableKey is a table without cells: what decides its contents.
func tableKey(cfg Config, hosts []*Host) *table {
	t := &table{policy: cfg.Policy, size: cfg.RingSize, hosts: slices.Clone(hosts)}
	if cfg.Policy == Maglev {
		t.size = cfg.TableSize
	}
	slices.SortFunc(t.hosts, func(a, b *Host) int { return cmp.Compare(a.id, b.id) })
	t.weights = make([]int, len(hosts))
	for i, h := range t.hosts {
		t.weights[i] = h.weight()
	}
	return t
}

func (t *table) same(o *table) bool {
	return t.policy == o.policy && t.size == o.size &&
		slices.Equal(t.hosts, o.hosts) && slices.Equal(t.weights, o.weights)
}

func (t *table) fill() *table {
	if t.policy == Maglev {
		t.fillMaglev()
	} else {
		t.fillRing()
	}
	return t
}

// place is the cell where the search for a mixed hash begins.
func (t *table) place(hash uint64) int {
	if t.ring == nil {
		hi, _ := bits.Mul64(hash, uint64(len(t.cells)))
		return int(hi)
	}
	i := int(t.jump[hash>>t.shift])
	for i < len(t.ring) && t.ring[i] < hash {
		i++
	}
	if i == len(t.ring) {
		return 0
	}
	return i
}

const empty = ^uint32(0)

// fillMaglev lets the hosts take turns, by weight, each claiming the next free place of its own
// permutation of the table (Eisenbud et al., "Maglev", NSDI 2016, section 3.4).
func (t *table) fillMaglev() {
	t.cells = make([]uint32, t.size)
	for i := range t.cells {
		t.cells[i] = empty
	}
	next, skip := make([]int, len(t.hosts)), make([]int, len(t.hosts))
	for i, h := range t.hosts {
		next[i] = int(h.hash % uint64(t.size))
		skip[i] = int(mix(h.hash^saltSkip)%uint64(t.size-1)) + 1
	}
	heaviest := slices.Max(t.weights)
	credit := make([]int, len(t.hosts))
	for left := t.size; ; {
		for i, w := range t.weights {
			if credit[i] += w; credit[i] < heaviest {
				continue
			}
			credit[i] -= heaviest
			for t.cells[next[i]] != empty {
				next[i] = step(next[i], skip[i], t.size)
			}
			t.cells[next[i]] = uint32(i)
			if left--; left == 0 {
				return
			}
		}
	}
}

func step(at, skip, size int) int {
	if at += skip; at >= size {
		at -= size
	}
	return at
}

// leastPoints is the points an average host has at least: its load is then within a tenth of
// its share for two hosts in three. libketama has 160.
const leastPoints = 100

// fillRing puts points for each host on a ring of hashes, in number by weight.
func (t *table) fillRing() {
	type point struct {
		hash uint64
		host uint32
	}
	var points []point
	factor := t.pointsPerWeight()
	for i, h := range t.hosts {
		for n := range max(1, int(float64(t.weights[i])*factor+0.5)) {
			points = append(points, point{mix(h.hash + uint64(n)*golden), uint32(i)})
		}
	}
	slices.SortFunc(points, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.hash, b.hash), cmp.Compare(a.host, b.host))
	})
	t.cells, t.ring = make([]uint32, len(points)), make([]uint64, len(points))
	for i, p := range points {
		t.cells[i], t.ring[i] = p.host, p.hash
	}
	t.fillJump()
}

// pointsPerWeight is a power of two: it then stays the same for most changes of the list, and
// hosts that stay keep their points exactly.
func (t *table) pointsPerWeight() float64 {
	total := 0.0
	for _, w := range t.weights {
		total += float64(w)
	}
	least := min(float64(max(t.size, leastPoints*len(t.hosts))), maxRingSize/2)
	factor := 1.0
	for factor*total < least {
		factor *= 2
	}
	for factor*total >= 2*least {
		factor /= 2
	}
	return factor
}

// fillJump makes the search for a place start at most a few cells away.
func (t *table) fillJump() {
	width := max(bits.Len(uint(len(t.ring))), 1)
	t.shift = uint(64 - width)
	t.jump = make([]uint32, 1<<width)
	for i := range t.jump {
		from := uint64(i) << t.shift
		t.jump[i] = uint32(sort.Search(len(t.ring), func(j int) bool { return t.ring[j] >= from }))
	}
}
