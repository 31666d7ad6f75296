package pubsub

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

// AttemptHeader is the header or metadata entry telling the app how often it has been given a
// message: 1 the first time.
const AttemptHeader = "mecha-attempt"

// deadLetterMark is set on dead-letter copies to the topic they come from, so that a copy made
// because its event had expired is not dropped for the same reason on the dead-letter topic.
const deadLetterMark = "mecha-dead-letter"

// Answer is what an app says of an event.
type Answer uint8

// The answers.
const (
	Success Answer = iota // done
	Retry                 // failed, send it again
	Drop                  // never send it again
)

// String is the answer's name on the wires.
func (a Answer) String() string { return [...]string{"SUCCESS", "RETRY", "DROP"}[a] }

// Event is one event for an app that takes decoded events (gRPC, streams). It belongs to the
// receiver.
type Event struct {
	ID, Source, Type, SpecVersion, DataContentType string
	PubSub                                         string
	Topic                                          string // as subscribed, not as published
	Path                                           string // the route that took the event
	// Data is the payload: JSON as JSON text, text as it is, data_base64 decoded.
	Data []byte
	// Extensions are all other attributes, topic, pubsubname, time and the trace fields among
	// them, as encoding/json decodes them.
	Extensions map[string]any
	// Metadata is the broker's, with pubsubName and AttemptHeader.
	Metadata map[string]string
	// TraceParent is the trace context of the delivery, or of the event if deliveries have no
	// spans; empty when it has none. TraceBin is the same as grpc-trace-bin, if known.
	TraceParent, TraceBin string
	Attempt               int // from 1
}

// Batch is several events for one route. EntryIDs are new with every delivery.
type Batch struct {
	ID, Type, PubSub, Topic, Path string
	Entries                       []BatchEntry
	Metadata                      map[string]string
}

// BatchEntry is one message of a batch.
type BatchEntry struct {
	EntryID string
	// Event is the event; nil for a raw subscription, which gets Bytes.
	Event       *Event
	Bytes       []byte
	ContentType string // of Bytes when raw, else application/cloudevents+json
	Metadata    map[string]string
}

// arrival is a message on its way to the app, read as far as needed.
type arrival struct {
	block.Delivery
	// body is the envelope the app gets over HTTP.
	body []byte
	// What routing and delivery look at.
	expiration  string
	traceParent string
	hasTrace    bool // the event has a trace attribute, if only an empty one

	attributes map[string]any // decoded; nil until asked for
}

// read makes an arrival of a broker's message: the stored envelope, or a new one for a raw
// subscription. An error means that the message is no event.
func read(sub *Subscription, d block.Delivery) (*arrival, error) {
	a := &arrival{Delivery: d, body: d.Data}
	if sub.raw() {
		trace, state := find(d.Metadata, "traceid"), find(d.Metadata, "tracestate")
		a.body = wrapRaw(newID(), sub.Topic, sub.PubSub, trace, state, d.Data)
		a.traceParent, a.hasTrace = trace, true
		return a, nil
	}
	var traceID string
	ok := scanObject(d.Data, func(name, value []byte) {
		if value[0] != '"' {
			return
		}
		switch string(name) {
		case `"expiration"`:
			a.expiration = unquote(value)
		case `"traceparent"`:
			a.traceParent, a.hasTrace = unquote(value), true
		case `"traceid"`:
			traceID, a.hasTrace = unquote(value), true
		}
	})
	if a.traceParent == "" {
		a.traceParent = traceID
	}
	if ok {
		return a, nil
	}
	if body := fromBinaryMode(d); body != nil {
		d.Data = body
		return read(sub, d)
	}
	return a, fault.New("pubsub.read", fault.Invalid,
		"message %s of %s is not a CloudEvent; subscribe with metadata rawPayload \"true\" to receive other messages", d.Position, sub)
}

// fromBinaryMode rebuilds the event of a producer that sent its attributes as ce_ metadata and
// the bare payload as bytes. It returns nil when the message is not such.
func fromBinaryMode(d block.Delivery) []byte {
	if !isType(find(d.Metadata, "content-type"), octetType) && !isType(find(d.Metadata, "contentType"), octetType) {
		return nil
	}
	event := map[string]string{}
	for k, v := range d.Metadata {
		if len(k) > 3 && (hasPrefixFold(k, "ce_") || hasPrefixFold(k, "ce-")) {
			event[strings.ToLower(k[3:])] = v
		}
	}
	if len(event) == 0 {
		return nil
	}
	if event["datacontenttype"] == "" {
		event["datacontenttype"] = octetType
	}
	event["data_base64"] = base64.StdEncoding.EncodeToString(d.Data)
	body, _ := json.Marshal(event) // a map of strings cannot fail
	return body
}

// find is a metadata entry, its name in any case.
func find(metadata map[string]string, name string) string {
	if v, ok := metadata[name]; ok {
		return v
	}
	for k, v := range metadata {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return ""
}

// expired reports whether the event's time is over. Dead-letter copies do not expire.
func (a *arrival) expired(now time.Time) bool {
	if a.expiration == "" || a.Metadata[deadLetterMark] != "" {
		return false
	}
	at, err := time.Parse(time.RFC3339, a.expiration)
	return err == nil && !now.Before(at)
}

// event decodes the attributes, once.
func (a *arrival) event() (map[string]any, error) {
	if a.attributes == nil {
		if err := json.Unmarshal(a.body, &a.attributes); err != nil {
			return nil, fault.New("pubsub.event", fault.Invalid, "message %s cannot be decoded", a.Position).Because(err)
		}
	}
	return a.attributes, nil
}

// headers is the metadata the app sees.
func (a *arrival) headers(sub *Subscription, attempt int) map[string]string {
	out := make(map[string]string, len(a.Metadata)+2)
	maps.Copy(out, a.Metadata)
	out["pubsubName"] = sub.PubSub
	out[AttemptHeader] = strconv.Itoa(attempt)
	return out
}

// decoded makes the Event of an arrival.
func (a *arrival) decoded(sub *Subscription, path string, attempt int) (*Event, error) {
	attributes, err := a.event()
	if err != nil {
		return nil, err
	}
	e := &Event{PubSub: sub.PubSub, Topic: sub.Topic, Path: path, Attempt: attempt,
		Metadata: a.headers(sub, attempt), TraceParent: a.traceParent,
		Extensions: make(map[string]any, len(attributes))}
	for name, value := range attributes {
		text, isText := value.(string)
		switch name {
		case "id":
			e.ID = text
		case "source":
			e.Source = text
		case "type":
			e.Type = text
		case "specversion":
			e.SpecVersion = text
		case "datacontenttype":
			e.DataContentType = text
		case "data":
		case "data_base64":
			if e.Data, err = base64.StdEncoding.DecodeString(text); err != nil || !isText {
				return nil, fault.New("pubsub.event", fault.Invalid, "message %s: data_base64 is not base64", a.Position)
			}
		default:
			e.Extensions[name] = value
		}
	}
	if e.Data == nil {
		e.Data = a.data(e.DataContentType)
	}
	return e, nil
}

// data is the payload of an event that carries it as a JSON value, cut from the envelope so
// that numbers stay exact. Without a content type it is JSON, as CloudEvents says.
func (a *arrival) data(contentType string) []byte {
	var value []byte
	scanObject(a.body, func(name, v []byte) {
		if string(name) == `"data"` {
			value = v
		}
	})
	if value == nil {
		return nil
	}
	if value[0] == '"' && contentType != "" && !isType(contentType, jsonType) {
		return []byte(unquote(value))
	}
	return value
}
