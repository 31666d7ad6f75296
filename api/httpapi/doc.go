// Package httpapi is the HTTP edge, both directions: Dapr's HTTP API towards the app, and the
// app (or an external endpoint) called over HTTP.
//
// It translates: a request becomes a call on a service, an outcome becomes a status and a
// body. It decides nothing about the call itself (policy, routing and balancing are in
// runtime). What belongs to the transport is here: paths, headers, CORS, tokens, body limits.
//
// Start at Server.handle (server.go) and route.go for the API, at AppChannel (channel.go) for
// the app.
package httpapi
