package telemetry

import (
	"strings"
)

// Kind is what a metric measures and so how its number is to be read.
type Kind uint8

// The kinds of metric.
const (
	// Counter only grows while the process lives.
	Counter Kind = iota
	// Gauge is the present amount of something.
	Gauge
	// Milliseconds is a histogram of durations. Its bounds and sum are in milliseconds.
	Milliseconds
	// Bytes is a histogram of sizes in bytes.
	Bytes
)

// String names the kind as the reference page does.
func (k Kind) String() string {
	switch k {
	case Counter:
		return "counter"
	case Gauge:
		return "gauge"
	case Milliseconds:
		return "histogram, ms"
	case Bytes:
		return "histogram, bytes"
	}
	return "unknown"
}

// Def describes one metric. Labels are in the order in which the recording code passes their
// values; the reserved labels app_id and namespace, filled in by Metrics, come first if present.
type Def struct {
	Name   string
	Kind   Kind
	Labels []string
	Help   string
}

// Defs lists every metric this package can emit, in the order of the reference page.
func Defs() []Def { return append([]Def(nil), defs[:]...) }

// metric indexes defs.
type metric int

const (
	httpServerRequests metric = iota
	httpServerLatency
	httpServerRequestBytes
	httpServerResponseBytes
	httpServerResponses
	httpClientCompleted
	httpClientLatency
	httpClientSent
	httpClientReceived
	httpProbes
	httpProbeLatency

	grpcServerCompleted
	grpcServerLatency
	grpcServerReceived
	grpcServerSent
	grpcClientCompleted
	grpcClientLatency
	grpcClientSent
	grpcClientReceived
	grpcProbes
	grpcProbeLatency

	ingress
	ingressLatency
	egress
	egressLatency
	bulkIngress
	bulkIngressEvents
	bulkIngressLatency
	bulkEgress
	bulkEgressLatency
	inputBinding
	inputBindingLatency
	outputBinding
	outputBindingLatency
	stateOps
	stateLatency
	configOps
	configLatency
	cacheOps
	cacheLatency
	secretOps
	secretLatency
	cryptoOps
	cryptoLatency
	conversations
	conversationLatency
	jobSuccesses
	jobFailures
	jobLatency

	resiliencyLoaded
	resiliencyCount
	resiliencyActivations
	breakerState
	policyRejections
	policyRetries
	policyMirrors
	policyEjections

	componentLoaded
	componentInit
	componentInitFail
	actorRebalanced
	actorDeactivated
	actorDeactivateFail
	actorPending
	actorTimers
	actorReminders
	actorRemindersFired
	actorTimersFired
	actorReports
	actorReportFail
	actorTableOps

	invokeReqSent
	invokeReqRecv
	invokeResSent
	invokeResRecv
	invokeResRecvLatency

	aclAppAllowed
	aclAppBlocked
	aclGlobalAllowed
	aclGlobalBlocked
	mtlsInit
	mtlsInitFail
	mtlsRotated
	mtlsRotateFail

	workflowOps
	workflowOpLatency
	workflowRuns
	workflowRunLatency
	workflowScheduling
	activityRuns
	activityRunLatency
	activityOps
	activityOpLatency

	errorCodes

	numMetrics
)

// words splits a space-separated list, for the table below to stay readable.
func words(s string) []string { return strings.Fields(s) }

var defs = [numMetrics]Def{
	httpServerRequests:      {"dapr_http_server_request_count", Counter, words("app_id method path status"), "Requests the HTTP API finished."},
	httpServerLatency:       {"dapr_http_server_latency", Milliseconds, words("app_id method path status"), "Time from the request's first byte to the end of its response in the HTTP API."},
	httpServerRequestBytes:  {"dapr_http_server_request_bytes", Bytes, words("app_id"), "Sizes of request bodies received by the HTTP API."},
	httpServerResponseBytes: {"dapr_http_server_response_bytes", Bytes, words("app_id"), "Sizes of response bodies sent by the HTTP API."},
	httpServerResponses:     {"dapr_http_server_response_count", Counter, words("app_id method path status"), "Responses the HTTP API sent. Absent with increasedCardinality off."},
	httpClientCompleted:     {"dapr_http_client_completed_count", Counter, words("app_id method path status"), "Requests sent to the app over HTTP and answered."},
	httpClientLatency:       {"dapr_http_client_roundtrip_latency", Milliseconds, words("app_id method path status"), "Time the app took to answer over HTTP."},
	httpClientSent:          {"dapr_http_client_sent_bytes", Bytes, words("app_id method path status"), "Sizes of request bodies sent to the app. The status is always empty."},
	httpClientReceived:      {"dapr_http_client_received_bytes", Bytes, words("app_id"), "Sizes of response bodies received from the app."},
	httpProbes:              {"dapr_http_healthprobes_completed_count", Counter, words("app_id status"), "Health probes of an HTTP app that were answered."},
	httpProbeLatency:        {"dapr_http_healthprobes_roundtrip_latency", Milliseconds, words("app_id status"), "Time an HTTP app took to answer a health probe."},

	grpcServerCompleted: {"dapr_grpc_io_server_completed_rpcs", Counter, words("app_id grpc_server_method grpc_server_status"), "Calls the gRPC API finished."},
	grpcServerLatency:   {"dapr_grpc_io_server_server_latency", Milliseconds, words("app_id grpc_server_method grpc_server_status"), "Time from the first byte received to the last byte sent in the gRPC API."},
	grpcServerReceived:  {"dapr_grpc_io_server_received_bytes_per_rpc", Bytes, words("app_id grpc_server_method"), "Bytes of all messages received in one call of the gRPC API."},
	grpcServerSent:      {"dapr_grpc_io_server_sent_bytes_per_rpc", Bytes, words("app_id grpc_server_method"), "Bytes of all messages sent in one call of the gRPC API."},
	grpcClientCompleted: {"dapr_grpc_io_client_completed_rpcs", Counter, words("app_id grpc_client_method grpc_client_status"), "gRPC calls to the app or the control plane that ended."},
	grpcClientLatency:   {"dapr_grpc_io_client_roundtrip_latency", Milliseconds, words("app_id grpc_client_method grpc_client_status"), "Time a gRPC call to the app or the control plane took."},
	grpcClientSent:      {"dapr_grpc_io_client_sent_bytes_per_rpc", Bytes, words("app_id grpc_client_method"), "Bytes of all messages sent in one gRPC client call."},
	grpcClientReceived:  {"dapr_grpc_io_client_received_bytes_per_rpc", Bytes, words("app_id grpc_client_method"), "Bytes of all messages received in one gRPC client call."},
	grpcProbes:          {"dapr_grpc_io_healthprobes_completed_count", Counter, words("app_id grpc_client_status"), "Health probes of a gRPC app that were answered."},
	grpcProbeLatency:    {"dapr_grpc_io_healthprobes_roundtrip_latency", Milliseconds, words("app_id grpc_client_status"), "Time a gRPC app took to answer a health probe."},

	ingress:              {"dapr_component_pubsub_ingress_count", Counter, words("app_id namespace component process_status status topic"), "Attempts to deliver a message to the app."},
	ingressLatency:       {"dapr_component_pubsub_ingress_latencies", Milliseconds, words("app_id namespace component process_status status topic"), "Time the app took to process a message."},
	egress:               {"dapr_component_pubsub_egress_count", Counter, words("app_id namespace component success topic"), "Messages given to a broker."},
	egressLatency:        {"dapr_component_pubsub_egress_latencies", Milliseconds, words("app_id namespace component success topic"), "Time a broker took to accept a message."},
	bulkIngress:          {"dapr_component_pubsub_ingress_bulk_count", Counter, words("app_id namespace component process_status topic"), "Bulk deliveries to the app. The component is always pubsubName, the process_status empty."},
	bulkIngressEvents:    {"dapr_component_pubsub_ingress_bulk_event_count", Counter, words("app_id namespace component process_status topic"), "Messages in bulk deliveries, by the app's answer. The component is always pubsubName."},
	bulkIngressLatency:   {"dapr_component_pubsub_ingress_bulk_latencies", Milliseconds, words("app_id namespace component process_status topic"), "Time the app took to process a bulk delivery. The component is always pubsubName."},
	bulkEgress:           {"dapr_component_pubsub_egress_bulk_count", Counter, words("app_id namespace component success topic"), "Bulk publishes."},
	bulkEgressLatency:    {"dapr_component_pubsub_egress_bulk_latencies", Milliseconds, words("app_id namespace component success topic"), "Time a broker took to accept a bulk publish."},
	inputBinding:         {"dapr_component_input_binding_count", Counter, words("app_id namespace component success"), "Events an input binding gave to the app."},
	inputBindingLatency:  {"dapr_component_input_binding_latencies", Milliseconds, words("app_id namespace component success"), "Time the app took for an input binding's event."},
	outputBinding:        {"dapr_component_output_binding_count", Counter, words("app_id namespace component operation success"), "Output binding calls."},
	outputBindingLatency: {"dapr_component_output_binding_latencies", Milliseconds, words("app_id namespace component operation success"), "Time of an output binding call."},
	stateOps:             {"dapr_component_state_count", Counter, words("app_id namespace component operation success"), "State store operations: get, set, delete, bulk_get, bulk_delete, transaction, query."},
	stateLatency:         {"dapr_component_state_latencies", Milliseconds, words("app_id namespace component operation success"), "Time of a state store operation."},
	configOps:            {"dapr_component_configuration_count", Counter, words("app_id namespace component operation success"), "Configuration store operations: get, subscribe, unsubscribe."},
	configLatency:        {"dapr_component_configuration_latencies", Milliseconds, words("app_id namespace component operation success"), "Time of a configuration store operation."},
	cacheOps:             {"mecha_component_cache_count", Counter, words("app_id namespace component operation result"), "Cache operations: get, get_or_load, fill, set, delete, touch, increment, compare_and_set, invalidate; reads by what they found."},
	cacheLatency:         {"mecha_component_cache_latencies", Milliseconds, words("app_id namespace component operation result"), "Time of a cache operation."},
	secretOps:            {"dapr_component_secret_count", Counter, words("app_id namespace component operation success"), "Secret store operations: get, bulk_get."},
	secretLatency:        {"dapr_component_secret_latencies", Milliseconds, words("app_id namespace component operation success"), "Time of a secret store operation."},
	cryptoOps:            {"dapr_component_crypto_count", Counter, words("app_id namespace component operation success"), "Crypto operations; the operation is always crypto_op."},
	cryptoLatency:        {"dapr_component_crypto_latencies", Milliseconds, words("app_id namespace component operation success"), "Time of a crypto operation."},
	conversations:        {"dapr_component_conversation_count", Counter, words("app_id namespace component success"), "Conversation calls."},
	conversationLatency:  {"dapr_component_conversation_latencies", Milliseconds, words("app_id namespace component success"), "Time of a conversation call."},
	jobSuccesses:         {"dapr_component_job_success_count", Counter, words("app_id namespace operation"), "Job triggers the app accepted; the operation is job_trigger_op."},
	jobFailures:          {"dapr_component_job_failure_count", Counter, words("app_id namespace operation"), "Job triggers the app did not accept."},
	jobLatency:           {"dapr_component_job_latencies", Milliseconds, words("app_id namespace operation success"), "Time the app took for a job trigger."},

	resiliencyLoaded:      {"dapr_resiliency_loaded", Counter, words("app_id name namespace"), "Resiliency resources loaded. The namespace is the resource's."},
	resiliencyCount:       {"dapr_resiliency_count", Counter, words("app_id name namespace policy flow_direction target status"), "Calls that went through a resiliency policy. The namespace is the resource's."},
	resiliencyActivations: {"dapr_resiliency_activations_total", Counter, words("app_id name namespace policy flow_direction target status"), "Times a resiliency policy acted: a retry, a time-out, a breaker that changed state."},
	breakerState:          {"dapr_resiliency_cb_state", Gauge, words("app_id name namespace policy flow_direction target status"), "1 for the state a circuit breaker is in, 0 for closed, half-open, open and unknown otherwise."},

	policyRejections: {"mecha_policy_rejections_total", Counter, words("app_id kind target part rule mode"), "Calls that a traffic policy refused, by the part of the policy and its name. With mode shadow they were let through."},
	policyRetries:    {"mecha_policy_retries_total", Counter, words("app_id kind target rule result"), "Attempts after the first that a traffic policy made (result made), or that its budget did not allow (result over-budget)."},
	policyMirrors:    {"mecha_policy_mirrored_total", Counter, words("app_id target rule result"), "Copies of calls: sent, failed, dropped; and compared reads: same, different."},
	policyEjections:  {"mecha_policy_ejections_total", Counter, words("app_id target rule cause"), "Endpoints that outlier detection took out of the choice."},

	componentLoaded:     {"dapr_runtime_component_loaded", Counter, words("app_id"), "Components loaded successfully."},
	componentInit:       {"dapr_runtime_component_init_total", Counter, words("app_id component"), "Components initialised. The component is the type."},
	componentInitFail:   {"dapr_runtime_component_init_fail_total", Counter, words("app_id component reason componentName"), "Components that could not be initialised. The component is the type, the reason init or creation."},
	actorRebalanced:     {"dapr_runtime_actor_rebalanced_total", Counter, words("app_id actor_type"), "Actors moved to another host."},
	actorDeactivated:    {"dapr_runtime_actor_deactivated_total", Counter, words("app_id actor_type"), "Actors deactivated."},
	actorDeactivateFail: {"dapr_runtime_actor_deactivated_failed_total", Counter, words("app_id actor_type"), "Actors that could not be deactivated."},
	actorPending:        {"dapr_runtime_actor_pending_actor_calls", Gauge, words("app_id actor_type"), "Actor calls waiting for their turn."},
	actorTimers:         {"dapr_runtime_actor_timers", Gauge, words("app_id actor_type"), "Actor timers registered."},
	actorReminders:      {"dapr_runtime_actor_reminders", Gauge, words("app_id actor_type"), "Actor reminders registered."},
	actorRemindersFired: {"dapr_runtime_actor_reminders_fired_total", Counter, words("app_id actor_type success"), "Actor reminders delivered."},
	actorTimersFired:    {"dapr_runtime_actor_timers_fired_total", Counter, words("app_id actor_type success"), "Actor timers delivered."},
	actorReports:        {"dapr_runtime_actor_status_report_total", Counter, words("app_id actor_type operation"), "Status reports to the placement service."},
	actorReportFail:     {"dapr_runtime_actor_status_report_fail_total", Counter, words("app_id actor_type operation reason"), "Status reports to the placement service that failed."},
	actorTableOps:       {"dapr_runtime_actor_table_operation_recv_total", Counter, words("app_id actor_type operation"), "Placement table operations received."},

	invokeReqSent:        {"dapr_runtime_service_invocation_req_sent_total", Counter, words("app_id dst_app_id type"), "Invocations sent to another sidecar."},
	invokeReqRecv:        {"dapr_runtime_service_invocation_req_recv_total", Counter, words("app_id src_app_id"), "Invocations received from another sidecar."},
	invokeResSent:        {"dapr_runtime_service_invocation_res_sent_total", Counter, words("app_id dst_app_id status"), "Answers sent to another sidecar."},
	invokeResRecv:        {"dapr_runtime_service_invocation_res_recv_total", Counter, words("app_id src_app_id status type"), "Answers received from another sidecar."},
	invokeResRecvLatency: {"dapr_runtime_service_invocation_res_recv_latency_ms", Milliseconds, words("app_id src_app_id status"), "Time between sending an invocation and receiving its answer."},

	aclAppAllowed:    {"dapr_runtime_acl_app_policy_action_allowed_total", Counter, words("app_id trustDomain namespace"), "Calls an app rule of the access policy allowed. All labels describe the caller."},
	aclAppBlocked:    {"dapr_runtime_acl_app_policy_action_blocked_total", Counter, words("app_id trustDomain namespace"), "Calls an app rule of the access policy refused. All labels describe the caller."},
	aclGlobalAllowed: {"dapr_runtime_acl_global_policy_action_allowed_total", Counter, words("app_id trustDomain namespace"), "Calls the default action of the access policy allowed, or that no policy governed. All labels describe the caller."},
	aclGlobalBlocked: {"dapr_runtime_acl_global_policy_action_blocked_total", Counter, words("app_id trustDomain namespace"), "Calls the default action of the access policy refused. All labels describe the caller."},
	mtlsInit:         {"dapr_runtime_mtls_init_total", Counter, words("app_id"), "Successful initialisations of the sidecar's identity."},
	mtlsInitFail:     {"dapr_runtime_mtls_init_fail_total", Counter, words("app_id reason"), "Failed initialisations of the sidecar's identity."},
	mtlsRotated:      {"dapr_runtime_mtls_workload_cert_rotated_total", Counter, words("app_id"), "Workload certificates renewed."},
	mtlsRotateFail:   {"dapr_runtime_mtls_workload_cert_rotated_fail_total", Counter, words("app_id reason"), "Workload certificates that could not be renewed."},

	workflowOps:        {"dapr_runtime_workflow_operation_count", Counter, words("app_id namespace operation status"), "Workflow management operations."},
	workflowOpLatency:  {"dapr_runtime_workflow_operation_latency", Milliseconds, words("app_id namespace operation status"), "Time of a workflow management operation."},
	workflowRuns:       {"dapr_runtime_workflow_execution_count", Counter, words("app_id namespace workflow_name status"), "Workflow executions that ended."},
	workflowRunLatency: {"dapr_runtime_workflow_execution_latency", Milliseconds, words("app_id namespace workflow_name status"), "Time a workflow took from start to end."},
	workflowScheduling: {"dapr_runtime_workflow_scheduling_latency", Milliseconds, words("app_id namespace workflow_name"), "Time between asking for a workflow and its start."},
	activityRuns:       {"dapr_runtime_workflow_activity_execution_count", Counter, words("app_id namespace activity_name status"), "Workflow activities that ended."},
	activityRunLatency: {"dapr_runtime_workflow_activity_execution_latency", Milliseconds, words("app_id namespace activity_name status"), "Time a workflow activity took."},
	activityOps:        {"dapr_runtime_workflow_activity_operation_count", Counter, words("app_id namespace activity_name status"), "Workflow activity operations."},
	activityOpLatency:  {"dapr_runtime_workflow_activity_operation_latency", Milliseconds, words("app_id namespace activity_name status"), "Time of a workflow activity operation."},

	errorCodes: {"dapr_error_code_total", Counter, words("app_id error_code category"), "Errors given to the app, by code. Only with recordErrorCodes."},
}

// millisecondBounds are the default upper bounds of latency buckets, in milliseconds.
var millisecondBounds = []float64{
	1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30, 40, 50, 65, 80, 100, 130, 160, 200, 250, 300, 400, 500,
	650, 800, 1000, 2000, 5000, 10000, 20000, 50000, 100000,
}

// byteBounds are the upper bounds of size buckets, in bytes.
var byteBounds = []float64{
	1 << 10, 2 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20, 1 << 30, 4 << 30,
}
