// Package grpcapi is the gRPC edge, both directions: Dapr's gRPC API towards the app, proxying
// of any other service to another app, and the app called over gRPC.
//
// It translates and decides nothing about the call itself. Proxied messages are never decoded:
// a codec passes their bytes through. Start at Server (server.go); proxy.go carries proxied
// calls, channel.go calls the app, message.go is the length-prefixed form in which gRPC
// messages travel as a body.
package grpcapi
