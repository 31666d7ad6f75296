//go:build unix

package app

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

// pipeline publishes with mecha.v1.Messaging: ordered by key, idempotent, and the next before the
// last is answered. What fails, and what is refused behind it, is sent again in order; only what is
// for a partition that does not exist is given up.
type pipeline struct {
	*worker
	conn   *grpc.ClientConn
	open   context.CancelFunc // ends the stream
	stream grpc.BidiStreamingClient[mechav1.PublishFrame, mechav1.PublishReply]
	name   string // of the stream in the history
	count  int    // streams
	next   uint64 // sequence number
	batch  [][]*entry
	lanes  []*lane
}

// lane is what is under way of a key, in order.
type lane struct {
	key    string
	seq    int
	queue  []*entry
	failed bool // on this stream; wait until nothing is under way, then resume
}

// entry is a message until it is acknowledged.
type entry struct {
	body
	lane   *lane
	number uint64 // sequence number, once it was sent
	flying bool
	wrong  bool // for a partition that does not exist
	since  time.Duration
}

func (l *lane) flying() (n int) {
	for _, e := range l.queue {
		if e.flying {
			n++
		}
	}
	return n
}

// wrongEvery is how often a key has a message that cannot be published.
const wrongEvery = 40

// longEvery is how often one has a message that takes long.
const longEvery = 50

func (w *worker) pipeline(ctx context.Context) error {
	conn, err := w.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	p := &pipeline{worker: w, conn: conn, open: func() {}}
	for _, key := range w.Keys {
		p.lanes = append(p.lanes, &lane{key: key})
	}
	var end <-chan time.Time
	tick := time.NewTicker(w.Pause)
	defer tick.Stop()
	stop := ctx.Done()
	for {
		replies, err := p.connect()
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		for up := true; up; {
			select {
			case <-stop:
				stop, end = nil, time.After(lastTries)
				tick.Stop()
			case <-tick.C:
				p.make()
			case r, ok := <-replies:
				if up = ok; ok {
					p.answered(r)
				}
			case <-end:
				return nil
			}
			if up {
				p.flush()
			}
			if stop == nil && p.idle() {
				p.open()
				return nil
			}
		}
		p.broken()
	}
}

// connect opens a stream. Its answers come on the channel, which is closed when it ends.
func (p *pipeline) connect() (<-chan *mechav1.Receipts, error) {
	p.open()
	ctx, cancel := context.WithCancel(context.Background())
	p.open = cancel
	stream, err := mechav1.NewMessagingClient(p.conn).Publish(ctx)
	if err == nil {
		err = stream.Send(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Open{Open: &mechav1.PublishOpen{PubsubName: p.PubSub, Topic: p.Topic,
			ProducerId: p.Proc, Ordering: mechav1.Ordering_ORDERING_KEY}}})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		return nil, err
	}
	p.count++
	p.stream, p.name = stream, fmt.Sprintf("%s/%d", p.Proc, p.count)
	replies := make(chan *mechav1.Receipts, 64)
	go func() {
		defer close(replies)
		for {
			r, err := stream.Recv()
			if err != nil {
				return
			}
			replies <- r.GetReceipts()
		}
	}()
	return replies, nil
}

// make adds a message to each key that does not wait for too many.
func (p *pipeline) make() {
	for i, l := range p.lanes {
		if len(l.queue) >= 8 {
			continue
		}
		e := l.add()
		switch q := p.Poison[l.key]; {
		case q.Seq == l.seq:
			e.Fails = q.Fails
		case i < 6 && (l.seq+8*i)%longEvery == 0: // not all at once
			e.Long = p.Long
		case p.Wrong && i < 2 && l.seq%wrongEvery == 0:
			e.wrong = true
			l.add() // goes with it, and is to be held back
			l.add()
		}
	}
}

func (l *lane) add() *entry {
	l.seq++
	e := &entry{body: body{ID: fmt.Sprintf("%s-%d", l.key, l.seq), Key: l.key, Seq: l.seq}, lane: l}
	l.queue = append(l.queue, e)
	return e
}

// flush sends what may be sent: new messages as one batch, others with the numbers they had.
func (p *pipeline) flush() {
	if len(p.batch) >= 8 {
		return
	}
	var fresh []*entry
	for _, l := range p.lanes {
		if l.failed {
			if l.flying() > 0 {
				continue
			}
			p.note(history.Event{Kind: history.ResumeKey, Key: l.key, Stream: p.name, Part: history.NoPart})
			p.say(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_ResumeKey{ResumeKey: &mechav1.ResumeKey{Key: l.key}}})
			l.failed = false
		}
		for _, e := range l.queue {
			if e.flying {
				continue
			}
			if e.number > 0 {
				p.send([]*entry{e}, e.number)
				continue
			}
			p.next++
			e.number = p.next
			fresh = append(fresh, e)
		}
	}
	if len(fresh) > 0 {
		p.send(fresh, fresh[0].number)
	}
}

func (p *pipeline) send(entries []*entry, number uint64) {
	b := &mechav1.PublishBatch{Sequence: number}
	for _, e := range entries {
		e.flying, e.since = true, history.Now()
		p.note(history.Event{Kind: history.Publishing, ID: e.ID, Key: e.Key, Seq: e.Seq, Stream: p.name, Part: history.NoPart})
		value, err := json.Marshal(e.body)
		p.must(err)
		m := &mechav1.PublishEntry{Key: e.Key, Value: value}
		if e.wrong {
			m.Partition = proto.Uint32(1 << 20)
		}
		b.Entries = append(b.Entries, m)
	}
	p.batch = append(p.batch, entries)
	p.say(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Batch{Batch: b}})
}

// say sends a frame; that the stream has ended is seen by its reader.
func (p *pipeline) say(f *mechav1.PublishFrame) { _ = p.stream.Send(f) }

// answered takes the receipts of the oldest batch.
func (p *pipeline) answered(r *mechav1.Receipts) {
	if len(p.batch) == 0 || len(r.GetReceipts()) != len(p.batch[0]) {
		p.must(fmt.Errorf("%d receipts for a batch that is not such", len(r.GetReceipts())))
	}
	for i, e := range p.batch[0] {
		e.flying = false
		got := r.Receipts[i]
		ev := history.Event{Kind: history.Published, ID: e.ID, Key: e.Key, Seq: e.Seq, Stream: p.name, Part: history.NoPart, From: e.since}
		switch f := got.Error; {
		case f == nil:
			ev.Outcome, ev.Part, ev.Pos = history.OK, int32(got.Partition), got.Position
			e.lane.drop(e)
		case f.Reason == "PRECEDING_FAILED":
			ev.Outcome, e.lane.failed = history.Preceding, true
		case f.Retryable:
			ev.Outcome, ev.What, e.lane.failed = history.Unknown, f.Reason+": "+f.Message, true
		default:
			ev.Outcome, ev.What, e.lane.failed = history.Failed, f.Reason, true
			if e.wrong {
				e.lane.drop(e)
			}
		}
		p.note(ev)
	}
	p.batch = p.batch[1:]
}

func (l *lane) drop(e *entry) {
	for i := range l.queue {
		if l.queue[i] == e {
			l.queue = append(l.queue[:i:i], l.queue[i+1:]...)
			return
		}
	}
}

// broken: nobody will answer what is under way.
func (p *pipeline) broken() {
	for _, b := range p.batch {
		for _, e := range b {
			e.flying = false
			p.note(history.Event{Kind: history.Published, Outcome: history.Unknown, ID: e.ID, Key: e.Key, Seq: e.Seq, Stream: p.name, Part: history.NoPart, What: "the stream broke"})
		}
	}
	p.batch = nil
	for _, l := range p.lanes {
		l.failed = false
	}
}

func (p *pipeline) idle() bool {
	for _, l := range p.lanes {
		if len(l.queue) > 0 {
			return false
		}
	}
	return true
}
