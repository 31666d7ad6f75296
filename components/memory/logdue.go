package memory

import (
	"container/heap"
	"time"
)

// Records may become visible, or end, at a time. A timer runs only while there are some
// and a component is open; whoever looks at a topic settles first what is due, so that nothing
// depends on how soon a timer fires but the waking of those that wait.

// dueMax bounds how far ahead a time is minded: further ones would overflow.
const dueMax = 100 * 365 * 24 * time.Hour

// since is a time by the hub's own clock.
func (l *logs) since(now time.Time) time.Duration { return now.Sub(l.start) }

// schedule has something happen to a record after a while.
func (t *logTopic) schedule(e *logEntry, now time.Time, after time.Duration) {
	e.due = t.logs.since(now) + min(after, dueMax)
	heap.Push(&t.due, e)
}

func (t *logTopic) unschedule(e *logEntry) {
	if e.dueIndex >= 0 {
		heap.Remove(&t.due, e.dueIndex)
	}
}

// settle does what is due.
func (t *logTopic) settle(now time.Time) {
	if len(t.due) == 0 {
		return
	}
	for at := t.logs.since(now); len(t.due) > 0 && t.due[0].due <= at; {
		e, _ := heap.Pop(&t.due).(*logEntry)
		if e.position > 0 {
			t.drop(e)
			continue
		}
		t.delayed--
		t.place(now, e)
		if e.id != "" {
			id := logID{e.id, e.part.id}
			if place, known := t.ids[id]; known {
				place.position = e.position
				t.ids[id] = place
			}
		}
	}
}

// arm has the timer fire when the next is due.
func (t *logTopic) arm() {
	if len(t.due) == 0 || t.armed != 0 && t.armed <= t.due[0].due {
		return // a timer that fires for nothing does so once
	}
	t.armed = t.due[0].due
	wait := max(t.armed-time.Since(t.logs.start), 0)
	if t.timer == nil {
		t.timer = time.AfterFunc(wait, t.fired)
	} else {
		t.timer.Reset(wait)
	}
}

// fired is the timer's goroutine.
func (t *logTopic) fired() {
	t.logs.mu.RLock()
	defer t.logs.mu.RUnlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.armed = 0
	if !t.logs.resting {
		t.settle(time.Now())
		t.arm()
	}
}

// joined says that a component was opened.
func (l *logs) joined() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients++; l.clients > 1 || !l.resting {
		return
	}
	l.resting = false
	for _, t := range l.topics {
		t.mu.Lock()
		t.arm()
		t.mu.Unlock()
	}
}

// left says that a component was closed. With the last one the timers stop, so that nothing of a
// hub is left behind; what is due meanwhile happens when the next component comes.
func (l *logs) left() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.clients--; l.clients > 0 {
		return
	}
	l.resting = true
	for _, t := range l.topics {
		t.mu.Lock()
		if t.timer != nil {
			t.timer.Stop()
			t.armed = 0
		}
		t.mu.Unlock()
	}
}

// dueHeap is a heap of records: soonest due first, then in the order they came.
type dueHeap []*logEntry

func (h dueHeap) Len() int { return len(h) }
func (h dueHeap) Less(i, j int) bool {
	if h[i].due == h[j].due {
		return h[i].order < h[j].order
	}
	return h[i].due < h[j].due
}
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].dueIndex, h[j].dueIndex = i, j
}

// Push appends x, as container/heap asks.
func (h *dueHeap) Push(x any) {
	e, _ := x.(*logEntry)
	e.dueIndex = len(*h)
	*h = append(*h, e)
}

// Pop removes the last element, as container/heap asks.
func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	e.dueIndex = -1
	*h = old[:len(old)-1]
	return e
}
