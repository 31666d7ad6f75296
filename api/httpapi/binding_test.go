package httpapi_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/call"
)

// bindingService keeps what it was asked and answers as told.
type bindingService struct {
	asked  string
	answer *block.BindingAnswer
	err    error
}

func (b *bindingService) Invoke(_ context.Context, r binding.Request) (*block.BindingAnswer, error) {
	b.asked = fmt.Sprintf("%s %s %s %v", r.Binding, r.Operation, r.Data, r.Metadata)
	return b.answer, b.err
}

func TestBinding(t *testing.T) {
	for name, tt := range map[string]struct {
		target, body string
		headers      []string
		asked        string
	}{
		"an object":          {"/v1.0/bindings/b", `{"operation":"create","data":{"b": 1, "a": [ "<" ]},"metadata":{"k":"v"}}`, nil, `b create {"b":1,"a":["<"]} map[k:v]`},
		"a string":           {"/v1.0/bindings/b", `{"operation":"create","data":"te xt"}`, nil, `b create "te xt" map[]`},
		"null":               {"/v1.0/bindings/b", `{"operation":"get","data":null}`, nil, "b get null map[]"},
		"nothing":            {"/v1.0/bindings/a%2Fb", `{}`, nil, "a/b  null map[]"},
		"query over body":    {"/v1.0/bindings/b?metadata.k=q&metadata.n=1", `{"metadata":{"k":"v","o":"2"}}`, nil, "b  null map[k:q n:1 o:2]"},
		"query alone":        {"/v1.0/bindings/b?metadata.k=q", `{}`, nil, "b  null map[k:q]"},
		"trace over all":     {"/v1.0/bindings/b", `{"metadata":{"traceparent":"forged"}}`, []string{"traceparent", "tp", "tracestate", "ts", "baggage", "x=y"}, "b  null map[baggage:x=y traceparent:tp tracestate:ts]"},
		"unknown fields":     {"/v1.0/bindings/b", `{"operation":"get","more":1}`, nil, "b get null map[]"},
		"names without case": {"/v1.0/bindings/b", `{"Operation":"get"}`, nil, "b get null map[]"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit()
			for _, verb := range []string{"POST", "PUT"} {
				if x := k.do(verb, tt.target, tt.body, tt.headers...); x.Status != 204 || k.bind.asked != tt.asked {
					t.Errorf("%s: %d %s, asked %s; want 204, %s", verb, x.Status, x.Out, k.bind.asked, tt.asked)
				}
			}
		})
	}
	for _, body := range []string{"", "[", "[]", `"x"`, `{"operation":1}`, `{"metadata":{"k":1}}`} {
		k := newKit()
		x := k.do("POST", "/v1.0/bindings/b", body)
		if x.Status != 400 || !strings.Contains(string(x.Out), `"errorCode":"ERR_MALFORMED_REQUEST","message":"failed deserializing HTTP body: `) || k.bind.asked != "" {
			t.Errorf("body %q: %d %s, asked %s", body, x.Status, x.Out, k.bind.asked)
		}
	}
}

func TestBindingAnswers(t *testing.T) {
	type answer struct {
		Status int
		Body   string
		Fields call.Fields
	}
	md := map[string]string{"statusCode": "404", "Some-Header": "a, b", "two\nlines": "x", "value": "x\r\ny: z"}
	good := call.Fields{{Name: "metadata.statusCode", Value: "404"}, {Name: "metadata.Some-Header", Value: "a, b"}, {Name: "Content-Type", Value: "application/json"}}
	plain := good[2:]
	const said = `{"errorCode":"ERR_INVOKE_OUTPUT_BINDING","message":"error invoking output binding b: `
	const details = `","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"ERR_INVOKE_OUTPUT_BINDING","domain":"dapr.io","metadata":null}]}`
	for name, tt := range map[string]struct {
		answer *block.BindingAnswer
		err    error
		want   answer
	}{
		"nothing":            {nil, nil, answer{204, "", nil}},
		"nothing in it":      {&block.BindingAnswer{}, nil, answer{200, "", plain}},
		"bytes and metadata": {&block.BindingAnswer{Data: []byte("raw\xff"), Metadata: md}, nil, answer{200, "raw\xff", good}},
		"unknown":            {nil, fault.New("op", fault.NotFound, "couldn't find output binding b").With(fault.NoSuchComponent), answer{500, said + "couldn't find output binding b" + details, plain}},
		"failed":             {nil, fault.New("op", fault.Unavailable, "down"), answer{500, said + "down" + details, plain}},
		"failed and answers": {&block.BindingAnswer{Data: []byte("lost"), Metadata: maps.Clone(md)}, fault.New("op", fault.NotFound, "received status code 404"),
			answer{500, said + "received status code 404" + details, good}},
		"refused by policy": {nil, fault.New("op", fault.Exhausted, "too many").With(fault.PolicyRejected).WithRule("p/limit"),
			answer{429, `{"errorCode":"ERR_POLICY_REJECTED","message":"error invoking output binding b: too many","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"POLICY_REJECTED","domain":"dapr.io","metadata":{"policy":"p/limit"}}]}`,
				call.Fields{{Name: "Content-Type", Value: "application/json"}, {Name: "x-mecha-policy", Value: "p/limit"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit()
			k.bind.answer, k.bind.err = tt.answer, tt.err
			x := k.do("POST", "/v1.0/bindings/b", `{"operation":"get"}`)
			byName := cmpopts.SortSlices(func(a, b call.Field) bool { return a.Name < b.Name })
			if d := cmp.Diff(tt.want, answer{x.Status, string(x.Out), x.Answer}, byName, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}
