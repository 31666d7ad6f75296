package grpcapi

import (
	"context"
	"errors"
	"io"
	"runtime"
	"sync"

	"github.com/mecha-project/mecha/components/fault"
)

// source is either end of a gRPC stream, as far as receiving goes.
type source interface {
	RecvMsg(m any) error
	Context() context.Context
}

// pump turns received messages into a byte stream. It has a goroutine of its own, because gRPC
// offers no way to ask whether a stream has ended without waiting for it. At most one message
// waits unread, so that a slow reader slows the sender down.
type pump struct {
	src  source
	wake chan struct{} // something changed for the reader

	mu     sync.Mutex
	buf    []byte        // guarded by mu: unread bytes
	err    error         // guarded by mu: why there will be no more
	closed bool          // guarded by mu: the reader has gone
	room   chan struct{} // guarded by mu: made when the writer first has to wait
}

// startPump starts reading src; buf is what was read before. It gives the new goroutine one
// chance to run, since the end of a unary call has usually come with its message.
func startPump(src source, buf []byte) *pump {
	p := &pump{src: src, buf: buf, wake: make(chan struct{}, 1)}
	go p.run()
	runtime.Gosched()
	return p
}

// ended reports that an orderly end has come: what is buffered is all there is.
func (p *pump) ended() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return errors.Is(p.err, io.EOF)
}

// over reports any end.
func (p *pump) over() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

// rest takes what is buffered, for a pump that is over.
func (p *pump) rest() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.buf
	p.buf = nil
	return b, p.err
}

func (p *pump) run() {
	for {
		var f frame
		err := p.src.RecvMsg(&f)
		p.mu.Lock()
		for err == nil && len(p.buf) > 0 && !p.closed {
			err = p.waitForRoom()
		}
		if err != nil {
			p.err = err
		} else {
			p.buf = appendMessage(nil, f.data)
		}
		stop := p.err != nil || p.closed
		p.mu.Unlock()
		f.free()
		signal(p.wake)
		if stop {
			return
		}
	}
}

// waitForRoom unlocks while it waits for the reader.
func (p *pump) waitForRoom() (err error) {
	if p.room == nil {
		p.room = make(chan struct{}, 1)
	}
	room := p.room
	p.mu.Unlock()
	select {
	case <-room:
	case <-p.src.Context().Done():
		err = p.src.Context().Err()
	}
	p.mu.Lock()
	return err
}

// Read implements io.Reader.
func (p *pump) Read(b []byte) (int, error) {
	for {
		p.mu.Lock()
		if len(p.buf) > 0 {
			n := copy(b, p.buf)
			p.buf = p.buf[n:]
			room := p.room
			p.mu.Unlock()
			if room != nil {
				signal(room)
			}
			return n, nil
		}
		err := p.err
		if err == nil && p.closed {
			err = errClosed
		}
		p.mu.Unlock()
		if err != nil {
			return 0, err
		}
		<-p.wake
	}
}

var errClosed = fault.New("grpcapi.pump", fault.Canceled, "the body was closed")

// Close makes reads fail and lets the pump's next message be its last. The goroutine itself
// ends with the stream.
func (p *pump) Close() error {
	p.mu.Lock()
	p.closed = true
	room := p.room
	p.mu.Unlock()
	signal(p.wake)
	if room != nil {
		signal(room)
	}
	return nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
