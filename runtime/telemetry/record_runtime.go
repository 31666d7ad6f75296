package telemetry

import (
	"time"
)

// This file records what the runtime does by itself: components coming up, calls between
// sidecars, access decisions, actors, certificates, error codes. Most are one number each and
// share the group single, whose keys carry the metric and up to four label values.

func (m *Metrics) makeSingleGroup() {
	m.setup(&m.single, same, func(k key) entry {
		f := &m.families[k.n]
		values := [4]string{k.a, k.b, k.c, k.d}
		return entry{count: f.at(values[:len(f.def.Labels)-len(f.fixed)]...)}
	})
	// The metrics in this group fill up one by one: what the group cannot remember it asks the
	// metric's own family, whose limit holds.
	m.single.ruled = true
	m.single.limit = 4 * m.limit
}

// inc adds one to a metric of the group single.
func (m *Metrics) inc(id metric, values ...string) {
	k := key{n: int(id)}
	for i, to := 0, [4]*string{&k.a, &k.b, &k.c, &k.d}; i < len(values); i++ {
		*to[i] = values[i]
	}
	m.single.entry(k).count.inc(pick())
}

// ComponentLoaded counts a component that is ready.
func (m *Metrics) ComponentLoaded() {
	if m != nil {
		m.inc(componentLoaded)
	}
}

// ComponentInit counts a component of type kind whose initialisation succeeded.
func (m *Metrics) ComponentInit(kind string) {
	if m != nil {
		m.inc(componentInit, kind)
	}
}

// ComponentInitFail counts a component that could not be initialised. Reason is init or, for an
// unknown type, creation.
func (m *Metrics) ComponentInitFail(kind, reason, name string) {
	if m != nil {
		m.inc(componentInitFail, kind, reason, name)
	}
}

// InvokeReqSent counts an invocation sent to app dst; kind is unary (HTTP calls too) or streaming.
func (m *Metrics) InvokeReqSent(dst, kind string) {
	if m != nil {
		m.single.entry(key{a: dst, b: kind, n: int(invokeReqSent)}).count.inc(pick())
	}
}

// InvokeReqRecv counts an invocation received from app src.
func (m *Metrics) InvokeReqRecv(src string) {
	if m != nil {
		m.single.entry(key{a: src, n: int(invokeReqRecv)}).count.inc(pick())
	}
}

// InvokeResSent counts an answer sent to app dst; status is the HTTP status in decimal.
func (m *Metrics) InvokeResSent(dst, status string) {
	if m != nil {
		m.single.entry(key{a: dst, b: status, n: int(invokeResSent)}).count.inc(pick())
	}
}

// InvokeResRecv records an answer received from app src and the time since its request was sent.
func (m *Metrics) InvokeResRecv(src, status, kind string, d time.Duration) {
	if m != nil {
		m.answer.took(key{a: src, b: status, c: kind}, d)
	}
}

// ACL counts a decision about a call of the app caller: whether an app rule or the default
// action (global) decided, and how. Without a policy every received call counts as globally
// allowed with three empty labels, as in Dapr.
func (m *Metrics) ACL(caller, trustDomain, namespace string, global, allowed bool) {
	if m == nil {
		return
	}
	id := aclAppAllowed
	switch {
	case global && allowed:
		id = aclGlobalAllowed
	case global:
		id = aclGlobalBlocked
	case !allowed:
		id = aclAppBlocked
	}
	m.single.entry(key{a: caller, b: trustDomain, c: namespace, n: int(id)}).count.inc(pick())
}

// ErrorCode counts an error answered to the app. It records nothing unless RecordErrorCodes is on.
func (m *Metrics) ErrorCode(code, category string) {
	if m != nil && m.errorCodes {
		m.inc(errorCodes, code, category)
	}
}

// MTLSInit counts an identity that was set up; a reason means that it was not.
func (m *Metrics) MTLSInit(reason string) {
	if m != nil {
		m.orFail(mtlsInit, mtlsInitFail, reason)
	}
}

// MTLSRotated counts a workload certificate renewed; a reason means that it was not.
func (m *Metrics) MTLSRotated(reason string) {
	if m != nil {
		m.orFail(mtlsRotated, mtlsRotateFail, reason)
	}
}

func (m *Metrics) orFail(ok, fail metric, reason string) {
	if reason == "" {
		m.inc(ok)
		return
	}
	m.inc(fail, reason)
}

// ActorRebalanced counts an actor that moved to another host.
func (m *Metrics) ActorRebalanced(actorType string) {
	if m != nil {
		m.inc(actorRebalanced, actorType)
	}
}

// ActorDeactivated counts a deactivation and whether the app accepted it.
func (m *Metrics) ActorDeactivated(actorType string, ok bool) {
	if m == nil {
		return
	}
	if ok {
		m.inc(actorDeactivated, actorType)
		return
	}
	m.inc(actorDeactivateFail, actorType)
}

// ActorPending sets the number of calls waiting for actors of a type.
func (m *Metrics) ActorPending(actorType string, n int64) { m.set(actorPending, actorType, n) }

// ActorTimers sets the number of timers registered for a type.
func (m *Metrics) ActorTimers(actorType string, n int64) { m.set(actorTimers, actorType, n) }

// ActorReminders sets the number of reminders registered for a type.
func (m *Metrics) ActorReminders(actorType string, n int64) { m.set(actorReminders, actorType, n) }

func (m *Metrics) set(id metric, value string, n int64) {
	if m != nil {
		m.single.entry(key{a: value, n: int(id)}).count.words[0].Store(uint64(n))
	}
}

// ActorReminderFired counts a reminder given to the app.
func (m *Metrics) ActorReminderFired(actorType string, ok bool) {
	if m != nil {
		m.inc(actorRemindersFired, actorType, yes(ok))
	}
}

// ActorTimerFired counts a timer given to the app.
func (m *Metrics) ActorTimerFired(actorType string, ok bool) {
	if m != nil {
		m.inc(actorTimersFired, actorType, yes(ok))
	}
}

// ActorReport counts a status report to the placement service; a reason means that it failed.
func (m *Metrics) ActorReport(actorType, operation, reason string) {
	if m == nil {
		return
	}
	if reason == "" {
		m.inc(actorReports, actorType, operation)
		return
	}
	m.inc(actorReportFail, actorType, operation, reason)
}

// ActorTableOperation counts a placement table operation received.
func (m *Metrics) ActorTableOperation(actorType, operation string) {
	if m != nil {
		m.inc(actorTableOps, actorType, operation)
	}
}
