package h2

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// read is the connection's reader goroutine: it drains the connection whatever streams do, and
// never blocks on anything else.
func (c *conn) read() {
	defer c.io.Done()
	ce, err := c.readAll()
	switch {
	case ce != nil:
		c.breach(ce)
	case errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe):
		c.end(net.ErrClosed) // ended by ourselves
	default:
		c.end(err)
	}
	for _, st := range c.fresh {
		if !st.started {
			c.mu.Lock()
			c.handlers--
			c.mu.Unlock()
		}
	}
}

func (c *conn) readAll() (*ConnError, error) {
	if ce, err := c.readPreface(); ce != nil || err != nil {
		return ce, err
	}
	for first := true; ; first = false {
		if err := c.in.need(frameHeader); err != nil {
			return nil, err
		}
		f := parseFrame(c.in.take(frameHeader))
		if first && (f.kind != frameSettings || f.has(flagAck)) {
			return violation(ProtocolError, "the first frame is not SETTINGS"), nil
		}
		if f.n > maxFrame {
			return violation(FrameSizeError, "a frame of %d bytes", f.n), nil
		}
		if err := c.in.need(f.n); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		ce, err := c.frame(f, c.in.take(f.n))
		if ce != nil || err != nil {
			return ce, err
		}
	}
}

// handshakeTime is how long a peer may take to begin.
const handshakeTime = 10 * time.Second

// readPreface reads what a client begins with.
func (c *conn) readPreface() (*ConnError, error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(handshakeTime))
	if c.cfg.client {
		return nil, nil // until SETTINGS come; see onSettings
	}
	if err := c.in.need(len(preface)); err != nil {
		return nil, err
	}
	if string(c.in.take(len(preface))) != preface {
		return violation(ProtocolError, "no HTTP/2 preface"), nil
	}
	return nil, nil
}

// pause runs before the reader waits for the network: everything at hand is parsed, so that
// requests are started with as much as there is.
func (c *conn) pause() {
	for _, st := range c.fresh {
		if !st.started {
			c.dispatch(st)
		}
	}
	clear(c.fresh)
	c.fresh = c.fresh[:0]
	if len(c.touched) > 0 || c.replied {
		c.mu.Lock()
		for _, st := range c.touched {
			st.isTouched = false
			if st.reading {
				wake(st.rsig)
			}
		}
		overflow := len(c.out.pending) > lastPending
		flush := c.replied && c.claimFlush()
		c.mu.Unlock()
		clear(c.touched)
		c.touched, c.replied = c.touched[:0], false
		switch {
		case overflow:
			c.end(errNoReader)
		case flush && c.out.write == nil:
			c.flushBehind(nil)
		case flush:
			c.flushNow()
		}
	}
	c.reads.Add(1)
}

var errNoReader = errors.New("the peer asks for answers and does not read them")

func (c *conn) frame(f frame, p []byte) (*ConnError, error) {
	switch f.kind {
	case frameData:
		return c.onData(f, p), nil
	case frameHeaders:
		return c.onHeaders(f, p)
	case framePriority:
		return c.onPriority(f), nil
	case frameReset:
		return c.onReset(f, p), nil
	case frameSettings:
		return c.onSettings(f, p), nil
	case framePush:
		return violation(ProtocolError, "PUSH_PROMISE was not allowed"), nil
	case framePing:
		return c.onPing(f, p), nil
	case frameGoaway:
		return c.onGoaway(f, p), nil
	case frameWindow:
		return c.onWindow(f, p), nil
	case frameContinuation:
		return violation(ProtocolError, "CONTINUATION without HEADERS"), nil
	}
	return c.trifle(), nil // unknown kinds are ignored
}

// trifle counts a frame that costs us and brings nothing.
func (c *conn) trifle() *ConnError {
	if c.abuse.trifle(c.in.at) {
		return violation(EnhanceYourCalm, "too many frames without use")
	}
	return nil
}

// unpad removes padding.
func unpad(f frame, p []byte) ([]byte, *ConnError) {
	if !f.has(flagPadded) {
		return p, nil
	}
	if len(p) == 0 || int(p[0]) > len(p)-1 {
		return nil, violation(ProtocolError, "more padding than payload")
	}
	return p[1 : len(p)-int(p[0])], nil
}

// unopened judges a frame of a stream that is not open: one never opened is an error. Locked.
func (c *conn) unopened(id uint32, what string) *ConnError {
	switch {
	case id == 0:
		return violation(ProtocolError, "%s without a stream", what)
	case c.cfg.client && (id&1 == 0 || id >= c.nextID), !c.cfg.client && (id&1 == 0 || id > c.lastPeer):
		return violation(ProtocolError, "%s for stream %d, which was never opened", what, id)
	}
	return nil
}

func (c *conn) onData(f frame, p []byte) *ConnError {
	body, ce := unpad(f, p)
	if ce != nil {
		return ce
	}
	if f.id == 0 {
		return violation(ProtocolError, "DATA without a stream")
	}
	if len(body) == 0 && !f.has(flagEndStream) {
		if ce := c.trifle(); ce != nil {
			return ce
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if int64(f.n) > c.recvAvail {
		return violation(FlowControlError, "DATA beyond the connection's window")
	}
	c.recvAvail -= int64(f.n)
	st := c.streams[f.id]
	if st == nil {
		return c.stray(f, "DATA")
	}
	bad, text := st.takeData(f, body)
	if text != "" {
		st.resetLocked(bad, fault.New(opStream, fault.Invalid, "the peer broke HTTP/2: %s", text))
		c.replied = true
		return c.misbehaved()
	}
	c.regrant()
	if f.has(flagEndStream) {
		c.ended(st)
	} else {
		c.touch(st)
	}
	c.flushSoon()
	return nil
}

// takeData queues body for a stream; a text says what is wrong with it. Locked.
func (st *Stream) takeData(f frame, body []byte) (ErrCode, string) {
	c := st.c
	switch {
	case st.recvEnded:
		return StreamClosed, "DATA after the end of the stream"
	case c.cfg.client && st.status == 0:
		return ProtocolError, "DATA before the header"
	case int64(f.n) > st.recvAvail:
		return FlowControlError, "DATA beyond the stream's window"
	case st.length >= 0 && int64(len(body)) > st.length:
		return ProtocolError, "more DATA than content-length"
	case f.has(flagEndStream) && st.length > int64(len(body)):
		return ProtocolError, "less DATA than content-length"
	}
	if st.length >= 0 {
		st.length -= int64(len(body))
	}
	st.recvAvail -= int64(f.n)
	st.owed += int64(f.n - len(body)) // padding is never read
	if len(body) > 0 && !st.unwanted {
		st.q.Add(body)
		c.held += int64(len(body))
	}
	return 0, ""
}

// stray answers a frame of a stream that is over: it may have been on its way. Locked.
func (c *conn) stray(f frame, what string) *ConnError {
	if ce := c.unopened(f.id, what); ce != nil {
		return ce
	}
	c.regrant()
	c.replied = true
	if !c.abuse.forgotten(f.id) {
		c.out.pending = appendReset(c.out.pending, f.id, StreamClosed)
		return c.misbehaved()
	}
	return nil
}

// misbehaved counts a reset that the peer made us send: it may be its way to make us work.
func (c *conn) misbehaved() *ConnError {
	if c.abuse.reset() {
		return violation(EnhanceYourCalm, "too many streams that had to be reset")
	}
	return nil
}

// ended notes the end of a stream's receiving side. Locked.
func (c *conn) ended(st *Stream) {
	st.recvEnded = true
	if st.reading {
		wake(st.rsig)
	}
	st.settle()
	if st.ctx == nil && !st.started {
		c.dispatch(st)
	}
}

// touch lets a stream's reader be woken when everything at hand is parsed. Locked.
func (c *conn) touch(st *Stream) {
	if st.reading && !st.isTouched {
		st.isTouched = true
		c.touched = append(c.touched, st)
	}
}

func (c *conn) onPriority(f frame) *ConnError {
	if f.id == 0 {
		return violation(ProtocolError, "PRIORITY without a stream")
	}
	if f.n != 5 {
		return violation(FrameSizeError, "PRIORITY of %d bytes", f.n)
	}
	return c.trifle()
}

func (c *conn) onReset(f frame, p []byte) *ConnError {
	if f.n != 4 {
		return violation(FrameSizeError, "RST_STREAM of %d bytes", f.n)
	}
	code := ErrCode(binary.BigEndian.Uint32(p))
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.streams[f.id]
	if st == nil {
		if ce := c.unopened(f.id, "RST_STREAM"); ce != nil {
			return ce
		}
		return c.trifle()
	}
	rapid := !c.cfg.client && !st.headSent && c.in.at.Sub(st.born) < rapidReset
	c.remove(st)
	st.fail(c.resetByPeer(code))
	c.flushSoon()
	if rapid {
		return c.misbehaved()
	}
	return nil
}

func (c *conn) onPing(f frame, p []byte) *ConnError {
	if f.id != 0 {
		return violation(ProtocolError, "PING on a stream")
	}
	if f.n != 8 {
		return violation(FrameSizeError, "PING of %d bytes", f.n)
	}
	token := binary.BigEndian.Uint64(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.has(flagAck) {
		if token == c.away.token && token != 0 {
			c.closeDoorLocked()
			c.replied = true
		}
		return nil
	}
	c.out.pending = appendPing(c.out.pending, flagAck, token)
	c.replied = true
	if c.abuse.ping(c.in.at, c.cfg.minPing) {
		return violation(EnhanceYourCalm, "too_many_pings")
	}
	return nil
}

func (c *conn) onWindow(f frame, p []byte) *ConnError {
	if f.n != 4 {
		return violation(FrameSizeError, "WINDOW_UPDATE of %d bytes", f.n)
	}
	n := int64(binary.BigEndian.Uint32(p) & maxWindow)
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.id == 0 {
		if n == 0 {
			return violation(ProtocolError, "WINDOW_UPDATE of nothing")
		}
		if c.sendAvail += n; c.sendAvail > maxWindow {
			return violation(FlowControlError, "the connection's window overflows")
		}
		c.wakeNext()
		return nil
	}
	st := c.streams[f.id]
	if st == nil {
		return c.unopened(f.id, "WINDOW_UPDATE")
	}
	if n == 0 || st.sendAvail+n > maxWindow {
		code, text := FlowControlError, "the stream's window overflows"
		if n == 0 {
			code, text = ProtocolError, "WINDOW_UPDATE of nothing"
		}
		st.resetLocked(code, fault.New(opStream, fault.Invalid, "the peer broke HTTP/2: %s", text))
		c.replied = true
		return c.misbehaved()
	}
	st.sendAvail += n
	wake(st.wsig)
	return nil
}

func (c *conn) onGoaway(f frame, p []byte) *ConnError {
	if f.id != 0 {
		return violation(ProtocolError, "GOAWAY on a stream")
	}
	if f.n < 8 {
		return violation(FrameSizeError, "GOAWAY of %d bytes", f.n)
	}
	last := binary.BigEndian.Uint32(p) & maxID
	code := ErrCode(binary.BigEndian.Uint32(p[4:]))
	if ce := c.noteGoaway(last, code, p[8:]); ce != nil {
		return ce
	}
	c.tellLeft() // only now: whoever is told finds the connection unusable
	return nil
}

func (c *conn) noteGoaway(last uint32, code ErrCode, text []byte) *ConnError {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := &c.away
	if g.peer && last > g.peerLast {
		return violation(ProtocolError, "GOAWAY's last stream grew")
	}
	g.peer, g.peerLast = true, last
	if code != NoError {
		g.peerErr = &ConnError{Code: code, Text: printable(text), Peer: true}
	}
	if c.cfg.client {
		for id, st := range c.streams {
			if id > last {
				delete(c.streams, id)
				st.fail(fault.New(opStream, fault.Unavailable, "%s left before it took the call", c.peerName()).WithSent(fault.SentNever))
			}
		}
	}
	c.flushSoon()
	c.leaveIfEmpty()
	return nil
}

// flushSoon makes the reader write what was added while it handled a frame. Locked.
func (c *conn) flushSoon() {
	if len(c.out.pending) > 0 {
		c.replied = true
	}
}

// printable makes a peer's debug text safe for a log line.
func printable(p []byte) string {
	const enough = 200
	out := make([]byte, 0, min(len(p), enough))
	for _, b := range p[:min(len(p), enough)] {
		if b < ' ' || b > '~' {
			b = '.'
		}
		out = append(out, b)
	}
	return string(out)
}

func (c *conn) onSettings(f frame, p []byte) *ConnError {
	switch {
	case f.id != 0:
		return violation(ProtocolError, "SETTINGS on a stream")
	case f.has(flagAck) && f.n != 0, f.n%6 != 0:
		return violation(FrameSizeError, "SETTINGS of %d bytes", f.n)
	case f.has(flagAck):
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; len(p) > 0; p = p[6:] {
		if ce := c.setting(binary.BigEndian.Uint16(p), binary.BigEndian.Uint32(p[2:])); ce != nil {
			return ce
		}
	}
	c.out.pending = appendFrame(c.out.pending, 0, frameSettings, flagAck, 0)
	c.replied = true
	if !c.settled {
		c.settled = true
		_ = c.nc.SetReadDeadline(time.Time{})
		close(c.ready)
		return nil
	}
	return c.trifle()
}

func (c *conn) setting(id uint16, v uint32) *ConnError {
	switch id {
	case settingTableSize:
		c.enc.setMax(v)
	case settingPush:
		if v > 1 || (v == 1 && c.cfg.client) {
			return violation(ProtocolError, "ENABLE_PUSH is %d", v)
		}
	case settingMaxStreams:
		c.peerStreams = int(min(v, maxID))
	case settingInitialWindow:
		if v > maxWindow {
			return violation(FlowControlError, "INITIAL_WINDOW_SIZE is %d", v)
		}
		return c.resize(int64(v))
	case settingMaxFrame:
		if v < maxFrame || v > 1<<24-1 {
			return violation(ProtocolError, "MAX_FRAME_SIZE is %d", v)
		}
		c.peerFrame = int(min(v, maxPeerFrame))
	}
	return nil
}

// resize changes the window of every stream.
func (c *conn) resize(window int64) *ConnError {
	more := window - c.peerWindow
	c.peerWindow = window
	for _, st := range c.streams {
		if st.sendAvail += more; st.sendAvail > maxWindow {
			return violation(FlowControlError, "a stream's window overflows")
		}
		if more > 0 {
			wake(st.wsig)
		}
	}
	return nil
}
