package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/api/peerapi"
	"github.com/mecha-project/mecha/runtime/host"
	"github.com/mecha-project/mecha/runtime/invoke"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// edges wires the packages of api to the host.
type edges struct {
	set        *settings.Settings
	config     *settings.Configuration
	resources  *settings.Resources
	log        *slog.Logger
	metrics    *telemetry.Metrics
	tracing    *tracing
	middleware *middlewareSet

	peers     *peerapi.Client
	external  *httpapi.External
	consumers *atomic.Pointer[pubsub.Service] // for the metrics port
}

var _ host.Edges = (*edges)(nil)

// headRoom is what a request head may take beyond --read-buffer-size: daprd's listener has as
// much slack.
const headRoom = 4 << 10

func (e *edges) maxHeader() int { return int(e.set.ReadBufferSize) + headRoom }

// AppSide makes the way to the app in the protocol it speaks.
func (e *edges) AppSide() (host.AppSide, error) {
	if e.set.AppPort == 0 {
		return nil, nil
	}
	addr := net.JoinHostPort(e.set.AppChannelAddress, strconv.Itoa(e.set.AppPort))
	switch p := e.set.AppProtocol; p {
	case "grpc", "grpcs":
		c, err := grpcapi.NewAppChannel(grpcapi.ChannelOptions{Address: addr, TLS: p == "grpcs", MaxMessage: int(e.set.MaxBodySize),
			MaxHeader: int(e.set.ReadBufferSize), Token: e.set.AppToken.Reveal(), Observe: callObserver{e.metrics}})
		if err != nil {
			return nil, err
		}
		return grpcApp{c}, nil
	case "http", "https", "h2c":
		return httpApp{httpapi.NewAppChannel(httpapi.ChannelOptions{Address: addr, TLS: p == "https", H2C: p == "h2c", MaxHeader: e.maxHeader(),
			HealthPath: e.set.AppHealth.Path, Pipeline: e.middleware.app(e.config.AppHTTPPipeline), Observe: callObserver{e.metrics}}), e.set.AppID, e.log}, nil
	}
	return nil, fmt.Errorf("app-protocol %q is not one of http, https, h2c, grpc, grpcs", e.set.AppProtocol)
}

func (e *edges) greeting() string { return e.set.AppID + "." + e.set.Namespace }

// Peers makes the client of other sidecars.
func (e *edges) Peers() invoke.Peers {
	e.peers = peerapi.NewClient(e.greeting(), e.log)
	return e.peers
}

// External makes the client of plain HTTP services.
func (e *edges) External() invoke.External {
	e.external = httpapi.NewExternal()
	return e.external
}

// Close releases the clients.
func (e *edges) Close(ctx context.Context) {
	if e.peers != nil {
		_ = e.peers.Close(ctx) // what is left was cut off, as the grace period says
	}
	if e.external != nil {
		e.external.Close()
	}
}

// Servers makes the servers of the API and the peer port.
func (e *edges) Servers(s *host.Services) ([]host.Server, error) {
	apiLog := telemetry.Scope(e.log, "dapr.runtime.http-info")
	logging := telemetry.APILogOptions{}
	if l := e.config.Logging; l != nil {
		logging.ObfuscateURLs, logging.OmitHealthChecks = l.APILogging.ObfuscateURLs, l.APILogging.OmitHealthChecks
		logging.Enabled = telemetry.APILogEnabled(e.set.EnableAPILogging, l.APILogging.Enabled != nil && *l.APILogging.Enabled)
	} else {
		logging.Enabled = telemetry.APILogEnabled(e.set.EnableAPILogging, false)
	}
	obs := &serverObserver{metrics: e.metrics, api: telemetry.NewAPILog(apiLog, logging), grpc: telemetry.NewAPILog(telemetry.Scope(e.log, "dapr.runtime.grpc.api-info"), logging)}

	e.consumers.Store(s.PubSub)
	native := &nativeapi.Server{State: s.State, Lock: s.Lock, Cache: s.Cache, Messaging: messaging{s.PubSub}}
	web := httpapi.New(httpapi.Options{Native: native.Register, AppID: e.set.AppID, Token: e.set.APIToken.Reveal(), MaxBody: int64(e.set.MaxBodySize), MaxHeader: e.maxHeader(),
		Origins: splitList(e.set.AllowedOrigins), Allow: e.httpRules(), Pipeline: e.middleware.api(e.config.HTTPPipeline), H2C: !e.set.HTTPDisableH2C,
		Invoke: s.Invoke, State: s.State, PubSub: s.PubSub, Secret: s.Secret, Lock: s.Lock, Config: s.Config, Crypto: s.Crypto, Binding: s.Binding, About: s.About, Observe: obs, Tracing: e.tracing, Log: telemetry.Scope(e.log, "dapr.runtime.http")})
	rpc := grpcapi.New(grpcapi.Options{Native: native.Register, AppID: e.set.AppID, Token: e.set.APIToken.Reveal(), MaxMessage: int(e.set.MaxBodySize), MaxHeader: int(e.set.ReadBufferSize),
		Allow: e.grpcRules(), Invoke: s.Invoke, State: s.State, PubSub: s.PubSub, Secret: s.Secret, Lock: s.Lock, Config: s.Config, Crypto: s.Crypto, Binding: s.Binding, About: s.About, Observe: obs, Tracing: e.tracing, Log: telemetry.Scope(e.log, "dapr.runtime.grpc.api")})
	peer := peerapi.NewServer(s.Invoke, e.greeting(), e.log)

	l := s.Listeners
	out := []host.Server{
		{Name: "HTTP", Serve: serveAll(web.Serve, l.HTTP), Drain: web.Shutdown,
			Opened: func() { e.log.Info("HTTP server is running on port " + portOf(l.HTTP, e.set.HTTPPort)) }},
		{Name: "gRPC", Serve: serveAll(rpc.Serve, l.GRPC), Drain: rpc.Drain,
			Opened: func() { e.log.Info("API gRPC server is running on port " + portOf(l.GRPC, e.set.GRPCPort)) }},
		{Name: "peer", Serve: serveAll(peer.Serve, []net.Listener{l.Peer}), Drain: peer.Shutdown,
			Opened: func() { e.log.Info("Internal gRPC server is running on " + l.Peer.Addr().String()) }},
	}
	if l.Public != nil {
		out = append(out, host.Server{Name: "public", Serve: serveAll(web.ServePublic, []net.Listener{l.Public}), Drain: func(context.Context) error { return nil },
			Opened: func() { e.log.Info("Public HTTP server is running on " + l.Public.Addr().String()) }})
	}
	return out, nil
}

// serveAll serves several listeners until all are done.
func serveAll(serve func(context.Context, net.Listener) error, ls []net.Listener) func(context.Context) error {
	return func(ctx context.Context) error {
		errs := make([]error, len(ls))
		var wg sync.WaitGroup
		for i, l := range ls {
			wg.Go(func() { errs[i] = serve(ctx, l) })
		}
		wg.Wait()
		return errors.Join(errs...)
	}
}

// portOf names the port that was really bound.
func portOf(ls []net.Listener, asked int) string {
	for _, l := range ls {
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			return strconv.Itoa(a.Port)
		}
	}
	return strconv.Itoa(asked)
}

func (e *edges) httpRules() *httpapi.Rules {
	if e.config.API == nil {
		return nil
	}
	out := &httpapi.Rules{}
	for _, r := range e.config.API.Allowed {
		out.Allowed = append(out.Allowed, httpapi.Rule{Name: r.Name, Version: r.Version, Protocol: r.Protocol})
	}
	for _, r := range e.config.API.Denied {
		out.Denied = append(out.Denied, httpapi.Rule{Name: r.Name, Version: r.Version, Protocol: r.Protocol})
	}
	return out
}

func (e *edges) grpcRules() *grpcapi.Rules {
	if e.config.API == nil {
		return nil
	}
	out := &grpcapi.Rules{}
	for _, r := range e.config.API.Allowed {
		out.Allowed = append(out.Allowed, grpcapi.Rule{Name: r.Name, Version: r.Version, Protocol: r.Protocol})
	}
	for _, r := range e.config.API.Denied {
		out.Denied = append(out.Denied, grpcapi.Rule{Name: r.Name, Version: r.Version, Protocol: r.Protocol})
	}
	return out
}
