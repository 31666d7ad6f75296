//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package h1

import (
	"net"
	"syscall"
)

// verdict is what a look at a connection without reading from it tells.
type verdict uint8

const (
	quiet   verdict = iota // alive, or impossible to tell; nothing waits
	waiting                // bytes wait to be read
	gone                   // the other side closed or reset it
)

// peeker looks at a connection's receive queue without taking anything from it. It needs no
// goroutine and no allocation after its first use. One look at a time.
type peeker struct {
	raw  syscall.RawConn
	look func(fd uintptr)
	last verdict
	one  [1]byte
}

// watch prepares a look at nc. A connection without a file descriptor (net.Pipe, tests) is
// always quiet; under TLS the look is at the carrier.
func (p *peeker) watch(nc net.Conn) {
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		nc = t.NetConn()
	}
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	p.raw, p.look = raw, p.peek
}

// peeked tells the connection's state. It does not disturb a Read in progress.
func (p *peeker) peeked() verdict {
	if p.raw == nil {
		return quiet
	}
	if err := p.raw.Control(p.look); err != nil {
		return gone // closed on our side
	}
	return p.last
}

func (p *peeker) peek(fd uintptr) {
	for {
		n, _, err := syscall.Recvfrom(int(fd), p.one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			p.last = quiet
		case err != nil || n == 0:
			p.last = gone
		default:
			p.last = waiting
			// Bytes in the queue hide a reset behind them; the pending socket error does not.
			if e, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR); err == nil && e != 0 {
				p.last = gone
			}
		}
		return
	}
}
