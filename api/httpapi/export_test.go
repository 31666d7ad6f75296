package httpapi

import (
	"bytes"
	"context"
	"io"
	"net"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/runtime/call"
)

// Parts that are tested by themselves.
var (
	AppTarget    = appTarget
	ValidEscapes = validEscapes
	Collapse     = collapse
	Carried      = carried
	SplitInvoke  = splitInvoke
	BasicTarget  = basicAuthTarget
)

// AppRequest is the HTTP request an app gets for a call.
func AppRequest(req *call.Request) (*h1.Request, error) { return appRequest(req) }

// Exchange is one request without a wire, and the answer to it.
type Exchange struct {
	Verb, To string
	Fields   call.Fields
	Payload  []byte
	Chunked  bool // the body's length is not announced

	Status  int
	Answer  call.Fields
	Out     []byte
	Length  int64 // as announced
	Trailer call.Fields
	Ended   bool
	Aborted bool
	Answers int // how often an answer was begun
}

// Do answers x as the API port does.
func (s *Server) Do(x *Exchange) { s.handle(wireless{x}, s.api) }

// DoPublic answers x as the public port does.
func (s *Server) DoPublic(x *Exchange) { s.handle(wireless{x}, s.publicOnly) }

type wireless struct{ *Exchange }

func (w wireless) Method() string      { return w.Verb }
func (w wireless) Target() string      { return w.To }
func (w wireless) Host() string        { return "localhost" }
func (w wireless) Header() call.Fields { return append(call.Fields(nil), w.Fields...) }
func (w wireless) ContentLength() int64 {
	if w.Chunked {
		return -1
	}
	return int64(len(w.Payload))
}
func (w wireless) Body() io.ReadCloser { return io.NopCloser(bytes.NewReader(w.Payload)) }
func (w wireless) ReadBody(most int64) ([]byte, error) {
	if int64(len(w.Payload)) > most {
		return nil, errTooLarge(most)
	}
	return w.Payload, nil
}
func (w wireless) RequestTrailer() call.Fields { return nil }
func (w wireless) Context() context.Context    { return context.Background() }
func (w wireless) RemoteAddr() net.Addr        { return nil }

func (w wireless) Respond(status int, fields call.Fields, body []byte) error {
	w.Answers++
	w.Status, w.Answer, w.Out, w.Length, w.Ended = status, append(call.Fields(nil), fields...), bytes.Clone(body), int64(len(body)), true
	return nil
}

func (w wireless) Start(status int, fields call.Fields, length int64) error {
	w.Answers++
	w.Status, w.Answer, w.Length = status, append(call.Fields(nil), fields...), length
	return nil
}

func (w wireless) Write(p []byte) (int, error) {
	w.Out = append(w.Out, p...)
	return len(p), nil
}

func (w wireless) Flush() error { return nil }

func (w wireless) End(trailer call.Fields) error {
	w.Trailer, w.Ended = trailer, true
	return nil
}

func (w wireless) Inform(int, call.Fields) error { return nil }
func (w wireless) Abort()                        { w.Aborted = true }
