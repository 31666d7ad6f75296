package nats

import (
	"context"
	"errors"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const opRead fault.Op = "nats.pubsub.Read"

// logReader reads a partition. Its consumer may go at any time; then another one begins behind
// the last record.
type logReader struct {
	b         *pubsub
	topic     string
	partition int32
	config    pullConfig
	next      uint64    // the least position that was not given
	born      time.Time // when the stream was made
	held      *natsgo.Msg
	heldAt    stand
	out       []block.LogRecord
	pause     time.Duration // before another consumer is made; 0 when the last one was of use
	opened    time.Time     // when the last one was made

	closed chan struct{}
	mu     sync.Mutex
	shut   bool      // guarded by mu
	pull   *pull     // guarded by mu; nil: one has to be made. Only Next changes it, and Close
	parked *parkSpot // guarded by mu; then there is no pull
}

const (
	readMessages = 256
	readBytes    = 4 << 20
	// readPause is between attempts to make a consumer, at first and at most.
	readPause     = 50 * time.Millisecond
	readPauseMost = 2 * time.Second
	// readOpen bounds one attempt: a cluster that has lost a server leaves requests unanswered.
	readOpen = 4 * time.Second
)

// OpenReader makes a reader and its first consumer.
func (b *pubsub) OpenReader(ctx context.Context, topic string, partition int32, from uint64, opts block.ReadOptions) (block.LogReader, error) {
	const op fault.Op = "nats.pubsub.OpenReader"
	subject, err := b.subject(op, topic, partition)
	if err != nil {
		return nil, err
	}
	r := &logReader{b: b, topic: topic, partition: partition, next: max(from, 1), closed: make(chan struct{}),
		config: pullConfig{stream: b.log.records, filter: subject, window: opts.Messages, bytes: opts.Bytes, idle: b.log.idle}}
	if r.config.window <= 0 {
		r.config.window = readMessages
	}
	if r.config.bytes <= 0 {
		r.config.bytes = readBytes
	}
	return r, r.open(ctx, op)
}

// open makes the next consumer.
func (r *logReader) open(ctx context.Context, op fault.Op) error {
	for again := false; ; again = true {
		p, err := r.b.conn.acquire(ctx, op)
		if err != nil {
			return err
		}
		s, err := r.b.streams(ctx, op, p)
		if err != nil {
			return err
		}
		switch {
		case r.born.IsZero():
			r.born = s.born
		case !s.born.Equal(r.born):
			return fault.New(op, fault.Lost, "stream %s was removed and made anew; its positions begin at 1 again", r.b.log.records)
		}
		r.config.from, r.config.replicated = r.next, s.records
		u, err := openPull(ctx, opRead, p, r.config)
		if errors.Is(err, errNoStream) {
			r.b.log.made.CompareAndSwap(s, nil)
			if !again {
				continue
			}
			err = fault.New(op, fault.Unavailable, "stream %s does not stay", r.b.log.records)
		}
		if err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.shut {
			u.close()
			return nil // whoever comes next sees closed
		}
		r.pull, r.opened = u, time.Now()
		return nil
	}
}

// Next returns the next records.
func (r *logReader) Next(ctx context.Context, most, bytes int) ([]block.LogRecord, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.Wrap(opRead, fault.Canceled, err)
	}
	clear(r.out)
	r.out = r.out[:0]
	size := 0
	for len(r.out) < max(most, 1) {
		m, at, err := r.take(ctx, len(r.out) == 0)
		if err != nil {
			return nil, err
		}
		if m == nil {
			break
		}
		if size += len(m.Data); size > bytes && len(r.out) > 0 {
			r.held, r.heldAt = m, at
			break
		}
		r.next = at.seq + 1
		r.out = append(r.out, r.record(m, at))
	}
	return r.out, nil
}

// take is the next message of the partition. Without wait it may be nil.
func (r *logReader) take(ctx context.Context, wait bool) (*natsgo.Msg, stand, error) {
	if m := r.held; m != nil {
		r.held = nil
		return m, r.heldAt, nil
	}
	for {
		r.mu.Lock()
		u, shut, parked := r.pull, r.shut, r.parked
		r.mu.Unlock()
		switch {
		case shut:
			return nil, stand{}, errReaderClosed()
		case parked != nil:
			if woken, err := r.sleep(ctx, parked, wait); !woken {
				return nil, stand{}, err
			}
			continue
		case u == nil && !wait:
			return nil, stand{}, nil
		case u == nil:
			if err := r.reopen(ctx); err != nil {
				return nil, stand{}, err
			}
			continue
		}
		m, at, err := u.next(ctx, r.closed, wait)
		switch {
		case errors.Is(err, errStopped):
			return nil, stand{}, errReaderClosed()
		case errors.Is(err, errInterrupted):
			r.drop(u)
			continue
		case errors.Is(err, errIdle):
			r.rest(u)
			continue
		case err != nil || m == nil:
			return nil, stand{}, err
		}
		r.pause = 0
		// A consumer may begin before a position nobody has reached yet; and an operator may let
		// the server mark the end of records.
		if at.seq >= r.next && len(m.Header[headerMarker]) == 0 {
			return m, at, nil
		}
	}
}

// rest parks a reader whose consumer gave nothing for long.
func (r *logReader) rest(u *pull) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shut {
		return
	}
	if r.parked = r.b.park(r.topic, r.partition, r.config.filter, r.next); r.parked == nil {
		u.idle = 0 // the component is being closed
		return
	}
	u.close()
	r.pull, r.pause = nil, 0
}

// sleep waits on a parked reader's spot. Without wait it only looks.
func (r *logReader) sleep(ctx context.Context, parked *parkSpot, wait bool) (woken bool, err error) {
	select {
	case <-parked.wake:
		woken = true
	default:
		if !wait {
			return false, nil
		}
		select {
		case <-parked.wake:
			woken = true
		case <-r.closed:
			return false, errReaderClosed()
		case <-r.b.conn.life.Done():
			return false, closedError(opRead)
		case <-ctx.Done():
			return false, fault.Wrap(opRead, fault.Canceled, ctx.Err())
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.parked = nil
	return woken, nil
}

// drop gives a consumer up.
func (r *logReader) drop(u *pull) {
	if time.Since(r.opened) > readPauseMost {
		r.pause = 0
	}
	r.mu.Lock()
	if r.pull == u {
		r.pull = nil
		u.close()
	}
	r.mu.Unlock()
	r.b.log.doubt(u.p)
}

// doubt lets the streams be looked at again before they are used: a consumer of one is gone.
func (l *logStreams) doubt(p *period) {
	select {
	case <-p.over:
	default:
		if s := l.made.Load(); s != nil && s.p == p {
			l.made.CompareAndSwap(s, nil)
		}
	}
}

// reopen makes another consumer, as often as it takes. It fails when that cannot succeed.
func (r *logReader) reopen(ctx context.Context) error {
	for {
		if r.pause > 0 {
			if err := r.hold(ctx); err != nil {
				return err
			}
		}
		r.pause = min(max(2*r.pause, readPause), readPauseMost)
		short, cancel := context.WithTimeout(ctx, readOpen)
		err := r.open(short, opRead)
		cancel()
		if err == nil || final(err) || ctx.Err() != nil || r.b.conn.life.Err() != nil {
			return err
		}
		r.b.conn.log.Warn("reader interrupted; trying again", "topic", r.topic, "partition", r.partition, "pause", r.pause, "error", err)
	}
}

func (r *logReader) hold(ctx context.Context) error {
	t := time.NewTimer(r.pause)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-r.closed:
		return errReaderClosed()
	case <-r.b.conn.life.Done():
		return closedError(opRead)
	case <-ctx.Done():
		return fault.Wrap(opRead, fault.Canceled, ctx.Err())
	}
}

func errReaderClosed() error {
	return fault.New(opRead, fault.Unavailable, "the reader is closed").WithSent(fault.SentNever)
}

// final tells that trying again does not help.
func final(err error) bool {
	switch fault.Of(err) {
	case fault.Invalid, fault.Unsupported, fault.Denied, fault.Unauthenticated, fault.Lost:
		return true
	}
	return false
}

// record makes what the caller sees.
func (r *logReader) record(m *natsgo.Msg, at stand) block.LogRecord {
	rec := block.LogRecord{
		Message:   block.Message{Topic: r.topic, Data: m.Data},
		Partition: r.partition, Position: at.seq, Time: time.Unix(0, at.time),
	}
	if len(m.Header) > 0 {
		rec.Metadata = metadataOf(m.Header)
		if v := m.Header[headerKey]; len(v) > 0 {
			rec.Key = headerValue(v[0])
		}
		if v := m.Header[headerID]; len(v) > 0 {
			rec.ID = headerValue(v[0])
		}
	}
	return rec
}

// Close ends the reader.
func (r *logReader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shut {
		return
	}
	r.shut = true
	close(r.closed)
	if r.pull != nil {
		r.pull.close()
		r.pull = nil
	}
	if r.parked != nil {
		r.parked.leave()
		r.parked = nil
	}
}
