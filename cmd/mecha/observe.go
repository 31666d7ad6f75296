package main

import (
	"time"

	"google.golang.org/grpc/codes"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// serverObserver gives finished API calls to the metrics and the API log.
type serverObserver struct {
	metrics   *telemetry.Metrics
	api, grpc *telemetry.APILog
}

func (o *serverObserver) HTTPServed(r httpapi.Served) {
	o.metrics.HTTPServer(verb(r.Method), r.Path, r.Status, r.BytesIn, r.BytesOut, r.Took)
	if o.api != nil {
		o.api.HTTP(telemetry.HTTPCall{Verb: r.Method, Path: r.Path, Route: r.Route, UserAgent: r.UserAgent, Code: r.Status, Size: r.BytesOut, Took: r.Took})
	}
}

// verb is a verb as a label. A caller can invent any number of them, and a series is never
// forgotten, so unknown ones share one.
func verb(method string) string {
	switch method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT":
		return method
	}
	return "OTHER"
}

// ErrorCode counts an error answered over HTTP.
func (o *serverObserver) ErrorCode(tag string) { o.metrics.ErrorCode(tag, apierr.Category(tag)) }

func (o *serverObserver) GRPCServed(method string, code codes.Code, userAgent string, received, sent int64, took time.Duration) {
	o.metrics.GRPCServer(method, uint32(code), received, sent, took)
	if o.grpc != nil {
		o.grpc.GRPC(method, userAgent, uint32(code), took)
	}
}

// callObserver gives calls into the app to the metrics.
type callObserver struct{ metrics *telemetry.Metrics }

func (o callObserver) HTTPCalled(method, path string, status int, sent, received int64, took time.Duration) {
	o.metrics.HTTPClient(method, path, status, sent, received, took)
}

func (o callObserver) HTTPProbed(status int, took time.Duration) {
	o.metrics.HTTPHealthProbe(status, took)
}

func (o callObserver) GRPCProbed(code codes.Code, took time.Duration) {
	o.metrics.GRPCHealthProbe(uint32(code), took)
}

func (o callObserver) GRPCCalled(method string, code codes.Code, sent, received int64, took time.Duration) {
	o.metrics.GRPCClient(method, uint32(code), sent, received, took)
}
