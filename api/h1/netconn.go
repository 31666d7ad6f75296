package h1

import (
	"net"
	"time"
)

var (
	// past is a deadline that makes a Read or Write in progress return at once.
	past       = time.Unix(1, 0)
	noDeadline time.Time
)

// replayConn is a connection some of whose bytes were read already.
type replayConn struct {
	net.Conn
	pre []byte // not safe for concurrent Reads, as little as the order of bytes would be
}

func (c *replayConn) Read(p []byte) (int, error) {
	if len(c.pre) > 0 {
		n := copy(p, c.pre)
		c.pre = c.pre[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// CloseWrite ends the sending side alone, or the connection where that is impossible.
func (c *replayConn) CloseWrite() error {
	if h, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return c.Close()
}

// NetConn gives the connection underneath, for peer credentials.
func (c *replayConn) NetConn() net.Conn { return c.Conn }

// resetConn closes a connection so that the other side sees an error, not an end.
func resetConn(nc net.Conn) {
	raw := nc
	if t, ok := nc.(interface{ NetConn() net.Conn }); ok {
		raw = t.NetConn()
	}
	if l, ok := raw.(interface{ SetLinger(int) error }); ok {
		_ = l.SetLinger(0)
		// Under TLS the carrier goes first: closing the session would say goodbye properly.
		_ = raw.Close()
	}
	_ = nc.Close()
}
