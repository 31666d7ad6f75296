// Package h1 is the house's HTTP/1.1 wire: a server and a client made for carrying other
// people's requests, cheaply and without changing their meaning.
//
// It turns bytes on a connection into an Exchange (server side) or a Response (client side)
// and back. It knows framing, connection reuse, interim responses, trailers, upgrades, and
// when the other side has gone. It leaves everything else to others: routing, TLS (a
// listener or a Dial function brings it), percent-decoding, content codings, redirects,
// cookies, deadlines and retries beyond the one that connection reuse itself makes
// necessary. HTTP/2 is recognised and handed to Server.H2.
//
// Small bodies and streams have the same semantics. A body that fits is handed over as
// bytes (Exchange.ReadBody, Response.Data) because that is cheaper, never because it would
// behave differently.
//
// The parser is strict where leniency lets two parsers disagree about where a message ends:
// lines end with CR LF (a bare LF is refused, everywhere), Transfer-Encoding is exactly
// "chunked" and never beside a Content-Length, folded lines, spaces before a colon and
// control bytes are refused.
//
// Strings handed out (targets, field names and values) are ordinary Go strings and may be
// kept. Slices (Fields, ReadBody, Response.Data) are reused and live as long as their
// documentation says.
//
// Start reading at Server, then Exchange; the client's side begins at Client.Do.
package h1
