package grpcapi_test

import (
	"testing"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"

	"github.com/mecha-project/mecha/api/grpcapi"
)

func rpcs(t *testing.T) (out []string) {
	t.Helper()
	m := runtimev1.File_dapr_proto_runtime_v1_dapr_proto.Services().ByName("Dapr").Methods()
	for i := range m.Len() {
		out = append(out, string(m.Get(i).Name()))
	}
	if len(out) < 70 {
		t.Fatalf("only %d methods in the descriptor", len(out))
	}
	return out
}

// The API lists can name every method, and each by one group only.
func TestEveryMethodIsInOneGroup(t *testing.T) {
	owner := map[string]string{}
	for g, methods := range grpcapi.Groups {
		for m := range methods {
			if other, twice := owner[m]; twice {
				t.Errorf("%s is in %s and in %s", m, other, g)
			}
			owner[m] = g
		}
	}
	for _, m := range rpcs(t) {
		if owner[m] == "" {
			t.Errorf("%s is in no group: an allow list cannot name it, a deny list cannot deny it", m)
		}
		delete(owner, m)
	}
	for m, g := range owner {
		t.Errorf("%s of group %s is no method", m, g)
	}
}

func TestRules(t *testing.T) {
	rule := func(name, version, protocol string) grpcapi.Rule {
		return grpcapi.Rule{Name: name, Version: version, Protocol: protocol}
	}
	const dapr = "/dapr.proto.runtime.v1.Dapr/"
	tests := []struct {
		name    string
		rules   *grpcapi.Rules
		allowed []string
		hidden  []string
	}{
		{"none", nil, []string{dapr + "GetState", dapr + "Shutdown", "/a.B/C"}, nil},
		{"an allow list hides the rest", &grpcapi.Rules{Allowed: []grpcapi.Rule{rule("state", "v1", "grpc")}},
			[]string{dapr + "GetState", dapr + "SaveState", "/a.B/C"}, []string{dapr + "Shutdown", dapr + "QueryStateAlpha1", dapr + "NoSuchMethod"}},
		{"a version in its long form", &grpcapi.Rules{Allowed: []grpcapi.Rule{rule("state", "v1.0-alpha1", "grpc")}},
			[]string{dapr + "QueryStateAlpha1"}, []string{dapr + "GetState"}},
		{"deny wins", &grpcapi.Rules{Allowed: []grpcapi.Rule{rule("state", "v1", "grpc")}, Denied: []grpcapi.Rule{rule("state", "v1.0", "grpc")}},
			nil, []string{dapr + "GetState"}},
		{"a deny list leaves the rest", &grpcapi.Rules{Denied: []grpcapi.Rule{rule("jobs", "v1", "grpc")}},
			[]string{dapr + "GetState", dapr + "GetJobAlpha1", "/a.B/GetJob"}, []string{dapr + "GetJob", dapr + "ScheduleJob"}},
		{"rules of the other protocol", &grpcapi.Rules{Allowed: []grpcapi.Rule{rule("state", "v1", "http")}, Denied: []grpcapi.Rule{rule("shutdown", "v1", "http")}},
			[]string{dapr + "GetState", dapr + "Shutdown"}, nil},
		{"a list that names nothing known hides all", &grpcapi.Rules{Allowed: []grpcapi.Rule{rule("nonsense", "v1", "grpc")}}, []string{"/a.B/C"}, []string{dapr + "GetState"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, m := range tt.allowed {
				if !tt.rules.GRPC(m) {
					t.Errorf("%s is hidden", m)
				}
			}
			for _, m := range tt.hidden {
				if tt.rules.GRPC(m) {
					t.Errorf("%s is served", m)
				}
			}
		})
	}
}
