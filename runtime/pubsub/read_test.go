package pubsub

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
)

// FuzzRead gives the subscriber's side whatever bytes a broker may hold.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"id":"1","data":{"a":1},"expiration":"2000-01-01T00:00:00Z","traceid":"x"}`), false, "application/octet-stream")
	f.Add([]byte(`{"data_base64":"AP8=","datacontenttype":5}`), false, "")
	f.Add([]byte(`{"data":"\ud800","datacontenttype":"text/plain","d\u0061ta":1}`), false, "")
	f.Add([]byte{0xff}, true, "")
	f.Add([]byte(`[]`), false, "application/octet-stream")
	r, err := compile(Subscription{PubSub: "ps", Topic: "t", Rules: []Rule{{"has(event.type) && event.type == 'x'", "/x"}, {Path: "/"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, raw bool, contentType string) {
		sub := r.sub
		if raw {
			sub.Metadata = map[string]string{"rawPayload": "true"}
		}
		a, err := read(&sub, block.Delivery{Message: block.Message{Data: data, Metadata: map[string]string{"content-type": contentType, "ce_id": "1"}}})
		if err != nil {
			return
		}
		if !json.Valid(a.body) {
			t.Fatalf("delivered %q, which is not JSON", a.body)
		}
		a.expired(time.Now())
		if _, _, err := r.path(a.event); err != nil {
			t.Fatalf("a rule that guards itself failed on %q: %v", a.body, err)
		}
		if e, err := a.decoded(&sub, "/", 1); err == nil && e.Metadata[AttemptHeader] != "1" {
			t.Fatalf("event %+v", e)
		}
	})
}

// FuzzAnswers gives the readers of the app's answers any body.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`{"status":"RETRY"}`))
	f.Add([]byte(`{"statuses":[{"entryId":"e","status":"SUCCESS"},{"entryId":"x"}]}`))
	f.Add([]byte(`{"statuses":[null,{"entryId":1}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		if a, err := readAnswer(body); err == nil && a > Drop {
			t.Fatalf("answer %d", a)
		}
		if as, err := readBatchAnswer(body, []*item{{entryID: "e"}}); err == nil && len(as) != 1 {
			t.Fatalf("%d answers to one entry", len(as))
		}
	})
}

func BenchmarkRoute(b *testing.B) {
	r, err := compile(Subscription{Rules: []Rule{{"event.type == 'x' && event.data.n > 3", "/x"}, {Path: "/"}}})
	if err != nil {
		b.Fatal(err)
	}
	sub := Subscription{}
	d := block.Delivery{Message: block.Message{Data: []byte(`{"id":"1","type":"x","data":{"n":4},"datacontenttype":"application/json"}`)}}
	b.ReportAllocs()
	for b.Loop() {
		a, err := read(&sub, d)
		if err != nil {
			b.Fatal(err)
		}
		if path, _, err := r.path(a.event); err != nil || path != "/x" {
			b.Fatal(path, err)
		}
	}
}
