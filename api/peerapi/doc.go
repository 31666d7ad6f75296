// Package peerapi is the edge between sidecars: invocations ride the link (api/link) over
// TCP as a head, opaque body bytes and a trailer.
//
// Server answers peers on the peer port; Client calls them and implements invoke.Peers. HTTP
// and gRPC calls travel alike: what differs is in the head (codec.go) and is interpreted at
// the two ends only. Nothing is buffered beyond the link's credit.
//
// The first bytes on the port tell the link from HTTP/2, so that other sidecar protocols can
// share it later.
package peerapi
