package httpapi

import (
	"bytes"
	"context"
	"encoding/json"

	"golang.org/x/net/http/httpguts"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/call"
)

// Binding is the bindings service.
type Binding interface {
	Invoke(ctx context.Context, r binding.Request) (*block.BindingAnswer, error)
}

// bindingInvoke is POST /v1.0/bindings/<name>.
func (s *Server) bindingInvoke(r *Request, a args) {
	var in struct {
		Data      json.RawMessage   `json:"data"`
		Metadata  map[string]string `json:"metadata"`
		Operation string            `json:"operation"`
	}
	body, err := r.Body()
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	if err != nil {
		r.Fail(apierr.MalformedRequest.Because("failed deserializing HTTP body: " + err.Error()))
		return
	}
	answer, err := s.o.Binding.Invoke(r.Context(), binding.Request{Binding: a[0], Operation: in.Operation, Data: jsonData(in.Data), Metadata: r.bindingMetadata(in.Metadata)})
	var fields call.Fields
	if answer != nil {
		for name, value := range answer.Metadata {
			if name = "metadata." + name; headable(name, value) {
				fields.Add(name, value)
			}
		}
	}
	switch {
	case err != nil:
		r.added = append(r.added, fields...)
		r.Fail(apierr.Binding(a[0], err))
	case answer == nil:
		r.Empty()
	default:
		r.Respond(200, append(fields, jsonType...), answer.Data)
	}
}

// jsonData is a value as bindings get it: as it was written, without white space; a missing one is
// null.
func jsonData(raw json.RawMessage) []byte {
	if raw == nil {
		return []byte("null")
	}
	var b bytes.Buffer
	_ = json.Compact(&b, raw) // it has been parsed
	return b.Bytes()
}

// bindingMetadata are a request's metadata: the body's, those of the query over them, and the trace
// context over all.
func (r *Request) bindingMetadata(body map[string]string) map[string]string {
	query, trace, bag := r.Metadata(), r.trace(), r.Header.Get("baggage")
	if len(query) == 0 && trace.Parent == "" && trace.State == "" && bag == "" {
		return body
	}
	if body == nil {
		body = map[string]string{}
	}
	for k, v := range query {
		body[k] = v
	}
	for name, value := range map[string]string{"traceparent": trace.Parent, "tracestate": trace.State, "baggage": bag} {
		if value != "" {
			body[name] = value
		}
	}
	return body
}

// headable tells whether a header can carry the name and the value.
func headable(name, value string) bool {
	return httpguts.ValidHeaderFieldName(name) && httpguts.ValidHeaderFieldValue(value)
}
