package nats

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"
)

// A consumer costs the server some 45 KiB, and most partitions are idle most of the time. So a
// reader that has waited for a while gives its consumer back and parks: all that are parked on
// (64 partitions of) one topic wait for a single consumer, which is given what is new, without
// bodies. It only wakes them: a woken reader makes a consumer of its own and reads with that. So
// being woken too often costs a little, and nothing can be given twice. What came before that
// consumer was made is looked for once it is there, and whenever anything goes wrong all are
// woken, so nothing can be missed.

const (
	// parkAfter is how long a reader waits for a record before it parks.
	parkAfter = 30 * time.Second
	// parkTogether is how much later the topic's consumer is made anew when a reader comes: they
	// mostly come together.
	parkTogether = 20 * time.Millisecond
	// parkInVain is how often a consumer tells of partitions whose readers have left before it is
	// made anew.
	parkInVain = 64
	// parkFilters is how many partitions share a consumer, which names them: the server compares each
	// with each.
	parkFilters = 64
)

// parkSpot is where a reader is parked.
type parkSpot struct {
	lot     *parkLot
	subject string
	next    uint64        // the reader's next position
	wake    chan struct{} // has a token when there may be something
}

// parkLot is where the readers of some partitions of a topic are parked.
type parkLot struct {
	b    *pubsub
	name lotName
	mu   sync.Mutex
	here map[*parkSpot]bool // guarded by mu
	// change is closed when somebody comes or the last one goes, and made anew by who looks. Guarded
	// by mu.
	change  chan struct{}
	running bool // guarded by mu
}

type lotName struct {
	topic string
	some  int32 // which partitions
}

// park gives a reader a spot; nil: it is too late for that.
func (b *pubsub) park(topic string, partition int32, subject string, next uint64) *parkSpot {
	name := lotName{topic, partition / parkFilters}
	b.log.mu.Lock()
	l := b.log.lots[name]
	if l == nil {
		l = &parkLot{b: b, name: name, here: map[*parkSpot]bool{}, change: make(chan struct{})}
		if b.log.lots == nil {
			b.log.lots = map[lotName]*parkLot{}
		}
		b.log.lots[name] = l
	}
	b.log.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.running {
		closing, done, ok := b.watches.enter()
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
		s.lot.left()
	}
}

// left notes that somebody is gone; mu is held.
func (l *parkLot) left() {
	if len(l.here) == 0 {
		l.changed()
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
	l.gather(closing)
	for {
		spots, change := l.look()
		if len(spots) == 0 {
			l.b.log.mu.Lock()
			if l.b.log.lots[l.name] == l {
				delete(l.b.log.lots, l.name) // whoever comes now may use it all the same
			}
			l.b.log.mu.Unlock()
			return
		}
		err := l.watch(ctx, closing, change, spots)
		if errors.Is(err, errStopped) {
			continue
		}
		if err != nil && !errors.Is(err, errInterrupted) {
			l.b.conn.log.Debug("waking readers", "topic", l.name.topic, "error", err)
		}
		l.wake(func(*parkSpot) bool { return true })
	}
}

// gather waits for others who come.
func (l *parkLot) gather(enough <-chan struct{}) {
	t := time.NewTimer(parkTogether)
	defer t.Stop()
	select {
	case <-t.C:
	case <-enough:
	}
}

// look is who is here. When nobody is, nobody runs any more.
func (l *parkLot) look() (spots []*parkSpot, change <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.change = make(chan struct{})
	l.running = len(l.here) > 0
	return slices.Collect(maps.Keys(l.here)), l.change
}

// wake sends those away who are meant, and tells how many.
func (l *parkLot) wake(meant func(*parkSpot) bool) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.here {
		if meant(s) {
			delete(l.here, s)
			s.wake <- struct{}{} // it has room: only who is here is woken
			l.left()
			n++
		}
	}
	return n
}

// watch wakes readers until others come, or it has become useless: then it returns errStopped.
func (l *parkLot) watch(ctx context.Context, closing, change <-chan struct{}, spots []*parkSpot) error {
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
	u, err := openPull(short, opRead, p, pullConfig{stream: l.b.log.records, filters: subjectsOf(spots), news: true,
		window: parkFilters, bytes: 1 << 20, replicated: s.records})
	if err != nil {
		return err
	}
	defer u.close()
	asks := make([]messageRequest, len(spots))
	for i, s := range spots {
		asks[i] = messageRequest{Seq: s.next, NextFor: s.subject}
	}
	found, err := l.b.find(short, opRead, asks)
	if err != nil {
		return err
	}
	missed := map[*parkSpot]bool{}
	for i, s := range spots {
		missed[s] = found[i].seq != 0
	}
	l.wake(func(s *parkSpot) bool { return missed[s] })
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { // one channel for both
		defer close(stop)
		select {
		case <-closing:
		case <-change:
			l.gather(ended)
		case <-ended:
		}
	}()
	defer func() { close(ended); <-stop }()
	for vain := 0; vain < parkInVain; {
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
		if l.wake(func(s *parkSpot) bool { return s.subject == m.Subject && at.seq >= s.next }) == 0 {
			vain++
		}
	}
	return errStopped
}

func subjectsOf(spots []*parkSpot) []string {
	subjects := map[string]bool{}
	for _, s := range spots {
		subjects[s.subject] = true
	}
	return slices.Collect(maps.Keys(subjects))
}
