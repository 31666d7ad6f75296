// Package mecha is what a Go application uses of Mecha beyond Dapr's API: topics that are divided into
// partitions, published and consumed with everything told (mecha.v1.Messaging).
//
// Dial finds the sidecar. Then there are three ways:
//
//   - Client.Consume runs a handler for each message. It does by itself what ordered consumption asks
//     for: as many messages at once as there are keys, acknowledgements in ranges, the barrier when a
//     partition moves, reconnection under the same name.
//   - Client.NewPublisher publishes with a receipt for each message. Many are under way at once; those
//     that were not answered are sent again after a reconnection, and taken once.
//   - Client.OpenStream shows every frame, for those who decide all of that themselves.
//
// State, cache and locks of mecha.v1 have no wrapper: use their stubs with Client.Conn. A
// Message's IfEpoch fences such writes by the partition they belong to.
//
// The package depends on gRPC and the stubs, and on nothing of the sidecar.
package mecha
