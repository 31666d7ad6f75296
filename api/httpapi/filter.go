package httpapi

import (
	"bytes"
	"io"

	"github.com/mecha-project/mecha/runtime/call"
)

// Filter changes a body on its way: it returns a reader of the changed body. It must pass the
// errors of its source on, and must not wait for more of the source than it needs. A nil
// Filter changes nothing.
type Filter func(body io.Reader) io.Reader

// whole filters a body that is in memory. An empty body stays empty.
func (f Filter) whole(body []byte) ([]byte, error) {
	if f == nil || len(body) == 0 {
		return body, nil
	}
	return io.ReadAll(f(bytes.NewReader(body)))
}

// stream filters a body of n bytes or of unknown length; afterwards nobody knows its length.
func (f Filter) stream(body io.Reader, n int64) (io.Reader, int64) {
	if f == nil || n == 0 {
		return body, n
	}
	return f(body), call.Unknown
}

// then is f followed by next.
func (f Filter) then(next Filter) Filter {
	switch {
	case f == nil:
		return next
	case next == nil:
		return f
	}
	return func(body io.Reader) io.Reader { return next(f(body)) }
}

// FilterRequest makes the request body pass through f before anyone reads it, whole or as a
// stream. The filters of outer middleware come first. It does not touch a body given to
// SetBody.
func (r *Request) FilterRequest(f Filter) { r.incoming = r.incoming.then(f) }

// FilterResponse makes the body of the answer pass through f, whoever answers. The filters of
// outer middleware come last.
func (r *Request) FilterResponse(f Filter) { r.outgoing = f.then(r.outgoing) }

// AddHeader adds a header to the answer, whoever answers.
func (r *Request) AddHeader(name, value string) { r.added.Add(name, value) }

// Rewrite makes the request one for another path and raw query. path starts with a slash and
// is percent-encoded, with valid escapes.
func (r *Request) Rewrite(path, query string) {
	r.raw, r.Path, r.Query = path, collapse(path), query
}
