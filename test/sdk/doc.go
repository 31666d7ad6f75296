// Package sdk runs the official Dapr SDKs, unmodified, against the mecha binary. Each language
// has a small program in a folder of its own that walks through one scenario (every building block,
// on an embedded backend and on Redis where there is one, invocation both ways, metadata, health,
// shutdown) and prints one line per step. What an SDK has no call for is said where it would be. The
// tests start the sidecars and the tool chains and judge the output; what each call must do in
// detail is the business of test/e2e.
//
// Start reading at sdk_test.go, then stage_test.go for what a program is given and go/main.go for
// the scenario. quickstart_test.go runs deploy/samples/quickstart as a user would.
package sdk
