package balance

import (
	"maps"
	"slices"
	"strings"
)

// overprovision is how much more than its healthy share a priority or zone is trusted with:
// hosts are rarely full, so a few missing ones need not move calls away. The figure is the one
// xDS control planes assume.
const overprovision = 1.4

// leastZoned is the number of healthy endpoints below which zones are too thin to be preferred.
// The figure is the default of zone-aware routing in Envoy.
const leastZoned = 6

// part is hosts that are balanced among themselves, with their share of all calls.
type part struct {
	hosts []*Host
	share float64
	panic bool // health is ignored
}

// parts divides the hosts by priority and locality, most preferred first.
func parts(cfg Config, hosts []*Host) []part {
	levels := divide(hosts, func(h *Host) int { return h.Endpoint().Priority })
	avail := make([]float64, len(levels))
	total, alive := 0.0, 0
	for i, l := range levels {
		avail[i] = available(l)
		total += avail[i]
		if avail[i] > 0 {
			alive++
		}
	}
	var out []part
	for i, share := range spill(avail) {
		// While the priorities together have enough healthy hosts, one of them leans on the
		// others instead of sending calls to hosts known to be bad.
		alone := alive == 0 || alive == 1 && avail[i] > 0
		panics := below(levels[i], cfg.Panic) && (alone || total < 1)
		out = append(out, locate(cfg, part{hosts: levels[i], share: share, panic: panics})...)
	}
	return out
}

// divide groups hosts by key, in ascending order of the key.
func divide[K int | string](hosts []*Host, key func(*Host) K) [][]*Host {
	byKey := make(map[K][]*Host)
	for _, h := range hosts {
		byKey[key(h)] = append(byKey[key(h)], h)
	}
	out := make([][]*Host, 0, len(byKey))
	for _, k := range slices.Sorted(maps.Keys(byKey)) {
		out = append(out, byKey[k])
	}
	return out
}

func countHealthy(hosts []*Host) int {
	n := 0
	for _, h := range hosts {
		if h.Healthy() {
			n++
		}
	}
	return n
}

// available is the share of all calls the hosts could take, at most 1.
func available(hosts []*Host) float64 {
	return min(1, overprovision*float64(countHealthy(hosts))/float64(len(hosts)))
}

func below(hosts []*Host, percent int) bool {
	return 100*countHealthy(hosts) < percent*len(hosts)
}

// spill gives each what it can take of what the ones before left over. When all together
// cannot take everything, they share in proportion; when nobody can take anything, the first
// gets all.
func spill(avail []float64) []float64 {
	shares := make([]float64, len(avail))
	total := 0.0
	for _, a := range avail {
		total += a
	}
	if total == 0 {
		if len(shares) > 0 {
			shares[0] = 1
		}
		return shares
	}
	whole := min(1, total)
	left := whole
	for i, a := range avail {
		take := min(a, left)
		shares[i] = take / whole
		left -= take
	}
	return shares
}

// locate divides a priority by locality. In panic zones do not matter either: what is known
// about them is the health nobody trusts.
func locate(cfg Config, p part) []part {
	if cfg.Zone == "" || p.panic {
		return []part{p}
	}
	switch {
	case cfg.Locality == LocalityFailover:
		return byDistance(cfg.Zone, p)
	case cfg.Locality == LocalityWeighted && !cfg.Policy.hashes():
		return byZone(cfg.Zone, p)
	}
	return []part{p}
}

func byDistance(own string, p part) []part {
	rings := divide(p.hosts, func(h *Host) int { return distance(own, h.Endpoint().Zone) })
	avail := make([]float64, len(rings))
	for i, hosts := range rings {
		avail[i] = available(hosts)
	}
	out := make([]part, len(rings))
	for i, share := range spill(avail) {
		out[i] = part{hosts: rings[i], share: p.share * share}
	}
	return out
}

// distance is how many of the own zone's trailing parts zone does not share.
func distance(own, zone string) int {
	want, have := strings.Split(own, "/"), strings.Split(zone, "/")
	same := 0
	for same < len(want) && same < len(have) && want[same] == have[same] {
		same++
	}
	return len(want) - same
}

// byZone keeps calls in the own zone as far as all zones can do so and still be loaded in
// proportion to their healthy weight.
func byZone(own string, p part) []part {
	zones := divide(p.hosts, func(h *Host) string { return h.Endpoint().Zone })
	capacity := make([]float64, len(zones)) // of all healthy weight
	mine, named, total := -1, 0, 0.0
	for i, hosts := range zones {
		zone := hosts[0].Endpoint().Zone
		if zone != "" {
			named++
		}
		if zone == own {
			mine = i
		}
		for _, h := range hosts {
			if h.Healthy() {
				capacity[i] += float64(h.weight())
			}
		}
		total += capacity[i]
	}
	if mine < 0 || capacity[mine] == 0 || countHealthy(p.hosts) < leastZoned {
		return []part{p}
	}
	for i := range capacity {
		capacity[i] /= total
	}
	out := make([]part, len(zones))
	for i, share := range zoneShares(capacity, mine, named, func(i int) bool { return zones[i][0].Endpoint().Zone != "" }) {
		out[i] = part{hosts: zones[i], share: p.share * share}
	}
	return out
}

// zoneShares divides the calls of one zone's callers. Each of the named zones has an equal part
// of the callers. A zone whose capacity covers them keeps its calls; one that falls short fills
// up at home and sends the rest where capacity is left over, in proportion to it.
func zoneShares(capacity []float64, mine, named int, hasCallers func(int) bool) []float64 {
	shares := make([]float64, len(capacity))
	callers := 1 / float64(named)
	if capacity[mine] >= callers {
		shares[mine] = 1
		return shares
	}
	shares[mine] = capacity[mine] / callers
	spare, total := make([]float64, len(capacity)), 0.0
	for i, c := range capacity {
		if hasCallers(i) {
			c -= callers
		}
		spare[i] = max(c, 0)
		total += spare[i]
	}
	for i, s := range spare {
		shares[i] += (1 - shares[mine]) * s / total
	}
	return shares
}
