package pubsub

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// BulkEntry is one message of a bulk publish.
type BulkEntry struct {
	ID          string // the caller's, to tell which entries failed
	Event       []byte
	ContentType string
	Metadata    map[string]string
	Trace       Trace // the entry's own child context; empty means the request's
}

// BulkRequest is a bulk publish.
type BulkRequest struct {
	PubSub, Topic string
	Entries       []BulkEntry
	// Metadata of the request decide about rawPayload, and complete an entry's metadata, the
	// entry winning, but only if the entry has any: so it is in Dapr.
	Metadata map[string]string
	Trace    Trace
}

// FailedEntry is an entry the broker did not accept.
type FailedEntry struct {
	ID  string
	Err error
}

// BulkPublish publishes entries in order. It returns nothing when the broker accepted all;
// else the failed entries and the first of their errors. An error without failed entries means
// that nothing was published: the request was refused.
func (s *Service) BulkPublish(ctx context.Context, r BulkRequest) ([]FailedEntry, error) {
	h, err := s.lookup(r.PubSub, r.Topic)
	if err != nil {
		return nil, err
	}
	raw, err := rawPayload(r.Metadata)
	if err != nil {
		return nil, err
	}
	if err := checkEntries(r.Entries); err != nil {
		return nil, err
	}
	rules := s.rulesOf(h)
	var errs []error // outcome of the last attempt per entry; nil before the first
	if !raw {
		end := s.traceEntries(ctx, &r)
		defer func() { end(errs, err) }()
	}
	msgs := make([]block.Message, len(r.Entries))
	for i := range r.Entries {
		if msgs[i], err = s.message(rules, r.single(i), raw); err != nil {
			return nil, err
		}
	}
	if err = s.checkPublish(rules, r.Topic); err != nil {
		return nil, err
	}
	if len(msgs) == 0 {
		return nil, nil
	}
	start := time.Now()
	errs = make([]error, len(msgs))
	pending, err := s.appendAll(ctx, h, r.Topic, msgs, errs)
	if s.opts.Recorder != nil {
		s.opts.Recorder.PubSubBulkEgress(h.Name, r.Topic, err == nil, time.Since(start))
	}
	if err == nil {
		return nil, nil
	}
	return r.failed(pending, errs, err), err
}

// appendAll publishes messages as one call, or, where policy divides the broker by key, as one
// call for each part. It returns the indexes of those that were not published.
func (s *Service) appendAll(ctx context.Context, h *catalog.Handle[block.PubSub], topic string, msgs []block.Message, errs []error) (pending []int, first error) {
	desc := s.desc("bulkPublish", topic, msgs[0].Key)
	parts := catalog.Parts(h, desc, len(msgs), func(i int) string { return msgs[i].Key })
	if len(parts) < 2 {
		parts = [][]int{make([]int, len(msgs))}
		for i := range msgs {
			parts[0][i] = i
		}
	}
	for _, part := range parts {
		left := part
		_, err := catalog.Do(ctx, h, s.desc("bulkPublish", topic, msgs[part[0]].Key), func(ctx context.Context, broker block.PubSub) (struct{}, error) {
			var first error
			left, first = s.appendPending(ctx, broker, msgs, left, errs)
			return struct{}{}, first
		}, func() func(context.Context, block.PubSub) error {
			some := make([]block.Message, len(part))
			for i, at := range part {
				some[i] = msgs[at]
			}
			return s.shadow(some)
		})
		if err != nil {
			pending = append(pending, left...)
			if first == nil {
				first = err
			}
		}
	}
	slices.Sort(pending)
	return pending, first
}

// appendPending publishes the pending messages and returns those still to be published with
// the first error. An attempt after the first repeats only what failed.
func (s *Service) appendPending(ctx context.Context, broker block.PubSub, msgs []block.Message, pending []int, errs []error) ([]int, error) {
	batch := msgs
	if len(pending) < len(msgs) {
		batch = make([]block.Message, len(pending))
		for i, at := range pending {
			batch[i] = msgs[at]
		}
	}
	got := s.put(ctx, broker, batch)
	if got != nil && len(got) != len(batch) {
		return pending, fault.New("pubsub.BulkPublish", fault.Internal, "the broker answered %d results to %d messages", len(got), len(batch))
	}
	var left []int
	var first error
	for i, err := range got {
		errs[pending[i]] = err
		if err == nil {
			continue
		}
		left = append(left, pending[i])
		if first == nil {
			first = err
		}
	}
	return left, first
}

// failed lists the entries left; those without an error of their own were never tried and
// carry the call's.
func (r *BulkRequest) failed(pending []int, errs []error, err error) []FailedEntry {
	out := make([]FailedEntry, len(pending))
	for i, at := range pending {
		out[i] = FailedEntry{r.Entries[at].ID, errs[at]}
		if errs[at] == nil {
			out[i].Err = err
		}
	}
	return out
}

// single is entry i as a request of its own.
func (r *BulkRequest) single(i int) *PublishRequest {
	e := &r.Entries[i]
	out := &PublishRequest{PubSub: r.PubSub, Topic: r.Topic, Data: e.Event, ContentType: e.ContentType,
		Metadata: e.Metadata, Trace: e.Trace}
	if e.Trace == (Trace{}) {
		out.Trace = r.Trace
	}
	if len(e.Metadata) > 0 && len(r.Metadata) > 0 {
		out.Metadata = make(map[string]string, len(e.Metadata)+len(r.Metadata))
		for k, v := range r.Metadata {
			out.Metadata[k] = v
		}
		for k, v := range e.Metadata {
			out.Metadata[k] = v
		}
	}
	return out
}

func checkEntries(entries []BulkEntry) error {
	seen := make(map[string]struct{}, len(entries))
	for i := range entries {
		id := entries[i].ID
		if id == "" {
			return fault.New("pubsub.BulkPublish", fault.Invalid, "entry %d has no entryId", i).With(fault.BadEntries)
		}
		if _, dup := seen[id]; dup {
			return fault.New("pubsub.BulkPublish", fault.Invalid, "entryId %s is used more than once", id).With(fault.BadEntries)
		}
		seen[id] = struct{}{}
	}
	return nil
}

// ParseBulk reads the HTTP body of a bulk publish:
// [{"entryId", "event", "contentType", "metadata"}]. What event may be depends on contentType.
func ParseBulk(body []byte) ([]BulkEntry, error) {
	var list []struct {
		EntryID     string            `json:"entryId"`
		Event       json.RawMessage   `json:"event"`
		ContentType string            `json:"contentType"`
		Metadata    map[string]string `json:"metadata"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fault.New("pubsub.ParseBulk", fault.Invalid, "error when unmarshaling the request: want a list of entries").
			With(NotEntries).Because(err)
	}
	entries := make([]BulkEntry, len(list))
	for i, e := range list {
		event, ok := bulkEvent(e.ContentType, e.Event)
		if !ok {
			return nil, fault.New("pubsub.ParseBulk", fault.Invalid,
				"entry %s: error: mismatch between contentType and event: %q", e.EntryID, e.ContentType).With(EventMismatch)
		}
		entries[i] = BulkEntry{ID: e.EntryID, Event: event, ContentType: e.ContentType, Metadata: e.Metadata}
	}
	return entries, nil
}

// bulkEvent turns the JSON value of an event into the bytes its content type stands for.
func bulkEvent(contentType string, event json.RawMessage) ([]byte, bool) {
	if len(event) == 0 {
		event = json.RawMessage("null")
	}
	media := strings.ToLower(mediaType(contentType))
	switch {
	case media == jsonType, media == cloudEventType:
		return event, true
	case media == octetType:
		text, ok := jsonString(event)
		if !ok {
			return nil, false
		}
		data, err := base64.StdEncoding.DecodeString(text)
		return data, err == nil
	case strings.HasPrefix(media, "text/"), media == "application/xml":
		text, ok := jsonString(event)
		return []byte(text), ok
	}
	return nil, false
}

func jsonString(value []byte) (string, bool) {
	if len(value) == 0 || value[0] != '"' {
		return "", false
	}
	return unquote(value), true
}
