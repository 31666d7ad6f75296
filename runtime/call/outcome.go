package call

import (
	"errors"

	"github.com/mecha-project/mecha/components/fault"
)

// Outcome is how an attempt ended, in the one closed set that retries, breakers, outlier
// detection and metrics read. Errors, HTTP statuses and gRPC codes map into it here and
// nowhere else.
type Outcome uint8

// The outcomes. Append-only: they are metric labels.
const (
	OK             Outcome = iota
	AppError               // the other side failed (5xx, Internal, Unknown)
	NotFound               // what was asked for does not exist
	Conflict               // a precondition did not hold
	Throttled              // the other side asks to come back later
	Unavailable            // the other side answered that it cannot now
	ConnectFailure         // the other side certainly has not seen the request
	Reset                  // the connection was lost; the other side may have acted
	Deadline               // the time allowed ran out
	Canceled               // the caller gave up
	Permanent              // the request is wrong and will be wrong again
	Rejected               // policy refused it here
)

var outcomeNames = [...]string{"ok", "app-error", "not-found", "conflict", "throttled", "unavailable",
	"connect-failure", "reset", "deadline", "cancelled", "permanent", "policy-rejected"}

// String is the outcome's name in policies, logs and metrics.
func (o Outcome) String() string { return outcomeNames[min(o, Rejected)] }

// ParseOutcome finds an outcome by its name.
func ParseOutcome(name string) (Outcome, bool) {
	for o := OK; o <= Rejected; o++ {
		if outcomeNames[o] == name {
			return o, true
		}
	}
	return OK, false
}

// Outcomes are the names of all outcomes.
func Outcomes() []string { return outcomeNames[:] }

// Status is the status of an answer: an HTTP status, or a gRPC code. The zero value means
// there was none.
type Status struct {
	HTTP int    // 100–599; 0: not an HTTP answer
	GRPC uint32 // meaningful if Code
	Code bool   // GRPC is set
	// Open says that the answer has begun well and is still to be read: the attempt ends with
	// the call, and what it holds is held until then.
	Open bool
}

// HTTPStatus is an HTTP answer's.
func HTTPStatus(code int) Status { return Status{HTTP: code} }

// GRPCStatus is a gRPC answer's.
func GRPCStatus(code uint32) Status { return Status{GRPC: code, Code: true} }

// Answered is an error that the other side answered with: policies may look at the status.
type Answered interface {
	error
	CallStatus() Status
}

// statusIn is the status of the answer that an error is; the zero value when it is none.
func statusIn(err error) Status {
	if err == nil { // before the variable, which costs an allocation
		return Status{}
	}
	var a Answered
	if errors.As(err, &a) {
		return a.CallStatus()
	}
	return Status{}
}

// OutcomeOf classifies an attempt.
func OutcomeOf(err error, st Status) Outcome {
	switch {
	case err != nil:
		return ofError(err)
	case st.Code:
		return ofGRPC(st.GRPC)
	case st.HTTP >= 400:
		return ofHTTP(st.HTTP)
	}
	return OK
}

func ofError(err error) Outcome {
	switch code, reason := fault.Of(err), fault.ReasonOf(err); {
	case reason == fault.PolicyRejected, reason == fault.AccessDenied, reason == fault.BreakerOpen:
		return Rejected
	case code == fault.Canceled:
		return Canceled
	case code == fault.Deadline:
		return Deadline
	case code == fault.Exhausted:
		return Throttled
	case code == fault.NotFound && reason == fault.NoInstances:
		return ConnectFailure
	case code == fault.NotFound && reason == "":
		return NotFound
	case code == fault.Conflict, code == fault.Exists:
		return Conflict
	case code == fault.Unavailable && reason == fault.PeerRejected:
		return Unavailable
	case code == fault.Unavailable, code == fault.NotReady:
		switch fault.SentOf(err) {
		case fault.SentNever:
			return ConnectFailure
		case fault.SentMaybe:
			return Reset
		}
		return Unavailable
	case code == fault.Internal, code == fault.Lost:
		return AppError
	}
	return Permanent
}

// ofHTTP classifies a status from 400 up. 502 and 504 are a gateway's words for what 503 is an
// app's.
func ofHTTP(status int) Outcome {
	switch status {
	case 404:
		return NotFound
	case 409, 412:
		return Conflict
	case 429:
		return Throttled
	case 502, 503:
		return Unavailable
	case 408, 504:
		return Deadline
	}
	if status >= 500 {
		return AppError
	}
	return Permanent
}

// ofGRPC classifies by the canonical codes.
func ofGRPC(code uint32) Outcome {
	switch code {
	case 0:
		return OK
	case 1:
		return Canceled
	case 4:
		return Deadline
	case 5:
		return NotFound
	case 6, 10: // AlreadyExists, Aborted
		return Conflict
	case 8:
		return Throttled
	case 14:
		return Unavailable
	case 2, 13, 15: // Unknown, Internal, DataLoss
		return AppError
	}
	return Permanent
}

// Failed tells whether the outcome speaks against the other side, rather than against the
// request, the caller or our own policy.
func (o Outcome) Failed() bool {
	switch o {
	case AppError, Unavailable, ConnectFailure, Reset, Deadline:
		return true
	}
	return false
}
