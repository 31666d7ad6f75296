package balance

// alias draws indices in proportion to weights with one random number (Vose's alias method).
// Nil draws all indices alike.
type alias []aliasCell

// aliasCell is one equal slice of the whole: its own index up to keep (on a scale of 2^32),
// another index above.
type aliasCell struct {
	keep  uint64
	other uint32
}

func newAlias(slots []slot) alias {
	if even(slots) {
		return nil
	}
	n := len(slots)
	a := make(alias, n)
	left := make([]float64, n) // weight not placed yet, in slices
	var small, large []int
	for i, sl := range slots {
		left[i] = 1 / sl.scale
		if left[i] < 1 {
			small = append(small, i)
		} else {
			large = append(large, i)
		}
	}
	for len(small) > 0 && len(large) > 0 {
		i, j := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		a[i] = aliasCell{keep: uint64(left[i] * (1 << 32)), other: uint32(j)}
		if left[j] -= 1 - left[i]; left[j] < 1 {
			large = large[:len(large)-1]
			small = append(small, j)
		}
	}
	// Rounding leaves some behind; all of them are whole.
	for _, i := range append(small, large...) {
		a[i] = aliasCell{keep: 1 << 32, other: uint32(i)}
	}
	return a
}

// draw turns a random number into an index below n: the upper half chooses the slice, the lower
// half the side of it.
func (a alias) draw(u uint64, n int) int {
	i := int((u >> 32) * uint64(n) >> 32)
	if a != nil && u&(1<<32-1) >= a[i].keep {
		return int(a[i].other)
	}
	return i
}

func even(slots []slot) bool {
	for i := range slots {
		if slots[i].weight != slots[0].weight {
			return false
		}
	}
	return true
}

// The order of a weighted round robin is laid out beforehand. Its length is the sum of the
// weights in lowest terms, but bounded: 64 KB of memory, and some milliseconds to lay it out.
// Longer ones are scaled down, and the lightest hosts then get one turn in a round at least.
const (
	mostTurns  = 1 << 14
	mostLaying = 1 << 22 // turns × hosts
)

// interleave lays out one round in which each host has turns by its weight, spread evenly: every
// turn goes to the host that is furthest behind its share. Equal weights need no order.
func interleave(slots []slot) []uint32 {
	if even(slots) {
		return nil
	}
	turns, total := rounds(slots)
	order := make([]uint32, total)
	behind := make([]int, len(slots))
	for t := range order {
		next := 0
		for i, n := range turns {
			behind[i] += n
			if behind[i] > behind[next] {
				next = i
			}
		}
		behind[next] -= total
		order[t] = uint32(next)
	}
	return order
}

// rounds is how many turns each host has in a round, and the sum of them.
func rounds(slots []slot) (turns []int, total int) {
	turns = make([]int, len(slots))
	common := 0
	for i, sl := range slots {
		turns[i] = int(sl.weight)
		common = gcd(turns[i], common)
	}
	sum := 0.0
	for i := range turns {
		turns[i] /= common
		sum += float64(turns[i])
	}
	if limit := float64(max(min(mostTurns, mostLaying/len(slots)), len(slots))); sum > limit {
		for i, n := range turns {
			turns[i] = max(1, int(float64(n)*limit/sum+0.5))
		}
	}
	for _, n := range turns {
		total += n
	}
	return turns, total
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
