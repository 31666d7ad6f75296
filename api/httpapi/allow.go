package httpapi

import "strings"

// Rule is one entry of the API allow or deny list: a group such as "state", a version as in
// paths or in its short form (v1, v1alpha1), a protocol.
type Rule struct{ Name, Version, Protocol string }

// Rules are the API lists of a Configuration. A nil Rules allows everything.
type Rules struct{ Allowed, Denied []Rule }

// HTTP reports whether an operation is served over HTTP. Deny wins; a list with entries for
// HTTP hides everything it does not name; health is always served.
func (r *Rules) HTTP(op operation) bool {
	if r == nil || op.group == groupHealth {
		return true
	}
	any, hit := listed(r.Allowed, op)
	if any && !hit {
		return false
	}
	_, denied := listed(r.Denied, op)
	return !denied
}

func listed(rules []Rule, op operation) (any, hit bool) {
	for _, rule := range rules {
		if rule.Protocol != "http" {
			continue
		}
		any = true
		if (rule.Name == op.group || strings.HasPrefix(op.group, rule.Name)) && longVersion(rule.Version) == op.version {
			return true, true
		}
	}
	return any, false
}

func longVersion(v string) string {
	switch v {
	case "v1":
		return v1
	case "v1alpha1":
		return alpha1
	case "v1alpha2":
		return alpha2
	case "v1beta1":
		return beta1
	}
	return v
}
