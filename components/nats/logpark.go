package nats

import (
	"context"
	"errors"
	"sync"
	"time"
)

// A consumer costs the server some 45 KiB, and most partitions are idle most of the time. So a
// reader that has waited for a while gives its consumer back and parks: all that are parked on
// one topic wait for a single consumer, which is given no bodies and begins at the least of their
// positions. It only wakes them: a woken reader makes a consumer of its own and reads with that.
// So being woken too often costs a little, and nothing can be missed or given twice. Whenever
// anything goes wrong here, all are woken.

const (
	// parkAfter is how long a reader waits for a record before it parks.
	parkAfter = 30 * time.Second
	// parkTogether is how long the topic's consumer is not made anew after it was to be: readers
	// mostly come together.
	parkTogether = 20 * time.Millisecond
	// parkFilters is how many partitions a consumer names; the server compares each with each. For
	// more it is told of all partitions of the topic.
	parkFilters = 64
)

// parkSpot is where a reader is parked.
type parkSpot struct {
	lot     *parkLot
	subject string
	next    uint64        // the reader's next position
	wake    chan struct{} // has a token when there may be something
}

// parkLot is where the readers of a topic are parked.
type parkLot struct {
	b    *pubsub
	all  string // subjects of all partitions
	mu   sync.Mutex
	here map[*parkSpot]bool // guarded by mu
	// change is closed when somebody comes or goes, and made anew by who looks. Guarded by mu.
	change  chan struct{}
	running bool // guarded by mu
}

// park gives a reader a spot; nil: it is too late for that.
func (b *pubsub) park(topic, subject string, next uint64) *parkSpot {
	token, err := topicToken(opRead, topic)
	if err != nil {
		return nil
	}
	all := b.log.prefix + token + ".*"
	b.log.mu.Lock()
	l := b.log.lots[all]
	if l == nil {
		l = &parkLot{b: b, all: all, here: map[*parkSpot]bool{}, change: make(chan struct{})}
		if b.log.lots == nil {
			b.log.lots = map[string]*parkLot{}
		}
		b.log.lots[all] = l
	}
	b.log.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.running {
		closing, done, ok := b.consumers.enter()
		if !ok {
			return nil
		}
		l.running = true
		go func() {
			defer done()
			l.run(closing)
		}()
	}
	s := &parkSpot{lot: l, subject: subject, next: next, wake: make(chan struct{}, 1)}
	l.here[s] = true
	l.changed()
	return s
}

// leave gives the spot back.
func (s *parkSpot) leave() {
	s.lot.mu.Lock()
	defer s.lot.mu.Unlock()
	if s.lot.here[s] {
		delete(s.lot.here, s)
		s.lot.changed()
	}
}

// changed tells run; mu is held.
func (l *parkLot) changed() {
	select {
	case <-l.change:
	default:
		close(l.change)
	}
}

// run looks after those who are parked until nobody is.
func (l *parkLot) run(closing <-chan struct{}) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for {
		t := time.NewTimer(parkTogether)
		select {
		case <-t.C:
		case <-closing:
			t.Stop()
		}
		subjects, from, change := l.look()
		if len(subjects) == 0 {
			l.b.log.mu.Lock()
			if l.b.log.lots[l.all] == l {
				delete(l.b.log.lots, l.all) // whoever comes now may use it all the same
			}
			l.b.log.mu.Unlock()
			return
		}
		err := l.watch(ctx, closing, change, subjects, from)
		if errors.Is(err, errStopped) {
			continue // somebody came or went
		}
		if err != nil && !errors.Is(err, errInterrupted) {
			l.b.conn.log.Debug("waking readers", "topic", l.all, "error", err)
		}
		l.wake(func(*parkSpot) bool { return true })
	}
}

// look is what to wait for. When it is nothing, nobody runs any more.
func (l *parkLot) look() (subjects []string, from uint64, change <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.change = make(chan struct{})
	seen := map[string]bool{}
	for s := range l.here {
		if from == 0 || s.next < from {
			from = s.next
		}
		if !seen[s.subject] {
			seen[s.subject] = true
			subjects = append(subjects, s.subject)
		}
	}
	l.running = len(subjects) > 0
	if len(subjects) > parkFilters {
		subjects = []string{l.all}
	}
	return subjects, from, l.change
}

// wake sends those away who are meant.
func (l *parkLot) wake(meant func(*parkSpot) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.here {
		if meant(s) {
			delete(l.here, s)
			s.wake <- struct{}{} // it has room: only who is here is woken
			l.changed()
		}
	}
}

// watch wakes readers as long as nobody comes or goes: then it returns errStopped.
func (l *parkLot) watch(ctx context.Context, closing, change <-chan struct{}, subjects []string, from uint64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	short, done := context.WithTimeout(ctx, readOpen)
	defer done()
	select {
	case <-closing:
		return errInterrupted
	default:
	}
	p, err := l.b.conn.acquire(short, opRead)
	if err != nil {
		return err
	}
	s, err := l.b.streams(short, opRead, p)
	if err != nil {
		return err
	}
	u, err := openPull(short, opRead, p, pullConfig{stream: l.b.log.records, filters: subjects, from: from,
		window: parkFilters, bytes: 1 << 20, headersOnly: true, replicated: s.records})
	if err != nil {
		return err
	}
	defer u.close()
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { // one channel for both
		defer close(stop)
		select {
		case <-closing:
		case <-change:
		case <-ended:
		}
	}()
	defer func() { close(ended); <-stop }()
	for {
		m, at, err := u.next(ctx, stop, true)
		if errors.Is(err, errStopped) {
			select {
			case <-closing:
				return errInterrupted
			default:
			}
		}
		if err != nil {
			l.b.log.doubt(p)
			return err
		}
		l.wake(func(s *parkSpot) bool { return s.subject == m.Subject && at.seq >= s.next })
	}
}
