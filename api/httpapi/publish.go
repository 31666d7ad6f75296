package httpapi

import (
	"context"
	"strings"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// PubSub is the publishing half of the messaging service.
type PubSub interface {
	Check(pubsub, topic string) error
	Publish(ctx context.Context, r pubsub.PublishRequest) error
	BulkPublish(ctx context.Context, r pubsub.BulkRequest) ([]pubsub.FailedEntry, error)
}

// publish is POST /v1.0/publish/<pubsub>/<topic>; the topic may have slashes.
func (s *Server) publish(r *Request, a args) {
	name, topic := a[0], strings.TrimSuffix(a[1], "/")
	metadata := r.Metadata()
	err := s.o.PubSub.Check(name, topic)
	if err == nil {
		var body []byte
		if body, err = r.Body(); err == nil {
			err = s.o.PubSub.Publish(r.Context(), pubsub.PublishRequest{PubSub: name, Topic: topic, Data: body,
				ContentType: r.Header.Get("Content-Type"), Metadata: metadata, Trace: r.trace()})
		}
	}
	if err != nil {
		r.Fail(apierr.Publish(name, topic, s.o.AppID, metadata, err))
		return
	}
	r.Empty()
}

// bulkPublish is POST /v1.0/publish/bulk/<pubsub>/<topic>.
func (s *Server) bulkPublish(r *Request, a args) {
	name, topic := a[0], strings.TrimSuffix(a[1], "/")
	metadata := r.Metadata()
	fail := func(err error) { r.Fail(apierr.Publish(name, topic, s.o.AppID, metadata, err)) }
	if err := s.o.PubSub.Check(name, topic); err != nil {
		fail(err)
		return
	}
	body, err := r.Body()
	if err != nil {
		fail(err)
		return
	}
	entries, err := pubsub.ParseBulk(body)
	if err != nil {
		fail(err)
		return
	}
	failed, err := s.o.PubSub.BulkPublish(r.Context(), pubsub.BulkRequest{PubSub: name, Topic: topic, Entries: entries, Metadata: metadata, Trace: r.trace()})
	switch {
	case err == nil:
		r.Empty()
	case len(failed) == 0:
		fail(err)
	default:
		r.failBulk(failed, err)
	}
}

// failBulk names the entries that were not published.
func (r *Request) failBulk(failed []pubsub.FailedEntry, err error) {
	b := []byte(`{"failedEntries":[`)
	for i, f := range failed {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"entryId":`...)
		b = apierr.AppendString(b, f.ID)
		b = append(b, `,"error":`...)
		b = apierr.AppendString(b, f.Err.Error())
		b = append(b, '}')
	}
	b = append(b, `],"errorCode":"ERR_PUBSUB_PUBLISH_MESSAGE"}`...)
	fields := call.Fields{jsonType[0], {Name: "metadata.responseData", Value: string(b)}, {Name: "metadata.error", Value: "api error: code = Internal desc = " + err.Error()}}
	r.Respond(500, fields, b)
}

// trace is the request's trace context, as headers.
func (r *Request) trace() pubsub.Trace {
	if r.span != nil {
		if t, ok := r.span.(interface{ Headers() (parent, state string) }); ok {
			parent, state := t.Headers()
			return pubsub.Trace{Parent: parent, State: state}
		}
	}
	return pubsub.Trace{Parent: r.Header.Get("traceparent"), State: r.Header.Get("tracestate")}
}
