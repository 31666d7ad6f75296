// Package apierr is the one table between faults and the two wires.
//
// An edge turns the error of a service into an *Error with one of the functions of table.go
// (State, Publish, Invoke…) in its outermost handler, and writes it as an HTTP body (JSON) or
// a gRPC status (Status). The tags, statuses and details are Dapr's: SDKs branch on them.
// Start at table.go.
package apierr

import (
	"strconv"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

// Row is what a failure looks like on each wire.
type Row struct {
	Tag  string     // errorCode of the HTTP body
	HTTP int        // HTTP status
	GRPC codes.Code // gRPC status code
	Info string     // reason of the ErrorInfo detail; empty means no details on either wire
}

// Error is a failure ready for the wire.
type Error struct {
	Row
	Message  string
	Metadata map[string]string // of the ErrorInfo
	Resource *Resource
	Field    *Field
	Help     string // URL
	Domain   string // of the ErrorInfo; empty: Dapr's
	// Rule is the policy that decided this; After is when to try again. Either may be empty.
	Rule  string
	After time.Duration
}

// RuleHeader names the policy that refused a call, in answers over HTTP and gRPC.
const RuleHeader = "x-mecha-policy"

// Resource is the ResourceInfo detail.
type Resource struct{ Type, Name, Owner, Description string }

// Field is the BadRequest detail's one violation.
type Field struct{ Name, Description string }

// Because makes an error of the row with a message.
func (r Row) Because(message string) *Error { return &Error{Row: r, Message: message} }

// Error makes *Error an error.
func (e *Error) Error() string { return e.Message }

func (e *Error) domain() string {
	if e.Domain != "" {
		return e.Domain
	}
	return "dapr.io"
}

// Status is the gRPC form. Protobuf refuses text that is not UTF-8 and would drop the details
// with it, so such bytes (an app's answer cut in the middle of a letter) become U+FFFD.
func (e *Error) Status() *status.Status {
	st := status.New(e.GRPC, valid(e.Message))
	if e.Info == "" {
		return st
	}
	var details []protoadapt.MessageV1
	if e.Resource != nil {
		details = append(details, &errdetails.ResourceInfo{ResourceType: valid(e.Resource.Type), ResourceName: valid(e.Resource.Name),
			Owner: valid(e.Resource.Owner), Description: valid(e.Resource.Description)})
	}
	details = append(details, &errdetails.ErrorInfo{Reason: e.Info, Domain: e.domain(), Metadata: validMap(e.Metadata)})
	if e.Field != nil {
		details = append(details, &errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: valid(e.Field.Name), Description: valid(e.Field.Description)}}})
	}
	if e.Help != "" {
		details = append(details, &errdetails.Help{Links: []*errdetails.Help_Link{{Url: e.Help}}})
	}
	with, err := st.WithDetails(details...)
	if err != nil {
		return st
	}
	return with
}

func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s)) // one U+FFFD for each bad byte, as in the JSON form
}

func validMap(m map[string]string) map[string]string {
	if m == nil {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[valid(k)] = valid(v)
	}
	return out
}

// GRPCStatus lets grpc-go find the status when an *Error is returned from a handler.
func (e *Error) GRPCStatus() *status.Status { return e.Status() }

// JSON is the HTTP body: {"errorCode":…,"message":…} and, for rows with an Info, "details".
func (e *Error) JSON() []byte {
	b := make([]byte, 0, 96+len(e.Message))
	b = append(b, `{"errorCode":`...)
	b = AppendString(b, e.Tag)
	b = append(b, `,"message":`...)
	b = AppendString(b, e.Message)
	if e.Info != "" {
		b = e.appendDetails(b)
	}
	return append(b, '}')
}

func (e *Error) appendDetails(b []byte) []byte {
	const typ = `{"@type":"type.googleapis.com/google.rpc.`
	b = append(b, `,"details":[`...)
	if r := e.Resource; r != nil {
		b = append(b, typ+`ResourceInfo","resource_type":`...)
		b = AppendString(b, r.Type)
		b = append(b, `,"resource_name":`...)
		b = AppendString(b, r.Name)
		b = append(b, `,"owner":`...)
		b = AppendString(b, r.Owner)
		b = append(b, `,"description":`...)
		b = AppendString(b, r.Description)
		b = append(b, `},`...)
	}
	b = append(b, typ+`ErrorInfo","reason":`...)
	b = AppendString(b, e.Info)
	b = append(b, `,"domain":"`+e.domain()+`","metadata":`...)
	b = appendMap(b, e.Metadata)
	b = append(b, '}')
	if f := e.Field; f != nil {
		b = append(b, `,`+typ+`BadRequest","field_violations":[{"field":`...)
		b = AppendString(b, f.Name)
		b = append(b, `,"description":`...)
		b = AppendString(b, f.Description)
		b = append(b, `}]}`...)
	}
	if e.Help != "" {
		b = append(b, `,`+typ+`Help","links":[{"url":`...)
		b = AppendString(b, e.Help)
		b = append(b, `,"description":""}]}`...)
	}
	return append(b, ']')
}

func appendMap(b []byte, m map[string]string) []byte {
	if m == nil {
		return append(b, "null"...)
	}
	b = append(b, '{')
	first := true
	for _, k := range sortedKeys(m) {
		if !first {
			b = append(b, ',')
		}
		first = false
		b = AppendString(b, k)
		b = append(b, ':')
		b = AppendString(b, m[k])
	}
	return append(b, '}')
}

// AppendString appends s as a JSON string. Bytes that are not UTF-8 become U+FFFD.
func AppendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s { // ranging replaces invalid bytes by U+FFFD
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r < 0x20 || r == '<' || r == '>' || r == '&':
			b = append(b, `\u00`...)
			b = append(b, hex[r>>4], hex[r&15])
		case r == '\u2028' || r == '\u2029':
			b = append(b, `\u202`...)
			b = append(b, hex[r&15])
		default:
			b = append(b, string(r)...)
		}
	}
	return append(b, '"')
}

// HTTPFromGRPC maps a gRPC code to the HTTP status shown to an HTTP caller.
func HTTPFromGRPC(c codes.Code) int {
	switch c {
	case codes.OK:
		return 200
	case codes.Canceled:
		return 408
	case codes.InvalidArgument, codes.FailedPrecondition, codes.OutOfRange:
		return 400
	case codes.DeadlineExceeded:
		return 504
	case codes.NotFound:
		return 404
	case codes.AlreadyExists, codes.Aborted:
		return 409
	case codes.PermissionDenied:
		return 403
	case codes.Unauthenticated:
		return 401
	case codes.ResourceExhausted:
		return 429
	case codes.Unimplemented:
		return 501
	case codes.Unavailable:
		return 503
	}
	return 500
}

// GRPCFromHTTP maps an HTTP app's status to the gRPC code shown to an InvokeService caller.
// 400 and 500 are as Dapr has them, though others would be more telling: SDKs depend on it.
func GRPCFromHTTP(status int) codes.Code {
	if status >= 200 && status < 300 {
		return codes.OK
	}
	switch status {
	case 400:
		return codes.Internal
	case 401:
		return codes.Unauthenticated
	case 403:
		return codes.PermissionDenied
	case 404:
		return codes.NotFound
	case 408:
		return codes.Canceled
	case 409:
		return codes.AlreadyExists
	case 429:
		return codes.ResourceExhausted
	case 501:
		return codes.Unimplemented
	case 503:
		return codes.Unavailable
	case 504:
		return codes.DeadlineExceeded
	}
	return codes.Unknown
}

// FromHTTPApp is the status an InvokeService caller gets for an HTTP app's non-2xx answer:
// the standard text, and an ErrorInfo with the code and the first 63 bytes of the body.
func FromHTTPApp(httpStatus int, text string, body []byte) *status.Status {
	if len(body) > 63 {
		body = body[:63]
	}
	e := &Error{Row: Row{GRPC: GRPCFromHTTP(httpStatus), Info: text}, Message: text,
		Metadata: map[string]string{"http.code": strconv.Itoa(httpStatus), "http.error_message": string(body)}}
	return e.Status()
}
