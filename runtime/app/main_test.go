package app_test

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/runtime/call"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is an app behind a Channel.
type fake struct {
	invoke func(context.Context, *call.Request) (*call.Response, error)
	probe  func(context.Context) error
	closed atomic.Int32
}

func (f *fake) Invoke(ctx context.Context, req *call.Request) (*call.Response, error) {
	return f.invoke(ctx, req)
}

func (f *fake) Probe(ctx context.Context) error { return f.probe(ctx) }

func (f *fake) Close() error { f.closed.Add(1); return nil }

func whole(context.Context, *call.Request) (*call.Response, error) {
	return &call.Response{Status: 200, Data: []byte("ok")}, nil
}

// body is a stream that tells whether it was closed.
type body struct {
	io.Reader
	closed atomic.Int32
}

func (b *body) Close() error { b.closed.Add(1); return nil }

func (b *body) Write(p []byte) (int, error) { return len(p), nil }

// textLog makes a logger whose lines carry level and message only.
func textLog(to io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}
