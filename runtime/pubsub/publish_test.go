package pubsub_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// id overrides the random id, so that the rest can be compared byte by byte. Under synctest
// the time is 2000-01-01T00:00:00Z.
func id(more ...string) map[string]string {
	m := map[string]string{"cloudevent.id": "1"}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

func TestEnvelope(t *testing.T) {
	const tail = `,"pubsubname":"ps","source":"shop","specversion":"1.0","time":"2000-01-01T00:00:00Z","topic":"t",` +
		`"traceid":"","traceparent":"","tracestate":"","type":"com.dapr.event.sent"}`
	cases := []struct {
		name, contentType, data string
		metadata                map[string]string
		trace                   pubsub.Trace
		want                    string
	}{
		{"json", "application/json", ` {"b": 1.50, "a":[1e3, "<é>"]}`, id(), pubsub.Trace{},
			`{"data":{"b":1.50,"a":[1e3,"\u003cé\u003e"]},"datacontenttype":"application/json","id":"1"` + tail},
		{"json with parameters, any case", "Application/JSON; charset=utf-8", `7`, id(), pubsub.Trace{},
			`{"data":7,"datacontenttype":"Application/JSON; charset=utf-8","id":"1"` + tail},
		{"json that is none", "application/json", `{"a`, id(), pubsub.Trace{},
			`{"data":"{\"a","datacontenttype":"application/json","id":"1"` + tail},
		{"json type not trimmed", "application/json ;x", `{}`, id(), pubsub.Trace{},
			`{"data":"{}","datacontenttype":"application/json ;x","id":"1"` + tail},
		{"json empty", "application/json", ``, id(), pubsub.Trace{},
			`{"data":"","datacontenttype":"application/json","id":"1"` + tail},
		{"text/json is text", "text/json", `{}`, id(), pubsub.Trace{},
			`{"data":"{}","datacontenttype":"text/json","id":"1"` + tail},
		{"+json is text", "application/ld+json", `{"a":1}`, id(), pubsub.Trace{},
			`{"data":"{\"a\":1}","datacontenttype":"application/ld+json","id":"1"` + tail},
		{"cloud event batch is text", "application/cloudevents-batch+json", `[]`, id(), pubsub.Trace{},
			`{"data":"[]","datacontenttype":"application/cloudevents-batch+json","id":"1"` + tail},
		{"no type", "", "hi & \xff", id(), pubsub.Trace{},
			`{"data":"hi \u0026 \ufffd","datacontenttype":"text/plain","id":"1"` + tail},
		{"octet stream", "application/octet-stream", "\x00\xff", id(), pubsub.Trace{},
			`{"data_base64":"AP8=","datacontenttype":"application/octet-stream","id":"1"` + tail},
		{"protobuf cloud event", "application/cloudevents+protobuf", "x", id(), pubsub.Trace{},
			`{"data_base64":"eA==","datacontenttype":"application/cloudevents+protobuf","id":"1"` + tail},
		{"protobuf that is one", "application/x-protobuf", "\x0a\x01a", id(), pubsub.Trace{},
			`{"data_base64":"CgFh","datacontenttype":"application/x-protobuf","id":"1"` + tail},
		{"protobuf that is none", "application/x-protobuf", "hello", id(), pubsub.Trace{},
			`{"data":"hello","datacontenttype":"application/x-protobuf","id":"1"` + tail},
		{"trace", "", "x", id(), pubsub.Trace{Parent: parent, State: "a=1"},
			`{"data":"x","datacontenttype":"text/plain","id":"1","pubsubname":"ps","source":"shop","specversion":"1.0","time":"2000-01-01T00:00:00Z","topic":"t",` +
				`"traceid":"` + parent + `","traceparent":"` + parent + `","tracestate":"a=1","type":"com.dapr.event.sent"}`},
		{"overrides, any case", "", "x", map[string]string{"CloudEvent.ID": "2", "cloudevent.Source": "s", "cloudevent.type": "ty", "cloudevent.subject": "su",
			"cloudevent.traceid": "tid", "cloudevent.traceparent": "tp", "cloudevent.tracestate": "ts", "cloudevent.time": "never", "cloudevent.topic": "no", "cloudevent.x": "y"}, pubsub.Trace{Parent: parent},
			`{"data":"x","datacontenttype":"text/plain","id":"2","pubsubname":"ps","source":"s","specversion":"1.0","subject":"su","time":"2000-01-01T00:00:00Z","topic":"t",` +
				`"traceid":"tp","traceparent":"tp","tracestate":"ts","type":"ty"}`},
		{"traceid override alone", "", "x", id("cloudevent.traceid", "tid"), pubsub.Trace{Parent: parent},
			`{"data":"x","datacontenttype":"text/plain","id":"1","pubsubname":"ps","source":"shop","specversion":"1.0","time":"2000-01-01T00:00:00Z","topic":"t",` +
				`"traceid":"tid","traceparent":"tid","tracestate":"","type":"com.dapr.event.sent"}`},
		{"ttl in seconds", "", "x", id("ttlInSeconds", "60"), pubsub.Trace{},
			`{"data":"x","datacontenttype":"text/plain","expiration":"2000-01-01T00:01:00Z","id":"1"` + tail},
		{"ttl duration", "", "x", id("TTL", "1h"), pubsub.Trace{},
			`{"data":"x","datacontenttype":"text/plain","expiration":"2000-01-01T01:00:00Z","id":"1"` + tail},
		{"ttl zero", "", "x", id("ttlInSeconds", "0"), pubsub.Trace{},
			`{"data":"x","datacontenttype":"text/plain","expiration":"2000-01-01T00:00:00Z","id":"1"` + tail},
		{"ttl negative", "", "x", id("ttlInSeconds", "-1"), pubsub.Trace{}, `{"data":"x","datacontenttype":"text/plain","id":"1"` + tail},
		{"ttl fraction", "", "x", id("ttlInSeconds", "1.5"), pubsub.Trace{}, `{"data":"x","datacontenttype":"text/plain","id":"1"` + tail},
		{"ttl empty", "", "x", id("ttlInSeconds", ""), pubsub.Trace{}, `{"data":"x","datacontenttype":"text/plain","id":"1"` + tail},

		{"user event, filled in", "application/cloudevents+json; charset=utf-8", `{"data": {"z":1, "a":"<"}, "custom": [ 1 ]}`, id("ttlInSeconds", "1"), pubsub.Trace{Parent: parent, State: "s"},
			`{"custom":[1],"data":{"z":1,"a":"\u003c"},"expiration":"2000-01-01T00:00:01Z","pubsubname":"ps","source":"Dapr","specversion":"1.0","time":"2000-01-01T00:00:00Z","topic":"t",` +
				`"traceid":"` + parent + `","traceparent":"` + parent + `","tracestate":"s","type":"com.dapr.event.sent"}`},
		{"user event, kept", "application/cloudevents+json", `{"id":"u","id":"v","source":"me","type":"mine","specversion":"0.3","time":"T","traceid":"tid","tracestate":"x","topic":"lie","pubsubname":"lie","expiration":"old","\u0061b":1}`, id(), pubsub.Trace{Parent: parent},
			`{"ab":1,"expiration":"old","id":"v","pubsubname":"ps","source":"me","specversion":"0.3","time":"T","topic":"t","traceid":"tid","tracestate":"x","type":"mine"}`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBroker()
				s := open(t, b, nil, pubsub.Options{})
				err := s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: "t", Data: []byte(c.data), ContentType: c.contentType, Metadata: c.metadata, Trace: c.trace})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(c.want, string(b.sent[0].Data)); diff != "" {
					t.Error(diff)
				}
				if !json.Valid(b.sent[0].Data) {
					t.Error("not JSON")
				}
				if diff := cmp.Diff(c.metadata, b.sent[0].Metadata); diff != "" {
					t.Errorf("metadata: %s", diff)
				}
			})
		})
	}
}

func TestPublishIDs(t *testing.T) {
	b := newBroker()
	s := open(t, b, nil, pubsub.Options{})
	uuid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for range 2 {
		if err := s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: "t", ContentType: "application/cloudevents+json", Data: []byte(`{"id":"same"}`)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: "t"}); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range b.sent {
		if !uuid.MatchString(m.ID) || seen[m.ID] {
			t.Errorf("message id %q is no new UUID; a user's id must not make a broker drop the second event", m.ID)
		}
		seen[m.ID] = true
	}
	var e struct{ ID string }
	if err := json.Unmarshal(b.sent[2].Data, &e); err != nil || e.ID != b.sent[2].ID {
		t.Errorf("event id %q, message id %q; want the same", e.ID, b.sent[2].ID)
	}
}

func TestPublishMessage(t *testing.T) {
	cases := []struct {
		name     string
		raw      map[string]string
		metadata map[string]string
		stamp    bool
		ttl      bool
		check    func(t *testing.T, m block.Message)
	}{
		{name: "raw bytes unchanged", metadata: map[string]string{"rawPayload": "T", "ttlInSeconds": "5"}, check: func(t *testing.T, m block.Message) {
			if string(m.Data) != "x" || m.TTL != 0 || len(m.Metadata) != 2 {
				t.Errorf("message %+v", m)
			}
		}},
		{name: "raw over gRPC is stamped", metadata: map[string]string{"rawPayload": "true"}, stamp: true, check: func(t *testing.T, m block.Message) {
			want := map[string]string{"rawPayload": "true", "traceid": parent, "tracestate": ""}
			if diff := cmp.Diff(want, m.Metadata); diff != "" {
				t.Error(diff)
			}
		}},
		{name: "rawPayload is exact", metadata: map[string]string{"rawpayload": "true"}, check: func(t *testing.T, m block.Message) {
			if !strings.HasPrefix(string(m.Data), "{") {
				t.Errorf("data %s", m.Data)
			}
		}},
		{name: "native ttl", metadata: map[string]string{"ttlInSeconds": "5"}, ttl: true, check: func(t *testing.T, m block.Message) {
			if m.TTL != 5*time.Second || strings.Contains(string(m.Data), "expiration") {
				t.Errorf("ttl %v, data %s", m.TTL, m.Data)
			}
		}},
		{name: "partitionKey", metadata: map[string]string{"PartitionKey": "k1", "__key": "k2"}, check: func(t *testing.T, m block.Message) {
			if m.Key != "k1" {
				t.Errorf("key %q", m.Key)
			}
		}},
		{name: "__key", metadata: map[string]string{"__key": "k2"}, check: func(t *testing.T, m block.Message) {
			if m.Key != "k2" {
				t.Errorf("key %q", m.Key)
			}
		}},
		{name: "namespaced", raw: map[string]string{"consumerid": "{namespace}"}, check: func(t *testing.T, m block.Message) {
			if m.Topic != "defaultt" || !strings.Contains(string(m.Data), `"topic":"t"`) {
				t.Errorf("topic %q, data %s", m.Topic, m.Data)
			}
		}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBroker()
			var component block.PubSub = b
			if c.ttl {
				component = ttlBroker{b}
			}
			rec := &recorder{}
			s := open(t, component, c.raw, pubsub.Options{Recorder: rec})
			err := s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: "t", Data: []byte("x"), Metadata: c.metadata, StampRaw: c.stamp, Trace: pubsub.Trace{Parent: parent}})
			if err != nil {
				t.Fatal(err)
			}
			c.check(t, b.sent[0])
			if want := []string{"egress ps t true"}; !cmp.Equal(rec.got, want) {
				t.Errorf("recorded %v, want %v", rec.got, want)
			}
		})
	}
}

func TestNamespacedOption(t *testing.T) {
	b := newBroker()
	s := open(t, b, nil, pubsub.Options{Namespaced: func(component string) bool { return component == "ps" }})
	if err := s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: "n1"}); err != nil || b.sent[0].Topic != "defaultn1" {
		t.Errorf("published to %q, %v", b.sent[0].Topic, err)
	}
}

func TestPublishRefusals(t *testing.T) {
	scoped := map[string]string{"allowedtopics": "a, b", "protectedtopics": "b", "publishingscopes": "other=b"}
	yes := map[string]string{"rawPayload": "yes"}
	cases := []struct {
		name string
		req  pubsub.PublishRequest
		code fault.Code
		why  fault.Reason
		text string
	}{
		{"no name", pubsub.PublishRequest{Metadata: yes}, fault.Invalid, fault.EmptyName, "pubsub name is empty"},
		{"unknown, before topic", pubsub.PublishRequest{PubSub: "x"}, fault.NotFound, fault.NoSuchComponent, "pubsub x is not found"},
		{"no topic, before metadata", pubsub.PublishRequest{PubSub: "ps", Metadata: yes}, fault.Invalid, fault.NoTopic, "topic is empty"},
		{"bad rawPayload, before the envelope", pubsub.PublishRequest{PubSub: "ps", Topic: "zzz", ContentType: "application/cloudevents+json", Metadata: yes}, fault.Invalid, fault.BadMetadata, `got "yes"`},
		{"bad event, before scopes", pubsub.PublishRequest{PubSub: "ps", Topic: "zzz", ContentType: "application/cloudevents+json", Data: []byte("[]")}, fault.Invalid, fault.BadEnvelope, "cannot create cloudevent"},
		{"null event", pubsub.PublishRequest{PubSub: "ps", Topic: "a", ContentType: "application/cloudevents+json", Data: []byte("null")}, fault.Invalid, fault.BadEnvelope, "cannot create cloudevent"},
		{"not allowed", pubsub.PublishRequest{PubSub: "ps", Topic: "zzz"}, fault.Denied, fault.ForbiddenTopic, "topic zzz is not allowed for app id shop"},
		{"protected", pubsub.PublishRequest{PubSub: "ps", Topic: "b"}, fault.Denied, fault.ForbiddenTopic, "topic b is not allowed"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBroker()
			s := open(t, b, scoped, pubsub.Options{})
			wantFault(t, s.Publish(t.Context(), c.req), c.code, c.why, c.text)
			if len(b.sent) != 0 {
				t.Errorf("a refused publish sent %v", b.sent)
			}
		})
	}
	t.Run("nothing configured", func(t *testing.T) {
		s := pubsub.New(catalog.NewStore[block.PubSub](block.KindPubSub), shop, pubsub.Options{})
		wantFault(t, s.Check("ps", "t"), fault.NotFound, fault.NoSuchComponent, "ps")
	})
	t.Run("broker error keeps its meaning", func(t *testing.T) {
		b := newBroker()
		b.failPublish = func(block.Message) error { return fault.New("t", fault.Exhausted, "full") }
		rec := &recorder{}
		s := open(t, b, nil, pubsub.Options{Recorder: rec})
		wantFault(t, s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: "t"}), fault.Exhausted, "", "full")
		if want := []string{"egress ps t false"}; !cmp.Equal(rec.got, want) {
			t.Errorf("recorded %v, want %v", rec.got, want)
		}
	})
}

func TestScopes(t *testing.T) {
	cases := []struct {
		name    string
		raw     map[string]string
		allowed string // of a, b, c
	}{
		{"none", nil, "abc"},
		{"allowed", map[string]string{"allowedtopics": " a , b "}, "ab"},
		{"listed app", map[string]string{"publishingscopes": "shop=a; other=b"}, "a"},
		{"listed without topics", map[string]string{"publishingscopes": "shop=;other=b"}, ""},
		{"listed without equals", map[string]string{"publishingscopes": "shop"}, ""},
		{"not listed", map[string]string{"publishingscopes": "other=b"}, "abc"},
		{"listed twice", map[string]string{"publishingscopes": "shop=a;shop=b"}, "ab"},
		{"protected", map[string]string{"protectedtopics": "b,c"}, "a"},
		{"protected with entry", map[string]string{"protectedtopics": "b,c", "publishingscopes": "shop=b"}, "b"},
		{"allowed wins over entry", map[string]string{"allowedtopics": "a", "publishingscopes": "shop=a,b"}, "a"},
		{"case counts", map[string]string{"publishingscopes": "Shop=a", "protectedtopics": "B"}, "abc"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := open(t, newBroker(), c.raw, pubsub.Options{})
			var got string
			for _, topic := range []string{"a", "b", "c"} {
				if s.Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: topic}) == nil {
					got += topic
				}
			}
			if got != c.allowed {
				t.Errorf("allowed %q, want %q", got, c.allowed)
			}
		})
	}
}

func TestBulkPublish(t *testing.T) {
	b := newBroker()
	rec := &recorder{}
	s := open(t, b, nil, pubsub.Options{Recorder: rec})
	failed, err := s.BulkPublish(t.Context(), pubsub.BulkRequest{PubSub: "ps", Topic: "t",
		Metadata: map[string]string{"ttlInSeconds": "60", "x": "request"}, Trace: pubsub.Trace{Parent: parent},
		Entries: []pubsub.BulkEntry{
			{ID: "1", Event: []byte("one")},
			{ID: "2", Event: []byte(`{"a":1}`), ContentType: "application/json", Metadata: map[string]string{"x": "entry"}, Trace: pubsub.Trace{Parent: "own"}},
		}})
	if err != nil || failed != nil {
		t.Fatal(failed, err)
	}
	if one := b.sent[0]; one.Metadata != nil || strings.Contains(string(one.Data), "expiration") || !strings.Contains(string(one.Data), parent) {
		t.Errorf("entry without metadata: %+v %s", one.Metadata, one.Data)
	}
	two := b.sent[1]
	if diff := cmp.Diff(map[string]string{"ttlInSeconds": "60", "x": "entry"}, two.Metadata); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(string(two.Data), `{"data":{"a":1}`) || !strings.Contains(string(two.Data), "expiration") || !strings.Contains(string(two.Data), `"traceid":"own"`) {
		t.Errorf("entry with metadata: %s", two.Data)
	}
	if want := []string{"bulk egress ps t true"}; !cmp.Equal(rec.got, want) {
		t.Errorf("recorded %v, want %v", rec.got, want)
	}
}

func TestBulkPublishFailures(t *testing.T) {
	entries := func(ids ...string) (out []pubsub.BulkEntry) {
		for _, id := range ids {
			out = append(out, pubsub.BulkEntry{ID: id, Event: []byte(id)})
		}
		return out
	}
	t.Run("only failed entries are repeated and reported", func(t *testing.T) {
		b := newBroker()
		tries := map[string]int{}
		b.failPublish = func(m block.Message) error {
			for _, id := range []string{"a", "b", "c"} {
				if strings.Contains(string(m.Data), `"data":"`+id) {
					tries[id]++
					if id == "b" && tries[id] < 2 || id == "c" {
						return fault.New("t", fault.Unavailable, "%s down", id)
					}
				}
			}
			return nil
		}
		stores := catalog.NewStore[block.PubSub](block.KindPubSub)
		target := &call.Target{}
		target.SetChain(&call.Chain{Retry: func(c *call.Call, err error) (time.Duration, bool) { return 0, c.Attempt < 3 }})
		stores.Put(catalog.NewHandle[block.PubSub](catalog.Info{Name: "ps"}, b, target))
		s := pubsub.New(stores, shop, pubsub.Options{})
		failed, err := s.BulkPublish(t.Context(), pubsub.BulkRequest{PubSub: "ps", Topic: "t", Entries: entries("a", "b", "c")})
		wantFault(t, err, fault.Unavailable, "", "c down")
		if len(failed) != 1 || failed[0].ID != "c" || failed[0].Err == nil {
			t.Errorf("failed = %v, want c", failed)
		}
		if diff := cmp.Diff(map[string]int{"a": 1, "b": 2, "c": 3}, tries); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("policy refuses: all failed", func(t *testing.T) {
		stores := catalog.NewStore[block.PubSub](block.KindPubSub)
		target := &call.Target{}
		target.SetChain(&call.Chain{Layers: []call.Layer{refusal{}}})
		stores.Put(catalog.NewHandle[block.PubSub](catalog.Info{Name: "ps"}, newBroker(), target))
		failed, err := pubsub.New(stores, shop, pubsub.Options{}).BulkPublish(t.Context(), pubsub.BulkRequest{PubSub: "ps", Topic: "t", Entries: entries("a", "b")})
		if len(failed) != 2 || !errors.Is(failed[1].Err, errRefused) || !errors.Is(err, errRefused) {
			t.Errorf("failed = %v, %v", failed, err)
		}
	})
	cases := []struct {
		name    string
		entries []pubsub.BulkEntry
		why     fault.Reason
	}{
		{"no id", entries("a", ""), fault.BadEntries},
		{"id twice", entries("a", "a"), fault.BadEntries},
		{"bad event", []pubsub.BulkEntry{{ID: "a"}, {ID: "b", ContentType: "application/cloudevents+json", Event: []byte("1")}}, fault.BadEnvelope},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b := newBroker()
			failed, err := open(t, b, nil, pubsub.Options{}).BulkPublish(t.Context(), pubsub.BulkRequest{PubSub: "ps", Topic: "t", Entries: c.entries})
			wantFault(t, err, fault.Invalid, c.why, "")
			if failed != nil || len(b.sent) != 0 {
				t.Errorf("failed %v, sent %v", failed, b.sent)
			}
		})
	}
	t.Run("empty list", func(t *testing.T) {
		failed, err := open(t, newBroker(), nil, pubsub.Options{}).BulkPublish(t.Context(), pubsub.BulkRequest{PubSub: "ps", Topic: "t"})
		if failed != nil || err != nil {
			t.Error(failed, err)
		}
	})
	t.Run("forbidden", func(t *testing.T) {
		_, err := open(t, newBroker(), map[string]string{"allowedtopics": "x"}, pubsub.Options{}).BulkPublish(t.Context(), pubsub.BulkRequest{PubSub: "ps", Topic: "t"})
		wantFault(t, err, fault.Denied, fault.ForbiddenTopic, "")
	})
}

var errRefused = fault.New("t", fault.Unavailable, "breaker open").With(fault.PolicyRejected)

type refusal struct{}

func (refusal) Enter(ctx context.Context, c *call.Call) (context.Context, error) {
	return ctx, errRefused
}
func (refusal) Exit(c *call.Call, err error) error { return err }

func TestParseBulk(t *testing.T) {
	cases := []struct {
		name, entry string
		want        string // event; "!" and a reason when refused
	}{
		{"json", `{"entryId":"1","event":{"a": 1},"contentType":"application/json; x=y"}`, `{"a": 1}`},
		{"json missing event", `{"entryId":"1","contentType":"application/json"}`, `null`},
		{"cloud event", `{"entryId":"1","event":{"id":"x"},"contentType":"application/cloudevents+json"}`, `{"id":"x"}`},
		{"octet", `{"entryId":"1","event":"AP8=","contentType":"application/octet-stream"}`, "\x00\xff"},
		{"octet not base64", `{"entryId":"1","event":"?","contentType":"application/octet-stream"}`, "!" + string(pubsub.EventMismatch)},
		{"text", `{"entryId":"1","event":"h\u00e9","contentType":"TEXT/html"}`, "hé"},
		{"text not a string", `{"entryId":"1","event":1,"contentType":"text/plain"}`, "!" + string(pubsub.EventMismatch)},
		{"xml", `{"entryId":"1","event":"<a/>","contentType":"application/xml"}`, "<a/>"},
		{"+json", `{"entryId":"1","event":{},"contentType":"application/ld+json"}`, "!" + string(pubsub.EventMismatch)},
		{"no type", `{"entryId":"1","event":"x"}`, "!" + string(pubsub.EventMismatch)},
		{"not an object", `1`, "!" + string(pubsub.NotEntries)},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, err := pubsub.ParseBulk([]byte(`[` + c.entry + `]`))
			if reason, bad := strings.CutPrefix(c.want, "!"); bad {
				wantFault(t, err, fault.Invalid, fault.Reason(reason), "")
				return
			}
			if err != nil || len(got) != 1 || string(got[0].Event) != c.want {
				t.Errorf("ParseBulk = %+v, %v; want event %q", got, err, c.want)
			}
		})
	}
	if _, err := pubsub.ParseBulk([]byte(`{}`)); fault.ReasonOf(err) != pubsub.NotEntries {
		t.Errorf("an object: %v", err)
	}
}

func FuzzParseBulk(f *testing.F) {
	f.Add([]byte(`[{"entryId":"1","event":{"a":1},"contentType":"application/json","metadata":{"a":"b"}}]`))
	f.Add([]byte(`[{"event":"AP8=","contentType":"application/octet-stream"},null]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		entries, err := pubsub.ParseBulk(body)
		if (err == nil) != (fault.Of(err) == fault.OK) || err != nil && entries != nil {
			t.Fatalf("entries %v with %v", entries, err)
		}
	})
}

// FuzzPublish holds every envelope to the rules that subscribers rely on.
func FuzzPublish(f *testing.F) {
	f.Add("application/json", []byte(`{"a":1}`), "t", "orders")
	f.Add("text/plain", []byte("\xff<\u2028"), "a\"b", "x")
	f.Add("application/cloudevents+json", []byte(`{"id":1,"data":{}}`), "", "t")
	f.Add("application/octet-stream", []byte{0}, "t", "t")
	f.Fuzz(func(t *testing.T, contentType string, data []byte, subject, topic string) {
		if topic == "" {
			return
		}
		b := newBroker()
		err := open(t, b, nil, pubsub.Options{}).Publish(t.Context(), pubsub.PublishRequest{PubSub: "ps", Topic: topic, Data: data, ContentType: contentType,
			Metadata: map[string]string{"cloudevent.subject": subject}})
		if err != nil {
			if fault.ReasonOf(err) != fault.BadEnvelope {
				t.Fatal(err)
			}
			return
		}
		var e map[string]any
		if err := json.Unmarshal(b.sent[0].Data, &e); err != nil {
			t.Fatalf("envelope %q: %v", b.sent[0].Data, err)
		}
		again, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if e["pubsubname"] != "ps" || e["topic"] != fmt.Sprint(strings.ToValidUTF8(topic, "\ufffd")) && !strings.ContainsRune(fmt.Sprint(e["topic"]), '\ufffd') {
			t.Fatalf("envelope %s names another topic", again)
		}
		for i := range b.sent[0].Data {
			if c := b.sent[0].Data[i]; c == '<' || c == '>' || c == '&' {
				t.Fatalf("envelope %q holds %c", b.sent[0].Data, c)
			}
		}
	})
}
