package nats

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/fault"
)

// How long a request for messages waits at the server. Over a Unix socket nothing gets lost
// in silence and an idle sidecar should sleep; elsewhere a request is repeated often enough to
// notice that it got lost.
const (
	waitLocal  = 5 * time.Minute
	waitRemote = 30 * time.Second
	waitGrace  = 5 * time.Second
)

// pull reads a stream through a consumer of its own, which the server keeps in memory and nobody
// acknowledges to: it asks for messages and takes what comes to its inbox. It lives as long as all
// of that goes well. When it does not (a lost connection, a consumer the server has dropped, a
// message that did not arrive) another one goes on behind the last message taken.
//
// There is no goroutine, and no timer while nobody waits in next. It is used by one goroutine, save
// close.
type pull struct {
	p     *period
	op    fault.Op
	nexts string // where to ask for messages
	ends  string // where to ask for the consumer's end
	inbox string
	sub   *natsgo.Subscription
	in    chan *natsgo.Msg

	window, bytes int  // how much is asked for at once
	due, dueBytes int  // how much of the last request has not come
	alone         bool // the next message is larger than bytes
	replicated    bool
	noWait        bool // the server answers with what it has, and then ends the request
	count         uint64
	expiry        time.Time // when an answer to the last request is due at the latest
	idle          time.Duration
	idleFrom      time.Time // since when nothing came, as far as anybody waited …
	idleCount     uint64    // … and how many messages had come by then
	late          *time.Timer
}

// pullConfig says what a pull reads.
type pullConfig struct {
	stream, filter string
	filters        []string      // instead of filter
	from           uint64        // 0: the last message of each subject, then what follows
	news           bool          // instead of from: what comes from now on, without bodies
	idle           time.Duration // after which a wait for a message ends with errIdle; 0: never
	window, bytes  int
	noWait         bool
	replicated     bool // several servers keep the stream
}

// After what time the server forgets a consumer nobody asks. It looks as often, so the embedded
// node does no more often than requests end.
const (
	forgetLocal  = waitLocal
	forgetRemote = time.Minute
)

// Where several servers keep a stream, the one that has the consumer may die, and nobody says so.
const (
	waitReplicated  = 5 * time.Second
	graceReplicated = 2 * time.Second
)

// patience is how long a request for messages waits at the server, and how much longer for an
// answer: session.go says why.
func (u *pull) patience() (wait, grace time.Duration) {
	switch {
	case u.replicated:
		return waitReplicated, graceReplicated
	case u.p.local:
		return waitLocal, waitGrace
	}
	return waitRemote, waitGrace
}

// Reasons why a pull is over and another one has to go on. They are not told to anybody.
var (
	errInterrupted = errors.New("the consumer has to be made anew")
	errEnd         = errors.New("there is no more for now") // only with noWait
	errIdle        = errors.New("nothing came for long")
	errStopped     = errors.New("told to stop")
	errNoStream    = errors.New("the stream does not exist")
)

// openPull makes the consumer. The error is errNoStream where that is the reason.
func openPull(ctx context.Context, op fault.Op, p *period, c pullConfig) (*pull, error) {
	inbox := p.nc.NewInbox()
	name := "mecha-" + inbox[len("_INBOX."):]
	u := &pull{p: p, op: op, inbox: inbox, window: c.window, bytes: c.bytes, noWait: c.noWait, replicated: c.replicated, idle: c.idle, idleFrom: time.Now(),
		nexts: "$JS.API.CONSUMER.MSG.NEXT." + c.stream + "." + name, ends: "$JS.API.CONSUMER.DELETE." + c.stream + "." + name}
	config := jetstream.ConsumerConfig{
		Name: name, FilterSubject: c.filter, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: max(c.from, 1),
		FilterSubjects: c.filters, HeadersOnly: c.news,
		AckPolicy: jetstream.AckNonePolicy, InactiveThreshold: forgetRemote, MemoryStorage: true, Replicas: 1,
	}
	if p.local {
		config.InactiveThreshold = forgetLocal
	}
	if len(c.filters) == 1 {
		c.filter, config.FilterSubject, config.FilterSubjects = c.filters[0], c.filters[0], nil
	}
	switch {
	case c.news:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverNewPolicy, 0
	case c.from == 0:
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverLastPerSubjectPolicy, 0
	}
	body, err := json.Marshal(struct {
		Stream string                   `json:"stream_name"`
		Config jetstream.ConsumerConfig `json:"config"`
		Action string                   `json:"action"`
	}{c.stream, config, "create"})
	if err != nil {
		return nil, fault.Wrap(op, fault.Internal, err)
	}
	create := "$JS.API.CONSUMER.CREATE." + c.stream + "." + name
	if c.filter != "" {
		create += "." + c.filter
	}
	answers, err := p.ask(ctx, op, &natsgo.Msg{Subject: create, Data: body})
	if err != nil {
		return nil, err
	}
	var made struct {
		Error  *apiError `json:"error"`
		Config struct {
			MaxBatch int `json:"max_batch"`
		} `json:"config"`
	}
	switch err := json.Unmarshal(answers[0].Data, &made); {
	case err != nil:
		return nil, fault.New(op, fault.Unavailable, "the server answers the making of a consumer with %.100q", answers[0].Data).Because(err)
	case made.Error != nil && made.Error.ErrCode == codeStreamNotFound:
		return nil, errNoStream
	case made.Error != nil:
		return nil, refusal(op, "consumer of stream "+c.stream, made.Error)
	}
	if made.Config.MaxBatch > 0 {
		u.window = min(u.window, made.Config.MaxBatch)
	}
	// Statuses come on top of messages: one for each request.
	u.in = make(chan *natsgo.Msg, u.window+4)
	if u.sub, err = p.nc.ChanSubscribe(inbox, u.in); err != nil {
		return nil, sendError(op, err)
	}
	return u, nil
}

// close ends the consumer. The server forgets one it cannot be told of. It may be called while
// another goroutine waits in next.
func (u *pull) close() {
	_ = u.sub.Unsubscribe() // fails when the connection is gone
	_ = u.p.nc.Publish(u.ends, nil)
}

// next is the next message and its place. Without wait it may be nil: nothing is there. closed ends
// the waiting, with errStopped.
func (u *pull) next(ctx context.Context, closed <-chan struct{}, wait bool) (*natsgo.Msg, stand, error) {
	for {
		if err := u.ask(); err != nil {
			return nil, stand{}, errInterrupted // the connection is gone
		}
		m, err := u.take(ctx, closed, wait)
		if m == nil {
			return nil, stand{}, err
		}
		at, ok := parseStand(m.Reply)
		if !ok {
			if err := u.status(m); err != nil {
				return nil, stand{}, err
			}
			continue
		}
		// A request ends without a word when the last byte of it is used up.
		if u.dueBytes -= m.Size(); u.due == 1 || u.dueBytes == 0 {
			u.due = 0
		} else {
			u.due--
		}
		if u.count++; at.count != u.count {
			return nil, stand{}, errInterrupted // one got lost on the way
		}
		return m, at, nil
	}
}

func (u *pull) take(ctx context.Context, closed <-chan struct{}, wait bool) (*natsgo.Msg, error) {
	var m *natsgo.Msg
	select {
	case m = <-u.in:
	default:
		if !wait {
			return nil, nil
		}
		until := u.expiry
		if u.idle > 0 {
			if u.count != u.idleCount {
				u.idleFrom, u.idleCount = time.Now(), u.count
			}
			if end := u.idleFrom.Add(u.idle); end.Before(until) {
				until = end
			}
		}
		if u.late == nil {
			u.late = time.NewTimer(time.Until(until))
		} else {
			u.late.Reset(time.Until(until))
		}
		defer u.late.Stop()
		select {
		case m = <-u.in:
		case <-u.late.C:
			if until.Before(u.expiry) {
				return nil, errIdle
			}
			// A request got lost.
		case <-u.p.over:
		case <-closed:
			return nil, errStopped
		case <-ctx.Done():
			return nil, fault.Wrap(u.op, fault.Canceled, ctx.Err())
		}
	}
	if m == nil { // or the subscription was closed with the connection
		return nil, errInterrupted
	}
	return m, nil
}

// ask requests messages when all that were asked for have been taken. One request at a time bounds
// exactly what waits here; the pause until its first message is short beside what a full one brings.
func (u *pull) ask() error {
	if u.due > 0 {
		return nil
	}
	batch, size := u.window, u.bytes
	body := append(make([]byte, 0, 96), `{"batch":`...)
	if u.alone {
		batch, size = 1, 0
	}
	body = strconv.AppendInt(body, int64(batch), 10)
	if size > 0 {
		body = strconv.AppendInt(append(body, `,"max_bytes":`...), int64(size), 10)
	}
	wait, grace := u.patience()
	if u.noWait {
		wait = 0
		body = append(body, `,"no_wait":true`...)
	} else {
		body = strconv.AppendInt(append(body, `,"expires":`...), wait.Nanoseconds(), 10)
	}
	if err := u.p.nc.PublishRequest(u.nexts, u.inbox, append(body, '}')); err != nil {
		return err
	}
	u.alone = false
	u.due, u.dueBytes = batch, size
	u.expiry = time.Now().Add(wait + grace)
	return nil
}

// status handles the server's word on a request.
func (u *pull) status(m *natsgo.Msg) error {
	code, about := statusOf(m), m.Header.Get("Description")
	switch {
	case code == "100", code == "409" && about == "Batch Completed": // a heartbeat; what is known
		return nil
	case code == "404", code == "408":
		u.due = 0
		if u.noWait {
			u.noWait = false
			return errEnd
		}
		return nil
	case code == "409" && about == "Message Size Exceeds MaxBytes":
		u.due, u.alone = 0, true
		return nil
	}
	return errInterrupted // the consumer is gone, the server shuts down, …
}

// stand is where a message of a consumer stands.
type stand struct {
	seq   uint64 // in the stream
	count uint64 // among those the consumer has given
	time  int64  // when the stream took it, in nanoseconds since 1970
}

// parseStand reads a message's address for answers: $JS.ACK.<stream>.<consumer>.<delivered>.
// <stream seq>.<consumer seq>.<time>.<pending>, in newer servers with domain and account before the
// stream and perhaps a token behind all.
func parseStand(reply string) (at stand, ok bool) {
	const head = "$JS.ACK."
	if !strings.HasPrefix(reply, head) {
		return at, false
	}
	reply = reply[len(head):]
	skip := 3 // stream, consumer, delivered
	if strings.Count(reply, ".") >= 8 {
		skip = 5
	}
	for range skip {
		if _, reply, ok = strings.Cut(reply, "."); !ok {
			return at, false
		}
	}
	var seq, count, when string
	seq, reply, _ = strings.Cut(reply, ".")
	count, reply, _ = strings.Cut(reply, ".")
	when, _, ok = strings.Cut(reply, ".")
	if !ok {
		return at, false
	}
	var errs [3]error
	at.seq, errs[0] = strconv.ParseUint(seq, 10, 64)
	at.count, errs[1] = strconv.ParseUint(count, 10, 64)
	at.time, errs[2] = strconv.ParseInt(when, 10, 64)
	return at, errs == [3]error{}
}
