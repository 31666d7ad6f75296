// Package blocks breaks the server behind a building block, the disk of the embedded node, the
// network between, or the sidecar itself, while callers are at work, and holds what was
// acknowledged against what is there afterwards.
//
// The sidecars are the real binary and the servers are real. Calls carry their deadline to the
// sidecar as gRPC does, but the client waits for longer: so it is the sidecar that is measured.
// Bounds in time are generous, for machines are busy; what is said of data has no exceptions.
// Each case prints a line with its figures at the end.
//
// Start at api_test.go (one call) and load_test.go (many), then stopped_test.go. Networks and
// disks of their own need Linux and root.
package blocks
