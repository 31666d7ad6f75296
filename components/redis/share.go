package redis

import (
	"context"
	"runtime"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/mecha-project/mecha/components/fault"
)

// Callers at the same time share exchanges with a server: a lane takes all commands that wait,
// sends them in one go over one connection and hands out the answers. What costs most of a small
// command is the system calls, and these are then one exchange's instead of one caller's.
//
// A lane is a goroutine that lives while commands wait, so a lone caller waits for nobody. Only
// small scripts travel this way: nobody waits behind another's megabytes, and a command whose
// caller has gone can be made harmless after its turn to be written has come.
const (
	fewLanes   = 2                     // as long as they go on
	stuck      = 20 * time.Millisecond // a lane that took nothing for so long is not waited for
	mostShared = 32                    // commands in an exchange
	smallBytes = 16 << 10              // of a command that shares
	largeReply = 64 << 10              // of an answer after which reads go alone for a while
	largeTime  = 10 * time.Second      // that while
)

// queue is what waits for a lane.
type queue struct {
	commands []*command // guarded by conn.mu
	lanes    int        // guarded by conn.mu; at work
	taken    time.Time  // guarded by conn.mu; when one of them last took commands
}

// done are channels of finished waits, to be used again.
var done = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

// shares tells whether callers share exchanges: not in a cluster, where a batch waits for the
// slowest server; not when the library repeats, which it does to the whole of a batch; and not
// without a time-out, for the lane would wait for a silent server after all callers have gone.
func (n *conn) shares() bool {
	return n.config.Type != typeCluster && !n.repeat() && n.config.ReadTimeout > 0
}

// sharable tells whether cmd may travel with others.
func (n *conn) sharable(cmd *command) bool {
	if cmd.size > smallBytes || !n.shares() {
		return false
	}
	large := n.large.Load()
	return large == 0 || time.Now().UnixNano()-large > int64(largeTime)
}

// replied notes how large an answer was: many large ones in one exchange would overrun its time.
func (n *conn) replied(bytes int) {
	if bytes > largeReply {
		n.large.Store(time.Now().UnixNano())
	}
}

// share performs cmd, with others that are under way at the same time. As with exchange, cmd is
// settled when it returns nil.
func (n *conn) share(ctx context.Context, op fault.Op, cmd *command) error {
	if err := ctx.Err(); err != nil {
		return ended(op, n.where(), err, false)
	}
	cmd.shared, cmd.done = true, done.Get().(chan struct{})
	cmd.until, cmd.bounded = ctx.Deadline()
	if err := n.enqueue(op, cmd); err != nil {
		return err
	}
	select {
	case <-cmd.done:
		done.Put(cmd.done)
		return nil
	case <-ctx.Done():
		return ended(op, n.where(), ctx.Err(), cmd.abandon()) // the channel stays with the lane
	}
}

// enqueue lets cmd wait, and sees to it that there is a lane.
func (n *conn) enqueue(op fault.Op, cmd *command) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	client, err := n.ready(op)
	if err != nil {
		return err
	}
	q := &n.queue
	q.commands = append(q.commands, cmd)
	if q.lanes >= fewLanes && (q.lanes >= n.poolSize() || time.Since(q.taken) < stuck) {
		return nil
	}
	q.lanes++
	n.calls++
	go n.lane(client)
	return nil
}

func (n *conn) poolSize() int {
	if n.config.PoolSize > 0 {
		return n.config.PoolSize
	}
	return 10 * runtime.GOMAXPROCS(0)
}

// lane performs what waits until nothing does.
func (n *conn) lane(client goredis.UniversalClient) {
	defer n.end()
	var batch []*command
	for {
		if batch = n.take(batch[:0]); len(batch) == 0 {
			return
		}
		perform(client, batch)
		for i, c := range batch {
			c.done <- struct{}{} // has room
			batch[i] = nil
		}
		runtime.Gosched() // callers that are about to ask come along
	}
}

// take moves what waits into batch; when nothing does the lane has ended.
func (n *conn) take(batch []*command) []*command {
	n.mu.Lock()
	defer n.mu.Unlock()
	q := &n.queue
	if len(q.commands) == 0 {
		q.lanes--
		return batch
	}
	q.taken = time.Now()
	k := min(len(q.commands), mostShared)
	batch = append(batch, q.commands[:k]...)
	rest := copy(q.commands, q.commands[k:])
	clear(q.commands[rest:])
	q.commands = q.commands[:rest]
	return batch
}

// perform settles the commands of a batch. Those whose callers have gone are left out.
func perform(client goredis.UniversalClient, batch []*command) {
	ctx := latest(batch)
	var p goredis.Pipeliner
	var only *command
	for _, c := range batch {
		switch {
		case c.reach.Load() == abandoned:
		case only == nil:
			only = c
		default:
			if p == nil {
				p = client.Pipeline()
				_ = p.Process(ctx, only)
			}
			_ = p.Process(ctx, c)
		}
	}
	switch {
	case p != nil:
		_, _ = p.Exec(ctx)
	case only != nil:
		_ = client.Process(ctx, only)
	}
}

// bounded is a context with a deadline for the library to look at, which does so by itself.
type bounded struct {
	context.Context
	until time.Time
}

func (b bounded) Deadline() (time.Time, bool) { return b.until, true }

// latest is a context for all of a batch: it lasts as long as its most patient caller.
func latest(batch []*command) context.Context {
	b := bounded{Context: context.Background()}
	for _, c := range batch {
		if !c.bounded {
			return b.Context
		}
		if c.until.After(b.until) {
			b.until = c.until
		}
	}
	return b
}
