package nats

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var _ block.StateWatch = (*state)(nil)

const opWatch fault.Op = "nats.state.Watch"

// A watch is a consumer of the bucket's stream. A lost connection leaves no gap, as the next
// consumer goes on at the sequence where the last one stopped: the stream has the last message of
// each key. Only markers of removed keys are dropped after a while. So a watch
// keeps account of the time, by the server's clock, up to which it certainly was told everything,
// and gives up when that is too long ago.
const (
	// watchSlack is how far from the end of a marker's life a watch gives up.
	watchSlack = 15 * time.Second
	// watchTick is how often a watch makes sure that it still is told everything. It costs two
	// small requests.
	watchTick = 15 * time.Second
	// watchPause is between attempts to make a consumer.
	watchPause = 250 * time.Millisecond
	// watchStale is how old an answer to a tick may be. Without one the watch makes another
	// consumer, which may take watchOpen.
	watchStale = 4 * time.Second
	watchOpen  = 10 * time.Second
	// mostWaiting and mostWaitingBytes bound what waits for a callee that takes its time.
	mostWaiting      = 100_000
	mostWaitingBytes = 64 << 20
)

// Watch tells of changes in the order in which the stream has them.
func (s *state) Watch(ctx context.Context, prefix string, started func(), changed func([]block.StateItem)) error {
	return s.watch(ctx, prefix, started, changed, false)
}

// watch is Watch; with endless nobody is told of items that expire, and what there is at the
// beginning is not looked at.
func (s *state) watch(ctx context.Context, prefix string, started func(), changed func([]block.StateItem), endless bool) error {
	filter, err := keyFilter(opWatch, prefix)
	if err != nil {
		return err
	}
	w := &watch{s: s, prefix: prefix, filter: s.prefix + filter, started: started, changed: changed, wake: make(chan struct{}, 1), endless: endless}
	if !endless {
		w.ends.heard = map[string]uint64{}
	}
	for {
		if err := w.round(ctx); err != nil {
			return err
		}
	}
}

// round follows the bucket through one uninterrupted connection. It returns nil when that is over
// and another may go on.
func (w *watch) round(ctx context.Context) error {
	p, err := w.connect(ctx)
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, watchOpen)
	r, err := w.open(short, p)
	cancel()
	if r != nil {
		defer r.close()
	}
	if err != nil {
		return w.interrupted(ctx, p, err)
	}
	if !w.begun {
		if !w.endless {
			if err := w.list(ctx); err != nil {
				return err
			}
		}
		w.begun = true
		w.started()
	}
	guard, stop := context.WithCancel(ctx)
	guarded := make(chan struct{})
	go func() {
		defer close(guarded)
		r.guard(guard)
	}()
	defer func() { stop(); <-guarded }()
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		next.Reset(w.expire())
		select {
		case <-next.C:
		case <-w.wake:
			items, err := w.take()
			if err != nil {
				return err
			}
			if len(items) > 0 && ctx.Err() == nil {
				w.changed(items)
			}
		case <-r.over:
			return nil
		case <-p.over:
			return nil
		case <-ctx.Done():
			return fault.Wrap(opWatch, fault.Canceled, ctx.Err())
		case <-w.s.conn.life.Done():
			return closedError(opWatch)
		}
	}
}

// connect waits for a connection, after the first one as long as nothing can have been missed.
func (w *watch) connect(ctx context.Context) (*period, error) {
	for pause := firstPause; ; pause = min(2*pause, time.Second) {
		p, err := w.s.conn.acquire(ctx, opWatch)
		if err == nil || !w.begun || ctx.Err() != nil || w.s.conn.life.Err() != nil {
			return p, err
		}
		if late := w.late(); late != nil {
			return nil, late
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		case <-w.s.conn.life.Done():
		}
	}
}

// interrupted judges an error of opening a round: nil when another round may go on.
func (w *watch) interrupted(ctx context.Context, p *period, err error) error {
	switch {
	case ctx.Err() != nil:
		return fault.Wrap(opWatch, fault.Canceled, ctx.Err())
	case errors.Is(err, errMissed):
		return err
	case !w.begun && fault.Of(err) == fault.Deadline: // ours
		return fault.New(opWatch, fault.Unavailable, "the server does not answer within %v: %v", watchOpen, err)
	case !w.begun:
		return err
	}
	if late := w.late(); late != nil {
		return late
	}
	select {
	case <-time.After(watchPause):
	case <-p.over:
	case <-ctx.Done():
	case <-w.s.conn.life.Done():
	}
	return nil
}

// errMissed is the cause of errors after which a watch cannot go on.
var errMissed = errors.New("read all again")

func missed(format string, args ...any) *fault.Error {
	return fault.New(opWatch, fault.Unavailable, "changes may have been missed: "+format, args...).Because(errMissed)
}

// round is a consumer and what goes with it.
type round struct {
	w    *watch
	p    *period
	name string // of the consumer
	subs []*natsgo.Subscription
	open chan struct{} // closed when the watch knows of the consumer, or never will
	over chan struct{} // closed when another consumer is needed

	ended bool   // guarded by w.mu
	count uint64 // guarded by w.mu; messages that came
	// A tick's answer says that everything up to a time was sent; it counts once as many messages
	// have come as it says.
	sentCount uint64    // guarded by w.mu
	sentTime  time.Time // guarded by w.mu
}

// open makes a consumer and checks that it goes on where the last one stopped.
func (w *watch) open(ctx context.Context, p *period) (*round, error) {
	if err := w.s.create(ctx, opWatch, p); err != nil {
		return nil, err
	}
	r := &round{w: w, p: p, name: "mecha-watch-" + natsgo.NewInbox()[len("_INBOX."):], open: make(chan struct{}), over: make(chan struct{})}
	defer close(r.open)
	inbox := p.nc.NewInbox()
	for subject, heard := range map[string]natsgo.MsgHandler{inbox: r.hear, advisories: r.advised} {
		sub, err := p.nc.Subscribe(subject, heard)
		if err != nil {
			return r, sendError(opWatch, err)
		}
		r.subs = append(r.subs, sub)
		_ = sub.SetPendingLimits(-1, -1) // flow control bounds them; fails only when closed
	}
	config := jetstream.ConsumerConfig{
		Name: r.name, DeliverSubject: inbox, FilterSubject: w.filter, DeliverPolicy: jetstream.DeliverNewPolicy, AckPolicy: jetstream.AckNonePolicy, MaxDeliver: 1,
		FlowControl: true, IdleHeartbeat: watchHeartbeat, InactiveThreshold: time.Minute, MemoryStorage: true, Replicas: 1,
	}
	if w.begun {
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, w.place()+1
	}
	body := struct {
		Stream string                   `json:"stream_name"`
		Config jetstream.ConsumerConfig `json:"config"`
		Action string                   `json:"action"`
	}{w.s.stream, config, "create"}
	made, err := request[jetstream.ConsumerInfo](ctx, p, opWatch, "$JS.API.CONSUMER.CREATE."+w.s.stream+"."+r.name+"."+w.filter, body)
	if err != nil {
		return r, err
	}
	stream, err := w.s.streamInfo(ctx, p)
	if err != nil {
		return r, err
	}
	return r, w.resume(made, stream)
}

const (
	watchHeartbeat = 30 * time.Second
	// advisories is where the server tells of requests to its interface, to those who ask.
	advisories = "$JS.EVENT.ADVISORY.API"
)

func (s *state) streamInfo(ctx context.Context, p *period) (*jetstream.StreamInfo, error) {
	return request[jetstream.StreamInfo](ctx, p, opWatch, "$JS.API.STREAM.INFO."+s.stream, nil)
}

// request is a request to the server's interface.
func request[T any](ctx context.Context, p *period, op fault.Op, subject string, about any) (*T, error) {
	var body []byte
	if about != nil {
		var err error
		if body, err = json.Marshal(about); err != nil {
			return nil, fault.Wrap(op, fault.Internal, err)
		}
	}
	answers, err := p.ask(ctx, op, &natsgo.Msg{Subject: subject, Data: body})
	if err != nil {
		return nil, err
	}
	var failed struct {
		Error *apiError `json:"error"`
	}
	answer := new(T)
	for _, into := range []any{&failed, answer} {
		if err := json.Unmarshal(answers[0].Data, into); err != nil {
			return nil, fault.New(op, fault.Unavailable, "the server answers %s with %.100q", subject, answers[0].Data).Because(err)
		}
	}
	if failed.Error != nil {
		return nil, refusal(op, "request "+subject, failed.Error)
	}
	return answer, nil
}

// guard makes sure, from time to time, that everything was told.
func (r *round) guard(ctx context.Context) {
	tick := time.NewTicker(r.w.pace())
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		short, cancel := context.WithTimeout(ctx, watchStale)
		info, err := request[jetstream.ConsumerInfo](short, r.p, opWatch, "$JS.API.CONSUMER.INFO."+r.w.s.stream+"."+r.name, nil)
		var stream *jetstream.StreamInfo
		if err == nil {
			stream, err = r.w.s.streamInfo(short, r.p)
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
		r.checked(info, stream, err)
	}
}

// close ends the consumer. The server forgets one that it cannot be told of.
func (r *round) close() {
	r.w.mu.Lock()
	r.ended = true
	r.w.mu.Unlock()
	for _, sub := range r.subs {
		_ = sub.Unsubscribe() // fails when the connection is gone
	}
	_ = r.p.nc.Publish("$JS.API.CONSUMER.DELETE."+r.w.s.stream+"."+r.name, nil) // as above
}

// advised hears of requests to the server's interface. One that takes messages away leaves no
// trace in the stream.
func (r *round) advised(m *natsgo.Msg) {
	text := string(m.Data)
	is := func(request string) bool { return strings.Contains(text, request+r.w.s.stream+`"`) }
	purge, remove, end := is("STREAM.PURGE."), is("STREAM.MSG.DELETE."), is("STREAM.DELETE.")
	if !purge && !remove && !end {
		return
	}
	var told struct{ Request, Response string }
	var asked struct{ Filter string }
	var response struct {
		Purged  int
		Success bool
	}
	if json.Unmarshal(m.Data, &told) == nil && json.Unmarshal([]byte(told.Response), &response) == nil {
		if !response.Success || purge && response.Purged == 0 {
			return
		}
		if told.Request != "" && json.Unmarshal([]byte(told.Request), &asked) == nil && asked.Filter != "" && !strings.ContainsAny(asked.Filter, "*>") {
			if key := r.w.s.keyOf(asked.Filter); key == nil || !strings.HasPrefix(*key, r.w.prefix) {
				return
			}
		}
	}
	r.fail(missed("messages of bucket %s were removed", r.w.s.stream))
}
