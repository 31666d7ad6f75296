package mesh

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/mecha-project/mecha/test/harness"
)

// scrape reads a sidecar's metrics.
func scrape(t *testing.T, s *harness.Sidecar) map[string]*dto.MetricFamily {
	t.Helper()
	resp, body := harness.Do(t, "GET", fmt.Sprintf("http://127.0.0.1:%d/metrics", s.Metrics), nil)
	if resp.StatusCode != 200 {
		t.Fatalf("scraping: %d %s", resp.StatusCode, body)
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(body)))
	if err != nil {
		t.Fatalf("the metrics cannot be parsed: %v", err)
	}
	return families
}

// value is a series' count or gauge, or a histogram's count; labels must match entirely, but
// for app_id. It is -1 when there is no such series.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	want := map[string]string{}
	for i := 0; i+1 < len(labels); i += 2 {
		want[labels[i]] = labels[i+1]
	}
	for _, m := range families[name].GetMetric() {
		got := map[string]string{}
		for _, l := range m.GetLabel() {
			if _, asked := want["app_id"]; asked || l.GetName() != "app_id" {
				got[l.GetName()] = l.GetValue()
			}
		}
		if !maps.Equal(got, want) {
			continue
		}
		switch {
		case m.Histogram != nil:
			return float64(m.GetHistogram().GetSampleCount())
		case m.Gauge != nil:
			return m.GetGauge().GetValue()
		case m.Counter != nil:
			return m.GetCounter().GetValue()
		}
		return m.GetUntyped().GetValue()
	}
	return -1
}

// sum is a histogram's sum over all its series.
func sum(families map[string]*dto.MetricFamily, name string) (total float64) {
	for _, m := range families[name].GetMetric() {
		total += m.GetHistogram().GetSampleSum()
	}
	return total
}

// Every family this version has, and its labels beside app_id. Families of blocks it does not
// have yet must not appear.
var wantFamilies = map[string]string{
	"dapr_http_server_request_count":                      "method path status",
	"dapr_http_server_latency":                            "method path status",
	"dapr_http_server_response_count":                     "method path status",
	"dapr_http_server_request_bytes":                      "",
	"dapr_http_server_response_bytes":                     "",
	"dapr_http_client_completed_count":                    "method path status",
	"dapr_http_client_roundtrip_latency":                  "method path status",
	"dapr_http_client_sent_bytes":                         "method path status",
	"dapr_http_client_received_bytes":                     "",
	"dapr_http_healthprobes_completed_count":              "status",
	"dapr_http_healthprobes_roundtrip_latency":            "status",
	"dapr_grpc_io_server_completed_rpcs":                  "grpc_server_method grpc_server_status",
	"dapr_grpc_io_server_server_latency":                  "grpc_server_method grpc_server_status",
	"dapr_grpc_io_server_received_bytes_per_rpc":          "grpc_server_method",
	"dapr_grpc_io_server_sent_bytes_per_rpc":              "grpc_server_method",
	"dapr_grpc_io_client_completed_rpcs":                  "grpc_client_method grpc_client_status",
	"dapr_grpc_io_client_roundtrip_latency":               "grpc_client_method grpc_client_status",
	"dapr_grpc_io_client_received_bytes_per_rpc":          "grpc_client_method",
	"dapr_grpc_io_client_sent_bytes_per_rpc":              "grpc_client_method",
	"dapr_grpc_io_healthprobes_completed_count":           "grpc_client_status",
	"dapr_grpc_io_healthprobes_roundtrip_latency":         "grpc_client_status",
	"dapr_component_state_count":                          "component namespace operation success",
	"dapr_component_state_latencies":                      "component namespace operation success",
	"dapr_component_pubsub_egress_count":                  "component namespace success topic",
	"dapr_component_pubsub_egress_latencies":              "component namespace success topic",
	"dapr_component_pubsub_egress_bulk_count":             "component namespace success topic",
	"dapr_component_pubsub_egress_bulk_latencies":         "component namespace success topic",
	"dapr_component_pubsub_ingress_count":                 "component namespace process_status status topic",
	"dapr_component_pubsub_ingress_latencies":             "component namespace process_status status topic",
	"dapr_component_pubsub_ingress_bulk_count":            "component namespace process_status topic",
	"dapr_component_pubsub_ingress_bulk_latencies":        "component namespace process_status topic",
	"dapr_component_pubsub_ingress_bulk_event_count":      "component namespace process_status topic",
	"dapr_runtime_component_loaded":                       "",
	"dapr_runtime_component_init_total":                   "component",
	"dapr_runtime_component_init_fail_total":              "component componentName reason",
	"dapr_runtime_service_invocation_req_sent_total":      "dst_app_id type",
	"dapr_runtime_service_invocation_req_recv_total":      "src_app_id",
	"dapr_runtime_service_invocation_res_sent_total":      "dst_app_id status",
	"dapr_runtime_service_invocation_res_recv_total":      "src_app_id status type",
	"dapr_runtime_service_invocation_res_recv_latency_ms": "src_app_id status",
	"dapr_runtime_acl_global_policy_action_allowed_total": "namespace trustDomain",
	"dapr_error_code_total":                               "category error_code",
}

// callbackApp is a gRPC app with Dapr's callbacks beside the test service.
type callbackApp struct {
	runtimev1.UnimplementedAppCallbackServer
	runtimev1.UnimplementedAppCallbackHealthCheckServer
	echoService
	events chan metadata.MD
}

func (a *callbackApp) OnInvoke(_ context.Context, in *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
	return &commonv1.InvokeResponse{Data: in.GetData()}, nil
}

func (a *callbackApp) HealthCheck(context.Context, *emptypb.Empty) (*runtimev1.HealthCheckResponse, error) {
	return &runtimev1.HealthCheckResponse{}, nil
}

func (a *callbackApp) ListTopicSubscriptions(context.Context, *emptypb.Empty) (*runtimev1.ListTopicSubscriptionsResponse, error) {
	return &runtimev1.ListTopicSubscriptionsResponse{Subscriptions: []*runtimev1.TopicSubscription{{PubsubName: "pubsub", Topic: "t"}}}, nil
}

func (a *callbackApp) ListInputBindings(context.Context, *emptypb.Empty) (*runtimev1.ListInputBindingsResponse, error) {
	return &runtimev1.ListInputBindingsResponse{}, nil
}

func (a *callbackApp) OnTopicEvent(ctx context.Context, _ *runtimev1.TopicEventRequest) (*runtimev1.TopicEventResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	a.events <- md
	return &runtimev1.TopicEventResponse{}, nil
}

func (a *callbackApp) serve(t *testing.T) int {
	t.Helper()
	a.events = make(chan metadata.MD, 16)
	return serveGRPC(t, func(s *grpc.Server) {
		grpc_testing.RegisterTestServiceServer(s, a)
		runtimev1.RegisterAppCallbackServer(s, a)
		runtimev1.RegisterAppCallbackHealthCheckServer(s, a)
	})
}

// event waits for the metadata of a delivery.
func (a *callbackApp) event(t *testing.T) metadata.MD {
	t.Helper()
	select {
	case md := <-a.events:
		return md
	case <-time.After(15 * time.Second):
		t.Fatal("no event was delivered")
		return nil
	}
}

// webApp is an HTTP app that takes events of t one by one and of b in batches.
func webApp() *inbox {
	app := &inbox{}
	app.more = func(path string, s seen, w http.ResponseWriter) {
		switch path {
		case "/dapr/subscribe":
			fmt.Fprint(w, `[{"pubsubname":"pubsub","topic":"t","route":"/t"},
				{"pubsubname":"pubsub","topic":"b","route":"/b","bulkSubscribe":{"enabled":true,"maxMessagesCount":10,"maxAwaitDurationMs":50}}]`)
		case "/t":
			if strings.Contains(s.Body, `"drop"`) {
				fmt.Fprint(w, `{"status":"DROP"}`)
			}
		case "/b":
			var ids []string
			for _, part := range strings.Split(s.Body, `"entryId":"`)[1:] {
				id, _, _ := strings.Cut(part, `"`)
				ids = append(ids, fmt.Sprintf(`{"entryId":%q,"status":"SUCCESS"}`, id))
			}
			fmt.Fprintf(w, `{"statuses":[%s]}`, strings.Join(ids, ","))
		case "/teapot":
			w.WriteHeader(http.StatusTeapot)
		default:
			io.WriteString(w, "hello")
		}
	}
	return app
}

// One of everything, then the families, their labels and the figures that can be known.
func TestMetrics(t *testing.T) {
	mesh, app, callbacks := harness.NewMesh(t), webApp(), &callbackApp{}
	config := configuration("  metrics: {enabled: true, recordErrorCodes: true, http: {increasedCardinality: true}}\n")
	broken := strings.Replace(component("broken", "state.unknown"), "  version: v1\n", "  version: v1\n  ignoreErrors: true\n", 1)
	health := []string{"--enable-app-health-check", "--app-health-probe-interval", "1"}
	web := mesh.Start(harness.Options{AppID: "web", AppPort: harness.Serve(t, app), Config: config, Args: append(health, "--app-health-check-path", "/health"), Files: map[string]string{
		"p.yaml": component("pubsub", "pubsub.in-memory"), "s.yaml": component("store", "state.in-memory"), "x.yaml": broken}})
	rpc := mesh.Start(harness.Options{AppID: "rpc", AppPort: callbacks.serve(t), Protocol: "grpc", Config: config, Args: health, Files: map[string]string{"p.yaml": component("pubsub", "pubsub.in-memory")}})
	caller := mesh.Start(harness.Options{AppID: "caller", Config: config})
	web.WaitLog("through pubsub=pubsub")
	rpc.WaitLog("through pubsub=pubsub")
	oneOfEverything(t, web, rpc, caller)
	app.await(t, "/b")
	callbacks.event(t)
	eventually(t, 10*time.Second, "deliveries and probes are counted", func() bool {
		f := scrape(t, web)
		return value(f, "dapr_component_pubsub_ingress_count", "component", "pubsub", "namespace", "", "process_status", "drop", "status", "success", "topic", "t") == 1 &&
			value(f, "dapr_http_healthprobes_completed_count", "status", "200") >= 1 && len(f["dapr_component_pubsub_ingress_bulk_event_count"].GetMetric()) > 0
	})
	type family = map[string]*dto.MetricFamily
	var fw, fr, fc family
	figures := []struct {
		of     *family
		name   string
		labels []string
		want   float64
	}{
		{&fc, "dapr_http_server_request_count", []string{"method", "GET", "path", "/v1.0/invoke/web/method/hello", "status", "200"}, 2},
		{&fc, "dapr_http_server_request_count", []string{"method", "GET", "path", "/v1.0/invoke/web/method/teapot", "status", "418"}, 1},
		{&fw, "dapr_http_client_completed_count", []string{"method", "GET", "path", "/hello", "status", "200"}, 3},
		{&fw, "dapr_http_client_completed_count", []string{"method", "GET", "path", "/dapr/subscribe", "status", "200"}, 1},
		{&fw, "dapr_http_client_completed_count", []string{"method", "POST", "path", "/t", "status", "200"}, 2},
		{&fw, "dapr_http_server_request_count", []string{"method", "GET", "path", "/v1.0/state/store", "status", "204"}, 1},
		{&fw, "dapr_component_state_count", []string{"component", "store", "namespace", "", "operation", "set", "success", "true"}, 1},
		{&fw, "dapr_component_state_count", []string{"component", "store", "namespace", "", "operation", "get", "success", "true"}, 1},
		{&fw, "dapr_component_state_count", []string{"component", "store", "namespace", "", "operation", "delete", "success", "true"}, 1},
		{&fw, "dapr_component_state_count", []string{"component", "store", "namespace", "", "operation", "bulk_get", "success", "true"}, 1},
		{&fw, "dapr_component_state_count", []string{"component", "store", "namespace", "", "operation", "transaction", "success", "true"}, 1},
		{&fw, "dapr_component_pubsub_egress_count", []string{"component", "pubsub", "namespace", "", "success", "true", "topic", "t"}, 2},
		{&fw, "dapr_component_pubsub_egress_bulk_count", []string{"component", "pubsub", "namespace", "", "success", "true", "topic", "b"}, 1},
		{&fw, "dapr_component_pubsub_ingress_count", []string{"component", "pubsub", "namespace", "", "process_status", "success", "status", "success", "topic", "t"}, 1},
		{&fw, "dapr_component_pubsub_ingress_bulk_event_count", []string{"component", "pubsubName", "namespace", "", "process_status", "SUCCESS", "topic", "b"}, 2},
		{&fw, "dapr_runtime_component_loaded", nil, 2},
		{&fw, "dapr_runtime_component_init_total", []string{"component", "state.in-memory"}, 1},
		{&fw, "dapr_runtime_component_init_fail_total", []string{"component", "state.unknown", "componentName", "broken", "reason", "creation"}, 1},
		{&fc, "dapr_runtime_service_invocation_req_sent_total", []string{"dst_app_id", "web", "type", "unary"}, 4},
		{&fw, "dapr_runtime_service_invocation_req_recv_total", []string{"src_app_id", "caller"}, 4},
		{&fw, "dapr_runtime_service_invocation_res_sent_total", []string{"dst_app_id", "caller", "status", "418"}, 1},
		{&fc, "dapr_runtime_service_invocation_res_recv_total", []string{"src_app_id", "web", "status", "200", "type", "unary"}, 3},
		{&fc, "dapr_runtime_service_invocation_res_recv_latency_ms", []string{"src_app_id", "web", "status", "418"}, 1},
		{&fw, "dapr_runtime_acl_global_policy_action_allowed_total", []string{"app_id", "", "namespace", "", "trustDomain", ""}, 4},
		{&fc, "dapr_grpc_io_server_completed_rpcs", []string{"grpc_server_method", "/dapr.proto.runtime.v1.Dapr/InvokeService", "grpc_server_status", "OK"}, 2},
		{&fc, "dapr_grpc_io_server_completed_rpcs", []string{"grpc_server_method", "/dapr.proto.runtime.v1.Dapr/GetState", "grpc_server_status", "FailedPrecondition"}, 1},
		{&fc, "dapr_grpc_io_server_completed_rpcs", []string{"grpc_server_method", "/grpc.testing.TestService/UnaryCall", "grpc_server_status", "OK"}, 1},
		{&fr, "dapr_grpc_io_client_completed_rpcs", []string{"grpc_client_method", "/grpc.testing.TestService/UnaryCall", "grpc_client_status", "OK"}, 1},
		{&fr, "dapr_grpc_io_client_completed_rpcs", []string{"grpc_client_method", "/dapr.proto.runtime.v1.AppCallback/OnInvoke", "grpc_client_status", "OK"}, 1},
		{&fr, "dapr_grpc_io_client_completed_rpcs", []string{"grpc_client_method", "/dapr.proto.runtime.v1.AppCallback/OnTopicEvent", "grpc_client_status", "OK"}, 1},
		{&fc, "dapr_error_code_total", []string{"category", "service-invocation", "error_code", "ERR_DIRECT_INVOKE"}, 1},
		{&fw, "dapr_error_code_total", []string{"category", "state", "error_code", "ERR_STATE_STORE_NOT_FOUND"}, 1},
	}
	// A sidecar counts a call when it has ended, which its caller may learn a moment earlier.
	var wrong []string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		fw, fr, fc, wrong = scrape(t, web), scrape(t, rpc), scrape(t, caller), nil
		for _, c := range figures {
			if got := value(*c.of, c.name, c.labels...); got != c.want {
				wrong = append(wrong, fmt.Sprintf("%s%v = %v, want %v; there are\n%v", c.name, c.labels, got, c.want, (*c.of)[c.name].GetMetric()))
			}
		}
		// 1000 bytes went each way in the payload of a proxied call and of InvokeService.
		for name, of := range map[string]family{"server_received": fc, "server_sent": fc, "client_sent": fr, "client_received": fr} {
			name = "dapr_grpc_io_" + name + "_bytes_per_rpc"
			if got := sum(of, name); got < 2000 || got > 6000 {
				wrong = append(wrong, fmt.Sprintf("the sum of %s is %v, want a little over 2000", name, got))
			}
		}
		if len(wrong) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, w := range wrong {
		t.Error(w)
	}
	checkFamilies(t, fw, fr, fc)
	if _, ok := fc["go_goroutines"]; !ok {
		t.Error("Go's own metrics are missing")
	}
	if _, ok := fc["process_cpu_seconds_total"]; !ok {
		t.Error("the process's own metrics are missing")
	}
}

// oneOfEverything calls each API of this version once or twice, as the table above counts.
func oneOfEverything(t *testing.T, web, rpc, caller *harness.Sidecar) {
	t.Helper()
	do := func(want int, method, url, body string) {
		t.Helper()
		resp, got := harness.Do(t, method, url, []byte(body), "Content-Type", "application/json")
		if resp.StatusCode != want {
			t.Fatalf("%s %s: %d %s, want %d", method, url, resp.StatusCode, got, want)
		}
	}
	do(200, "GET", caller.URL("/v1.0/invoke/web/method/hello?q=1"), "")
	do(200, "GET", caller.URL("/v1.0/invoke/web/method/hello"), "")
	do(200, "GET", web.URL("/v1.0/invoke/web/method/hello"), "") // its own app: not a call between sidecars
	do(418, "GET", caller.URL("/v1.0/invoke/web/method/teapot"), "")
	do(500, "GET", caller.URL("/v1.0/invoke/nobody/method/hello"), "")
	do(204, "GET", web.URL("/v1.0/state/store/k?metadata.x=1"), "")
	do(204, "POST", web.URL("/v1.0/state/store"), `[{"key":"k","value":1}]`)
	do(200, "POST", web.URL("/v1.0/state/store/bulk"), `{"keys":["k"]}`)
	do(204, "POST", web.URL("/v1.0/state/store/transaction"), `{"operations":[{"operation":"upsert","request":{"key":"x","value":1}}]}`)
	do(204, "DELETE", web.URL("/v1.0/state/store/k"), "")
	do(400, "GET", web.URL("/v1.0/state/nothere/k"), "")
	do(204, "POST", web.URL("/v1.0/publish/pubsub/t"), `"keep"`)
	do(204, "POST", web.URL("/v1.0/publish/pubsub/t"), `"drop"`)
	do(204, "POST", web.URL("/v1.0/publish/bulk/pubsub/b"), `[{"entryId":"1","event":1,"contentType":"application/json"},{"entryId":"2","event":2,"contentType":"application/json"}]`)
	do(204, "POST", rpc.URL("/v1.0/publish/pubsub/t"), `"x"`)

	payload := make([]byte, 1000)
	conn := dial(t, caller.Target())
	ctx := metadata.AppendToOutgoingContext(limited(t), "dapr-app-id", "rpc")
	if _, err := grpc_testing.NewTestServiceClient(conn).UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: payload}}); err != nil {
		t.Fatal(err)
	}
	client := runtimev1.NewDaprClient(conn)
	for id, body := range map[string][]byte{"rpc": payload, "web": nil} {
		if _, err := client.InvokeService(limited(t), &runtimev1.InvokeServiceRequest{Id: id, Message: &commonv1.InvokeRequest{Method: "m", Data: &anypb.Any{Value: body},
			HttpExtension: &commonv1.HTTPExtension{Verb: commonv1.HTTPExtension_POST}}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.GetState(limited(t), &runtimev1.GetStateRequest{StoreName: "s", Key: "k"}); err == nil {
		t.Fatal("a sidecar without a state store answered GetState")
	}
}

// checkFamilies compares the families of all sidecars together with the table.
func checkFamilies(t *testing.T, all ...map[string]*dto.MetricFamily) {
	t.Helper()
	got := map[string]string{}
	for _, families := range all {
		for name, f := range families {
			if !strings.HasPrefix(name, "dapr_") {
				continue
			}
			for _, m := range f.GetMetric() {
				var labels []string
				for _, l := range m.GetLabel() {
					if l.GetName() != "app_id" {
						labels = append(labels, l.GetName())
					}
				}
				slices.Sort(labels)
				if text := strings.Join(labels, " "); got[name] == "" || got[name] == text {
					got[name] = text
				} else {
					t.Errorf("%s has series with labels %q and with %q", name, got[name], text)
				}
				if len(labels) == len(m.GetLabel()) {
					t.Errorf("a series of %s has no app_id", name)
				}
			}
		}
	}
	for name, labels := range wantFamilies {
		if have, ok := got[name]; !ok {
			t.Errorf("%s is missing", name)
		} else if have != labels {
			t.Errorf("%s has labels %q, want %q", name, have, labels)
		}
	}
	for name := range got {
		if _, ok := wantFamilies[name]; !ok {
			t.Errorf("%s is not among Dapr's metrics of these blocks", name)
		}
	}
}

// An event for a gRPC app carries the trace context of its delivery in both forms.
func TestTraceOfDeliveryOverGRPC(t *testing.T) {
	collected, addr := otlpGRPC(t)
	mesh, app := harness.NewMesh(t), &callbackApp{}
	s := mesh.Start(harness.Options{AppID: "rpc", AppPort: app.serve(t), Protocol: "grpc", Config: tracing("otlp grpc", addr, "1"),
		Files: map[string]string{"p.yaml": component("pubsub", "pubsub.in-memory")}})
	s.WaitLog("through pubsub=pubsub")
	if _, err := runtimev1.NewDaprClient(dial(t, s.Target())).PublishEvent(metadata.AppendToOutgoingContext(limited(t), "traceparent", sampled),
		&runtimev1.PublishEventRequest{PubsubName: "pubsub", Topic: "t", Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	md := app.event(t)
	stop(s)
	publish, deliver := collected.find(t, "rpc", "/dapr.proto.runtime.v1.Dapr/PublishEvent"), collected.find(t, "rpc", "pubsub/t")
	if deliver.Parent != publish.ID || deliver.Trace != traceID {
		t.Errorf("the delivery is below %s of %s, want %s of %s", deliver.Parent, deliver.Trace, publish.ID, traceID)
	}
	wantParent(t, "the app", one(md, "traceparent"), deliver)
	if got := one(md, "grpc-trace-bin"); got != traceBin(traceID, deliver.ID) {
		t.Errorf("the app sees grpc-trace-bin %x, want that of %s", got, deliver.ID)
	}
	wantAttrs(t, publish, map[string]string{"messaging.system": "pubsub", "messaging.destination": "t"})
}
