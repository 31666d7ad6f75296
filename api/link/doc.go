// Package link is the framed wire: many independent calls over one reliable byte stream.
//
// A call is a stream: an opaque head, opaque bytes in each direction, and an opaque trailer
// that ends a direction. The package knows nothing of HTTP, gRPC or Mecha's messages; the
// edges (api/peerapi, api/linkapi) say what heads and trailers mean, and who may connect.
// Below it is any net.Conn: TCP between sidecars, TLS over it, a Unix socket. The bytes on
// the wire are specified in docs/reference/link-wire.md.
//
// What it promises:
//   - A unary call is one frame each way, and nobody but the two callers' goroutines, one
//     reader per session and one handler goroutine takes part in it.
//   - A slow stream is slow alone: the reader always drains the connection, credit bounds
//     what may be queued, and frames of big bodies take turns.
//   - A failed call says how far it got: fault.SentNever means the peer cannot have acted on
//     it, so it may be repeated whatever it was.
//   - An idle session costs no CPU: no periodic wake-up while no stream is open.
//   - A peer that breaks the rules loses its own session and nothing else.
//
// Start reading at Session and Stream; Pool keeps one session per address. In a session both
// sides are equal after the handshake: either may open streams if the other has a Handler.
package link
