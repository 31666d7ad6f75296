// Package policy breaks one part of a running mesh under traffic policy and measures what
// callers notice: with no policy, with a Dapr Resiliency resource, and with a TrafficPolicy.
//
// A cell is one fault under one policy, with processes of its own: a caller's sidecar and three
// replicas of an app with theirs, or a sidecar and an embedded node. Calls come at a fixed rate
// whatever becomes of the earlier ones, for callers who wait hide what a fault costs. Only what
// must hold on any machine is asserted; the rest is the table at the end, in Markdown.
//
// FAULTS_FOR lengthens the faults until the whole campaign takes about that long. Start at
// campaign_test.go (the faults), then lane_test.go (the processes), load_test.go and
// figures_test.go.
package policy
