package main

import (
	"fmt"
	"os"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/mecha-project/mecha/components/conf"
)

// example is a component as a README sets it up.
type example struct {
	kind     string // "state.redis"
	settings []conf.Item
}

// resource is what the examples of READMEs have: a Component, or the nameResolution section of a
// Configuration.
type resource struct {
	Spec struct {
		Type     string
		Metadata []struct {
			Name         string
			Value        yaml.Node
			SecretKeyRef *yaml.Node `yaml:"secretKeyRef"`
		}
		NameResolution struct {
			Component     string
			Configuration map[string]yaml.Node
		} `yaml:"nameResolution"`
	}
}

// examples reads the fenced YAML of a README. What is no resource is passed over.
func examples(readme string) ([]example, error) {
	text, err := os.ReadFile(readme)
	if err != nil {
		return nil, err
	}
	var found []example
	for i, part := range strings.Split(string(text), "```") {
		source, isYAML := strings.CutPrefix(part, "yaml\n")
		if i%2 == 0 || !isYAML {
			continue
		}
		var r resource
		if yaml.Unmarshal([]byte(source), &r) != nil {
			continue
		}
		if e, ok := r.example(); ok {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no example of a component", readme)
	}
	return found, nil
}

func (r *resource) example() (example, bool) {
	switch nr := r.Spec.NameResolution; {
	case nr.Component != "":
		e := example{kind: "nameresolution." + nr.Component}
		for name, value := range nr.Configuration {
			e.settings = append(e.settings, conf.Item{Name: name, Value: value.Value})
		}
		return e, true
	case r.Spec.Type != "":
		e := example{kind: r.Spec.Type}
		for _, it := range r.Spec.Metadata {
			value := it.Value.Value
			if it.SecretKeyRef != nil {
				value = "a secret"
			}
			e.settings = append(e.settings, conf.Item{Name: it.Name, Value: value})
		}
		return e, true
	}
	return example{}, false
}
