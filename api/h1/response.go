package h1

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Response is an answer. Whoever gets one reads Stream to io.EOF or calls Close; when Stream
// is nil, Close merely gives memory back and may be left out. Not safe for concurrent use,
// except that Close may interrupt a Read of Stream.
type Response struct {
	Status int
	// Fields are as received, hop-by-hop ones included (EndToEnd removes them). The slice is
	// valid until Close and may be changed; its strings may be kept.
	Fields call.Fields
	// Length is the size of the body in bytes as announced, also where no body follows (HEAD,
	// 304); call.Unknown when it was not.
	Length int64
	// Data is the whole body when Stream is nil. It is valid until Close.
	Data []byte
	// Stream is the body. Read returns what has arrived. A connection that breaks before the
	// body's end gives fault.Unavailable (SentMaybe), never io.EOF; the end of ctx gives
	// fault.Canceled or fault.Deadline.
	Stream io.ReadCloser
	// Upgrade is the connection after a 101, with a CloseWrite method. It no longer depends
	// on the ctx of Do. The caller closes it.
	Upgrade io.ReadWriteCloser

	trailer call.Fields
	mem     *answer
	closed  atomic.Bool
	body    stream
}

// Trailer is the trailing fields, valid when Stream is nil or has given io.EOF. They may be
// kept.
func (r *Response) Trailer() call.Fields { return r.trailer }

// Close ends the use of a Response: a body not read to its end breaks the connection. Safe to
// call twice, and on nil.
func (r *Response) Close() error {
	if r == nil || r.closed.Swap(true) {
		return nil
	}
	if r.Upgrade != nil {
		return r.Upgrade.Close()
	}
	r.body.abandon()
	r.Fields, r.Data = nil, nil
	r.mem.release()
	return nil
}

// inlineAnswer is the largest announced body that is read before Do returns: its connection
// is free for others at once, and it needs no stream.
const inlineAnswer = 64 << 10

// open prepares the body once the head is there.
func (r *Response) open(method string) {
	h, b := &r.mem.head, &r.body.cc.body
	r.Status, r.Fields, r.Length = h.status, h.fields, h.length
	rd := &r.body.cc.rd
	r.body.keep = !h.closes && (h.minor == 1 || h.keeps) && !h.both
	switch {
	case noBody(method, h.status):
		b.reset(rd, bodyNone, 0)
	case h.chunked:
		r.Length = call.Unknown
		b.reset(rd, bodyChunked, 0)
	case h.length >= 0:
		b.reset(rd, bodyFixed, h.length)
	default:
		r.body.keep = false
		b.reset(rd, bodyUntilClose, 0)
	}
}

// takeWhole reads a small body and frees the connection, or makes the body a stream.
func (r *Response) takeWhole() error {
	b := &r.body.cc.body
	switch {
	case b.done:
		if r.Status == 204 {
			r.Length = 0
		}
		r.body.release()
		return nil
	case b.kind == bodyFixed && b.left <= inlineAnswer:
		r.mem.body = borrow(int(b.left))
		p := r.mem.body.b
		for !b.done {
			n, err := b.read(p[len(p):cap(p)])
			if err != nil {
				return err
			}
			p = p[:len(p)+n]
		}
		r.Data = p
		r.body.release()
		return nil
	case b.kind == bodyChunked && bytes.HasSuffix(b.rd.unread(), lastChunk):
		return r.takeChunks()
	}
	r.Stream = &r.body
	return nil
}

var lastChunk = []byte("0\r\n\r\n")

// takeChunks decodes a chunked body that seems to have arrived whole with its head. What
// looked like the last chunk may have been data: the rest is then a stream.
func (r *Response) takeChunks() error {
	b := &r.body.cc.body
	r.mem.body = borrow(b.rd.size())
	p := r.mem.body.b
	for !b.done && b.rd.size() > 0 {
		n, err := b.read(p[len(p):cap(p)])
		if err != nil && err != io.EOF {
			return err
		}
		p = p[:len(p)+n]
	}
	if !b.done {
		r.body.ahead = p
		r.Stream = &r.body
		return nil
	}
	r.Data, r.Length = p, int64(len(p))
	r.body.release()
	return nil
}

// switchOver hands the connection to the caller after a 101.
func (r *Response) switchOver() (*Response, error) {
	s := &r.body
	if s.watch != nil && !s.watch.stop() {
		err := s.noAnswer(s.ctx.Err(), nil)
		s.cc.close()
		return nil, err
	}
	r.Status, r.Fields, r.Length = 101, r.mem.head.fields, 0
	r.Upgrade = &replayConn{Conn: s.cc.nc, pre: bytes.Clone(s.cc.rd.unread())}
	s.cc.rd.drop()
	return r, nil
}

const (
	streamOpen int32 = iota
	streamEnded
	streamClosed
)

// stream is an answer's body and the exchange's hold on its connection.
type stream struct {
	resp   *Response
	cc     *clientConn
	ctx    context.Context // of Do; it governs the body too, and names the reason when it ends
	method string
	watch  stopper
	up     *upload
	keep   bool
	ahead  []byte // body bytes decoded already
	state  atomic.Int32
	err    error // sticky
}

// send writes the request, or starts writing it when it is long.
func (s *stream) send(req *Request, head []byte) error {
	if req.Stream == nil && len(req.Body) <= inlineBody {
		body := req.Body
		if len(body) <= coalesce {
			body = nil // behind the head already
		}
		return s.cc.write(head, body, nil)
	}
	s.up = &upload{cc: s.cc, src: req.Stream, data: req.Body, length: req.Length, trailer: req.Trailer, done: make(chan struct{})}
	var err error
	if req.Stream == nil {
		s.up.head = borrow(len(head))
		s.up.head.b = append(s.up.head.b, head...)
	} else {
		err = s.cc.write(head, nil, nil)
	}
	go s.up.run()
	return err
}

// Read is io.Reader's.
func (s *stream) Read(p []byte) (int, error) {
	switch s.state.Load() {
	case streamEnded:
		if s.err == nil {
			return 0, io.EOF
		}
		return 0, s.err
	case streamClosed:
		return 0, errStreamClosed
	}
	if len(s.ahead) > 0 {
		n := copy(p, s.ahead)
		s.ahead = s.ahead[n:]
		return n, nil
	}
	b := &s.cc.body
	n, err := b.read(p)
	switch {
	case b.done:
		s.release()
	case err != nil:
		err = s.cutOff(err)
		if s.state.CompareAndSwap(streamOpen, streamEnded) {
			s.err = err
			s.fail()
		} else {
			err = errStreamClosed
		}
	}
	return n, err
}

var errStreamClosed = errors.New("read of a closed response body")

// Close is Response.Close, for those who are given the body alone.
func (s *stream) Close() error { return s.resp.Close() }

// release ends the exchange after a whole answer.
func (s *stream) release() {
	if !s.state.CompareAndSwap(streamOpen, streamEnded) {
		return
	}
	s.resp.trailer = s.cc.body.trailer
	// More bytes than the answer has would be taken for the next one's.
	keep := s.keep && s.cc.rd.size() == 0
	if s.watch != nil && !s.watch.stop() {
		keep = false
	}
	s.cc.recycle(keep, s.up)
}

// abandon breaks the connection of an answer that is not wanted any more.
func (s *stream) abandon() {
	if s.state.CompareAndSwap(streamOpen, streamClosed) {
		s.fail()
	}
}

// fail ends the exchange and its connection.
func (s *stream) fail() {
	if s.watch != nil {
		s.watch.stop()
	}
	s.cc.close()
	if s.up != nil {
		s.up.answered(false)
	}
}

// noAnswer explains why no head came. wrote is the error of writing the request.
func (s *stream) noAnswer(err, wrote error) error {
	if cause := s.outside(); cause != nil {
		return cause
	}
	origin := s.cc.client.Addr
	if err == errHeadTooLarge {
		return fault.New(opDo, fault.TooLarge, "the head of the answer of %s is over its limit", origin).WithSent(fault.SentMaybe)
	}
	var r *refusal
	if errors.As(err, &r) || err == errBareLF {
		return fault.New(opDo, fault.Unavailable, "the answer of %s is not HTTP/1.1", origin).Because(err).WithSent(fault.SentMaybe)
	}
	if s.up != nil && s.up.src == nil {
		s.cc.close()
		<-s.up.done
		wrote = s.up.failure()
	}
	if wrote != nil {
		err = wrote
	}
	e := fault.New(opDo, fault.Unavailable, "%s closed the connection before it answered", origin).Because(err).WithSent(fault.SentMaybe)
	if s.cc.reused && !s.cc.heard && (s.up == nil || s.up.src == nil) {
		return &staleError{e, s.cc.offered()}
	}
	return e
}

// cutOff explains why the body ended early.
func (s *stream) cutOff(err error) error {
	if cause := s.outside(); cause != nil {
		return cause
	}
	b := &s.cc.body
	of := ""
	if b.kind == bodyFixed {
		of = fmt.Sprintf(" of %d", b.n+b.left)
	}
	if errors.Is(err, errMalformed) {
		return fault.New(opRead, fault.Unavailable, "the answer of %s is wrong after %d%s body bytes", s.cc.client.Addr, b.n, of).
			Because(err).WithSent(fault.SentMaybe)
	}
	return fault.New(opRead, fault.Unavailable, "%s broke the connection after %d%s body bytes", s.cc.client.Addr, b.n, of).
		Because(err).WithSent(fault.SentMaybe)
}

// outside is the failure that came from the caller: its context or its request body.
func (s *stream) outside() error {
	if err := s.ctx.Err(); err != nil {
		return fault.New(opDo, fault.Of(err), "waiting for %s", s.cc.client.Addr).Because(err).WithSent(fault.SentMaybe)
	}
	if s.up == nil {
		return nil
	}
	s.up.mu.Lock()
	defer s.up.mu.Unlock()
	if s.up.srcErr == nil {
		return nil
	}
	return fault.New(opDo, fault.Of(s.up.srcErr), "reading the request body for %s", s.cc.client.Addr).
		Because(s.up.srcErr).WithSent(fault.SentMaybe)
}
