package httpapi

import (
	"context"
	"encoding/json"
	"strconv"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/state"
)

// State is the state service.
type State interface {
	Check(store string) error
	Get(ctx context.Context, store, key string, opts state.ReadOptions) (block.StateItem, error)
	GetMany(ctx context.Context, store string, keys []string, opts state.ReadOptions, parallelism int) ([]state.Result, error)
	Set(ctx context.Context, store string, items []state.Item) error
	Delete(ctx context.Context, store string, item state.Item) error
	Transact(ctx context.Context, store string, ops []state.Operation) error
	Query(ctx context.Context, store string, query []byte) (state.Found, error)
}

// stateItem is one element of a save, and the request of a transaction step.
type stateItem struct {
	Key      string          `json:"key"`
	Value    json.RawMessage `json:"value"`
	ETag     *string         `json:"etag"`
	Metadata map[string]any  `json:"metadata"`
	Options  struct {
		Concurrency string `json:"concurrency"`
		Consistency string `json:"consistency"`
	} `json:"options"`
}

// item turns a wire item into the service's. Query metadata override the item's own.
func (i *stateItem) item(query map[string]string) state.Item {
	it := state.Item{Key: i.Key, Value: i.Value, JSON: true, Concurrency: i.Options.Concurrency, Consistency: i.Options.Consistency}
	if i.Value == nil {
		it.Value = []byte("null")
	}
	if i.ETag != nil {
		it.ETag = *i.ETag
	}
	if len(i.Metadata)+len(query) > 0 {
		it.Metadata = make(map[string]string, len(i.Metadata)+len(query))
		for k, v := range i.Metadata {
			it.Metadata[k] = text(v)
		}
		for k, v := range query {
			it.Metadata[k] = v
		}
	}
	return it
}

// text writes a JSON scalar as metadata are written: strings without quotes.
func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	b, _ := json.Marshal(v)
	return string(b)
}

func (s *Server) stateGet(r *Request, a args) {
	item, err := s.o.State.Get(r.Context(), a[0], a[1], state.ReadOptions{Consistency: r.Param("consistency")})
	if err != nil {
		r.failState(apierr.StateGet, a[0], err)
		return
	}
	if !item.Exists {
		r.Empty()
		return
	}
	fields := append(make(call.Fields, 0, 5), jsonType[0], call.Field{Name: "Etag", Value: item.ETag})
	for k, v := range state.ItemMetadata(item) {
		fields.Add("metadata."+k, v)
	}
	r.Respond(200, fields, item.Value)
}

func (s *Server) stateDelete(r *Request, a args) {
	err := s.o.State.Delete(r.Context(), a[0], state.Item{Key: a[1], ETag: r.Header.Get("If-Match"),
		Concurrency: r.Param("concurrency"), Consistency: r.Param("consistency"), Metadata: r.Metadata()})
	if err != nil {
		r.failState(apierr.StateDelete, a[0], err)
		return
	}
	r.Empty()
}

func (s *Server) stateSave(r *Request, a args) {
	var in []stateItem
	if !r.stateBody(apierr.StateSave, a[0], &in) {
		return
	}
	query := r.Metadata()
	items := make([]state.Item, len(in))
	for i := range in {
		if in[i].Key == "" {
			r.Fail(apierr.MalformedRequest.Because(`failed deserializing HTTP body: item ` + strconv.Itoa(i) + `: "key" is a required field`))
			return
		}
		items[i] = in[i].item(query)
	}
	if err := s.o.State.Set(r.Context(), a[0], items); err != nil {
		r.failState(apierr.StateSave, a[0], err)
		return
	}
	r.Empty()
}

// bulkResult is one element of a bulk read's answer.
type bulkResult struct {
	Key      string            `json:"key"`
	Data     json.RawMessage   `json:"data,omitempty"`
	ETag     *string           `json:"etag,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Error    string            `json:"error,omitempty"`
}

func (s *Server) stateBulkGet(r *Request, a args) {
	var in struct {
		Keys        []string          `json:"keys"`
		Parallelism int               `json:"parallelism"`
		Metadata    map[string]string `json:"metadata"`
	}
	if !r.stateBody(apierr.StateBulkGet, a[0], &in) {
		return
	}
	results, err := s.o.State.GetMany(r.Context(), a[0], in.Keys, state.ReadOptions{Consistency: r.Param("consistency")}, in.Parallelism)
	if err != nil {
		r.failState(apierr.StateBulkGet, a[0], err)
		return
	}
	out := make([]bulkResult, len(results))
	for i := range results {
		out[i] = bulkItem(&results[i])
	}
	b, err := json.Marshal(out)
	if err != nil {
		r.failState(apierr.StateBulkGet, a[0], err)
		return
	}
	r.JSON(200, append(b, '\n'))
}

func bulkItem(res *state.Result) bulkResult {
	out := bulkResult{Key: res.Key}
	switch {
	case res.Err != nil:
		out.Error = res.Err.Error()
	case res.Exists:
		out.Data, out.ETag, out.Metadata = res.Value, &res.ETag, state.ItemMetadata(res.StateItem)
		if !json.Valid(out.Data) { // bytes saved over gRPC: shown as a string
			out.Data = apierr.AppendString(nil, string(res.Value))
		}
	}
	return out
}

func (s *Server) stateTransaction(r *Request, a args) {
	var in struct {
		Operations []struct {
			Operation string    `json:"operation"`
			Request   stateItem `json:"request"`
		} `json:"operations"`
		Metadata map[string]string `json:"metadata"`
	}
	if !r.stateBody(apierr.StateTransaction, a[0], &in) {
		return
	}
	query := r.Metadata()
	ops := make([]state.Operation, len(in.Operations))
	for i := range in.Operations {
		ops[i] = state.Operation{Operation: in.Operations[i].Operation, Item: in.Operations[i].Request.item(query)}
	}
	if err := s.o.State.Transact(r.Context(), a[0], ops); err != nil {
		r.failState(apierr.StateTransaction, a[0], err)
		return
	}
	r.Empty()
}

// stateQuery passes the body on as it is: whether the store can be queried at all is judged first.
func (s *Server) stateQuery(r *Request, a args) {
	if err := s.o.State.Check(a[0]); err != nil {
		r.failState(apierr.StateQuery, a[0], err)
		return
	}
	body, err := r.Body()
	if err != nil {
		r.Fail(apierr.MalformedRequest.Because("failed deserializing HTTP body: " + err.Error()))
		return
	}
	found, err := s.o.State.Query(r.Context(), a[0], body)
	switch {
	case err != nil:
		r.failState(apierr.StateQuery, a[0], err)
		return
	case len(found.Results) == 0:
		r.Empty()
		return
	}
	out := struct {
		Results []bulkResult `json:"results"`
		Token   string       `json:"token,omitempty"`
	}{make([]bulkResult, len(found.Results)), found.Token}
	for i := range found.Results {
		out.Results[i] = bulkItem(&found.Results[i])
		out.Results[i].Metadata = nil // a query's answer has none for its items
	}
	b, err := json.Marshal(out)
	if err != nil {
		r.failState(apierr.StateQuery, a[0], err)
		return
	}
	r.JSON(200, b)
}

// stateBody looks the store up and then parses the body: an unknown store wins over malformed
// JSON. It answers and returns false when either fails.
func (r *Request) stateBody(op apierr.StateOp, store string, into any) bool {
	if err := r.s.o.State.Check(store); err != nil {
		r.failState(op, store, err)
		return false
	}
	body, err := r.Body()
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		r.Fail(apierr.MalformedRequest.Because("failed deserializing HTTP body: " + err.Error()))
		return false
	}
	return true
}

func (r *Request) failState(op apierr.StateOp, store string, err error) {
	r.Fail(apierr.State(op, store, r.s.o.AppID, err))
}
