package settings

import (
	"fmt"
	"strings"
)

// Variables with what a sidecar says of itself to the others.
const (
	LabelsEnv = "MECHA_LABELS"
	ZoneEnv   = "MECHA_ZONE"
)

// zoneLabel is the label that carries the zone.
const zoneLabel = "zone"

// maxLabel bounds the parts of a label: an announcement has to fit one packet of multicast DNS.
const maxLabel = 63

// readLabels takes MECHA_LABELS and MECHA_ZONE. A sidecar with wrong labels would get calls that
// are not for it, so a mistake stops the start.
func (s *Settings) readLabels(env func(string) string) error {
	labels, err := parseLabels(env(LabelsEnv))
	if err != nil {
		return fmt.Errorf("environment variable %s: %w", LabelsEnv, err)
	}
	zone := env(ZoneEnv)
	if err := checkLabelText("zone", zone); err != nil {
		return fmt.Errorf("environment variable %s: %w", ZoneEnv, err)
	}
	if zone != "" {
		if labels == nil {
			labels = map[string]string{}
		}
		labels[zoneLabel] = zone
	}
	s.Labels = labels
	return nil
}

// parseLabels reads "version=v2,team=x"; nil for none.
func parseLabels(text string) (map[string]string, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	labels := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is no label; want name=value, several with commas between them, like version=v2,team=x", part)
		}
		if name == zoneLabel {
			return nil, fmt.Errorf("the label %s is set with %s", zoneLabel, ZoneEnv)
		}
		if _, twice := labels[name]; twice {
			return nil, fmt.Errorf("the label %s is there twice", name)
		}
		if err := checkLabelText("name "+name, name); err != nil {
			return nil, err
		}
		if err := checkLabelText("value of "+name, value); err != nil {
			return nil, err
		}
		labels[name] = value
	}
	return labels, nil
}

// checkLabelText refuses what could not be written in a policy or an announcement.
func checkLabelText(what, text string) error {
	if len(text) > maxLabel {
		return fmt.Errorf("the %s is longer than %d bytes", what, maxLabel)
	}
	for _, r := range text {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		if !letter && !strings.ContainsRune("-_./", r) {
			return fmt.Errorf("the %s has %q in it; letters, digits and - _ . / are allowed", what, r)
		}
	}
	return nil
}
