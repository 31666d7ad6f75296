package nats

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"

	natsgo "github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/mecha-project/mecha/components/fault"
)

// Error codes of the JetStream API which have a meaning of their own here.
const (
	codeAccountFull    = 10002 // room of the account used up; so the embedded node answers on a full disk
	codeInsufficient   = 10023 // resources of the server: disk or memory full
	codeConsumerNone   = 10014
	codeNoMessage      = 10037
	codeStorage        = 10047
	codeStreamCreate   = 10049 // its store cannot be made: one of the name may still be cleared away
	codeMaxPayload     = 10054
	codeMaxConsumers   = 10026
	codeStreamNotFound = 10059
	codeWrongLastSeq   = 10071
	codeWrongLastConst = 10164 // the same, where the server does not tell the sequence
	codeTTLDisabled    = 10166
	codeAtomicDisabled = 10174
	codeBatchBroken    = 10176
	codeBatchTooLarge  = 10199
	codeBatchDuplicate = 10201
	codeBatchInflight  = 10210
)

// apiError is the error part of a JetStream answer.
type apiError struct {
	Code        int    `json:"code"`
	ErrCode     int    `json:"err_code"`
	Description string `json:"description"`
}

// Error is the server's description.
func (e *apiError) Error() string { return e.Description }

// conflict tells an expectation that did not hold.
func (e *apiError) conflict() bool {
	return e != nil && (e.ErrCode == codeWrongLastSeq || e.ErrCode == codeWrongLastConst)
}

// full tells that the server has no room left.
func (e *apiError) full() bool {
	return e != nil && (e.ErrCode == codeAccountFull || e.ErrCode == codeInsufficient || e.ErrCode == codeStorage)
}

// pubAck is the answer to a publish.
type pubAck struct {
	Error     *apiError `json:"error"`
	Seq       uint64    `json:"seq"`
	Duplicate bool      `json:"duplicate"`
}

// parseAck reads the answer to a publish. nil is success; a nil apiError with an error is an
// answer nobody understands.
func parseAck(op fault.Op, m *natsgo.Msg) (*apiError, error) {
	ack, err := readAck(op, m)
	return ack.Error, err
}

// readAck is parseAck for who wants to know all of it.
func readAck(op fault.Op, m *natsgo.Msg) (pubAck, error) {
	if seq := plainAck(m.Data); seq != 0 {
		return pubAck{Seq: seq}, nil
	}
	var ack pubAck
	if err := json.Unmarshal(m.Data, &ack); err != nil || ack.Error == nil && ack.Seq == 0 {
		return pubAck{}, fault.New(op, fault.Internal, "the server answered a publish with %.100q", m.Data).WithSent(fault.SentMaybe)
	}
	return ack, nil
}

// plainAck is the sequence in an answer that holds nothing else beside the stream's name, which is
// nearly every one; 0 for all others.
func plainAck(data []byte) uint64 {
	rest, ok := bytes.CutPrefix(data, []byte(`{"stream":"`))
	if !ok {
		return 0
	}
	for len(rest) > 0 && (plain(rest[0]) && rest[0] != '/') {
		rest = rest[1:]
	}
	rest, ok = bytes.CutPrefix(rest, []byte(`", "seq":`))
	if !ok || len(rest) < 2 || len(rest) > 20 || rest[len(rest)-1] != '}' {
		return 0
	}
	var seq uint64
	for _, c := range rest[:len(rest)-1] {
		if c < '0' || c > '9' {
			return 0
		}
		seq = 10*seq + uint64(c-'0')
	}
	return seq
}

// refusal turns the server's answer into a fault.
func refusal(op fault.Op, what string, e *apiError) *fault.Error {
	code := fault.Internal
	hint := ""
	switch e.ErrCode {
	case codeWrongLastSeq, codeWrongLastConst:
		code, hint = fault.Conflict, "; read it again"
	case codeAccountFull, codeInsufficient, codeStorage:
		code, hint = fault.Exhausted, "; is the disk full?"
	case codeMaxConsumers:
		code, hint = fault.Exhausted, "; every reader of a partition is one: raise the limit of the account or stream"
	case codeStreamCreate:
		code = fault.Unavailable
	case codeMaxPayload, codeBatchTooLarge:
		code = fault.TooLarge
	case codeTTLDisabled, codeAtomicDisabled:
		code, hint = fault.Unsupported, "; the stream was created without it, or by a server older than 2.12"
	case codeBatchDuplicate:
		code, hint = fault.Exists, "; one of its ids was accepted before"
	case codeBatchBroken, codeBatchInflight:
		code, hint = fault.Exhausted, "; too many transactions at once"
	default:
		if e.Code == 503 {
			code = fault.Unavailable
		}
	}
	return fault.New(op, code, "%s: the server refuses: %s%s", what, e.Description, hint).WithSent(fault.SentNever)
}

// sendError turns an error of the client library on the way out into a fault: nothing was sent.
func sendError(op fault.Op, err error) error {
	code := fault.Unavailable
	switch {
	case errors.Is(err, natsgo.ErrMaxPayload):
		code = fault.TooLarge
	case errors.Is(err, natsgo.ErrBadSubject):
		code = fault.Invalid
	}
	return fault.New(op, code, "cannot send").Because(err).WithSent(fault.SentNever)
}

// adminError turns an error of stream or consumer administration into a fault.
func adminError(op fault.Op, what string, err error) error {
	if err == nil {
		return nil
	}
	var api *jetstream.APIError
	code := fault.Unavailable
	switch {
	case errors.As(err, &api):
		e := refusal(op, what, &apiError{Code: api.Code, ErrCode: int(api.ErrorCode), Description: api.Description})
		if api.Code == 400 && e.Code == fault.Internal {
			e.Code = fault.Invalid
		}
		return e
	case errors.Is(err, natsgo.ErrAuthorization), errors.Is(err, natsgo.ErrPermissionViolation):
		code = fault.Denied
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, natsgo.ErrNoResponders):
		return fault.New(op, fault.Unavailable, "%s: the server has no JetStream; enable it", what).Because(err)
	case strings.Contains(err.Error(), "invalid"):
		code = fault.Invalid
	}
	return wrapf(op, code, what, err)
}

// wrapf is fault.Wrap with words in front; context errors keep their meaning.
func wrapf(op fault.Op, code fault.Code, what string, err error) error {
	w := fault.Wrap(op, code, err)
	var e *fault.Error
	if errors.As(w, &e) && e.Msg == "" {
		e.Msg = what
	}
	return w
}
