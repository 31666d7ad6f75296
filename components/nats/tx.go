package nats

import (
	"context"
	"crypto/rand"
	"strconv"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// maxBatch is the server's limit of messages in one atomic batch.
const maxBatch = 1000

const (
	headerBatch       = "Nats-Batch-Id"
	headerBatchSeq    = "Nats-Batch-Sequence"
	headerBatchCommit = "Nats-Batch-Commit"
)

// MaxOps is the server's limit.
func (s *state) MaxOps() int { return maxBatch }

// Transact applies all operations or none, as one atomic batch of the stream: the server
// stages the messages and checks every expectation at the commit.
func (s *state) Transact(ctx context.Context, ops []block.StateOp) error {
	const op fault.Op = "nats.state.Transact"
	switch n := len(ops); {
	case n == 0:
		return nil
	case n == 1:
		return s.one(ctx, op, &ops[0])
	case n > maxBatch:
		return fault.New(op, fault.Invalid, "%d operations in one transaction, at most %d are possible; split it", n, maxBatch).With(fault.TooManyOps)
	}
	a, err := s.able(ctx, op)
	if err != nil {
		return err
	}
	if !a.atomic {
		return fault.New(op, fault.Unsupported, "bucket %s has no atomic batches; they need a server of version 2.12 or later", s.stream)
	}
	msgs, conditional, err := s.batch(ctx, op, ops)
	if err != nil {
		return err
	}
	for range 3 {
		if err := s.check(ctx, op, ops, msgs, conditional); err != nil {
			return err
		}
		refused, err := s.commit(ctx, op, msgs)
		if err != nil || refused == nil {
			return err
		}
		if !refused.conflict() {
			return refusal(op, "transaction", refused)
		}
		// Somebody wrote between check and commit, or the server dropped a marker: look again.
	}
	return fault.New(op, fault.Conflict, "transaction: other writers change its keys; read again")
}

// batch makes the messages, and tells which operations are conditional.
//
// The server checks an expectation against the state before the batch, so it refuses one
// after another write to the same key. What such an operation would find is known here: a
// version nobody can have read yet, or nothing.
func (s *state) batch(ctx context.Context, op fault.Op, ops []block.StateOp) (msgs []*natsgo.Msg, conditional []int, err error) {
	exists := map[string]bool{} // keys touched by earlier operations, and whether they exist then
	for i := range ops {
		o := ops[i]
		there, touched := exists[o.Key]
		switch {
		case touched && o.ETag != "":
			return nil, nil, fault.New(op, fault.Conflict, "operation %d gives an etag for key %q, which an earlier operation of the transaction has changed", i, o.Key)
		case touched && there && firstWrite(&o):
			return nil, nil, fault.New(op, fault.Conflict, "operation %d is a first write of key %q, which an earlier operation of the transaction has written", i, o.Key)
		case touched:
			o.FirstWrite = false // known to hold
		case firstWrite(&o), o.ETag != "":
			conditional = append(conditional, i)
		}
		exists[o.Key] = !o.Delete
		m, err := s.message(ctx, op, &o)
		if err != nil {
			return nil, nil, err
		}
		if m.Header == nil {
			m.Header = natsgo.Header{}
		}
		msgs = append(msgs, m)
	}
	return msgs, conditional, nil
}

// commit sends the batch.
func (s *state) commit(ctx context.Context, op fault.Op, msgs []*natsgo.Msg) (*apiError, error) {
	p, err := s.conn.acquire(ctx, op)
	if err != nil {
		return nil, err
	}
	answer, err := p.commit(ctx, op, msgs)
	if err != nil {
		return nil, err
	}
	if nobody(answer) {
		s.made.Store(nil) // the bucket was removed: the next call makes it
		return nil, fault.New(op, fault.Unavailable, "bucket %s does not answer", s.stream).WithSent(fault.SentNever)
	}
	return parseAck(op, answer)
}

// commit sends messages as one atomic batch. Only the last one asks for an answer, which is
// returned. All must have headers.
func (p *period) commit(ctx context.Context, op fault.Op, msgs []*natsgo.Msg) (*natsgo.Msg, error) {
	id := []string{rand.Text()}
	last := len(msgs) - 1
	for i, m := range msgs {
		m.Header[headerBatch] = id
		m.Header[headerBatchSeq] = []string{strconv.Itoa(i + 1)}
		if i == last {
			break
		}
		m.Reply = ""
		if err := p.nc.PublishMsg(m); err != nil {
			return nil, sendError(op, err) // the server forgets an unfinished batch
		}
	}
	msgs[last].Header[headerBatchCommit] = []string{"1"}
	answers, err := p.ask(ctx, op, msgs[last])
	if err != nil {
		return nil, err
	}
	return answers[0], nil
}

// check reads the keys of conditional operations before the batch is sent. The server would
// refuse it just as well, but stages a batch on disk, synced, before it looks: a conflict found
// here costs one exchange instead. It also learns on top of what (a marker, an expired item) a
// first write comes.
func (s *state) check(ctx context.Context, op fault.Op, ops []block.StateOp, msgs []*natsgo.Msg, conditional []int) error {
	keys := make([]string, len(conditional))
	for j, i := range conditional {
		keys[j] = ops[i].Key
	}
	found, err := s.versions(ctx, op, keys, true)
	if err != nil {
		return err
	}
	for j, i := range conditional {
		v, expected := &found[j], msgs[i].Header[headerExpected]
		switch {
		case ops[i].ETag == "" && v.live():
			return fault.New(op, fault.Conflict, "key %q exists already and the transaction first-writes it", keys[j])
		case ops[i].ETag == "":
			expected[0] = strconv.FormatUint(v.seq, 10)
		case !v.live() || v.etag() != ops[i].ETag:
			return fault.New(op, fault.Conflict, "key %q does not have etag %q; read it again", keys[j], ops[i].ETag)
		}
	}
	return nil
}
