package pubsub

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// StatusError is the cause of a delivery's failure when the app answered with an HTTP status
// other than 2xx and 404, for policies that look at it.
type StatusError struct{ Status int }

func (e *StatusError) Error() string { return fmt.Sprintf("the app answered with status %d", e.Status) }

// CallStatus implements call.Answered.
func (e *StatusError) CallStatus() call.Status { return call.HTTPStatus(e.Status) }

// maxAnswer bounds what is read of an app's answer; it is Dapr's default size of a body. What is
// longer may say RETRY where nobody has read it, so it counts as no answer.
const maxAnswer = 4 << 20

// zeroTrace is sent for an event whose trace fields are empty, as Dapr does.
const zeroTrace = "00-00000000000000000000000000000000-0000000000000000-00"

// deliverHTTP posts one event to the app and reads its answer.
func (c *consumer) deliverHTTP(ctx context.Context, a *arrival, path string, attempt int, trace Trace) (Answer, error) {
	req := c.post(path, cloudEventType, a.body)
	req.Header = make(call.Fields, 0, len(a.Metadata)+4)
	for name, value := range a.Metadata {
		if mayForward(name) && printable(value) {
			req.Header.Add(name, value)
		}
	}
	req.Header.Add("pubsubName", c.route.sub.PubSub)
	req.Header.Add(AttemptHeader, strconv.Itoa(attempt))
	if a.hasTrace {
		parent := trace.Parent
		if !isTraceParent(parent) {
			parent = zeroTrace
		}
		req.Header.Add("traceparent", parent)
	}
	status, body, err := c.exchange(ctx, req)
	switch {
	case err != nil:
		return Retry, err
	case status == 404:
		c.log.ErrorContext(ctx, "the app has no handler for the route, the event is dropped", "route", path, "position", a.Position)
		return Drop, nil
	case status < 200 || status > 299:
		return Retry, statusFault(status)
	}
	return readAnswer(body)
}

// post starts a request to a route of the app. A route may lack the leading slash and may
// carry a query.
func (c *consumer) post(route, contentType string, body []byte) *call.Request {
	path, query, _ := strings.Cut(strings.TrimPrefix(route, "/"), "?")
	if plain, err := url.PathUnescape(path); err == nil {
		path = plain
	}
	return &call.Request{Protocol: call.HTTP, Verb: "POST", Path: path, Query: query, Type: contentType,
		Data: body, Length: int64(len(body))}
}

// exchange sends a request to the app and reads the answer, as far as maxAnswer.
func (c *consumer) exchange(ctx context.Context, req *call.Request) (status int, body []byte, err error) {
	if c.s.opts.App == nil {
		return 0, nil, fault.New("pubsub.deliver", fault.NotReady, "app channel is not initialized").With(fault.NoApp)
	}
	resp, err := c.s.opts.App.Invoke(ctx, req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Close()
	if resp.Stream == nil {
		return resp.Status, bytes.Clone(resp.Data), nil // the answer's buffer is another's once it is closed
	}
	body, err = io.ReadAll(io.LimitReader(resp.Stream, maxAnswer+1))
	switch {
	case err != nil:
		return 0, nil, fault.Wrap("pubsub.deliver", fault.Unavailable, fmt.Errorf("reading the app's answer: %w", err))
	case len(body) > maxAnswer && resp.Status >= 200 && resp.Status <= 299: // of others the status says all
		return 0, nil, fault.New("pubsub.deliver", fault.Unavailable, "the app's answer to an event is longer than %d bytes; a status is enough", maxAnswer)
	}
	return resp.Status, body, nil
}

func statusFault(status int) error {
	return &fault.Error{Op: "pubsub.deliver", Code: fault.Unavailable, Sent: fault.SentMaybe, Err: &StatusError{status}}
}

// readAnswer reads the body of a 2xx answer. Only an object with a status of text says
// anything; all else is success.
func readAnswer(body []byte) (Answer, error) {
	if len(body) == 0 {
		return Success, nil
	}
	var answer struct {
		Status any `json:"status"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return Success, nil
	}
	switch answer.Status {
	case "RETRY":
		return Retry, nil
	case "DROP":
		return Drop, nil
	case "SUCCESS", "":
		return Success, nil
	}
	if text, ok := answer.Status.(string); ok {
		return Retry, fault.New("pubsub.deliver", fault.Unavailable,
			"the app answered with status %q; known are SUCCESS, RETRY and DROP", text)
	}
	return Success, nil
}

// ownHeaders are set by us or by the app channel. A publisher's metadata must not pretend to
// be them, nor change how the request is framed.
var ownHeaders = map[string]bool{
	"pubsubname": true, AttemptHeader: true, "traceparent": true, "tracestate": true, "baggage": true,
	"content-type": true, "content-length": true, "content-encoding": true, "transfer-encoding": true,
	"connection": true, "keep-alive": true, "te": true, "trailer": true, "upgrade": true, "expect": true,
	"host": true, "proxy-authenticate": true, "proxy-authorization": true, "proxy-connection": true,
}

func mayForward(name string) bool {
	if name == "" {
		return false
	}
	for i := 0; i < len(name); i++ {
		if !tokenByte[name[i]] {
			return false
		}
	}
	return !ownHeaders[strings.ToLower(name)] && !hasPrefixFold(name, "dapr-")
}

// tokenByte marks the bytes of HTTP field names.
var tokenByte = func() (t [256]bool) {
	for _, c := range "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" {
		t[c] = true
	}
	return t
}()

func printable(value string) bool {
	for i := 0; i < len(value); i++ {
		if c := value[i]; c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}

// isTraceParent checks the shape of a W3C traceparent.
func isTraceParent(s string) bool {
	if len(s) != len(zeroTrace) {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch i {
		case 2, 35, 52:
			if s[i] != '-' {
				return false
			}
		default:
			if !isHex(s[i]) || s[i] >= 'A' && s[i] <= 'F' {
				return false
			}
		}
	}
	return true
}
