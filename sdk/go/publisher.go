package mecha

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/timestamppb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// Entry is a message to publish.
type Entry struct {
	Key       string // messages of one key keep their order; empty: none
	Value     []byte
	Headers   map[string]string
	Partition *uint32       // default: where the key belongs
	DeliverAt time.Time     // default: at once
	TTL       time.Duration // default: as long as the broker keeps others
	DedupID   string        // default: the producer's name and number
}

// Receipt says where a message went.
type Receipt struct {
	Partition uint32
	Position  uint64 // 0: not known, as of one to be delivered later
	Duplicate bool   // it had been published before
}

// PublisherOptions say how to publish. All may be left out.
type PublisherOptions struct {
	// Producer makes publishing idempotent over restarts too; Sequence is the number of its next
	// message then, as Publisher.Sequence told before. Give both or none: by default
	// the name is random and lives as long as the publisher.
	Producer string
	Sequence uint64
	Ordering mechav1.Ordering // default: by key
	Require  []mechav1.Capability
	// MaxPending and MaxPendingBytes bound what is not answered; PublishAsync waits beyond. Default:
	// 8192 messages, 32 MiB.
	MaxPending      int
	MaxPendingBytes int
	Log             *slog.Logger // tells of reconnections; default: slog.Default
}

// ErrClosed is the error of what a publisher was asked after Close.
var ErrClosed = errors.New("mecha: the publisher is closed")

// Bounds of a batch.
const (
	batchEntries = 256
	batchBytes   = 1 << 20
)

// Publisher publishes to one topic. It is safe for concurrent use; messages of one goroutine keep their
// order. It connects when it is first used, and again whenever the connection is lost: what was
// not answered is sent again under the same numbers, so that a broker that can remember them
// takes it once.
type Publisher struct {
	c     *Client
	t     Topic
	o     PublisherOptions
	stop  context.CancelFunc
	ended chan struct{} // closed when run has returned
	wake  chan struct{} // has a token when there is something to send

	mu      sync.Mutex
	queue   []*item          // guarded by mu: unanswered, in order
	sent    int              // guarded by mu: how many of queue went out on this stream
	next    uint64           // guarded by mu: number of the next message
	pending int              // guarded by mu: messages in queue
	bytes   int              // guarded by mu: theirs
	held    map[string]*hold // guarded by mu: keys, or partitions, of which a message failed
	closing bool             // guarded by mu
	err     error            // guarded by mu: why it works no more
	changed chan struct{}    // guarded by mu: closed, and made anew, when something was answered
}

// item is a batch, or a resume_key between batches.
type item struct {
	batch  *mechav1.PublishBatch
	resume *mechav1.ResumeKey
	done   []func(Receipt, error)
	bytes  int
}

// hold says which messages of a key fail because one before them has: those above from and below
// until; 0 is without end.
type hold struct{ from, until uint64 }

func (h *hold) has(n uint64) bool { return h != nil && n > h.from && (h.until == 0 || n < h.until) }

// NewPublisher makes a publisher. It is to be closed.
func (c *Client) NewPublisher(t Topic, o PublisherOptions) (*Publisher, error) {
	if (o.Producer == "") != (o.Sequence == 0) {
		return nil, errors.New("mecha: PublisherOptions.Producer and Sequence are given both or not at all")
	}
	o.Producer, o.Sequence = cmp.Or(o.Producer, "go-"+random()), cmp.Or(o.Sequence, 1)
	o.MaxPending, o.MaxPendingBytes = cmp.Or(o.MaxPending, 8192), cmp.Or(o.MaxPendingBytes, 32<<20)
	if o.Log == nil {
		o.Log = slog.Default()
	}
	ctx, stop := context.WithCancel(context.Background())
	p := &Publisher{c: c, t: t, o: o, stop: stop, ended: make(chan struct{}), wake: make(chan struct{}, 1), next: o.Sequence, held: map[string]*hold{}, changed: make(chan struct{})}
	go p.run(ctx)
	return p, nil
}

// Publish appends a message and waits for its receipt. When ctx ends first it may be published all the
// same. PRECEDING_FAILED: an earlier message of the key failed; see ResumeKey.
func (p *Publisher) Publish(ctx context.Context, e Entry) (Receipt, error) {
	type result struct {
		r   Receipt
		err error
	}
	got := make(chan result, 1)
	p.PublishAsync(ctx, e, func(r Receipt, err error) { got <- result{r, err} })
	select {
	case out := <-got:
		return out.r, out.err
	case <-ctx.Done():
		return Receipt{}, ctx.Err()
	}
}

// PublishAsync appends a message and calls done with its receipt, once; done must not block, and may
// be called before PublishAsync returns. It waits only while too much is pending, or until ctx
// ends.
func (p *Publisher) PublishAsync(ctx context.Context, e Entry, done func(Receipt, error)) {
	if err := p.add(ctx, []Entry{e}, false, []func(Receipt, error){done}); err != nil {
		done(Receipt{}, err)
	}
}

// PublishAtomic appends all messages or none, and waits for their receipts, which are in their order.
// MISSING_CAPABILITY: the broker cannot.
func (p *Publisher) PublishAtomic(ctx context.Context, es []Entry) ([]Receipt, error) {
	if len(es) == 0 {
		return nil, nil
	}
	out := make([]Receipt, len(es))
	dones := make([]func(Receipt, error), len(es))
	got := make(chan error, len(es))
	for i := range es {
		dones[i] = func(r Receipt, err error) { out[i] = r; got <- err }
	}
	if err := p.add(ctx, es, true, dones); err != nil {
		return nil, err
	}
	var failed error
	for range es {
		select {
		case err := <-got:
			failed = cmp.Or(failed, err)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if failed != nil {
		return nil, failed
	}
	return out, nil
}

// ResumeKey lets messages of a key through that are published from now on, after one of them failed for
// good and those behind it with PRECEDING_FAILED. With ordering by partition ResumePartition does.
func (p *Publisher) ResumeKey(key string) {
	p.resume(&mechav1.ResumeKey{Key: key}, "k"+key)
}

// ResumePartition does so with ordering by partition: n is that of the failed message's receipt. Until then
// all messages are held back that do not name another partition.
func (p *Publisher) ResumePartition(n uint32) {
	p.resume(&mechav1.ResumeKey{Partition: &n}, partitionUnit(&n), partitionUnit(nil))
}

func (p *Publisher) resume(r *mechav1.ResumeKey, units ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, unit := range units {
		if h := p.held[unit]; h != nil && h.until == 0 {
			h.until = p.next
		}
	}
	p.queue = append(p.queue, &item{resume: r})
	p.signal()
}

// Sequence is the number of the next message: for PublisherOptions after a restart, once all is
// answered.
func (p *Publisher) Sequence() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}

// Flush waits until nothing is pending: every done was called.
func (p *Publisher) Flush(ctx context.Context) error {
	for {
		p.mu.Lock()
		pending, changed := p.pending, p.changed
		p.mu.Unlock()
		if pending == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Close waits until nothing is pending, or until ctx ends; then what is left fails with ErrClosed. It
// is safe twice.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.signal()
	var err error
	select {
	case <-p.ended:
	case <-ctx.Done():
		err = ctx.Err()
	}
	p.stop()
	<-p.ended
	return err
}

func (p *Publisher) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// check finds what would break a frame.
func (e *Entry) check() error {
	text := utf8.ValidString(e.Key) && utf8.ValidString(e.DedupID)
	for k, v := range e.Headers {
		text = text && utf8.ValidString(k) && utf8.ValidString(v)
	}
	switch {
	case !text:
		return errors.New("mecha: Entry: keys, headers and ids are UTF-8; other bytes belong into the value")
	case e.TTL < 0:
		return fmt.Errorf("mecha: Entry.TTL is %v", e.TTL)
	}
	return nil
}

func (e *Entry) size() int {
	n := len(e.Key) + len(e.Value) + len(e.DedupID) + 16
	for k, v := range e.Headers {
		n += len(k) + len(v) + 8
	}
	return n
}

func (e *Entry) wire() *mechav1.PublishEntry {
	out := &mechav1.PublishEntry{Key: e.Key, Partition: e.Partition, Value: e.Value, Headers: e.Headers, DedupId: e.DedupID, Ttl: optional(e.TTL)}
	if !e.DeliverAt.IsZero() {
		out.DeliverAt = timestamppb.New(e.DeliverAt)
	}
	return out
}

// blocked reports whether message n fails since one before it has. Locked.
func (p *Publisher) blocked(e *mechav1.PublishEntry, n uint64) bool {
	switch {
	case len(p.held) == 0:
	case p.o.Ordering != mechav1.Ordering_ORDERING_PARTITION:
		return p.held["k"+e.GetKey()].has(n)
	case e.Partition != nil:
		return p.held[partitionUnit(e.Partition)].has(n) || p.held[partitionUnit(nil)].has(n)
	default: // who knows which one it goes to
		for _, h := range p.held {
			if h.has(n) {
				return true
			}
		}
	}
	return false
}

// unit is what is held back behind a failed message; empty: nothing is. A partition is not known when no
// receipt tells.
func (p *Publisher) unit(e *mechav1.PublishEntry, partition *uint32) string {
	switch {
	case p.o.Ordering == mechav1.Ordering_ORDERING_NONE:
	case p.o.Ordering == mechav1.Ordering_ORDERING_PARTITION:
		if e.Partition != nil {
			partition = e.Partition
		}
		return partitionUnit(partition)
	case e.GetKey() != "":
		return "k" + e.GetKey()
	}
	return ""
}

func partitionUnit(n *uint32) string {
	if n == nil {
		return "p"
	}
	return "p" + strconv.FormatUint(uint64(*n), 10)
}

var errPreceding = &Error{Code: codes.Aborted, Reason: ReasonPrecedingFailed, Message: "an earlier message of the key, or the partition, was not published; resume it to go on without it"}

// add queues messages when there is room.
func (p *Publisher) add(ctx context.Context, es []Entry, atomic bool, dones []func(Receipt, error)) error {
	size := 0
	wire := make([]*mechav1.PublishEntry, len(es))
	for i := range es {
		if err := es[i].check(); err != nil {
			return err
		}
		size += es[i].size()
		wire[i] = es[i].wire()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.err == nil && !p.closing && p.pending > 0 && (p.pending+len(es) > p.o.MaxPending || p.bytes+size > p.o.MaxPendingBytes) {
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
			p.mu.Lock()
		case <-ctx.Done():
			p.mu.Lock()
			return ctx.Err()
		}
	}
	switch {
	case p.err != nil:
		return p.err
	case p.closing:
		return ErrClosed
	}
	for _, e := range wire {
		if p.blocked(e, p.next) {
			return errPreceding
		}
	}
	last := p.tail()
	if atomic || last == nil || last.batch.GetAtomic() || len(last.done) >= batchEntries || last.bytes+size > batchBytes {
		last = &item{batch: &mechav1.PublishBatch{Sequence: p.next, Atomic: atomic}}
		p.queue = append(p.queue, last)
	}
	last.batch.Entries, last.done, last.bytes = append(last.batch.Entries, wire...), append(last.done, dones...), last.bytes+size
	p.next += uint64(len(es))
	p.pending += len(es)
	p.bytes += size
	p.signal()
	return nil
}

// tail is the last batch if it can be added to. Locked.
func (p *Publisher) tail() *item {
	if n := len(p.queue); n > p.sent && p.queue[n-1].batch != nil {
		return p.queue[n-1]
	}
	return nil
}

// run keeps a stream for as long as there is something to publish.
func (p *Publisher) run(ctx context.Context) {
	defer close(p.ended)
	var pause backOff
	for p.work(ctx) {
		opened, err := p.stream(ctx)
		switch {
		case ctx.Err() != nil:
		case err == nil:
			return // closed, and nothing left
		case opened && blames(err):
			p.refuse(err)
			continue
		case lasts(err):
			p.fail(errorOf(err))
			return
		default:
			p.o.Log.Warn("the stream of a publisher ended; it is opened again", "topic", p.t.Name, "error", err)
			if opened {
				pause = backOff{}
			}
			pause.wait(ctx)
		}
	}
	p.fail(ErrClosed)
}

// work waits until there is something to publish; false when there never will be.
func (p *Publisher) work(ctx context.Context) bool {
	for ctx.Err() == nil {
		p.mu.Lock()
		pending, closing := p.pending, p.closing
		p.mu.Unlock()
		if pending > 0 {
			return true
		}
		if closing {
			return false
		}
		select {
		case <-p.wake:
		case <-ctx.Done():
		}
	}
	return false
}

// blames reports errors that end a stream because of the batch that is not answered first.
func blames(err error) bool {
	switch ReasonOf(errorOf(err)) {
	case "BAD_ENTRY", "BAD_OPTION", "NO_SUCH_PARTITION", ReasonTooLarge:
		return true
	}
	return false
}

type publishStream = grpc.BidiStreamingClient[mechav1.PublishFrame, mechav1.PublishReply]

// stream publishes until the stream breaks, or until the publisher is closed and nothing is left.
func (p *Publisher) stream(ctx context.Context) (opened bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	st, err := p.c.msg.Publish(ctx)
	if err != nil {
		return false, err
	}
	err = st.Send(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Open{Open: &mechav1.PublishOpen{PubsubName: p.t.PubSub, Topic: p.t.Name, ProducerId: p.o.Producer,
		Ordering: p.o.Ordering, Require: p.o.Require}}})
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	r, err := st.Recv()
	if err != nil {
		return false, err
	}
	if r.GetOpened() == nil {
		return false, fmt.Errorf("mecha: the first reply is %T, not opened", r.GetReply())
	}
	p.again()
	over := make(chan error, 1)
	go func() { over <- p.receive(st) }()
	closed := false
	for {
		f, finished := p.take()
		switch {
		case f != nil:
			if err := st.Send(f); err != nil && !errors.Is(err, io.EOF) {
				cancel()
				<-over
				return true, err
			} else if err != nil {
				return true, <-over
			}
			continue
		case finished && !closed:
			closed = true
			_ = st.CloseSend() // receive learns what comes of it
		}
		select {
		case err := <-over:
			if errors.Is(err, io.EOF) && closed {
				return true, nil
			}
			return true, err
		case <-p.wake:
		}
	}
}

// take is the next frame to send; finished when there is none and will be none.
func (p *Publisher) take() (f *mechav1.PublishFrame, finished bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent == len(p.queue) {
		return nil, p.closing && len(p.queue) == 0
	}
	it := p.queue[p.sent]
	if it.resume != nil {
		p.queue = append(p.queue[:p.sent], p.queue[p.sent+1:]...) // nobody answers it
		return &mechav1.PublishFrame{Frame: &mechav1.PublishFrame_ResumeKey{ResumeKey: it.resume}}, false
	}
	p.sent++
	return &mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Batch{Batch: it.batch}}, false
}

// receive takes receipts until the stream ends.
func (p *Publisher) receive(st publishStream) error {
	for {
		r, err := st.Recv()
		if err != nil {
			return err
		}
		if rs := r.GetReceipts(); rs != nil {
			if !p.answered(rs.GetReceipts()) {
				return fmt.Errorf("mecha: receipts of batch %d, which was not sent, or has more messages", rs.GetBatch())
			}
		}
	}
}

// answered gives the oldest batch its receipts.
func (p *Publisher) answered(rs []*mechav1.Receipt) bool {
	p.mu.Lock()
	if p.sent == 0 || len(p.queue[0].done) != len(rs) {
		p.mu.Unlock()
		return false
	}
	it := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	p.sent--
	for i, r := range rs {
		if f := r.GetError(); f != nil && f.GetReason() != ReasonPrecedingFailed {
			p.hold(it, i, &r.Partition)
		}
	}
	p.mu.Unlock()
	for i, r := range rs {
		it.done[i](Receipt{Partition: r.GetPartition(), Position: r.GetPosition(), Duplicate: r.GetDuplicate()}, faultError(r.GetError()))
	}
	p.gone(len(it.done), it.bytes)
	p.signal()
	return true
}

// hold keeps back what follows a failed message. Locked.
func (p *Publisher) hold(it *item, i int, partition *uint32) {
	unit, n := p.unit(it.batch.GetEntries()[i], partition), it.batch.GetSequence()+uint64(i) //nolint:gosec // small
	if h := p.held[unit]; unit != "" && !h.has(n) {
		until := uint64(0)
		if h != nil && h.until > n {
			until = h.until // resumed when this one was on its way
		}
		p.held[unit] = &hold{from: n, until: until}
	}
}

// gone counts messages out whose done was called.
func (p *Publisher) gone(messages, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending -= messages
	p.bytes -= bytes
	close(p.changed)
	p.changed = make(chan struct{})
	if p.pending == 0 {
		for unit, h := range p.held {
			if h.until != 0 {
				delete(p.held, unit)
			}
		}
	}
}

// failed tells messages why they were not published.
func (p *Publisher) failed(dones []func(Receipt, error), bytes int, err error) {
	for _, done := range dones {
		done(Receipt{}, err)
	}
	p.gone(len(dones), bytes)
}

// again makes the queue ready for another stream: the sidecar knows nothing of what failed on the one
// before, so what is held back is failed here.
func (p *Publisher) again() {
	var failed []func(Receipt, error)
	bytes := 0
	p.mu.Lock()
	queue := p.queue
	p.queue, p.sent = nil, 0
	for _, it := range queue {
		if it.batch == nil {
			continue // nothing is held back any more
		}
		kept, lost := p.split(it)
		p.queue = append(p.queue, kept...)
		failed = append(failed, lost...)
		bytes += it.bytes
		for _, k := range kept {
			bytes -= k.bytes
		}
	}
	p.mu.Unlock()
	p.failed(failed, bytes, errPreceding)
}

// split takes out what is held back. What is left are batches whose numbers have no gaps. Locked.
func (p *Publisher) split(it *item) (kept []*item, lost []func(Receipt, error)) {
	es, first := it.batch.GetEntries(), it.batch.GetSequence()
	held := func(i int) bool { return p.blocked(es[i], first+uint64(i)) } //nolint:gosec // small
	any := false
	for i := range es {
		any = any || held(i)
	}
	if !any {
		return []*item{it}, nil
	}
	if it.batch.GetAtomic() {
		return nil, it.done
	}
	for i := 0; i < len(es); {
		from := i
		for i < len(es) && !held(i) {
			i++
		}
		if i > from {
			kept = append(kept, piece(it, from, i))
		}
		for ; i < len(es) && held(i); i++ {
			lost = append(lost, it.done[i])
		}
	}
	return kept, lost
}

// piece is a part of a batch as a batch of its own.
func piece(it *item, from, to int) *item {
	return &item{batch: &mechav1.PublishBatch{Sequence: it.batch.GetSequence() + uint64(from), Entries: it.batch.GetEntries()[from:to:to]}, //nolint:gosec // small
		done: it.done[from:to:to], bytes: it.bytes * (to - from) / len(it.done)}
}

// refuse ends the batch that ended a stream. One that may be too large as a whole is halved first.
func (p *Publisher) refuse(err error) {
	e := errorOf(err)
	p.mu.Lock()
	for len(p.queue) > 0 && p.queue[0].batch == nil {
		p.queue = p.queue[1:]
	}
	if len(p.queue) == 0 {
		p.mu.Unlock()
		return
	}
	it := p.queue[0]
	if n := len(it.done); ReasonOf(e) == ReasonTooLarge && n > 1 && !it.batch.GetAtomic() {
		a, b := piece(it, 0, n/2), piece(it, n/2, n)
		b.bytes = it.bytes - a.bytes
		p.queue = append([]*item{a, b}, p.queue[1:]...)
		p.mu.Unlock()
		return
	}
	p.queue = p.queue[1:]
	for i := range it.done {
		p.hold(it, i, nil)
	}
	p.mu.Unlock()
	p.failed(it.done, it.bytes, e)
}

// fail ends all there is.
func (p *Publisher) fail(err error) {
	p.mu.Lock()
	p.err = err
	queue := p.queue
	p.queue, p.sent = nil, 0
	p.mu.Unlock()
	for _, it := range queue {
		p.failed(it.done, it.bytes, err)
	}
}
