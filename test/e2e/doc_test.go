// Package e2e tests Mecha from outside: real sidecars started from the binary, real apps over
// HTTP and gRPC, nothing mocked.
//
// A file per subject. Tests state what an app or a caller can observe; how it comes about is
// the business of the packages' own tests. Start reading at helpers_test.go, then
// http_invoke_test.go.
package e2e
