// Package messaging breaks consumers, their sidecars, the ways between and the broker while
// messages flow, and holds what was seen against the invariants of messaging.
//
// Every publisher and consumer is a process of its own (package app) beside a sidecar of its own. Each
// writes down what it does; whoever breaks something writes that down too; and package history
// judges. A verdict never depends on luck with time: takeovers are judged with an allowance for a
// busy machine, everything else by order and count.
//
// Histories are made from a seed, so a run can be repeated: MESSAGING_SEED. FAULTS_FOR=1h makes
// more of them for as long. Another broker takes the embedded node's place with
// MESSAGING_COMPONENT; docs/verification.md tells how, and what a run looks like.
//
// Start at scenarios_test.go, then stage_test.go.
package messaging
