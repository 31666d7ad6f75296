package pubsub

import (
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// lanes run the messages of one subscription: up to limit at once, those with equal keys one
// after another in the order they came. A message that is to be tried again keeps its lane
// waiting, so that no later message of its key overtakes it.
//
// Waiting messages stay unanswered, and the broker gives out no more than windowFactor times
// limit of those. So a key that keeps failing does not delay the others until its backlog
// fills that window; then the subscription pauses. Order and bounded memory come before
// progress: passing the failed message by is for a dead-letter topic to allow.
//
// This is the simple form: keys are ordered within this process, for as long as the broker
// gives it the messages of a key. The partition engine takes its place.
type lanes struct {
	work  func(*job) (again time.Duration) // again > 0: keep the lane and call again after it
	limit int

	mu      sync.Mutex // guards all below
	wake    sync.Cond  // signals idle workers; L is &mu
	ready   *lane      // lanes whose head may run, a queue
	last    *lane      // its end
	keyed   map[string]*lane
	held    map[*lane]*time.Timer // lanes waiting out a pause
	stuck   int                   // messages in held lanes
	workers int
	idle    int // waiting workers whom nobody has woken yet
	stopped bool

	running sync.WaitGroup
}

// windowFactor is how many messages may be unanswered for each being worked on. Four leaves
// three quarters of the window to messages waiting behind others of their key.
const windowFactor = 4

// maxIdle workers wait for more work instead of ending, so that a steady trickle does not
// start a goroutine per message; more would only hold stacks.
const maxIdle = 4

// job is one message with what has been tried so far.
type job struct {
	received
	tries  int // deliveries to the app beyond the broker's count
	rounds int // times it was held

	next *job // in its lane
	own  lane // the lane of a message without key
}

type lane struct {
	key        string
	head, tail *job
	size       int
	next       *lane // in the ready queue
}

func newLanes(limit int, work func(*job) time.Duration) *lanes {
	l := &lanes{work: work, limit: limit, keyed: map[string]*lane{}, held: map[*lane]*time.Timer{}}
	l.wake.L = &l.mu
	return l
}

// add queues a message. It never blocks; the broker bounds how many are unanswered. After stop
// messages are left as they are.
func (l *lanes) add(d block.Delivery) {
	j := &job{received: received{Delivery: d}}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return
	}
	ln := &j.own
	if d.Key != "" {
		if known, ok := l.keyed[d.Key]; ok {
			known.tail.next = j
			known.tail = j
			known.size++
			if _, held := l.held[known]; held {
				l.stuck++
			}
			return
		}
		ln = &lane{key: d.Key}
		l.keyed[d.Key] = ln
	}
	ln.head, ln.tail, ln.size = j, j, 1
	l.push(ln)
}

// push makes a lane ready and sees that somebody runs it. l.mu is held.
func (l *lanes) push(ln *lane) {
	ln.next = nil
	if l.ready == nil {
		l.ready = ln
	} else {
		l.last.next = ln
	}
	l.last = ln
	switch {
	case l.idle > 0:
		l.idle-- // here, not by the one woken: the next push may come before it is up
		l.wake.Signal()
	case l.workers < l.limit:
		l.workers++
		l.running.Go(l.run)
	}
}

func (l *lanes) run() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.await() {
		ln := l.ready
		l.ready = ln.next
		l.mu.Unlock()
		again := l.work(ln.head)
		l.mu.Lock()
		l.advance(ln, again)
	}
	l.workers--
}

// await waits for a ready lane; false means that the worker is to end. l.mu is held.
func (l *lanes) await() bool {
	for l.ready == nil && !l.stopped {
		if l.idle >= maxIdle {
			return false
		}
		l.idle++
		l.wake.Wait() // whoever wakes us has counted us out
	}
	return !l.stopped
}

// advance takes the message done from its lane, or holds the lane. l.mu is held.
func (l *lanes) advance(ln *lane, again time.Duration) {
	if again > 0 {
		if !l.stopped {
			l.stuck += ln.size
			l.held[ln] = time.AfterFunc(again, func() { l.release(ln) })
		}
		return
	}
	ln.head = ln.head.next
	ln.size--
	switch {
	case ln.head != nil:
		l.push(ln)
	case ln.key != "":
		delete(l.keyed, ln.key)
	}
}

func (l *lanes) release(ln *lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, waiting := l.held[ln]; waiting && !l.stopped {
		delete(l.held, ln)
		l.stuck -= ln.size
		l.push(ln)
	}
}

// stalled tells whether waiting messages have taken half the window.
func (l *lanes) stalled() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return 2*l.stuck >= windowFactor*l.limit
}

// stop lets messages being worked on finish, starts no others, and returns when none is left.
func (l *lanes) stop() {
	l.mu.Lock()
	l.stopped = true
	for _, t := range l.held {
		t.Stop()
	}
	clear(l.held)
	l.wake.Broadcast()
	l.mu.Unlock()
	l.running.Wait()
}
