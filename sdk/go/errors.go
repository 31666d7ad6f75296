package mecha

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// Error is what a sidecar said is wrong.
type Error struct {
	Code       codes.Code
	Reason     string // its name, such as "PRECEDING_FAILED"; see the proto file
	Message    string
	Retryable  bool          // another attempt may succeed
	RetryAfter time.Duration // when; 0: nothing is known
}

// Error says the reason and the message.
func (e *Error) Error() string { return e.Reason + ": " + e.Message }

// GRPCStatus lets gRPC's status package find the code.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Error()) }

// The reasons that a caller is most likely to ask for with ReasonOf.
const (
	ReasonPrecedingFailed   = "PRECEDING_FAILED"
	ReasonMissingCapability = "MISSING_CAPABILITY"
	ReasonTooLarge          = "TOO_LARGE"
	ReasonInstanceReplaced  = "INSTANCE_REPLACED"
	ReasonNotParked         = "NOT_PARKED"
)

// ReasonOf is the reason of the Error in err, or "".
func ReasonOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// errorOf makes an Error of a call's.
func errorOf(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok || st.Code() == codes.OK {
		return err
	}
	switch st.Code() {
	case codes.Canceled:
		return fmt.Errorf("%w: %s", context.Canceled, st.Message())
	case codes.DeadlineExceeded:
		return fmt.Errorf("%w: %s", context.DeadlineExceeded, st.Message())
	}
	e := &Error{Code: st.Code(), Reason: st.Code().String(), Message: st.Message(), Retryable: transient(st.Code())}
	for _, d := range st.Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			e.Reason = d.GetReason()
		case *errdetails.RetryInfo:
			e.RetryAfter = d.GetRetryDelay().AsDuration()
		}
	}
	return e
}

// faultError makes an error of a fault; nil of none.
func faultError(f *mechav1.MessagingFault) error {
	if f == nil {
		return nil
	}
	return &Error{Code: codes.Code(f.GetCode()), Reason: f.GetReason(), Message: f.GetMessage(), Retryable: f.GetRetryable(), RetryAfter: f.GetRetryAfter().AsDuration()} //nolint:gosec // a code
}

// transient are the failures of a stream after which another one may live.
func transient(c codes.Code) bool {
	switch c {
	case codes.Unavailable, codes.Internal, codes.Canceled, codes.DeadlineExceeded, codes.ResourceExhausted, codes.DataLoss:
		return true
	}
	return false
}

// lasts reports an error of a stream that another stream would have too.
func lasts(err error) bool {
	st, ok := status.FromError(err)
	return ok && st.Code() != codes.OK && !transient(st.Code())
}

// verdict is a handler's wish about its message.
type verdict struct {
	remedy mechav1.Remedy
	delay  time.Duration
	cause  error
}

func (v *verdict) Error() string {
	if v.cause != nil {
		return v.cause.Error()
	}
	return v.remedy.String()
}

func (v *verdict) Unwrap() error { return v.cause }

// RetryAfter is what a handler returns to have its message again after a pause. cause is for logs and
// may be nil. Any other error has it again too, after the pauses of the retry policy.
func RetryAfter(d time.Duration, cause error) error {
	return &verdict{remedy: mechav1.Remedy_REMEDY_RETRY, delay: d, cause: cause}
}

// DeadLetter is what a handler returns to have its message copied to the dead-letter topic. The next
// message of its key has OrderGap.
func DeadLetter(cause error) error {
	return &verdict{remedy: mechav1.Remedy_REMEDY_DEAD_LETTER, cause: cause}
}

// Park is what a handler returns to have its message set aside, with all later ones of its key, until
// Client.Unpark.
func Park(cause error) error { return &verdict{remedy: mechav1.Remedy_REMEDY_PARK, cause: cause} }

// Drop is what a handler returns to be rid of its message. The next one of its key has OrderGap.
func Drop(cause error) error { return &verdict{remedy: mechav1.Remedy_REMEDY_DROP, cause: cause} }
