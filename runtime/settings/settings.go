package settings

import (
	"time"

	"github.com/mecha-project/mecha/components/conf"
)

// Settings is everything a sidecar is told by its command line and environment. Parse
// makes it; it is read-only afterwards.
type Settings struct {
	// The application.
	AppID             string
	AppPort           int    // 0 means the app listens on no port
	AppProtocol       string // http, https, h2c, grpc or grpcs
	AppChannelAddress string // host the app listens on
	AppMaxConcurrency int    // calls to the app at one time; -1 means no limit
	AppHealth         AppHealth
	// AppBindingOptionsTimeout bounds the probe that asks whether the app wants a binding.
	AppBindingOptionsTimeout time.Duration
	// DisableInitEndpoints names the app endpoints not to ask at start: config, subscribe.
	DisableInitEndpoints []string

	// The listeners. Ports are 1 to 65535; 0 lets the system choose, except where noted.
	HTTPPort            int
	GRPCPort            int
	ListenAddresses     []string // of the API; empty means loopback, see APIHosts
	PublicPort          int      // metadata and health only; 0 means none
	PublicListenAddress string   // empty means loopback
	PeerPort            int      // for other sidecars; see ListenPeer
	PeerPortGiven       bool     // PeerPort was asked for, so no other will do
	PeerListenAddress   string   // empty means loopback
	UnixDomainSocket    string   // folder; sockets in it replace the API's TCP ports
	AllowedOrigins      string   // CORS; empty means off
	HTTPDisableH2C      bool
	// GRPCMaxConnIdle closes gRPC connections idle for so long; 0 means never.
	GRPCMaxConnIdle time.Duration

	// Limits.
	MaxBodySize    conf.ByteSize // conf.Unlimited means no limit
	ReadBufferSize conf.ByteSize // of request headers

	// Resources.
	ResourcesPaths    []string
	ConfigPaths       []string
	HotReloadInterval time.Duration // accepted, without effect: folders are watched
	Mode              string        // standalone or kubernetes

	// Telemetry.
	LogLevel             string // debug, info, warn, error or fatal
	LogAsJSON            bool
	LogFile              string // empty means standard output
	EnableAPILogging     *bool  // nil leaves it to the Configuration
	EnableMetrics        bool
	MetricsPort          int
	MetricsListenAddress string
	EnableProfiling      bool
	ProfilePort          int // always on loopback

	// Life.
	GracefulShutdown time.Duration
	BlockShutdown    time.Duration // 0 means not to wait before shutting down
	Wait             bool          // wait for a sidecar on HTTPPort instead of being one
	ShowVersion      bool
	ShowBuildInfo    bool

	// Mecha's own.
	DataDir    string // of the embedded node; empty means its default
	RuntimeDir string // for sockets and locks; empty means the system's

	// From the environment.
	Namespace         string // "default" when NAMESPACE is not set
	NamespaceGiven    string // NAMESPACE as it is; filters and key prefixes use this one
	PodName           string
	APIToken          conf.Secret       // callers of the API must show it; empty means anybody may call
	AppToken          conf.Secret       // shown to the app; empty means none
	HostIP            string            // DAPR_HOST_IP: the address to announce; empty means to find one
	Labels            map[string]string // announced with the address, for routes; MECHA_LABELS, and MECHA_ZONE as "zone"
	TrustAnchors      string
	ComponentsSockets string // folder of pluggable components' sockets; empty means the default

	// Accepted for parts that this version does not have. Setting them gives a warning.
	PlacementHostAddress    string
	SchedulerHostAddress    string
	SentryAddress           string
	ControlPlaneAddress     string
	ControlPlaneTrustDomain string
	ControlPlaneNamespace   string
	EnableMTLS              bool // refused by Parse; never true

	// Warnings are what an operator should know: settings without effect, deprecated flags.
	Warnings []string
}

// AppHealth is how the app's health is probed.
type AppHealth struct {
	Enabled   bool
	Path      string
	Interval  time.Duration
	Timeout   time.Duration
	Threshold int // failures in a row that make the app unhealthy
}

// Defaults are the settings of a sidecar started without flags and environment.
func Defaults() *Settings {
	return &Settings{
		AppProtocol: "http", AppChannelAddress: "127.0.0.1", AppMaxConcurrency: -1,
		AppHealth:                AppHealth{Path: "/healthz", Interval: 5 * time.Second, Timeout: 500 * time.Millisecond, Threshold: 3},
		AppBindingOptionsTimeout: 3 * time.Second,
		HTTPPort:                 3500, GRPCPort: 50001,
		MaxBodySize: 4 * conf.MiB, ReadBufferSize: 4 * conf.KiB,
		HotReloadInterval: time.Minute, Mode: "standalone",
		LogLevel: "info", EnableMetrics: true, MetricsPort: 9090, MetricsListenAddress: "127.0.0.1", ProfilePort: 7777,
		GracefulShutdown: 5 * time.Second,
		Namespace:        "default", ControlPlaneTrustDomain: "localhost", ControlPlaneNamespace: "default",
	}
}

// InitEndpointDisabled tells whether an app endpoint (config, subscribe) must not be asked.
func (s *Settings) InitEndpointDisabled(name string) bool {
	for _, d := range s.DisableInitEndpoints {
		if d == name {
			return true
		}
	}
	return false
}

// readEnv fills what the environment decides.
func (s *Settings) readEnv(env func(string) string) {
	s.NamespaceGiven, s.PodName = env("NAMESPACE"), env("POD_NAME")
	if s.NamespaceGiven != "" {
		s.Namespace = s.NamespaceGiven
	}
	s.APIToken, s.AppToken = conf.Secret(env("DAPR_API_TOKEN")), conf.Secret(env("APP_API_TOKEN"))
	s.HostIP, s.TrustAnchors = env("DAPR_HOST_IP"), env("DAPR_TRUST_ANCHORS")
	s.ComponentsSockets = env("DAPR_COMPONENTS_SOCKETS_FOLDER")
	for name, to := range map[string]*string{
		"DAPR_CONTROLPLANE_NAMESPACE": &s.ControlPlaneNamespace, "DAPR_CONTROLPLANE_TRUST_DOMAIN": &s.ControlPlaneTrustDomain,
		"DAPR_SCHEDULER_HOST_ADDRESS_DNS_A": &s.SchedulerHostAddress, "MECHA_RUNTIME_DIR": &s.RuntimeDir,
	} {
		if v := env(name); v != "" {
			*to = v
		}
	}
	if v := env("DAPR_HTTP_DISABLE_H2C"); v != "" {
		b, err := conf.ParseBool(v)
		if err != nil {
			s.warn("environment variable DAPR_HTTP_DISABLE_H2C: %s; h2c stays on", err)
		}
		s.HTTPDisableH2C = b
	}
	if v := env("DAPR_GRPC_MAX_CONN_IDLE"); v != "" {
		d, err := conf.ParseDuration(v, 0)
		if err != nil || d < 0 {
			s.warn("environment variable DAPR_GRPC_MAX_CONN_IDLE: want a duration like 5m, got %q; idle connections stay open", v)
			d = 0
		}
		s.GRPCMaxConnIdle = d
	}
}
