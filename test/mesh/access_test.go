package mesh

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/mecha-project/mecha/test/harness"
)

// access is a Configuration with an accessControl section in one line.
func access(section string) string { return configuration("  accessControl: " + section + "\n") }

// policyOf is one access policy in one line; more holds its further fields.
func policyOf(app, more string) string {
	return fmt.Sprintf("{appId: %s, trustDomain: public, namespace: default%s}", app, more)
}

// failure is the error of an API answer.
func failure(t *testing.T, body []byte) (code, message string) {
	t.Helper()
	var e struct{ ErrorCode, Message string }
	if err := json.Unmarshal(body, &e); err != nil {
		t.Fatalf("%q is no error of the API: %v", body, err)
	}
	return e.ErrorCode, e.Message
}

// invoke calls a method of an app through a sidecar.
func invoke(t *testing.T, from *harness.Sidecar, verb, app, path string, header ...string) (*http.Response, []byte) {
	t.Helper()
	return harness.Do(t, verb, from.URL("/v1.0/invoke/"+app+"/method"+path), nil, header...)
}

// Which operations other apps may call. Nobody has a certificate, so every caller may be
// anybody: it is allowed what every policy allows.
func TestAccessControl(t *testing.T) {
	type ask struct {
		verb, path string
		want       int
	}
	for _, tt := range []struct {
		name, section string
		asks          []ask
	}{
		{"allow by default", "{defaultAction: allow}", []ask{{"GET", "/open", 200}, {"POST", "/a/b", 200}}},
		{"deny by default", "{defaultAction: deny}", []ask{{"GET", "/open", 403}, {"POST", "/a/b", 403}}},
		{"words in capitals", "{defaultAction: Deny}", []ask{{"GET", "/open", 403}}},
		{"policies alone deny by default", "{policies: [" + policyOf("front", ", defaultAction: allow") + "]}", []ask{{"GET", "/open", 403}}},
		{"operations", "{defaultAction: allow, policies: [" + policyOf("other", `, defaultAction: allow, operations: [
      {name: /admin/**, action: deny}, {name: /orders, httpVerb: [POST, PUT], action: deny}, {name: one/*, httpVerb: ["*"], action: deny},
      {name: /v*/x, action: deny}, {name: /first/yes, action: allow}, {name: /first/*, action: deny},
      {name: /slash/, action: deny}]`) + "]}", []ask{
			{"GET", "/open", 200}, {"GET", "/", 200},
			{"GET", "/admin/a", 403}, {"DELETE", "/admin/a/b/c", 403}, {"GET", "/admin", 200}, {"GET", "/admin/", 200}, {"GET", "/administrator/a", 200},
			{"GET", "/ADMIN/a", 403}, {"GET", "/%61dmin/a", 403}, {"GET", "//admin/a", 403}, {"GET", "/./admin/a", 403}, {"GET", "/open/../admin/a", 403}, {"GET", "/admin/a?x=1", 403},
			{"GET", "/orders", 200}, {"POST", "/orders", 403}, {"PUT", "/Orders", 403}, {"POST", "/orders/1", 200},
			{"GET", "/one/x", 403}, {"GET", "/one", 200}, {"GET", "/one/x/y", 200},
			{"GET", "/v1/x", 403}, {"GET", "/v/x", 403}, {"GET", "/v1/y", 200}, {"GET", "/w1/x", 200},
			{"GET", "/first/yes", 200}, {"GET", "/first/no", 403}, {"GET", "/slash", 403}, {"GET", "/slash/", 403}}},
		{"a policy's own default denies", "{defaultAction: allow, policies: [" + policyOf("other", ", defaultAction: deny, operations: [{name: /open, httpVerb: [GET], action: allow}]") + "]}", []ask{
			{"GET", "/open", 200}, {"POST", "/open", 403}, {"GET", "/rest", 403}}},
		{"every policy counts", "{defaultAction: allow, policies: [" + policyOf("a", ", defaultAction: allow") + "," + policyOf("b", ", operations: [{name: /b, action: deny}]") + "]}", []ask{
			{"GET", "/open", 200}, {"GET", "/b", 403}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := harness.NewMesh(t)
			callee := m.Start(harness.Options{AppID: "back", AppPort: harness.Serve(t, &inbox{}), Config: access(tt.section)})
			caller := m.Start(harness.Options{AppID: "front"})
			for _, a := range tt.asks {
				resp, body := invoke(t, caller, a.verb, "back", a.path)
				if resp.StatusCode != a.want {
					t.Errorf("%s %s: %d %s, want %d", a.verb, a.path, resp.StatusCode, body, a.want)
				}
				if resp, body = invoke(t, callee, a.verb, "back", a.path); resp.StatusCode != 200 {
					t.Errorf("%s %s of the app itself: %d %s, want 200", a.verb, a.path, resp.StatusCode, body)
				}
			}
		})
	}
}

// What a caller that is refused is told, over each API, and what is counted.
func TestAccessRefusals(t *testing.T) {
	const method = "/grpc.testing.TestService/UnaryCall"
	m := harness.NewMesh(t)
	app := &echoService{}
	rules := func(default_, more string) string {
		return access("{defaultAction: " + default_ + ", policies: [" + policyOf("trusted", ", defaultAction: allow"+more) + "]}")
	}
	web := m.Start(harness.Options{AppID: "web", AppPort: harness.Serve(t, &inbox{}), Config: rules("deny", "")})
	closed := m.Start(harness.Options{AppID: "closed", Protocol: "grpc", Config: rules("deny", ""),
		AppPort: serveGRPC(t, func(s *grpc.Server) { grpc_testing.RegisterTestServiceServer(s, app) })})
	listed := m.Start(harness.Options{AppID: "listed", Protocol: "grpc", Config: rules("allow", ", operations: [{name: "+method+", httpVerb: [GET], action: deny}]"),
		AppPort: serveGRPC(t, func(s *grpc.Server) { grpc_testing.RegisterTestServiceServer(s, app) })})
	cased := m.Start(harness.Options{AppID: "cased", Protocol: "grpc", Config: rules("allow", ", operations: [{name: "+strings.ToLower(method)+", action: deny}]"),
		AppPort: serveGRPC(t, func(s *grpc.Server) { grpc_testing.RegisterTestServiceServer(s, app) })})
	front := m.Start(harness.Options{AppID: "front"})

	// A name that a caller can write itself opens nothing.
	resp, body := invoke(t, front, "POST", "web", "/a/b", "dapr-caller-app-id", "trusted")
	code, message := failure(t, body)
	if want := "access control policy has denied access to id: front operation: a/b verb: POST"; resp.StatusCode != 403 || code != "ERR_DIRECT_INVOKE" || !strings.Contains(message, want) {
		t.Errorf("HTTP: %d %s %q, want 403 ERR_DIRECT_INVOKE with %q", resp.StatusCode, code, message, want)
	}
	_, err := runtimev1.NewDaprClient(dial(t, front.Target())).InvokeService(limited(t), &runtimev1.InvokeServiceRequest{Id: "web",
		Message: &commonv1.InvokeRequest{Method: "x", Data: &anypb.Any{}, HttpExtension: &commonv1.HTTPExtension{Verb: commonv1.HTTPExtension_GET}}})
	if st := status.Convert(err); st.Code() != codes.Internal || !strings.Contains(st.Message(), "operation: x verb: GET") {
		t.Errorf("InvokeService: %v, want Internal and what was denied", err)
	}
	for _, tt := range []struct {
		app  string
		from *harness.Sidecar
		want codes.Code
	}{{"closed", front, codes.PermissionDenied}, {"listed", front, codes.PermissionDenied}, {"cased", front, codes.OK}, {"closed", closed, codes.OK}, {"listed", listed, codes.OK}, {"cased", cased, codes.OK}} {
		ctx := metadata.AppendToOutgoingContext(limited(t), "dapr-app-id", tt.app)
		_, err := grpc_testing.NewTestServiceClient(dial(t, tt.from.Target())).UnaryCall(ctx, &grpc_testing.SimpleRequest{})
		st := status.Convert(err)
		if st.Code() != tt.want || (tt.want != codes.OK && !strings.Contains(st.Message(), "access control policy has denied access to id: front operation: "+method+" verb: NONE")) {
			t.Errorf("proxied from %s to %s: %v, want %v", tt.from.AppID, tt.app, err, tt.want)
		}
	}
	for _, tt := range []struct {
		at   *harness.Sidecar
		name string
		want float64
	}{{web, "global_policy_action_blocked", 2}, {web, "global_policy_action_allowed", -1}, {closed, "global_policy_action_blocked", 1}, {closed, "app_policy_action_blocked", -1},
		{listed, "app_policy_action_blocked", 1}, {listed, "global_policy_action_blocked", -1}, {cased, "global_policy_action_allowed", 1}, {cased, "app_policy_action_allowed", -1}} {
		name := "dapr_runtime_acl_" + tt.name + "_total"
		eventually(t, 5*time.Second, fmt.Sprintf("%s of %s is %v", name, tt.at.AppID, tt.want), func() bool {
			return value(scrape(t, tt.at), name, "trustDomain", "", "namespace", "") == tt.want
		})
	}
}

// A section that is not understood would protect less than it says, so the sidecar does not start.
func TestAccessMisuse(t *testing.T) {
	for _, tt := range []struct{ name, section, want string }{
		{"no app", "{policies: [{trustDomain: public, namespace: default}]}", "config.yaml:5: spec.accessControl.policies[0].appId: required"},
		{"no trust domain", "{policies: [{appId: a, namespace: default}]}", "config.yaml:5: spec.accessControl.policies[0].trustDomain: required"},
		{"no namespace", "{policies: [{appId: a, trustDomain: public}]}", "config.yaml:5: spec.accessControl.policies[0].namespace: required"},
		{"unknown default", "{defaultAction: block}", `config.yaml:5: spec.accessControl.defaultAction: \"block\" is not one of allow, deny`},
		{"unknown action", "{policies: [" + policyOf("a", ", operations: [{name: /x, action: forbid}]") + "]}", `config.yaml:5: spec.accessControl.policies[0].operations[0].action: \"forbid\" is not one of allow, deny`},
		{"misspelt field", "{defaultActions: deny}", "config.yaml:5: spec.accessControl.defaultActions: unknown field"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := harness.NewMesh(t).Start(harness.Options{AppID: "x", NoWait: true, Config: access(tt.section)})
			if code := s.Wait(15 * time.Second); code != 1 {
				t.Errorf("ended with %d, want 1", code)
			}
			if !strings.Contains(s.Log(), tt.want) {
				t.Errorf("the log does not say %q:\n%s", tt.want, s.Log())
			}
		})
	}
}
