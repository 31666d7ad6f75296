package telemetry_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/telemetry"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

func newMetrics(t testing.TB, o telemetry.MetricsOptions) *telemetry.Metrics {
	t.Helper()
	if o.AppID == "" {
		o.AppID = "orders"
	}
	m, err := telemetry.NewMetrics(o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// scrape is the text of all dapr_ lines, without comments.
func scrape(t testing.TB, m *telemetry.Metrics) []string {
	t.Helper()
	families, err := telemetry.Registry(m).Gather()
	if err != nil {
		t.Fatalf("gather: %v", err)
	}
	var b bytes.Buffer
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			t.Fatal(err)
		}
	}
	var out []string
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, "dapr_") {
			out = append(out, strings.TrimSuffix(line, "\n"))
		}
	}
	return out
}

// has fails unless every wanted line was scraped.
func has(t *testing.T, lines []string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(lines, w) {
			name, _, _ := strings.Cut(w, "{")
			var near []string
			for _, l := range lines {
				if strings.HasPrefix(l, name) {
					near = append(near, l)
				}
			}
			t.Errorf("no line %s\nhave:\n%s", w, strings.Join(near, "\n"))
		}
	}
}

func TestEdgeMetrics(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{})
	m.HTTPServer("GET", "/v1.0/state/mem/key-1", 200, 0, 2000, 1500*time.Microsecond)
	m.HTTPServer("GET", "/v1.0/state/mem/key-2", 200, 10, 20, 500*time.Microsecond)
	m.HTTPClient("POST", "/orders", 500, 100, 7, 3*time.Millisecond)
	m.HTTPHealthProbe(200, time.Millisecond)
	m.GRPCServer("/dapr.proto.runtime.v1.Dapr/GetState", 3, 10, 20, time.Millisecond)
	m.GRPCServer("/dapr.proto.runtime.v1.Dapr/GetState", 4711, 10, 20, time.Millisecond)
	m.GRPCClient("/dapr.proto.runtime.v1.AppCallback/OnInvoke", 0, 10, 20, 200*time.Second)
	m.GRPCHealthProbe(14, time.Millisecond)

	got := scrape(t, m)
	server := `{app_id="orders",method="GET",path="/v1.0/state/mem",status="200"`
	client := `{app_id="orders",method="POST",path="/orders",status="500"`
	has(t, got,
		`dapr_http_server_request_count`+server+`} 2`,
		`dapr_http_server_response_count`+server+`} 2`,
		`dapr_http_server_latency_count`+server+`} 2`,
		`dapr_http_server_latency_sum`+server+`} 2`,
		`dapr_http_server_latency_bucket`+server+`,le="1"} 1`,
		`dapr_http_server_latency_bucket`+server+`,le="2"} 2`,
		`dapr_http_server_latency_bucket`+server+`,le="100000"} 2`,
		`dapr_http_server_request_bytes_sum{app_id="orders"} 10`,
		`dapr_http_server_response_bytes_bucket{app_id="orders",le="1024"} 1`,
		`dapr_http_server_response_bytes_bucket{app_id="orders",le="2048"} 2`,
		`dapr_http_server_response_bytes_bucket{app_id="orders",le="1.048576e+06"} 2`,
		`dapr_http_client_completed_count`+client+`} 1`,
		`dapr_http_client_roundtrip_latency_sum`+client+`} 3`,
		`dapr_http_client_sent_bytes_sum{app_id="orders",method="POST",path="/orders",status=""} 100`,
		`dapr_http_client_received_bytes_sum{app_id="orders"} 7`,
		`dapr_http_healthprobes_completed_count{app_id="orders",status="200"} 1`,
		`dapr_grpc_io_server_completed_rpcs{app_id="orders",grpc_server_method="/dapr.proto.runtime.v1.Dapr/GetState",grpc_server_status="InvalidArgument"} 1`,
		`dapr_grpc_io_server_completed_rpcs{app_id="orders",grpc_server_method="/dapr.proto.runtime.v1.Dapr/GetState",grpc_server_status="Unknown"} 1`,
		`dapr_grpc_io_server_received_bytes_per_rpc_sum{app_id="orders",grpc_server_method="/dapr.proto.runtime.v1.Dapr/GetState"} 20`,
		`dapr_grpc_io_server_sent_bytes_per_rpc_sum{app_id="orders",grpc_server_method="/dapr.proto.runtime.v1.Dapr/GetState"} 40`,
		`dapr_grpc_io_client_completed_rpcs{app_id="orders",grpc_client_method="/dapr.proto.runtime.v1.AppCallback/OnInvoke",grpc_client_status="OK"} 1`,
		`dapr_grpc_io_client_roundtrip_latency_bucket{app_id="orders",grpc_client_method="/dapr.proto.runtime.v1.AppCallback/OnInvoke",grpc_client_status="OK",le="100000"} 0`,
		`dapr_grpc_io_client_roundtrip_latency_bucket{app_id="orders",grpc_client_method="/dapr.proto.runtime.v1.AppCallback/OnInvoke",grpc_client_status="OK",le="+Inf"} 1`,
		`dapr_grpc_io_client_sent_bytes_per_rpc_sum{app_id="orders",grpc_client_method="/dapr.proto.runtime.v1.AppCallback/OnInvoke"} 10`,
		`dapr_grpc_io_healthprobes_completed_count{app_id="orders",grpc_client_status="Unavailable"} 1`,
	)
}

func TestComponentMetrics(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{Namespace: "prod"})
	ms := time.Millisecond
	m.State("mem", "get", true, ms)
	m.State("mem", "get", true, ms)
	m.Configuration("conf", "subscribe", false, ms)
	m.Secret("vault", "bulk_get", true, ms)
	m.Crypto("keys", true, ms)
	m.Conversation("echo", true, ms)
	m.OutputBinding("mail", "create", false, ms)
	m.InputBinding("cron", true, ms)
	m.Job(true, ms)
	m.Job(false, ms)
	m.PubSubEgress("ps", "t1", true, ms)
	m.PubSubBulkEgress("ps", "t1", false, ms)
	m.PubSubIngress("ps", "t1", "drop", "success", ms)
	m.PubSubBulkIngress("t1", ms)
	m.PubSubBulkIngressEvents("t1", "SUCCESS", 5)
	m.WorkflowScheduled("Order", ms)

	base := func(component string) string {
		return `{app_id="orders",component="` + component + `",namespace="prod",`
	}
	has(t, scrape(t, m),
		`dapr_component_state_count`+base("mem")+`operation="get",success="true"} 2`,
		`dapr_component_state_latencies_count`+base("mem")+`operation="get",success="true"} 2`,
		`dapr_component_configuration_count`+base("conf")+`operation="subscribe",success="false"} 1`,
		`dapr_component_secret_count`+base("vault")+`operation="bulk_get",success="true"} 1`,
		`dapr_component_crypto_count`+base("keys")+`operation="crypto_op",success="true"} 1`,
		`dapr_component_conversation_count`+base("echo")+`success="true"} 1`,
		`dapr_component_output_binding_count`+base("mail")+`operation="create",success="false"} 1`,
		`dapr_component_input_binding_count`+base("cron")+`success="true"} 1`,
		`dapr_component_job_success_count{app_id="orders",namespace="prod",operation="job_trigger_op"} 1`,
		`dapr_component_job_failure_count{app_id="orders",namespace="prod",operation="job_trigger_op"} 1`,
		`dapr_component_job_latencies_count{app_id="orders",namespace="prod",operation="job_trigger_op",success="false"} 1`,
		`dapr_component_pubsub_egress_count`+base("ps")+`success="true",topic="t1"} 1`,
		`dapr_component_pubsub_egress_bulk_count`+base("ps")+`success="false",topic="t1"} 1`,
		`dapr_component_pubsub_ingress_count`+base("ps")+`process_status="drop",status="success",topic="t1"} 1`,
		`dapr_component_pubsub_ingress_bulk_count`+base("pubsubName")+`process_status="",topic="t1"} 1`,
		`dapr_component_pubsub_ingress_bulk_event_count`+base("pubsubName")+`process_status="SUCCESS",topic="t1"} 5`,
		`dapr_runtime_workflow_scheduling_latency_count{app_id="orders",namespace="prod",workflow_name="Order"} 1`,
	)
}

func TestRuntimeMetrics(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{Namespace: "prod", RecordErrorCodes: true})
	m.ComponentLoaded()
	m.ComponentLoaded()
	m.ComponentInit("state.redis")
	m.ComponentInitFail("state.redis", "init", "store")
	m.InvokeReqSent("b", "unary")
	m.InvokeReqRecv("a")
	m.InvokeResSent("a", "200")
	m.InvokeResRecv("b", "200", "unary", 2*time.Millisecond)
	m.ACL("", "", "", true, true)
	m.ACL("a", "public", "ns", false, false)
	m.ErrorCode("ERR_STATE_GET", "state")
	m.MTLSInit("")
	m.MTLSRotated("expired")
	m.ActorTimers("Cart", 3)
	m.ActorTimers("Cart", 2)
	m.ResiliencyLoaded("myres", "")
	r := m.Resiliency(telemetry.Resiliency{Name: "myres", Policy: "circuitbreaker", Direction: "outbound", Target: "app_b"})
	r.Count(telemetry.Closed)
	r.Count(telemetry.Closed)
	r.Activate(telemetry.Open)
	r.State(telemetry.Closed)
	r.State(telemetry.Open)

	res := `{app_id="orders",flow_direction="outbound",name="myres",namespace="",policy="circuitbreaker",`
	has(t, scrape(t, m),
		`dapr_runtime_component_loaded{app_id="orders"} 2`,
		`dapr_runtime_component_init_total{app_id="orders",component="state.redis"} 1`,
		`dapr_runtime_component_init_fail_total{app_id="orders",component="state.redis",componentName="store",reason="init"} 1`,
		`dapr_runtime_service_invocation_req_sent_total{app_id="orders",dst_app_id="b",type="unary"} 1`,
		`dapr_runtime_service_invocation_req_recv_total{app_id="orders",src_app_id="a"} 1`,
		`dapr_runtime_service_invocation_res_sent_total{app_id="orders",dst_app_id="a",status="200"} 1`,
		`dapr_runtime_service_invocation_res_recv_total{app_id="orders",src_app_id="b",status="200",type="unary"} 1`,
		`dapr_runtime_service_invocation_res_recv_latency_ms_sum{app_id="orders",src_app_id="b",status="200"} 2`,
		`dapr_runtime_acl_global_policy_action_allowed_total{app_id="",namespace="",trustDomain=""} 1`,
		`dapr_runtime_acl_app_policy_action_blocked_total{app_id="a",namespace="ns",trustDomain="public"} 1`,
		`dapr_error_code_total{app_id="orders",category="state",error_code="ERR_STATE_GET"} 1`,
		`dapr_runtime_mtls_init_total{app_id="orders"} 1`,
		`dapr_runtime_mtls_workload_cert_rotated_fail_total{app_id="orders",reason="expired"} 1`,
		`dapr_runtime_actor_timers{actor_type="Cart",app_id="orders"} 2`,
		`dapr_resiliency_loaded{app_id="orders",name="myres",namespace=""} 1`,
		`dapr_resiliency_count`+res+`status="closed",target="app_b"} 2`,
		`dapr_resiliency_activations_total`+res+`status="open",target="app_b"} 1`,
		`dapr_resiliency_cb_state`+res+`status="closed",target="app_b"} 0`,
		`dapr_resiliency_cb_state`+res+`status="open",target="app_b"} 1`,
		`dapr_resiliency_cb_state`+res+`status="half-open",target="app_b"} 0`,
		`dapr_resiliency_cb_state`+res+`status="unknown",target="app_b"} 0`,
	)
}

func TestSeriesAppearWithTheirFirstEvent(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{})
	if got := scrape(t, m); len(got) != 0 {
		t.Errorf("before any event: %v", got)
	}
	m.ErrorCode("ERR_X", "state") // recordErrorCodes is off
	if got := scrape(t, m); len(got) != 0 {
		t.Errorf("after an error code with recordErrorCodes off: %v", got)
	}
}

func TestPathLabels(t *testing.T) {
	tests := []struct{ name, path, want string }{
		{"state key", "/v1.0/state/mem/key", "/v1.0/state/mem"},
		{"state store", "/v1.0/state/mem", "/v1.0/state/mem"},
		{"state transaction", "/v1.0/state/mem/transaction", "/v1.0/state/mem"},
		{"state query", "/v1.0-alpha1/state/mem/query", "/v1.0-alpha1/state/mem"},
		{"secret", "/v1.0/secrets/vault/password", "/v1.0/secrets/vault"},
		{"actor state", "/v1.0/actors/Cart/17/state", "/v1.0/actors/Cart/{id}/state"},
		{"actor state key", "/v1.0/actors/Cart/17/state/k", "/v1.0/actors/Cart/{id}/state"},
		{"actor method", "/v1.0/actors/Cart/17/method/add", "/v1.0/actors/Cart/{id}/method"},
		{"workflow get", "/v1.0/workflows/dapr/abc", "/v1.0/workflows/dapr/{instanceId}"},
		{"workflow pause", "/v1.0-beta1/workflows/dapr/abc/pause", "/v1.0-beta1/workflows/dapr/{instanceId}/pause"},
		{"workflow event", "/v1.0/workflows/dapr/abc/raiseEvent/e1", "/v1.0/workflows/dapr/{instanceId}/raiseEvent/{eventName}"},
		{"workflow start", "/v1.0/workflows/dapr/Order/start", "/v1.0/workflows/dapr/Order/start"},
		{"unsubscribe", "/v1.0/configuration/c/1234/unsubscribe", "/v1.0/configuration/c/1234/unsubscribe"},
		{"invoke", "/v1.0/invoke/b/method/orders/7", "/v1.0/invoke/b/method/orders/7"},
		{"unknown", "/some/thing", "/some/thing"},
		{"no version", "/state/mem/key", "/state/mem/key"},
		{"bare version", "/v1.0", "/v1.0"},
		{"bare block", "/v1.0/state", "/v1.0/state"},
		{"actor without operation", "/v1.0/actors/Cart/17", "/v1.0/actors/Cart/{id}"},
		{"root", "/", "/"},
		{"empty", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMetrics(t, telemetry.MetricsOptions{})
			m.HTTPServer("GET", tt.path, 200, 0, 0, 0)
			has(t, scrape(t, m), `dapr_http_server_request_count{app_id="orders",method="GET",path="`+tt.want+`",status="200"} 1`)
		})
	}
}

func TestClientPathLabels(t *testing.T) {
	tests := []struct{ name, path, want string }{
		{"route", "/orders/7", "/orders/7"},
		{"subscribe", "/dapr/subscribe", "/dapr/subscribe"},
		{"actor method", "actors/Cart/17/method/add", "actors/Cart/{id}/method/add"},
		{"actor timer with slash", "/actors/Cart/17/method/timer/t", "actors/Cart/{id}/method/timer/t"},
		{"actor deactivation", "/actors/Cart/17", "actors/Cart/{id}"},
		{"not an actor", "/actors", "/actors"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMetrics(t, telemetry.MetricsOptions{})
			m.HTTPClient("PUT", tt.path, 200, 0, 0, 0)
			has(t, scrape(t, m), `dapr_http_client_completed_count{app_id="orders",method="PUT",path="`+tt.want+`",status="200"} 1`)
		})
	}
}

func TestPathMatching(t *testing.T) {
	patterns := []string{"/orders/{id}", "/orders/{id}/items/{item}", "/orders/new", "/files/", "/docs/{rest...}", "/v1.0/publish/{ps}/{topic}"}
	tests := []struct {
		name, path string
		low        bool
		want       string
	}{
		{"variable", "/v1.0/invoke/b/method/orders/7", true, "/v1.0/invoke/{app_id}/method/orders/{id}"},
		{"fixed beats variable", "/v1.0/invoke/b/method/orders/new", true, "/v1.0/invoke/{app_id}/method/orders/new"},
		{"deeper", "/v1.0/invoke/b/method/orders/7/items/3", true, "/v1.0/invoke/{app_id}/method/orders/{id}/items/{item}"},
		{"subtree", "/v1.0/invoke/b/method/files/a/b", true, "/v1.0/invoke/{app_id}/method/files/"},
		{"named rest", "/v1.0/invoke/b/method/docs/a/b", true, "/v1.0/invoke/{app_id}/method/docs/{rest...}"},
		{"url target", "/v1.0/invoke/http://h:1/method/orders/7", true, "/v1.0/invoke/{app_id}/method/orders/{id}"},
		{"unmatched, low", "/v1.0/invoke/b/method/other", true, ""},
		{"unmatched, high", "/v1.0/invoke/b/method/other", false, "/v1.0/invoke/b/method/other"},
		{"empty variable", "/v1.0/invoke/b/method/orders/", true, ""},
		{"too deep", "/v1.0/invoke/b/method/orders/7/x", true, ""},
		{"fixed path", "/healthz", true, "/healthz"},
		{"api path", "/v1.0/publish/ps/t1", true, "/v1.0/publish/{ps}/{topic}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newMetrics(t, telemetry.MetricsOptions{LowCardinality: tt.low, PathMatching: patterns, ExcludeVerbs: tt.low})
			m.HTTPServer("GET", tt.path, 200, 0, 0, 0)
			verb := "GET"
			if tt.low {
				verb = ""
			}
			got := scrape(t, m)
			has(t, got, `dapr_http_server_request_count{app_id="orders",method="`+verb+`",path="`+tt.want+`",status="200"} 1`)
			absent := !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "dapr_http_server_response_count") })
			if absent != tt.low {
				t.Errorf("response_count absent = %v with increasedCardinality %v", absent, !tt.low)
			}
		})
	}
}

func TestRules(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{Rules: []telemetry.MetricRule{
		{Metric: "dapr_http_server_request_count", Labels: []telemetry.LabelRule{
			{Name: "path", Regex: map[string]string{"/orders/$1/x": `/orders/(\w+)/\d+`}},
		}},
		{Metric: "component/state/count", Labels: []telemetry.LabelRule{{Name: "operation", Regex: map[string]string{"op": ".+"}}}},
		{Metric: "no_such_metric"},
	}})
	for i := range 3 {
		m.HTTPServer("GET", fmt.Sprintf("/orders/a/%d", i), 200, 0, 0, time.Millisecond)
	}
	m.State("mem", "get", true, time.Millisecond)
	m.State("mem", "set", true, time.Millisecond)
	has(t, scrape(t, m),
		`dapr_http_server_request_count{app_id="orders",method="GET",path="/orders/a/x",status="200"} 3`,
		`dapr_http_server_response_count{app_id="orders",method="GET",path="/orders/a/2",status="200"} 1`,
		`dapr_http_server_latency_count{app_id="orders",method="GET",path="/orders/a/2",status="200"} 1`,
		`dapr_component_state_count{app_id="orders",component="mem",namespace="",operation="op",success="true"} 2`,
		`dapr_component_state_latencies_count{app_id="orders",component="mem",namespace="",operation="set",success="true"} 1`,
	)
}

func TestCheckRules(t *testing.T) {
	got := telemetry.CheckRules([]telemetry.MetricRule{
		{Metric: "dapr_http_server_latency", Labels: []telemetry.LabelRule{{Name: "route"}, {Name: "path"}}},
		{Metric: "dapr_nothing"},
	})
	if len(got) != 2 || !strings.Contains(got[0], `no label "route"`) || !strings.Contains(got[1], `no metric "dapr_nothing"`) {
		t.Errorf("findings = %q", got)
	}
}

func TestLatencyBuckets(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{LatencyBuckets: []float64{0.5, 10}})
	m.State("mem", "get", true, 700*time.Microsecond)
	base := `{app_id="orders",component="mem",namespace="",operation="get",success="true",`
	has(t, scrape(t, m),
		`dapr_component_state_latencies_bucket`+base+`le="0.5"} 0`,
		`dapr_component_state_latencies_bucket`+base+`le="10"} 1`)
}

func TestBadMetricsOptions(t *testing.T) {
	tests := map[string]struct {
		o    telemetry.MetricsOptions
		want string
	}{
		"buckets out of order": {telemetry.MetricsOptions{LatencyBuckets: []float64{2, 1}}, "latencyDistributionBuckets: 1 is out of place"},
		"negative bucket":      {telemetry.MetricsOptions{LatencyBuckets: []float64{-2, 1}}, "-2 is out of place"},
		"relative pattern":     {telemetry.MetricsOptions{PathMatching: []string{"orders"}}, "must begin with a slash"},
		"half variable":        {telemetry.MetricsOptions{PathMatching: []string{"/a/b{id}"}}, `"b{id}" is neither`},
		"bad regex": {telemetry.MetricsOptions{Rules: []telemetry.MetricRule{{Metric: "dapr_http_server_latency",
			Labels: []telemetry.LabelRule{{Name: "path", Regex: map[string]string{"x": "("}}}}}}, "metric dapr_http_server_latency, label path"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := telemetry.NewMetrics(tt.o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("err = %v, want %q in it", err, tt.want)
			}
			if fault.Of(err) != fault.Invalid {
				t.Errorf("code = %v", fault.Of(err))
			}
		})
	}
}

func TestOverflow(t *testing.T) {
	for name, rules := range map[string][]telemetry.MetricRule{
		"plain": nil,
		"with rules": {{Metric: "dapr_http_server_request_count", Labels: []telemetry.LabelRule{
			{Name: "path", Regex: map[string]string{"nothing": "^nothing$"}}}}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMetrics(t, telemetry.MetricsOptions{MaxSeries: 10, Rules: rules})
			for i := range 500 {
				m.HTTPServer("GET", fmt.Sprintf("/p/%d", i), 200+i%2, 0, 0, time.Millisecond)
			}
			m.HTTPServer("GET", "/p/0", 200, 0, 0, time.Millisecond)
			m.HTTPServer("GET", "/"+strings.Repeat("x", 5000), 404, 0, 0, time.Millisecond)
			got := scrape(t, m)
			n := 0
			for _, l := range got {
				if strings.HasPrefix(l, "dapr_http_server_request_count{") {
					n++
				}
			}
			if n != 10+3 {
				t.Errorf("%d series, want 10 and one overflow for each of three statuses", n)
			}
			over := `dapr_http_server_request_count{app_id="orders",method="__overflow__",path="__overflow__",status=`
			has(t, got, over+`"200"} 245`, over+`"201"} 245`, over+`"404"} 1`,
				`dapr_http_server_request_count{app_id="orders",method="GET",path="/p/0",status="200"} 2`)
		})
	}
}

// A hostile peer can choose even the labels that are closed by convention.
func TestOverflowOfClosedLabels(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{MaxSeries: 5})
	for i := range 2000 {
		m.InvokeResSent(fmt.Sprint("app", i), fmt.Sprint(i))
	}
	got := scrape(t, m)
	if len(got) > 5+257 {
		t.Errorf("%d series", len(got))
	}
	has(t, got, `dapr_runtime_service_invocation_res_sent_total{app_id="orders",dst_app_id="__overflow__",status="__overflow__"} 1739`)
}

func TestInvalidTextInLabels(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{})
	m.HTTPServer("GET", "/a\xff", 200, 0, 0, 0)
	m.HTTPServer("GET", "/a\xfe", 200, 0, 0, 0)
	m.HTTPServer("GET", "/a\xff", 200, 0, 0, -time.Second)
	has(t, scrape(t, m), "dapr_http_server_request_count{app_id=\"orders\",method=\"GET\",path=\"/a\uFFFD\",status=\"200\"} 3")
}

func TestConcurrentRecords(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				m.HTTPServer("GET", fmt.Sprint("/p/", i%50), 200, 1, 1, time.Duration(g)*time.Millisecond)
				m.InvokeReqRecv(fmt.Sprint("app", i%3))
			}
		})
	}
	for range 3 {
		scrape(t, m)
	}
	wg.Wait()
	got := scrape(t, m)
	for i := range 50 {
		has(t, got, fmt.Sprintf(`dapr_http_server_request_count{app_id="orders",method="GET",path="/p/%d",status="200"} 80`, i))
	}
	has(t, got, `dapr_http_server_request_bytes_count{app_id="orders"} 4000`)
}

func TestNilMetrics(t *testing.T) {
	var m *telemetry.Metrics
	m.HTTPServer("GET", "/", 200, 0, 0, 0)
	m.HTTPClient("GET", "/", 200, 0, 0, 0)
	m.HTTPHealthProbe(200, 0)
	m.GRPCServer("/a/b", 0, 0, 0, 0)
	m.GRPCClient("/a/b", 0, 0, 0, 0)
	m.GRPCHealthProbe(0, 0)
	m.State("a", "get", true, 0)
	m.Configuration("a", "get", true, 0)
	m.Cache("a", "get", "miss", 0)
	m.Secret("a", "get", true, 0)
	m.Crypto("a", true, 0)
	m.Conversation("a", true, 0)
	m.OutputBinding("a", "b", true, 0)
	m.InputBinding("a", true, 0)
	m.Job(true, 0)
	m.PubSubEgress("a", "t", true, 0)
	m.PubSubBulkEgress("a", "t", true, 0)
	m.PubSubIngress("a", "t", "success", "success", 0)
	m.PubSubBulkIngress("t", 0)
	m.PubSubBulkIngressEvents("t", "SUCCESS", 1)
	m.WorkflowOperation("a", "b", 0)
	m.WorkflowExecution("a", "b", 0)
	m.WorkflowScheduled("a", 0)
	m.ActivityExecution("a", "b", 0)
	m.ActivityOperation("a", "b", 0)
	m.ComponentLoaded()
	m.ComponentInit("a")
	m.ComponentInitFail("a", "b", "c")
	m.InvokeReqSent("a", "unary")
	m.InvokeReqRecv("a")
	m.InvokeResSent("a", "200")
	m.InvokeResRecv("a", "200", "unary", 0)
	m.ACL("a", "b", "c", true, true)
	m.ErrorCode("a", "b")
	m.MTLSInit("")
	m.MTLSRotated("x")
	m.ActorRebalanced("a")
	m.ActorDeactivated("a", true)
	m.ActorPending("a", 1)
	m.ActorTimers("a", 1)
	m.ActorReminders("a", 1)
	m.ActorReminderFired("a", true)
	m.ActorTimerFired("a", true)
	m.ActorReport("a", "b", "")
	m.ActorTableOperation("a", "b")
	m.ResiliencyLoaded("a", "b")
	r := m.Resiliency(telemetry.Resiliency{})
	r.Count(telemetry.Closed)
	r.Activate(telemetry.Closed)
	r.State(telemetry.Open)
	if got := scrape(t, m); len(got) != 0 {
		t.Errorf("a nil Metrics shows %v", got)
	}
}

func TestRecordsDoNotAllocate(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{PathMatching: []string{"/orders/{id}"}})
	r := m.Resiliency(telemetry.Resiliency{Name: "r", Policy: "retry", Target: "app_b"})
	records := map[string]func(){
		"http server": func() { m.HTTPServer("GET", "/v1.0/state/mem/k", 200, 1, 1, time.Millisecond) },
		"actor path":  func() { m.HTTPServer("PUT", "/v1.0/actors/Cart/17/method/add", 200, 1, 1, time.Millisecond) },
		"pattern":     func() { m.HTTPClient("GET", "/orders/17", 200, 1, 1, time.Millisecond) },
		"grpc server": func() { m.GRPCServer("/dapr.proto.runtime.v1.Dapr/GetState", 0, 1, 1, time.Millisecond) },
		"state":       func() { m.State("mem", "get", true, time.Millisecond) },
		"ingress":     func() { m.PubSubIngress("ps", "t", "success", "success", time.Millisecond) },
		"invoke":      func() { m.InvokeReqSent("b", "unary"); m.InvokeResRecv("b", "200", "unary", time.Millisecond) },
		"acl":         func() { m.ACL("", "", "", true, true) },
		"resiliency":  func() { r.Count(telemetry.NoBreaker); r.State(telemetry.Closed) },
	}
	for name, record := range records {
		t.Run(name, func(t *testing.T) {
			record()
			if n := testing.AllocsPerRun(100, record); n != 0 {
				t.Errorf("%v allocations", n)
			}
		})
	}
}

func BenchmarkRecord(b *testing.B) {
	m := newMetrics(b, telemetry.MetricsOptions{})
	for i := range 200 { // a table of realistic size
		m.HTTPServer("GET", fmt.Sprint("/p/", i), 200, 0, 0, 0)
	}
	benchmarks := map[string]func(){
		"HTTPServer": func() { m.HTTPServer("GET", "/v1.0/state/mem/k", 200, 10, 1000, 300*time.Microsecond) },
		"GRPCServer": func() { m.GRPCServer("/dapr.proto.runtime.v1.Dapr/GetState", 0, 10, 1000, 300*time.Microsecond) },
		"State":      func() { m.State("mem", "get", true, 300*time.Microsecond) },
		"Invoke":     func() { m.InvokeReqSent("b", "unary") },
	}
	for name, record := range benchmarks {
		b.Run(name+"/one", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				record()
			}
		})
		b.Run(name+"/32 goroutines", func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					record()
				}
			})
		})
	}
}

// Every metric of the reference page has a call that records it, and no other appears.
func TestEveryMetricCanBeRecorded(t *testing.T) {
	m := newMetrics(t, telemetry.MetricsOptions{RecordErrorCodes: true})
	m.HTTPServer("GET", "/", 200, 0, 0, 0)
	m.HTTPClient("GET", "/", 200, 0, 0, 0)
	m.HTTPHealthProbe(200, 0)
	m.GRPCServer("/a/b", 0, 0, 0, 0)
	m.GRPCClient("/a/b", 0, 0, 0, 0)
	m.GRPCHealthProbe(0, 0)
	m.State("a", "get", true, 0)
	m.Configuration("a", "get", true, 0)
	m.Cache("a", "get", "miss", 0)
	m.Secret("a", "get", true, 0)
	m.Crypto("a", true, 0)
	m.Conversation("a", true, 0)
	m.OutputBinding("a", "b", true, 0)
	m.InputBinding("a", true, 0)
	m.PubSubEgress("a", "t", true, 0)
	m.PubSubBulkEgress("a", "t", true, 0)
	m.PubSubIngress("a", "t", "success", "success", 0)
	m.PubSubBulkIngress("t", 0)
	m.PubSubBulkIngressEvents("t", "SUCCESS", 1)
	m.WorkflowOperation("a", "b", 0)
	m.WorkflowExecution("a", "b", 0)
	m.WorkflowScheduled("a", 0)
	m.ActivityExecution("a", "b", 0)
	m.ActivityOperation("a", "b", 0)
	m.ComponentLoaded()
	m.ComponentInit("a")
	m.ComponentInitFail("a", "b", "c")
	m.InvokeReqSent("a", "unary")
	m.InvokeReqRecv("a")
	m.InvokeResSent("a", "200")
	m.InvokeResRecv("a", "200", "unary", 0)
	m.ErrorCode("a", "b")
	m.ActorRebalanced("a")
	m.ActorPending("a", 1)
	m.ActorTimers("a", 1)
	m.ActorReminders("a", 1)
	m.ActorReminderFired("a", true)
	m.ActorTimerFired("a", true)
	m.ActorTableOperation("a", "b")
	m.ResiliencyLoaded("a", "b")
	r := m.Resiliency(telemetry.Resiliency{})
	r.Count(telemetry.Closed)
	r.Activate(telemetry.Closed)
	r.State(telemetry.Open)
	m.PolicyRejected("a", "b", "c", "d", true)
	m.PolicyRetried("a", "b", "c", true)
	m.PolicyMirrored("a", "b", "c")
	m.PolicyEjected("a", "b", "c")
	for _, ok := range []bool{true, false} {
		m.Job(ok, 0)
		m.ACL("a", "b", "c", true, ok)
		m.ACL("a", "b", "c", false, ok)
		m.ActorDeactivated("a", ok)
	}
	for _, reason := range []string{"", "why"} {
		m.MTLSInit(reason)
		m.MTLSRotated(reason)
		m.ActorReport("a", "b", reason)
	}
	families, err := telemetry.Registry(m).Gather()
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, f := range families {
		shown[f.GetName()] = true
	}
	for _, d := range telemetry.Defs() {
		if !shown[d.Name] {
			t.Errorf("%s was not recorded", d.Name)
		}
		delete(shown, d.Name)
	}
	for name := range shown {
		if strings.HasPrefix(name, "dapr_") {
			t.Errorf("%s is not in the reference", name)
		}
	}
}

func BenchmarkNewMetrics(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		newMetrics(b, telemetry.MetricsOptions{})
	}
}

// FuzzPaths: whatever path a caller sends, recording works and the scrape stays valid.
func FuzzPaths(f *testing.F) {
	for _, s := range []string{"/v1.0/actors/Cart/17/method/add", "/v1.0/workflows/dapr/a/raiseEvent/e", "actors/T/1/x", "/v1.0//", "/orders/\xff", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, path string) {
		m := newMetrics(t, telemetry.MetricsOptions{PathMatching: []string{"/orders/{id}", "/files/", "/v1.0/{rest...}"}})
		plain := newMetrics(t, telemetry.MetricsOptions{})
		for _, m := range []*telemetry.Metrics{m, plain} {
			m.HTTPServer(path, path, 200, 0, 0, 0)
			m.HTTPClient(path, path, 200, 0, 0, 0)
			r := prometheus.NewRegistry()
			r.MustRegister(m)
			if _, err := r.Gather(); err != nil {
				t.Fatalf("path %q: %v", path, err)
			}
		}
	})
}
