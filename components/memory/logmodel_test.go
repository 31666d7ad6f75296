package memory_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/memory"
)

// model is what a topic is to keep, found the long way: it looks at all records each time.
type model struct {
	history, most int
	records       []*modelRecord // in the order they became visible
	delayed       []*modelRecord
	edge          int // index of the oldest that is history
	next          map[int]uint64
	groups        map[string]map[int]uint64
}

type modelRecord struct {
	body     string
	part     int
	position uint64
	gone     bool
	due      time.Time // when it becomes visible
	ttl      time.Duration
	ends     time.Time
}

func (m *model) consumed(r *modelRecord) bool {
	for _, g := range m.groups {
		if g[r.part] <= r.position {
			return false
		}
	}
	return true
}

func (m *model) kept() (n int) {
	for _, r := range m.records {
		if !r.gone {
			n++
		}
	}
	return n + len(m.delayed)
}

func (m *model) sweep() {
	recent := 0
	for _, r := range m.records[m.edge:] {
		if !r.gone {
			recent++
		}
	}
	for ; recent > max(m.history, 1); m.edge++ {
		if !m.records[m.edge].gone {
			recent--
		}
	}
	for _, r := range m.records[:m.edge] {
		r.gone = r.gone || m.consumed(r)
	}
}

func (m *model) room() bool {
	for _, r := range m.records[m.edge:] {
		if m.kept() < m.most {
			break
		}
		r.gone = r.gone || m.consumed(r)
	}
	return m.kept() < m.most
}

func (m *model) place(now time.Time, r *modelRecord) {
	if m.next[r.part] == 0 {
		m.next[r.part] = 1
	}
	r.position = m.next[r.part]
	m.next[r.part]++
	if r.ttl > 0 {
		r.ends = now.Add(r.ttl)
	}
	m.records = append(m.records, r)
	m.sweep()
}

// pass does what is due until now, one after the other as time goes.
func (m *model) pass(now time.Time) {
	for {
		var first *modelRecord
		var at time.Time
		better := func(r *modelRecord, t time.Time) {
			if !t.After(now) && (first == nil || t.Before(at)) {
				first, at = r, t
			}
		}
		for _, r := range m.records {
			if !r.gone && r.ttl > 0 {
				better(r, r.ends)
			}
		}
		for _, r := range m.delayed {
			better(r, r.due)
		}
		switch {
		case first == nil:
			return
		case first.position > 0:
			first.gone = true
		default:
			m.delayed = slices.DeleteFunc(m.delayed, func(r *modelRecord) bool { return r == first })
			m.place(at, first)
		}
	}
}

// Whatever is appended, consumed, delayed and ended, a topic keeps what it is to keep.
func TestLogAgainstAModel(t *testing.T) {
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) { modelRun(t, seed) })
	}
}

func modelRun(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 7))
	m := &model{history: random.IntN(12), most: 10 + random.IntN(30), next: map[int]uint64{}, groups: map[string]map[int]uint64{}}
	_, p := openLog(t, func(c *memory.PubSubConfig) { c.History, c.MaxMessages = m.history, m.most })
	parts := 1 + random.IntN(4)
	for step := range 400 {
		now := time.Now()
		switch n := random.IntN(20); {
		case n < 12:
			r := rec("t", random.IntN(parts), fmt.Sprint(step))
			mr := &modelRecord{body: fmt.Sprint(step), part: int(r.Partition)}
			if random.IntN(4) == 0 {
				// Odd and even, so that no two things happen at one time and their order is open.
				r.TTL = time.Duration(1+random.IntN(20))*time.Second + time.Duration(2*step)
				mr.ttl = r.TTL
			}
			if random.IntN(6) == 0 {
				r.DeliverAt = now.Add(time.Duration(1+random.IntN(10))*time.Second + time.Duration(2*step+1))
				mr.due = r.DeliverAt
			}
			res := add(p, r)
			if ok := m.room(); ok != (res.Err == nil) {
				t.Fatalf("seed %d, step %d: %v, the model has room: %v (%+v)", seed, step, res.Err, ok, memory.Kept(p, "t"))
			}
			switch {
			case res.Err != nil:
			case !mr.due.IsZero():
				m.delayed = append(m.delayed, mr)
			default:
				m.place(now, mr)
			}
			if res.Position != mr.position {
				t.Fatalf("seed %d, step %d: position %d, want %d", seed, step, res.Position, mr.position)
			}
		case n < 17:
			group, part := fmt.Sprint(random.IntN(1+step/150)), random.IntN(parts)
			if m.groups[group] == nil {
				m.groups[group] = map[int]uint64{}
			}
			to := m.next[part]
			if to > 0 {
				to -= uint64(random.IntN(int(min(to, 6))))
			}
			m.groups[group][part] = to
			p.Consumed("t", group, int32(part), to)
			m.sweep()
		default:
			time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond)
			m.pass(time.Now())
		}
		for part := range parts {
			var want []string
			var at []uint64
			for _, r := range m.records {
				if !r.gone && r.part == part {
					want, at = append(want, r.body), append(at, r.position)
				}
			}
			bodies, positions := held(t, p, "t", part)
			if !slices.Equal(bodies, want) || !slices.Equal(positions, at) {
				t.Fatalf("seed %d, step %d: partition %d holds %v at %v, want %v at %v", seed, step, part, bodies, positions, want, at)
			}
		}
		if k := memory.Kept(p, "t"); k.Records != m.kept() {
			t.Fatalf("seed %d, step %d: %+v, want %d records", seed, step, k, m.kept())
		}
	}
	if k := memory.Kept(p, "t"); k.Records == 0 && k.Bytes != 0 {
		t.Errorf("seed %d: nothing is kept, in %d bytes", seed, k.Bytes)
	}
}
