package binding

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// Sink gives events to an app that does not take them as HTTP requests.
type Sink interface {
	// Inputs are the bindings whose events the app takes. An app without the callback takes none.
	Inputs(ctx context.Context) ([]string, error)
	// BindingEvent hands over one event and returns what the app says. An error means that it has
	// not handled it.
	BindingEvent(ctx context.Context, e *Event) (Reply, error)
}

// Event is one event of an input binding.
type Event struct {
	Binding  string
	Data     []byte
	Metadata map[string]string
	Trace    Trace
}

// Reply is what the app says to an event it has handled.
type Reply struct {
	Data []byte
	// To are output bindings that get Data, if that is JSON: all at once with Parallel, else one
	// after the other as far as they succeed.
	To       []string
	Parallel bool
}

// Trace is a trace context: headers, and the binary form of gRPC. Empty is none.
type Trace struct{ Parent, State, Bin string }

// Tracing starts the spans of events.
type Tracing interface {
	// BindingEvent starts the span of an attempt to give the app an event, below the event's own
	// context. It returns what the app is to see. The span may be nil.
	BindingEvent(ctx context.Context, binding string, of Trace) (Trace, TraceSpan)
}

// TraceSpan is a started span.
type TraceSpan interface{ End(err error) }

// StatusError is the cause of a failure when the app answered with another status than 200.
type StatusError struct{ Status int }

func (e *StatusError) Error() string { return fmt.Sprintf("the app answered with status %d", e.Status) }

// refusal is a status that policies look at. To them one below 400 would be a success, so those
// are an error without a status.
type refusal struct{ StatusError }

// CallStatus implements call.Answered.
func (r *refusal) CallStatus() call.Status { return call.HTTPStatus(r.Status) }

func (r *refusal) Unwrap() error { return &r.StatusError }

// delivery gives a component's events to the app.
type delivery struct {
	s      *Service
	h      *catalog.Handle[block.Component]
	target *call.Target
	route  string
}

// deliver sees one event through: the app's answer under the inbound policy, then what the answer
// asks for. An error sends the event back to its component.
func (d *delivery) deliver(ctx context.Context, e block.BindingEvent) ([]byte, error) {
	start := time.Now()
	var reply Reply
	desc := call.Desc{Op: "event", Safety: call.Idempotent, Attrs: attrs(e.Metadata)}
	_, err := call.Do(ctx, d.target, desc, func(ctx context.Context) (_ struct{}, err error) {
		reply, err = d.once(ctx, e)
		return struct{}{}, err
	})
	// To policy only 200 is a success, as in Dapr; in the end every 2xx is.
	if se := (*StatusError)(nil); errors.As(err, &se) && fine(se.Status) {
		err = nil
	}
	if d.s.o.Recorder != nil {
		d.s.o.Recorder.InputBinding(d.h.Name, err == nil, time.Since(start))
	}
	if err != nil {
		if ctx.Err() == nil {
			d.s.o.Log.Error("the app did not handle an event of an input binding", "component", d.h.Name, "error", err)
		}
		return nil, err
	}
	if len(reply.To) > 0 {
		d.forward(ctx, reply)
	}
	return reply.Data, nil
}

func fine(status int) bool { return status >= 200 && status <= 299 }

// once makes one attempt.
func (d *delivery) once(ctx context.Context, e block.BindingEvent) (reply Reply, err error) {
	trace := Trace{Parent: e.Metadata["traceparent"], State: e.Metadata["tracestate"]}
	if t := d.s.o.Tracing; t != nil {
		var span TraceSpan
		if trace, span = t.BindingEvent(ctx, d.h.Name, trace); span != nil {
			defer func() { span.End(err) }()
		}
	}
	if d.s.o.Sink == nil {
		return d.http(ctx, e, trace)
	}
	leave, err := d.s.o.App.Enter(ctx)
	if err != nil {
		return Reply{}, err
	}
	defer leave()
	return d.s.o.Sink.BindingEvent(ctx, &Event{Binding: d.h.Name, Data: e.Data, Metadata: e.Metadata, Trace: trace})
}

// http posts an event. The reply has the answer's body, of any 2xx.
func (d *delivery) http(ctx context.Context, e block.BindingEvent, trace Trace) (Reply, error) {
	req := post("POST", d.route, e.Data)
	req.Header = make(call.Fields, 0, len(e.Metadata)+3)
	for name, value := range e.Metadata {
		if mayForward(name, value) {
			req.Header.Add(name, value)
		}
	}
	if trace.Parent != "" {
		req.Header.Add("traceparent", trace.Parent)
	}
	if trace.State != "" {
		req.Header.Add("tracestate", trace.State)
	}
	status, body, err := d.s.exchange(ctx, req)
	switch {
	case err != nil:
		return Reply{}, err
	case status == 200:
		return Reply{Data: body}, nil
	}
	failed := &fault.Error{Op: "binding.deliver", Code: fault.Unavailable, Sent: fault.SentMaybe, Err: &StatusError{status}}
	if status >= 400 {
		failed.Err = &refusal{StatusError{status}}
	}
	return Reply{Data: body}, failed
}

// post starts a request to a route of the app, which may lack the leading slash and may carry a
// query.
func post(verb, route string, body []byte) *call.Request {
	path, query, _ := strings.Cut(strings.TrimPrefix(route, "/"), "?")
	if plain, err := url.PathUnescape(path); err == nil {
		path = plain
	}
	return &call.Request{Protocol: call.HTTP, Verb: verb, Path: path, Query: query, Type: "application/json", Data: body, Length: int64(len(body))}
}

// maxAnswer bounds what is read of an app's answer; it is the default size of a body.
const maxAnswer = 4 << 20

// exchange sends a request to the app and reads the answer. One that is too long is not handed on;
// the status says whether the event was handled.
func (s *Service) exchange(ctx context.Context, req *call.Request) (status int, body []byte, err error) {
	resp, err := s.o.App.Invoke(ctx, req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Close()
	if resp.Stream == nil {
		return resp.Status, bytes.Clone(resp.Data), nil // the answer's buffer is another's once it is closed
	}
	body, err = io.ReadAll(io.LimitReader(resp.Stream, maxAnswer+1))
	if err != nil {
		return 0, nil, fault.Wrap("binding.deliver", fault.Unavailable, fmt.Errorf("reading the app's answer: %w", err))
	}
	if len(body) > maxAnswer {
		s.o.Log.Warn("the app's answer to an event is too long and is not handed to the binding", "path", req.Path, "limit", maxAnswer)
		body = nil
	}
	return resp.Status, body, nil
}

// ownHeaders are set by us or by the app channel. Who causes an event must not pretend to be them,
// nor change how the request is framed.
var ownHeaders = map[string]bool{
	"traceparent": true, "tracestate": true, "content-type": true, "content-length": true, "content-encoding": true,
	"transfer-encoding": true, "connection": true, "keep-alive": true, "te": true, "trailer": true, "upgrade": true, "expect": true,
	"host": true, "proxy-authenticate": true, "proxy-authorization": true, "proxy-connection": true,
}

func mayForward(name, value string) bool {
	lower := strings.ToLower(name)
	return httpguts.ValidHeaderFieldName(name) && httpguts.ValidHeaderFieldValue(value) && !ownHeaders[lower] && !strings.HasPrefix(lower, "dapr-")
}

// forward gives the app's data to the output bindings that its reply names. The event is handled
// all the same: failures are told.
func (d *delivery) forward(ctx context.Context, reply Reply) {
	if !json.Valid(reply.Data) {
		d.s.o.Log.Error("the app's reply to an event names output bindings, and its data are no JSON", "component", d.h.Name, "to", reply.To)
		return
	}
	send := func(to string) error {
		_, err := d.s.Invoke(ctx, Request{Binding: to, Operation: "create", Data: reply.Data})
		if err != nil {
			d.s.o.Log.Error("the app's reply to an event could not be passed on", "component", d.h.Name, "to", to, "error", err)
		}
		return err
	}
	if !reply.Parallel {
		for _, to := range reply.To {
			if send(to) != nil {
				return
			}
		}
		return
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	for _, to := range reply.To {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			_ = send(to) // told already
		})
	}
	all.Wait()
}

// maxParallel bounds what one reply may start at once.
const maxParallel = 64
