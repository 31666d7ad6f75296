// Package telemetry is what the sidecar tells people about itself: log lines, metrics and
// traces, each set up once and handed down.
//
// Three values carry it, and none of them needs another:
//
//   - Log makes the slog.Logger of the process. Its lines have the shape Dapr's tools read.
//   - Metrics counts and measures under Dapr's metric names. A nil *Metrics records nothing,
//     so callers never ask whether metrics are on.
//   - Tracer starts spans and decides which are recorded. A nil *Tracer is a tracer that is
//     neither on nor off (see Mode).
//
// Everything on the path of a request is free of allocation once its series exists, starts no
// goroutine and never wakes an idle process. The wire formats of trace context and baggage are
// parsed here; where they come from and go to (headers, metadata) is the edges' business, and
// serving the metrics over HTTP is api/adminapi's.
//
// Start reading at NewLog (log.go), Metrics (metrics.go) with its table of names (defs.go), and
// Tracer (tracer.go).
package telemetry
