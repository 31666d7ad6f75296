package main

import (
	"context"

	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

var (
	_ pubsub.Tracing  = (*tracing)(nil)
	_ binding.Tracing = (*tracing)(nil)
)

// Entry implements pubsub.Tracing: each message of a bulk publish is a producer of its own.
func (t *tracing) Entry(_ context.Context, topic string, of pubsub.Trace) (pubsub.Trace, pubsub.TraceSpan) {
	return t.message(topic, of, telemetry.Producer)
}

// Delivery implements pubsub.Tracing.
func (t *tracing) Delivery(_ context.Context, topic string, of pubsub.Trace) (pubsub.Trace, pubsub.TraceSpan) {
	return t.message(topic, of, telemetry.Consumer)
}

// BindingEvent implements binding.Tracing.
func (t *tracing) BindingEvent(_ context.Context, name string, of binding.Trace) (binding.Trace, binding.TraceSpan) {
	parent, ok := telemetry.ParseTrace(of.Parent, of.State)
	if t.tracer.Mode() != telemetry.On {
		if ok {
			of.Bin = string(parent.AppendTraceBin(nil))
		}
		return of, nil
	}
	_, s := t.tracer.Start(context.Background(), parent, telemetry.BindingName(name), telemetry.Consumer)
	c := s.Context()
	out := binding.Trace{Parent: c.Traceparent(), State: c.State, Bin: string(c.AppendTraceBin(nil))}
	if !s.Recording() {
		return out, nil
	}
	return out, s
}

// message starts the span of one message below the context it carries.
func (t *tracing) message(topic string, of pubsub.Trace, kind telemetry.SpanKind) (pubsub.Trace, pubsub.TraceSpan) {
	parent, ok := telemetry.ParseTrace(of.Parent, of.State)
	if t.tracer.Mode() != telemetry.On {
		if ok && kind == telemetry.Consumer {
			of.Bin = string(parent.AppendTraceBin(nil))
		}
		return of, nil
	}
	_, s := t.tracer.Start(context.Background(), parent, "", kind)
	c := s.Context()
	out := pubsub.Trace{Parent: c.Traceparent(), State: c.State}
	if kind == telemetry.Consumer {
		out.Bin = string(c.AppendTraceBin(nil))
	}
	if !s.Recording() {
		return out, nil
	}
	s.SetName(telemetry.PubSubName(topic))
	describeTopic(s, topic)
	return out, s
}
