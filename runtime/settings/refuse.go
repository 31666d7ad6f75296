package settings

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/conf"
)

// configuration checks what the decoder cannot, and refuses sections whose absence would
// leave the user less protected than the file says: running on would be a silent lie.
func (s *strict) configuration(c *Configuration) {
	refuse := func(line int, key, format string, args ...any) {
		s.add(conf.Error, line, key, "this version of Mecha does not enforce it, and would run with less protection than the file asks for: "+format, args...)
	}
	if m := c.MTLS; m != nil && m.Enabled {
		refuse(m.Line, "spec.mtls.enabled", "traffic between sidecars would not be encrypted; set it to false to accept that")
	}
	s.accessControl(c.AccessControl)
	s.secretScopes(c.Secrets)
	for _, list := range []struct {
		key   string
		rules []APIRule
	}{{"allowed", apiRules(c, true)}, {"denied", apiRules(c, false)}} {
		for _, r := range list.rules {
			s.apiRule("spec.api."+list.key, r)
		}
	}
	s.tracing(c.Tracing)
	if w := c.Workflow; w != nil {
		s.add(conf.Warning, w.Line, "spec.workflow", "workflows are not part of this version; the section has no effect")
	}
}

// accessControl checks the section that says who may call the app. Nothing in it is passed over:
// a rule that is not understood is one that protects nobody, so even unknown fields are errors.
func (s *strict) accessControl(a *AccessControl) {
	if a == nil {
		return
	}
	const at = "spec.accessControl"
	s.nothingUnknown(at)
	s.action(a.Line, at+".defaultAction", a.DefaultAction)
	for i := range a.Policies {
		p := &a.Policies[i]
		key := fmt.Sprintf("%s.policies[%d]", at, i)
		s.required(p.Line, key+".appId", p.AppID)
		s.required(p.Line, key+".trustDomain", p.TrustDomain)
		s.required(p.Line, key+".namespace", p.Namespace)
		s.action(p.Line, key+".defaultAction", p.DefaultAction)
		for j, o := range p.Operations {
			op := fmt.Sprintf("%s.operations[%d]", key, j)
			s.required(o.Line, op+".name", o.Name)
			s.action(o.Line, op+".action", o.Action)
		}
	}
}

// secretScopes checks the section that says which secrets the app may read. As with access
// control, what is not understood is an error: a scope that says deny in other words denies
// nothing.
func (s *strict) secretScopes(x *Secrets) {
	if x == nil {
		return
	}
	const at = "spec.secrets"
	s.nothingUnknown(at)
	first := map[string]int{}
	for i, c := range x.Scopes {
		key := fmt.Sprintf("%s.scopes[%d]", at, i)
		s.required(c.Line, key+".storeName", c.StoreName)
		s.action(c.Line, key+".defaultAccess", c.DefaultAccess)
		if line, twice := first[c.StoreName]; twice {
			s.add(conf.Error, c.Line, key+".storeName", "%s storeName is repeated in secrets configuration (first on line %d); make one scope of the two", c.StoreName, line)
			continue
		}
		first[c.StoreName] = c.Line
	}
}

// nothingUnknown makes unknown fields below a path errors.
func (s *strict) nothingUnknown(path string) {
	for i := range s.found {
		if strings.HasPrefix(s.found[i].Key, path+".") {
			s.found[i].Severity = conf.Error
			s.found[i].Msg = strings.TrimSuffix(s.found[i].Msg, ", ignored")
		}
	}
}

func (s *strict) required(line int, key, value string) {
	if value == "" {
		s.add(conf.Error, line, key, "required, but not given")
	}
}

// action checks a word that decides; empty leaves the decision to what is around it.
func (s *strict) action(line int, key, word string) {
	switch strings.ToLower(word) {
	case "", "allow", "deny":
	default:
		s.add(conf.Error, line, key, "%q is not one of allow, deny", word)
		s.found[len(s.found)-1].Nearest = conf.Nearest(word, []string{"allow", "deny"})
	}
}

func apiRules(c *Configuration, allowed bool) []APIRule {
	switch {
	case c.API == nil:
		return nil
	case allowed:
		return c.API.Allowed
	}
	return c.API.Denied
}

func (s *strict) apiRule(key string, r APIRule) {
	if !slices.Contains([]string{"http", "grpc"}, strings.ToLower(r.Protocol)) {
		s.add(conf.Error, r.Line, key+".protocol", "want http or grpc, got %q; the rule would protect nothing", r.Protocol)
	}
	if r.Name == "" {
		s.add(conf.Error, r.Line, key+".name", "required, but not given")
	}
}

func (s *strict) tracing(t *Tracing) {
	if t == nil || t.Otel == nil {
		return
	}
	if p := strings.ToLower(t.Otel.Protocol); p != "" && p != "http" && p != "grpc" {
		s.add(conf.Error, t.Otel.Line, "spec.tracing.otel.protocol", "want http or grpc, got %q", t.Otel.Protocol)
	}
	for i, h := range t.Otel.Headers {
		at := fmt.Sprintf("spec.tracing.otel.headers[%d]", i)
		if h.Name == "" {
			s.add(conf.Error, h.Line, at, "the header has no name")
		}
		if ref := h.SecretRef; ref != nil {
			s.required(h.Line, at+".secretKeyRef.name", ref.Name)
			s.required(h.Line, "auth.secretStore", h.SecretStore) // beside spec, as in a Component
		}
	}
}

// flatText writes a decoded value as the text of a configuration entry.
func flatText(v any) string {
	switch x := v.(type) {
	case nil:
		return ""
	case string:
		return x
	case []any:
		parts := make([]string, len(x))
		for i, e := range x {
			switch e.(type) {
			case []any, map[string]any:
				return jsonText(v)
			}
			if parts[i] = flatText(e); strings.Contains(parts[i], ",") {
				return jsonText(v)
			}
		}
		return strings.Join(parts, ",")
	case map[string]any:
		return jsonText(v)
	}
	return jsonText(v)
}

func jsonText(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // values come from YAML and hold only what JSON can
		return ""
	}
	return string(b)
}
