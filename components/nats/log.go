package nats

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

var (
	_ block.Log       = (*pubsub)(nil)
	_ block.LogAtomic = (*pubsub)(nil)
)

// As a log, a component has two streams. One holds the records of all topics: a partition is a
// subject, a position the sequence in the stream, so positions of one partition have gaps. The
// other holds the ledger (ledger.go). Readers are consumers of the first one (logread.go).
//
// A delayed record is a message under a subject of its own, which the server publishes to the
// partition when its time has come, and then removes. Readers name the partition's subject
// exactly and never meet it.

// logStreams are the streams of a log.
type logStreams struct {
	records string // the stream of records
	prefix  string // of the subjects in it, with the final dot
	entries string // the ledger's stream
	keys    string // prefix of the subjects in it, with the final dot

	making chan struct{} // has a token while somebody looks after the streams
	made   atomic.Pointer[madeStreams]

	idle time.Duration // after which readers park
	mu   sync.Mutex
	lots map[lotName]*parkLot // guarded by mu
}

// madeStreams is what is known of the streams since the connection was last made.
type madeStreams struct {
	p                *period
	born             time.Time // when the stream of records was made
	records, entries bool      // more than one server keeps it, so only its leader knows all of it
}

const (
	// maxEntry is a ledger's limit on the embedded node. A server may allow no more than 1 MiB
	// with headers.
	maxEntry       = 1 << 20
	maxEntryRemote = 1<<20 - 64<<10
	// headersRoom is what is left to headers of a record of the largest size.
	headersRoom = 64 << 10

	// mostReaders bounds the readers of a stream; where it has no bound, servers allow 1000.
	mostReaders = 1_000_000

	headerSchedule       = "Nats-Schedule"
	headerScheduleTarget = "Nats-Schedule-Target"
	headerScheduleTTL    = "Nats-Schedule-TTL"
	headerMarker         = "Nats-Marker-Reason"
)

func newLogStreams(name string) *logStreams {
	return &logStreams{
		records: "MECHA_LOG_" + name, prefix: "mecha.log." + name + ".",
		entries: "MECHA_LEDGER_" + name, keys: "mecha.ledger." + name + ".",
		making: make(chan struct{}, 1), idle: parkAfter,
	}
}

// LogFeatures tell what the broker promises.
func (b *pubsub) LogFeatures() block.LogFeatures {
	f := block.LogFeatures{Partitions: b.c.Partitions, Dedup: b.c.DedupWindow, Delay: true, TTL: true, Atomic: true,
		MaxRecord: b.maxRecord, MaxEntry: maxEntryRemote, SessionTTL: b.c.SessionTTL}
	if b.maxRecord > 0 {
		f.MaxEntry = maxEntry
	}
	return f
}

// streams makes the streams unless they exist, and tells what they are.
func (b *pubsub) streams(ctx context.Context, op fault.Op, p *period) (*madeStreams, error) {
	l := b.log
	if s := l.made.Load(); s != nil && s.p == p {
		return s, nil
	}
	select {
	case l.making <- struct{}{}:
		defer func() { <-l.making }()
	case <-p.over:
		return nil, overError(op)
	case <-ctx.Done():
		return nil, fault.Wrap(op, fault.Canceled, ctx.Err())
	}
	if s := l.made.Load(); s != nil && s.p == p { // somebody did it meanwhile
		return s, nil
	}
	// The client library's own requests do not end with the connection.
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-p.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() { cancel(); <-ended }()
	records, err := b.makeRecords(ctx, op, p)
	var entries *jetstream.StreamInfo
	if err == nil {
		entries, err = b.makeLedger(ctx, op, p)
	}
	if err != nil {
		select {
		case <-p.over:
			return nil, overError(op)
		default:
			return nil, err
		}
	}
	s := &madeStreams{p: p, born: records.Created, records: records.Config.Replicas > 1, entries: entries.Config.Replicas > 1}
	l.made.Store(s)
	return s, nil
}

func overError(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "the connection was lost meanwhile").WithSent(fault.SentNever)
}

func (b *pubsub) makeRecords(ctx context.Context, op fault.Op, p *period) (*jetstream.StreamInfo, error) {
	want := jetstream.StreamConfig{
		Name: b.log.records, Description: "records of Mecha", Subjects: []string{b.log.prefix + "*.*", b.log.prefix + "*.*.at.*"},
		Retention: jetstream.LimitsPolicy, Discard: jetstream.DiscardOld, MaxAge: b.c.MaxAge, MaxBytes: b.c.MaxBytes.Int64(),
		Duplicates: b.c.DedupWindow, Storage: jetstream.FileStorage, Replicas: b.replicas,
		MaxConsumers: mostReaders, AllowDirect: true, AllowMsgTTL: true, AllowMsgSchedules: true, AllowAtomicPublish: true,
	}
	fit := func(have *jetstream.StreamConfig) bool {
		fine := have.AllowDirect && have.AllowMsgTTL && have.AllowMsgSchedules && have.AllowAtomicPublish
		have.AllowDirect, have.AllowMsgTTL, have.AllowMsgSchedules, have.AllowAtomicPublish = true, true, true, true
		for _, s := range want.Subjects {
			if !slices.Contains(have.Subjects, s) {
				have.Subjects, fine = append(have.Subjects, s), false
			}
		}
		return fine
	}
	info, err := makeStream(ctx, p, want, fit)
	if api, is := errors.AsType[*jetstream.APIError](err); is && api.ErrorCode == codeMaxConsumers {
		want.MaxConsumers = 0 // the account has a limit, which then is the stream's
		info, err = makeStream(ctx, p, want, fit)
	}
	if err != nil {
		return nil, adminError(op, "stream "+want.Name, err)
	}
	have := &info.Config
	if lacking := lacks(
		need{have.AllowMsgSchedules, "message schedules"}, need{have.AllowMsgTTL, "expiry of messages"},
		need{have.AllowAtomicPublish, "atomic batches"}, need{have.AllowDirect, "direct reads"}); lacking != "" {
		return nil, fault.New(op, fault.Unsupported, "stream %s has no %s; that needs a server of version 2.12 or later, and a stream that allows it", want.Name, lacking).WithSent(fault.SentNever)
	}
	if have.Retention != jetstream.LimitsPolicy {
		return nil, fault.New(op, fault.Unsupported, "stream %s gives up messages when they are consumed (retention %v); use another stream, or one of retention limits", want.Name, have.Retention).WithSent(fault.SentNever)
	}
	return info, nil
}

// need is what a stream has to offer.
type need struct {
	there bool
	what  string
}

// lacks is the first need that is not met.
func lacks(needs ...need) string {
	for _, n := range needs {
		if !n.there {
			return n.what
		}
	}
	return ""
}

// exchange sends requests once the streams exist. If nobody took the last of them, because a
// stream was removed meanwhile, it is made anew and they are sent again, which keeps their order.
// Answers are nil where there is none; the error says why.
func (b *pubsub) exchange(ctx context.Context, op fault.Op, msgs ...*natsgo.Msg) ([]*natsgo.Msg, error) {
	answers := make([]*natsgo.Msg, len(msgs))
	if len(msgs) == 0 {
		return answers, nil
	}
	p, err := b.conn.acquire(ctx, op)
	if err != nil {
		return answers, err
	}
	s, err := b.streams(ctx, op, p)
	if err != nil {
		return answers, err
	}
	answers, err = p.ask(ctx, op, msgs...)
	first := firstNobody(answers)
	if first < 0 {
		return answers, err
	}
	b.log.made.CompareAndSwap(s, nil)
	if last := !slices.ContainsFunc(answers[first:], func(m *natsgo.Msg) bool { return m == nil || !nobody(m) }); last && err == nil {
		if _, err = b.streams(ctx, op, p); err == nil {
			var again []*natsgo.Msg
			again, err = p.ask(ctx, op, msgs[first:]...)
			copy(answers[first:], again)
		}
	}
	for i, m := range answers {
		if m != nil && nobody(m) {
			answers[i] = nil
			if err == nil {
				err = fault.New(op, fault.Unavailable, "the streams %s and %s do not answer", b.log.records, b.log.entries).WithSent(fault.SentNever)
			}
		}
	}
	return answers, err
}

// Append adds the records in order, pipelined.
func (b *pubsub) Append(ctx context.Context, recs []block.LogRecord) []block.AppendResult {
	const op fault.Op = "nats.pubsub.Append"
	out := make([]block.AppendResult, len(recs))
	msgs := make([]*natsgo.Msg, 0, len(recs))
	place := make([]int, 0, len(recs)) // of msgs in recs
	var doubtful []int
	now := time.Now()
	for i := range recs {
		m, err := b.record(op, &recs[i], now)
		if err != nil {
			out[i].Err = err
			continue
		}
		msgs, place = append(msgs, m), append(place, i)
	}
	answers, lost := b.exchange(ctx, op, msgs...)
	for j, i := range place {
		if answers[j] == nil {
			out[i].Err = lost
			continue
		}
		ack, err := readAck(op, answers[j])
		switch {
		case err != nil:
			out[i].Err = err
		case ack.Error != nil:
			out[i].Err = refusal(op, "topic "+recs[i].Topic, ack.Error)
		case recs[i].DeliverAt.After(now): // what has a sequence is the order, not the record
			out[i].Duplicate = ack.Duplicate
		default:
			out[i] = block.AppendResult{Position: ack.Seq, Duplicate: ack.Duplicate}
			if ack.Duplicate {
				doubtful = append(doubtful, i)
			}
		}
	}
	if len(doubtful) > 0 {
		b.confirm(ctx, op, recs, out, doubtful)
	}
	return out
}

// confirm takes back positions of duplicates which are none: the first one may have been delayed, and
// the server remembers where its order was.
func (b *pubsub) confirm(ctx context.Context, op fault.Op, recs []block.LogRecord, out []block.AppendResult, doubtful []int) {
	asks := make([]messageRequest, len(doubtful))
	for j, i := range doubtful {
		asks[j].Seq = out[i].Position
	}
	found, err := b.find(ctx, op, asks)
	for j, i := range doubtful {
		subject, bad := b.subject(op, recs[i].Topic, recs[i].Partition)
		if err != nil || bad != nil || found[j].subject != subject {
			out[i].Position = 0 // not known
		}
	}
}

// AppendAtomic adds all records or none, as one atomic batch of the stream.
func (b *pubsub) AppendAtomic(ctx context.Context, recs []block.LogRecord) ([]block.AppendResult, error) {
	const op fault.Op = "nats.pubsub.AppendAtomic"
	switch {
	case len(recs) == 0:
		return nil, nil
	case len(recs) > maxBatch:
		return nil, fault.New(op, fault.TooLarge, "%d records in one batch, at most %d are possible; split it", len(recs), maxBatch).With(fault.TooManyOps).WithSent(fault.SentNever)
	}
	msgs := make([]*natsgo.Msg, len(recs))
	for i := range recs {
		if !recs[i].DeliverAt.IsZero() {
			return nil, fault.New(op, fault.Unsupported, "record %d is delayed, which cannot be in an atomic batch", i).WithSent(fault.SentNever)
		}
		m, err := b.record(op, &recs[i], time.Time{})
		if err != nil {
			return nil, err
		}
		if m.Header == nil {
			m.Header = natsgo.Header{}
		}
		msgs[i] = m
	}
	for again := false; ; again = true {
		p, err := b.conn.acquire(ctx, op)
		if err != nil {
			return nil, err
		}
		s, err := b.streams(ctx, op, p)
		if err != nil {
			return nil, err
		}
		if p.tooLarge(msgs) {
			return nil, fault.New(op, fault.TooLarge, "a record is larger than the server's %d bytes", p.nc.MaxPayload()).WithSent(fault.SentNever)
		}
		answer, err := p.commit(ctx, op, msgs)
		if err != nil {
			return nil, err
		}
		if nobody(answer) {
			b.log.made.CompareAndSwap(s, nil)
			if again {
				return nil, fault.New(op, fault.Unavailable, "stream %s does not answer", b.log.records).WithSent(fault.SentNever)
			}
			continue
		}
		ack, err := readAck(op, answer)
		switch {
		case err != nil:
			return nil, err
		case ack.Error != nil:
			return nil, refusal(op, "batch", ack.Error)
		}
		out := make([]block.AppendResult, len(recs))
		for i := range out { // a batch is stored without anything between
			out[i].Position = ack.Seq - uint64(len(recs)-1-i)
		}
		return out, nil
	}
}

// tooLarge tells whether the library would refuse one of the messages, which leaves a batch
// unfinished.
func (p *period) tooLarge(msgs []*natsgo.Msg) bool {
	limit := p.nc.MaxPayload() - 256 // the headers of batches
	return slices.ContainsFunc(msgs, func(m *natsgo.Msg) bool { return int64(m.Size()-len(m.Subject)) > limit })
}

// subject is that of a partition.
func (b *pubsub) subject(op fault.Op, topic string, partition int32) (string, error) {
	token, err := topicToken(op, topic)
	if err != nil {
		return "", err
	}
	if partition < 0 {
		return "", fault.New(op, fault.Invalid, "partition %d of topic %s cannot be; they are numbered from 0", partition, topic).WithSent(fault.SentNever)
	}
	return b.log.prefix + token + "." + strconv.Itoa(int(partition)), nil
}

// record makes the message of a record.
func (b *pubsub) record(op fault.Op, r *block.LogRecord, now time.Time) (*natsgo.Msg, error) {
	subject, err := b.subject(op, r.Topic, r.Partition)
	if err != nil {
		return nil, err
	}
	if b.maxRecord > 0 && len(r.Data) > b.maxRecord {
		return nil, fault.New(op, fault.TooLarge, "a record of %d bytes for topic %s, at most %d are possible", len(r.Data), r.Topic, b.maxRecord).WithSent(fault.SentNever)
	}
	m := &natsgo.Msg{Subject: subject, Data: r.Data}
	delayed := r.DeliverAt.After(now) && !r.DeliverAt.IsZero()
	if len(r.Metadata) == 0 && r.Key == "" && r.ID == "" && r.TTL <= 0 && !delayed {
		return m, nil
	}
	h := make(natsgo.Header, len(r.Metadata)+4)
	setMetadata(h, r.Metadata)
	if r.Key != "" {
		h[headerKey] = []string{headerText(r.Key, false)}
	}
	if r.ID != "" {
		// The server compares ids over the whole stream.
		h[headerMsgID] = []string{shortHash(r.Topic, strconv.Itoa(int(r.Partition)), r.ID)}
		h[headerID] = []string{headerText(r.ID, false)}
	}
	if r.TTL > 0 {
		h[headerTTL] = []string{wholeSeconds(r.TTL)}
	}
	if delayed {
		m.Subject = subject + ".at." + rand.Text()
		h[headerSchedule] = []string{"@at " + r.DeliverAt.UTC().Format(time.RFC3339Nano)}
		h[headerScheduleTarget] = []string{subject}
		if ttl, is := h[headerTTL]; is { // of the record; the order itself outlives the stream's maxAge
			h[headerScheduleTTL] = ttl
		}
		h[headerTTL] = []string{"never"}
	}
	m.Header = h
	return m, nil
}

// wholeSeconds is a duration as the server counts expiry.
func wholeSeconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10) + "s"
}

// Bounds tells where the first and last records of partitions are.
func (b *pubsub) Bounds(ctx context.Context, topic string, partitions []int32) ([]block.LogBounds, error) {
	const op fault.Op = "nats.pubsub.Bounds"
	subjects := make([]string, len(partitions))
	for i, n := range partitions {
		var err error
		if subjects[i], err = b.subject(op, topic, n); err != nil {
			return nil, err
		}
	}
	// What the stream ends at is asked for first: an empty partition has its end there, and what
	// it gets later comes behind.
	counts, end, err := b.counts(ctx, op, topic)
	if err != nil {
		return nil, err
	}
	var asks []messageRequest
	for _, s := range subjects {
		if counts[s] > 0 {
			asks = append(asks, messageRequest{Seq: 1, NextFor: s}, messageRequest{LastFor: s})
		}
	}
	found, err := b.find(ctx, op, asks)
	if err != nil {
		return nil, err
	}
	out := make([]block.LogBounds, len(partitions))
	for i, s := range subjects {
		out[i] = block.LogBounds{First: end, Next: end}
		if counts[s] == 0 {
			continue
		}
		first, last := found[0].seq, found[1].seq
		found = found[2:]
		switch {
		case last == 0: // all went meanwhile
		case first == 0:
			out[i] = block.LogBounds{First: last, Next: last + 1}
		default:
			out[i] = block.LogBounds{First: first, Next: last + 1}
		}
	}
	return out, nil
}

// counts tells how many records a topic's partitions hold, by subject, and the position that
// follows the last one of the stream.
func (b *pubsub) counts(ctx context.Context, op fault.Op, topic string) (map[string]uint64, uint64, error) {
	token, err := topicToken(op, topic)
	if err != nil {
		return nil, 0, err
	}
	body, err := json.Marshal(map[string]string{"subjects_filter": b.log.prefix + token + ".*"})
	if err != nil {
		return nil, 0, fault.Wrap(op, fault.Internal, err)
	}
	p, err := b.conn.acquire(ctx, op)
	if err != nil {
		return nil, 0, err
	}
	for again := false; ; again = true {
		s, err := b.streams(ctx, op, p)
		if err != nil {
			return nil, 0, err
		}
		answers, err := p.ask(ctx, op, &natsgo.Msg{Subject: "$JS.API.STREAM.INFO." + b.log.records, Data: body})
		if err != nil {
			return nil, 0, err
		}
		var info struct {
			Error *apiError `json:"error"`
			State struct {
				Last     uint64            `json:"last_seq"`
				Subjects map[string]uint64 `json:"subjects"`
			} `json:"state"`
		}
		switch err := json.Unmarshal(answers[0].Data, &info); {
		case err != nil:
			return nil, 0, fault.New(op, fault.Unavailable, "the server answers a question about stream %s with %.100q", b.log.records, answers[0].Data).Because(err)
		case info.Error != nil && info.Error.ErrCode == codeStreamNotFound && !again:
			b.log.made.CompareAndSwap(s, nil) // removed: it is made anew
			continue
		case info.Error != nil:
			return nil, 0, refusal(op, "stream "+b.log.records, info.Error)
		}
		return info.State.Subjects, info.State.Last + 1, nil
	}
}

// whereabouts are those of a message; zero where there is none.
type whereabouts struct {
	seq     uint64
	subject string
}

// findAtOnce is how many messages are read at once to find out where they are: such a read brings
// all of a message.
const findAtOnce = 16

// find finds messages of the stream of records.
func (b *pubsub) find(ctx context.Context, op fault.Op, asks []messageRequest) ([]whereabouts, error) {
	p, err := b.conn.acquire(ctx, op)
	if err != nil {
		return nil, err
	}
	s, err := b.streams(ctx, op, p)
	if err != nil {
		return nil, err
	}
	from := "$JS.API.DIRECT.GET." + b.log.records
	if s.records {
		from = "$JS.API.STREAM.MSG.GET." + b.log.records
	}
	msgs := make([]*natsgo.Msg, len(asks))
	for i := range asks {
		body, err := json.Marshal(&asks[i])
		if err != nil {
			return nil, fault.Wrap(op, fault.Internal, err)
		}
		msgs[i] = &natsgo.Msg{Subject: from, Data: body}
	}
	out := make([]whereabouts, 0, len(asks))
	for some := range slices.Chunk(msgs, findAtOnce) {
		answers, err := b.exchange(ctx, op, some...)
		if err != nil {
			return nil, err
		}
		for _, m := range answers {
			v, subject, err := parseRead(op, m, s.records)
			if err != nil {
				return nil, err
			}
			out = append(out, whereabouts{v.seq, subject})
		}
	}
	return out, nil
}

// parseRead reads the answer to a read, of the stream's leader or a direct one.
func parseRead(op fault.Op, m *natsgo.Msg, leader bool) (v version, subject string, err error) {
	if !leader {
		if h := m.Header["Nats-Subject"]; len(h) > 0 {
			subject = h[0]
		}
		v, err = parseVersion(op, m)
		return v, subject, err
	}
	var answer struct {
		Error   *apiError      `json:"error"`
		Message *storedMessage `json:"message"`
	}
	switch err := json.Unmarshal(m.Data, &answer); {
	case err != nil || answer.Error == nil && answer.Message == nil:
		return version{}, "", fault.New(op, fault.Internal, "the server answers a read with %.100q", m.Data).Because(err)
	case answer.Error != nil && (answer.Error.ErrCode == codeNoMessage || answer.Error.ErrCode == codeStreamNotFound):
		return version{}, "", nil
	case answer.Error != nil:
		return version{}, "", refusal(op, "read", answer.Error)
	}
	v, err = answer.Message.version(op)
	return v, answer.Message.Subject, err
}

// PositionAt finds the first record accepted at t or later.
func (b *pubsub) PositionAt(ctx context.Context, topic string, partition int32, t time.Time) (uint64, error) {
	const op fault.Op = "nats.pubsub.PositionAt"
	subject, err := b.subject(op, topic, partition)
	if err != nil {
		return 0, err
	}
	// The server counts nanoseconds in 64 bits.
	if first := time.Unix(0, 0); t.Before(first) {
		t = first
	}
	if last := time.Unix(0, math.MaxInt64); !t.After(last) {
		t = t.UTC()
		found, err := b.find(ctx, op, []messageRequest{{Since: &t, NextFor: subject}})
		if err != nil {
			return 0, err
		}
		if found[0].seq != 0 {
			return found[0].seq, nil
		}
	}
	bounds, err := b.Bounds(ctx, topic, []int32{partition})
	if err != nil {
		return 0, err
	}
	return bounds[0].Next, nil
}

// validateLog reports what cannot work of a log.
func (c *LogConfig) validateLog() []error {
	var errs []error
	if c.Partitions < 1 || c.Partitions > 1024 {
		errs = append(errs, conf.Bad("partitions", "must be between 1 and 1024"))
	}
	if c.SessionTTL < time.Second {
		errs = append(errs, conf.Bad("sessionTTL", "must be at least 1s"))
	}
	return errs
}
