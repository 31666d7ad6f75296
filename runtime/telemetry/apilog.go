package telemetry

import (
	"context"
	"log/slog"
	"strings"
	"time"
)

// APILogOptions are the settings of API logging. See APILogEnabled for who decides Enabled.
type APILogOptions struct {
	Enabled          bool
	ObfuscateURLs    bool // log the route's name instead of the path
	OmitHealthChecks bool
}

// APILogEnabled resolves the tri-state: the flag --enable-api-logging if it was given, else the
// Configuration's logging.apiLogging.enabled.
func APILogEnabled(flag *bool, configured bool) bool {
	if flag != nil {
		return *flag
	}
	return configured
}

// APILog writes one line for each call of the API. A nil *APILog, which NewAPILog returns when
// logging is off, does nothing.
type APILog struct {
	http, grpc *slog.Logger
	o          APILogOptions
}

// NewAPILog returns the API log, or nil when it is off.
func NewAPILog(log *slog.Logger, o APILogOptions) *APILog {
	if !o.Enabled {
		return nil
	}
	return &APILog{http: Scope(log, "dapr.runtime.http-info"), grpc: Scope(log, "dapr.runtime.grpc.api-info"), o: o}
}

// HTTPCall is one finished call of the HTTP API.
type HTTPCall struct {
	Verb, Path string // the path without query
	Route      string // the route's name: GetState, InvokeService/<app>
	UserAgent  string
	Code       int
	Size       int64 // bytes of the response body
	Took       time.Duration
}

// HTTP logs a call of the HTTP API.
func (a *APILog) HTTP(c HTTPCall) {
	ctx := context.Background()
	if a == nil || !a.http.Enabled(ctx, slog.LevelInfo) || a.o.OmitHealthChecks && httpHealth(c.Path) {
		return
	}
	method := c.Route
	if !a.o.ObfuscateURLs || method == "" && c.Path == "" {
		method = c.Verb + " " + c.Path
	}
	attrs := [...]slog.Attr{
		slog.String("method", method), slog.Int("code", c.Code),
		slog.Int64("duration", c.Took.Milliseconds()), slog.Int64("size", c.Size),
		slog.String("useragent", c.UserAgent),
	}
	a.http.LogAttrs(ctx, slog.LevelInfo, "HTTP API Called", attrs[:agent(c.UserAgent, len(attrs))]...)
}

// GRPC logs a call of the gRPC API: its full method and the number of its status code.
func (a *APILog) GRPC(fullMethod, userAgent string, code uint32, took time.Duration) {
	ctx := context.Background()
	if a == nil || !a.grpc.Enabled(ctx, slog.LevelInfo) || a.o.OmitHealthChecks && strings.HasPrefix(fullMethod, "/grpc.health.") {
		return
	}
	attrs := [...]slog.Attr{
		slog.String("method", fullMethod), slog.Uint64("code", uint64(code)),
		slog.Int64("duration", took.Milliseconds()), slog.String("useragent", userAgent),
	}
	a.grpc.LogAttrs(ctx, slog.LevelInfo, "gRPC API Called", attrs[:agent(userAgent, len(attrs))]...)
}

// agent leaves the last attribute, the user agent, out when the caller named none.
func agent(userAgent string, n int) int {
	if userAgent == "" {
		return n - 1
	}
	return n
}

func httpHealth(path string) bool {
	return strings.HasPrefix(path, "/v1.0/healthz")
}
