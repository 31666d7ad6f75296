// Package h2 is Mecha's HTTP/2 wire: a lean server and client made for carrying gRPC calls.
//
// It speaks plain HTTP/2 (RFC 9113) with bodies and trailers and knows nothing of gRPC's
// messages, codes or deadlines: the edge above puts those into header fields and bodies. It
// offers no server push, priorities, CONNECT, extended or otherwise, content codings or
// upgrade from HTTP/1.1: connections begin with the HTTP/2 preface.
//
// What makes it cheap: a handler is started only when the frames at hand are parsed, on a
// goroutine that ran others before, so that the request of a unary call is there, with the
// knowledge that it has ended, before the handler asks. An answer's header, body and trailer
// leave in one write, by the goroutine that made them; many streams share that write.
//
// Start at Server (server.go) and Client (client.go); both use Stream (stream.go). Below them
// conn.go holds a connection's life, in.go reads frames, send.go and out.go write them,
// fields_in.go and fields_out.go are header compression.
package h2
