// Package socket writes to connections without waiting for them. It is the one thing that the
// wires which combine the writes of many callers (api/link, api/h2) need below net.Conn, and
// knows nothing of frames. Start at Nonblocking.
package socket
