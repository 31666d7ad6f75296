package nats

import (
	"strconv"
	"strings"
	"sync"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// watch is a watch at work: what outlives its connections.
type watch struct {
	s       *state
	prefix  string
	filter  string
	started func()
	changed func([]block.StateItem)
	endless bool          // it does not tell of items that expire
	begun   bool          // started was called
	wake    chan struct{} // has a token when there is something to take

	mu      sync.Mutex
	items   []block.StateItem // guarded by mu; what waits to be told
	at      map[string]int    // guarded by mu; where keys are in items
	size    int               // guarded by mu; of items, in bytes
	ends    ends              // guarded by mu
	err     error             // guarded by mu; why the watch has to end
	seq     uint64            // guarded by mu; all up to here was told
	known   time.Time         // guarded by mu; all up to then was told, by the server's clock
	limit   time.Duration     // guarded by mu; how old that may become
	memory  time.Duration     // guarded by mu; how long removed keys leave markers
	born    time.Time         // guarded by mu; when the stream was made
	lastSeq uint64            // guarded by mu; of the stream when it was last looked at
	held    uint64            // guarded by mu; messages it had then

	serverTime time.Time // guarded by mu; the server's clock …
	localTime  time.Time // guarded by mu; … at this local time
}

// take is what is to be told, or why there will be no more.
func (w *watch) take() ([]block.StateItem, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	items := w.items
	w.items, w.at, w.size = nil, nil, 0
	if w.err != nil {
		return nil, w.err
	}
	return items, nil
}

func (w *watch) place() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seq
}

// pace is how often to look, a few times in what a watch may not know of.
func (w *watch) pace() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return min(watchTick, w.limit/3)
}

func (w *watch) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// fail ends the watch.
func (r *round) fail(err error) {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	if !r.ended {
		r.failed(err)
	}
}

// failed is fail; w.mu is held.
func (r *round) failed(err error) {
	if r.w.err == nil {
		r.w.err = err
	}
	r.w.signal()
}

// again asks for another consumer; w.mu is held.
func (r *round) again() {
	if !r.ended {
		r.ended = true
		close(r.over)
	}
}

// now is the server's time, about: never later than it is. w.mu is held.
func (w *watch) now() time.Time { return w.serverTime.Add(time.Since(w.localTime)) }

// late tells that markers may have been dropped unseen.
func (w *watch) late() *fault.Error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.overdue()
}

// overdue is late; w.mu is held.
func (w *watch) overdue() *fault.Error {
	if age := w.now().Sub(w.known); age > w.limit {
		return missed("of the last %v nothing is known, and a removed key is remembered for %v", age.Round(time.Second), w.memory)
	}
	return nil
}

// resume begins a round. The first one takes what it finds as given; a later one makes sure that
// nothing is missing between it and the one before.
func (w *watch) resume(made *jetstream.ConsumerInfo, stream *jetstream.StreamInfo) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serverTime, w.localTime = made.TimeStamp, time.Now()
	state := &stream.State
	switch {
	case !w.begun:
		w.seq, w.known, w.born = made.Delivered.Stream, made.TimeStamp, stream.Created
		w.memory = w.s.memory
		w.limit = w.memory - min(watchSlack, w.memory/2)
	case !stream.Created.Equal(w.born):
		return missed("bucket %s was made anew", w.s.stream)
	case state.LastSeq < w.seq:
		return missed("bucket %s was set back", w.s.stream)
	case state.FirstSeq > w.lastSeq && w.held > 0:
		// All it had is gone, overwritten or not.
		return missed("bucket %s was emptied, or all of it overwritten, while the connection was lost", w.s.stream)
	}
	if late := w.overdue(); late != nil {
		return late
	}
	w.lastSeq, w.held = state.LastSeq, state.Msgs
	return nil
}

// checked takes the answers to a tick.
func (r *round) checked(info *jetstream.ConsumerInfo, stream *jetstream.StreamInfo, err error) {
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.ended {
		return
	}
	if late := w.overdue(); late != nil {
		r.failed(late)
		return
	}
	if err != nil { // the consumer is gone, say, or the server of a cluster that had it
		r.again()
		return
	}
	w.serverTime, w.localTime = info.TimeStamp, time.Now()
	w.lastSeq, w.held = stream.State.LastSeq, stream.State.Msgs
	if info.NumPending == 0 {
		r.sentCount, r.sentTime = info.Delivered.Consumer, info.TimeStamp
		r.settle()
	}
}

// settle notes what a tick said once all it speaks of has come. w.mu is held.
func (r *round) settle() {
	if r.count >= r.sentCount && r.sentTime.After(r.w.known) {
		r.w.known = r.sentTime
	}
}

// hear takes what comes to the consumer's inbox.
func (r *round) hear(m *natsgo.Msg) {
	<-r.open
	w := r.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.ended || w.err != nil {
		return
	}
	if status := statusOf(m); status != "" {
		r.status(m, status)
		return
	}
	meta, err := m.Metadata()
	if err != nil {
		return // not the consumer's
	}
	r.count++
	if meta.Sequence.Consumer != r.count { // one got lost on the way
		r.again()
		return
	}
	if late := w.overdue(); late != nil {
		r.failed(late)
		return
	}
	w.seq = meta.Sequence.Stream
	if meta.Timestamp.After(w.known) {
		w.known = meta.Timestamp
	}
	r.settle()
	key := w.s.keyOf(m.Subject)
	if key == nil || !strings.HasPrefix(*key, w.prefix) {
		return
	}
	v := version{seq: meta.Sequence.Stream, value: m.Data}
	v.read(m.Header)
	if !w.endless {
		w.ends.note(*key, &v)
	}
	w.add(v.item(*key))
	if len(w.items) > mostWaiting || w.size > mostWaitingBytes {
		r.failed(missed("%d keys with %d bytes wait to be told, and no more may", len(w.items), w.size))
		return
	}
	w.signal()
}

// add lets an item wait, in place of an earlier one of its key. w.mu is held.
func (w *watch) add(item block.StateItem) {
	w.size += len(item.Key) + len(item.Value)
	if i, waits := w.at[item.Key]; waits {
		w.size -= len(item.Key) + len(w.items[i].Value)
		w.items[i] = item
		return
	}
	if w.at == nil {
		w.at = map[string]int{}
	}
	w.at[item.Key] = len(w.items)
	w.items = append(w.items, item)
}

// status handles the server's word on the consumer. w.mu is held.
func (r *round) status(m *natsgo.Msg, status string) {
	switch {
	case status != "100": // the consumer is gone
		r.again()
	case m.Reply != "": // flow control: how fast we take
		_ = m.Respond(nil) // fails when the connection is gone
	default: // a heartbeat
		if stalled := m.Header.Get("Nats-Consumer-Stalled"); stalled != "" {
			_ = r.p.nc.Publish(stalled, nil) // as above
		}
		if n, err := strconv.ParseUint(m.Header.Get("Nats-Last-Consumer"), 10, 64); err == nil && n > r.count {
			r.again()
		}
	}
}
