package policy_test

import (
	"fmt"
	"slices"
	"sync"

	"github.com/mecha-project/mecha/runtime/policy"
)

// recorded writes down what is counted.
type recorded struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorded) add(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}

func (r *recorded) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.lines)
}

func (r *recorded) count(line string) (n int) {
	for _, l := range r.all() {
		if l == line {
			n++
		}
	}
	return n
}

func (r *recorded) Resilience(id policy.SeriesID) policy.Series { return &series{r, id} }
func (r *recorded) Rejected(kind, target, part, rule string, shadow bool) {
	r.add("%s %s %s %s shadow=%v", kind, target, part, rule, shadow)
}
func (r *recorded) Retried(kind, target, rule string, exhausted bool) {
	r.add("retried %s %s %s exhausted=%v", kind, target, rule, exhausted)
}
func (r *recorded) Mirrored(rule, target, result string) { r.add("%s", result) }
func (r *recorded) Ejected(rule, target, cause string) {
	r.add("ejected %s %s %s", rule, target, cause)
}

type series struct {
	r  *recorded
	id policy.SeriesID
}

func (s *series) Count(st policy.State)    { s.r.add("count %s %d", s.id.Policy, st) }
func (s *series) Activate(st policy.State) { s.r.add("activate %s %d", s.id.Policy, st) }
func (s *series) State(st policy.State)    { s.r.add("state %s %d", s.id.Policy, st) }
