package policy

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
)

// mirroring sends copies elsewhere.
func mirroring(b *builder) (does, field string) {
	p := b.r.Mirror
	if p == nil || b.t.Direction == call.Inbound {
		return "", ""
	}
	rule := b.r.source("mirror")
	lanes := kept(b.e, b.stateKey("mirror", rule), func() *mirrorLanes { return newMirrorLanes(b.e, rule, b.t.Name) })
	lanes.limit.Store(int64(cmp.Or(p.MaxPending, 1024)))
	b.c.Mirror = &mirror{lanes: lanes, to: p.To, share: share(p.Percent), compare: p.Compare / 100, data: holdsData(b.t.Kind)}
	does = fmt.Sprintf("%v%% to %s", share(p.Percent)*100, p.To)
	if p.Compare > 0 {
		does += fmt.Sprintf(", compares %v%% of the reads", p.Compare)
	}
	return does, "mirror"
}

// mirror is one policy's on one target.
type mirror struct {
	lanes          *mirrorLanes
	to             string
	share, compare float64
	data           bool
}

// Takes implements call.Mirror. Data is chosen by key, or a copy would hold a random part of
// each key's history.
func (m *mirror) Takes(c *call.Call) (string, bool) {
	if c.Shadow || m.share <= 0 {
		return "", false
	}
	if m.share >= 1 {
		return m.to, true
	}
	if m.data && c.Key != "" {
		return m.to, float64(hashString(c.Key)>>11)/(1<<53) < m.share
	}
	return m.to, rand.Float64() < m.share
}

// Compares implements call.Mirror.
func (m *mirror) Compares(*call.Call) bool {
	return m.compare > 0 && (m.compare >= 1 || rand.Float64() < m.compare)
}

// Go implements call.Mirror.
func (m *mirror) Go(key string, run func(context.Context) error) { m.lanes.add(key, run) }

// Compared implements call.Mirror.
func (m *mirror) Compared(same bool) {
	if same {
		m.lanes.count("same")
		return
	}
	m.lanes.count("different")
}

// mirrorLanes run copies in the background: those of one key one after the other. A lane has a
// goroutine only while it has something to do.
type mirrorLanes struct {
	e            *Engine
	rule, target string
	limit        atomic.Int64
	waiting      atomic.Int64
	lanes        [16]mirrorLane
	ctx          context.Context
	cancel       context.CancelFunc
	running      sync.WaitGroup
	closed       atomic.Bool
}

type mirrorLane struct {
	mu    sync.Mutex
	queue []func(context.Context) error
	busy  bool
}

// mirrorTime bounds one copy: a store that hangs must not hold its lane for ever.
const mirrorTime = 10 * time.Second

func newMirrorLanes(e *Engine, rule, target string) *mirrorLanes {
	l := &mirrorLanes{e: e, rule: rule, target: target}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// Close drops what waits and stops what runs.
func (m *mirrorLanes) Close() {
	m.closed.Store(true)
	for i := range m.lanes { // whoever has not seen it has started its goroutine after this
		m.lanes[i].mu.Lock()
		//lint:ignore SA2001 it waits for those in add
		m.lanes[i].mu.Unlock()
	}
	m.cancel()
	m.running.Wait()
}

func (m *mirrorLanes) count(result string) { m.e.mirrored(m.rule, m.target, result) }

func (m *mirrorLanes) add(key string, run func(context.Context) error) {
	if m.waiting.Add(1) > m.limit.Load() {
		m.waiting.Add(-1)
		m.count("dropped")
		return
	}
	at := rand.Uint64()
	if key != "" {
		at = hashString(key)
	}
	lane := &m.lanes[at%uint64(len(m.lanes))]
	lane.mu.Lock()
	defer lane.mu.Unlock()
	if m.closed.Load() {
		m.waiting.Add(-1)
		return
	}
	lane.queue = append(lane.queue, run)
	if !lane.busy {
		lane.busy = true
		m.running.Add(1)
		go m.drain(lane)
	}
}

func (m *mirrorLanes) drain(lane *mirrorLane) {
	defer m.running.Done()
	for {
		lane.mu.Lock()
		if len(lane.queue) == 0 || m.closed.Load() {
			m.waiting.Add(-int64(len(lane.queue)))
			lane.queue, lane.busy = nil, false
			lane.mu.Unlock()
			return
		}
		run := lane.queue[0]
		lane.queue = lane.queue[1:]
		lane.mu.Unlock()
		m.one(run)
		m.waiting.Add(-1)
	}
}

func (m *mirrorLanes) one(run func(context.Context) error) {
	ctx, cancel := context.WithTimeout(m.ctx, mirrorTime)
	defer cancel()
	err := func() (err error) {
		defer func() {
			if p := recover(); p != nil {
				err = call.Panicked(p)
			}
		}()
		return run(ctx)
	}()
	if err != nil {
		m.count("failed")
		return
	}
	m.count("sent")
}
