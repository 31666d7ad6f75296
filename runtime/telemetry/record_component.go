package telemetry

import (
	"time"
)

// This file records calls to components and deliveries from them. Calls refused before the
// component was reached (unknown store, unsupported feature, denied scope) are not recorded.

// quirkComponent is the component label of Dapr's three bulk ingress metrics: not the
// component's name but this text. Dashboards made for Dapr select it.
const quirkComponent = "pubsubName"

func (m *Metrics) makeComponentGroups() {
	// Keys hold component, then operation or topic, then the closed labels.
	two := func(k key) []string { return []string{k.a, k.b} }
	three := func(k key) []string { return []string{k.a, k.b, k.c} }
	overA := func(k key) key { k.a = Overflow; return k }
	overAB := func(k key) key { k.a, k.b = Overflow, Overflow; return k }

	m.pair(&m.state, stateOps, stateLatency, overAB, three)
	m.pair(&m.config, configOps, configLatency, overAB, three)
	m.pair(&m.cache, cacheOps, cacheLatency, overAB, three)
	m.pair(&m.secret, secretOps, secretLatency, overAB, three)
	m.pair(&m.crypto, cryptoOps, cryptoLatency, overAB, three)
	m.pair(&m.outputBinding, outputBinding, outputBindingLatency, overAB, three)
	m.pair(&m.inputBinding, inputBinding, inputBindingLatency, overA, two)
	m.pair(&m.conversation, conversations, conversationLatency, overA, two)

	topic := func(k key) []string { return []string{k.a, k.c, k.b} } // component, success or process_status, topic
	m.pair(&m.egress, egress, egressLatency, overAB, topic)
	m.pair(&m.bulkEgress, bulkEgress, bulkEgressLatency, overAB, topic)
	m.pair(&m.bulkIngress, bulkIngress, bulkIngressLatency, overAB, topic)
	m.pair(&m.ingress, ingress, ingressLatency, overAB, func(k key) []string { return []string{k.a, k.c, k.d, k.b} })

	m.pair(&m.workflowOp, workflowOps, workflowOpLatency, overA, two)
	m.pair(&m.workflowRun, workflowRuns, workflowRunLatency, overA, two)
	m.pair(&m.activityRun, activityRuns, activityRunLatency, overA, two)
	m.pair(&m.activityOp, activityOps, activityOpLatency, overA, two)

	m.setup(&m.job, overA, func(k key) entry {
		count := jobSuccesses
		if k.b != "true" {
			count = jobFailures
		}
		return entry{latency: m.families[jobLatency].at(k.a, k.b), count: m.families[count].at(k.a)}
	}, jobLatency, jobSuccesses, jobFailures)

	m.setup(&m.answer, overA, func(k key) entry {
		return entry{
			latency: m.families[invokeResRecvLatency].at(k.a, k.b),
			count:   m.families[invokeResRecv].at(k.a, k.b, k.c),
		}
	}, invokeResRecv, invokeResRecvLatency)
}

func yes(ok bool) string {
	if ok {
		return "true"
	}
	return "false"
}

// State records one call to a state store: operation get, set, delete, bulk_get, bulk_delete,
// transaction or query.
func (m *Metrics) State(component, operation string, ok bool, d time.Duration) {
	if m != nil {
		m.state.took(key{a: component, b: operation, c: yes(ok)}, d)
	}
}

// Configuration records one call to a configuration store: get, subscribe or unsubscribe.
func (m *Metrics) Configuration(component, operation string, ok bool, d time.Duration) {
	if m != nil {
		m.config.took(key{a: component, b: operation, c: yes(ok)}, d)
	}
}

// Cache records one operation on a cache. result is near_hit, shared_hit, stale, absent or miss of
// reads, load for a lease, ok or error of others.
func (m *Metrics) Cache(component, operation, result string, d time.Duration) {
	if m != nil {
		m.cache.took(key{a: component, b: operation, c: result}, d)
	}
}

// Secret records one call to a secret store: get or bulk_get.
func (m *Metrics) Secret(component, operation string, ok bool, d time.Duration) {
	if m != nil {
		m.secret.took(key{a: component, b: operation, c: yes(ok)}, d)
	}
}

// Crypto records one call to a crypto component.
func (m *Metrics) Crypto(component string, ok bool, d time.Duration) {
	if m != nil {
		m.crypto.took(key{a: component, b: "crypto_op", c: yes(ok)}, d)
	}
}

// Conversation records one call to a conversation component.
func (m *Metrics) Conversation(component string, ok bool, d time.Duration) {
	if m != nil {
		m.conversation.took(key{a: component, b: yes(ok)}, d)
	}
}

// OutputBinding records one call to an output binding, under the operation asked for.
func (m *Metrics) OutputBinding(component, operation string, ok bool, d time.Duration) {
	if m != nil {
		m.outputBinding.took(key{a: component, b: operation, c: yes(ok)}, d)
	}
}

// InputBinding records one event of an input binding given to the app.
func (m *Metrics) InputBinding(component string, ok bool, d time.Duration) {
	if m != nil {
		m.inputBinding.took(key{a: component, b: yes(ok)}, d)
	}
}

// Job records one trigger of a job given to the app.
func (m *Metrics) Job(ok bool, d time.Duration) {
	if m != nil {
		m.job.took(key{a: "job_trigger_op", b: yes(ok)}, d)
	}
}

// PubSubEgress records one message given to a broker.
func (m *Metrics) PubSubEgress(component, topic string, ok bool, d time.Duration) {
	if m != nil {
		m.egress.took(key{a: component, b: topic, c: yes(ok)}, d)
	}
}

// PubSubBulkEgress records one bulk publish.
func (m *Metrics) PubSubBulkEgress(component, topic string, ok bool, d time.Duration) {
	if m != nil {
		m.bulkEgress.took(key{a: component, b: topic, c: yes(ok)}, d)
	}
}

// PubSubIngress records one attempt to deliver a message. Process and status are
// (success, success), (drop, success) when the app drops it, (retry, retry) when it fails, and
// (drop, drop) once when the message goes to a dead-letter topic.
func (m *Metrics) PubSubIngress(component, topic, process, status string, d time.Duration) {
	if m != nil {
		m.ingress.took(key{a: component, b: topic, c: process, d: status}, d)
	}
}

// PubSubBulkIngress records one bulk delivery.
func (m *Metrics) PubSubBulkIngress(topic string, d time.Duration) {
	if m != nil {
		m.bulkIngress.took(key{a: quirkComponent, b: topic}, d)
	}
}

// PubSubBulkIngressEvents records n messages of a bulk delivery that the app answered with
// status (SUCCESS, RETRY, DROP).
func (m *Metrics) PubSubBulkIngressEvents(topic, status string, n int64) {
	if m != nil && n > 0 {
		m.single.entry(key{a: quirkComponent, b: status, c: topic, n: int(bulkIngressEvents)}).count.add(pick(), uint64(n))
	}
}

// WorkflowOperation records one management operation (create_workflow, add_event, …).
func (m *Metrics) WorkflowOperation(operation, status string, d time.Duration) {
	if m != nil {
		m.workflowOp.took(key{a: operation, b: status}, d)
	}
}

// WorkflowExecution records one workflow that ended.
func (m *Metrics) WorkflowExecution(workflow, status string, d time.Duration) {
	if m != nil {
		m.workflowRun.took(key{a: workflow, b: status}, d)
	}
}

// WorkflowScheduled records how long a workflow waited for its start.
func (m *Metrics) WorkflowScheduled(workflow string, d time.Duration) {
	if m != nil {
		m.single.entry(key{a: workflow, n: int(workflowScheduling)}).count.took(pick(), d)
	}
}

// ActivityExecution records one workflow activity that ended.
func (m *Metrics) ActivityExecution(activity, status string, d time.Duration) {
	if m != nil {
		m.activityRun.took(key{a: activity, b: status}, d)
	}
}

// ActivityOperation records one operation on a workflow activity.
func (m *Metrics) ActivityOperation(activity, status string, d time.Duration) {
	if m != nil {
		m.activityOp.took(key{a: activity, b: status}, d)
	}
}
