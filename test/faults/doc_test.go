// Package faults breaks a running mesh and measures what its callers see.
//
// Each test keeps closed-loop callers busy over HTTP and gRPC, every call with a deadline, then
// kills, stops, cuts off or starves one part: a sidecar, an app, the embedded node, a network,
// a disk. A call may fail while its way is broken. It may never be answered wrongly, never
// outlive its deadline, and what was acknowledged may never be lost; and when the part is back,
// calls succeed again within a bound. The table at the end has the figures.
//
// Start at load_test.go (callers and verdicts), then kill_test.go. Some tests need Linux and root:
// networks and disks of their own.
package faults
