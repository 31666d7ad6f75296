package h2

import (
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Limits of header blocks as they come, before they are decoded.
const (
	minBlock         = 64 << 10 // a block within is decoded whatever the limit of its list
	maxContinuations = 64
)

// onHeaders reads a header block to its end, CONTINUATION frames included.
func (c *conn) onHeaders(f frame, p []byte) (*ConnError, error) {
	block, ce := unpad(f, p)
	if ce != nil {
		return ce, nil
	}
	if f.id == 0 {
		return violation(ProtocolError, "HEADERS without a stream"), nil
	}
	if f.has(flagPriority) {
		if len(block) < 5 {
			return violation(FrameSizeError, "HEADERS too short for its priority"), nil
		}
		block = block[5:]
	}
	if !f.has(flagEndHeaders) {
		var err error
		if block, ce, err = c.readContinuations(f.id, block); ce != nil || err != nil {
			return ce, err
		}
	}
	if c.cfg.client {
		return c.onAnswer(f, block), nil
	}
	return c.onRequest(f, block), nil
}

func (c *conn) readContinuations(id uint32, start []byte) ([]byte, *ConnError, error) {
	h := &c.head
	h.block = append(h.block[:0], start...)
	limit := max(minBlock, 2*h.limit)
	for count := 0; ; count++ {
		if err := c.in.need(frameHeader); err != nil {
			return nil, nil, err
		}
		f := parseFrame(c.in.take(frameHeader))
		switch {
		case f.kind != frameContinuation || f.id != id:
			return nil, violation(ProtocolError, "a header block was not continued"), nil
		case f.n > maxFrame:
			return nil, violation(FrameSizeError, "a frame of %d bytes", f.n), nil
		case count >= maxContinuations || len(h.block)+f.n > limit:
			return nil, violation(EnhanceYourCalm, "an endless header block"), nil
		}
		if err := c.in.need(f.n); err != nil {
			return nil, nil, err
		}
		h.block = append(h.block, c.in.take(f.n)...)
		if f.has(flagEndHeaders) {
			block := h.block
			if cap(h.block) > minBlock {
				h.block = nil
			}
			return block, nil, nil
		}
	}
}

// onRequest takes a block a client sent: a new stream, or the trailer of one.
func (c *conn) onRequest(f frame, block []byte) *ConnError {
	if f.id&1 == 0 {
		return violation(ProtocolError, "a client's stream with even id %d", f.id)
	}
	c.mu.Lock()
	old, known := c.streams[f.id], f.id <= c.lastPeer
	c.mu.Unlock()
	if known {
		return c.onTrailer(f, block, old)
	}
	st := &Stream{c: c, id: f.id, born: c.in.at, recvAvail: c.cfg.window, length: -1}
	if ce := c.head.decode(block, st, st.inline[:0], false); ce != nil {
		return ce
	}
	h := &c.head
	st.header, st.oversize, st.length = h.fields, h.over, h.length
	end := f.has(flagEndStream)
	if end && st.length > 0 && h.bad == "" {
		h.bad = "less DATA than content-length"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastPeer = f.id
	if c.cause != nil || (c.away.closed && f.id > c.away.last) {
		c.abuse.forgot(f.id)
		return nil // it was told: whoever opened it knows that it was not taken
	}
	code := NoError
	switch {
	case h.bad != "":
		code = ProtocolError
	case len(c.streams) >= c.cfg.maxStreams || c.handlers >= c.cfg.maxStreams:
		code = RefusedStream
	}
	if code != NoError {
		c.out.pending = appendReset(c.out.pending, f.id, code)
		c.abuse.forgot(f.id)
		c.replied = true
		if h.bad == "" && len(c.streams) < c.cfg.maxStreams {
			return c.trifle() // our handlers are slow to end; the client keeps to the limit
		}
		return c.misbehaved()
	}
	st.sendAvail = c.peerWindow
	c.streams[f.id] = st
	c.handlers++
	c.opened++
	c.watch()
	if end {
		c.ended(st)
	} else {
		c.fresh = append(c.fresh, st)
	}
	return nil
}

// onTrailer takes the trailer of a stream; st is nil if the stream is over.
func (c *conn) onTrailer(f frame, block []byte, st *Stream) *ConnError {
	var room call.Fields
	if ce := c.head.decode(block, nil, room, true); ce != nil {
		return ce
	}
	h := &c.head
	c.mu.Lock()
	defer c.mu.Unlock()
	if st == nil || c.streams[f.id] != st {
		return c.stray(f, "HEADERS")
	}
	code, text := ProtocolError, h.bad
	switch {
	case st.recvEnded:
		code, text = StreamClosed, "HEADERS after the end of the stream"
	case !f.has(flagEndStream):
		text = "a trailer that does not end the stream"
	case h.over:
		text = "the trailer is over the limit"
	case st.length > 0:
		text = "less DATA than content-length"
	}
	if text != "" {
		st.resetLocked(code, fault.New(opStream, fault.Invalid, "the peer broke HTTP/2: %s", text))
		c.replied = true
		return c.misbehaved()
	}
	st.trailer = h.fields
	c.ended(st)
	return nil
}

// onAnswer takes a block a server sent: interim answers, the answer's header, or its trailer.
func (c *conn) onAnswer(f frame, block []byte) *ConnError {
	c.mu.Lock()
	st := c.streams[f.id]
	var ce *ConnError
	if st == nil {
		ce = c.unopened(f.id, "HEADERS")
	}
	trailing := st != nil && st.status != 0
	c.mu.Unlock()
	if ce != nil {
		return ce
	}
	if st == nil || trailing {
		return c.onTrailer(f, block, st)
	}
	if ce := c.head.decode(block, nil, st.inline[:0], false); ce != nil {
		return ce
	}
	h := &c.head
	end := f.has(flagEndStream)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[f.id] != st {
		return nil
	}
	text := h.bad
	switch {
	case text != "":
	case h.over:
		text = "the header is over the limit"
	case h.status < 200 && end:
		text = "an interim answer that ends the stream"
	}
	if text != "" {
		code := fault.Unavailable
		if h.over {
			code = fault.TooLarge
		}
		st.resetLocked(ProtocolError, fault.New(opStream, code, "the answer of %s breaks HTTP/2: %s", c.peerName(), text).WithSent(fault.SentMaybe))
		c.replied = true
		return nil
	}
	if h.status < 200 {
		return c.trifle() // 100 and 103 mean nothing to an RPC
	}
	st.status, st.header = h.status, h.fields
	if h.status != 204 && h.status != 304 && st.method != "HEAD" {
		st.length = h.length
	}
	if end {
		c.ended(st)
	} else {
		c.touch(st)
	}
	return nil
}
