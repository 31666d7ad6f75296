package pluggable

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/mecha-project/mecha/components/fault"
)

// Pauses between a stream that ended and the next, and the time that answers have to reach the
// component when nobody wants more from it.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
	farewell   = 300 * time.Millisecond
	greeting   = 30 * time.Second // for Init, which others wait for too
)

// following reads a stream of a component for as long as somebody wants it, over every stream that
// ends. Q are answers (and the first message), R what the component sends.
type following[Q, R any] struct {
	*instance
	op    fault.Op
	open  func(ctx context.Context, s *session) (grpc.BidiStreamingClient[Q, R], error)
	first *Q // nil: none
	// handle takes one message; answer is to be called once, at any time, from any goroutine.
	// nil as an answer says nothing to the component.
	handle func(r *R, answer func(*Q))
	slots  chan struct{} // as many as messages may be unanswered
}

// run follows until ctx ends or the component refuses for good.
func (f *following[Q, R]) run(ctx context.Context) error {
	pause, told := firstPause, false
	for {
		any, err := f.once(ctx)
		if ended := ctx.Err(); ended != nil {
			return fault.Wrap(f.op, fault.Canceled, ended)
		}
		if f.closed() {
			return f.gone(f.op, errOver)
		}
		switch fault.Of(err) {
		case fault.Unsupported, fault.Invalid, fault.Denied, fault.Unauthenticated, fault.NotFound:
			return err
		}
		if any {
			pause, told = firstPause, false
		}
		if !told {
			told = true
			f.env.Log.Warn(fmt.Sprintf("a stream of the component ended, and is opened again: %v", err))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-f.over:
		}
		pause = min(2*pause, lastPause)
	}
}

// once follows one stream to its end and tells whether it brought anything.
func (f *following[Q, R]) once(ctx context.Context) (any bool, err error) {
	bounded, done := context.WithTimeout(ctx, greeting)
	s, err := f.session(bounded, f.op)
	done()
	if err != nil {
		return false, err
	}
	// Not of ctx: answers given before its end should still arrive.
	live, cancel := context.WithCancel(context.WithoutCancel(ctx))
	out := &outbox[Q]{more: make(chan struct{}, 1), free: func() { <-f.slots }}
	var running sync.WaitGroup
	stop := make(chan struct{})
	running.Go(func() {
		select {
		case <-ctx.Done():
			out.finish()
			select {
			case <-stop:
			case <-f.over:
			case <-time.After(farewell):
			}
		case <-f.over:
		case <-stop:
		}
		cancel()
	})
	defer running.Wait()
	defer cancel()
	defer close(stop)
	stream, err := f.open(live, s)
	if err == nil && f.first != nil {
		err = stream.Send(f.first)
		if err == io.EOF { // what went wrong is told by Recv
			_, err = stream.Recv()
		}
	}
	if err != nil {
		return false, f.failure(ctx, f.op, "", err, peer.Peer{})
	}
	running.Go(func() { out.send(live, stream) })
	defer out.drop()
	for {
		select {
		case f.slots <- struct{}{}:
		case <-live.Done():
			return any, live.Err()
		}
		r, err := stream.Recv()
		if err != nil {
			<-f.slots
			return any, f.failure(ctx, f.op, "", err, peer.Peer{})
		}
		if ctx.Err() != nil { // it came during the farewell, and goes back unanswered
			<-f.slots
			continue
		}
		any = true
		var once sync.Once
		f.handle(r, func(q *Q) { once.Do(func() { out.put(q) }) })
	}
}

// outbox holds answers on their way to one stream, so that who answers never waits for the
// component. Each takes its message's slot along and frees it when it has left.
type outbox[Q any] struct {
	more chan struct{}
	free func()

	mu       sync.Mutex
	queue    []*Q // guarded by mu, as all below
	finished bool // nothing comes any more; what is here leaves
	dropped  bool // nothing leaves any more
}

// put adds an answer; nil only frees the slot.
func (o *outbox[Q]) put(q *Q) {
	o.mu.Lock()
	if q == nil || o.dropped || o.finished {
		o.mu.Unlock()
		o.free()
		return
	}
	o.queue = append(o.queue, q)
	o.mu.Unlock()
	o.wake()
}

func (o *outbox[Q]) wake() {
	select {
	case o.more <- struct{}{}:
	default:
	}
}

func (o *outbox[Q]) finish() {
	o.mu.Lock()
	o.finished = true
	o.mu.Unlock()
	o.wake()
}

// drop gives up what is left. Messages without an answer go back when the stream ends.
func (o *outbox[Q]) drop() {
	o.mu.Lock()
	left := len(o.queue)
	o.queue, o.dropped = nil, true
	o.mu.Unlock()
	for range left {
		o.free()
	}
}

// send carries answers to the stream until it or live ends.
func (o *outbox[Q]) send(live context.Context, stream grpc.ClientStream) {
	for {
		o.mu.Lock()
		batch, last := o.queue, o.finished
		o.queue = nil
		o.mu.Unlock()
		for _, q := range batch {
			err := stream.SendMsg(q)
			o.free()
			if err != nil {
				o.drop()
			}
		}
		if last && len(batch) == 0 {
			_ = stream.CloseSend()
			return
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-o.more:
		case <-live.Done():
			return
		}
	}
}
