//go:build !(linux || darwin || freebsd || netbsd || openbsd || dragonfly)

package h1

import "net"

type verdict uint8

const (
	quiet verdict = iota
	waiting
	gone
)

// peeker cannot look at a connection on this system: a caller that leaves is noticed by the
// next read or write, and a stale pooled connection by its first use.
type peeker struct{}

func (*peeker) watch(net.Conn)  {}
func (*peeker) peeked() verdict { return quiet }
