package h1

import (
	"bytes"
	"io"
	"net"
	"strconv"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

const (
	opRespond fault.Op = "h1.exchange.Respond"
	opWrite   fault.Op = "h1.exchange.Write"
	opUpgrade fault.Op = "h1.exchange.Upgrade"
)

type replyState uint8

const (
	replyNone replyState = iota
	replyStarted
	replyDone
	replyTaken // upgraded or hijacked
	replyAborted
)

// reply is the state of an exchange's answer.
type reply struct {
	state   replyState
	out     *buffer // bytes not sent yet
	length  int64   // announced; call.Unknown when chunked or until close
	sent    int64   // body bytes written
	chunked bool
	silent  bool // no body goes out: HEAD, 204, 304
	open    int  // where in out the open chunk's size line starts, plus 1; 0 none
}

const (
	streamBuffer = 8 << 10  // of body bytes kept back by Write until Flush
	coalesce     = 16 << 10 // a body up to this is copied behind its head, a larger one sent from where it is
	chunkHead    = len("2000\r\n")
)

func (ex *Exchange) untouched() bool {
	ex.c.mu.Lock()
	defer ex.c.mu.Unlock()
	return ex.state == replyNone
}

// complete reports whether the answer went out whole, or the connection is someone else's.
func (ex *Exchange) complete() bool {
	ex.c.mu.Lock()
	defer ex.c.mu.Unlock()
	return ex.c.err == nil && (ex.state == replyDone || ex.state == replyTaken)
}

// Respond sends a whole answer in one write. Content-Length and Date are added; fields that
// belong to the connection or the framing (Connection, Content-Length, Transfer-Encoding,
// Trailer, Date, …) are dropped from fields; names are written in canonical case and bytes
// that are illegal in a value as spaces. For HEAD, body only gives the length (none is sent
// when body is nil); 204 and 304 have neither. body is not kept. What is left of the request
// body is dropped; when that is much, or unknown, the answer announces the connection's end.
// An error means that the
// caller has gone (fault.Canceled) or the method is misused (fault.Internal).
func (ex *Exchange) Respond(status int, fields call.Fields, body []byte) error {
	c := ex.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ex.mayBegin(status); err != nil {
		return err
	}
	if !c.dropBody() {
		c.keep = false
	}
	length := int64(len(body))
	if body == nil && c.head.method == "HEAD" {
		length = call.Unknown
	}
	ex.out = borrow(min(coalesce, 1<<10+len(body)))
	b := ex.appendHead(ex.out.b, status, fields, length, false)
	if noBody(c.head.method, status) {
		body = nil
	}
	if len(b)+len(body) <= coalesce {
		b, body = append(b, body...), nil
	}
	ex.out.b = b
	ex.state = replyDone
	return ex.failed(c.send(b, body, nil))
}

// Start begins a streamed answer of length bytes, or of call.Unknown length: chunked, or up to
// the end of the connection for HTTP/1.0. Fields are treated as in Respond. For HEAD, 204 and
// 304 the body's bytes are counted and dropped. Nothing is sent before Flush, End, or 8 KiB
// of body.
func (ex *Exchange) Start(status int, fields call.Fields, length int64) error {
	c := ex.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := ex.mayBegin(status); err != nil {
		return err
	}
	ex.silent = noBody(c.head.method, status)
	ex.length = length
	ex.chunked = length < 0 && c.head.minor >= 1 && !ex.silent
	if length < 0 && c.head.minor == 0 && !ex.silent {
		c.keep = false
	}
	ex.out = borrow(coalesce)
	ex.out.b = ex.appendHead(ex.out.b, status, fields, length, ex.chunked)
	ex.state = replyStarted
	return nil
}

func (ex *Exchange) mayBegin(status int) error {
	switch {
	case ex.state != replyNone:
		return fault.New(opRespond, fault.Internal, "the exchange is answered already; answer once")
	case status < 200 || status > 999:
		return fault.New(opRespond, fault.Internal, "status %d is not a final one; use Inform or Upgrade", status)
	case ex.c.err != nil:
		return ex.failed(ex.c.err)
	}
	return nil
}

// appendHead writes the head and decides whether the connection goes on after the answer.
func (ex *Exchange) appendHead(b []byte, status int, fields call.Fields, length int64, chunked bool) []byte {
	c := ex.c
	// A client that was never told to go on may or may not send its body after this answer:
	// what follows on the connection cannot be told apart.
	if c.srv.drain.Load() || c.lost.Load() || ex.expecting.Load() {
		c.keep = false
	}
	b = appendStatusLine(b, status)
	b = appendFields(b, fields, inResponse)
	b = c.srv.date.append(b)
	switch {
	case chunked:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case length >= 0 && status != 204 && status != 304:
		b = appendLength(b, length)
	}
	if !c.keep {
		b = append(b, "Connection: close\r\n"...)
	} else if c.head.minor == 0 {
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	return append(b, '\r', '\n')
}

// Write adds body bytes to a started answer. They are kept back, up to 8 KiB, until Flush,
// End or more bytes; p is not kept. Writing more than the announced length is
// fault.Internal; fault.Canceled means that the caller has gone.
func (ex *Exchange) Write(p []byte) (int, error) {
	ex.c.mu.Lock()
	defer ex.c.mu.Unlock()
	if err := ex.write(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (ex *Exchange) write(p []byte) error {
	switch {
	case ex.state != replyStarted:
		return fault.New(opWrite, fault.Internal, "no streamed answer is open; call Start first")
	case ex.length >= 0 && ex.sent+int64(len(p)) > ex.length:
		return fault.New(opWrite, fault.Internal, "more body than the announced %d bytes", ex.length)
	}
	ex.sent += int64(len(p))
	switch {
	case ex.silent || len(p) == 0:
		return ex.failed(ex.c.err)
	case len(ex.out.b)+len(p)+chunkHead+2 > streamBuffer:
		return ex.sendLarge(p)
	}
	if ex.chunked && ex.open == 0 {
		ex.open = len(ex.out.b) + 1
		ex.out.b = append(ex.out.b, "0000\r\n"...)
	}
	ex.out.b = append(ex.out.b, p...)
	return ex.failed(ex.c.err)
}

// sendLarge sends what is kept back and p behind it, without copying p.
func (ex *Exchange) sendLarge(p []byte) error {
	ex.closeChunk()
	var tail []byte
	if ex.chunked {
		ex.out.b = strconv.AppendInt(ex.out.b, int64(len(p)), 16)
		ex.out.b = append(ex.out.b, '\r', '\n')
		tail = crlfcrlf[:2]
	}
	err := ex.c.send(ex.out.b, p, tail)
	ex.out.b = ex.out.b[:0]
	return ex.failed(err)
}

// closeChunk writes the open chunk's size into the place kept for it.
func (ex *Exchange) closeChunk() {
	if ex.open == 0 {
		return
	}
	b, at := ex.out.b, ex.open-1
	data := b[at+chunkHead:]
	head := strconv.AppendInt(b[:at], int64(len(data)), 16)
	head = append(head, '\r', '\n')
	// The place is as wide as the widest size; close the gap, leading zeros confuse some.
	b = append(head, data...)
	ex.out.b = append(b, '\r', '\n')
	ex.open = 0
}

// Flush sends what Start and Write kept back.
func (ex *Exchange) Flush() error {
	ex.c.mu.Lock()
	defer ex.c.mu.Unlock()
	if ex.state != replyStarted {
		return fault.New(opWrite, fault.Internal, "no streamed answer is open; call Start first")
	}
	return ex.flush()
}

func (ex *Exchange) flush() error {
	ex.closeChunk()
	if len(ex.out.b) == 0 {
		return ex.failed(ex.c.err)
	}
	err := ex.c.send(ex.out.b, nil, nil)
	ex.out.b = ex.out.b[:0]
	return ex.failed(err)
}

// Copy writes src to a started answer up to its end, flushing after every read, so that
// whatever comes is passed on when it comes. It returns the first error of src as it is, or of
// writing; End is left to the caller.
func (ex *Exchange) Copy(src io.Reader) (int64, error) {
	held := borrow(64 << 10)
	defer held.release()
	p := held.b[:cap(held.b)]
	for total := int64(0); ; {
		n, err := src.Read(p)
		if n > 0 {
			total += int64(n)
			if _, err := ex.Write(p[:n]); err != nil {
				return total, err
			}
			if err := ex.Flush(); err != nil {
				return total, err
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// End completes a started answer. trailers are sent behind a chunked body and dropped
// otherwise. When less than the announced length was written the connection is reset, so that
// the caller sees the truncation, and the error is fault.Internal.
func (ex *Exchange) End(trailers call.Fields) error {
	c := ex.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if ex.state != replyStarted {
		return fault.New(opWrite, fault.Internal, "no streamed answer is open; call Start first")
	}
	if ex.length >= 0 && ex.sent != ex.length && !ex.silent {
		ex.reset()
		return fault.New(opWrite, fault.Internal, "the answer ended after %d of %d bytes", ex.sent, ex.length)
	}
	ex.closeChunk()
	if ex.chunked {
		ex.out.b = append(ex.out.b, "0\r\n"...)
		ex.out.b = appendFields(ex.out.b, trailers, inResponse)
		ex.out.b = append(ex.out.b, '\r', '\n')
	}
	ex.state = replyDone
	return ex.flush()
}

// Inform sends an interim answer (102, 103, …) before the final one. HTTP/1.0 callers, who
// would not understand it, get none. 100 is sent by reading the body, 101 by Upgrade.
func (ex *Exchange) Inform(status int, fields call.Fields) error {
	c := ex.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case ex.state != replyNone:
		return fault.New(opRespond, fault.Internal, "an interim answer comes before the final one")
	case status < 102 || status > 199:
		return fault.New(opRespond, fault.Internal, "status %d is not an interim one (102 to 199)", status)
	case c.head.minor == 0:
		return nil
	}
	out := borrow(1 << 10)
	defer out.release()
	out.b = appendStatusLine(out.b, status)
	out.b = appendFields(out.b, fields, inResponse)
	out.b = append(out.b, '\r', '\n')
	return ex.failed(c.send(out.b, nil, nil))
}

// Upgrade answers 101 with the given fields (which name the protocol in Upgrade) and returns
// the connection, as Hijack does.
func (ex *Exchange) Upgrade(fields call.Fields) (net.Conn, error) {
	c := ex.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if ex.state != replyNone {
		return nil, fault.New(opUpgrade, fault.Internal, "the exchange is answered already; answer once")
	}
	out := borrow(1 << 10)
	defer out.release()
	out.b = appendStatusLine(out.b, 101)
	out.b = appendFields(out.b, fields, inResponse|withUpgrade)
	out.b = append(out.b, "Connection: Upgrade\r\n\r\n"...)
	if err := c.send(out.b, nil, nil); err != nil {
		return nil, ex.failed(err)
	}
	return ex.take(), nil
}

// Hijack takes the connection out of the server without answering. What the client has sent
// beyond the request head is read from the returned connection first; it has no deadlines and
// a CloseWrite method where the original has one. The hijacker closes it; Server.Close still
// closes it while the handler runs. Context no longer notices the caller.
func (ex *Exchange) Hijack() (net.Conn, error) {
	ex.c.mu.Lock()
	defer ex.c.mu.Unlock()
	if ex.state != replyNone {
		return nil, fault.New(opUpgrade, fault.Internal, "the exchange is answered already; answer once")
	}
	return ex.take(), nil
}

func (ex *Exchange) take() net.Conn {
	c := ex.c
	ex.state = replyTaken
	c.taken, c.keep = true, false
	c.began.Store(0)
	c.srv.sweep.end() // a tunnel may last for days and needs no sweeper
	_ = c.nc.SetDeadline(noDeadline)
	c.armed = 0
	rc := &replayConn{Conn: c.nc, pre: bytes.Clone(c.rd.unread())}
	c.rd.r, c.rd.w = 0, 0
	return rc
}

// Abort resets the connection, so that the caller sees neither an answer nor a clean end.
func (ex *Exchange) Abort() {
	ex.c.mu.Lock()
	defer ex.c.mu.Unlock()
	ex.reset()
}

func (ex *Exchange) reset() {
	if ex.state == replyTaken {
		return
	}
	ex.state = replyAborted
	ex.c.callerGone()
	resetConn(ex.c.nc)
}

// truncate ends an answer that its handler left unfinished, never with a clean end: framing
// shows the cut where there is framing, and then nothing that was sent is lost to a reset.
func (ex *Exchange) truncate() {
	ex.c.mu.Lock()
	defer ex.c.mu.Unlock()
	if ex.state == replyStarted && (ex.chunked || ex.length > ex.sent) && ex.flush() == nil {
		ex.state = replyAborted
		return
	}
	ex.reset()
}

// failed makes a write error one of the caller's leaving, and tells the context.
func (ex *Exchange) failed(err error) error {
	if err == nil {
		return nil
	}
	ex.c.callerGone()
	return fault.New(opWrite, fault.Canceled, "the caller left before it had the whole answer").Because(err)
}
