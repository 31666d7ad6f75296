package settings

import (
	"reflect"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
)

// TrafficPolicy is a TrafficPolicy resource. What its spec means is known where policies are
// compiled; this package only reads it, with Decode.
type TrafficPolicy struct {
	Resource
	Spec *yaml.Node // nil when there is none
}

type trafficPolicyDoc struct {
	head `yaml:",inline"`
	Spec any `yaml:"spec"`
}

func readTrafficPolicy(d document) (TrafficPolicy, conf.Findings, bool) {
	s := strict{file: d.file, own: true}
	var doc trafficPolicyDoc
	s.decode(d.root, reflect.ValueOf(&doc).Elem(), "")
	s.named(&doc.head)
	out := TrafficPolicy{Resource: doc.resource(), Spec: child(d.root, "spec")}
	if out.Spec == nil {
		s.add(conf.Error, doc.Line, "spec", "required, but not given; a policy without it does nothing")
	}
	return out, s.found, s.found.Err() == nil
}

// Decode reads the spec into a struct with yaml tags, strictly: fields that the struct does
// not have and values that do not fit are errors with their lines. Types that read themselves
// from text (encoding.TextUnmarshaler) are asked to.
func (p *TrafficPolicy) Decode(into any) conf.Findings {
	s := strict{file: p.File, own: true}
	if p.Spec != nil {
		s.decode(p.Spec, reflect.ValueOf(into).Elem(), "spec")
	}
	return s.found
}

// LineOf is the line where a field was written, for what is found later: key is its path
// below spec, as in "retry.max" or "match[1].op". A field that was not written has the line
// of the nearest one around it.
func (p *TrafficPolicy) LineOf(key string) int {
	n, line := p.Spec, p.Line
	if n == nil {
		return line
	}
	for part := range strings.FieldsFuncSeq(key, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		if n.Kind == yaml.SequenceNode {
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(n.Content) {
				return line
			}
			n, line = n.Content[i], n.Content[i].Line
			continue
		}
		at := -1
		for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
			if strings.EqualFold(n.Content[i].Value, part) {
				at = i
			}
		}
		if at < 0 {
			return line
		}
		n, line = n.Content[at+1], n.Content[at].Line
	}
	return line
}
