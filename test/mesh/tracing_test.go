package mesh

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mecha-project/mecha/test/harness"
)

const (
	traceID   = "4bf92f3577b34da6a3ce929d0e0e4736"
	callerID  = "00f067aa0ba902b7"
	sampled   = "00-" + traceID + "-" + callerID + "-01"
	unsampled = "00-" + traceID + "-" + callerID + "-00"
	noTrace   = "00-00000000000000000000000000000000-0000000000000000-00"
)

// tracing is a Configuration that exports by one of the three ways to addr.
func tracing(exporter, addr, rate string) string {
	spec := "  tracing:\n"
	if rate != "" {
		spec += "    samplingRate: \"" + rate + "\"\n"
	}
	switch exporter {
	case "otlp grpc":
		spec += fmt.Sprintf("    otel: {endpointAddress: %q, isSecure: false, protocol: grpc}\n", addr)
	case "otlp http":
		spec += fmt.Sprintf("    otel: {endpointAddress: %q, isSecure: false, protocol: http, headers: [{name: x-key, value: k1}]}\n", addr)
	case "zipkin":
		spec += fmt.Sprintf("    zipkin: {endpointAddress: %q}\n", "http://"+addr+"/api/v2/spans")
	}
	return configuration(spec)
}

var parentForm = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-(0[0-3])$`)

// parsed splits a traceparent.
func parsed(t *testing.T, where, header string) (trace, id, flags string) {
	t.Helper()
	m := parentForm.FindStringSubmatch(header)
	if m == nil {
		t.Fatalf("%s: traceparent %q has not the form of one", where, header)
	}
	return m[1], m[2], m[3]
}

// One trace goes from an app's call through a peer, a publish and a delivery to a third app's
// write, whatever the exporter.
func TestOneTraceAcrossApps(t *testing.T) {
	for _, tt := range []struct {
		exporter string
		collect  func(*testing.T) (*spans, string)
	}{{"otlp grpc", otlpGRPC}, {"otlp http", otlpHTTP}, {"zipkin", otlpHTTP}} {
		t.Run(tt.exporter, func(t *testing.T) {
			collected, addr := tt.collect(t)
			mesh, node := harness.NewMesh(t), nodeDir(t)
			config := tracing(tt.exporter, addr, "1")
			files := map[string]string{"p.yaml": component("pubsub", "pubsub.embedded", "dataDir", node), "s.yaml": component("store", "state.in-memory")}
			var shop, billing *harness.Sidecar
			order, bill := &inbox{}, &inbox{}
			order.more = func(path string, s seen, w http.ResponseWriter) {
				if path == "/order" {
					harness.Do(t, "POST", shop.URL("/v1.0/publish/pubsub/orders"), []byte(`{"n":1}`), "Content-Type", "application/json", "traceparent", s.Header.Get("Traceparent"))
				}
			}
			bill.more = func(path string, s seen, w http.ResponseWriter) {
				switch path {
				case "/dapr/subscribe":
					fmt.Fprint(w, `[{"pubsubname":"pubsub","topic":"orders","route":"/bill"}]`)
				case "/bill":
					harness.Do(t, "POST", billing.URL("/v1.0/state/store"), []byte(`[{"key":"a","value":1}]`), "traceparent", s.Header.Get("Traceparent"))
				}
			}
			front := mesh.Start(harness.Options{AppID: "front", Config: config})
			shop = mesh.Start(harness.Options{AppID: "shop", AppPort: harness.Serve(t, order), Config: config, Files: files})
			billing = mesh.Start(harness.Options{AppID: "billing", AppPort: harness.Serve(t, bill), Config: config, Files: files})
			billing.WaitLog("app is subscribed to the following topics")

			resp, body := harness.Do(t, "POST", front.URL("/v1.0/invoke/shop/method/order?x=1"), nil, "traceparent", sampled, "dapr-tenant", "blue")
			if resp.StatusCode != 200 {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
			called, billed := order.await(t, "/order"), bill.await(t, "/bill")
			stop(front, shop, billing)

			api := collected.find(t, "front", "/v1.0/invoke/shop/method/order")
			local := collected.find(t, "shop", "CallLocal/shop/order")
			publish := collected.find(t, "shop", "/v1.0/publish/pubsub/orders")
			deliver := collected.find(t, "billing", "pubsub/orders")
			save := collected.find(t, "billing", "/v1.0/state/store")
			parent := callerID
			for _, step := range []struct {
				span
				kind string
			}{{api, "client"}, {local, "server"}, {publish, "client"}, {deliver, "consumer"}, {save, "client"}} {
				if step.Trace != traceID || step.Parent != parent || step.Kind != step.kind || step.Failed {
					t.Errorf("span %s of %s: kind %s, trace %s, parent %s, failed %v; want %s, %s, %s, false", step.Name, step.Service, step.Kind, step.Trace, step.Parent, step.Failed, step.kind, traceID, parent)
				}
				parent = step.ID
			}
			wantParent(t, "the caller's answer", resp.Header.Get("Traceparent"), api)
			wantParent(t, "the invoked app", called.Header.Get("Traceparent"), local)
			wantParent(t, "the subscriber", billed.Header.Get("Traceparent"), deliver)
			if billed.Header.Get("Tracestate") != "" {
				t.Error("a delivery has a tracestate header; Dapr's have none")
			}
			var event struct{ TraceID, TraceParent string }
			if err := json.Unmarshal([]byte(billed.Body), &event); err != nil || event.TraceParent != event.TraceID {
				t.Errorf("the event's trace fields are %q and %q (%v); want the same traceparent in both", event.TraceID, event.TraceParent, err)
			}
			wantParent(t, "the event", event.TraceParent, publish)

			port := fmt.Sprint(front.HTTP)
			wantAttrs(t, api, map[string]string{"dapr.api": "POST /v1.0/invoke/shop/method/order", "dapr.protocol": "http", "dapr.status_code": "200", "http.request.method": "POST",
				"url.full": "/v1.0/invoke/shop/method/order", "server.address": "127.0.0.1", "server.port": port, "net.peer.name": "shop", "rpc.service": "ServiceInvocation", "dapr-tenant": "blue"})
			wantAttrs(t, local, map[string]string{"rpc.service": "ServiceInvocation", "net.peer.name": "shop", "dapr.status_code": "200"})
			wantAttrs(t, publish, map[string]string{"messaging.system": "pubsub", "messaging.destination": "orders", "dapr.status_code": "204"})
			wantAttrs(t, deliver, map[string]string{"messaging.system": "pubsub", "messaging.destination": "orders"})
			wantAttrs(t, save, map[string]string{"db.system": "state", "db.name": "store", "db.statement": "POST /v1.0/state/store", "dapr.status_code": "204"})
			if tt.exporter == "otlp http" && collected.header.Get("X-Key") != "k1" {
				t.Error("the configured header was not sent to the collector")
			}
		})
	}
}

// wantParent checks that a traceparent names a span.
func wantParent(t *testing.T, where, header string, s span) {
	t.Helper()
	if trace, id, flags := parsed(t, where, header); trace != s.Trace || id != s.ID || flags != "01" {
		t.Errorf("%s has traceparent %s, want that of span %s (%s-%s-01)", where, header, s.Name, s.Trace, s.ID)
	}
}

func wantAttrs(t *testing.T, s span, want map[string]string) {
	t.Helper()
	got := maps.Clone(s.Attrs)
	maps.DeleteFunc(got, func(k, _ string) bool { _, asked := want[k]; return !asked })
	if !maps.Equal(got, want) {
		t.Errorf("span %s has attributes\n %v, want among them\n %v", s.Name, s.Attrs, want)
	}
}

// What an app and a caller see of a trace, by sampling rate and by what the caller sent.
func TestTraceHeaders(t *testing.T) {
	collected, addr := otlpGRPC(t)
	type want struct {
		answer, app string // "" none, "zero", "echo", "same" as the answer's span, "child" of it, "new" trace
		flags       string // of what the app sees
		spans       bool
	}
	for _, tt := range []struct {
		name, config, sent string
		remote, local      want
	}{
		{"rate 1, sampled", tracing("otlp grpc", addr, "1"), sampled, want{"new", "child", "01", true}, want{"new", "same", "01", true}},
		{"rate 1, unsampled parent", tracing("otlp grpc", addr, "1"), unsampled, want{"new", "child", "00", false}, want{"new", "same", "00", false}},
		{"rate 1, no parent", tracing("otlp grpc", addr, "1"), "", want{"new", "child", "01", true}, want{"new", "same", "01", true}},
		{"rate 1, broken parent", tracing("otlp grpc", addr, "1"), "00-xyz", want{"new", "child", "01", true}, want{"new", "same", "01", true}},
		{"small rate, sampled parent", tracing("otlp grpc", addr, "0.0001"), sampled, want{"new", "child", "01", true}, want{"new", "same", "01", true}},
		{"rate unset, sampled parent", tracing("otlp grpc", addr, ""), sampled, want{"new", "child", "01", true}, want{"new", "same", "01", true}},
		{"rate unset, unsampled parent", tracing("otlp grpc", addr, ""), unsampled, want{"new", "child", "00", false}, want{"new", "same", "00", false}},
		{"rate unreadable, sampled parent", tracing("otlp grpc", addr, "often"), sampled, want{"new", "child", "01", true}, want{"new", "same", "01", true}},
		{"rate 0, sampled parent", tracing("otlp grpc", addr, "0"), sampled, want{"", "echo", "01", false}, want{"", "echo", "01", false}},
		{"rate 0, no parent", tracing("otlp grpc", addr, "0"), "", want{"", "", "", false}, want{"", "", "", false}},
		{"no section, sampled parent", "", sampled, want{"echo", "echo", "01", false}, want{"echo", "echo", "01", false}},
		{"no section, no parent", "", "", want{"zero", "zero", "", false}, want{"zero", "zero", "", false}},
	} {
		t.Run(strings.ReplaceAll(tt.name, ",", ""), func(t *testing.T) {
			mesh, app := harness.NewMesh(t), &inbox{}
			callee := mesh.Start(harness.Options{AppID: "callee", AppPort: harness.Serve(t, app), Config: tt.config})
			caller := mesh.Start(harness.Options{AppID: "caller", Config: tt.config})
			before := len(collected.list())
			for _, way := range []struct {
				name string
				via  *harness.Sidecar
				want want
			}{{"remote", caller, tt.remote}, {"local", callee, tt.local}} {
				var header []string
				if tt.sent != "" {
					header = []string{"traceparent", tt.sent, "tracestate", "v=1"}
				}
				resp, _ := harness.Do(t, "GET", way.via.URL("/v1.0/invoke/callee/method/m"), nil, header...)
				answer, app := resp.Header.Get("Traceparent"), app.last(t, "/m").Header.Get("Traceparent")
				checkAnswer(t, way.name, way.want.answer, answer, tt.sent)
				checkApp(t, way.name, way.want.app, app, answer, tt.sent)
				if way.want.flags != "" && !strings.HasSuffix(app, "-"+way.want.flags) {
					t.Errorf("%s: the app sees %q, want flags %s", way.name, app, way.want.flags)
				}
			}
			stop(caller, callee)
			if got := len(collected.list()) > before; got != tt.remote.spans {
				t.Errorf("spans were exported: %v, want %v", got, tt.remote.spans)
			}
		})
	}
}

func checkAnswer(t *testing.T, way, want, got, sent string) {
	t.Helper()
	switch want {
	case "":
		if got != "" {
			t.Errorf("%s: the answer has traceparent %q, want none", way, got)
		}
	case "zero":
		if got != noTrace {
			t.Errorf("%s: the answer has traceparent %q, want zeros", way, got)
		}
	case "echo":
		if got != sent {
			t.Errorf("%s: the answer has traceparent %q, want %q back", way, got, sent)
		}
	default:
		trace, id, _ := parsed(t, way, got)
		if parentForm.MatchString(sent) && (trace != traceID || id == callerID) {
			t.Errorf("%s: the answer has traceparent %q, want a new span of trace %s", way, got, traceID)
		}
	}
}

func checkApp(t *testing.T, way, want, got, answer, sent string) {
	t.Helper()
	switch want {
	case "child":
		trace, id, _ := parsed(t, way, got)
		upper, parent, _ := parsed(t, way, answer)
		if trace != upper || id == parent || id == callerID {
			t.Errorf("%s: the app sees %q, want a child of %q", way, got, answer)
		}
	case "same":
		if got != answer {
			t.Errorf("%s: the app sees %q, want %q", way, got, answer)
		}
	default:
		checkAnswer(t, way+" (app)", want, got, sent)
	}
}

// Answers of every kind carry the trace context of their span, failures too; health checks
// are not traced.
func TestEveryAnswerIsTraced(t *testing.T) {
	collected, addr := otlpGRPC(t)
	s := harness.NewMesh(t).Start(harness.Options{AppID: "x", Config: tracing("otlp grpc", addr, "1"),
		Files: map[string]string{"s.yaml": component("store", "state.in-memory"), "p.yaml": component("pubsub", "pubsub.in-memory")}})
	s.WaitOutbound()
	var checks []func() // of the spans, when they have arrived
	for _, c := range []struct {
		method, path, body string
		status             int
		failed             bool
	}{
		{"GET", "/v1.0/state/store/k", "", 204, false},
		{"POST", "/v1.0/state/store", "not json", 400, true},
		{"GET", "/v1.0/state/nothere/k", "", 400, true},
		{"POST", "/v1.0/publish/pubsub/t", "x", 204, false},
		{"GET", "/v1.0/metadata", "", 200, false},
		{"GET", "/v1.0/invoke/nobody/method/m", "", 500, true},
		{"GET", "/no/such/path", "", 404, true},
	} {
		resp, body := harness.Do(t, c.method, s.URL(c.path), []byte(c.body), "traceparent", sampled, "tracestate", "v=1")
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d %s, want %d", c.path, resp.StatusCode, body, c.status)
		}
		answer := resp.Header.Get("Traceparent")
		if got := resp.Header.Get("Tracestate"); got != "v=1" {
			t.Errorf("%s: the answer has tracestate %q, want the caller's", c.path, got)
		}
		checks = append(checks, func() {
			got := collected.find(t, "x", c.path)
			wantParent(t, c.path, answer, got)
			if got.Failed != c.failed || got.Attrs["dapr.status_code"] != fmt.Sprint(c.status) || got.Parent != callerID {
				t.Errorf("the span of %s is failed: %v, with status %s, below %s", c.path, got.Failed, got.Attrs["dapr.status_code"], got.Parent)
			}
		})
	}
	resp, _ := harness.Do(t, "GET", s.URL("/v1.0/healthz"), nil, "traceparent", sampled)
	if got := resp.Header.Get("Traceparent"); got != "" {
		t.Errorf("a health check is answered with traceparent %q, want none", got)
	}
	stop(s)
	for _, check := range checks {
		check()
	}
	for _, sp := range collected.list() {
		if strings.Contains(sp.Name, "healthz") {
			t.Errorf("a health check has a span: %+v", sp)
		}
	}
}

func TestBaggage(t *testing.T) {
	mesh, app := harness.NewMesh(t), &inbox{}
	config := configuration("  tracing: {samplingRate: \"1\"}\n")
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: harness.Serve(t, app), Config: config})
	caller := mesh.Start(harness.Options{AppID: "caller", Config: config})
	const good = "user=ann;level=2,tier=gold%20plus"
	for name, via := range map[string]*harness.Sidecar{"remote": caller, "local": callee} {
		resp, _ := harness.Do(t, "GET", via.URL("/v1.0/invoke/callee/method/m"), nil, "baggage", good)
		if got := app.last(t, "/m").Header.Get("Baggage"); got != good || resp.Header.Get("Baggage") != good {
			t.Errorf("%s: the app sees baggage %q, the caller gets %q; want %q for both", name, got, resp.Header.Get("Baggage"), good)
		}
		resp, body := harness.Do(t, "GET", via.URL("/v1.0/invoke/callee/method/m"), nil, "baggage", "no value")
		if resp.StatusCode != 400 || !strings.HasPrefix(string(body), "invalid baggage header: ") {
			t.Errorf("%s: malformed baggage is answered with %d %s", name, resp.StatusCode, body)
		}
	}
	client := runtimev1.NewDaprClient(dial(t, caller.Target()))
	_, err := client.GetMetadata(metadata.AppendToOutgoingContext(limited(t), "baggage", "no value"), &runtimev1.GetMetadataRequest{})
	if err == nil || !strings.Contains(err.Error(), "InvalidArgument") || !strings.Contains(err.Error(), "invalid baggage header: ") {
		t.Errorf("malformed baggage over gRPC is answered with %v", err)
	}
	var head metadata.MD
	if _, err := client.GetMetadata(metadata.AppendToOutgoingContext(limited(t), "baggage", good), &runtimev1.GetMetadataRequest{}, grpc.Header(&head)); err != nil || one(head, "baggage") != good {
		t.Errorf("good baggage over gRPC: %v, comes back as %q", err, one(head, "baggage"))
	}
}

// traceBin is the binary form of a sampled trace context.
func traceBin(trace, id string) string {
	var b [29]byte
	copy(b[2:18], unhex(trace))
	b[18] = 1
	copy(b[19:27], unhex(id))
	b[27], b[28] = 2, 1
	return string(b[:])
}

func unhex(s string) []byte {
	b, err := hex.DecodeString(s)
	if err != nil {
		panic(err) // a constant of this file, or what a collector encoded
	}
	return b
}

// Calls over gRPC carry both forms of the trace context, and the binary one wins.
func TestTraceOverGRPC(t *testing.T) {
	collected, addr := otlpGRPC(t)
	config, mesh := tracing("otlp grpc", addr, "1"), harness.NewMesh(t)
	rpc, web := &echoService{}, &inbox{}
	rpcPort := serveGRPC(t, func(s *grpc.Server) { grpc_testing.RegisterTestServiceServer(s, rpc) })
	b := mesh.Start(harness.Options{AppID: "rpc", AppPort: rpcPort, Protocol: "grpc", Config: config})
	c := mesh.Start(harness.Options{AppID: "web", AppPort: harness.Serve(t, web), Config: config})
	a := mesh.Start(harness.Options{AppID: "front", Config: config, Files: map[string]string{"s.yaml": component("store", "state.in-memory")}})
	conn := dial(t, a.Target())
	const other = "00-11111111111111111111111111111111-2222222222222222-01"
	ctx := metadata.AppendToOutgoingContext(limited(t), "grpc-trace-bin", traceBin(traceID, callerID), "traceparent", other)

	var head metadata.MD
	const method = "/grpc.testing.TestService/UnaryCall"
	_, err := grpc_testing.NewTestServiceClient(conn).UnaryCall(metadata.AppendToOutgoingContext(ctx, "dapr-app-id", "rpc"), &grpc_testing.SimpleRequest{}, grpc.Header(&head))
	if err != nil {
		t.Fatal(err)
	}
	proxiedHead := head
	client := runtimev1.NewDaprClient(conn)
	_, err = client.InvokeService(ctx, &runtimev1.InvokeServiceRequest{Id: "web", Message: &commonv1.InvokeRequest{Method: "m", Data: &anypb.Any{},
		HttpExtension: &commonv1.HTTPExtension{Verb: commonv1.HTTPExtension_POST}}}, grpc.Header(&head))
	if err != nil {
		t.Fatal(err)
	}
	invokeHead := head
	if _, err = client.GetState(ctx, &runtimev1.GetStateRequest{StoreName: "store", Key: "k"}, grpc.Header(&head)); err != nil {
		t.Fatal(err)
	}
	stop(a, b, c)

	proxied, arrived := collected.find(t, "front", method), collected.find(t, "rpc", method)
	invoke, local := collected.find(t, "front", "/dapr.proto.runtime.v1.Dapr/InvokeService"), collected.find(t, "web", "CallLocal/web/m")
	state := collected.find(t, "front", "/dapr.proto.runtime.v1.Dapr/GetState")
	for _, s := range []struct {
		span
		parent string
	}{{proxied, callerID}, {arrived, proxied.ID}, {invoke, callerID}, {local, invoke.ID}, {state, callerID}} {
		if s.Trace != traceID || s.Parent != s.parent {
			t.Errorf("span %s of %s is in trace %s under %s, want %s under %s", s.Name, s.Service, s.Trace, s.Parent, traceID, s.parent)
		}
	}
	if got := rpc.saw("grpc-trace-bin"); got != traceBin(traceID, arrived.ID) {
		t.Errorf("the proxied app sees grpc-trace-bin %x, want that of span %s", got, arrived.ID)
	}
	wantParent(t, "the proxied app", rpc.saw("traceparent"), arrived)
	wantParent(t, "the HTTP app", web.last(t, "/m").Header.Get("Traceparent"), local)
	wantParent(t, "the proxied answer", one(proxiedHead, "traceparent"), proxied)
	wantParent(t, "InvokeService's answer", one(invokeHead, "traceparent"), invoke)
	for name, h := range map[string]struct {
		md metadata.MD
		of span
	}{"proxied": {proxiedHead, proxied}, "InvokeService": {invokeHead, invoke}, "GetState": {head, state}} {
		if got := one(h.md, "grpc-trace-bin"); got != traceBin(traceID, h.of.ID) {
			t.Errorf("the answer to %s has grpc-trace-bin %x, want that of span %s", name, got, h.of.ID)
		}
	}
	if got := one(head, "traceparent"); got != "" {
		t.Errorf("the answer to GetState has traceparent %q; Dapr's has only the binary form", got)
	}
	wantAttrs(t, proxied, map[string]string{"dapr.api": method, "dapr.protocol": "grpc", "dapr.status_code": "0", "net.peer.name": "rpc", "rpc.service": "ServiceInvocation"})
	wantAttrs(t, invoke, map[string]string{"net.peer.name": "web", "rpc.service": "ServiceInvocation"})
	wantAttrs(t, state, map[string]string{"db.system": "state", "db.name": "store", "db.statement": "/dapr.proto.runtime.v1.Dapr/GetState", "server.port": fmt.Sprint(a.GRPC)})
}

// Every entry of a bulk publish has a span of its own, and each event carries it.
func TestTraceOfBulkPublish(t *testing.T) {
	collected, addr := otlpGRPC(t)
	mesh, app := harness.NewMesh(t), &inbox{}
	app.more = func(path string, _ seen, w http.ResponseWriter) {
		if path == "/dapr/subscribe" {
			fmt.Fprint(w, `[{"pubsubname":"pubsub","topic":"t","route":"/t"}]`)
		}
	}
	s := mesh.Start(harness.Options{AppID: "app", AppPort: harness.Serve(t, app), Config: tracing("otlp grpc", addr, "1"),
		Files: map[string]string{"p.yaml": component("pubsub", "pubsub.in-memory")}})
	s.WaitLog("app is subscribed to the following topics")
	resp, body := harness.Do(t, "POST", s.URL("/v1.0/publish/bulk/pubsub/t"), []byte(`[{"entryId":"1","event":"a","contentType":"text/plain"},{"entryId":"2","event":"b","contentType":"text/plain"}]`),
		"Content-Type", "application/json", "traceparent", sampled)
	if resp.StatusCode != 204 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	eventually(t, 15*time.Second, "both events arrive", func() bool { app.mu.Lock(); defer app.mu.Unlock(); return len(app.got["/t"]) == 2 })
	stop(s)
	api := collected.find(t, "app", "/v1.0/publish/bulk/pubsub/t")
	producers, consumers := map[string]bool{}, map[string]string{}
	for _, sp := range collected.list() {
		switch {
		case sp.Kind == "producer" && sp.Name == "pubsub/t" && sp.Parent == api.ID:
			producers[sp.ID] = true
		case sp.Kind == "consumer" && sp.Name == "pubsub/t":
			consumers[sp.ID] = sp.Parent
		}
	}
	if len(producers) != 2 || len(consumers) != 2 {
		t.Fatalf("%d producers below the publish and %d consumers, want two of each:\n%s", len(producers), len(consumers), collected)
	}
	for id, parent := range consumers {
		if !producers[parent] {
			t.Errorf("delivery %s is below %s, want one of %v", id, parent, producers)
		}
	}
}
