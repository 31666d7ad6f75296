// Package conformance runs the suites of components/block/blocktest through a whole sidecar: a
// component here is a client of a running sidecar's API, so what the suites check must survive an
// edge, a service and the wire, once over gRPC and once over HTTP. The suites on the backends
// themselves are in the backends' folders; `make conformance` runs both and prints a table, which
// the program in folder table makes.
//
// State, locks and configuration are run. The other blocks' suites ask for what Dapr's wires do not
// tell: which secret does not exist, which operation a binding does not have, who consumes with whom.
//
// Start reading at edges_test.go; grpc_test.go and http_test.go are the clients, and say what the
// wire has no words for.
package conformance
