package nats

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// The ledger is a stream that keeps the last message of each subject. A subject is a key, written
// as keys of state are; a revision is the message's sequence. Whoever writes names the sequence it
// expects there, and the server compares.
//
// A removed entry is a message that says so, which the server drops after a while: it costs what a
// write costs, has its place among them, and is compared like them. An entry made on top of one
// expects it or, if the server has just dropped it, nothing; sequences never come again, so neither
// can be taken for the other.

// ledgerMarkerLife is how long the marker of a removed entry stays. A watch that is behind by more
// would not hear of the removal; it gives up long before (see pull) and begins anew.
const ledgerMarkerLife = "1h"

func (b *pubsub) makeLedger(ctx context.Context, op fault.Op, p *period) (*jetstream.StreamInfo, error) {
	want := jetstream.StreamConfig{
		Name: b.log.entries, Description: "ledger of Mecha", Subjects: []string{b.log.keys + ">"},
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, Storage: jetstream.FileStorage, Replicas: b.replicas,
		AllowDirect: true, AllowMsgTTL: true, DenyDelete: true,
		Duplicates: b.c.DedupWindow, // ids are not used here
	}
	info, err := makeStream(ctx, p, want, func(have *jetstream.StreamConfig) bool {
		fine := have.AllowDirect && have.AllowMsgTTL && have.MaxMsgsPerSubject > 0
		have.AllowDirect, have.AllowMsgTTL = true, true
		if have.MaxMsgsPerSubject <= 0 {
			have.MaxMsgsPerSubject = 1
		}
		return fine
	})
	if err != nil {
		return nil, adminError(op, "stream "+want.Name, err)
	}
	have := &info.Config
	if lacking := lacks(need{have.AllowMsgTTL, "expiry of messages"}, need{have.AllowDirect, "direct reads"}, need{have.MaxMsgsPerSubject > 0, "bound of one message per subject"}); lacking != "" {
		return nil, fault.New(op, fault.Unsupported, "stream %s has no %s; that needs a server of version 2.12 or later, and a stream that allows it", want.Name, lacking).WithSent(fault.SentNever)
	}
	if have.MaxAge > 0 || have.Discard == jetstream.DiscardOld && (have.MaxBytes > 0 || have.MaxMsgs > 0) {
		return nil, fault.New(op, fault.Unsupported, "stream %s forgets entries by age or size; who owns what must not be forgotten: remove these limits", want.Name).WithSent(fault.SentNever)
	}
	return info, nil
}

func (b *pubsub) entrySubject(op fault.Op, key string) (string, error) {
	s, err := appendKey([]byte(b.log.keys), op, key)
	return string(s), err
}

// LedgerGet reads one entry.
func (b *pubsub) LedgerGet(ctx context.Context, key string) (block.LedgerEntry, error) {
	const op fault.Op = "nats.pubsub.LedgerGet"
	subject, err := b.entrySubject(op, key)
	if err != nil {
		return block.LedgerEntry{}, err
	}
	v, err := b.entry(ctx, op, subject)
	if err != nil {
		return block.LedgerEntry{}, err
	}
	if v.seq == 0 || v.gone {
		return block.LedgerEntry{Key: key}, nil
	}
	return block.LedgerEntry{Key: key, Value: v.value, Revision: v.seq}, nil
}

// entry reads what the stream has, markers included. Every acknowledged write is seen: where
// several servers keep the stream its leader is asked.
func (b *pubsub) entry(ctx context.Context, op fault.Op, subject string) (version, error) {
	p, err := b.conn.acquire(ctx, op)
	if err != nil {
		return version{}, err
	}
	s, err := b.streams(ctx, op, p)
	if err != nil {
		return version{}, err
	}
	ask := &natsgo.Msg{Subject: "$JS.API.DIRECT.GET." + b.log.entries + "." + subject}
	if s.entries {
		ask.Subject, ask.Data = "$JS.API.STREAM.MSG.GET."+b.log.entries, []byte(`{"last_by_subj":`+strconv.Quote(subject)+`}`)
	}
	answers, err := b.exchange(ctx, op, ask)
	if err != nil {
		return version{}, err
	}
	v, _, err := parseRead(op, answers[0], s.entries)
	return v, err
}

// LedgerPut makes the writes, pipelined.
func (b *pubsub) LedgerPut(ctx context.Context, writes []block.LedgerWrite) []block.LedgerResult {
	const op fault.Op = "nats.pubsub.LedgerPut"
	out := make([]block.LedgerResult, len(writes))
	msgs := make([]*natsgo.Msg, 0, len(writes))
	place := make([]int, 0, len(writes)) // of msgs in writes
	for i := range writes {
		w := &writes[i]
		m, err := b.write(op, w)
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
		out[i] = b.written(ctx, op, &writes[i], msgs[j], answers[j])
	}
	return out
}

func (b *pubsub) write(op fault.Op, w *block.LedgerWrite) (*natsgo.Msg, error) {
	subject, err := b.entrySubject(op, w.Key)
	if err != nil {
		return nil, err
	}
	if w.Remove && w.Revision == 0 {
		return nil, fault.New(op, fault.Invalid, "ledger entry %q is to be removed whatever its revision is; give the one that was read", w.Key).WithSent(fault.SentNever)
	}
	m := &natsgo.Msg{Subject: subject, Header: natsgo.Header{headerExpected: {strconv.FormatUint(w.Revision, 10)}}}
	if w.Remove {
		m.Header[headerOp], m.Header[headerTTL] = []string{opPurge}, []string{ledgerMarkerLife}
		return m, nil
	}
	if most := b.LogFeatures().MaxEntry; len(w.Value) > most {
		return nil, fault.New(op, fault.TooLarge, "the value of ledger entry %q has %d bytes, at most %d are possible", w.Key, len(w.Value), most).WithSent(fault.SentNever)
	}
	m.Data = w.Value
	return m, nil
}

// written reads the answer to a write. One that expected nothing may have met a marker: then it is
// made on top of that.
func (b *pubsub) written(ctx context.Context, op fault.Op, w *block.LedgerWrite, m, answer *natsgo.Msg) block.LedgerResult {
	for range 4 {
		ack, err := readAck(op, answer)
		switch {
		case err != nil:
			return block.LedgerResult{Err: err}
		case ack.Error == nil && w.Remove:
			return block.LedgerResult{} // there is no entry now
		case ack.Error == nil:
			return block.LedgerResult{Revision: ack.Seq}
		case !ack.Error.conflict() || w.Revision != 0:
			return block.LedgerResult{Err: refusal(op, "ledger entry "+strconv.Quote(w.Key), ack.Error)}
		}
		v, err := b.entry(ctx, op, m.Subject)
		if err != nil {
			return block.LedgerResult{Err: err}
		}
		if v.seq != 0 && !v.gone {
			break
		}
		m.Header[headerExpected] = []string{strconv.FormatUint(v.seq, 10)}
		again, err := b.exchange(ctx, op, m)
		if again[0] == nil {
			return block.LedgerResult{Err: err}
		}
		answer = again[0]
	}
	return block.LedgerResult{Err: fault.New(op, fault.Conflict, "ledger entry %q exists; read it again", w.Key).WithSent(fault.SentNever)}
}

const opLedgerWatch fault.Op = "nats.pubsub.LedgerWatch"

// LedgerWatch tells of entries. Each uninterrupted consumer begins with all there are.
func (b *pubsub) LedgerWatch(ctx context.Context, prefix string, tell func(entries []block.LedgerEntry, reset bool)) error {
	filter, err := keyFilter(opLedgerWatch, prefix)
	if err != nil {
		return err
	}
	closing, done, ok := b.watches.enter()
	if !ok {
		return closedError(opLedgerWatch)
	}
	defer done()
	w := &ledgerWatch{b: b, prefix: prefix, tell: tell, closing: closing,
		config: pullConfig{stream: b.log.entries, filter: b.log.keys + filter, window: readMessages, bytes: readBytes, noWait: true}}
	return w.run(ctx)
}

// ledgerWatch is a watch at work.
type ledgerWatch struct {
	b       *pubsub
	prefix  string
	config  pullConfig
	tell    func(entries []block.LedgerEntry, reset bool)
	closing <-chan struct{}
	begun   bool
	entries []block.LedgerEntry // waiting to be told
}

func (w *ledgerWatch) run(ctx context.Context) error {
	pause := readPause
	for {
		good, err := w.follow(ctx)
		if good {
			pause = readPause
		}
		select {
		case <-w.closing:
			return closedError(opLedgerWatch)
		default:
		}
		if ctx.Err() != nil {
			return fault.Wrap(opLedgerWatch, fault.Canceled, ctx.Err())
		}
		if err != nil {
			if final(err) || !w.begun {
				return err
			}
			w.b.conn.log.Warn("watch of the ledger interrupted; trying again", "prefix", w.prefix, "pause", pause, "error", err)
		}
		if good {
			continue
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
		case <-w.closing:
		}
		t.Stop()
		pause = min(2*pause, readPauseMost)
	}
}

// follow tells of entries as long as one consumer lasts; good tells that it told of any state.
func (w *ledgerWatch) follow(ctx context.Context) (good bool, err error) {
	u, s, err := w.open(ctx)
	if err != nil {
		return false, interruption(err)
	}
	defer u.close()
	if err := w.snapshot(ctx, u); err != nil {
		return false, interruption(err)
	}
	w.begun = true
	for {
		m, at, err := u.next(ctx, w.closing, len(w.entries) == 0)
		switch {
		case err != nil:
			w.b.log.made.CompareAndSwap(s, nil) // perhaps the stream is gone
			return true, interruption(err)
		case m != nil:
			w.add(m, at)
		}
		if m == nil || len(w.entries) >= readMessages {
			w.say(false)
		}
	}
}

// open makes a consumer.
func (w *ledgerWatch) open(ctx context.Context) (*pull, *madeStreams, error) {
	if w.begun { // the first attempt takes as long as its caller lets it
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, readOpen)
		defer cancel()
	}
	p, err := w.b.conn.acquire(ctx, opLedgerWatch)
	if err != nil {
		return nil, nil, err
	}
	s, err := w.b.streams(ctx, opLedgerWatch, p)
	var u *pull
	if err == nil {
		w.config.replicated = s.entries
		u, err = openPull(ctx, opLedgerWatch, p, w.config)
	}
	if err == nil {
		return u, s, nil
	}
	select {
	case <-p.over: // that is no answer
		return nil, nil, errInterrupted
	default:
		w.b.log.made.CompareAndSwap(s, nil) // perhaps the stream is gone
		return nil, nil, err
	}
}

// interruption is nil for what another consumer mends.
func interruption(err error) error {
	if errors.Is(err, errInterrupted) || errors.Is(err, errNoStream) {
		return nil
	}
	return err
}

// snapshot tells of all entries there are.
func (w *ledgerWatch) snapshot(ctx context.Context, u *pull) error {
	w.entries = nil
	at := map[string]int{}
	for {
		m, stand, err := u.next(ctx, w.closing, true)
		if errors.Is(err, errEnd) {
			break
		}
		if err != nil {
			return err
		}
		e, ok := w.read(m, stand)
		if !ok {
			continue
		}
		if i, known := at[e.Key]; known { // it changed meanwhile
			w.entries[i] = e
			continue
		}
		at[e.Key] = len(w.entries)
		w.entries = append(w.entries, e)
	}
	w.entries = slices.DeleteFunc(w.entries, func(e block.LedgerEntry) bool { return e.Removed })
	w.say(true)
	return nil
}

func (w *ledgerWatch) add(m *natsgo.Msg, at stand) {
	if e, ok := w.read(m, at); ok {
		w.entries = append(w.entries, e)
	}
}

func (w *ledgerWatch) say(reset bool) {
	if len(w.entries) > 0 || reset {
		w.tell(w.entries, reset)
	}
	w.entries = nil
}

// read makes an entry of a message; not ok: it is none of the prefix.
func (w *ledgerWatch) read(m *natsgo.Msg, at stand) (e block.LedgerEntry, ok bool) {
	key := keyOf(w.b.log.keys, m.Subject)
	if key == nil || !strings.HasPrefix(*key, w.prefix) {
		return e, false
	}
	v := version{seq: at.seq}
	v.read(m.Header)
	e = block.LedgerEntry{Key: *key, Revision: at.seq, Removed: v.gone}
	if !v.gone {
		e.Value = m.Data
	}
	return e, true
}
