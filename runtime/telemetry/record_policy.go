package telemetry

// PolicyRejected counts a call that a traffic policy refused, or would have in shadow mode.
func (m *Metrics) PolicyRejected(kind, target, part, rule string, shadow bool) {
	if m == nil {
		return
	}
	mode := "enforce"
	if shadow {
		mode = "shadow"
	}
	m.families[policyRejections].at(kind, target, part, rule, mode).inc(pick())
}

// PolicyRetried counts an attempt after the first, or one that the budget did not allow.
func (m *Metrics) PolicyRetried(kind, target, rule string, exhausted bool) {
	if m == nil {
		return
	}
	result := "made"
	if exhausted {
		result = "over-budget"
	}
	m.families[policyRetries].at(kind, target, rule, result).inc(pick())
}

// PolicyMirrored counts a copy of a call, or the result of a compared read.
func (m *Metrics) PolicyMirrored(rule, target, result string) {
	if m != nil {
		m.families[policyMirrors].at(target, rule, result).inc(pick())
	}
}

// PolicyEjected counts an endpoint taken out of the choice.
func (m *Metrics) PolicyEjected(rule, target, cause string) {
	if m != nil {
		m.families[policyEjections].at(target, rule, cause).inc(pick())
	}
}
