package invoke_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/invoke"
)

// Callers may write what they like; who calls whom is said by sidecars only.
var forged = call.Fields{
	{Name: "dapr-caller-app-id", Value: "boss"},
	{Name: "Dapr-Caller-Namespace", Value: "top"},
	{Name: "DAPR-CALLEE-APP-ID", Value: "x"},
	{Name: "dapr-callee-anything", Value: "x"},
	{Name: "dapr_caller_app_id", Value: "boss"}, // the same header to CGI-like frameworks
	{Name: "Dapr-Caller_App-Id", Value: "boss"},
	{Name: "dapr-caller", Value: "kept"}, // not one of them
	{Name: "X-Mine", Value: "1"},
}

func TestStamps(t *testing.T) {
	kept := call.Fields{{Name: "dapr-caller", Value: "kept"}, {Name: "X-Mine", Value: "1"}}
	with := func(more ...string) call.Fields {
		out := append(call.Fields{}, kept...)
		for i := 0; i < len(more); i += 2 {
			out.Add(more[i], more[i+1])
		}
		return out
	}
	forwarded := []string{"X-Forwarded-For", "10.0.0.9", "X-Forwarded-Host", "host9", "Forwarded", "for=10.0.0.9;by=10.0.0.9;host=host9"}
	tests := []struct {
		name, target string
		protocol     call.Protocol
		want         call.Fields
	}{
		{"peer, http", "shop", call.HTTP, with(append([]string{"dapr-caller-app-id", "me", "dapr-callee-app-id", "shop", "dapr-caller-namespace", "home"}, forwarded...)...)},
		{"peer, unary", "shop", call.Unary, with(append([]string{"dapr-caller-app-id", "me", "dapr-callee-app-id", "shop", "dapr-caller-namespace", "home"}, forwarded...)...)},
		{"peer, grpc", "shop", call.GRPC, with("dapr-caller-app-id", "me", "dapr-callee-app-id", "shop")},
		{"self, http", "me", call.HTTP, with("dapr-caller-app-id", "me", "dapr-caller-namespace", "home", "dapr-callee-app-id", "me")},
		{"self, grpc", "me", call.GRPC, with()},
		{"external", "http://e", call.HTTP, with()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := newKit(t)
			k.reg.set(shop, "s")
			var got call.Fields
			see := func(req *call.Request) { got = append(call.Fields{}, req.Header...) }
			k.peers.see, k.ext.see = see, see
			k.local.see = func(_ context.Context, req *call.Request) { see(req) }
			err := k.Invoke(t.Context(), &call.Request{Target: tt.target, Protocol: tt.protocol, Header: append(call.Fields{}, forged...)}, &answer{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

func TestStampsAreWrittenOnceHoweverOftenACallIsTried(t *testing.T) {
	for name, own := range map[string]call.Fields{
		"nothing of the caller's": {},
		"behind the caller's own": {{Name: "X-Forwarded-For", Value: "1.2.3.4"}, {Name: "Forwarded", Value: "for=1.2.3.4"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				k := newKit(t, withRetries)
				k.reg.set(shop, "a", "b")
				k.peers.set("a", unsent)
				k.peers.set("b", unsent)
				want := map[string]int{"X-Forwarded-For": len(own)/2 + 1, "Forwarded": len(own)/2 + 1, "X-Forwarded-Host": 1,
					"dapr-caller-app-id": 1, "dapr-callee-app-id": 1, "dapr-caller-namespace": 1}
				k.peers.see = func(req *call.Request) {
					got := map[string]int{}
					for _, f := range req.Header {
						got[f.Name]++
					}
					if d := cmp.Diff(want, got); d != "" {
						t.Errorf("after %v (-want +got):\n%s", k.peers.called, d)
					}
				}
				_ = k.Invoke(t.Context(), &call.Request{Target: "shop", Header: append(call.Fields{}, own...)}, &answer{})
				if n := len(k.peers.take()); n != 8 {
					t.Errorf("%d tries, want 4 attempts on 2 instances", n)
				}
				k.Close()
			})
		})
	}
}

func TestWithoutAnAddressNothingIsForwarded(t *testing.T) {
	k := newKit(t, func(o *invoke.Options) { o.HostIP = "" })
	k.reg.set(shop, "s")
	k.peers.see = func(req *call.Request) {
		if _, ok := req.Header.Lookup("Forwarded"); ok {
			t.Errorf("stamped %v", req.Header)
		}
	}
	_, _ = k.do(t, "shop")
}
