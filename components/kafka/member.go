package kafka

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mecha-project/mecha/components/fault"
)

// member is a member of a consumer group, for the time of one read: a loop that polls and never
// waits for the app, a lane per partition, and a loop that commits what lanes have handled.
//
// A partition is given up only when the record that is at the app has come back, or revokePatience
// has passed; what was handled is committed before the next owner begins.
type member struct {
	*conn
	group   string
	oldest  bool
	buffer  int
	retry   *RetryConfig
	deliver func(ctx context.Context, r *kgo.Record) error
	client  *kgo.Client
	ctx     context.Context // the reader's

	// commits is held from looking at what is pending to the broker's answer. A commit that was
	// prepared before a partition was given up, and sent after it, would put its next owner back.
	commits sync.Mutex

	mu      sync.Mutex
	lanes   map[partition]*lane                  // guarded by mu
	pending map[string]map[int32]kgo.EpochOffset // guarded by mu; handled and not committed
	closing bool                                 // guarded by mu; no lane is to begin
	news    chan struct{}                        // there is something pending
	last    context.Context                      // bounds what is said to brokers at the end; ends with the member
	work    sync.WaitGroup                       // lanes and the committing loop
}

const (
	// rebalancePatience is what the group allows its members for giving partitions up. It is
	// Kafka's default.
	rebalancePatience = time.Minute
	// revokePatience leaves time to commit.
	revokePatience = 45 * time.Second
	// partingPatience bounds the last commit and the leave. A broker that is away must not keep a
	// sidecar from ending; the group then learns of it by sessionTimeout.
	partingPatience = 5 * time.Second
	// commitPause is the time between attempts to commit.
	commitPause = 500 * time.Millisecond
)

func (c *ConsumerConfig) options(m *member, topics []string) []kgo.Opt {
	balancer := kgo.RangeBalancer()
	switch c.RebalanceStrategy {
	case "sticky":
		balancer = kgo.StickyBalancer()
	case "roundrobin":
		balancer = kgo.RoundRobinBalancer()
	case "cooperative-sticky":
		balancer = kgo.CooperativeStickyBalancer()
	}
	start := kgo.NewOffset().AtEnd()
	if m.oldest {
		start = kgo.NewOffset().AtStart()
	}
	return []kgo.Opt{
		kgo.ConsumerGroup(m.group), kgo.ConsumeTopics(topics...), kgo.Balancers(balancer), kgo.SessionTimeout(c.SessionTimeout),
		kgo.HeartbeatInterval(c.HeartbeatInterval), kgo.RebalanceTimeout(rebalancePatience),
		kgo.ConsumeStartOffset(start), kgo.AdjustFetchOffsetsFn(m.begin),
		// An offset that is gone: everything that is still there comes.
		kgo.ConsumeResetOffset(kgo.RewindOffset(time.Minute)),
		kgo.FetchMinBytes(int32(c.FetchMin)), kgo.FetchMaxPartitionBytes(int32(c.FetchDefault)),
		kgo.FetchMaxBytes(max(16<<20, int32(c.FetchDefault))), kgo.FetchMaxWait(500 * time.Millisecond),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll(),
		kgo.OnPartitionsRevoked(m.revoked), kgo.OnPartitionsLost(m.lost),
	}
}

// consume is a member's life: it ends with ctx, or when the group cannot be read.
func (n *conn) consume(ctx context.Context, op fault.Op, c *ConsumerConfig, group string, topics []string, deliver func(context.Context, *kgo.Record) error) error {
	m := &member{conn: n, group: group, oldest: c.InitialOffset == offsetOldest, buffer: max(c.BufferSize, 1), retry: &c.Retry, deliver: deliver,
		ctx: ctx, lanes: map[partition]*lane{}, pending: map[string]map[int32]kgo.EpochOffset{}, news: make(chan struct{}, 1)}
	var end context.CancelFunc
	m.last, end = context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	client, err := n.client(c.options(m, topics)...)
	if err != nil {
		return err
	}
	m.client = client
	stopped := make(chan struct{})
	m.work.Go(func() { m.commitLoop(stopped) })
	err = m.poll(op)
	client.AllowRebalance()
	m.halt()
	close(stopped)
	m.work.Wait()
	parting := time.AfterFunc(partingPatience, end)
	defer parting.Stop()
	_ = m.commit(m.last) // what is not committed comes again
	_ = client.LeaveGroupContext(m.last)
	client.CloseAllowingRebalance()
	return err
}

// poll hands records to lanes until the member is to end. It never waits for a lane.
func (m *member) poll(op fault.Op) error {
	for {
		fetches := m.client.PollRecords(m.ctx, 0)
		if m.ctx.Err() != nil {
			return ended(op, m.where(), m.ctx.Err(), false)
		}
		var fatal error
		fetches.EachError(func(topic string, p int32, err error) {
			if m.hopeless(err) {
				fatal = err
				return
			}
			level := slog.LevelWarn
			if away := (net.Error)(nil); errors.As(err, &away) {
				level = slog.LevelDebug // lost connections are told once, by health
			}
			m.log.Log(m.ctx, level, "reading from Kafka is disturbed", "topic", topic, "partition", p, "error", err)
		})
		if fatal != nil {
			return m.explain(op, fatal, false)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) {
			if len(p.Records) > 0 {
				m.put(partition{p.Topic, p.Partition}, p.Records)
			}
		})
		m.client.AllowRebalance()
	}
}

// hopeless tells an error after which reading cannot go on by itself.
func (m *member) hopeless(err error) bool {
	var answer *kerr.Error
	var gap *kgo.ErrDataLoss
	var large *kgo.ErrDecompressTooLarge
	switch {
	case errors.As(err, &gap):
		return false // told, and reading goes on from what there is
	case errors.Is(err, kgo.ErrClientClosed), errors.As(err, &large):
		return true
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID):
		return false // it may be made yet
	case errors.Is(err, kerr.UnknownMemberID), errors.Is(err, kerr.IllegalGeneration), errors.Is(err, kerr.RebalanceInProgress):
		return false // the group went on without us; the client joins again
	}
	return errors.As(err, &answer) && !answer.Retriable
}

// put adds records to their lane, which begins with its first.
func (m *member) put(at partition, records []*kgo.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		return
	}
	l := m.lanes[at]
	if l == nil || l.stopped {
		before := l
		l = &lane{m: m, at: at, stop: make(chan struct{}), done: make(chan struct{}), news: make(chan struct{}, 1), before: before}
		l.ctx, l.cut = context.WithCancel(m.ctx)
		m.lanes[at] = l
		m.work.Go(l.run)
	}
	for _, r := range records {
		l.bytes += size(r)
	}
	l.queue = append(l.queue, records...)
	m.throttle(l)
	select {
	case l.news <- struct{}{}:
	default:
	}
}

// throttle stops or resumes fetching of a lane's partition. mu is held.
func (m *member) throttle(l *lane) {
	full := len(l.queue) >= m.buffer || l.bytes >= laneBytes
	// Fetching begins again before the lane is empty, early enough to be done by then.
	spare := len(l.queue) <= l.mark && l.bytes <= laneBytes
	switch {
	case !l.paused && full:
		l.paused, l.mark = true, len(l.queue)/2
		m.client.PauseFetchPartitions(map[string][]int32{l.at.topic: {l.at.id}})
	case l.paused && spare:
		l.paused = false
		m.client.ResumeFetchPartitions(map[string][]int32{l.at.topic: {l.at.id}})
	}
}

// handled notes that the app has handled a record, and all before it in its partition.
func (m *member) handled(l *lane, r *kgo.Record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.lost {
		return // the next owner has begun; it will see the record too
	}
	if m.pending[r.Topic] == nil {
		m.pending[r.Topic] = map[int32]kgo.EpochOffset{}
	}
	m.pending[r.Topic][r.Partition] = kgo.EpochOffset{Epoch: r.LeaderEpoch, Offset: r.Offset + 1}
	select {
	case m.news <- struct{}{}:
	default:
	}
}

// commitLoop commits whenever there is something, and what has come meanwhile with the next.
func (m *member) commitLoop(stopped chan struct{}) {
	for {
		select {
		case <-m.news:
		case <-stopped:
			return
		}
		for m.commit(m.last) != nil {
			t := time.NewTimer(commitPause)
			select {
			case <-t.C:
			case <-stopped:
				t.Stop()
				return
			}
		}
	}
}

// commit commits what is pending, once. What fails stays pending.
func (m *member) commit(ctx context.Context) error {
	m.commits.Lock()
	defer m.commits.Unlock()
	m.mu.Lock()
	what := make(map[string]map[int32]kgo.EpochOffset, len(m.pending))
	for topic, parts := range m.pending {
		what[topic] = make(map[int32]kgo.EpochOffset, len(parts))
		for p, o := range parts {
			what[topic][p] = o
		}
	}
	m.mu.Unlock()
	if len(what) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, partingPatience)
	defer cancel()
	return m.send(ctx, what)
}

// send commits offsets and takes those that were committed off what is pending.
func (m *member) send(ctx context.Context, what map[string]map[int32]kgo.EpochOffset) (failed error) {
	m.client.CommitOffsetsSync(ctx, what, func(_ *kgo.Client, _ *kmsg.OffsetCommitRequest, resp *kmsg.OffsetCommitResponse, err error) {
		if err != nil {
			failed = err
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		for _, t := range resp.Topics {
			for _, p := range t.Partitions {
				if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
					failed = err
					continue
				}
				if m.pending[t.Topic][p.Partition] == what[t.Topic][p.Partition] {
					m.forget(partition{t.Topic, p.Partition})
				}
			}
		}
	})
	if failed != nil {
		m.log.Debug("offsets could not be committed", "group", m.group, "error", failed)
	}
	return failed
}

// forget drops what is pending of a partition. mu is held.
func (m *member) forget(at partition) {
	delete(m.pending[at.topic], at.id)
	if len(m.pending[at.topic]) == 0 {
		delete(m.pending, at.topic)
	}
}

// revoked gives partitions up in order: no further record begins, the one at the app is waited
// for, and what was handled is committed.
func (m *member) revoked(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	lanes := m.stop(parts, false)
	late := time.NewTimer(revokePatience)
	defer late.Stop()
	for _, l := range lanes {
		select {
		case <-l.done:
			continue
		case <-late.C:
			late.Reset(0) // for the others
		}
		select {
		case <-l.done:
		default:
			m.log.Warn("the app has not handled a record in time; its partition goes to another member, which will give it to its app again",
				"topic", l.at.topic, "partition", l.at.id)
		}
	}
	_ = m.commit(m.last)
	m.abandon(lanes)
}

// lost is told when the group has given this member's partitions away already.
func (m *member) lost(_ context.Context, _ *kgo.Client, parts map[string][]int32) {
	m.abandon(m.stop(parts, true))
}

// stop ends the lanes of partitions after the record they are at.
func (m *member) stop(parts map[string][]int32, lost bool) (lanes []*lane) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for topic, ids := range parts {
		for _, id := range ids {
			if l := m.lanes[partition{topic, id}]; l != nil {
				l.lost = l.lost || lost
				m.end(l)
				lanes = append(lanes, l)
			}
		}
	}
	return lanes
}

// end lets a lane begin no further record. mu is held.
func (m *member) end(l *lane) {
	if !l.stopped {
		l.stopped = true
		close(l.stop)
		l.queue, l.bytes = nil, 0
	}
	if l.paused {
		l.paused = false
		m.client.ResumeFetchPartitions(map[string][]int32{l.at.topic: {l.at.id}})
	}
}

// abandon forgets what lanes have handled from now on, and cuts what is still at the app short. A
// lane that is over is dropped; one that is not keeps its successor waiting.
func (m *member) abandon(lanes []*lane) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range lanes {
		l.lost = true
		m.forget(l.at)
		l.cut()
		select {
		case <-l.done:
			if m.lanes[l.at] == l {
				delete(m.lanes, l.at)
			}
		default:
		}
	}
}

// halt ends all lanes, each after the record it is at.
func (m *member) halt() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closing = true
	for _, l := range m.lanes {
		m.end(l)
	}
}

// begin decides where partitions start that the group has no offset of, and commits that, so that
// they start there again when the app handles nothing before this member ends. Without it, a record
// that failed would be passed over by a group that starts at the newest.
//
// newest is for topics that are new to the group. A partition that was added to a topic it knows
// starts with its first record.
func (m *member) begin(ctx context.Context, offsets map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	if m.oldest {
		return offsets, nil
	}
	fresh := map[string][]int32{}
	for topic, parts := range offsets {
		for p, o := range parts {
			if o.EpochOffset().Offset < 0 {
				fresh[topic] = append(fresh[topic], p)
			}
		}
	}
	if len(fresh) == 0 {
		return offsets, nil
	}
	admin := kadm.NewClient(m.client)
	known, err := admin.FetchOffsets(ctx, m.group)
	if err != nil {
		return nil, err
	}
	topics := make([]string, 0, len(fresh))
	for topic := range fresh {
		topics = append(topics, topic)
	}
	first, err := admin.ListStartOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	end, err := admin.ListEndOffsets(ctx, topics...)
	if err != nil {
		return nil, err
	}
	start := map[string]map[int32]kgo.EpochOffset{}
	for topic, parts := range fresh {
		from := end
		if len(known[topic]) > 0 {
			from = first
		}
		start[topic] = map[int32]kgo.EpochOffset{}
		for _, p := range parts {
			o, ok := from.Lookup(topic, p)
			if !ok || o.Err != nil {
				return nil, errors.Join(errNoOffset, o.Err)
			}
			start[topic][p] = kgo.EpochOffset{Epoch: -1, Offset: o.Offset}
			offsets[topic][p] = kgo.NewOffset().At(o.Offset)
		}
	}
	if err := m.send(ctx, start); err != nil {
		return nil, err
	}
	return offsets, nil
}

var errNoOffset = errors.New("the brokers do not tell where a partition begins and ends")
