package pubsub

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// The content types with a meaning of their own.
const (
	cloudEventType = "application/cloudevents+json"
	jsonType       = "application/json"
	octetType      = "application/octet-stream"
	textType       = "text/plain"
)

const (
	defaultEventType  = "com.dapr.event.sent"
	bulkEventType     = "com.dapr.event.sent.bulk"
	defaultSource     = "Dapr"
	cloudEventVersion = "1.0"
)

// envelope is what an event is made of before it is encoded. traceParent fills traceid too:
// Dapr puts the whole traceparent there, and consumers rely on it.
type envelope struct {
	id, source, typ, subject string
	contentType              string
	topic, pubsub            string
	traceParent, traceState  string
	expiration               string // RFC 3339; empty means none
	now                      time.Time
	data                     []byte
}

// mediaType is the type without parameters, cut at the first ';' and not trimmed: Dapr does
// not take "application/json ;x" for JSON.
func mediaType(contentType string) string {
	if i := strings.IndexByte(contentType, ';'); i >= 0 {
		return contentType[:i]
	}
	return contentType
}

func isType(contentType, want string) bool {
	return strings.EqualFold(mediaType(contentType), want)
}

// encode makes the envelope's bytes: names in alphabetical order, no white space, '<', '>' and
// '&' escaped. One allocation, but for data that grows by escaping.
func (e *envelope) encode() []byte {
	room := 400 + len(e.data) + len(e.data)/16 + len(e.source) + len(e.contentType) + len(e.topic) +
		len(e.pubsub) + 2*len(e.traceParent) + len(e.traceState) + len(e.subject) + len(e.id)
	binaryData := isBinary(e.contentType, e.data)
	if binaryData {
		room += len(e.data)/3 + 4
	}
	b := make([]byte, 0, room)
	if binaryData {
		b = append(b, `{"data_base64":"`...)
		b = base64.StdEncoding.AppendEncode(b, e.data)
		b = append(b, '"')
	} else {
		b = append(b, `{"data":`...)
		b = e.appendData(b)
	}
	b = appendMember(b, `,"datacontenttype":`, e.contentType)
	if e.expiration != "" {
		b = appendMember(b, `,"expiration":`, e.expiration)
	}
	b = appendMember(b, `,"id":`, e.id)
	b = appendMember(b, `,"pubsubname":`, e.pubsub)
	b = appendMember(b, `,"source":`, e.source)
	b = append(b, `,"specversion":"`+cloudEventVersion+`"`...)
	if e.subject != "" {
		b = appendMember(b, `,"subject":`, e.subject)
	}
	b = append(b, `,"time":"`...)
	b = e.now.UTC().AppendFormat(b, time.RFC3339)
	b = append(b, '"')
	b = appendMember(b, `,"topic":`, e.topic)
	b = appendMember(b, `,"traceid":`, e.traceParent)
	b = appendMember(b, `,"traceparent":`, e.traceParent)
	b = appendMember(b, `,"tracestate":`, e.traceState)
	b = appendMember(b, `,"type":`, e.typ)
	return append(b, '}')
}

func appendMember(b []byte, name, value string) []byte {
	return appendString(append(b, name...), value)
}

// appendData appends the value of data: JSON as a value when it is JSON, all else as a string.
func (e *envelope) appendData(b []byte) []byte {
	if len(e.data) > 0 && isType(e.contentType, jsonType) && validJSON(e.data) {
		return appendJSON(b, e.data)
	}
	return appendString(b, e.data)
}

// isBinary tells which payloads travel as data_base64.
func isBinary(contentType string, data []byte) bool {
	switch {
	case isType(contentType, octetType), isType(contentType, "application/cloudevents+protobuf"):
		return true
	case isType(contentType, "application/x-protobuf"):
		return len(data) > 0 && isProtoCloudEvent(data)
	}
	return false
}

// wrapRaw makes the envelope a raw subscription receives around the broker's bytes. Unlike a
// published one it has no time, and its trace fields come from the message's metadata.
func wrapRaw(id, topic, pubsub, traceID, traceState string, data []byte) []byte {
	b := make([]byte, 0, 320+len(data)*4/3+len(topic)+len(pubsub)+2*len(traceID)+len(traceState))
	b = append(b, `{"data_base64":"`...)
	b = base64.StdEncoding.AppendEncode(b, data)
	b = append(b, `","datacontenttype":"`+octetType+`"`...)
	b = appendMember(b, `,"id":`, id)
	b = appendMember(b, `,"pubsubname":`, pubsub)
	b = append(b, `,"source":"`+defaultSource+`","specversion":"`+cloudEventVersion+`"`...)
	b = appendMember(b, `,"topic":`, topic)
	b = appendMember(b, `,"traceid":`, traceID)
	b = appendMember(b, `,"traceparent":`, traceID)
	b = appendMember(b, `,"tracestate":`, traceState)
	return append(b, `,"type":"`+defaultEventType+`"}`...)
}

// member is one attribute of an event, as JSON.
type member struct {
	name  string
	value []byte
}

// adopt turns a body that is a CloudEvent already into the envelope to publish: the user's
// attributes are kept; a missing source, type, specversion or time is filled in (a missing id
// or datacontenttype is not); trace fields are set when absent; topic, pubsubname and, with a
// TTL, expiration are always ours.
func (e *envelope) adopt() ([]byte, error) {
	var members []member
	ok := scanObject(e.data, func(name, value []byte) {
		n := unquote(name)
		for i := range members {
			if members[i].name == n {
				members[i].value = value // the last of equal names counts, as in any JSON reader
				return
			}
		}
		members = append(members, member{n, value})
	})
	if !ok {
		return nil, fault.New("pubsub.envelope", fault.Invalid,
			"cannot create cloudevent: the body is not a JSON object, though its content type is %s", cloudEventType).With(fault.BadEnvelope)
	}
	has := func(name string) bool {
		return slices.ContainsFunc(members, func(m member) bool { return m.name == name })
	}
	set := func(name, value string) {
		members = slices.DeleteFunc(members, func(m member) bool { return m.name == name })
		members = append(members, member{name, appendString(nil, value)})
	}
	fill := func(name, value string) {
		if !has(name) {
			set(name, value)
		}
	}
	fill("source", defaultSource)
	fill("type", defaultEventType)
	fill("specversion", cloudEventVersion)
	fill("time", e.now.UTC().Format(time.RFC3339))
	if !has("traceid") {
		set("traceid", e.traceParent)
		set("traceparent", e.traceParent)
	}
	fill("tracestate", e.traceState)
	set("topic", e.topic)
	set("pubsubname", e.pubsub)
	if e.expiration != "" {
		set("expiration", e.expiration)
	}
	slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.name, b.name) })
	b := make([]byte, 0, len(e.data)+len(e.data)/16+256)
	opening := byte('{')
	for _, m := range members {
		b = append(appendString(append(b, opening), m.name), ':')
		b = appendJSON(b, m.value)
		opening = ','
	}
	return append(b, '}'), nil
}

// unquote is the text of a scanned JSON string. Nearly all names and short values have no
// escapes.
func unquote(quoted []byte) string {
	text := quoted[1 : len(quoted)-1]
	for _, c := range text {
		if c == '\\' || c >= 0x80 {
			var s string
			_ = json.Unmarshal(quoted, &s) // scanned before: it is a string
			return s
		}
	}
	return string(text)
}

// newID makes a random (version 4) UUID. The generator is seeded by the system and strong
// enough that ids do not meet; nothing relies on their being secret.
func newID() string {
	var raw [16]byte
	binary.LittleEndian.PutUint64(raw[:8], rand.Uint64())
	binary.LittleEndian.PutUint64(raw[8:], rand.Uint64())
	raw[6] = raw[6]&0x0f | 0x40
	raw[8] = raw[8]&0x3f | 0x80
	var text [36]byte
	hex.Encode(text[0:8], raw[0:4])
	hex.Encode(text[9:13], raw[4:6])
	hex.Encode(text[14:18], raw[6:8])
	hex.Encode(text[19:23], raw[8:10])
	hex.Encode(text[24:36], raw[10:16])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}
