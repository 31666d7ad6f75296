package invoke_test

import (
	"testing"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// A path from a peer is judged and cleaned here too: the other sidecar need not be one of ours.
func TestServeCleansPaths(t *testing.T) {
	tests := []struct {
		name, path, want string
		protocol         call.Protocol
		code             fault.Code
	}{
		{"plain", "a/b", "a/b", call.HTTP, fault.OK},
		{"dots do not climb", "../a/./../b", "b", call.HTTP, fault.OK},
		{"a query is no path", "a?x=1", "", call.HTTP, fault.Invalid},
		{"a method keeps its slash", "/pkg.Svc/M", "/pkg.Svc/M", call.GRPC, fault.OK},
		{"a method with dots", "/pkg.Svc/../Admin/M", "/Admin/M", call.GRPC, fault.OK},
		{"a control byte", "/pkg.Svc/\x01", "", call.GRPC, fault.Invalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t)
			req := &call.Request{Protocol: tt.protocol, Target: "me", Verb: "GET", Path: tt.path}
			err := k.Serve(t.Context(), req, "peer", &answer{})
			if fault.Of(err) != tt.code {
				t.Fatalf("error %v, want code %v", err, tt.code)
			}
			if tt.code == fault.OK && req.Path != tt.want {
				t.Errorf("the app is asked for %q, want %q", req.Path, tt.want)
			}
		})
	}
}
