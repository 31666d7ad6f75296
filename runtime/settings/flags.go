package settings

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/mecha-project/mecha/components/conf"
)

// How far a flag does what it does in Dapr, as an annotation the reference page is made from.
const (
	statusKey = "status"

	statusWorks      = ""           // does what its text says
	statusNoEffect   = "no effect"  // accepted; a warning when set
	statusDeprecated = "deprecated" // accepted; a warning names the successor
	statusRefused    = "refused"    // setting it stops start-up
	statusOurs       = "Mecha"      // not a flag of Dapr
)

// flagSet registers flags with a status.
type flagSet struct{ *pflag.FlagSet }

func (f flagSet) status(name, status string) {
	// SetAnnotation fails only for unknown flags: the callers register them a line above.
	_ = f.SetAnnotation(name, statusKey, []string{status})
}

// Flags registers every flag of the sidecar on fs, writing to s, whose values are the
// defaults shown. Values are checked together by Parse; a caller that parses fs itself gets
// types checked only.
func Flags(fs *pflag.FlagSet, s *Settings) {
	fs.SortFlags = false
	f := flagSet{fs}
	f.appFlags(s)
	f.listenerFlags(s)
	f.resourceFlags(s)
	f.telemetryFlags(s)
	f.lifeFlags(s)
	f.meshFlags(s)
}

func (f flagSet) appFlags(s *Settings) {
	f.StringVar(&s.AppID, "app-id", s.AppID, "Name of the application; required, without dots")
	f.Var((*port)(&s.AppPort), "app-port", "Port the application listens on; empty when it listens on none")
	f.StringVar(&s.AppProtocol, "app-protocol", s.AppProtocol, "What the application speaks: http, https, h2c, grpc or grpcs")
	f.StringVar(&s.AppChannelAddress, "app-channel-address", s.AppChannelAddress, "Host the application listens on")
	f.IntVar(&s.AppMaxConcurrency, "app-max-concurrency", s.AppMaxConcurrency, "Calls to the application at one time; -1 means no limit")
	f.Bool("app-ssl", false, "Speak TLS to the application; use --app-protocol https or grpcs")
	f.status("app-ssl", statusDeprecated)
	f.BoolVar(&s.AppHealth.Enabled, "enable-app-health-check", false, "Probe the application's health")
	f.StringVar(&s.AppHealth.Path, "app-health-check-path", s.AppHealth.Path, "Path of the application's health endpoint")
	f.Var(&units{&s.AppHealth.Interval, time.Second}, "app-health-probe-interval", "Seconds between health probes")
	f.Var(&units{&s.AppHealth.Timeout, time.Millisecond}, "app-health-probe-timeout", "Milliseconds a health probe may take")
	f.IntVar(&s.AppHealth.Threshold, "app-health-threshold", s.AppHealth.Threshold, "Failed probes in a row that make the application unhealthy")
	f.DurationVar(&s.AppBindingOptionsTimeout, "app-binding-options-timeout", s.AppBindingOptionsTimeout, "Longest wait for the application to say whether it takes a binding")
	f.Var((*list)(&s.DisableInitEndpoints), "disable-init-endpoints", "Application endpoints not to ask at start, comma-separated: config, subscribe")
}

func (f flagSet) listenerFlags(s *Settings) {
	f.Var((*port)(&s.HTTPPort), "dapr-http-port", "Port of the HTTP API")
	f.Var((*port)(&s.GRPCPort), "dapr-grpc-port", "Port of the gRPC API")
	f.Var((*list)(&s.ListenAddresses), "dapr-listen-addresses", "Addresses the API listens on, comma-separated; empty means loopback only")
	f.Var((*port)(&s.PeerPort), "dapr-internal-grpc-port", "Port for other sidecars; not given, a stable one from 47300 on, or the next free one")
	f.StringVar(&s.PeerListenAddress, "dapr-internal-grpc-listen-address", "", "Address the port for other sidecars listens on; empty means loopback only")
	f.Var((*port)(&s.PublicPort), "dapr-public-port", "Port that serves only health and metadata; empty means none")
	f.StringVar(&s.PublicListenAddress, "dapr-public-listen-address", "", "Address of the public port; empty means loopback only")
	f.StringVar(&s.UnixDomainSocket, "unix-domain-socket", "", "Folder for Unix sockets that replace the API's TCP ports")
	f.StringVar(&s.AllowedOrigins, "allowed-origins", "", "Origins allowed by CORS, comma-separated, or *; empty turns CORS off")
	f.Var((*size)(&s.MaxBodySize), "max-body-size", "Largest request body, such as 4Mi; -1 means no limit")
	f.Var((*size)(&s.ReadBufferSize), "read-buffer-size", "Largest request head, such as 4Ki")
	f.Var(&scaled{&s.MaxBodySize, conf.MiB}, "dapr-http-max-request-size", "Largest request body in MiB; use --max-body-size")
	f.status("dapr-http-max-request-size", statusDeprecated)
	f.Var(&scaled{&s.ReadBufferSize, conf.KiB}, "dapr-http-read-buffer-size", "Largest request head in KiB; use --read-buffer-size")
	f.status("dapr-http-read-buffer-size", statusDeprecated)
}

func (f flagSet) resourceFlags(s *Settings) {
	f.Var((*list)(&s.ResourcesPaths), "resources-path", "Folder of resource files; may be repeated")
	f.Var((*list)(&s.ResourcesPaths), "components-path", "Folder of resource files; use --resources-path")
	f.status("components-path", statusDeprecated)
	f.Var((*list)(&s.ConfigPaths), "config", "Configuration file; may be repeated, later files replace sections of earlier ones")
	f.StringVar(&s.Mode, "mode", s.Mode, "standalone; kubernetes is accepted, but resources are read from files")
	f.DurationVar(&s.HotReloadInterval, "hot-reload-reconcile-interval", s.HotReloadInterval, "Time between comparisons of the resources with what is loaded")
	f.status("hot-reload-reconcile-interval", statusNoEffect)
	f.Bool("disable-builtin-k8s-secret-store", false, "There is no built-in secret store to disable")
	f.StringVar(&s.DataDir, "data-dir", "", "Directory of the embedded node; empty means ~/.mecha/embedded")
	f.status("data-dir", statusOurs)
	f.StringVar(&s.RuntimeDir, "runtime-dir", s.RuntimeDir, "Directory for sockets and locks; empty means the system's for this user")
	f.status("runtime-dir", statusOurs)
}

func (f flagSet) telemetryFlags(s *Settings) {
	f.StringVar(&s.LogLevel, "log-level", s.LogLevel, "debug, info, warn, error or fatal")
	f.BoolVar(&s.LogAsJSON, "log-as-json", false, "Write log lines as JSON")
	f.StringVar(&s.LogFile, "log-file", "", "File to write the log to; empty means standard output")
	f.Var(&triState{&s.EnableAPILogging}, "enable-api-logging", "Log every API call; not given, the Configuration decides")
	f.Lookup("enable-api-logging").NoOptDefVal = "true"
	f.BoolVar(&s.EnableMetrics, "enable-metrics", s.EnableMetrics, "Serve metrics for Prometheus")
	f.Var((*port)(&s.MetricsPort), "metrics-port", "Port of the metrics")
	f.StringVar(&s.MetricsListenAddress, "metrics-listen-address", s.MetricsListenAddress, "Address the metrics listen on")
	f.BoolVar(&s.EnableProfiling, "enable-profiling", false, "Serve profiles (pprof) on loopback")
	f.Var((*port)(&s.ProfilePort), "profile-port", "Port of the profiles")
}

func (f flagSet) lifeFlags(s *Settings) {
	f.Var(&units{&s.GracefulShutdown, time.Second}, "dapr-graceful-shutdown-seconds", "Seconds calls in flight get to end at shutdown")
	f.DurationVar(&s.BlockShutdown, "dapr-block-shutdown-duration", 0, "How long to keep serving after a request to shut down, unless the application turns unhealthy before")
	f.BoolVar(&s.Wait, "wait", false, "Wait until the sidecar on --dapr-http-port can serve, then exit")
	f.BoolVar(&s.ShowVersion, "version", false, "Print the version and exit")
	f.BoolVar(&s.ShowBuildInfo, "build-info", false, "Print how the program was built and exit")
}

// meshFlags are those of parts that this version does not have.
func (f flagSet) meshFlags(s *Settings) {
	f.StringVar(&s.PlacementHostAddress, "placement-host-address", "", "Addresses of the placement service")
	f.StringVar(&s.SchedulerHostAddress, "scheduler-host-address", s.SchedulerHostAddress, "Addresses of the scheduler service")
	f.Uint("scheduler-job-streams", 3, "Streams to each scheduler")
	f.Duration("actors-disseminate-timeout", 30*time.Second, "Longest dissemination of actor placement")
	f.String("actors-service", "", "Type and address of the actors service")
	f.String("reminders-service", "", "Type and address of the reminders service")
	f.StringVar(&s.ControlPlaneAddress, "control-plane-address", "", "Address of the control plane")
	f.StringVar(&s.ControlPlaneTrustDomain, "control-plane-trust-domain", s.ControlPlaneTrustDomain, "Trust domain of the control plane")
	f.StringVar(&s.ControlPlaneNamespace, "control-plane-namespace", s.ControlPlaneNamespace, "Namespace of the control plane")
	f.StringVar(&s.SentryAddress, "sentry-address", "", "Address of the certificate authority")
	f.String("sentry-request-jwt-audiences", "", "Audiences of tokens requested from the certificate authority")
	for _, name := range []string{"placement-host-address", "scheduler-host-address", "scheduler-job-streams", "actors-disseminate-timeout",
		"actors-service", "reminders-service", "control-plane-address", "control-plane-trust-domain", "control-plane-namespace",
		"sentry-address", "sentry-request-jwt-audiences"} {
		f.status(name, statusNoEffect)
	}
	f.BoolVar(&s.EnableMTLS, "enable-mtls", false, "Encrypt traffic between sidecars")
	f.status("enable-mtls", statusRefused)
}

// port is a TCP port; empty means none (0).
type port int

func (p *port) String() string {
	if *p == 0 {
		return ""
	}
	return strconv.Itoa(int(*p))
}
func (p *port) Type() string { return "port" }
func (p *port) Set(text string) error {
	if text == "" {
		*p = 0
		return nil
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return errFlag("want a port from 0 to 65535")
	}
	*p = port(n)
	return nil
}

// list is a list of texts; repeating the flag adds to it, and so do commas.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }
func (l *list) Type() string   { return "list" }
func (l *list) Set(text string) error {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			*l = append(*l, part)
		}
	}
	return nil
}

// units is a duration given as a whole number of a unit.
type units struct {
	d    *time.Duration
	unit time.Duration
}

func (u *units) String() string {
	if u.d == nil {
		return ""
	}
	return strconv.FormatInt(int64(*u.d/u.unit), 10)
}
func (u *units) Type() string { return "int" }
func (u *units) Set(text string) error {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return errFlag("want a whole number, without a unit")
	}
	*u.d = time.Duration(n) * u.unit
	return nil
}

// size is a quantity of bytes.
type size conf.ByteSize

func (b *size) String() string { return conf.ByteSize(*b).String() }
func (b *size) Type() string   { return "size" }
func (b *size) Set(text string) error {
	v, err := conf.ParseByteSize(text)
	if err == nil {
		*b = size(v)
	}
	return err
}

// scaled is a deprecated size given as a whole number of a unit.
type scaled struct {
	b    *conf.ByteSize
	unit conf.ByteSize
}

func (s *scaled) String() string { return "" }
func (s *scaled) Type() string   { return "int" }
func (s *scaled) Set(text string) error {
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return errFlag("want a whole number")
	}
	if n < 0 {
		*s.b = conf.Unlimited
		return nil
	}
	*s.b = conf.ByteSize(n) * s.unit
	return nil
}

// triState is a truth value that may be left open.
type triState struct{ b **bool }

func (t *triState) String() string {
	if t.b == nil || *t.b == nil {
		return ""
	}
	return strconv.FormatBool(**t.b)
}
func (t *triState) Type() string { return "bool" }
func (t *triState) Set(text string) error {
	v, err := strconv.ParseBool(text)
	if err == nil {
		*t.b = &v
	}
	return err
}

type errFlag string

func (e errFlag) Error() string { return string(e) }
