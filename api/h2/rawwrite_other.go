//go:build !unix

package h2

import "net"

// nonblocking needs descriptors that can be written without waiting; elsewhere a goroutine
// flushes.
func nonblocking(net.Conn) func([]byte) (int, error) { return nil }
