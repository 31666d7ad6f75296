package apierr_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/fault"
)

// row is one failure, named, with what it became.
type row struct {
	name string
	err  *apierr.Error
}

// reasons are all there are; a new one has to be put into the table, or be named here.
var reasons = []fault.Reason{"", fault.NoSuchComponent, fault.NoComponents, fault.IllegalKey, fault.ForbiddenTopic, fault.ForbiddenSecret, fault.BadMetadata, fault.BadExpiry,
	fault.BadEnvelope, fault.BadEntries, fault.NotEntries, fault.EventMismatch, fault.NoTransactions, fault.NoQuery, fault.OutboxFailed, fault.TooManyOps,
	fault.NoTarget, fault.EmptyName, fault.NoTopic, fault.BadOperation, fault.NoApp, fault.AppUnhealthy, fault.AppUnreachable, fault.NoInstances, fault.PeerAnswered, fault.PolicyRejected, fault.PeerRejected, fault.AccessDenied, fault.BreakerOpen}

const lastCode = fault.Lost

// table is every answer the three translations can give, and the general rows.
func table() (out []row) {
	because := func(c fault.Code, r fault.Reason) error { return fault.New("op", c, "text of the cause").With(r) }
	ops := []apierr.StateOp{apierr.StateGet, apierr.StateBulkGet, apierr.StateSave, apierr.StateDelete, apierr.StateBulkDelete, apierr.StateTransaction, apierr.StateQuery}
	for _, op := range ops {
		for c := fault.Internal; c <= lastCode; c++ {
			out = append(out, row{fmt.Sprintf("state %s code=%v", op, c), apierr.State(op, "store", "app", because(c, ""))})
		}
	}
	for _, r := range reasons[1:] {
		out = append(out, row{fmt.Sprintf("state %s reason=%s", apierr.StateSave, r), apierr.State(apierr.StateSave, "store", "app", because(fault.Invalid, r))})
	}
	for _, r := range reasons {
		out = append(out, row{"publish reason=" + string(r), apierr.Publish("broker", "topic", "app", map[string]string{"ttlInSeconds": "x"}, because(fault.Unavailable, r))})
	}
	for _, r := range reasons {
		out = append(out, row{"secret reason=" + string(r), apierr.Secret("store", "name", because(fault.Denied, r))})
	}
	for _, r := range reasons {
		out = append(out, row{"secrets reason=" + string(r), apierr.Secrets("store", because(fault.Denied, r))})
	}
	for _, op := range []apierr.LockOp{apierr.TryLock, apierr.Unlock} {
		for _, r := range reasons {
			out = append(out, row{fmt.Sprintf("lock %s reason=%s", op, r), apierr.Lock(op, "store", because(fault.Invalid, r))})
		}
	}
	for op, name := range []string{"get", "subscribe"} {
		for _, r := range reasons {
			out = append(out, row{"configuration " + name + " reason=" + string(r), apierr.Config(apierr.ConfigOp(op), "store", []string{"a", "b"}, because(fault.Unavailable, r))})
		}
	}
	for _, r := range reasons {
		out = append(out, row{"binding reason=" + string(r), apierr.Binding("b", because(fault.Unavailable, r))})
	}
	for _, r := range reasons {
		out = append(out, row{"crypto reason=" + string(r), apierr.Crypto("vault", because(fault.Invalid, r))})
	}
	for _, r := range reasons {
		out = append(out, row{"crypto key reason=" + string(r), apierr.CryptoKey("vault", "k", because(fault.NotFound, r))})
	}
	for c := fault.Internal; c <= lastCode; c++ {
		out = append(out, row{fmt.Sprintf("invoke code=%v", c), apierr.Invoke("target", because(c, ""))})
	}
	out = append(out, row{"invoke nobody", apierr.Invoke("", because(fault.Invalid, fault.NoTarget))})
	general := []struct {
		name string
		row  apierr.Row
	}{{"BadRequest", apierr.BadRequest}, {"MalformedRequest", apierr.MalformedRequest}, {"BodyRead", apierr.BodyRead}, {"Internal", apierr.Internal},
		{"Unclassified", apierr.Unclassified}, {"APIUnimplemented", apierr.APIUnimplemented}, {"NoInvokeTarget", apierr.NoInvokeTarget},
		{"DirectInvoke", apierr.DirectInvoke}, {"DirectInvokeDenied", apierr.DirectInvokeDenied}, {"HealthNotReady", apierr.HealthNotReady},
		{"OutboundNotReady", apierr.OutboundNotReady}, {"HealthAppID", apierr.HealthAppID},
		{"ConversationNotFound", apierr.ConversationNotFound}, {"ActorNoPlacement", apierr.ActorNoPlacement}, {"SchedulerJob", apierr.SchedulerJob}}
	for _, g := range general {
		out = append(out, row{"row " + g.name, g.row.Because("text")})
	}
	return out
}

// The table, as a reader of the wire sees it. Codes that give the same answer share a line.
func TestTable(t *testing.T) {
	var b strings.Builder
	last := ""
	for _, r := range table() {
		if r.err.HTTP < 400 || r.err.HTTP > 599 || r.err.GRPC == codes.OK || r.err.Tag == "" {
			t.Errorf("%s: status %d, %v, tag %q", r.name, r.err.HTTP, r.err.GRPC, r.err.Tag)
		}
		line := fmt.Sprintf("%d %v %s", r.err.HTTP, r.err.GRPC, r.err.JSON())
		if line != last {
			fmt.Fprintf(&b, "%s\n", line)
		}
		last = line
		fmt.Fprintf(&b, "  %s\n", r.name)
	}
	golden(t, "table.txt", b.String())
}

// body is the JSON form, with details by type.
type body struct {
	ErrorCode string           `json:"errorCode"`
	Message   string           `json:"message"`
	Details   []map[string]any `json:"details"`
}

// Both forms of a failure say the same.
func TestJSONAndStatusAgree(t *testing.T) {
	for _, r := range table() {
		t.Run(r.name, func(t *testing.T) {
			var j body
			if err := json.Unmarshal(r.err.JSON(), &j); err != nil {
				t.Fatalf("%s is no JSON: %v", r.err.JSON(), err)
			}
			st := r.err.Status()
			if j.ErrorCode != r.err.Tag || j.Message != r.err.Message || st.Message() != r.err.Message || st.Code() != r.err.GRPC {
				t.Errorf("JSON %+v, status %v", j, st)
			}
			for _, d := range j.Details {
				if m, ok := d["metadata"].(map[string]any); ok && len(m) == 0 {
					d["metadata"] = nil
				}
			}
			if d := cmp.Diff(j.Details, details(st)); d != "" {
				t.Errorf("details (-json +status):\n%s", d)
			}
		})
	}
}

// details writes a status' details as the JSON form should have them.
func details(st *status.Status) (out []map[string]any) {
	const typ = "type.googleapis.com/google.rpc."
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ResourceInfo:
			out = append(out, map[string]any{"@type": typ + "ResourceInfo", "resource_type": d.ResourceType, "resource_name": d.ResourceName, "owner": d.Owner, "description": d.Description})
		case *errdetails.ErrorInfo:
			var md any // an empty map is not on the gRPC wire, so it counts as none
			if len(d.Metadata) > 0 {
				m := map[string]any{}
				for k, v := range d.Metadata {
					m[k] = v
				}
				md = m
			}
			out = append(out, map[string]any{"@type": typ + "ErrorInfo", "reason": d.Reason, "domain": d.Domain, "metadata": md})
		case *errdetails.BadRequest:
			v := d.FieldViolations[0]
			out = append(out, map[string]any{"@type": typ + "BadRequest", "field_violations": []any{map[string]any{"field": v.Field, "description": v.Description}}})
		case *errdetails.Help:
			out = append(out, map[string]any{"@type": typ + "Help", "links": []any{map[string]any{"url": d.Links[0].Url, "description": ""}}})
		}
	}
	return out
}

// A key, a topic or an app's answer may be any bytes: details must not get lost over them.
func TestTextThatIsNotUTF8(t *testing.T) {
	const bad = "a\xffb\xe2\x82"
	errs := map[string]*apierr.Error{
		"state":    apierr.State(apierr.StateGet, bad, bad, fault.New("op", fault.Invalid, "%s", bad).With(fault.IllegalKey)),
		"publish":  apierr.Publish(bad, bad, bad, nil, fault.New("op", fault.Denied, "%s", bad).With(fault.ForbiddenTopic)),
		"metadata": apierr.Publish("p", "t", "a", map[string]string{bad: bad}, fault.New("op", fault.Invalid, "%s", bad).With(fault.BadMetadata)),
	}
	for name, e := range errs {
		st := e.Status()
		if len(st.Details()) == 0 {
			t.Errorf("%s: the details are lost", name)
		}
		var j body
		if err := json.Unmarshal(e.JSON(), &j); err != nil {
			t.Fatal(err)
		}
		if j.Message != st.Message() || !strings.Contains(st.Message(), "a\uFFFDb\uFFFD\uFFFD") {
			t.Errorf("%s: JSON says %q, the status %q", name, j.Message, st.Message())
		}
	}
}

func TestErrorsAreFoundByGRPC(t *testing.T) {
	err := error(apierr.DirectInvoke.Because("text"))
	if st := status.Convert(err); st.Code() != codes.Internal || st.Message() != "text" || err.Error() != "text" {
		t.Errorf("grpc-go makes %v of it", st)
	}
	wrapped := apierr.State(apierr.StateGet, "s", "a", fmt.Errorf("around: %w", context.DeadlineExceeded))
	if wrapped.HTTP != 500 || !strings.Contains(wrapped.Message, "around") {
		t.Errorf("got %d %q", wrapped.HTTP, wrapped.Message)
	}
	if e := apierr.Invoke("x", errors.New("y")); e.Message != "failed to invoke, id: x, err: y" {
		t.Errorf("got %q", e.Message)
	}
}

func TestStatusMaps(t *testing.T) {
	var b strings.Builder
	b.WriteString("gRPC code → HTTP status\n")
	for c := codes.OK; c <= codes.Unauthenticated+1; c++ {
		fmt.Fprintf(&b, "  %v → %d\n", c, apierr.HTTPFromGRPC(c))
	}
	b.WriteString("HTTP status of an app → gRPC code\n")
	for _, s := range []int{0, 100, 199, 200, 204, 299, 300, 302, 400, 401, 402, 403, 404, 405, 408, 409, 412, 413, 418, 429, 499, 500, 501, 502, 503, 504, 505, 599, 600} {
		fmt.Fprintf(&b, "  %d → %v\n", s, apierr.GRPCFromHTTP(s))
	}
	golden(t, "statuses.txt", b.String())
}

func TestFromHTTPApp(t *testing.T) {
	long := bytes.Repeat([]byte("é"), 40) // 80 bytes; the 63rd is the first half of a letter
	st := apierr.FromHTTPApp(404, "Not Found", long)
	if st.Code() != codes.NotFound || st.Message() != "Not Found" || len(st.Details()) != 1 {
		t.Fatalf("got %v with %d details", st, len(st.Details()))
	}
	info, ok := st.Details()[0].(*errdetails.ErrorInfo)
	if !ok || info.Reason != "Not Found" || info.Domain != "dapr.io" || info.Metadata["http.code"] != "404" {
		t.Fatalf("got %v", st.Details()[0])
	}
	if got := info.Metadata["http.error_message"]; got != strings.Repeat("é", 31) && got != strings.Repeat("é", 31)+"\uFFFD" {
		t.Errorf("the body's beginning is %q", got)
	}
	// Any bytes an app answers with must survive the way to its caller.
	for _, body := range [][]byte{nil, {0xff, 0xfe}, []byte("plain")} {
		if st := apierr.FromHTTPApp(500, "Internal Server Error", body); len(st.Details()) != 1 {
			t.Errorf("body %q: the detail is lost", body)
		}
	}
}

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "plain", `"\`, "\n\r\t\b\f\x00\x1f", "<script>&", "\u2028\u2029", "é😀", "\xff\xfe", "a\xc3", "\x7f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := apierr.AppendString([]byte("x"), s)
		if got[0] != 'x' {
			t.Fatal("what was there is gone")
		}
		want, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var a, b string
		if err := json.Unmarshal(got[1:], &a); err != nil {
			t.Fatalf("%q gives %q: %v", s, got, err)
		}
		if err := json.Unmarshal(want, &b); err != nil {
			t.Fatal(err)
		}
		if a != b {
			t.Fatalf("%q is read back as %q, encoding/json reads %q", s, a, b)
		}
		if i := bytes.IndexFunc(got[1:], func(r rune) bool { return r < 0x20 || r == '<' || r == '>' || r == '&' || r == '\u2028' }); i >= 0 {
			t.Fatalf("%q has a raw %q", got, got[1+i])
		}
	})
}
