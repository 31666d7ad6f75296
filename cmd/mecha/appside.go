package main

import (
	"context"
	"io"
	"log/slog"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/binding"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/host"
	"github.com/mecha-project/mecha/runtime/pubsub"
)

// grpcApp is an app that speaks gRPC.
type grpcApp struct{ *grpcapi.AppChannel }

func (a grpcApp) Subscriptions(ctx context.Context, _ host.Invoke) ([]pubsub.Subscription, error) {
	return a.AppChannel.Subscriptions(ctx)
}

// Configured always succeeds: gRPC apps have no configuration endpoint.
func (grpcApp) Configured(context.Context, host.Invoke) error { return nil }

func (a grpcApp) Sink() pubsub.EventSink { return a.AppChannel }

func (a grpcApp) Bindings() binding.Sink { return a.AppChannel }

// httpApp is an app that speaks HTTP.
type httpApp struct {
	*httpapi.AppChannel
	appID string
	log   *slog.Logger
}

// Sink is nil: events go as HTTP requests.
func (httpApp) Sink() pubsub.EventSink { return nil }

// Bindings is nil too.
func (httpApp) Bindings() binding.Sink { return nil }

// Configured asks GET /dapr/config. Actors are not part of this sidecar, so the answer is only
// proof that the app is up.
func (a httpApp) Configured(ctx context.Context, invoke host.Invoke) error {
	_, _, err := a.get(ctx, invoke, "dapr/config")
	return err
}

// Subscriptions asks GET /dapr/subscribe: a list, or 404 for none.
func (a httpApp) Subscriptions(ctx context.Context, invoke host.Invoke) ([]pubsub.Subscription, error) {
	status, body, err := a.get(ctx, invoke, "dapr/subscribe")
	switch {
	case err != nil:
		return nil, err
	case status == 404:
		return nil, nil
	case status != 200:
		return nil, fault.New("app.subscribe", fault.Unavailable, "GET /dapr/subscribe answered %d; want 200 with a list, or 404", status)
	}
	subs, warnings, err := pubsub.ParseHTTPSubscriptions(body)
	if err != nil {
		return nil, err
	}
	for _, w := range warnings {
		a.log.Warn(w)
	}
	return subs, nil
}

// maxAppDocument bounds what the app's start-up endpoints may answer.
const maxAppDocument = 4 << 20

func (a httpApp) get(ctx context.Context, invoke host.Invoke, path string) (int, []byte, error) {
	resp, err := invoke(ctx, &call.Request{Protocol: call.HTTP, Verb: "GET", Path: path, Type: "application/json",
		Header: call.Fields{{Name: "dapr-app-id", Value: a.appID}}})
	if err != nil {
		return 0, nil, err
	}
	defer resp.Close()
	body := append([]byte(nil), resp.Data...)
	if resp.Stream != nil {
		if body, err = io.ReadAll(io.LimitReader(resp.Stream, maxAppDocument)); err != nil {
			return 0, nil, err
		}
	}
	return resp.Status, body, nil
}
