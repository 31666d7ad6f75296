//go:build !unix

package wire

import "net"

// Nonblocking needs descriptors that can be written without waiting; elsewhere a goroutine
// flushes.
func Nonblocking(net.Conn) func([]byte) (int, error) { return nil }
