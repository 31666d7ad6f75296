package vault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

const (
	maxAnswer   = 4 << 20 // bytes; Vault's own limit of a secret is 1 MiB
	idleTimeout = 90 * time.Second
)

// client speaks to one server.
type client struct {
	base      string // the server's URL without a slash at its end
	token     func() (string, error)
	transport *http.Transport
	http      *http.Client
}

// get makes a request and decodes the answer. what is asked for, in messages.
func (c *client) get(ctx context.Context, op fault.Op, method, path, what string, into any) error {
	status, body, err := c.exchange(ctx, op, method, path)
	if err != nil {
		return err
	}
	if status != http.StatusOK {
		return refusal(op, what, status, body)
	}
	if err := json.Unmarshal(body, into); err != nil { // err may quote the answer
		return fault.New(op, fault.Internal, "%s: the answer of %s is not Vault's; is vaultAddr right?", what, c.base)
	}
	return nil
}

// exchange sends a request and reads the whole answer.
func (c *client) exchange(ctx context.Context, op fault.Op, method, path string) (status int, body []byte, err error) {
	token, err := c.token()
	if err != nil {
		return 0, nil, fault.New(op, fault.Unavailable, "vaultTokenMountPath").Because(err)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return 0, nil, fault.New(op, fault.Invalid, "vault at %s", c.base).Because(err)
	}
	req.Header.Set("X-Vault-Token", token)
	req.Header.Set("X-Vault-Request", "true")
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, unreachable(op, c.base, err)
	}
	defer func() { _ = resp.Body.Close() }() // read to its end or given up
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case err != nil:
		return 0, nil, unreachable(op, c.base, err)
	case len(body) > maxAnswer:
		return 0, nil, fault.New(op, fault.TooLarge, "the answer of vault at %s is larger than %d MiB", c.base, maxAnswer>>20)
	}
	return resp.StatusCode, body, nil
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
	e := &fault.Error{Op: op, Code: fault.Unavailable, Msg: "vault at " + base, Err: err, Sent: sent}
	if code := fault.Of(err); code == fault.Deadline || code == fault.Canceled {
		e.Code = code
	}
	return e
}

// refusal translates an answer that is not what was asked for.
func refusal(op fault.Op, what string, status int, body []byte) error {
	code, words := fault.Internal, ""
	switch {
	case status == http.StatusNotFound:
		return fault.New(op, fault.NotFound, "%s not found", what)
	case status == http.StatusForbidden || status == http.StatusUnauthorized:
		code, words = fault.Denied, "; may the token read it?"
	case status == http.StatusBadRequest:
		code = fault.Invalid
	case status == http.StatusTooManyRequests:
		code = fault.Exhausted
	case status >= 500 || status >= 300 && status < 400:
		code = fault.Unavailable
	}
	return fault.New(op, code, "%s: vault answered %d%s%s", what, status, complaint(body), words)
}

// complaint is what Vault says of a failure. Other answers may be anybody's, and hold anything.
func complaint(body []byte) string {
	var answer struct {
		Errors []string `json:"errors"`
	}
	if json.Unmarshal(body, &answer) != nil || len(answer.Errors) == 0 {
		return ""
	}
	text := strings.Join(strings.Fields(strings.Join(answer.Errors, "; ")), " ")
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	return " (" + text + ")"
}

// sameSecret lets a standby send a request on to the active server, once. The token goes with
// it, so never to a connection that is less protected; and a server that would answer with
// another secret than was asked for (a cleaned path) is not followed.
func sameSecret(req *http.Request, via []*http.Request) error {
	first := via[0].URL
	switch {
	case len(via) > 1:
		return errors.New("it redirects more than once")
	case first.Scheme == "https" && req.URL.Scheme != "https":
		return fmt.Errorf("it redirects from https to %s", req.URL.Scheme)
	case req.Method != via[0].Method || first.EscapedPath() != req.URL.EscapedPath() || first.RawQuery != req.URL.RawQuery:
		return http.ErrUseLastResponse
	}
	return nil
}

// escape writes a path so that the server reads the same segments.
func escape(path string) string {
	segments := strings.Split(path, "/")
	for i := range segments {
		segments[i] = url.PathEscape(segments[i])
	}
	return strings.Join(segments, "/")
}
