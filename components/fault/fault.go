// Package fault is the house's only vocabulary for what can go wrong.
//
// Every error that crosses a room (backend to service, service to edge) is, or
// wraps, an *Error: an operation, a code from a short closed list, and words for
// a person. Edges map codes to wire statuses with the one table in api/apierr;
// nobody matches error text. Start reading at Code.
//
// The package imports the standard library only, so that every other package may
// import it.
package fault

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Code says what kind of thing went wrong. Codes are append-only: their numbers
// and names are metric labels and travel between sidecars.
type Code uint8

const (
	// OK is the code of a nil error.
	OK Code = 0
	// Internal is a defect of ours, or an error nobody classified.
	Internal Code = 1
	// Invalid means the request itself is wrong and will be wrong again.
	Invalid Code = 2
	// NotFound means the named thing does not exist.
	NotFound Code = 3
	// Exists means the thing to create is there already.
	Exists Code = 4
	// Conflict means a precondition on a version (etag) or a write set did not hold.
	Conflict Code = 5
	// Denied means the caller is known and may not do this.
	Denied Code = 6
	// Unauthenticated means the caller did not prove who it is.
	Unauthenticated Code = 7
	// Exhausted means a limit was reached (rate, concurrency, bytes); retry later.
	Exhausted Code = 8
	// TooLarge means a body, message or header is over its limit.
	TooLarge Code = 9
	// Unsupported means this backend or version cannot do this, ever.
	Unsupported Code = 10
	// Unavailable means the other side is not there or not ready now.
	Unavailable Code = 11
	// Deadline means the time allowed ran out.
	Deadline Code = 12
	// Canceled means the caller gave up.
	Canceled Code = 13
	// NotReady means a part of this sidecar the call needs is missing or still starting
	// (no app channel, component not initialised, app not healthy).
	NotReady Code = 14
	// BadEtag means the etag is not one this store could ever have issued.
	BadEtag Code = 15
	// Lost means data was accepted before and is gone or damaged.
	Lost Code = 16
)

var codeNames = [...]string{
	OK: "ok", Internal: "internal", Invalid: "invalid", NotFound: "not_found", Exists: "exists",
	Conflict: "conflict", Denied: "denied", Unauthenticated: "unauthenticated", Exhausted: "exhausted",
	TooLarge: "too_large", Unsupported: "unsupported", Unavailable: "unavailable", Deadline: "deadline",
	Canceled: "canceled", NotReady: "not_ready", BadEtag: "bad_etag", Lost: "lost",
}

// String is the code's name in logs and metric labels.
func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code_%d", uint8(c))
}

// Op names the operation that failed, "redis.state.Get". Declare it once per method.
type Op string

// Sent tells how far a failed call got. It decides whether repeating it is safe.
type Sent uint8

const (
	// SentUnknown is the zero value: the layer that failed does not know.
	SentUnknown Sent = iota
	// SentNever means the other side cannot have seen the request.
	SentNever
	// SentMaybe means the other side may have acted on the request.
	SentMaybe
)

// Reason narrows a code where a wire needs a more exact answer than the code gives
// (which thing was not found, which rule said no). It is a stable identifier, never shown
// alone; the empty Reason is normal.
type Reason string

// Reasons shared by services and edges.
const (
	NoSuchComponent Reason = "no_such_component" // the named component is not loaded
	NoComponents    Reason = "no_components"     // no component of this block is loaded at all
	IllegalKey      Reason = "illegal_key"
	ForbiddenTopic  Reason = "forbidden_topic"
	ForbiddenSecret Reason = "forbidden_secret"
	BadMetadata     Reason = "bad_metadata"
	BadExpiry       Reason = "bad_expiry"          // a time that cannot be
	BadEnvelope     Reason = "bad_envelope"        // a CloudEvent that cannot be built
	BadEntries      Reason = "bad_entries"         // bulk entries that contradict each other
	NotEntries      Reason = "bulk_not_entries"    // a bulk body that is no list of entries
	EventMismatch   Reason = "bulk_event_mismatch" // a bulk event that does not fit its content type
	NoTransactions  Reason = "no_transactions"
	NoQuery         Reason = "no_query"
	NoScan          Reason = "no_scan"
	NoWatch         Reason = "no_watch"
	NoFence         Reason = "no_fence"
	BadToken        Reason = "bad_page_token"
	Fenced          Reason = "fenced"           // a later epoch has written
	PrecedingFailed Reason = "preceding_failed" // an earlier message of the key could not be published
	OutboxFailed    Reason = "outbox_failed"    // an event could not be put into the outbox
	TooManyOps      Reason = "too_many_operations"
	NoTarget        Reason = "no_target" // the request names no app to call
	EmptyName       Reason = "empty_name"
	NoTopic         Reason = "no_topic"
	BadOperation    Reason = "bad_operation" // an operation name the block does not have
	NoApp           Reason = "no_app"        // this sidecar has no app channel
	AppUnhealthy    Reason = "app_unhealthy"
	AppUnreachable  Reason = "app_unreachable" // the app's port does not answer
	NoInstances     Reason = "no_instances"    // of the app, anywhere
	PeerAnswered    Reason = "peer_answered"   // the error is what another sidecar said, not a failure to reach it
	PolicyRejected  Reason = "policy_rejected"
	PeerRejected    Reason = "peer_rejected" // a policy of the other sidecar
	AccessDenied    Reason = "access_denied" // by Dapr's access control
	BreakerOpen     Reason = "breaker_open"  // of a Dapr Resiliency policy
)

// Error is an error with a code. Fields are read-only once it is returned.
type Error struct {
	Op     Op            // what was tried; may be empty on wrapping layers
	Code   Code          // what kind of failure
	Reason Reason        // finer identity for the wire; may be empty
	Sent   Sent          // how far the call got
	After  time.Duration // earliest sensible retry; zero means no hint
	Rule   string        // the policy that decided this, for rejections; empty when none did
	Msg    string        // for a person: on what, and what to do
	Err    error         // the cause; may be nil
}

// New makes an error from words.
func New(op Op, code Code, format string, args ...any) *Error {
	return &Error{Op: op, Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Wrap gives err a code and an operation. A nil err gives nil. A context error keeps its
// own meaning (Deadline, Canceled) whatever code is passed.
func Wrap(op Op, code Code, err error) error {
	if err == nil {
		return nil
	}
	if c, ok := contextCode(err); ok {
		code = c
	}
	e := &Error{Op: op, Code: code, Err: err}
	var inner *Error
	if errors.As(err, &inner) {
		e.Reason, e.Sent, e.After, e.Rule = inner.Reason, inner.Sent, inner.After, inner.Rule
	}
	return e
}

// With returns e with the reason set, for use at construction.
func (e *Error) With(r Reason) *Error { e.Reason = r; return e }

// WithSent returns e with the reach of the call set, for use at construction.
func (e *Error) WithSent(s Sent) *Error { e.Sent = s; return e }

// WithRule returns e with the policy that decided it, for use at construction.
func (e *Error) WithRule(rule string) *Error { e.Rule = rule; return e }

// WithAfter returns e with a hint when to try again, for use at construction.
func (e *Error) WithAfter(d time.Duration) *Error { e.After = d; return e }

// Because returns e with a cause, for use at construction.
func (e *Error) Because(err error) *Error { e.Err = err; return e }

// Error is "message: cause". The operation is left to logs, where it is an attribute.
func (e *Error) Error() string {
	switch {
	case e.Msg == "" && e.Err == nil:
		return e.Code.String()
	case e.Err == nil:
		return e.Msg
	case e.Msg == "":
		return e.Err.Error()
	}
	return e.Msg + ": " + e.Err.Error()
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// Of tells the code of any error: OK for nil, the outermost *Error's code, Deadline or
// Canceled for context errors, else Internal.
func Of(err error) Code {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	if c, ok := contextCode(err); ok {
		return c
	}
	return Internal
}

// ReasonOf is the outermost reason in err's chain, or empty.
func ReasonOf(err error) Reason {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Reason != "" {
			return e.Reason
		}
		err = e.Err
	}
	return ""
}

// SentOf tells how far a failed call got.
func SentOf(err error) Sent {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return SentUnknown
		}
		if e.Sent != SentUnknown {
			return e.Sent
		}
		err = e.Err
	}
	return SentUnknown
}

// RuleOf names the policy that decided an error, or is empty.
func RuleOf(err error) string {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return ""
		}
		if e.Rule != "" {
			return e.Rule
		}
		err = e.Err
	}
	return ""
}

// AfterOf is the hint when to try again, or zero.
func AfterOf(err error) time.Duration {
	for err != nil {
		var e *Error
		if !errors.As(err, &e) {
			return 0
		}
		if e.After > 0 {
			return e.After
		}
		err = e.Err
	}
	return 0
}

func contextCode(err error) (Code, bool) {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Deadline, true
	case errors.Is(err, context.Canceled):
		return Canceled, true
	}
	return OK, false
}
