package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mecha-project/mecha/api/adminapi"
	"github.com/mecha-project/mecha/components/pluggable"
	"github.com/mecha-project/mecha/runtime/host"
	"github.com/mecha-project/mecha/runtime/pubsub"
	"github.com/mecha-project/mecha/runtime/settings"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// sidecarMain runs a sidecar until it is told to end, and returns the exit code: 0 after a
// graceful end, 1 after a failure, 2 for a wrong command line.
func sidecarMain(program string, args []string) int {
	set, err := settings.Parse(args, os.Getenv)
	if err != nil {
		var exit *settings.ExitError
		if errors.As(err, &exit) {
			exit.Print(os.Stderr, program)
			return exit.Code
		}
		fmt.Fprintln(os.Stderr, program+":", err)
		return 1
	}
	switch {
	case set.ShowVersion:
		fmt.Println(version)
		return 0
	case set.ShowBuildInfo:
		fmt.Printf("Version: %s\nGit Commit: %s\nGo Version: %s\n", version, revision(), runtime.Version())
		return 0
	case set.Wait:
		return waitOutbound(set.HTTPPort)
	}
	return superviseSidecar(set)
}

// waitOutbound polls the outbound health of a running sidecar, for start-up scripts.
func waitOutbound(port int) int {
	client := &http.Client{Timeout: time.Second}
	url := fmt.Sprintf("http://127.0.0.1:%d/v1.0/healthz/outbound", port)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		resp, err := client.Get(url)
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusNoContent {
			fmt.Println("Dapr is outbound ready!")
			return 0
		}
	}
	fmt.Fprintf(os.Stderr, "timed out after 60s waiting for the sidecar on %s\n", url)
	return 1
}

// superviseSidecar runs the sidecar; a hang-up signal starts it again in place.
func superviseSidecar(set *settings.Settings) int {
	paceGC()
	hostName, _ := os.Hostname()
	level, err := telemetry.ParseLevel(set.LogLevel)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	log, err := telemetry.NewLog(telemetry.LogOptions{AppID: set.AppID, Instance: hostName, Version: version, Level: level, JSON: set.LogAsJSON, File: set.LogFile})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer log.Close()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	for {
		again, err := runSidecar(set, log.Logger, signals)
		switch {
		case again && err == nil:
			continue
		case errors.Is(err, host.ErrForced):
			return 1
		case err != nil:
			log.Log(context.Background(), telemetry.LevelFatal, "Fatal error from runtime: "+err.Error())
			return 1
		}
		log.Info("Daprd shutdown gracefully")
		return 0
	}
}

// runSidecar builds and runs the sidecar once. It reports whether a hang-up asked for another
// run.
func runSidecar(set *settings.Settings, log *slog.Logger, signals <-chan os.Signal) (again bool, err error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done, over := make(chan struct{}), make(chan struct{})
	var restart atomic.Bool
	go func() {
		defer close(over)
		said := telemetry.Scope(log, "dapr.signals")
		for stopping := false; ; {
			select {
			case <-done:
				return
			case sig := <-signals:
				switch {
				case sig == syscall.SIGHUP && (stopping || restart.Load()): // on its way down already
				case sig == syscall.SIGHUP:
					restart.Store(true)
					said.Info(fmt.Sprintf("Received signal '%s'; restarting", sig))
				case stopping:
					log.Warn("a second signal arrived; exiting at once")
					os.Exit(1)
				default:
					stopping = true
					restart.Store(false)
					said.Info(fmt.Sprintf("Received signal '%s'; beginning shutdown", sig))
				}
				cancel()
			}
		}
	}()
	err = buildSidecar(ctx, set, log)
	close(done)
	<-over // a signal it has taken counts for this run; a later one finds the next
	return restart.Load(), err
}

// buildSidecar wires the house: settings and resources, telemetry, edges, host.
func buildSidecar(ctx context.Context, set *settings.Settings, log *slog.Logger) error {
	if set.RuntimeDir != "" {
		os.Setenv("MECHA_RUNTIME_DIR", set.RuntimeDir) // where backends look for it
	}
	log.Info(fmt.Sprintf("Starting Dapr Runtime -- version %s -- commit %s", version, revision()))
	log.Info("Log level set to: " + set.LogLevel)
	for _, w := range set.Warnings {
		log.Warn(w)
	}
	config, found, err := settings.LoadConfiguration(set.ConfigPaths, os.Getenv)
	if err != nil {
		return fmt.Errorf("error loading configuration: %w", err)
	}
	for _, f := range found {
		log.Warn(f.String())
	}
	resources, err := settings.LoadResources(set.ResourcesPaths, settings.Selection{AppID: set.AppID, Namespace: set.NamespaceGiven})
	if err != nil {
		return err
	}
	for _, f := range resources.Findings {
		host.LogFinding(log, f)
	}
	all, err := backends()
	if err != nil {
		return err
	}
	all.Fallback(pluggable.Discover(ctx, set.ComponentsSockets, telemetry.Scope(log, "dapr.runtime.pluggable")).Find)
	metrics, err := openMetrics(set, config)
	if err != nil {
		return err
	}
	secrets := host.NewSecrets(host.SecretsOptions{Settings: set, Config: config, Resources: resources, Backends: all, Log: log, Metrics: metrics})
	defer func() { _ = secrets.Close(context.Background()) }() // what the sidecar has not closed, because there was none
	expand := secrets.Expansion(ctx)
	tracer, err := openTracer(set, config, expand, log)
	if err != nil {
		return err
	}
	asked := &policyPort{app: set.AppID, namespace: set.Namespace}
	var consumers atomic.Pointer[pubsub.Service]
	admin := adminServer(set, metrics, asked, &consumers, log)
	if err := admin.Start(); err != nil {
		return err
	}
	defer admin.Close(context.Background())
	log.Info(set.Mode + " mode configured")
	log.Info("app id: " + set.AppID)
	mw, err := openMiddleware(middlewareOptions{Components: resources.Components, Config: config, Metrics: metrics, Log: log,
		Expand: expand})
	if err != nil {
		return err
	}
	defer mw.close()
	trace := &tracing{tracer: tracer, app: set.AppID, host: set.APIHosts()[0], httpPort: set.HTTPPort, grpcPort: set.GRPCPort}
	edges := &edges{set: set, config: config, log: log, metrics: metrics, tracing: trace, resources: resources, middleware: mw, consumers: &consumers}
	return host.Run(ctx, host.Options{Settings: set, Config: config, Resources: resources, Implicit: implicitComponents(), Backends: all, Secrets: secrets,
		Version: version, Log: log, Metrics: metrics, Tracer: tracer, Tracing: trace, Loaded: mw.infos(), Edges: edges, Governed: asked.engine.Store})
}

func adminServer(set *settings.Settings, metrics *telemetry.Metrics, asked *policyPort, consumers *atomic.Pointer[pubsub.Service], log *slog.Logger) *adminapi.Server {
	o := adminapi.Options{Log: telemetry.Scope(log, "dapr.runtime")}
	if set.EnableMetrics {
		o.MetricsAddr = adminapi.ListenAddr(set.MetricsListenAddress, set.MetricsPort)
		registry := telemetry.Registry(metrics)
		if metrics != nil {
			registry.MustRegister(telemetry.Partitions(set.AppID, func() []telemetry.Partition { return consumedPartitions(consumers.Load()) }))
		}
		o.Metrics = registry
		o.Policy = asked
	}
	if set.EnableProfiling {
		o.ProfileAddr = adminapi.ListenAddr("", set.ProfilePort)
	}
	return adminapi.New(o)
}

// openMetrics sets up metrics from the configuration; nil when they are off.
func openMetrics(set *settings.Settings, config *settings.Configuration) (*telemetry.Metrics, error) {
	m := config.Metrics()
	if !m.Enabled || !set.EnableMetrics {
		return nil, nil
	}
	o := telemetry.MetricsOptions{AppID: set.AppID, Namespace: set.NamespaceGiven, LowCardinality: !m.IncreasedCardinality,
		PathMatching: m.PathMatching, ExcludeVerbs: m.ExcludeVerbs, RecordErrorCodes: m.RecordErrorCodes}
	for _, b := range m.LatencyDistributionBuckets {
		o.LatencyBuckets = append(o.LatencyBuckets, float64(b))
	}
	for _, r := range m.Rules {
		rule := telemetry.MetricRule{Metric: r.Name}
		for _, l := range r.Labels {
			rule.Labels = append(rule.Labels, telemetry.LabelRule{Name: l.Name, Regex: l.Regex})
		}
		o.Rules = append(o.Rules, rule)
	}
	return telemetry.NewMetrics(o)
}

// openTracer sets up tracing from the configuration. A header of the collector's that refers to a
// secret which cannot be had stops the start, as a component's metadata do.
func openTracer(set *settings.Settings, config *settings.Configuration, x settings.Expansion, log *slog.Logger) (*telemetry.Tracer, error) {
	o := telemetry.TracingOptions{Service: set.AppID, Version: version, Log: log}
	if t := config.Tracing; t != nil {
		o.Configured, o.SamplingRate, o.Stdout = true, t.SamplingRate, t.Stdout
		if t.Zipkin != nil {
			o.Zipkin = t.Zipkin.EndpointAddress
		}
		if t.Otel != nil {
			o.OTel = telemetry.OTelOptions{Endpoint: t.Otel.EndpointAddress, Protocol: t.Otel.Protocol, Insecure: !t.Otel.Secure(), Timeout: t.Otel.Timeout, Headers: map[string]string{}}
			items, found := t.Otel.HeaderItems(x)
			for _, w := range found.Warnings() {
				log.Warn(w.String())
			}
			if err := found.Err(); err != nil {
				return nil, fmt.Errorf("tracing: %w", err)
			}
			for _, it := range items {
				o.OTel.Headers[it.Name] = it.Value
			}
		}
	}
	return telemetry.NewTracer(o)
}

// splitList reads a comma-separated list.
func splitList(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}
