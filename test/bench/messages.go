package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/nats/embedded"
)

// The native messaging API, spoken by the generated client: no handlers, no library between.

// counted is a caller of which a call is more than one message.
type counted interface{ messages() int }

// Sizes of the load on streams.
const (
	batchSize    = 64      // messages of a batch of a publisher
	batchesAhead = 8       // batches without an answer
	filled       = 120_000 // messages that a consumer reads again and again
	fillKeys     = 10_000  // keys of them
)

// messaging is a connection to the native API. The callers of a job share it; the last one closes it.
type messaging struct {
	*grpcConn
	client mechav1.MessagingClient
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func dialMessaging(ctx context.Context, j *job) (*messaging, error) {
	cc, err := grpc.NewClient("passthrough:///"+j.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	m := &messaging{grpcConn: &grpcConn{cc: cc, users: j.Callers}, client: mechav1.NewMessagingClient(cc)}
	m.ctx, m.cancel = context.WithCancelCause(ctx)
	return m, nil
}

func (m *messaging) life() context.Context { return m.ctx }

func (m *messaging) publish(topic string) (mechav1.Messaging_PublishClient, error) {
	st, err := m.client.Publish(m.ctx)
	if err != nil {
		return nil, err
	}
	if err := st.Send(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Open{Open: &mechav1.PublishOpen{PubsubName: "broker", Topic: topic}}}); err != nil {
		return nil, err
	}
	_, err = st.Recv() // opened
	return st, err
}

func (m *messaging) consume(topic string, start *mechav1.Place) (mechav1.Messaging_ConsumeClient, error) {
	st, err := m.client.Consume(m.ctx)
	if err != nil {
		return nil, err
	}
	return st, st.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Open{Open: &mechav1.ConsumeOpen{
		PubsubName: "broker", Topics: []string{topic}, Group: "bench", InstanceId: "bench", Start: start, AutoRevoke: true}}})
}

// leave ends a consumer and waits for its end, so that the next job does not meet it in the group.
func leave(st mechav1.Messaging_ConsumeClient) {
	if st.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Close{Close: &mechav1.Close{}}}) != nil {
		return
	}
	for {
		if _, err := st.Recv(); err != nil {
			return
		}
	}
}

func batchOf(n int, key func(int) string, value []byte) *mechav1.PublishFrame {
	b := &mechav1.PublishBatch{}
	for i := range n {
		b.Entries = append(b.Entries, &mechav1.PublishEntry{Key: key(i), Value: value})
	}
	return &mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Batch{Batch: b}}
}

// refused is the first failure among receipts.
func refused(r *mechav1.PublishReply) error {
	for _, one := range r.GetReceipts().GetReceipts() {
		if e := one.GetError(); e != nil {
			return fmt.Errorf("a message was not published: %s: %s", e.GetReason(), e.GetMessage())
		}
	}
	return nil
}

// ackOf acknowledges a frame. Positions that follow each other make a range; others may be between those
// that do not, which wait behind their key.
func ackOf(d *mechav1.Deliver) *mechav1.ConsumerFrame {
	a := &mechav1.PartitionAck{Topic: d.GetTopic(), Partition: d.GetPartition(), Epoch: d.GetEpoch()}
	var last *mechav1.PositionRange
	for _, m := range d.GetMessages() {
		if last == nil || m.GetPosition() != last.To+1 {
			last = &mechav1.PositionRange{From: m.GetPosition(), To: m.GetPosition()}
			a.Ranges = append(a.Ranges, last)
		}
		last.To = m.GetPosition()
	}
	return &mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Ack{Ack: &mechav1.Ack{Partitions: []*mechav1.PartitionAck{a}}}}
}

// streamer publishes batches, several of them ahead of their answers.
type streamer struct {
	*messaging
	st    mechav1.Messaging_PublishClient
	batch *mechav1.PublishFrame
}

func newStreamer(ctx context.Context, j *job, n int, m *messaging) (*streamer, error) {
	st, err := m.publish(j.Topic)
	if err != nil {
		return nil, err
	}
	s := &streamer{messaging: m, st: st, batch: batchOf(batchSize, func(i int) string { return fmt.Sprintf("key-%d-%d", n, i) }, j.Body)}
	for range batchesAhead {
		if err := st.Send(s.batch); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *streamer) call(context.Context) error {
	r, err := s.st.Recv()
	if err != nil {
		return err
	}
	if err := refused(r); err != nil {
		return err
	}
	return s.st.Send(s.batch)
}

func (s *streamer) messages() int { return batchSize }

func (s *streamer) close() {
	_ = s.st.CloseSend()
	for {
		if _, err := s.st.Recv(); err != nil {
			break
		}
	}
	s.leave()
}

// reader consumes a topic that was filled once, and begins again where it has come to its end. Each
// frame is acknowledged by one.
type reader struct {
	*messaging
	st    mechav1.Messaging_ConsumeClient
	lasts map[uint32]uint64 // position of the last message, by partition
	n     int               // messages of the last call
	want  int               // bytes of each
}

// fills are the last positions of the partitions of topics that hold what is to be consumed, by address and
// name.
var fills = map[string]map[uint32]uint64{}

func newReader(j *job, m *messaging) (*reader, error) {
	lasts, err := fill(j, m)
	if err != nil {
		return nil, fmt.Errorf("filling topic %s: %w", j.Topic, err)
	}
	st, err := m.consume(j.Topic, nil)
	if err != nil {
		return nil, err
	}
	r := &reader{messaging: m, st: st, lasts: lasts, want: len(j.Body)}
	return r, r.call(m.ctx) // to join takes a moment
}

func fill(j *job, m *messaging) (map[uint32]uint64, error) {
	if lasts := fills[j.Addr+j.Topic]; lasts != nil {
		return lasts, nil
	}
	lasts := map[uint32]uint64{}
	st, err := m.publish(j.Topic)
	if err != nil {
		return nil, err
	}
	pending := 0
	for sent := 0; sent < filled || pending > 0; {
		if sent < filled && pending < batchesAhead {
			if err := st.Send(batchOf(batchSize, func(i int) string { return fmt.Sprintf("key-%d", (sent+i)%fillKeys) }, j.Body)); err != nil {
				return nil, err
			}
			sent, pending = sent+batchSize, pending+1
			continue
		}
		r, err := st.Recv()
		if err != nil {
			return nil, err
		}
		if err := refused(r); err != nil {
			return nil, err
		}
		for _, one := range r.GetReceipts().GetReceipts() {
			lasts[one.GetPartition()] = max(lasts[one.GetPartition()], one.GetPosition())
		}
		pending--
	}
	fills[j.Addr+j.Topic] = lasts
	return lasts, st.CloseSend()
}

func (r *reader) call(context.Context) error {
	for {
		f, err := r.st.Recv()
		if err != nil {
			return err
		}
		switch f := f.GetFrame().(type) {
		case *mechav1.BrokerFrame_Assigned:
			for _, p := range f.Assigned.GetPartitions() {
				if id := p.GetPartition().GetPartition(); p.GetNext() > r.lasts[id] { // the last job has come to its end
					if err := r.again(id, p.GetPartition().GetTopic()); err != nil {
						return err
					}
				}
			}
		case *mechav1.BrokerFrame_Fault:
			return fmt.Errorf("consuming: %s: %s", f.Fault.GetReason(), f.Fault.GetMessage())
		case *mechav1.BrokerFrame_Deliver:
			ms := f.Deliver.GetMessages()
			for _, m := range ms {
				if len(m.GetValue()) != r.want {
					return fmt.Errorf("a message of %d bytes; want %d", len(m.GetValue()), r.want)
				}
			}
			r.n = len(ms)
			if err := r.st.Send(ackOf(f.Deliver)); err != nil {
				return err
			}
			if id := f.Deliver.GetPartition(); ms[len(ms)-1].GetPosition() >= r.lasts[id] {
				return r.again(id, f.Deliver.GetTopic())
			}
			return nil
		}
	}
}

// again has a partition read from its beginning.
func (r *reader) again(id uint32, topic string) error {
	return r.st.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Control{Control: &mechav1.Control{
		Partitions: []*mechav1.Partition{{Topic: topic, Partition: id}},
		Action:     &mechav1.Control_Seek{Seek: &mechav1.Place{Place: &mechav1.Place_Earliest{Earliest: true}}}}}})
}

func (r *reader) messages() int { return r.n }

func (r *reader) close() {
	leave(r.st)
	r.cancel(nil)
	r.leave()
}

// courier publishes one message, and is done when the broker has it and it was delivered. All couriers of
// a job share their streams.
type courier struct {
	mail   mail
	box    *box
	key    string
	body   []byte
	serial []byte // where the number stands in body
	taken  chan error
}

// mail is a way from publisher to consumer; what is delivered goes to a mailbox.
type mail interface {
	// life ends when messages cannot come any more, with the cause.
	life() context.Context
	// send publishes a message; taken gets the broker's answer.
	send(ctx context.Context, key string, body []byte, taken chan<- error)
	close()
}

func newCourier(w mail, m *mailbox, n int, body []byte) *courier {
	c := &courier{mail: w, box: m.open(n), key: fmt.Sprintf("key-%d", n), body: body, taken: make(chan error, 1)}
	if i := strings.Index(string(body), serialMark); i >= 0 {
		c.serial = body[i : i+digits]
	}
	return c
}

func (c *courier) call(ctx context.Context) error {
	n := c.box.next()
	copy(c.serial, number(n))
	c.mail.send(ctx, c.key, c.body, c.taken)
	for range 2 {
		select {
		case err := <-c.taken:
			if err != nil {
				return err
			}
		case <-c.box.arrived:
		case <-c.mail.life().Done():
			return fmt.Errorf("waiting for the delivery of message %d: %w", n, context.Cause(c.mail.life()))
		}
	}
	return nil
}

func (c *courier) close() { c.mail.close() }

// nativePost goes through a sidecar: one stream of a publisher, one of a consumer.
type nativePost struct {
	*messaging
	in   mechav1.Messaging_PublishClient
	out  mechav1.Messaging_ConsumeClient
	box  *mailbox
	gone chan struct{} // closed when the consumer has ended

	mu    sync.Mutex // around Send too: answers come in its order
	sent  []chan<- error
	users int
}

// newNativePost returns when the consumer has its partitions.
func newNativePost(j *job, m *messaging, box *mailbox) (*nativePost, error) {
	p := &nativePost{messaging: m, box: box, gone: make(chan struct{}), users: j.Callers}
	var err error
	if p.in, err = m.publish(j.Topic); err != nil {
		return nil, err
	}
	if p.out, err = m.consume(j.Topic, &mechav1.Place{Place: &mechav1.Place_Latest{Latest: true}}); err != nil {
		return nil, err
	}
	for parts, want := 0, 1; parts < want; {
		f, err := p.out.Recv()
		if err != nil {
			return nil, err
		}
		switch f := f.GetFrame().(type) {
		case *mechav1.BrokerFrame_Opened:
			want = int(f.Opened.GetTopics()[0].GetPartitions())
		case *mechav1.BrokerFrame_Assigned:
			parts += len(f.Assigned.GetPartitions())
		case *mechav1.BrokerFrame_Deliver: // of the last job
			if err := p.out.Send(ackOf(f.Deliver)); err != nil {
				return nil, err
			}
		}
	}
	go p.answers()
	go p.deliveries()
	return p, nil
}

func (p *nativePost) send(_ context.Context, key string, body []byte, taken chan<- error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, taken)
	err := p.in.Send(&mechav1.PublishFrame{Frame: &mechav1.PublishFrame_Batch{Batch: &mechav1.PublishBatch{Entries: []*mechav1.PublishEntry{{Key: key, Value: body}}}}})
	if err != nil {
		p.sent = p.sent[:len(p.sent)-1]
		taken <- err
	}
}

func (p *nativePost) answers() {
	for {
		r, err := p.in.Recv()
		if err == nil {
			err = refused(r)
		}
		p.mu.Lock()
		if len(p.sent) == 0 {
			p.mu.Unlock()
			return
		}
		taken := p.sent[0]
		p.sent = p.sent[1:]
		p.mu.Unlock()
		taken <- err
	}
}

func (p *nativePost) deliveries() {
	defer close(p.gone)
	for {
		f, err := p.out.Recv()
		if err != nil {
			return // who waits for a delivery says so
		}
		if e := f.GetFault(); e != nil {
			p.cancel(fmt.Errorf("consuming: %s: %s", e.GetReason(), e.GetMessage()))
			return
		}
		d := f.GetDeliver()
		if d == nil {
			continue
		}
		for _, m := range d.GetMessages() {
			p.box.receive(nil, m.GetValue())
		}
		if p.out.Send(ackOf(d)) != nil {
			return
		}
	}
}

func (p *nativePost) close() {
	p.mu.Lock()
	p.users--
	last := p.users == 0
	p.mu.Unlock()
	if last {
		_ = p.in.CloseSend()
		_ = p.out.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Close{Close: &mechav1.Close{}}})
		<-p.gone
		p.cancel(nil)
	}
	p.leave()
}

// directPost goes to the node without a sidecar: a stream in a file, and the library's ordered consumer.
type directPost struct {
	ctx  context.Context
	c    *embedded.Conn
	js   jetstream.JetStream
	read jetstream.ConsumeContext

	mu    sync.Mutex
	users int
}

func newDirectPost(ctx context.Context, j *job, box *mailbox) (*directPost, error) {
	c, err := embedded.Connect(ctx, embedded.Options{DataDir: j.Dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	p := &directPost{ctx: ctx, c: c, users: j.Callers}
	if err := p.open(ctx, box); err != nil {
		c.Close()
		return nil, err
	}
	return p, nil
}

func (p *directPost) open(ctx context.Context, box *mailbox) (err error) {
	if p.js, err = jetstream.New(p.c.NATS()); err != nil {
		return err
	}
	s, err := p.js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "BENCH", Subjects: []string{"bench.>"}, Storage: jetstream.FileStorage, MaxBytes: 1 << 30})
	if err != nil {
		return err
	}
	read, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverNewPolicy})
	if err != nil {
		return err
	}
	p.read, err = read.Consume(func(m jetstream.Msg) { box.receive(nil, m.Data()) })
	return err
}

func (p *directPost) life() context.Context { return p.ctx }

func (p *directPost) send(ctx context.Context, key string, body []byte, taken chan<- error) {
	_, err := p.js.Publish(ctx, "bench."+key, body)
	taken <- err
}

func (p *directPost) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.users--; p.users == 0 {
		p.read.Stop()
		p.c.Close()
	}
}

// newMessageCallers makes the callers of the jobs of this file.
func newMessageCallers(ctx context.Context, j *job, box *mailbox) (out []caller, err error) {
	defer func() {
		if err != nil {
			for _, c := range out {
				c.close()
			}
		}
	}()
	var way mail
	var m *messaging
	if j.Kind == kindDirect {
		if way, err = newDirectPost(ctx, j, box); err != nil {
			return nil, err
		}
	} else if m, err = dialMessaging(ctx, j); err != nil {
		return nil, err
	}
	if j.Kind == kindPost {
		if way, err = newNativePost(j, m, box); err != nil {
			m.cancel(nil)
			return nil, err
		}
	}
	for i := range j.Callers {
		var c caller
		switch j.Kind {
		case kindStream:
			c, err = newStreamer(ctx, j, i, m)
		case kindRead:
			c, err = newReader(j, m)
		default:
			c = newCourier(way, box, i, bytes.ReplaceAll(j.Body, []byte(callerMark), []byte(number(i))))
		}
		if err != nil {
			return out, err
		}
		out = append(out, c)
	}
	return out, nil
}
