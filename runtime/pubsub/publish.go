package pubsub

import (
	"bytes"
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Trace is the W3C trace context of a publish or of a delivery: headers as text, empty when
// there is none.
type Trace struct {
	Parent, State string
	Bin           string // the value of grpc-trace-bin, for gRPC apps; empty where it is not known
}

// PublishRequest is one message to publish.
type PublishRequest struct {
	PubSub, Topic string
	Data          []byte
	ContentType   string // as the caller wrote it; empty means text/plain
	// Metadata steers the publish (rawPayload, ttlInSeconds, cloudevent.*, partitionKey) and
	// goes to the broker whole. It is not changed, and must not be while Publish runs.
	Metadata map[string]string
	Trace    Trace
	// StampRaw adds traceid and tracestate, possibly empty, to a raw message's metadata. The
	// gRPC edge sets it, as Dapr does there and not over HTTP.
	StampRaw bool
}

// Publish wraps the data into a CloudEvent, unless metadata ask for rawPayload or the data is
// a CloudEvent already, and gives it to the broker. It returns when the broker has accepted
// the message.
func (s *Service) Publish(ctx context.Context, r PublishRequest) error {
	h, err := s.lookup(r.PubSub, r.Topic)
	if err != nil {
		return err
	}
	raw, err := rawPayload(r.Metadata)
	if err != nil {
		return err
	}
	rules := s.rulesOf(h)
	msg, err := s.message(rules, &r, raw)
	if err != nil {
		return err
	}
	if err := s.checkPublish(rules, r.Topic); err != nil {
		return err
	}
	return s.append(ctx, h, r.Topic, msg)
}

func (s *Service) checkPublish(rules *rules, topic string) error {
	if rules.mayPublish(s.self.App, topic) {
		return nil
	}
	return forbidden("pubsub.Publish", "topic %s is not allowed for app id %s", topic, s.self.App)
}

// append publishes one message as one call. topic is the app's name of it.
func (s *Service) append(ctx context.Context, h *catalog.Handle[block.PubSub], topic string, msg block.Message) error {
	start := time.Now()
	msgs := []block.Message{msg}
	desc := s.desc("publish", topic, msg.Key)
	_, err := catalog.Do(ctx, h, desc, func(ctx context.Context, broker block.PubSub) (struct{}, error) {
		return struct{}{}, firstError(s.put(ctx, broker, msgs))
	}, func() func(context.Context, block.PubSub) error { return s.shadow(msgs) })
	if s.opts.Recorder != nil {
		s.opts.Recorder.PubSubEgress(h.Name, topic, err == nil, time.Since(start))
	}
	return err
}

// desc describes a publish. The topic in it is the app's name of it.
func (s *Service) desc(op, topic, key string) call.Desc {
	return call.Desc{Op: op, Resource: topic, Key: key, Safety: call.Unsafe,
		Caller: call.Caller{App: s.self.App, Namespace: s.self.Namespace, Proven: true}}
}

// shadow copies messages for a mirror.
func (s *Service) shadow(msgs []block.Message) func(context.Context, block.PubSub) error {
	copies := make([]block.Message, len(msgs))
	for i, m := range msgs {
		copies[i] = m
		copies[i].Topic, copies[i].Key, copies[i].Data = strings.Clone(m.Topic), strings.Clone(m.Key), bytes.Clone(m.Data)
		copies[i].Metadata = make(map[string]string, len(m.Metadata))
		for k, v := range m.Metadata {
			copies[i].Metadata[strings.Clone(k)] = strings.Clone(v)
		}
	}
	return func(ctx context.Context, broker block.PubSub) error { return firstError(s.put(ctx, broker, copies)) }
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// message makes the broker's message of a request.
func (s *Service) message(rules *rules, r *PublishRequest, raw bool) (block.Message, error) {
	d := readDirectives(r.Metadata)
	msg := block.Message{Topic: rules.prefix + r.Topic, Key: d.key, Metadata: r.Metadata, ID: newID()}
	if rules.ownTTL {
		msg.TTL = d.ttl
	}
	if raw {
		msg.Data = r.Data
		if r.StampRaw {
			msg.Metadata = stamped(r.Metadata, r.Trace)
		}
		return msg, nil
	}
	now := time.Now()
	// The message's id stays the same when a policy repeats the publish, so that a broker that
	// knows duplicates takes it once. An id the user chose is not used for that: two events
	// that share one are still two events.
	e := envelope{id: msg.ID, source: s.self.App, typ: defaultEventType, contentType: r.ContentType,
		topic: r.Topic, pubsub: r.PubSub, traceParent: r.Trace.Parent, traceState: r.Trace.State,
		now: now, data: r.Data}
	if d.hasTTL && !rules.ownTTL {
		e.expiration = now.Add(d.ttl).UTC().Format(time.RFC3339)
	}
	if isType(r.ContentType, cloudEventType) {
		var err error
		msg.Data, err = e.adopt()
		return msg, err
	}
	if e.contentType == "" {
		e.contentType = textType
	}
	if d.overrides {
		e.override(r.Metadata)
	}
	msg.Data = e.encode()
	return msg, nil
}

func stamped(metadata map[string]string, t Trace) map[string]string {
	out := make(map[string]string, len(metadata)+2)
	for k, v := range metadata {
		out[k] = v
	}
	out["traceid"], out["tracestate"] = t.Parent, t.State
	return out
}

// rawPayload reads the one metadata entry whose name is compared exactly.
func rawPayload(metadata map[string]string) (bool, error) {
	text, ok := metadata["rawPayload"]
	if !ok {
		return false, nil
	}
	raw, err := strconv.ParseBool(text)
	if err != nil {
		return false, fault.New("pubsub.metadata", fault.Invalid,
			"failed deserializing metadata: rawPayload must be true or false, got %q", text).With(fault.BadMetadata)
	}
	return raw, nil
}

// directives are what metadata ask of the publish itself.
type directives struct {
	key       string
	ttl       time.Duration
	hasTTL    bool
	overrides bool // there are cloudevent.* entries
}

func readDirectives(metadata map[string]string) (d directives) {
	if len(metadata) == 0 {
		return d
	}
	var short string
	for name, value := range metadata {
		switch {
		case strings.EqualFold(name, "partitionKey"):
			d.key = value
		case strings.EqualFold(name, "__key") && d.key == "":
			d.key = value
		case strings.EqualFold(name, "ttlInSeconds"):
			d.ttl, d.hasTTL = parseTTL(value)
		case strings.EqualFold(name, "ttl"):
			short = value
		case hasPrefixFold(name, overridePrefix):
			d.overrides = true
		}
	}
	if short != "" && !d.hasTTL {
		d.ttl, d.hasTTL = parseTTL(short)
	}
	return d
}

// parseTTL reads whole seconds or a Go duration. As in Dapr a negative or unreadable value is
// no TTL; zero is one, and means expired at once.
func parseTTL(text string) (time.Duration, bool) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n > math.MaxInt64/int64(time.Second) {
			return math.MaxInt64, true
		}
		return time.Duration(n) * time.Second, n >= 0
	}
	d, err := time.ParseDuration(text)
	return d, err == nil && d >= 0
}

const overridePrefix = "cloudevent."

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// override applies cloudevent.* metadata. traceparent wins over traceid, and each fills both
// fields. Other names change nothing.
func (e *envelope) override(metadata map[string]string) {
	var traceID, traceParent *string
	for name, value := range metadata {
		if !hasPrefixFold(name, overridePrefix) {
			continue
		}
		switch strings.ToLower(name[len(overridePrefix):]) {
		case "id":
			e.id = value
		case "source":
			e.source = value
		case "type":
			e.typ = value
		case "subject":
			e.subject = value
		case "traceid":
			traceID = &value
		case "traceparent":
			traceParent = &value
		case "tracestate":
			e.traceState = value
		}
	}
	switch {
	case traceParent != nil:
		e.traceParent = *traceParent
	case traceID != nil:
		e.traceParent = *traceID
	}
}
