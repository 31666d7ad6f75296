// Package grpcapi is the gRPC edge, both directions: Dapr's gRPC API towards the app, proxying
// of any other service to another app, and the app called over gRPC.
//
// It translates and decides nothing about the call itself. It speaks gRPC on the house's own
// HTTP/2 wire (api/h2): grpc-go gives the types that generated code needs and takes no part in
// a call. Proxied messages are never decoded, nor cut out of the body they travel in: a meter
// counts them as they pass.
//
// Start at Server (server.go) and rpc (rpc.go), one call of the API; stream.go and proxy.go are
// its streaming and proxied kinds. AppChannel (channel.go) calls the app, appconn.go with
// generated stubs, appproxy.go with proxied calls. wire.go holds how gRPC uses header fields.
package grpcapi
