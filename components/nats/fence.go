package nats

import (
	"context"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateFence = (*state)(nil)

// A fence is a message of its own beside its key: the last token of its subject is none a key could
// have, so an item of the same key and the fence do not know each other. It is written when its
// number rises. A transaction that leaves the number as it is expects the fence's sequence to be the one
// that was seen, which the server checks in the same step as it writes: so writers of one epoch do
// not get in each other's way, and a lone write without a condition costs no more than any other.

const (
	// headerExpectedOf names the subject an expected sequence is about, if not the message's own.
	headerExpectedOf = "Nats-Expected-Last-Subject-Sequence-Subject"
	fenceToken       = ".=fence"
	// carrierToken is that of a message that carries the expectation when all messages of a batch
	// have one of their own.
	carrierToken = ".=carrier"

	fencedTries = 50
	// fencedPause is the longest pause between the first tries; later ones grow with their number.
	fencedPause = 2 * time.Millisecond
)

// seen is what was last read of a fence.
type seen struct{ seq, epoch uint64 }

// fences remembers where fences are. What is out of date the server refuses.
type fences struct {
	mu  sync.Mutex
	all map[string]seen // guarded by mu
}

// maxFences bounds what is remembered.
const maxFences = 4096

func (f *fences) get(key string) (seen, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	v, ok := f.all[key]
	return v, ok
}

func (f *fences) put(key string, v seen) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.all == nil || len(f.all) >= maxFences {
		f.all = map[string]seen{}
	}
	f.all[key] = v
}

func (f *fences) drop(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.all, key)
}

// TransactFenced applies all operations or none, if no greater number was written to the fence.
func (s *state) TransactFenced(ctx context.Context, fence string, epoch uint64, ops []block.StateOp) error {
	const op fault.Op = "nats.state.TransactFenced"
	if len(ops) >= maxBatch {
		return fault.New(op, fault.Invalid, "%d operations in one fenced transaction, at most %d are possible; split it", len(ops), maxBatch-1).With(fault.TooManyOps)
	}
	a, err := s.able(ctx, op)
	if err != nil {
		return err
	}
	if !a.atomic {
		return fault.New(op, fault.Unsupported, "bucket %s has no atomic batches; they need a server of version 2.12 or later", s.stream)
	}
	f := &fenced{s: s, op: op, fence: fence, epoch: epoch, ops: ops}
	subject, err := appendKey([]byte(s.prefix), op, fence)
	if err != nil {
		return err
	}
	f.subject = string(subject[len(s.prefix):])
	for n := range fencedTries {
		done, err := f.try(ctx)
		if done || err != nil {
			return err
		}
		// Somebody wrote between reading and committing: look again.
		s.fences.drop(fence)
		select {
		case <-time.After(rand.N(fencedPause * time.Duration(1+n))):
		case <-ctx.Done():
			return fault.Wrap(op, fault.Canceled, ctx.Err())
		}
	}
	return fault.New(op, fault.Unavailable, "fence %q: other writers were faster %d times; try again later", fence, fencedTries).WithSent(fault.SentNever)
}

// fenced is one transaction under way.
type fenced struct {
	s       *state
	op      fault.Op
	fence   string
	subject string // of the fence's key, without the bucket's prefix
	epoch   uint64
	ops     []block.StateOp
}

// try makes one attempt; done is false when somebody else wrote meanwhile.
func (f *fenced) try(ctx context.Context) (done bool, err error) {
	now, err := f.look(ctx)
	switch {
	case err != nil:
		return false, err
	case now.epoch > f.epoch:
		return false, fault.New(f.op, fault.Conflict, "fence %q is at %d, so %d may not write any more", f.fence, now.epoch, f.epoch).With(fault.Fenced).WithSent(fault.SentNever)
	case now.epoch == f.epoch && len(f.ops) == 0:
		return true, nil
	}
	msgs, conditional, err := f.s.batch(ctx, f.op, f.ops)
	if err != nil {
		return false, err
	}
	if err := f.s.check(ctx, f.op, f.ops, msgs, conditional); err != nil {
		return false, err
	}
	msgs = f.guard(msgs, now)
	refused, err := f.send(ctx, msgs)
	switch {
	case err != nil:
		return false, err
	case refused == nil:
		if now.epoch < f.epoch {
			f.s.fences.drop(f.fence) // where it is now is not known
		}
		return true, nil
	case refused.conflict():
		return false, nil
	}
	return false, refusal(f.op, "transaction", refused)
}

// look tells where the fence is. What is remembered serves only to write on: it cannot tell that
// somebody may not.
func (f *fenced) look(ctx context.Context) (seen, error) {
	if v, ok := f.s.fences.get(f.fence); ok && v.epoch == f.epoch && len(f.ops) > 0 {
		return v, nil
	}
	found, err := f.s.last(ctx, f.op, f.subject+fenceToken)
	if err != nil {
		return seen{}, err
	}
	v := seen{seq: found.seq}
	if found.live() {
		if v.epoch, err = strconv.ParseUint(string(found.value), 10, 64); err != nil {
			return seen{}, fault.New(f.op, fault.Internal, "fence %q holds %.40q, which is no number", f.fence, found.value).WithSent(fault.SentNever)
		}
	}
	f.s.fences.put(f.fence, v)
	return v, nil
}

// guard makes the messages depend on the fence, and raises it if need be.
func (f *fenced) guard(msgs []*natsgo.Msg, now seen) []*natsgo.Msg {
	expected := []string{strconv.FormatUint(now.seq, 10)}
	if now.epoch < f.epoch || now.seq == 0 {
		number := strconv.FormatUint(f.epoch, 10)
		m := natsgo.NewMsg(f.s.prefix + f.subject + fenceToken)
		m.Data = []byte(number)
		m.Header[headerExpected] = expected
		return append([]*natsgo.Msg{m}, msgs...)
	}
	var m *natsgo.Msg
	for _, free := range msgs {
		if _, taken := free.Header[headerExpected]; !taken {
			m = free
			break
		}
	}
	if m == nil {
		m = natsgo.NewMsg(f.s.prefix + f.subject + carrierToken)
		msgs = append([]*natsgo.Msg{m}, msgs...)
	}
	m.Header[headerExpected], m.Header[headerExpectedOf] = expected, []string{f.s.prefix + f.subject + fenceToken}
	return msgs
}

// send commits the messages. One alone needs no batch.
func (f *fenced) send(ctx context.Context, msgs []*natsgo.Msg) (*apiError, error) {
	if len(msgs) > 1 {
		return f.s.commit(ctx, f.op, msgs)
	}
	answers, err := f.s.ask(ctx, f.op, msgs[0])
	if err != nil {
		return nil, err
	}
	return parseAck(f.op, answers[0])
}
