package pluggable

import (
	"context"
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/components/fault"
)

// etagField is the field that a component names when it refuses an etag.
const etagField = "etag"

// failure turns an error of a call into a fault. at has an address if the request was given to a
// connection; before is what was done for the request, empty for the request itself.
func (i *instance) failure(ctx context.Context, op fault.Op, before string, err error, at peer.Peer) error {
	var known *fault.Error
	if errors.As(err, &known) {
		return err // decided here
	}
	sent := fault.SentMaybe
	if at.Addr == nil {
		sent = fault.SentNever
	}
	if ended := ctx.Err(); ended != nil {
		e := &fault.Error{}
		errors.As(fault.Wrap(op, fault.Canceled, ended), &e)
		e.Msg = i.words("does not answer in time")
		return e.WithSent(sent)
	}
	st, ok := status.FromError(err)
	if i.closed() {
		return i.gone(op, errOver).WithSent(sent)
	}
	// Canceled, though nobody did: the connection ended under the call.
	if !ok || st.Code() == codes.Unavailable || st.Code() == codes.Canceled {
		return i.gone(op, err).WithSent(sent)
	}
	if e := etagRefusal(op, st); e != nil {
		return e
	}
	if before != "" {
		return fault.New(op, codeOf(st.Code()), "%s", i.words(before+" failed")).Because(err).WithSent(fault.SentNever)
	}
	if st.Code() == codes.Unimplemented {
		sent = fault.SentNever // there is nothing that could have acted
	}
	return (&fault.Error{Op: op, Code: codeOf(st.Code()), Err: err}).WithSent(sent)
}

// etagRefusal reads the protocol's two refusals of an etag; nil when st is neither.
func etagRefusal(op fault.Op, st *status.Status) *fault.Error {
	var code fault.Code
	switch st.Code() {
	case codes.FailedPrecondition:
		code = fault.Conflict
	case codes.InvalidArgument:
		code = fault.BadEtag
	default:
		return nil
	}
	for _, d := range st.Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				if v.GetField() == etagField {
					return fault.New(op, code, "%s", v.GetDescription()).WithSent(fault.SentNever)
				}
			}
		}
	}
	return nil
}

// codeOf is what a component means with a status.
func codeOf(c codes.Code) fault.Code {
	switch c {
	case codes.InvalidArgument, codes.OutOfRange:
		return fault.Invalid
	case codes.NotFound:
		return fault.NotFound
	case codes.AlreadyExists:
		return fault.Exists
	case codes.PermissionDenied:
		return fault.Denied
	case codes.Unauthenticated:
		return fault.Unauthenticated
	case codes.ResourceExhausted:
		return fault.Exhausted
	case codes.Unimplemented:
		return fault.Unsupported
	case codes.DeadlineExceeded: // of the component's own
		return fault.Deadline
	case codes.DataLoss:
		return fault.Lost
	case codes.Unavailable:
		return fault.Unavailable
	}
	return fault.Internal
}

// gone is the fault of a process that cannot be reached.
func (i *instance) gone(op fault.Op, err error) *fault.Error {
	return fault.New(op, fault.Unavailable, "%s", i.words("is not reached; does its process run?")).Because(err)
}

// words put a name before what is wrong.
func (i *instance) words(what string) string {
	return "pluggable component " + i.name + " (" + i.socket + ") " + what
}

// never notes that the request certainly was not sent.
func never(err error) error {
	var e *fault.Error
	if errors.As(err, &e) {
		e.Sent = fault.SentNever
	}
	return err
}
