package nativeapi

import (
	"errors"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/apierr"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// Bounds of what a publishing stream has unanswered. A frame beyond them is left unread, which holds
// back the app and nobody else.
const (
	maxBatches    = 16
	maxBatchBytes = 8 << 20
	maxEntries    = 4096 // of a batch
)

// batch is one that was handed to the publisher and is not answered yet.
type batch struct {
	number   uint64
	entries  int
	bytes    int
	receipts []engine.Receipt
	ready    chan struct{}
}

// publishing is one stream of Publish. One goroutine reads frames, another writes receipts.
type publishing struct {
	ss       grpc.BidiStreamingServer[mechav1.PublishFrame, mechav1.PublishReply]
	p        Publisher
	topic    string
	producer bool
	batches  uint64

	queue  chan *batch   // in the order of frames
	held   atomic.Int64  // bytes that are unanswered
	room   chan struct{} // has a token when held went down
	broken chan struct{} // closed when nothing can be sent any more
	ending chan struct{} // closed when nothing is to be sent any more
}

// Publish appends messages.
func (s *messagingServer) Publish(ss grpc.BidiStreamingServer[mechav1.PublishFrame, mechav1.PublishReply]) error {
	first, err := ss.Recv()
	if err != nil {
		return openError(err)
	}
	open := first.GetOpen()
	if open == nil {
		return apierr.Native(invalid(frameOrder, "the first frame of Publish is not open"))
	}
	order, err := ordering(open.GetOrdering())
	if err != nil {
		return apierr.Native(err)
	}
	p, info, err := s.s.OpenPublisher(ss.Context(), open.GetPubsubName(), engine.PublishOptions{Topic: open.GetTopic(), Producer: open.GetProducerId(), Ordering: order})
	if err != nil {
		return apierr.Native(err)
	}
	defer p.Close()
	if err := require(open.GetPubsubName(), open.GetRequire(), info.Capabilities); err != nil {
		return apierr.Native(err)
	}
	err = ss.Send(&mechav1.PublishReply{Reply: &mechav1.PublishReply_Opened{Opened: &mechav1.PublishOpened{Capabilities: capabilities(info.Capabilities),
		Partitions: whole(info.Partitions), Hash: info.Hash, DedupWindow: span(info.Dedup), MaxMessage: wide(info.MaxMessage)}}})
	if err != nil {
		return err
	}
	pub := &publishing{ss: ss, p: p, topic: open.GetTopic(), producer: open.GetProducerId() != "",
		queue: make(chan *batch, maxBatches-1), room: make(chan struct{}, 1), broken: make(chan struct{}), ending: make(chan struct{})}
	sent, done := make(chan error, 1), make(chan error, 1)
	go func() { sent <- pub.answer() }()
	go func() {
		defer close(pub.queue)
		done <- pub.read()
	}()
	select {
	case err = <-done:
	case <-s.s.Ending():
		// What is not answered by now the caller sends again, to where it connects next. Nothing may be
		// sent when this has returned; reading ends with the stream, as it cannot be woken otherwise.
		close(pub.ending)
		<-sent
		return apierr.Native(fault.New(opMessaging, fault.Unavailable, "the sidecar is shutting down"))
	}
	if failed := <-sent; failed != nil {
		return failed // the stream is gone; what was wrong with a frame can be told no more
	}
	return err
}

// openError is why there was no first frame.
func openError(err error) error {
	if errors.Is(err, io.EOF) {
		return apierr.Native(invalid(frameOrder, "the stream ended before the open frame"))
	}
	return frameError(err)
}

// frameError is the error of a frame that could not be read.
func frameError(err error) error {
	if status.Code(err) == codes.ResourceExhausted {
		return apierr.Native(fault.New(opMessaging, fault.TooLarge, "the frame is larger than this sidecar reads; see its maximum body size").Because(err))
	}
	return err
}

// read hands over frames until the caller has said all.
func (p *publishing) read() error {
	for {
		f, err := p.ss.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return frameError(err)
		}
		switch f := f.GetFrame().(type) {
		case *mechav1.PublishFrame_Batch:
			if err := p.batch(f.Batch); err != nil {
				return err
			}
		case *mechav1.PublishFrame_ResumeKey:
			if err := p.resume(f.ResumeKey); err != nil {
				return apierr.Native(err)
			}
		case *mechav1.PublishFrame_Open:
			return apierr.Native(invalid(frameOrder, "open came twice"))
		default:
			return apierr.Native(invalid(unknownFrame, "the frame is none of batch and resume_key"))
		}
	}
}

func (p *publishing) resume(in *mechav1.ResumeKey) error {
	if in.Partition == nil {
		p.p.Resume(in.GetKey(), nil)
		return nil
	}
	id, err := partitionID(in.GetPartition())
	if err == nil {
		p.p.Resume(in.GetKey(), &id)
	}
	return err
}

func (p *publishing) batch(in *mechav1.PublishBatch) error {
	b, size, err := p.translate(in)
	if err != nil {
		return apierr.Native(err)
	}
	ctx := p.ss.Context()
	for held := p.held.Load(); held > 0 && held+int64(size) > maxBatchBytes; held = p.held.Load() {
		select {
		case <-p.room:
		case <-p.broken:
			return io.ErrClosedPipe // the other side tells why
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.batches++
	out := &batch{number: p.batches, entries: len(b.Entries), bytes: size, ready: make(chan struct{})}
	p.held.Add(int64(size))
	select {
	case p.queue <- out:
	case <-p.broken:
		return io.ErrClosedPipe
	case <-ctx.Done():
		return ctx.Err()
	}
	p.p.Publish(ctx, b, func(rs []engine.Receipt) {
		out.receipts = rs
		close(out.ready)
	})
	return nil
}

// translate reads a batch. One that cannot be understood ends the stream: to pass it over would put
// later messages before it.
func (p *publishing) translate(in *mechav1.PublishBatch) (b engine.Batch, size int, err error) {
	n := len(in.GetEntries())
	switch {
	case n == 0 || n > maxEntries:
		return b, 0, invalid(badEntry, "a batch of %d entries; 1 to %d are allowed", n, maxEntries)
	case p.producer && in.GetSequence() == 0:
		return b, 0, invalid(badOption, "batch.sequence is absent; with producer_id every batch has one")
	case !p.producer && in.GetSequence() != 0:
		return b, 0, invalid(badOption, "batch.sequence means nothing without producer_id in open")
	}
	b = engine.Batch{Entries: make([]engine.Entry, n), Atomic: in.GetAtomic(), Seq: in.GetSequence()}
	for i, e := range in.GetEntries() {
		if b.Entries[i], err = p.entry(i, e); err != nil {
			return b, 0, err
		}
		size += len(e.GetValue()) + len(e.GetKey())
		for k, v := range e.GetHeaders() {
			size += len(k) + len(v)
		}
	}
	return b, size, nil
}

func (p *publishing) entry(i int, in *mechav1.PublishEntry) (engine.Entry, error) {
	out := engine.Entry{Message: block.Message{Topic: p.topic, Key: in.GetKey(), Data: in.GetValue(), Metadata: in.GetHeaders(), ID: in.GetDedupId()}}
	if in.Partition != nil {
		id, err := partitionID(in.GetPartition())
		if err != nil {
			return out, err
		}
		out.Partition = &id
	}
	if at := in.GetDeliverAt(); at != nil {
		if err := at.CheckValid(); err != nil {
			return out, invalid(badEntry, "entries[%d].deliver_at: %v", i, err)
		}
		out.DeliverAt = at.AsTime()
	}
	if ttl := in.GetTtl(); ttl != nil {
		if err := ttl.CheckValid(); err != nil {
			return out, invalid(badEntry, "entries[%d].ttl: %v", i, err)
		}
		if out.TTL = ttl.AsDuration(); out.TTL <= 0 {
			return out, invalid(badEntry, "entries[%d].ttl is %v; leave it out for a message that does not expire", i, out.TTL)
		}
	}
	return out, nil
}

// answer sends receipts, batch by batch.
func (p *publishing) answer() error {
	defer close(p.broken)
	var out receipts
	ctx := p.ss.Context()
	for {
		var b *batch
		select {
		case next, more := <-p.queue:
			if !more {
				return nil
			}
			b = next
		case <-p.ending:
			return nil
		}
		select {
		case <-b.ready:
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ending:
			return nil
		}
		if err := p.ss.Send(out.of(b)); err != nil {
			return err
		}
		p.held.Add(-int64(b.bytes))
		select {
		case p.room <- struct{}{}:
		default: // there is one already
		}
	}
}

// receipts is the reply to a batch, used again and again.
type receipts struct {
	reply  mechav1.PublishReply
	oneof  mechav1.PublishReply_Receipts
	body   mechav1.Receipts
	spares []*mechav1.Receipt
}

func (r *receipts) of(b *batch) *mechav1.PublishReply {
	for len(r.spares) < b.entries {
		r.spares = append(r.spares, &mechav1.Receipt{})
	}
	r.body.Batch, r.body.Receipts = b.number, r.spares[:b.entries]
	for i, out := range r.body.Receipts {
		if i >= len(b.receipts) {
			out.Partition, out.Position, out.Duplicate = 0, 0, false
			out.Error = faultOf(fault.New(opMessaging, fault.Internal, "the broker's answer says nothing of entries[%d]", i), "batch", nil)
			continue
		}
		got := &b.receipts[i]
		out.Partition, out.Position, out.Duplicate, out.Error = uint32(max(got.Partition, 0)), got.Position, got.Duplicate, nil //nolint:gosec // not negative
		if got.Err != nil {
			out.Error = faultOf(got.Err, "batch", nil)
		}
	}
	r.oneof.Receipts, r.reply.Reply = &r.body, &r.oneof
	return &r.reply
}
