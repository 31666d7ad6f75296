// Package app is the application as a callee.
//
// Every call into the app — an invocation that arrives, an event, a callback — goes through
// one App, with the app's token, concurrency limit and health applied in one place. The
// edges implement Channel for each protocol an app can speak. Start at App.Invoke.
package app

import (
	"context"
	"io"
	"sync/atomic"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// Channel carries calls to an app over one protocol.
type Channel interface {
	// Invoke sends the request and returns as soon as the head of the answer is there. Any
	// answer of the app, whatever its status, is a response; an error means there is none.
	// For req.Protocol GRPC the response's Stream carries length-prefixed messages and its
	// Trailer the status.
	Invoke(ctx context.Context, req *call.Request) (*call.Response, error)
	// Probe asks the app for its health.
	Probe(ctx context.Context) error
	// Close releases connections. Calls in flight fail.
	Close() error
}

// TokenHeader carries APP_API_TOKEN to the app.
const TokenHeader = "dapr-api-token"

// Options configure an App. The zero value is an app without limit, health checks or token.
type Options struct {
	// MaxConcurrency bounds calls in progress into the app; more wait. Zero or less: no bound.
	MaxConcurrency int
	// Token is sent with every call when not empty.
	Token string
	// Health turns the health gate on: calls fail until the first good probe.
	Health bool
}

// App is the local application. A nil channel is an app without a port: every call fails
// with fault.NoApp. It is safe for concurrent use.
type App struct {
	channel Channel
	token   string
	slots   chan struct{} // nil: no limit
	gated   bool
	healthy atomic.Bool
}

// New wraps a channel; channel may be nil.
func New(channel Channel, opts Options) *App {
	a := &App{channel: channel, token: opts.Token, gated: opts.Health}
	if opts.MaxConcurrency > 0 {
		a.slots = make(chan struct{}, opts.MaxConcurrency)
	}
	a.healthy.Store(!opts.Health)
	return a
}

// Exists reports whether the app has a port to call.
func (a *App) Exists() bool { return a != nil && a.channel != nil }

// Healthy reports whether calls may reach the app now.
func (a *App) Healthy() bool { return a.healthy.Load() }

// Invoke calls the app. With a concurrency limit it waits for a slot, and the slot is held
// until the response's body was read or closed.
func (a *App) Invoke(ctx context.Context, req *call.Request) (*call.Response, error) {
	if err := a.admit(ctx, "app.Invoke"); err != nil {
		return nil, err
	}
	if a.token != "" {
		req.Header.Set(TokenHeader, a.token)
	}
	if a.slots == nil {
		return a.channel.Invoke(ctx, req)
	}
	held := false
	defer func() { // a panic in the channel is its call's only: it must not keep the slot
		if !held {
			<-a.slots
		}
	}()
	resp, err := a.channel.Invoke(ctx, req)
	if err != nil || (resp.Stream == nil && resp.Upgrade == nil) {
		return resp, err
	}
	held = true
	release := &release{slots: a.slots}
	if resp.Stream != nil {
		resp.Stream = &slotStream{ReadCloser: resp.Stream, release: release}
	} else {
		resp.Upgrade = &slotUpgrade{ReadWriteCloser: resp.Upgrade, release: release}
	}
	return resp, nil
}

// Enter admits a call that does not go through Invoke, because it is in the app's own protocol.
// With a concurrency limit it waits for a slot, which leave gives back: call it when the call is
// over, once.
func (a *App) Enter(ctx context.Context) (leave func(), err error) {
	if err := a.admit(ctx, "app.Enter"); err != nil {
		return nil, err
	}
	if a.slots == nil {
		return func() {}, nil
	}
	return func() { <-a.slots }, nil
}

// admit judges whether a call may reach the app now, and takes its slot if there is a limit.
func (a *App) admit(ctx context.Context, op fault.Op) error {
	if !a.Exists() {
		return fault.New(op, fault.NotReady, "app channel is not initialized").With(fault.NoApp).WithSent(fault.SentNever)
	}
	if a.gated && !a.healthy.Load() {
		return fault.New(op, fault.NotReady, "app is not in a healthy state").With(fault.AppUnhealthy).WithSent(fault.SentMaybe)
	}
	if a.slots == nil {
		return nil
	}
	select {
	case a.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.New(op, fault.Of(ctx.Err()), "waiting for one of the app's %d slots (--app-max-concurrency)", cap(a.slots)).
			WithSent(fault.SentNever).Because(ctx.Err())
	}
}

// Close closes the channel.
func (a *App) Close() error {
	if !a.Exists() {
		return nil
	}
	return a.channel.Close()
}

// release gives a slot back once.
type release struct {
	slots chan struct{}
	done  atomic.Bool
}

func (r *release) once() {
	if r.done.CompareAndSwap(false, true) {
		<-r.slots
	}
}

type slotStream struct {
	io.ReadCloser
	release *release
}

func (s *slotStream) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if err != nil {
		s.release.once()
	}
	return n, err
}

func (s *slotStream) Close() error {
	defer s.release.once()
	return s.ReadCloser.Close()
}

type slotUpgrade struct {
	io.ReadWriteCloser
	release *release
}

// CloseWrite ends our direction, if the connection can be closed by halves.
func (s *slotUpgrade) CloseWrite() error {
	if half, ok := s.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return s.ReadWriteCloser.Close()
}

func (s *slotUpgrade) Close() error {
	defer s.release.once()
	return s.ReadWriteCloser.Close()
}
