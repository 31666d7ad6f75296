package httpbinding

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

const jsonType = "application/json; charset=utf-8"

// Metadata entries of a request that are no headers.
const (
	pathEntry  = "path"
	errorEntry = "errorIfNot2XX"
)

// Invoke makes one request. The answer comes with a failure by status too, for its metadata.
func (o *output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "httpbinding.Invoke"
	if err := o.usable(ctx, op); err != nil {
		return nil, err
	}
	if !slices.Contains(operations, r.Operation) {
		return nil, fault.New(op, fault.Unsupported, "invalid operation: %s; known are %s", r.Operation, strings.Join(operations, ", "))
	}
	strict := o.c.ErrorIfNot2XX
	if text, ok := r.Metadata[errorEntry]; ok {
		strict = truthy(text)
	}
	if o.c.ResponseTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.c.ResponseTimeout)
		defer cancel()
	}
	req, err := o.request(ctx, op, &r)
	if err != nil {
		return nil, err
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, o.unreachable(op, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end or given up
	body, err := io.ReadAll(io.LimitReader(resp.Body, o.c.MaxResponseBodySize.Int64()+1))
	switch {
	case err != nil:
		return nil, o.unreachable(op, err)
	case int64(len(body)) > o.c.MaxResponseBodySize.Int64():
		return nil, fault.New(op, fault.TooLarge, "the answer of %s is larger than maxResponseBodySize, %v", o.host, o.c.MaxResponseBodySize)
	}
	answer := &block.BindingAnswer{Data: body, Metadata: answerMetadata(resp)}
	if strict && (resp.StatusCode < 200 || resp.StatusCode > 299) {
		return answer, refusal(op, resp)
	}
	return answer, nil
}

// request makes the HTTP request of an operation.
func (o *output) request(ctx context.Context, op fault.Op, r *block.BindingRequest) (*http.Request, error) {
	target := o.c.URL.Reveal()
	if path, ok := r.Metadata[pathEntry]; ok {
		target = o.base + "/" + strings.TrimLeft(path, "/")
	}
	verb := strings.ToUpper(r.Operation)
	if r.Operation == create {
		verb = http.MethodPost
	}
	var body io.Reader
	switch verb {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		body = bytes.NewReader(r.Data)
	}
	req, err := http.NewRequestWithContext(ctx, verb, target, body)
	if err != nil { // err quotes the URL
		return nil, fault.New(op, fault.Invalid, "path %q does not make a URL; percent-encode what a URL cannot hold", r.Metadata[pathEntry])
	}
	if o.c.SecurityTokenHeader != "" {
		req.Header.Set(o.c.SecurityTokenHeader, o.c.SecurityToken.Reveal())
	}
	if body != nil {
		req.Header.Set("Content-Type", jsonType)
	}
	req.Header.Set("Accept", jsonType)
	for name, value := range r.Metadata {
		if first, _ := utf8.DecodeRuneInString(name); unicode.IsUpper(first) && !strings.EqualFold(name, o.c.SecurityTokenHeader) {
			req.Header.Set(name, value)
		}
	}
	for _, name := range []string{"traceparent", "tracestate", "baggage"} { // the sidecar's own, over what they may have met
		if value := r.Metadata[name]; value != "" {
			req.Header.Set(name, value)
		}
	}
	return req, nil
}

// truthy reads a boolean of a request's metadata.
func truthy(text string) bool {
	switch strings.ToLower(strings.TrimSpace(text)) {
	case "y", "yes", "true", "t", "on", "1":
		return true
	}
	return false
}

// answerMetadata are the answer's status and headers.
func answerMetadata(resp *http.Response) map[string]string {
	out := make(map[string]string, len(resp.Header)+2)
	for name, values := range resp.Header {
		out[name] = strings.Join(values, ", ")
	}
	out["statusCode"], out["status"] = strconv.Itoa(resp.StatusCode), resp.Status
	return out
}

// unreachable is the error of an exchange that did not end. The URL stays out of it.
func (o *output) unreachable(op fault.Op, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	sent := fault.SentMaybe
	var oe *net.OpError
	if errors.As(err, &oe) && oe.Op == "dial" {
		sent = fault.SentNever
	}
	e := &fault.Error{Op: op, Code: fault.Unavailable, Msg: "HTTP server " + o.host, Err: err, Sent: sent}
	if code := fault.Of(err); code == fault.Deadline || code == fault.Canceled {
		e.Code = code
	}
	if strings.Contains(err.Error(), "invalid header field") { // net/http has no type for it
		e.Code, e.Sent = fault.Invalid, fault.SentNever
	}
	return e
}

// refusal is the error of a status. Its code is what policies judge by.
func refusal(op fault.Op, resp *http.Response) error {
	code := fault.Invalid
	switch s := resp.StatusCode; {
	case s == http.StatusNotFound:
		code = fault.NotFound
	case s == http.StatusUnauthorized:
		code = fault.Unauthenticated
	case s == http.StatusForbidden:
		code = fault.Denied
	case s == http.StatusConflict, s == http.StatusPreconditionFailed:
		code = fault.Conflict
	case s == http.StatusTooManyRequests:
		code = fault.Exhausted
	case s == http.StatusRequestTimeout, s == http.StatusGatewayTimeout:
		code = fault.Deadline
	case s == http.StatusBadGateway, s == http.StatusServiceUnavailable:
		code = fault.Unavailable
	case s >= 500:
		code = fault.Internal
	}
	e := fault.New(op, code, "received status code %d", resp.StatusCode)
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 && n <= 3600 {
		e.After = time.Duration(n) * time.Second
	}
	return e
}
