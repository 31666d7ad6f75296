// Package adminapi serves what operators ask a sidecar over HTTP: Prometheus metrics and the
// state of traffic policy on one port, Go profiles on another.
//
// It shows what it is handed and gathers nothing itself; recording is runtime/telemetry's. It
// runs on net/http, for nobody's request waits for it. Health and readiness for the app are
// part of the API edges, not of these ports.
//
// Start reading at Server.
package adminapi

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Loopback is where the admin ports listen unless told otherwise. Dapr's listen on every
// address; metrics name the app's routes and profiles show its memory, so ours do not.
const Loopback = "127.0.0.1"

// ListenAddr joins a listen address, empty for Loopback, and a port.
func ListenAddr(host string, port int) string {
	if host == "" {
		host = Loopback
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// Options say what to serve where.
type Options struct {
	MetricsAddr string              // host:port; empty serves no metrics
	ProfileAddr string              // host:port; empty serves no profiles
	Metrics     prometheus.Gatherer // what MetricsAddr shows; nil shows nothing
	Policy      http.Handler        // what MetricsAddr answers below PolicyPath; nil: metrics, as everywhere else
	Log         *slog.Logger        // nil means slog.Default
}

// Server is the admin ports. Make one with New, then Start it, then Close it.
type Server struct {
	o Options

	mu      sync.Mutex // guards what follows
	servers []*http.Server
	metrics net.Addr
	profile net.Addr
	wg      sync.WaitGroup // one for each serving goroutine
}

// New makes a server that does not listen yet.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Metrics == nil {
		o.Metrics = prometheus.NewRegistry()
	}
	return &Server{o: o}
}

const (
	opStart fault.Op = "adminapi.start"

	headerTimeout = 10 * time.Second // for a scraper to send its request's head
	maxScrapes    = 4                // at once; more are told to come back
)

// Start binds the ports and serves them until Close. An error means that nothing is served.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	metrics, err := listen(s.o.MetricsAddr)
	if err != nil {
		return err
	}
	profile, err := listen(s.o.ProfileAddr)
	if err != nil {
		if metrics != nil {
			_ = metrics.Close()
		}
		return err
	}
	if metrics != nil {
		s.metrics = metrics.Addr()
		s.serve(metrics, s.metricsPort())
		s.o.Log.Info("metrics server started on " + s.metrics.String() + "/")
	}
	if profile != nil {
		s.profile = profile.Addr()
		s.serve(profile, ProfileHandler())
		s.o.Log.Info("profiling server started on " + s.profile.String() + "/")
	}
	return nil
}

// listen binds addr; an empty one gives nil.
func listen(addr string) (net.Listener, error) {
	if addr == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		// Tools match daprd's wording.
		return nil, fault.New(opStart, fault.Unavailable, "failed to listen on %s", addr).Because(err)
	}
	return l, nil
}

// serve runs a server on l. s.mu is held.
func (s *Server) serve(l net.Listener, h http.Handler) {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: 2 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
	}
	s.servers = append(s.servers, srv)
	s.wg.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.o.Log.Error("the admin server stopped", "addr", l.Addr().String(), "err", err)
		}
	})
}

// MetricsAddr is the address metrics are served on, or nil.
func (s *Server) MetricsAddr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.metrics
}

// ProfileAddr is the address profiles are served on, or nil.
func (s *Server) ProfileAddr() net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.profile
}

// Close stops listening and lets running answers end until ctx does; then it cuts them off. It
// is safe twice and before Start.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	servers := s.servers
	s.servers = nil
	s.mu.Unlock()
	var errs []error
	for _, srv := range servers {
		if err := srv.Shutdown(ctx); err != nil {
			errs = append(errs, err, srv.Close())
		}
	}
	s.wg.Wait()
	return errors.Join(errs...)
}

// PolicyPath is where operators ask what traffic policy does.
const PolicyPath = "/mecha/v1/policy/"

// metricsPort answers everything with the metrics, but for what is ours alone.
func (s *Server) metricsPort() http.Handler {
	all := MetricsHandler(s.o.Metrics)
	if s.o.Policy == nil {
		return all
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, PolicyPath) {
			s.o.Policy.ServeHTTP(w, r)
			return
		}
		all.ServeHTTP(w, r)
	})
}

// MetricsHandler answers every path with the metrics, as daprd does. Answers are not compressed:
// scrapers are near, and a compressor would keep most of a megabyte alive between scrapes.
func MetricsHandler(g prometheus.Gatherer) http.Handler {
	return promhttp.HandlerFor(g, promhttp.HandlerOpts{
		DisableCompression: true, ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: maxScrapes,
	})
}

// ProfileHandler serves Go's profiles under /debug/pprof/.
func ProfileHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
