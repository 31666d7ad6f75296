//go:build unix

package wire

import (
	"net"
	"syscall"
)

// Nonblocking returns a function that writes what conn takes without waiting, or nil if conn
// is not a plain socket. The type is checked exactly: a wrapper's Write must not be bypassed.
// The function is not safe for concurrent use.
func Nonblocking(conn net.Conn) func([]byte) (int, error) {
	var raw syscall.RawConn
	var err error
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	w := &rawWriter{raw: raw}
	w.try = w.attempt // bound once: a closure per write would be an allocation
	return w.write
}

type rawWriter struct {
	raw syscall.RawConn
	try func(fd uintptr) bool
	p   []byte
	n   int
	err error
}

func (w *rawWriter) write(p []byte) (int, error) {
	w.p, w.n, w.err = p, 0, nil
	err := w.raw.Write(w.try)
	w.p = nil
	if err == nil {
		err = w.err
	}
	return w.n, err
}

// attempt reports true always: the caller does not want to wait for the socket.
func (w *rawWriter) attempt(fd uintptr) bool {
	for w.n < len(w.p) {
		n, err := syscall.Write(int(fd), w.p[w.n:])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return true
		case err != nil:
			w.err = err
			return true
		}
		w.n += n
		if n < len(w.p) { // a short write means the socket is full
			return true
		}
	}
	return true
}
