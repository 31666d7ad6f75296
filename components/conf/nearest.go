package conf

import "strings"

// nearestMax bounds the names compared, in bytes: longer ones are nobody's typing error,
// and comparison is quadratic.
const nearestMax = 64

// Nearest returns the candidate most likely meant by name, or "" when none is close. Case
// and the separators -, _ and . do not count; about one letter in three may differ. Ties go to the
// earlier candidate.
func Nearest(name string, candidates []string) string {
	if len(name) == 0 || len(name) > nearestMax {
		return ""
	}
	plain := fold(name)
	best, bestAt := "", max(1, len(plain)/3)+1
	for _, c := range candidates {
		if len(c) > nearestMax {
			continue
		}
		if d := distance(plain, fold(c), bestAt); d < bestAt {
			best, bestAt = c, d
		}
	}
	return best
}

func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == '.' {
			return -1
		}
		return r
	}, strings.ToLower(s))
}

// distance counts the insertions, deletions, substitutions and swaps of neighbours that
// turn a into b. It may stop early once the answer is certainly at least limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
