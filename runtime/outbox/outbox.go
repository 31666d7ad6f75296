// Package outbox publishes an event for every upsert of a transaction, if and only if the
// transaction commits.
//
// Before the commit each event goes to an internal topic, and the transaction gets a marker for
// it, an item that says only that the transaction is there. A subscriber of the internal topic, in
// this sidecar or another of the same app, looks for the marker: when it is there the event is
// published to the topic the user named, and the marker is removed. So an event without its
// transaction is never seen, and a transaction without its event happens only if the internal
// topic loses a message. An event may be published twice; it has the same id both times.
//
// The names of keys, topics and settings are Dapr's. It stands between the state and the pub/sub
// service, which know nothing of each other. Start at Service.Prepare, then Run.
package outbox

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/state"
)

// Markers are how the state service shows the markers of committed transactions.
type Markers interface {
	Marked(ctx context.Context, store, key string) (bool, error)
	Unmark(ctx context.Context, store, key string) error
}

// Service is the outbox of every store that has one. It is safe for concurrent use.
type Service struct {
	pubsub *pubsub.Service
	self   identity.Self
	log    *slog.Logger

	mu     sync.Mutex           // guards what follows
	failed map[string]time.Time // markers of transactions that certainly did not commit
	stops  map[string]context.CancelFunc
	closed bool
	alive  sync.WaitGroup
}

// New makes the service.
func New(p *pubsub.Service, self identity.Self, log *slog.Logger) *Service {
	return &Service{pubsub: p, self: self, log: log, failed: map[string]time.Time{}, stops: map[string]context.CancelFunc{}}
}

// settings are what a store's metadata say.
type settings struct {
	pubsub, topic, internal string
	discard                 bool
}

// of reads a store's settings; ok is false when it has no outbox.
func of(info catalog.Info) (s settings, ok bool) {
	s = settings{pubsub: info.Raw["outboxpublishpubsub"], topic: info.Raw["outboxpublishtopic"], internal: info.Raw["outboxpubsub"]}
	if s.internal == "" {
		s.internal = s.pubsub
	}
	switch strings.ToLower(info.Raw["outboxdiscardwhenmissingstate"]) {
	case "true", "1", "yes", "y", "t":
		s.discard = true
	}
	return s, s.pubsub != "" && s.topic != ""
}

// Check reports settings that contradict each other: half an outbox would lose events silently.
func Check(info catalog.Info) error {
	has := func(key string) bool { return info.Raw[key] != "" }
	if has("outboxpublishpubsub") != has("outboxpublishtopic") {
		return fault.New("outbox.Check", fault.Invalid, "outboxPublishPubsub and outboxPublishTopic belong together; only one of them is set")
	}
	return nil
}

// topic is the internal topic of a store's outbox.
func (s *Service) topic(cfg settings) string {
	return s.self.Namespace + s.self.App + cfg.topic + "outbox"
}

// projection marks an operation that is not stored but published in the place of another.
const projection = "outbox.projection"

// Prepare publishes the events of a transaction to the internal topic. It returns the operations
// to store, without projections, and the keys of the markers that the transaction must write. A
// store without an outbox gets its operations back. failed must be called when the transaction
// certainly did not commit.
func (s *Service) Prepare(ctx context.Context, info catalog.Info, ops []state.Operation) (kept []state.Operation, markers []string, failed func(), err error) {
	cfg, ok := of(info)
	if !ok {
		return ops, nil, func() {}, nil
	}
	projected := map[string]*state.Operation{}
	for i := range ops {
		if op := &ops[i]; op.Operation == "upsert" && strings.EqualFold(op.Metadata[projection], "true") {
			projected[op.Key] = op
		} else {
			kept = append(kept, *op)
		}
	}
	for i := range kept {
		op := &kept[i]
		if op.Operation != "upsert" {
			continue
		}
		value := op.Value
		if p := projected[op.Key]; p != nil {
			value = p.Value
		}
		key := "outbox-" + uuid.NewString()
		body, err := json.Marshal(internalEvent{Made: time.Now(), Event: s.event(key, value, op.Metadata)})
		if err == nil {
			err = s.pubsub.Publish(ctx, pubsub.PublishRequest{PubSub: cfg.internal, Topic: s.topic(cfg), Data: body, ContentType: "application/json", Metadata: map[string]string{"rawPayload": "true"}})
		}
		if err != nil {
			s.fail(markers)
			return nil, nil, nil, fault.New("outbox.Prepare", fault.Of(err), "error while publishing outbox message").With(fault.OutboxFailed).WithRule(fault.RuleOf(err)).Because(err)
		}
		markers = append(markers, key)
	}
	return kept, markers, func() { s.fail(markers) }, nil
}

// internalEvent is what travels on the internal topic.
type internalEvent struct {
	Made  time.Time      `json:"made"`
	Event map[string]any `json:"event"`
}

// event is the CloudEvent of one upsert. Entries of its metadata become attributes.
func (s *Service) event(id string, value []byte, metadata map[string]string) map[string]any {
	e := map[string]any{"specversion": "1.0", "type": "com.dapr.event.sent"}
	contentType := ""
	for k, v := range metadata {
		if strings.EqualFold(k, "contentType") {
			contentType = v
		}
		if k != "id" && k != "data" && k != projection {
			e[k] = v
		}
	}
	e["id"], e["source"] = id, s.self.App
	switch isJSON := json.Valid(value); {
	case isJSON && (contentType == "" || strings.HasPrefix(contentType, "application/json") || strings.HasSuffix(contentType, "+json")):
		if contentType == "" {
			contentType = "application/json"
		}
		e["data"] = json.RawMessage(value)
	case utf8.Valid(value):
		if contentType == "" {
			contentType = "text/plain"
		}
		e["data"] = string(value)
	default:
		if contentType == "" {
			contentType = "application/octet-stream"
		}
		e["data_base64"] = base64.StdEncoding.EncodeToString(value)
	}
	e["datacontenttype"] = contentType
	return e
}

// Times of the subscriber. Dapr waits a second before it looks, and for ten.
const (
	look      = 100 * time.Millisecond // between looks for a marker, at first
	lookMax   = 2 * time.Second
	lookFor   = 10 * time.Second
	giveUp    = time.Hour // no transaction takes as long: it never committed
	failedFor = giveUp
)

// fail remembers markers of a transaction that did not commit.
func (s *Service) fail(markers []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for k, at := range s.failed {
		if now.Sub(at) > failedFor {
			delete(s.failed, k)
		}
	}
	for _, m := range markers {
		s.failed[m] = now
	}
}

func (s *Service) hasFailed(marker string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.failed[marker]
	return ok
}

// Serve runs the subscriber of a store's outbox, if it has one, until the store is served again or
// the service closes. The host calls it for each store that is loaded.
func (s *Service) Serve(info catalog.Info, markers Markers) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if stop := s.stops[info.Name]; stop != nil {
		stop()
		delete(s.stops, info.Name)
	}
	cfg, ok := of(info)
	if !ok || s.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stops[info.Name] = cancel
	s.alive.Go(func() { s.serve(ctx, info.Name, cfg, markers) })
}

// Close ends all subscribers and waits for them.
func (s *Service) Close() {
	s.mu.Lock()
	s.closed = true
	for _, stop := range s.stops {
		stop()
	}
	s.mu.Unlock()
	s.alive.Wait()
}

// serve subscribes to the internal topic, again whenever that ends.
func (s *Service) serve(ctx context.Context, store string, cfg settings, markers Markers) {
	for ctx.Err() == nil {
		st, err := s.pubsub.OpenStream(pubsub.StreamOptions{PubSub: cfg.internal, Topic: s.topic(cfg), Metadata: map[string]string{"rawPayload": "true"}})
		if err == nil {
			var busy sync.WaitGroup
			err = st.Run(ctx, func(e *pubsub.Event) error {
				busy.Go(func() { st.Answer(e.ID, s.settle(ctx, store, cfg, markers, e.Data)) })
				return nil
			})
			busy.Wait()
			if err == nil {
				return // drained
			}
		}
		if ctx.Err() == nil {
			s.log.Warn("the outbox of a store does not run and is tried again", "store", store, "pubsub", cfg.internal, "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// settle sees one event through.
func (s *Service) settle(ctx context.Context, store string, cfg settings, markers Markers, data []byte) pubsub.Answer {
	var in internalEvent
	if err := json.Unmarshal(data, &in); err != nil {
		s.log.Error("a message of an outbox cannot be read and is dropped", "store", store, "err", err)
		return pubsub.Drop
	}
	key, _ := in.Event["id"].(string)
	there, err := s.await(ctx, store, key, markers)
	switch {
	case err != nil:
		s.log.Warn("an event of an outbox waits for its store", "store", store, "err", err)
		return pubsub.Retry
	case !there && (s.hasFailed(key) || cfg.discard):
		return pubsub.Drop
	case !there && time.Since(in.Made) > giveUp:
		s.log.Warn("an event of an outbox is dropped: its transaction was never committed", "store", store, "marker", key)
		return pubsub.Drop
	case !there:
		return pubsub.Retry
	}
	body, err := json.Marshal(in.Event)
	if err == nil {
		err = s.pubsub.Publish(ctx, pubsub.PublishRequest{PubSub: cfg.pubsub, Topic: cfg.topic, Data: body, ContentType: "application/cloudevents+json"})
	}
	if err == nil {
		err = markers.Unmark(ctx, store, key)
	}
	if err != nil {
		s.log.Warn("an event of an outbox is published again", "store", store, "topic", cfg.topic, "err", err)
		return pubsub.Retry
	}
	return pubsub.Success
}

// await looks for a marker until it is there, its transaction is known to have failed, or time
// is up.
func (s *Service) await(ctx context.Context, store, key string, markers Markers) (there bool, err error) {
	pause := look
	for end := time.Now().Add(lookFor); ; pause = min(2*pause, lookMax) {
		if there, err = markers.Marked(ctx, store, key); there || s.hasFailed(key) || time.Now().After(end) || ctx.Err() != nil {
			return there, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(pause):
		}
	}
}
