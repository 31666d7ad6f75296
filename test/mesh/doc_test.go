// Package mesh tests what several sidecars do together, from outside: that one trace spans a
// chain of apps, that metrics and logs say what Dapr's say, that sidecars find each other by
// every registry and over networks.
//
// Start at tracing_test.go; collector_test.go is where spans arrive.
package mesh
