package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

const (
	maxAnswer   = 96 << 20 // bytes: a page of the largest secrets there can be, in base64
	idleTimeout = 90 * time.Second
)

// client speaks to one API server.
type client struct {
	base      string // the server's URL without a slash at its end
	sign      func(*http.Request) error
	transport *http.Transport
	http      *http.Client
}

func newClient(to *cluster) client {
	t := &http.Transport{TLSClientConfig: to.tls, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 8, IdleConnTimeout: idleTimeout}
	return client{base: to.server, sign: to.sign, transport: t, http: &http.Client{Transport: t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}} // credentials go nowhere else
}

// get makes a request and decodes the answer. what is asked for, in messages. status is that of the
// answer, 0 when there was none.
func (c *client) get(ctx context.Context, op fault.Op, path, what string, into any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path, nil)
	if err != nil {
		return 0, fault.New(op, fault.Invalid, "kubernetes at %s", c.base).Because(err)
	}
	req.Header.Set("Accept", "application/json")
	if err := c.sign(req); err != nil {
		return 0, fault.New(op, fault.Unavailable, "credentials").Because(err).WithSent(fault.SentNever)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, unreachable(op, c.base, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end or given up
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return 0, unreachable(op, c.base, err)
	case len(body) > maxAnswer:
		return 0, fault.New(op, fault.TooLarge, "the answer of kubernetes at %s is larger than %d MiB", c.base, maxAnswer>>20)
	case resp.StatusCode != http.StatusOK:
		return resp.StatusCode, refused(op, what, resp, body)
	}
	if err := json.Unmarshal(body, into); err != nil { // err may quote the answer
		return 0, fault.New(op, fault.Internal, "%s: the answer of %s is not Kubernetes'; is it an API server?", what, c.base)
	}
	return resp.StatusCode, nil
}

// unreachable is the error of an exchange that did not end.
func unreachable(op fault.Op, base string, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err // without the URL, which is known
	}
	sent := fault.SentUnknown
	var oe *net.OpError
	if errors.As(err, &oe) && oe.Op == "dial" {
		sent = fault.SentNever
	}
	e := &fault.Error{Op: op, Code: fault.Unavailable, Msg: "kubernetes at " + base, Err: err, Sent: sent}
	if code := fault.Of(err); code == fault.Deadline || code == fault.Canceled {
		e.Code = code
	}
	return e
}

// refused translates an answer that is not what was asked for.
func refused(op fault.Op, what string, resp *http.Response, body []byte) error {
	reason, words := complaint(body)
	code, hint := fault.Internal, ""
	switch status := resp.StatusCode; {
	case status == http.StatusNotFound && reason == "NotFound":
		return fault.New(op, fault.NotFound, "%s not found", what)
	case status == http.StatusNotFound:
		hint = "; is it a Kubernetes API server?"
	case status == http.StatusUnauthorized:
		code, hint = fault.Denied, "; is the token, or the certificate, valid?"
	case status == http.StatusForbidden:
		code, hint = fault.Denied, "; a Role and a RoleBinding for secrets may be missing"
	case status == http.StatusBadRequest:
		code = fault.Invalid
	case status == http.StatusTooManyRequests:
		code = fault.Exhausted
	case status >= 500 || status >= 300 && status < 400 || status == http.StatusGone:
		code = fault.Unavailable
	}
	e := fault.New(op, code, "%s: kubernetes answered %d%s%s", what, resp.StatusCode, words, hint)
	if seconds, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
		e.After = time.Duration(seconds) * time.Second
	}
	return e
}

// complaint is what the server says of a failure: names, never values. Other answers may be
// anybody's, and hold anything.
func complaint(body []byte) (reason, words string) {
	var status struct {
		Kind    string `json:"kind"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
	}
	if json.Unmarshal(body, &status) != nil || status.Kind != "Status" {
		return "", ""
	}
	text := strings.Join(strings.Fields(status.Message), " ")
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "…"
	}
	if text == "" {
		return status.Reason, ""
	}
	return status.Reason, " (" + text + ")"
}
