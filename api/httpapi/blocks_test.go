package httpapi_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/state"
)

func TestStateGet(t *testing.T) {
	k := newKit()
	k.state.item = block.StateItem{Exists: true, Value: []byte(`{"a":1}`), ETag: "7", Expires: time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)}
	x := k.do("GET", "/v1.0/state/s/k", "")
	want := fields("Content-Type", "application/json", "Etag", "7", "metadata.ttlExpireTime", "2031-02-03T04:05:06Z")
	if d := cmp.Diff(want, x.Answer); x.Status != 200 || string(x.Out) != `{"a":1}` || d != "" {
		t.Errorf("%d %s (-want +got):\n%s", x.Status, x.Out, d)
	}
	k.state.item = block.StateItem{}
	if x := k.do("GET", "/v1.0/state/s/k", ""); x.Status != 204 || len(x.Out) != 0 {
		t.Errorf("a missing key: %d %q", x.Status, x.Out)
	}
}

func TestStateSave(t *testing.T) {
	k := newKit()
	body := `[{"key":"a","value":{"x":[1, 2]},"etag":"7","metadata":{"ttlInSeconds":5,"s":"t","b":true},"options":{"concurrency":"first-write","consistency":"strong"}},
	 {"key":"b"},{"key":"c","value":null},{"key":"d","value":"text","etag":null}]`
	x := k.do("POST", "/v1.0/state/s?metadata.ttlInSeconds=9", body)
	if x.Status != 204 {
		t.Fatalf("%d %s", x.Status, x.Out)
	}
	ttl := map[string]string{"ttlInSeconds": "9"}
	want := []state.Item{
		{Key: "a", Value: []byte(`{"x":[1, 2]}`), JSON: true, ETag: "7", Metadata: map[string]string{"ttlInSeconds": "9", "s": "t", "b": "true"}, Concurrency: "first-write", Consistency: "strong"},
		{Key: "b", Value: []byte("null"), JSON: true, Metadata: ttl}, {Key: "c", Value: []byte("null"), JSON: true, Metadata: ttl}, {Key: "d", Value: []byte(`"text"`), JSON: true, Metadata: ttl}}
	if d := cmp.Diff(want, k.state.items); d != "" {
		t.Errorf("the query wins over the item (-want +got):\n%s", d)
	}
	for _, bad := range []string{``, `{}`, `[`, `[{"key":1}]`, `[{"value":1}]`, `[{"key":""}]`} {
		if x := k.do("POST", "/v1.0/state/s", bad); x.Status != 400 || !strings.Contains(string(x.Out), `"errorCode":"ERR_MALFORMED_REQUEST"`) {
			t.Errorf("body %q: %d %s", bad, x.Status, x.Out)
		}
	}
	k.state.check = fault.New("op", fault.NotFound, "x").With(fault.NoSuchComponent)
	if x := k.do("POST", "/v1.0/state/s", "["); !strings.Contains(string(x.Out), "ERR_STATE_STORE_NOT_FOUND") {
		t.Errorf("an unknown store wins over a malformed body: %d %s", x.Status, x.Out)
	}
}

func TestStateDeleteAndTransaction(t *testing.T) {
	k := newKit()
	if x := k.do("DELETE", "/v1.0/state/s/k?concurrency=first-write&consistency=strong&metadata.m=1", "", "If-Match", "7"); x.Status != 204 {
		t.Fatalf("%d %s", x.Status, x.Out)
	}
	if d := cmp.Diff([]state.Item{{Key: "k", ETag: "7", Concurrency: "first-write", Consistency: "strong", Metadata: map[string]string{"m": "1"}}}, k.state.items); d != "" {
		t.Errorf("delete (-want +got):\n%s", d)
	}
	if x := k.do("POST", "/v1.0/state/s/transaction", `{"operations":[{"operation":"upsert","request":{"key":"a","value":1}},{"operation":"delete","request":{"key":"b"}}],"metadata":{"x":"y"}}`); x.Status != 204 {
		t.Fatalf("%d %s", x.Status, x.Out)
	}
	want := []state.Operation{{Operation: "upsert", Item: state.Item{Key: "a", Value: []byte("1"), JSON: true}}, {Operation: "delete", Item: state.Item{Key: "b", Value: []byte("null"), JSON: true}}}
	if d := cmp.Diff(want, k.state.ops); d != "" {
		t.Errorf("transaction (-want +got):\n%s", d)
	}
}

func TestStateBulkGet(t *testing.T) {
	k := newKit()
	k.state.results = []state.Result{
		{StateItem: block.StateItem{Key: "json", Exists: true, Value: []byte(`{"a": 1}`), ETag: "1"}},
		{StateItem: block.StateItem{Key: "bytes", Exists: true, Value: []byte("not json \xff<"), ETag: "2"}},
		{StateItem: block.StateItem{Key: "none"}},
		{StateItem: block.StateItem{Key: "failed"}, Err: errors.New(`it "broke"`)}}
	x := k.do("POST", "/v1.0/state/s/bulk?consistency=strong", `{"keys":["json","bytes","none","failed"],"parallelism":2}`)
	golden(t, "bulk_get.json", string(x.Out))
	if x.Status != 200 || k.state.par != 2 || len(k.state.keys) != 4 || k.state.opts.Consistency != "strong" {
		t.Errorf("%d, asked for %v by %d", x.Status, k.state.keys, k.state.par)
	}
}

func TestStateQuery(t *testing.T) {
	k := newKit()
	k.state.results = []state.Result{{StateItem: block.StateItem{Key: "a", Exists: true, Value: []byte(`{"a": 1}`), ETag: "7", Expires: time.Now()}},
		{StateItem: block.StateItem{Key: "b", Exists: true, Value: []byte("bytes"), ETag: "8"}}, {StateItem: block.StateItem{Key: "c"}, Err: errors.New("damaged")}}
	for _, verb := range []string{"POST", "PUT"} {
		x := k.do(verb, "/v1.0-alpha1/state/s/query?metadata.x=y", `{"filter":{"EQ":{"a":1}}}`)
		want := `{"results":[{"key":"a","data":{"a":1},"etag":"7"},{"key":"b","data":"bytes","etag":"8"},{"key":"c","error":"damaged"}],"token":"5"}`
		if x.Status != 200 || string(x.Out) != want || k.state.query != `{"filter":{"EQ":{"a":1}}}` || k.state.store != "s" {
			t.Errorf("%s: %d %s; want %s; asked %q", verb, x.Status, x.Out, want, k.state.query)
		}
	}
	k.state.results = nil
	if x := k.do("POST", "/v1.0-alpha1/state/s/query", `{}`); x.Status != 204 || len(x.Out) > 0 {
		t.Errorf("nothing found: %d %s", x.Status, x.Out)
	}
	k.state.check = fault.New("op", fault.NotFound, "x").With(fault.NoSuchComponent)
	if x := k.do("POST", "/v1.0-alpha1/state/s/query", `{`); x.Status != 400 || !strings.Contains(string(x.Out), "ERR_STATE_STORE_NOT_FOUND") {
		t.Errorf("an unknown store: %d %s", x.Status, x.Out)
	}
}

// The bodies of failures, as SDKs read them.
func TestErrorBodies(t *testing.T) {
	var b strings.Builder
	show := func(what string, x *httpapi.Exchange) {
		fmt.Fprintf(&b, "%s\n  %d %s\n  %s\n", what, x.Status, x.Answer.Get("Content-Type"), x.Out)
	}
	because := func(c fault.Code, r fault.Reason) error { return fault.New("op", c, "words").With(r) }
	for _, tt := range []struct {
		what, method, target, body string
		err                        error
	}{
		{"get, no store", "GET", "/v1.0/state/s/k", "", because(fault.NotFound, fault.NoSuchComponent)},
		{"get, no stores", "GET", "/v1.0/state/s/k", "", because(fault.NotReady, fault.NoComponents)},
		{"get, illegal key", "GET", "/v1.0/state/s/a%7C%7Cb", "", because(fault.Invalid, fault.IllegalKey)},
		{"get, broken", "GET", "/v1.0/state/s/k", "", because(fault.Unavailable, "")},
		{"save, conflict", "POST", "/v1.0/state/s", "[]", because(fault.Conflict, "")},
		{"save, bad etag", "POST", "/v1.0/state/s", "[]", because(fault.BadEtag, "")},
		{"delete, conflict", "DELETE", "/v1.0/state/s/k", "", because(fault.Conflict, "")},
		{"transaction, unsupported", "POST", "/v1.0/state/s/transaction", "{}", because(fault.Unsupported, fault.NoTransactions)},
		{"transaction, too many", "POST", "/v1.0/state/s/transaction", "{}", because(fault.Invalid, fault.TooManyOps)},
		{"transaction, unknown operation", "POST", "/v1.0/state/s/transaction", "{}", because(fault.Invalid, fault.BadOperation)},
		{"transaction, conflict", "POST", "/v1.0/state/s/transaction", "{}", because(fault.Conflict, "")},
		{"query", "POST", "/v1.0-alpha1/state/s/query", "{}", because(fault.Unsupported, fault.NoQuery)},
		{"query, malformed", "POST", "/v1.0-alpha1/state/s/query", "{", because(fault.Invalid, state.BadQuery)},
	} {
		k := newKit()
		k.state.err = tt.err
		show("state "+tt.what, k.do(tt.method, tt.target, tt.body))
	}
	for _, r := range []fault.Reason{"", fault.NoSuchComponent, fault.NoTopic, fault.ForbiddenTopic, fault.BadMetadata, fault.BadEnvelope} {
		k := newKit()
		k.pubsub.err = because(fault.Invalid, r)
		show("publish "+string(r), k.do("POST", "/v1.0/publish/p/t?metadata.k=v", "d"))
	}
	k := newKit()
	for _, s := range []string{"POST /v1.0/jobs/j",
		"GET /v1.0/actors/t/i/state/k", "GET /v1.0/workflows/c/i", "PUT /v1.0-alpha1/crypto/c/encrypt", "POST /v1.0-alpha1/subtlecrypto/c/getkey", "POST /v1.0-alpha2/conversation/c/converse",
		"GET /v1.0/healthz?appid=other", "GET /v1.0/healthz/outbound", "GET /nothing"} {
		m, target, _ := strings.Cut(s, " ")
		show(s, k.do(m, target, ""))
	}
	golden(t, "errors.txt", b.String())
}

func TestPublish(t *testing.T) {
	k := newKit()
	if x := k.do("POST", "/v1.0/publish/p/a%2Fb/c/?metadata.k=v", "data", "Content-Type", "a/b", "traceparent", "tp", "tracestate", "ts"); x.Status != 204 {
		t.Fatalf("%d %s", x.Status, x.Out)
	}
	want := pubsub.PublishRequest{PubSub: "p", Topic: "a/b/c", Data: []byte("data"), ContentType: "a/b", Metadata: map[string]string{"k": "v"}, Trace: pubsub.Trace{Parent: "tp", State: "ts"}}
	if d := cmp.Diff(want, k.pubsub.one); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	k.pubsub.check = fault.New("op", fault.NotFound, "x").With(fault.NoSuchComponent)
	if x := k.do("POST", "/v1.0/publish/p/t", strings.Repeat("x", 2<<20)); x.Status != 404 {
		t.Errorf("an unknown pubsub wins over a body over the limit: %d", x.Status)
	}
}

func TestBulkPublish(t *testing.T) {
	k := newKit()
	body := `[{"entryId":"1","event":"d","contentType":"text/plain"},{"entryId":"2","event":{"a":1},"contentType":"application/json"}]`
	if x := k.do("POST", "/v1.0/publish/bulk/p/t", body); x.Status != 204 {
		t.Fatalf("%d %s", x.Status, x.Out)
	}
	if k.pubsub.many.Topic != "t" || len(k.pubsub.many.Entries) != 2 || string(k.pubsub.many.Entries[0].Event) != "d" {
		t.Errorf("asked for %+v", k.pubsub.many)
	}
	k.pubsub.err = fault.New("op", fault.Unavailable, "broker down")
	k.pubsub.failed = []pubsub.FailedEntry{{ID: "1", Err: errors.New(`no "luck"`)}, {ID: "2", Err: errors.New("x")}}
	x := k.do("POST", "/v1.0/publish/bulk/p/t", body)
	const want = `{"failedEntries":[{"entryId":"1","error":"no \"luck\""},{"entryId":"2","error":"x"}],"errorCode":"ERR_PUBSUB_PUBLISH_MESSAGE"}`
	if x.Status != 500 || string(x.Out) != want {
		t.Errorf("%d %s", x.Status, x.Out)
	}
	if x := newKit().do("POST", "/v1.0/publish/bulk/p/t", "{}"); x.Status != 400 || !strings.Contains(string(x.Out), "DAPR_PUBSUB_UNMARSHAL_EVENTS") {
		t.Errorf("no list: %d %s", x.Status, x.Out)
	}
}

func TestAbout(t *testing.T) {
	k := newKit()
	k.about.Describe(func() about.Document {
		return about.Document{RuntimeVersion: "1.2", Components: []about.Component{{Name: "s", Type: "state.x", Version: "v1", Capabilities: []string{"ETAG"}}},
			Extended: map[string]string{"daprRuntimeVersion": "1.2"}, AppConnection: about.AppConnection{Port: 3000}, ActorRuntime: about.ActorRuntime{RuntimeStatus: "DISABLED"},
			Subscriptions: []about.Subscription{{PubSubName: "p", Topic: "t", Type: "PROGRAMMATIC", Rules: []about.Rule{{Path: "/x"}}}}}
	})
	if x := k.do("PUT", "/v1.0/metadata/color", "blue <&>"); x.Status != 204 {
		t.Errorf("%d %s", x.Status, x.Out)
	}
	x := k.do("GET", "/v1.0/metadata", "")
	golden(t, "metadata.json", string(x.Out)+"\n")
	if x := k.do("GET", "/v1.0/healthz?appid=app", ""); x.Status != 204 {
		t.Errorf("healthy: %d %s", x.Status, x.Out)
	}
	k.about.Unready("runtime")
	if x := k.do("GET", "/v1.0/healthz", ""); x.Status != 500 || string(x.Out) != `{"errorCode":"ERR_HEALTH_NOT_READY","message":"dapr is not ready: [runtime]"}` {
		t.Errorf("not ready: %d %s", x.Status, x.Out)
	}
	k.about.SetOutbound(true)
	if x := k.do("GET", "/v1.0/healthz/outbound", ""); x.Status != 204 {
		t.Errorf("outbound: %d", x.Status)
	}
	if !k.served.last(t).Health {
		t.Error("a probe of health is not marked as one")
	}
	if x := k.do("POST", "/v1.0/shutdown", "", "Dapr-Force-Shutdown", "True"); x.Status != 204 {
		t.Errorf("shutdown: %d", x.Status)
	}
	if stop := <-k.about.Stops(); !stop.Force {
		t.Error("force was lost")
	}
}
