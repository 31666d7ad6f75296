package nats

import "sync"

// tally counts calls that run until told to stop.
type tally struct {
	mu     sync.Mutex
	n      int           // guarded by mu
	stop   chan struct{} // guarded by mu; closed by close
	empty  chan struct{} // guarded by mu; closed when stopped and none is left
	closed bool          // guarded by mu
}

func (t *tally) init() {
	if t.stop == nil {
		t.stop, t.empty = make(chan struct{}), make(chan struct{})
	}
}

// enter adds a call. It is to end when stop is closed, and to call done then; ok is false when
// it is too late to begin.
func (t *tally) enter() (stop <-chan struct{}, done func(), ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.init()
	if t.closed {
		return nil, nil, false
	}
	t.n++
	return t.stop, t.leave, true
}

func (t *tally) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.closed {
		close(t.empty)
	}
}

// close stops all calls; the channel is closed when the last has ended.
func (t *tally) close() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.init()
	if !t.closed {
		t.closed = true
		close(t.stop)
		if t.n == 0 {
			close(t.empty)
		}
	}
	return t.empty
}
