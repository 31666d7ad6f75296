package hostdir

import "sync"

// bell tells everybody interested that something in the folder may have changed. One
// operating system watch per process serves any number of listeners and exists only while
// there are some: Linux grants a user about a hundred of them.
type bell struct {
	folder *folder

	mu        sync.Mutex
	listeners map[chan struct{}]bool // guarded by mu
	watch     folderWatch            // guarded by mu; nil while there are no listeners
	closed    bool                   // guarded by mu
	ringing   sync.WaitGroup         // waits for pump
}

// folderWatch is the operating system's part. next blocks until something changed; it
// fails once the watch is closed or the folder itself is gone.
type folderWatch interface {
	next() error
	close()
}

func newBell(f *folder) *bell { return &bell{folder: f, listeners: map[chan struct{}]bool{}} }

// join gives a channel that has a token after changes, and the way to leave.
func (b *bell) join() (<-chan struct{}, func(), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watch == nil && !b.closed {
		if err := b.startLocked(); err != nil {
			return nil, nil, err
		}
	}
	c := make(chan struct{}, 1)
	b.listeners[c] = true
	return c, func() { b.leave(c) }, nil
}

func (b *bell) startLocked() error {
	w, err := watchFolder(b.folder.path)
	if err != nil {
		return err
	}
	b.watch = w
	b.ringing.Go(func() { b.pump(w) })
	return nil
}

func (b *bell) leave(c chan struct{}) {
	b.mu.Lock()
	delete(b.listeners, c)
	var w folderWatch
	if len(b.listeners) == 0 {
		w, b.watch = b.watch, nil
	}
	b.mu.Unlock()
	if w != nil {
		w.close()
	}
}

// pump rings until its watch ends. If the folder went away under live listeners it is made
// again and watched afresh.
func (b *bell) pump(w folderWatch) {
	for {
		err := w.next()
		b.mu.Lock()
		if b.watch != w { // everybody left
			b.mu.Unlock()
			return
		}
		if err != nil {
			w.close()
			b.watch = nil
			if b.folder.prepare(opWatch) == nil {
				_ = b.startLocked() // a failure leaves listeners with what they have
			}
		}
		for c := range b.listeners {
			select {
			case c <- struct{}{}:
			default: // a token is there already
			}
		}
		b.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// close ends the watch and waits for its pump. Listeners hear nothing more; they need not
// have left, so a listener may be the one who closes.
func (b *bell) close() {
	b.mu.Lock()
	b.closed = true
	w := b.watch
	b.watch = nil
	b.mu.Unlock()
	if w != nil {
		w.close()
	}
	b.ringing.Wait()
}
