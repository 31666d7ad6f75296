package h1

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// writer sends bytes on a connection. A write is given up when it makes no progress for the
// timeout, never because it is slow.
type writer struct {
	mu      sync.Mutex // guards everything here, and the answer's state on the server side
	to      net.Conn
	timeout time.Duration // 0: none
	armed   int64         // write deadline in force, ns
	tls     bool          // a write that timed out half-way cannot go on
	err     error         // sticky
	moved   bool          // bytes were taken since this was last cleared
	vec     [3][]byte
	bufs    net.Buffers
}

func (w *writer) init(nc net.Conn, timeout time.Duration) {
	w.to, w.timeout = nc, timeout
	_, w.tls = nc.(interface{ NetConn() net.Conn })
}

// tlsPiece is how much of a large write under TLS shares one deadline.
const tlsPiece = 64 << 10

// send writes up to three pieces, in one system call where the connection can. mu is held.
func (w *writer) send(a, b, z []byte) error {
	for w.tls && len(b) > tlsPiece && w.err == nil {
		_ = w.send(a, b[:tlsPiece], nil)
		a, b = nil, b[tlsPiece:]
	}
	if w.err != nil {
		return w.err
	}
	if len(b) == 0 && len(z) == 0 {
		return w.sendOne(a)
	}
	w.vec = [3][]byte{a, b, z}
	w.bufs = w.vec[:]
	for {
		w.arm()
		n, err := w.bufs.WriteTo(w.to) // takes what was written off bufs
		w.moved = w.moved || n > 0
		if err == nil {
			break
		}
		if !w.resume(n, err) {
			w.err = err
			break
		}
	}
	w.vec = [3][]byte{} // do not keep a caller's body alive
	return w.err
}

func (w *writer) sendOne(a []byte) error {
	for {
		w.arm()
		n, err := w.to.Write(a)
		w.moved = w.moved || n > 0
		if err == nil {
			return nil
		}
		if !w.resume(int64(n), err) {
			w.err = err
			return err
		}
		a = a[n:]
	}
}

// arm makes the write deadline lie between 1 and 1.5 timeouts ahead; moving it for every
// write would cost a timer operation each.
func (w *writer) arm() {
	if w.timeout == 0 {
		return
	}
	now := time.Now()
	if w.armed-now.UnixNano() < int64(w.timeout) {
		d := now.Add(w.timeout + w.timeout/2)
		w.armed = d.UnixNano()
		_ = w.to.SetWriteDeadline(d)
	}
}

// resume reports whether a failed write made progress and may go on.
func (w *writer) resume(n int64, err error) bool {
	if n == 0 || w.tls || w.timeout == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	w.armed = 0
	return true
}
