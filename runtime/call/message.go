package call

import (
	"context"
	"io"
	"strings"
)

// Responder receives the answer of an invocation while the call is still open. Respond writes
// the whole answer, streamed body included, before it returns; the response is closed for it.
type Responder interface {
	Respond(ctx context.Context, resp *Response) error
}

// Field is one header or metadata entry. Names compare without regard to case; values are
// opaque bytes (a gRPC "-bin" value is held decoded).
type Field struct{ Name, Value string }

// Fields is an ordered multimap of header or metadata entries. The zero value is empty and
// ready to use. It is not safe for concurrent change.
type Fields []Field

// Get returns the first value of name, or "".
func (f Fields) Get(name string) string {
	v, _ := f.Lookup(name)
	return v
}

// Lookup returns the first value of name and whether there is one.
func (f Fields) Lookup(name string) (string, bool) {
	for i := range f {
		if len(f[i].Name) == len(name) && strings.EqualFold(f[i].Name, name) {
			return f[i].Value, true
		}
	}
	return "", false
}

// Add appends an entry, keeping earlier ones of the same name.
func (f *Fields) Add(name, value string) { *f = append(*f, Field{name, value}) }

// Set replaces every entry of name by one.
func (f *Fields) Set(name, value string) {
	f.Del(name)
	f.Add(name, value)
}

// Del removes every entry of name, keeping the order of the rest.
func (f *Fields) Del(name string) {
	out := (*f)[:0]
	for _, e := range *f {
		if len(e.Name) != len(name) || !strings.EqualFold(e.Name, name) {
			out = append(out, e)
		}
	}
	*f = out
}

// Protocol is what the initiator of an invocation speaks. It decides how the callee's edge
// presents the call to its app and what shape the answer has.
type Protocol uint8

const (
	// HTTP is a call that came in over HTTP: verb, path, query, headers, one body.
	HTTP Protocol = iota
	// Unary is InvokeService: one message each way, with HTTP-like extension fields.
	Unary
	// GRPC is a proxied gRPC call: Path is the full method, Body is a sequence of gRPC
	// length-prefixed messages (1 flag byte, 4 length bytes big-endian, payload), and the
	// status travels in the response's trailer (grpc-status, grpc-message,
	// grpc-status-details-bin).
	GRPC
)

// Ended reports the orderly end of a body: io.EOF itself. An error that wraps it tells of a
// connection that was closed, and whoever took that for the end would pass on half a body as
// a whole one.
func Ended(err error) bool { return err == io.EOF } //nolint:errorlint // see above

// Unknown is the Length of a body whose size is not known before its end.
const Unknown int64 = -1

// Request is one invocation of an app's method, the same in both edges, on the peer hop and
// at the app channel. The receiver of a Request must consume or Close Stream; it must not
// keep Fields, Data or strings it did not copy past the call's end unless documented.
type Request struct {
	Protocol Protocol
	Target   string // app id, "app.namespace", HTTPEndpoint name or base URL, as the caller wrote it
	Verb     string // HTTP verb in upper case; empty for GRPC
	Path     string // cleaned and decoded method path without leading slash; the full method for GRPC
	Query    string // raw query without '?'
	Type     string // content type; empty when the caller sent none
	TypeURL  string // Unary: google.protobuf.Any type URL; else empty
	Header   Fields // end-to-end headers or metadata, hop-by-hop ones already gone

	// Data is the whole body when Stream is nil. When Stream is not nil the body is Stream,
	// of Length bytes or Unknown.
	Data   []byte
	Stream io.ReadCloser
	Length int64

	// Trailer returns the trailing fields of Stream, valid after it returned io.EOF. Nil means
	// there are none.
	Trailer func() Fields

	// Upgrade names the protocol the caller offers to switch to; empty means none. Such a
	// request has no body.
	Upgrade string

	// Shadow marks a mirror's copy of another request.
	Shadow bool

	// Inform, if set, receives interim (1xx) responses other than 100 and 101. It is called
	// before the final response is returned, from the goroutine that reads the response.
	Inform func(status int, header Fields)
}

// Streamed reports whether the body cannot be sent twice.
func (r *Request) Streamed() bool { return r.Stream != nil }

// Response is the answer to a Request.
type Response struct {
	Status  int    // HTTP status; for GRPC and gRPC apps the table of status mapping applies
	Type    string // content type; empty when the app sent none
	TypeURL string // a gRPC app's Any type URL
	Header  Fields

	// FromGRPC marks the answer of a gRPC app to a non-proxied call; GRPCStatus is then the
	// serialised google.rpc.Status when the app failed, nil when it answered.
	FromGRPC   bool
	GRPCStatus []byte

	Data   []byte
	Stream io.ReadCloser
	Length int64

	// Trailer returns the trailing fields. It is valid after Stream returned io.EOF (or at
	// once when Stream is nil); nil means there are none.
	Trailer func() Fields

	// Upgrade is set on a 101: the raw connection to the app, with a CloseWrite method where
	// it can be closed by halves. Stream is nil then.
	Upgrade io.ReadWriteCloser

	// Held is what the response borrows (a pooled buffer that Data and Header point into);
	// Close gives it back. Nil when it borrows nothing.
	Held io.Closer
}

// Close ends the use of the response: it releases an unread body and what the response
// borrows. Data, Header and Trailer are not valid afterwards. Whoever receives a Response
// must Close it, once; closing nil is fine.
func (r *Response) Close() error {
	if r == nil {
		return nil
	}
	var err error
	switch {
	case r.Upgrade != nil:
		err = r.Upgrade.Close()
	case r.Stream != nil:
		err = r.Stream.Close()
	}
	if r.Held != nil {
		held := r.Held
		r.Held = nil
		held.Close()
	}
	return err
}
