package settings_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/settings"
)

func TestLabels(t *testing.T) {
	long := strings.Repeat("x", 64)
	for _, tt := range []struct {
		name, labels, zone string
		want               map[string]string
		err                string // part of it; empty: none
	}{
		{"none", "", "", nil, ""},
		{"one", "version=v2", "", map[string]string{"version": "v2"}, ""},
		{"several, with blanks", " version=v2, team=x ", "", map[string]string{"version": "v2", "team": "x"}, ""},
		{"no value", "canary=", "", map[string]string{"canary": ""}, ""},
		{"a prefixed name", "app.kubernetes.io/name=a", "", map[string]string{"app.kubernetes.io/name": "a"}, ""},
		{"a zone alone", "", "eu/eu-1", map[string]string{"zone": "eu/eu-1"}, ""},
		{"a zone beside labels", "version=v2", "eu-1", map[string]string{"version": "v2", "zone": "eu-1"}, ""},
		{"no equals sign", "version", "", nil, "MECHA_LABELS: \"version\" is no label"},
		{"no name", "=v2", "", nil, "is no label"},
		{"an empty part", "version=v2,,team=x", "", nil, "is no label"},
		{"twice", "version=v1,version=v2", "", nil, "the label version is there twice"},
		{"a letter that is not allowed", "version=v 2", "", nil, "' '"},
		{"a name that is not allowed", "ver sion=v2", "", nil, "' '"},
		{"too long", "version=" + long, "", nil, "longer than 63 bytes"},
		{"the zone in the wrong place", "zone=eu-1", "", nil, "is set with MECHA_ZONE"},
		{"a zone that is not allowed", "", "eu 1", nil, "MECHA_ZONE: the zone has ' '"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := settings.Parse([]string{"--app-id", "a"}, environment(map[string]string{"MECHA_LABELS": tt.labels, "MECHA_ZONE": tt.zone}))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one that says %q", err, tt.err)
				}
				if exit, ok := err.(*settings.ExitError); !ok || exit.Code != 1 || exit.Usage {
					t.Errorf("%#v; want exit code 1 without the usage", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got.Labels); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
