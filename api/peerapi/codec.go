package peerapi

import (
	"encoding/binary"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// A call between sidecars is a head, opaque body bytes and a trailer on one link stream. The
// heads are encoded here, version 1:
//
//	string   = uvarint length, bytes
//	fields   = uvarint count, count × (string name, string value)
//	request  = 0x01, protocol u8, flags u8, [uvarint body length], target, verb, path, query,
//	           content type, type URL, fields, [upgrade]
//	response = 0x02, flags u8, uvarint status, [uvarint body length], content type, type URL,
//	           [string google.rpc.Status], fields
//	error    = 0x03, code u8, sent u8, uvarint retry-after in ms, reason, message
//	trailer  = 0x04, fields
//
// A response stream starts with a response or an error, and ends with a trailer (which may
// be missing when it is empty) or an error. Bytes after the last known item are ignored, so
// that later versions can append.
const (
	kindRequest  = 0x01
	kindResponse = 0x02
	kindError    = 0x03
	kindTrailer  = 0x04

	flagLength   = 1 << 0 // a body length follows
	flagStreamed = 1 << 1 // the body did not come whole; it follows on the stream
	flagGRPC     = 1 << 2 // the answer is a gRPC app's
	flagStatus   = 1 << 3 // a google.rpc.Status follows
	flagUpgrade  = 1 << 4 // request: a protocol is offered; response: it was taken, the bodies are raw bytes both ways
)

func putString(b []byte, s string) []byte {
	b = binary.AppendUvarint(b, uint64(len(s)))
	return append(b, s...)
}

func putFields(b []byte, fs call.Fields) []byte {
	b = binary.AppendUvarint(b, uint64(len(fs)))
	for i := range fs {
		b = putString(b, fs[i].Name)
		b = putString(b, fs[i].Value)
	}
	return b
}

func appendRequest(b []byte, r *call.Request) []byte {
	var flags byte
	length := int64(len(r.Data))
	if r.Stream != nil {
		flags |= flagStreamed
		length = r.Length
	}
	if length >= 0 {
		flags |= flagLength
	}
	if r.Upgrade != "" {
		flags |= flagUpgrade
	}
	b = append(b, kindRequest, byte(r.Protocol), flags)
	if length >= 0 {
		b = binary.AppendUvarint(b, uint64(length))
	}
	for _, s := range [...]string{r.Target, r.Verb, r.Path, r.Query, r.Type, r.TypeURL} {
		b = putString(b, s)
	}
	b = putFields(b, r.Header)
	if r.Upgrade != "" {
		b = putString(b, r.Upgrade)
	}
	return b
}

func appendResponse(b []byte, r *call.Response) []byte {
	var flags byte
	length := int64(len(r.Data))
	if length == 0 { // an answer to HEAD may announce a length nevertheless
		length = r.Length
	}
	if r.Stream != nil {
		flags |= flagStreamed
	}
	if length >= 0 {
		flags |= flagLength
	}
	if r.FromGRPC {
		flags |= flagGRPC
	}
	if r.GRPCStatus != nil {
		flags |= flagStatus
	}
	if r.Upgrade != nil {
		flags |= flagUpgrade
	}
	b = append(b, kindResponse, flags)
	b = binary.AppendUvarint(b, uint64(max(r.Status, 0)))
	if length >= 0 {
		b = binary.AppendUvarint(b, uint64(length))
	}
	b = putString(b, r.Type)
	b = putString(b, r.TypeURL)
	if r.GRPCStatus != nil {
		b = binary.AppendUvarint(b, uint64(len(r.GRPCStatus)))
		b = append(b, r.GRPCStatus...)
	}
	return putFields(b, r.Header)
}

func appendTrailer(b []byte, fs call.Fields) []byte {
	if len(fs) == 0 {
		return b
	}
	return putFields(append(b, kindTrailer), fs)
}

func appendError(b []byte, err error) []byte {
	b = append(b, kindError, byte(fault.Of(err)), byte(fault.SentOf(err)))
	b = binary.AppendUvarint(b, uint64(fault.AfterOf(err).Milliseconds()))
	b = putString(b, string(fault.ReasonOf(err)))
	b = putString(b, err.Error())
	if rule := fault.RuleOf(err); rule != "" {
		b = putString(b, rule)
	}
	return b
}

// reader walks a head. The bytes are copied into one string first, so that every piece of it
// is a substring and nothing the peer sent is kept beyond the call. bad is sticky.
type reader struct {
	s   string
	bad bool
}

func (r *reader) byte() byte {
	if len(r.s) == 0 {
		r.bad = true
		return 0
	}
	c := r.s[0]
	r.s = r.s[1:]
	return c
}

func (r *reader) uvarint() uint64 {
	var v uint64
	for shift := 0; shift < 64; shift += 7 {
		c := r.byte()
		if shift == 63 && c > 1 {
			break
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v
		}
	}
	r.bad = true
	return 0
}

func (r *reader) string() string {
	n := r.uvarint()
	if n > uint64(len(r.s)) {
		r.bad = true
		return ""
	}
	v := r.s[:n]
	r.s = r.s[n:]
	return v
}

func (r *reader) length(flags byte) int64 {
	if flags&flagLength == 0 {
		return call.Unknown
	}
	n := r.uvarint()
	if n > 1<<62 {
		r.bad = true
	}
	return int64(n)
}

// fields reads into room, growing it no further than the bytes at hand can fill: an entry
// takes two bytes at least.
func (r *reader) fields(spare int) call.Fields {
	n := r.uvarint()
	if n > uint64(len(r.s)/2) {
		r.bad = true
		return nil
	}
	if n == 0 && spare == 0 {
		return nil
	}
	fs := make(call.Fields, 0, int(n)+spare)
	for range n {
		name := r.string()
		fs = append(fs, call.Field{Name: name, Value: r.string()})
	}
	return fs
}

func malformed(what string) error {
	return fault.New("peerapi.decode", fault.Invalid, "the peer sent a malformed %s; are both sidecars of a supported version?", what)
}

// decodeRequest reads a request head. Room for a few more headers is left in the field list,
// for those added on the way to the app.
func decodeRequest(head []byte) (*call.Request, bool, error) {
	r := reader{s: string(head)}
	if r.byte() != kindRequest {
		return nil, false, malformed("request head")
	}
	req := &call.Request{Protocol: call.Protocol(r.byte())}
	flags := r.byte()
	req.Length = r.length(flags)
	for _, s := range [...]*string{&req.Target, &req.Verb, &req.Path, &req.Query, &req.Type, &req.TypeURL} {
		*s = r.string()
	}
	req.Header = r.fields(4)
	if flags&flagUpgrade != 0 {
		req.Upgrade = r.string()
	}
	if r.bad || req.Protocol > call.GRPC {
		return nil, false, malformed("request head")
	}
	return req, flags&flagStreamed != 0, nil
}

// decodeAnswer reads the first head of an answer: a response, or the callee's error.
func decodeAnswer(head []byte) (resp *call.Response, streamed, upgrade bool, err error) {
	r := reader{s: string(head)}
	switch r.byte() {
	case kindError:
		return nil, false, false, r.error()
	case kindResponse:
	default:
		return nil, false, false, malformed("response head")
	}
	flags := r.byte()
	resp = &call.Response{FromGRPC: flags&flagGRPC != 0, Status: int(r.uvarint() & 0xffff)}
	resp.Length = r.length(flags)
	resp.Type, resp.TypeURL = r.string(), r.string()
	if flags&flagStatus != 0 {
		resp.GRPCStatus = []byte(r.string())
	}
	resp.Header = r.fields(0)
	if r.bad {
		return nil, false, false, malformed("response head")
	}
	return resp, flags&flagStreamed != 0, flags&flagUpgrade != 0, nil
}

// decodeEnd reads what closes an answer: nothing, trailing fields, or an error that broke the
// body off.
func decodeEnd(tail []byte) (call.Fields, error) {
	if len(tail) == 0 {
		return nil, nil
	}
	r := reader{s: string(tail)}
	switch r.byte() {
	case kindError:
		return nil, r.error()
	case kindTrailer:
		if fs := r.fields(0); !r.bad {
			return fs, nil
		}
	}
	return nil, malformed("trailer")
}

func (r *reader) error() error {
	code, sent := fault.Code(r.byte()), fault.Sent(r.byte())
	after := time.Duration(r.uvarint()&0xffffffff) * time.Millisecond
	reason, msg := fault.Reason(r.string()), r.string()
	var rule string
	if !r.bad && len(r.s) > 0 {
		rule = r.string()
	}
	if r.bad || code == fault.OK {
		return malformed("error")
	}
	switch reason {
	case "":
		reason = fault.PeerAnswered
	case fault.PolicyRejected:
		reason = fault.PeerRejected // not a policy of ours, so not the last word of our retries
	}
	return &fault.Error{Op: "peer", Code: code, Sent: sent, After: after, Reason: reason, Rule: rule, Msg: msg}
}
