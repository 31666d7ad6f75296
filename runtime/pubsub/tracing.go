package pubsub

import (
	"context"

	"github.com/mecha-project/mecha/components/fault"
)

// Tracing starts the spans of messages; those of requests are the edges'. It must be safe for
// concurrent use.
type Tracing interface {
	// Entry starts the span of one message of a bulk publish, below the publish's own context.
	// It returns the message's.
	Entry(ctx context.Context, topic string, of Trace) (Trace, TraceSpan)
	// Delivery starts the span of an attempt to give the app an event of topic, below the
	// event's own context. It returns what the app is to see.
	Delivery(ctx context.Context, topic string, of Trace) (Trace, TraceSpan)
}

var errRetry = fault.New("pubsub.deliver", fault.Unavailable, "the app asked to send the event again")

// TraceSpan is a started span. A nil one records nothing.
type TraceSpan interface{ End(err error) }

// delivery starts the span of an attempt to deliver a. An event without trace fields has no
// place in any trace, so it gets no span.
func (s *Service) delivery(ctx context.Context, topic string, a *arrival) (Trace, TraceSpan) {
	of := Trace{Parent: a.traceParent}
	if s.opts.Tracing == nil || !a.hasTrace {
		return of, nil
	}
	return s.opts.Tracing.Delivery(ctx, topic, of)
}

// traceBatch starts a span for every message of a batch, which end together with end. The app
// finds each event's trace context in the event itself: a batch has no header for it.
func (s *Service) traceBatch(ctx context.Context, topic string, items []*item) (end func([]Answer, error)) {
	if s.opts.Tracing == nil {
		return func([]Answer, error) {}
	}
	spans := make([]TraceSpan, len(items))
	for i, it := range items {
		_, spans[i] = s.delivery(ctx, topic, it.a)
	}
	return func(answers []Answer, err error) {
		for i, span := range spans {
			if span == nil {
				continue
			}
			outcome := err
			if err == nil && i < len(answers) && answers[i] == Retry {
				outcome = errRetry
			}
			span.End(outcome)
		}
	}
}

// traceEntries gives every entry of a bulk publish a context of its own. end ends their spans.
func (s *Service) traceEntries(ctx context.Context, r *BulkRequest) (end func(errs []error, err error)) {
	if s.opts.Tracing == nil {
		return func([]error, error) {}
	}
	own := make([]BulkEntry, len(r.Entries)) // the caller's stay as they are
	copy(own, r.Entries)
	r.Entries = own
	spans := make([]TraceSpan, len(own))
	for i := range own {
		of := own[i].Trace
		if of == (Trace{}) {
			of = r.Trace
		}
		own[i].Trace, spans[i] = s.opts.Tracing.Entry(ctx, r.Topic, of)
	}
	return func(errs []error, err error) {
		for i, span := range spans {
			if span == nil {
				continue
			}
			outcome := err
			if errs != nil {
				outcome = errs[i]
			}
			span.End(outcome)
		}
	}
}
