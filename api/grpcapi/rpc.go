package grpcapi

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// rpc is one call of the API. It is the grpc.ServerTransportStream of its context, so that
// handlers set headers and trailers with grpc.SetHeader and grpc.SetTrailer.
type rpc struct {
	s      *Server
	st     *h2.Stream
	method string
	reply  string // content type of the answer
	start  time.Time
	md     metadata.MD // what the caller sent, without the token once admitted
	span   Span
	over   bool // it was observed

	received, sent int64 // bytes of messages, when the call ends

	mu       sync.Mutex
	header   call.Fields // guarded by mu: of the answer, in wire form
	trailer  call.Fields // guarded by mu
	headSent bool        // guarded by mu

	head, tail [6]call.Field // room for header and trailer
}

var _ grpc.ServerTransportStream = (*rpc)(nil)

// handle answers one stream.
func (s *Server) handle(st *h2.Stream) {
	fs := st.Header()
	ctype := fs.Get("content-type")
	r := &rpc{s: s, st: st, method: st.Path(), reply: replyType(ctype), start: time.Now()}
	r.header, r.trailer = append(r.head[:0], call.Field{Name: "content-type", Value: r.reply}), r.tail[:0]
	if !r.speaksGRPC(ctype) || !r.setDeadline(fs) {
		return
	}
	switch m, known := s.services.methods[r.method]; {
	case known && m.unary != nil:
		r.unary(m)
	case known:
		r.stream(m)
	case strings.LastIndexByte(r.method, '/') <= 0 || r.method[0] != '/':
		r.refuse(200, codes.Unimplemented, "malformed method name: \""+r.method+"\"")
	default:
		r.proxy()
	}
}

// replyType is the content type of an answer: the caller's without parameters.
func replyType(ctype string) string {
	if ctype == grpcType {
		return grpcType
	}
	if sub := subtype(ctype); sub != "" {
		return grpcType + "+" + sub
	}
	return grpcType
}

// subtype is what a gRPC content type says behind "application/grpc+": the encoding of the
// messages. Empty is the default, protobuf.
func subtype(contentType string) string {
	const prefix = grpcType + "+"
	if len(contentType) <= len(prefix) || !strings.EqualFold(contentType[:len(prefix)], prefix) {
		return ""
	}
	sub, _, _ := strings.Cut(contentType[len(prefix):], ";")
	return strings.ToLower(sub)
}

// speaksGRPC refuses requests that are not gRPC's.
func (r *rpc) speaksGRPC(ctype string) bool {
	switch {
	case r.st.Method() != "POST":
		r.refuse(405, codes.Internal, "Received a HEADERS frame with :method \""+r.st.Method()+"\" which should be POST")
	case !isGRPC(ctype):
		r.refuse(415, codes.InvalidArgument, "invalid gRPC request content-type \""+ctype+"\"")
	default:
		return true
	}
	return false
}

func (r *rpc) setDeadline(fs call.Fields) bool {
	v, ok := fs.Lookup(timeoutKey)
	if !ok {
		return true
	}
	d, ok := parseTimeout(v)
	if !ok {
		r.refuse(400, codes.Internal, "malformed grpc-timeout: \""+v+"\"")
		return false
	}
	if d < math.MaxInt64/2 {
		r.st.SetDeadline(r.start.Add(d))
	}
	return true
}

// refuse answers a request that never became a call.
func (r *rpc) refuse(httpStatus int, code codes.Code, text string) {
	_ = r.st.Respond(httpStatus, statusFields(r.header, status.New(code, text)), nil, nil)
}

// admit judges the call before anything of its body is looked at, and starts its span.
func (r *rpc) admit(ctx context.Context) (context.Context, error) {
	r.md = incoming(r.st)
	if err := r.s.admit(r.md, r.method); err != nil {
		return ctx, err
	}
	delete(r.md, tokenKey) // it must not travel on
	ctx, span, err := r.s.begin(ctx, r.method, r.md)
	r.span = span
	return ctx, err
}

// done observes the end of the call, once, before the caller can see it.
func (r *rpc) done(code codes.Code) {
	if r.over {
		return
	}
	r.over = true
	if r.span != nil {
		r.span.End(code)
	}
	if r.s.o.Observe != nil {
		r.s.o.Observe.GRPCServed(r.method, code, first(r.md, userAgentKey), r.received, r.sent, time.Since(r.start))
	}
}

// unary answers a method of our own with one message each way.
func (r *rpc) unary(m method) {
	ctx, err := r.admit(r.st.Context())
	var resp any
	if err == nil {
		ctx = grpc.NewContextWithServerTransportStream(metadata.NewIncomingContext(ctx, r.md), r)
		resp, err = guarded(func() (any, error) { return m.unary.Handler(m.srv, ctx, r.decode, nil) })
	}
	if r.span != nil {
		_ = r.SetHeader(r.span.Response())
	}
	if err != nil {
		r.fail(err)
		return
	}
	r.answer(resp)
}

// decode reads the request. It is what generated handlers call first.
func (r *rpc) decode(v any) error {
	body, ended := r.st.First()
	if !ended {
		var err error
		if body, err = r.rest(body); err != nil {
			return err
		}
	}
	msg, err := oneMessage(body, r.s.o.MaxMessage, r.st.Header().Get(encodingKey))
	if err != nil {
		return err
	}
	r.received = int64(len(msg))
	if err := unmarshal(msg, v); err != nil {
		return err
	}
	if r.span != nil {
		r.span.Describe(v)
	}
	return nil
}

func unmarshal(msg []byte, v any) error {
	pm, ok := v.(proto.Message)
	if !ok {
		return status.Errorf(codes.Internal, "grpc: cannot unmarshal into %T", v)
	}
	if err := proto.Unmarshal(msg, pm); err != nil {
		return status.Error(codes.Internal, "grpc: error unmarshalling request: "+err.Error())
	}
	return nil
}

// rest reads a request that did not come at once, behind its beginning.
func (r *rpc) rest(first []byte) ([]byte, error) {
	most := math.MaxInt
	if r.s.o.MaxMessage > 0 {
		most = r.s.o.MaxMessage + prefixLen
	}
	body := append(make([]byte, 0, max(len(first), 64<<10)), first...)
	for {
		if len(body) >= prefixLen && r.s.o.MaxMessage > 0 {
			if size := binary.BigEndian.Uint32(body[1:]); uint64(size) > uint64(r.s.o.MaxMessage) {
				return nil, status.Error(codes.ResourceExhausted, tooLarge(uint64(size), r.s.o.MaxMessage).Error())
			}
		}
		if len(body) > most {
			return body, nil // more than one message; judged as that
		}
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		n, err := r.st.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if call.Ended(err) {
			return body, nil
		}
		if err != nil {
			return nil, streamStatus(err).Err()
		}
	}
}

// streamStatus is the status of a failed stream.
func streamStatus(err error) *status.Status {
	switch fault.Of(err) {
	case fault.Deadline:
		return status.New(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
	case fault.Canceled:
		return status.New(codes.Canceled, context.Canceled.Error())
	}
	return status.New(codes.Internal, err.Error())
}

// buffers hold encoded answers.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 2<<10); return &b }}

const keepAnswer = 64 << 10 // largest buffer kept

// answer sends a message and the status OK.
func (r *rpc) answer(resp any) {
	buf := buffers.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= keepAnswer {
			buffers.Put(buf)
		}
	}()
	b, err := appendProto((*buf)[:0], resp, r.s.o.MaxMessage)
	if err != nil {
		r.fail(err)
		return
	}
	*buf = b
	r.sent = int64(len(b) - prefixLen)
	r.done(codes.OK)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.headSent {
		if _, err := r.st.Write(b); err == nil {
			_ = r.st.CloseSend(statusFields(r.trailer, okStatus))
		}
		return
	}
	r.headSent = true
	_ = r.st.Respond(200, r.header, b, statusFields(r.trailer, okStatus)) // the caller may be gone
}

// appendProto frames a message.
func appendProto(b []byte, v any, limit int) ([]byte, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return b, status.Errorf(codes.Internal, "grpc: cannot marshal %T", v)
	}
	start := len(b)
	b = append(b, 0, 0, 0, 0, 0)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return b, status.Error(codes.Internal, "grpc: error while marshaling: "+err.Error())
	}
	size := len(b) - start - prefixLen
	if limit > 0 && size > limit {
		return b, status.Errorf(codes.ResourceExhausted, "grpc: trying to send message larger than max (%d vs. %d)", size, limit)
	}
	if uint64(size) > math.MaxUint32 {
		return b, status.Errorf(codes.ResourceExhausted, "grpc: message too large (%d bytes)", size)
	}
	binary.BigEndian.PutUint32(b[start+1:], uint32(size))
	return b, nil
}

// fail ends the call with an error's status.
func (r *rpc) fail(err error) {
	st, ok := status.FromError(err)
	if !ok { // a handler's plain error: gRPC knows contexts' errors only
		st = status.FromContextError(err)
	}
	r.end(st)
}

// end ends the call with a status, behind whatever was sent.
func (r *rpc) end(st *status.Status) {
	if rule := ruleOf(st); rule != "" {
		_ = r.SetTrailer(metadata.Pairs(apierr.RuleHeader, rule))
		if s, ok := r.span.(interface{ SetAttr(key, value string) }); ok {
			s.SetAttr("mecha.policy.rule", rule)
		}
	}
	r.done(st.Code())
	r.mu.Lock()
	defer r.mu.Unlock()
	switch tail := statusFields(r.trailer, st); {
	case r.headSent:
		_ = r.st.CloseSend(tail)
	case len(r.header) == 1: // nothing but the content type: one header says it all
		_ = r.st.Respond(200, append(r.header, tail...), nil, nil)
	default:
		_ = r.st.Respond(200, r.header, nil, tail)
	}
	r.headSent = true
}

// ruleOf is the policy that refused a call, by the details of its status.
func ruleOf(st *status.Status) string {
	if st.Code() == codes.OK {
		return ""
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == apierr.PolicyRejected {
			return info.GetMetadata()["policy"]
		}
	}
	return ""
}

// Method implements grpc.ServerTransportStream.
func (r *rpc) Method() string { return r.method }

// SetHeader implements grpc.ServerTransportStream.
func (r *rpc) SetHeader(md metadata.MD) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.headSent {
		return errors.New("grpcapi: the header was sent before")
	}
	r.header = wireMetadata(r.header, md)
	return nil
}

// SendHeader implements grpc.ServerTransportStream.
func (r *rpc) SendHeader(md metadata.MD) error {
	if err := r.SetHeader(md); err != nil {
		return err
	}
	return r.sendHead()
}

// sendHead sends the header unless it was sent.
func (r *rpc) sendHead() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.headSent {
		return nil
	}
	r.headSent = true
	return r.st.SendHeaders(200, r.header)
}

// SetTrailer implements grpc.ServerTransportStream.
func (r *rpc) SetTrailer(md metadata.MD) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.trailer = wireMetadata(r.trailer, md)
	return nil
}
