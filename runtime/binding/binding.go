// Package binding is the deciding half of the bindings block: it runs what the app asks of output
// bindings, and brings the app what input bindings read.
//
// It leaves to the edges: parsing requests, choosing status codes, the app's protocol (HTTP events
// go through app.App as ordinary requests built here; a gRPC app is a Sink). It leaves to the
// backends: what an operation does, where events come from.
//
// Start at Service.Invoke for output; readers.go is the life of input bindings, deliver.go one
// event.
//
// # Errors
//
//	NotFound,    fault.NoSuchComponent  no output binding of the name
//	Invalid,     NoOperation            the request names no operation
//	Unsupported, fault.BadOperation     the binding does not have it
//
// Others are what the component or policy said. An answer may come with one.
package binding

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
)

// NoOperation is the reason of a request without an operation.
const NoOperation fault.Reason = "no_operation"

// Recorder counts operations and events. Requests refused before the component are not counted.
type Recorder interface {
	OutputBinding(component, operation string, ok bool, took time.Duration)
	InputBinding(component string, ok bool, took time.Duration)
}

// Options make a Service. The zero value has no app, so nothing is read.
type Options struct {
	Log      *slog.Logger
	Recorder Recorder
	Tracing  Tracing // may be nil
	App      *app.App
	// Sink takes events in the app's own protocol; nil when they go as HTTP requests.
	Sink Sink
	// Inbound makes the policy target of events from a component.
	Inbound func(component string) *call.Target
	// AskTimeout bounds the question whether the app wants a binding; 0 means 3 s.
	AskTimeout time.Duration
}

// Service serves the bindings block. It is safe for concurrent use.
type Service struct {
	stores *catalog.Store[block.Component]
	caller call.Caller
	o      Options
	readers
}

// New makes the service. Nothing is read before Resume. Drain ends it.
func New(stores *catalog.Store[block.Component], self identity.Self, o Options) *Service {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.AskTimeout <= 0 {
		o.AskTimeout = 3 * time.Second
	}
	if o.Inbound == nil {
		o.Inbound = func(name string) *call.Target {
			return &call.Target{Kind: call.Binding, Direction: call.Inbound, Name: name, Namespace: self.Namespace}
		}
	}
	s := &Service{stores: stores, o: o, caller: call.Caller{App: self.App, Namespace: self.Namespace, Proven: true}}
	s.readers.init()
	return s
}

// Request is an operation on an output binding.
type Request struct {
	Binding, Operation string
	Data               []byte
	Metadata           map[string]string
}

// Invoke does one operation. A nil answer without an error means that there is nothing to say.
func (s *Service) Invoke(ctx context.Context, r Request) (*block.BindingAnswer, error) {
	h, err := s.output(&r)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	in := block.BindingRequest{Operation: r.Operation, Data: r.Data, Metadata: r.Metadata}
	// What an operation does is the product's own affair: none may be repeated blindly.
	desc := call.Desc{Op: r.Operation, Safety: call.Unsafe, Attrs: attrs(r.Metadata), Caller: s.caller}
	answer, err := catalog.Do(ctx, h, desc, func(ctx context.Context, c block.Component) (*block.BindingAnswer, error) {
		return invoke(ctx, h.Name, c, in)
	}, func() func(context.Context, block.Component) error {
		copied := block.BindingRequest{Operation: strings.Clone(r.Operation), Data: bytes.Clone(r.Data), Metadata: maps.Clone(r.Metadata)}
		return func(ctx context.Context, c block.Component) error {
			_, err := invoke(ctx, h.Name, c, copied)
			return err
		}
	})
	if s.o.Recorder != nil {
		s.o.Recorder.OutputBinding(h.Name, r.Operation, err == nil, time.Since(start))
	}
	return answer, err
}

func invoke(ctx context.Context, name string, c block.Component, r block.BindingRequest) (*block.BindingAnswer, error) {
	comp, ok := c.(block.Output)
	if !ok { // policy has sent the call to another component than the one that was judged
		return nil, unknown(name, ": policy sends its calls to an input binding")
	}
	return comp.Invoke(ctx, r)
}

// output finds the component of a request and judges the operation. The texts are Dapr's.
func (s *Service) output(r *Request) (*catalog.Handle[block.Component], error) {
	const op fault.Op = "binding.Invoke"
	h, err := s.stores.Lookup(r.Binding)
	switch {
	case err != nil:
		return nil, unknown(r.Binding, "")
	case len(h.Operations) == 0:
		return nil, unknown(r.Binding, ": the component of that name is an input binding")
	case !used(h.Info, "output"):
		return nil, unknown(r.Binding, ": the direction of the component of that name leaves output out")
	case r.Operation == "":
		return nil, fault.New(op, fault.Invalid, "operation field is missing from request").With(NoOperation)
	case !slices.Contains(h.Operations, r.Operation):
		return nil, fault.New(op, fault.Unsupported, "binding %s does not support operation %s. supported operations:%s",
			r.Binding, r.Operation, strings.Join(h.Operations, " ")).With(fault.BadOperation)
	}
	return h, nil
}

func unknown(name, why string) error {
	return fault.New("binding.Invoke", fault.NotFound, "couldn't find output binding %s%s", name, why).With(fault.NoSuchComponent).WithSent(fault.SentNever)
}

// attrs shows a request's metadata to rules.
type attrs map[string]string

// Lookup implements call.Attrs.
func (a attrs) Lookup(name string) (string, bool) {
	if v, ok := a[name]; ok {
		return v, true
	}
	for k, v := range a {
		if strings.EqualFold(k, name) {
			return v, true
		}
	}
	return "", false
}

// The settings of a component that this service reads.
const (
	directionSetting = "direction"
	routeSetting     = "route"
)

// CheckDirection judges a component's direction setting, so that a misspelt word, which would leave
// the component without any use, is reported at start.
func CheckDirection(info catalog.Info) error {
	for _, d := range directions(info) {
		if d != "input" && d != "output" {
			return fault.New("binding.direction", fault.Invalid, "direction: %q is none; want input, output, or both with a comma between", d)
		}
	}
	return nil
}

// directions are the words of the setting; none when it is not given.
func directions(info catalog.Info) []string {
	var out []string
	for d := range strings.SplitSeq(info.Raw[directionSetting], ",") {
		if d = strings.ToLower(strings.TrimSpace(d)); d != "" {
			out = append(out, d)
		}
	}
	return out
}

// used tells whether a component is to be used in a direction.
func used(info catalog.Info, direction string) bool {
	all := directions(info)
	return len(all) == 0 || slices.Contains(all, direction)
}

// Directions are those in which a component is used, of what it offers.
func Directions(c block.Component, info catalog.Info) (input, output bool) {
	_, in := c.(block.Input)
	_, out := c.(block.Output)
	return in && used(info, "input"), out && used(info, "output")
}
