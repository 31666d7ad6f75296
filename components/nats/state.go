package nats

import (
	"context"
	"encoding/json"
	"strconv"
	"sync/atomic"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var (
	_ block.State      = (*state)(nil)
	_ block.StateBatch = (*state)(nil)
	_ block.StateTx    = (*state)(nil)
	_ block.StateTTL   = (*state)(nil)
)

// state is a bucket: a stream named KV_<bucket> with at most one message per subject
// $KV.<bucket>.<key>, which is the layout of the product's own key-value tools.
//
// A version is the sequence of a key's message in the stream. A removed key leaves a marker
// which the server drops after markerLife: a message that replaces the value is as cheap as
// a write, and keeps the order for whoever watches the bucket.
type state struct {
	conn     *conn
	stream   string
	prefix   string // of subjects, with the final dot
	getter   string // of read requests, up to the key
	about    string // what the bucket's description says when it is made
	replicas int
	maxBytes int64 // of a bucket whose oldest items make room; 0: it refuses what does not fit

	made   atomic.Pointer[abilities] // nil until the stream is known to exist
	fences fences

	// What the last pages of scans met: how far apart messages are, in sequences, and how large.
	scanGap, scanSize atomic.Uint64

	memory time.Duration // how long removed keys leave markers
}

// abilities of the stream as it was found.
type abilities struct {
	ttl, atomic, replicated bool
	history                 bool // keys keep messages from before their last one
}

const (
	// headerOp with opDelete marks a removed key, as in the product's own buckets.
	headerOp = "KV-Operation"
	opDelete = "DEL"
	// opPurge is the same for a bucket that keeps one message per key. Where an operator lets the
	// server mark the end of items, it does not mark the end of such a marker.
	opPurge = "PURGE"
	// markerLife is how long the marker of a removed key stays, in the server's form.
	markerLife = "60s"
	markerTime = 60 * time.Second

	headerTTL      = "Nats-TTL"
	headerExpected = "Nats-Expected-Last-Subject-Sequence"
	headerSequence = "Nats-Sequence"
)

func newState(env block.Env, c *StoreConfig, replicas int, dial dialer) *state {
	return newBucket(env, c, replicas, dial, "state of Mecha")
}

// newBucket is for all blocks that keep their things in a bucket.
func newBucket(env block.Env, c *StoreConfig, replicas int, dial dialer, about string) *state {
	bucket := c.Bucket
	if bucket == "" {
		bucket = env.Component
	}
	bucket = objectName(bucket)
	s := &state{conn: newConn(dial, logger(env)), stream: "KV_" + bucket, prefix: "$KV." + bucket + ".", about: about, replicas: replicas, memory: markerTime}
	s.getter = "$JS.API.DIRECT.GET." + s.stream + "." + s.prefix
	return s
}

// ExpiresItems marks native expiry.
func (s *state) ExpiresItems() {}

// Ping checks that the server answers and the bucket exists or can be made.
func (s *state) Ping(ctx context.Context) error {
	const op fault.Op = "nats.state.Ping"
	p, err := s.conn.acquire(ctx, op)
	if err != nil {
		return err
	}
	return s.create(ctx, op, p)
}

// Close gives the connection back.
func (s *state) Close(ctx context.Context) error { return s.conn.closeWithin(ctx, "nats.state.Close") }

// Get reads one key.
func (s *state) Get(ctx context.Context, key string, opts block.StateRead) (block.StateItem, error) {
	const op fault.Op = "nats.state.Get"
	subject, err := appendKey([]byte(s.getter), op, key)
	if err != nil {
		return block.StateItem{}, err
	}
	if a := s.made.Load(); opts.Strong && a != nil && a.replicated {
		v, err := s.ofLeader(ctx, op, key)
		return v.item(key), err
	}
	answers, err := s.ask(ctx, op, &natsgo.Msg{Subject: string(subject)})
	if err != nil {
		return block.StateItem{}, err
	}
	v, err := parseVersion(op, answers[0])
	if err != nil {
		return block.StateItem{}, err
	}
	return v.item(key), nil
}

// ofLeader asks the stream's leader, which is dearer: the answer is JSON.
func (s *state) ofLeader(ctx context.Context, op fault.Op, key string) (version, error) {
	subject, err := appendKey([]byte(s.prefix), op, key)
	if err != nil {
		return version{}, err
	}
	m, err := s.leader(ctx, op, &messageRequest{LastFor: string(subject)})
	if err != nil || m == nil {
		return version{}, err
	}
	return m.version(op)
}

// last reads a subject without the bucket's prefix, so that every acknowledged write is seen.
func (s *state) last(ctx context.Context, op fault.Op, subject string) (version, error) {
	if a := s.made.Load(); a != nil && a.replicated {
		m, err := s.leader(ctx, op, &messageRequest{LastFor: s.prefix + subject})
		if err != nil || m == nil {
			return version{}, err
		}
		return m.version(op)
	}
	answers, err := s.ask(ctx, op, &natsgo.Msg{Subject: s.getter + subject})
	if err != nil {
		return version{}, err
	}
	return parseVersion(op, answers[0])
}

// GetMany reads several keys, pipelined. They are not read at one moment.
func (s *state) GetMany(ctx context.Context, keys []string, opts block.StateRead) ([]block.StateItem, error) {
	const op fault.Op = "nats.state.GetMany"
	versions, err := s.versions(ctx, op, keys, opts.Strong)
	if err != nil {
		return nil, err
	}
	items := make([]block.StateItem, len(keys))
	for i := range items {
		items[i] = versions[i].item(keys[i])
	}
	return items, nil
}

// versions reads what the stream holds for keys, markers and expired items included.
func (s *state) versions(ctx context.Context, op fault.Op, keys []string, strong bool) ([]version, error) {
	out := make([]version, len(keys))
	var err error
	if a := s.made.Load(); strong && a != nil && a.replicated {
		for i, k := range keys {
			if out[i], err = s.ofLeader(ctx, op, k); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	msgs := make([]*natsgo.Msg, len(keys))
	for i, k := range keys {
		subject, err := appendKey([]byte(s.getter), op, k)
		if err != nil {
			return nil, err
		}
		msgs[i] = &natsgo.Msg{Subject: string(subject)}
	}
	answers, err := s.ask(ctx, op, msgs...)
	if err != nil {
		return nil, err
	}
	for i, m := range answers {
		if out[i], err = parseVersion(op, m); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Set writes one key.
func (s *state) Set(ctx context.Context, w block.StateWrite) error {
	const op fault.Op = "nats.state.Set"
	return s.one(ctx, op, &block.StateOp{StateWrite: w})
}

// Delete removes one key.
func (s *state) Delete(ctx context.Context, d block.StateDelete) error {
	const op fault.Op = "nats.state.Delete"
	return s.one(ctx, op, &block.StateOp{Delete: true, StateWrite: block.StateWrite{Key: d.Key, ETag: d.ETag}})
}

// one performs a single operation.
func (s *state) one(ctx context.Context, op fault.Op, o *block.StateOp) error {
	msg, err := s.message(ctx, op, o)
	if err != nil {
		return err
	}
	answers, err := s.ask(ctx, op, msg)
	if err != nil {
		return err
	}
	return s.settle(ctx, op, o, answers[0])
}

// publish sends one message to the bucket and returns its sequence. what names it in errors.
func (s *state) publish(ctx context.Context, op fault.Op, what string, m *natsgo.Msg) (uint64, error) {
	answers, err := s.ask(ctx, op, m)
	if err != nil {
		return 0, err
	}
	return s.acknowledged(op, what, answers[0])
}

// acknowledged reads the answer to a message that was sent to the bucket.
func (s *state) acknowledged(op fault.Op, what string, answer *natsgo.Msg) (uint64, error) {
	var ack pubAck
	refused, err := parseAck(op, answer)
	switch {
	case err != nil:
		return 0, err
	case refused != nil:
		return 0, refusal(op, what, refused)
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil { // parseAck has read it before
		return 0, fault.Wrap(op, fault.Internal, err)
	}
	return ack.Seq, nil
}

// settle reads the answer to a write. A first write refused may have met a marker or an
// expired item: then it is repeated on top of that.
func (s *state) settle(ctx context.Context, op fault.Op, o *block.StateOp, answer *natsgo.Msg) error {
	for range 3 {
		refused, err := parseAck(op, answer)
		if err != nil || refused == nil {
			return err
		}
		if o.Delete && refused.full() {
			return s.purge(ctx, op, o)
		}
		if !refused.conflict() || !firstWrite(o) {
			return refusal(op, "key "+strconv.Quote(o.Key), refused)
		}
		found, err := s.versions(ctx, op, []string{o.Key}, true)
		if err != nil {
			return err
		}
		if found[0].live() {
			break
		}
		msg, err := s.message(ctx, op, o)
		if err != nil {
			return err
		}
		msg.Header[headerExpected] = []string{strconv.FormatUint(found[0].seq, 10)}
		answers, err := s.ask(ctx, op, msg)
		if err != nil {
			return err
		}
		answer = answers[0]
	}
	return fault.New(op, fault.Conflict, "key %q exists already and the request is a first write", o.Key)
}

func firstWrite(o *block.StateOp) bool { return o.FirstWrite && o.ETag == "" && !o.Delete }

// purge removes a key without writing a marker: the way out of a full store, which refuses
// every message. The limit of sequences makes it conditional: it spares a newer version.
func (s *state) purge(ctx context.Context, op fault.Op, o *block.StateOp) error {
	subject, err := appendKey([]byte(s.prefix), op, o.Key)
	if err != nil {
		return err
	}
	request := struct {
		Filter string `json:"filter"`
		Seq    uint64 `json:"seq,omitempty"` // this one stays
	}{Filter: string(subject)}
	if o.ETag != "" {
		v, err := parseETag(op, o.ETag)
		if err != nil {
			return err
		}
		request.Seq = v.seq + 1
	}
	body, err := json.Marshal(request)
	if err != nil {
		return fault.Wrap(op, fault.Internal, err)
	}
	answers, err := s.ask(ctx, op, &natsgo.Msg{Subject: "$JS.API.STREAM.PURGE." + s.stream, Data: body})
	if err != nil {
		return err
	}
	var done struct {
		Error  *apiError `json:"error"`
		Purged int       `json:"purged"`
	}
	switch err := json.Unmarshal(answers[0].Data, &done); {
	case err != nil:
		return fault.New(op, fault.Internal, "the server answers a purge with %.100q", answers[0].Data).Because(err).WithSent(fault.SentMaybe)
	case done.Error != nil:
		return refusal(op, "key "+strconv.Quote(o.Key), done.Error)
	case o.ETag != "" && done.Purged == 0:
		return fault.New(op, fault.Conflict, "key %q does not have etag %q; read it again", o.Key, o.ETag)
	}
	return nil
}

// message makes the message of one operation with its expectation; of a first write, that
// there is nothing.
func (s *state) message(ctx context.Context, op fault.Op, o *block.StateOp) (*natsgo.Msg, error) {
	subject, err := appendKey([]byte(s.prefix), op, o.Key)
	if err != nil {
		return nil, err
	}
	m := &natsgo.Msg{Subject: string(subject)}
	if !o.Delete {
		m.Data = o.Value
	}
	if o.Delete || o.TTL > 0 || o.ETag != "" || o.FirstWrite {
		m.Header = natsgo.Header{}
	}
	switch {
	case o.ETag != "":
		v, err := parseETag(op, o.ETag)
		if err != nil {
			return nil, err
		}
		if !v.live() {
			return nil, fault.New(op, fault.Conflict, "key %q has expired since etag %q was read", o.Key, o.ETag)
		}
		m.Header[headerExpected] = []string{strconv.FormatUint(v.seq, 10)}
	case firstWrite(o):
		m.Header[headerExpected] = []string{"0"}
	}
	return m, s.life(ctx, op, o, m)
}

// life sets how long a message stays: a marker a while, an item its time to live.
func (s *state) life(ctx context.Context, op fault.Op, o *block.StateOp, m *natsgo.Msg) error {
	if !o.Delete && o.TTL <= 0 {
		return nil
	}
	a, err := s.able(ctx, op)
	if err != nil {
		return err
	}
	switch {
	case o.Delete:
		m.Header[headerOp] = []string{opPurge}
		if a.ttl {
			m.Header[headerTTL] = []string{markerLife}
		}
	case !a.ttl:
		return fault.New(op, fault.Unsupported, "bucket %s does not expire items; it needs a server of version 2.11 or later", s.stream)
	default:
		// The server counts whole seconds. Until it drops the item, reads know by the header.
		seconds := int64((o.TTL + time.Second - 1) / time.Second)
		m.Header[headerTTL] = []string{strconv.FormatInt(seconds, 10) + "s"}
		end := time.Now().Add(max(o.TTL, time.Millisecond))
		m.Header[headerExpiry] = []string{strconv.FormatInt(end.UnixMilli(), 10)}
	}
	return nil
}

// SetMany writes several keys, pipelined, each on its own.
func (s *state) SetMany(ctx context.Context, ws []block.StateWrite) []error {
	ops := make([]block.StateOp, len(ws))
	for i := range ws {
		ops[i].StateWrite = ws[i]
	}
	return s.many(ctx, "nats.state.SetMany", ops)
}

// DeleteMany removes several keys, pipelined, each on its own.
func (s *state) DeleteMany(ctx context.Context, ds []block.StateDelete) []error {
	ops := make([]block.StateOp, len(ds))
	for i, d := range ds {
		ops[i] = block.StateOp{Delete: true, StateWrite: block.StateWrite{Key: d.Key, ETag: d.ETag}}
	}
	return s.many(ctx, "nats.state.DeleteMany", ops)
}

func (s *state) many(ctx context.Context, op fault.Op, ops []block.StateOp) []error {
	errs := make([]error, len(ops))
	var msgs []*natsgo.Msg
	var place []int // of msgs in ops
	for i := range ops {
		m, err := s.message(ctx, op, &ops[i])
		if err != nil {
			errs[i] = err
			continue
		}
		msgs, place = append(msgs, m), append(place, i)
	}
	answers, lost := s.ask(ctx, op, msgs...)
	for j, i := range place {
		switch {
		case answers != nil && answers[j] != nil && !nobody(answers[j]):
			errs[i] = s.settle(ctx, op, &ops[i], answers[j])
		default:
			errs[i] = lost
		}
	}
	return anyError(errs)
}

// anyError is errs, or nil when all of them are.
func anyError(errs []error) []error {
	for _, err := range errs {
		if err != nil {
			return errs
		}
	}
	return nil
}

// ask sends requests once the bucket exists. Found missing later (somebody removed it), the
// bucket is made anew and what nobody answered is asked once more.
func (s *state) ask(ctx context.Context, op fault.Op, msgs ...*natsgo.Msg) ([]*natsgo.Msg, error) {
	if len(msgs) == 0 {
		return nil, nil
	}
	p, err := s.conn.acquire(ctx, op)
	if err != nil {
		return nil, err
	}
	if s.made.Load() == nil {
		if err := s.create(ctx, op, p); err != nil {
			return nil, err
		}
	}
	answers, err := p.ask(ctx, op, msgs...)
	if err != nil || !anyNobody(answers) {
		return answers, err
	}
	if err := s.create(ctx, op, p); err != nil {
		return answers, err
	}
	for i, m := range answers { // one by one: this is rare
		if !nobody(m) {
			continue
		}
		again, err := p.ask(ctx, op, msgs[i])
		if err == nil && nobody(again[0]) {
			err = fault.New(op, fault.Unavailable, "bucket %s does not answer", s.stream).WithSent(fault.SentNever)
		}
		if err != nil {
			return answers, err
		}
		answers[i] = again[0]
	}
	return answers, nil
}

func anyNobody(answers []*natsgo.Msg) bool {
	for _, m := range answers {
		if nobody(m) {
			return true
		}
	}
	return false
}

// able tells what the bucket can do, making it if need be.
func (s *state) able(ctx context.Context, op fault.Op) (*abilities, error) {
	if a := s.made.Load(); a != nil {
		return a, nil
	}
	p, err := s.conn.acquire(ctx, op)
	if err == nil {
		err = s.create(ctx, op, p)
	}
	if err != nil {
		return nil, err
	}
	return s.made.Load(), nil
}

// create makes the bucket unless it exists, and notes what it can do. An existing one gets
// the abilities we need; its other settings are somebody's choice.
func (s *state) create(ctx context.Context, op fault.Op, p *period) error {
	want := jetstream.StreamConfig{
		Name: s.stream, Description: s.about, Subjects: []string{s.prefix + ">"},
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage, Replicas: s.replicas,
		AllowDirect: true, AllowRollup: true, DenyDelete: true, AllowMsgTTL: true, AllowAtomicPublish: true,
		Duplicates: time.Second, // ids are not used here: remember none
	}
	bounded(&want, s.maxBytes)
	info, err := makeStream(ctx, p, want, func(have *jetstream.StreamConfig) bool {
		fine := have.AllowDirect && have.AllowMsgTTL && have.AllowAtomicPublish && have.MaxMsgsPerSubject > 0
		have.AllowDirect, have.AllowMsgTTL, have.AllowAtomicPublish = true, true, true
		if have.MaxMsgsPerSubject <= 0 {
			have.MaxMsgsPerSubject = 1
		}
		return fine
	})
	if err != nil {
		return adminError(op, "bucket "+s.stream, err)
	}
	got := &info.Config
	if !got.AllowDirect {
		return fault.New(op, fault.Unsupported, "bucket %s does not allow direct reads and cannot be changed; allow them or use another bucket", s.stream)
	}
	s.made.Store(&abilities{ttl: got.AllowMsgTTL, atomic: got.AllowAtomicPublish, replicated: got.Replicas > 1, history: got.MaxMsgsPerSubject != 1})
	return nil
}
