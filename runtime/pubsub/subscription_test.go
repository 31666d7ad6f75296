package pubsub_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

func TestParseHTTPSubscriptions(t *testing.T) {
	body := `[
		{"pubsubname":"ps","topic":"a","route":"/a","metadata":{"rawPayload":"true"},"deadLetterTopic":"d","unknown":{}},
		{"PubSubName":"ps","Topic":"b","Route":"ignored","Routes":{"Rules":[{"Match":"event.type == 'x'","Path":"/x"}],"Default":"/b"}},
		{"pubsubname":"ps","topic":"c","route":"c","routes":{"rules":[{"match":"true","path":"/t"}]}},
		{"pubsubname":"ps","topic":"nowhere"},
		{"pubsubname":"ps","topic":"e","route":"e","bulkSubscribe":{"enabled":true,"maxMessagesCount":7,"maxAwaitDurationMs":20}}
	]`
	want := []pubsub.Subscription{
		{PubSub: "ps", Topic: "a", DeadLetterTopic: "d", Metadata: map[string]string{"rawPayload": "true"}, Rules: []pubsub.Rule{{Path: "/a"}}, Source: pubsub.Programmatic},
		{PubSub: "ps", Topic: "b", Rules: []pubsub.Rule{{"event.type == 'x'", "/x"}, {Path: "/b"}}, Source: pubsub.Programmatic},
		{PubSub: "ps", Topic: "c", Rules: []pubsub.Rule{{"true", "/t"}, {Path: "c"}}, Source: pubsub.Programmatic},
		{PubSub: "ps", Topic: "e", Rules: []pubsub.Rule{{Path: "e"}}, Source: pubsub.Programmatic,
			Bulk: pubsub.BulkSubscribe{Enabled: true, MaxMessages: 7, MaxAwait: 20 * time.Millisecond}},
	}
	got, warnings, err := pubsub.ParseHTTPSubscriptions([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "nowhere") {
		t.Errorf("warnings = %q, want one about topic nowhere", warnings)
	}
	for _, bad := range []string{`{}`, `[1]`, `x`, ``, `[{"topic":1}]`} {
		if _, _, err := pubsub.ParseHTTPSubscriptions([]byte(bad)); fault.Of(err) != fault.Invalid {
			t.Errorf("ParseHTTPSubscriptions(%q) = %v, want Invalid", bad, err)
		}
	}
}

func FuzzParseHTTPSubscriptions(f *testing.F) {
	f.Add([]byte(`[{"pubsubname":"ps","topic":"a","route":"/a"}]`))
	f.Add([]byte(`[{"routes":{"rules":[{"match":"event.type","path":"x"}],"default":"y"},"bulkSubscribe":{"enabled":true}}]`))
	f.Add([]byte(`[null]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		subs, _, _ := pubsub.ParseHTTPSubscriptions(body)
		for _, s := range subs {
			if len(s.Rules) == 0 {
				t.Fatalf("subscription %+v has no route", s)
			}
		}
	})
}

func names(subs []pubsub.Subscription) (out []string) {
	for _, s := range subs {
		out = append(out, s.Source.String()+" "+s.PubSub+" "+s.Topic+" "+s.Rules[0].Path)
	}
	return out
}

func TestPrecedence(t *testing.T) {
	at := func(topic, path string) pubsub.Subscription {
		return pubsub.Subscription{PubSub: "ps", Topic: topic, Rules: []pubsub.Rule{{Path: path}}}
	}
	s := open(t, newBroker(), nil, pubsub.Options{})
	defer drain(t, s)
	if err := s.SetDeclarative([]pubsub.Subscription{at("a", "d1"), at("a", "d2"), at("b", "d3"), {PubSub: "unknown", Topic: "z", Rules: []pubsub.Rule{{Path: "u"}}}}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetProgrammatic([]pubsub.Subscription{at("b", "p1"), at("b", "p2"), at("c", "p3")}); err != nil {
		t.Fatal(err)
	}
	want := []string{"DECLARATIVE ps a d1", "DECLARATIVE unknown z u", "PROGRAMMATIC ps b p1", "PROGRAMMATIC ps c p3"}
	if diff := cmp.Diff(want, names(s.List())); diff != "" {
		t.Error(diff)
	}
	bad := pubsub.Subscription{PubSub: "ps", Topic: "x", Rules: []pubsub.Rule{{Match: "event.type ==", Path: "x"}}}
	wantFault(t, s.SetProgrammatic([]pubsub.Subscription{at("n", "n"), bad}), fault.Invalid, "", `rule "event.type =="`)
	if diff := cmp.Diff(want, names(s.List())); diff != "" {
		t.Errorf("a bad list changed something: %s", diff)
	}
	if err := s.SetProgrammatic(nil); err != nil {
		t.Fatal(err)
	}
	want = []string{"DECLARATIVE ps a d1", "DECLARATIVE ps b d3", "DECLARATIVE unknown z u"}
	if diff := cmp.Diff(want, names(s.List())); diff != "" {
		t.Error(diff)
	}
}
