package httpapi

import (
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"strings"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// inlineBody is the size up to which a request body of known length is read whole before the
// call begins: it then travels in one piece and can be repeated. Larger and unknown lengths
// are streamed.
const inlineBody = 64 << 10

const appIDHeader = "dapr-app-id"

// invokePath is POST /v1.0/invoke/<target>/method/<method> and its kin. The target may be a
// URL, raw or escaped, so it is taken from the path before slashes were collapsed.
func (s *Server) invokePath(r *Request, _ args) {
	if id := r.Header.Get(appIDHeader); id != "" {
		// An explicit header wins over the path; the path is then the method itself.
		s.invokeHeader(r, id)
		return
	}
	target, method, ok := splitInvoke(r.Path)
	if !ok || isCollapsedURL(target) {
		target, method, ok = splitInvoke(r.raw)
	}
	if !ok || target == "" {
		r.Fail(apierr.Invoke("", errNoTarget))
		return
	}
	s.invoke(r, unescape(target), method)
}

// splitInvoke takes an invocation path apart, duplicate slashes or not. Only its beginning counts:
// the same words further back belong to the method.
func splitInvoke(path string) (target, method string, ok bool) {
	for _, word := range [...]string{"v1.0", "invoke", ""} {
		rest := strings.TrimLeft(path, "/")
		if len(rest) == len(path) {
			return "", "", false
		}
		if path, ok = strings.CutPrefix(rest, word); !ok {
			return "", "", false
		}
	}
	return strings.Cut(path, "/method/")
}

func isCollapsedURL(target string) bool {
	return strings.HasPrefix(target, "http:/") || strings.HasPrefix(target, "https:/")
}

var errNoTarget = fault.New("httpapi.invoke", fault.Invalid, "no target").With(fault.NoTarget)

// invokeFallback serves every request no route took: the target is in a header, the whole path
// is the method.
func (s *Server) invokeFallback(r *Request) {
	r.route = opInvoke.name
	if id := r.Header.Get(appIDHeader); id != "" {
		s.invokeHeader(r, id)
		return
	}
	if id := basicAuthTarget(r.Header.Get("Authorization")); id != "" {
		s.invoke(r, id, strings.TrimPrefix(r.Path, "/"))
		return
	}
	r.Fail(apierr.Invoke("", errNoTarget))
}

func (s *Server) invokeHeader(r *Request, id string) {
	r.Header.Del(appIDHeader)
	s.invoke(r, id, strings.TrimPrefix(r.Path, "/"))
}

// basicAuthTarget reads the target from "Basic base64(dapr-app-id:<id>)".
func basicAuthTarget(auth string) string {
	const scheme = "Basic "
	if len(auth) <= len(scheme) || !strings.EqualFold(auth[:len(scheme)], scheme) {
		return ""
	}
	raw, err := base64.StdEncoding.DecodeString(auth[len(scheme):])
	if err != nil {
		return ""
	}
	user, id, ok := strings.Cut(string(raw), ":")
	if !ok || !strings.EqualFold(user, appIDHeader) {
		return ""
	}
	return id
}

// invoke carries the request to an app and its answer back.
func (s *Server) invoke(r *Request, target, escapedMethod string) {
	r.route = opInvoke.name
	if s.o.Observe != nil {
		r.route += "/" + target
	}
	method, err := cleanMethod(escapedMethod)
	if err == nil && r.Method == http.MethodConnect {
		err = fault.New("httpapi.invoke", fault.Invalid, "invalid HTTP verb")
	}
	if err != nil {
		r.Fail(apierr.Invoke(target, err))
		return
	}
	req := &call.Request{Protocol: call.HTTP, Target: target, Verb: verb(r.Method), Path: method, Query: r.Query,
		Type: r.Header.Get("Content-Type"), Inform: r.inform}
	if err := r.takeBody(req); err != nil {
		r.Fail(apierr.Invoke(target, err))
		return
	}
	req.Header = carried(make(call.Fields, 0, len(r.Header)+8), r.Header)
	if r.span != nil {
		req.Header = r.span.Request(req.Header)
	}
	if up, ok := r.x.(upgrader); ok && r.x.ContentLength() == 0 {
		req.Upgrade = offer(up.Upgrades())
	}
	if err := s.o.Invoke.Invoke(r.Context(), req, invokeResponder{r}); err != nil && r.status == 0 {
		r.Fail(apierr.Invoke(target, err))
	}
}

// verb maps a verb to one the invocation API knows; any other is a POST, as in Dapr.
func verb(m string) string {
	switch m {
	case "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH":
		return m
	}
	return "POST"
}

// takeBody gives the request its body: bytes when it is small, else a bounded stream.
func (r *Request) takeBody(req *call.Request) error {
	n := r.x.ContentLength()
	switch {
	case r.hasBody:
		req.Data, req.Length = r.body, int64(len(r.body))
		return nil
	case n >= 0 && n <= inlineBody:
		body, err := r.Body()
		req.Data, req.Length = body, int64(len(body))
		return err
	}
	limit := r.s.o.MaxBody
	if limit >= 0 && n > limit {
		return errTooLarge(limit)
	}
	source := r.x.Body()
	body := io.Reader(source)
	if limit >= 0 && n < 0 {
		body = &limited{r: body, n: limit}
	}
	body, n = r.incoming.stream(body, n)
	req.Stream, req.Length = filtered{body, source}, n
	if n < 0 {
		req.Trailer = trailerOf(r.x, source)
	}
	return nil
}

// trailerOf gives the trailing fields of a body. Whoever sends the body on may ask for them when
// the request has been answered and its memory serves another, so they come from the body.
func trailerOf(x exchange, body io.ReadCloser) func() call.Fields {
	trailer := x.RequestTrailer
	if own, ok := body.(interface{ Trailer() call.Fields }); ok {
		trailer = own.Trailer
	}
	return func() call.Fields { return carried(nil, trailer()) }
}

// filtered is a stream whose end is its source's.
type filtered struct {
	io.Reader
	io.Closer
}

func (r *Request) inform(status int, fields call.Fields) {
	_ = r.x.Inform(status, carried(nil, fields))
}

// respondCall writes an app's answer to the caller.
func (r *Request) respondCall(resp *call.Response) error {
	fields, body := r.answerHead(resp)
	if resp.Upgrade != nil {
		return r.switchOver(resp, fields)
	}
	if resp.Stream == nil {
		body, err := r.outgoing.whole(body)
		if err != nil {
			return err
		}
		r.status, r.out = resp.Status, int64(len(body))
		if r.Method == http.MethodHead {
			return r.respondHead(resp, fields, body)
		}
		return r.x.Respond(resp.Status, fields, body)
	}
	return r.stream(resp, fields)
}

// respondHead answers a HEAD request with the length the app announced, if it did.
func (r *Request) respondHead(resp *call.Response, fields call.Fields, body []byte) error {
	length := resp.Length
	if len(body) > 0 {
		length = int64(len(body))
	}
	if err := r.x.Start(resp.Status, fields, length); err != nil {
		return err
	}
	return r.x.End(nil)
}

// answerHead builds status, headers and, for a gRPC app, the body an HTTP caller sees.
func (r *Request) answerHead(resp *call.Response) (call.Fields, []byte) {
	body := resp.Data
	typ := resp.Type
	switch {
	case resp.GRPCStatus != nil:
		resp.Status, body = grpcFailure(resp.GRPCStatus)
		typ = "text/plain; charset=utf-8"
	case resp.FromGRPC && resp.TypeURL != "":
		typ = "application/x-protobuf"
	}
	fields := withoutBinary(carried(make(call.Fields, 0, len(resp.Header)+3), resp.Header))
	if typ == "" && resp.Stream == nil && len(body) > 0 {
		typ = http.DetectContentType(body)
	}
	if typ != "" {
		fields.Set("Content-Type", typ)
	}
	if r.span != nil {
		fields = r.span.Response(fields)
	}
	return r.decorate(fields), body
}

// grpcFailure shows a gRPC app's error to an HTTP caller: the status as JSON.
func grpcFailure(raw []byte) (status int, body []byte) {
	var st spb.Status
	if err := proto.Unmarshal(raw, &st); err != nil {
		return 500, []byte(`{"code":2,"message":"the app's status could not be read"}`)
	}
	body, err := protojson.Marshal(&st)
	if err != nil { // details of types this binary does not know
		st.Details = nil
		body, _ = protojson.Marshal(&st)
	}
	return apierr.HTTPFromGRPC(codes.Code(st.Code)), body
}

// stream copies a body as it comes, flushing whatever is there before waiting for more.
func (r *Request) stream(resp *call.Response, fields call.Fields) error {
	r.status = resp.Status
	body, length := r.outgoing.stream(resp.Stream, resp.Length)
	buf := takeChunk()
	defer giveChunk(buf)
	fields, n, err := r.sniff(body, *buf, fields)
	if e := r.x.Start(resp.Status, fields, length); e != nil {
		return fault.Wrap("httpapi.respond", fault.Canceled, e)
	}
	if n == 0 && err == nil && length < 0 { // events may be long in coming; the head need not be
		if e := r.x.Flush(); e != nil {
			return fault.Wrap("httpapi.respond", fault.Canceled, e)
		}
	}
	for ; ; n, err = body.Read(*buf) {
		if n > 0 {
			r.out += int64(n)
			_, werr := r.x.Write((*buf)[:n])
			if werr == nil {
				werr = r.x.Flush()
			}
			if werr != nil {
				return fault.Wrap("httpapi.respond", fault.Canceled, werr)
			}
		}
		if call.Ended(err) {
			break
		}
		if err != nil {
			r.x.Abort() // the caller must see that the body is not whole
			return err
		}
	}
	var trailer call.Fields
	if resp.Trailer != nil {
		trailer = withoutBinary(carried(nil, resp.Trailer()))
	}
	return fault.Wrap("httpapi.respond", fault.Canceled, r.x.End(trailer))
}

// sniff reads the beginning of a body without a content type and adds a guessed one. A body
// that has a type is left alone, so that its head need not wait for it.
func (r *Request) sniff(body io.Reader, buf []byte, fields call.Fields) (call.Fields, int, error) {
	if _, typed := fields.Lookup("Content-Type"); typed || r.Method == http.MethodHead {
		return fields, 0, nil
	}
	n, err := body.Read(buf)
	if n > 0 {
		fields.Set("Content-Type", http.DetectContentType(buf[:n]))
	}
	return fields, n, err
}

type invokeResponder struct{ *Request }

// Respond implements call.Responder.
func (i invokeResponder) Respond(_ context.Context, resp *call.Response) error {
	return i.Request.respondCall(resp)
}
