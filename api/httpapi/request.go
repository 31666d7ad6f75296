package httpapi

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Request is one API request (or, in appHttpPipeline, one call to the app) on its way through
// the edge. It is reused after its handler returned.
type Request struct {
	Method string
	// Path is the request path as sent, without query, duplicate slashes collapsed and still
	// percent-encoded. Middleware changes it with Rewrite.
	Path  string
	Query string // raw, without '?'
	// Header holds the request's fields, hop-by-hop ones included.
	Header call.Fields

	x        exchange
	s        *Server
	raw      string // path before collapsing, for URL targets
	route    string
	ctx      context.Context
	span     Span
	start    time.Time
	status   int
	in, out  int64
	badPath  bool
	body     []byte // replaced or read body
	hasBody  bool
	incoming Filter      // of the request body
	outgoing Filter      // of the response body
	added    call.Fields // response headers from middleware
	vary     bool        // CORS is on: answers depend on the origin
	cors     string      // value of Access-Control-Allow-Origin; empty: not sent
}

func (r *Request) begin(s *Server, x exchange) {
	*r = Request{s: s, x: x, Method: x.Method(), Header: x.Header(), start: time.Now()}
	target := x.Target()
	if !strings.HasPrefix(target, "/") {
		target = originForm(target)
	}
	if i := strings.IndexByte(target, '?'); i >= 0 {
		target, r.Query = target[:i], target[i+1:]
	}
	r.raw = target
	r.Path = collapse(target)
	r.badPath = !validEscapes(target)
}

func (r *Request) reset() { *r = Request{} }

// Context is the request's context: it ends when the caller goes away.
func (r *Request) Context() context.Context {
	if r.ctx != nil {
		return r.ctx
	}
	return r.x.Context()
}

// health reports a probe of the sidecar's own health.
func (r *Request) health() bool { return isHealth(r.Path) }

// Body reads the whole request body. The bytes are valid until the request is answered.
func (r *Request) Body() ([]byte, error) {
	if r.hasBody {
		return r.body, nil
	}
	limit := r.s.o.MaxBody
	if limit < 0 {
		limit = 1<<62 - 1
	}
	b, err := r.x.ReadBody(limit)
	if fault.Of(err) == fault.TooLarge {
		return nil, errTooLarge(limit)
	}
	if err != nil {
		return nil, err
	}
	r.in = int64(len(b))
	if b, err = r.incoming.whole(b); err != nil {
		return nil, err
	}
	r.body, r.hasBody = b, true
	return b, nil
}

// SetBody replaces the request body, for middleware.
func (r *Request) SetBody(b []byte) { r.body, r.hasBody = b, true }

// RemoteAddr is the caller's address as its connection has it: "host:port", or what the
// system calls the other end of a Unix socket, often nothing.
func (r *Request) RemoteAddr() string {
	a := r.x.RemoteAddr()
	if a == nil {
		return ""
	}
	return a.String()
}

// RemoteHost is the caller's address without port.
func (r *Request) RemoteHost() string {
	s := r.RemoteAddr()
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		return strings.Trim(s[:i], "[]")
	}
	return s
}

// Param returns the first query parameter of a name, decoded.
func (r *Request) Param(name string) string {
	v, _ := queryParam(r.Query, name)
	return v
}

// Metadata collects the query parameters "metadata.<key>"; nil when there are none.
func (r *Request) Metadata() map[string]string {
	if !strings.Contains(r.Query, "metadata.") {
		return nil
	}
	var m map[string]string
	eachParam(r.Query, func(k, v string) bool {
		if key, ok := strings.CutPrefix(k, "metadata."); ok {
			if m == nil {
				m = map[string]string{}
			}
			if _, seen := m[key]; !seen {
				m[key] = v
			}
		}
		return true
	})
	return m
}

// Respond answers with a whole body.
func (r *Request) Respond(status int, fields call.Fields, body []byte) {
	body, err := r.outgoing.whole(body)
	if err != nil { // bytes in memory do not fail, so the filter did
		r.s.o.Log.Error("a middleware could not filter an answer", "err", err)
		status, body = http.StatusInternalServerError, nil
	}
	r.status, r.out = status, int64(len(body))
	if r.span != nil {
		fields = r.span.Response(fields)
	}
	_ = r.x.Respond(status, r.decorate(fields), body) // a caller that left is not our error
}

// decorate adds what every answer carries.
func (r *Request) decorate(fields call.Fields) call.Fields {
	fields = append(fields, r.added...)
	if r.vary && fields.Get("Vary") == "" {
		fields = append(fields, call.Field{Name: "Vary", Value: "Origin"})
	}
	if r.cors != "" {
		fields = append(fields, call.Field{Name: "Access-Control-Allow-Origin", Value: r.cors})
	}
	return fields
}

var (
	jsonType = call.Fields{{Name: "Content-Type", Value: "application/json"}}
	textType = call.Fields{{Name: "Content-Type", Value: "text/plain; charset=utf-8"}}
)

// JSON answers with a JSON document.
func (r *Request) JSON(status int, body []byte) {
	r.Respond(status, append(make(call.Fields, 0, 4), jsonType...), body)
}

// Text answers with plain text.
func (r *Request) Text(status int, body string) {
	r.Respond(status, append(make(call.Fields, 0, 4), textType...), []byte(body))
}

// Empty answers 204.
func (r *Request) Empty() { r.Respond(http.StatusNoContent, nil, nil) }

// Fail answers with an error of the table.
func (r *Request) Fail(e *apierr.Error) {
	if rec, ok := r.s.o.Observe.(interface{ ErrorCode(string) }); ok {
		rec.ErrorCode(e.Tag)
	}
	if e.Rule == "" {
		r.JSON(e.HTTP, e.JSON())
		return
	}
	fields := append(make(call.Fields, 0, 6), jsonType...)
	fields.Add(apierr.RuleHeader, e.Rule)
	if e.After > 0 {
		fields.Add("Retry-After", itoa(int64((e.After+time.Second-1)/time.Second)))
	}
	if s, ok := r.span.(interface{ SetAttr(key, value string) }); ok {
		s.SetAttr("mecha.policy.rule", e.Rule)
	}
	r.Respond(e.HTTP, fields, e.JSON())
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
