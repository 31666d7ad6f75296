package apierr

import (
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/mecha-project/mecha/components/fault"
)

// nativeDomain stands in the details of errors that Dapr's API does not have.
const nativeDomain = "mecha.io"

// Native translates an error of a mecha.v1 service: the status says the kind, and the errorCode
// and the reason in the details name it, in capitals.
func Native(err error) *Error {
	if e := rejected(err.Error(), err); e != nil {
		return e
	}
	row := nativeRow(fault.Of(err))
	name := fault.Of(err).String()
	switch reason := fault.ReasonOf(err); reason {
	case "":
	case fault.Fenced: // another attempt will not help, which is what ABORTED would say
		row, name = Row{HTTP: 412, GRPC: codes.FailedPrecondition}, string(reason)
	default:
		name = string(reason)
	}
	row.Tag = strings.ToUpper(name)
	row.Info = row.Tag
	return &Error{Row: row, Message: err.Error(), Domain: nativeDomain, After: fault.AfterOf(err)}
}

func nativeRow(c fault.Code) Row {
	row := Row{GRPC: codes.Internal}
	switch c {
	case fault.Invalid, fault.BadEtag:
		row.GRPC = codes.InvalidArgument
	case fault.NotFound:
		row.GRPC = codes.NotFound
	case fault.Exists:
		row.GRPC = codes.AlreadyExists
	case fault.Conflict:
		row.GRPC = codes.Aborted
	case fault.Denied:
		row.GRPC = codes.PermissionDenied
	case fault.Unauthenticated:
		row.GRPC = codes.Unauthenticated
	case fault.Exhausted:
		row.GRPC = codes.ResourceExhausted
	case fault.TooLarge:
		return Row{HTTP: 413, GRPC: codes.ResourceExhausted}
	case fault.Unsupported:
		row.GRPC = codes.Unimplemented
	case fault.Unavailable, fault.NotReady:
		row.GRPC = codes.Unavailable
	case fault.Deadline:
		row.GRPC = codes.DeadlineExceeded
	case fault.Canceled:
		row.GRPC = codes.Canceled
	case fault.Lost:
		row.GRPC = codes.DataLoss
	}
	row.HTTP = HTTPFromGRPC(row.GRPC)
	return row
}
