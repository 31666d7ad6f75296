package main

import (
	"fmt"
	"testing"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// TestInventedVerbsShareOneSeries: a verb is any word its sender likes, also of a sender without
// the API token; each series lives as long as the sidecar.
func TestInventedVerbsShareOneSeries(t *testing.T) {
	m, err := telemetry.NewMetrics(telemetry.MetricsOptions{AppID: "a", LowCardinality: true})
	if err != nil {
		t.Fatal(err)
	}
	o := &serverObserver{metrics: m}
	for i := range 100 {
		o.HTTPServed(httpapi.Served{Method: fmt.Sprintf("VERB%d", i), Path: "/x", Status: 401})
	}
	for _, known := range []string{"GET", "POST"} {
		o.HTTPServed(httpapi.Served{Method: known, Path: "/x", Status: 200})
	}
	families, err := telemetry.Registry(m).Gather()
	if err != nil {
		t.Fatal(err)
	}
	series, verbs := 0, map[string]bool{}
	for _, f := range families {
		if f.GetName() != "dapr_http_server_request_count" {
			continue
		}
		series = len(f.GetMetric())
		for _, one := range f.GetMetric() {
			for _, l := range one.GetLabel() {
				if l.GetName() == "method" {
					verbs[l.GetValue()] = true
				}
			}
		}
	}
	if series != 3 || !verbs["GET"] || !verbs["POST"] {
		t.Errorf("%d series, verbs %v; want GET, POST and one for the rest", series, verbs)
	}
}
