package launch

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"
)

// EmbeddedNodeEnv is set to 1 in the environment of the embedded node by whoever starts it,
// so that the end of one run does not end the node for all the others.
const EmbeddedNodeEnv = "MECHA_EMBEDDED_NODE"

// ImplicitEmbeddedEnv is set to 1 in the environment of a sidecar started by `mecha run`: with
// no resources at all it may start the embedded node by itself, which a sidecar in
// production never does.
const ImplicitEmbeddedEnv = "MECHA_IMPLICIT_EMBEDDED"

// DefaultGrace is how long an app, and then its sidecar, may take to end.
const DefaultGrace = 10 * time.Second

// Options is one run: what to start and where its output goes.
type Options struct {
	// Apps are started in parallel. At least one.
	Apps []*App
	// Multi means the apps come from a run template: lines carry the app's id, log
	// destinations count, and no app gets the terminal's input.
	Multi bool
	// TemplatePath and TemplateName are reported to `dapr list`. Empty without a template.
	TemplatePath, TemplateName string
	// Grace is how long an app may take to end after SIGTERM, and then its sidecar, before
	// SIGKILL. Zero means DefaultGrace.
	Grace time.Duration
	// LogAsJSON makes the lines of `mecha run` itself, and the sidecar's, JSON.
	LogAsJSON bool
	// Warnings are printed before anything starts.
	Warnings []string
	// Stdin is passed to a single app. Nil means empty.
	Stdin *os.File
	// Stdout takes all output. Nil means os.Stdout.
	Stdout io.Writer
}

// Shared are the settings that a run template may give for all apps at once or for one app.
// The zero value of every field means "not said".
type Shared struct {
	ConfigFilePath         string            `yaml:"configFilePath"`
	AppProtocol            string            `yaml:"appProtocol"`
	APIListenAddresses     string            `yaml:"apiListenAddresses"`
	EnableProfiling        bool              `yaml:"enableProfiling"`
	LogLevel               string            `yaml:"logLevel"`
	AppMaxConcurrency      int               `yaml:"appMaxConcurrency"`
	PlacementHostAddress   *string           `yaml:"placementHostAddress"`
	SchedulerHostAddress   *string           `yaml:"schedulerHostAddress"`
	ResourcesPath          string            `yaml:"resourcesPath"` // older spelling of one of ResourcesPaths
	ResourcesPaths         []string          `yaml:"resourcesPaths"`
	AppSSL                 bool              `yaml:"appSSL"`
	MaxBodySize            string            `yaml:"maxBodySize"`
	ReadBufferSize         string            `yaml:"readBufferSize"`
	MaxRequestSizeMB       int               `yaml:"daprHTTPMaxRequestSize"` // older spelling of MaxBodySize, in MB
	ReadBufferSizeKB       int               `yaml:"daprHTTPReadBufferSize"` // older spelling of ReadBufferSize, in KB
	EnableAppHealthCheck   bool              `yaml:"enableAppHealthCheck"`
	AppHealthCheckPath     string            `yaml:"appHealthCheckPath"`
	AppHealthProbeInterval int               `yaml:"appHealthProbeInterval"` // seconds
	AppHealthProbeTimeout  int               `yaml:"appHealthProbeTimeout"`  // milliseconds
	AppHealthThreshold     int               `yaml:"appHealthThreshold"`
	EnableAPILogging       *bool             `yaml:"enableApiLogging"`
	RuntimePath            string            `yaml:"runtimePath"`
	DaprdLogDestination    LogDestination    `yaml:"daprdLogDestination"`
	AppLogDestination      LogDestination    `yaml:"appLogDestination"`
	Env                    map[string]string `yaml:"env"`
}

// LogDestination says where a process's output goes.
type LogDestination string

// The three destinations. The empty one stands for a default.
const (
	ToConsole        LogDestination = "console"
	ToFile           LogDestination = "file"
	ToFileAndConsole LogDestination = "fileAndConsole"
)

func (d LogDestination) console() bool { return d != ToFile }
func (d LogDestination) file() bool    { return d == ToFile || d == ToFileAndConsole }

// App is one app and its sidecar. Run gives the ports that are zero or negative free numbers.
type App struct {
	ID      string
	Dir     string   // working directory of the app; relative commands are looked up here
	Command []string // empty: only the sidecar is started, the app runs elsewhere

	AppPort        int // zero: the app listens to nothing
	ChannelAddress string
	HTTPPort       int
	GRPCPort       int
	InternalPort   int
	MetricsPort    int
	ProfilePort    int    // used with EnableProfiling only
	UnixSocketDir  string // replaces the two API ports with sockets in this directory
	DataDir        string // directory of the embedded node; empty means its default

	Shared

	AppLogPath   string // set by Run for destinations with a file
	DaprdLogPath string
}

// merge fills what s leaves open from common. A value of s wins unless it is the zero value;
// environments are merged. Paths are left alone, for they are relative to different places.
func (s *Shared) merge(common *Shared) {
	env := s.Env
	dst, src := reflect.ValueOf(s).Elem(), reflect.ValueOf(common).Elem()
	for i := range dst.NumField() {
		switch dst.Type().Field(i).Name {
		case "ConfigFilePath", "ResourcesPath", "ResourcesPaths", "Env":
			continue
		}
		if f := dst.Field(i); f.IsZero() {
			f.Set(src.Field(i))
		}
	}
	// A plain "false" is the zero value in Dapr's template, so it does not win either.
	if s.EnableAPILogging != nil && !*s.EnableAPILogging && common.EnableAPILogging != nil {
		s.EnableAPILogging = common.EnableAPILogging
	}
	s.Env = make(map[string]string, len(env)+len(common.Env))
	for k, v := range common.Env {
		s.Env[k] = v
	}
	for k, v := range env {
		s.Env[k] = v
	}
}

// check reports every setting that could not work, joined.
func (a *App) check() error {
	var bad []error
	add := func(format string, args ...any) {
		bad = append(bad, fmt.Errorf("app %q: "+format, append([]any{a.ID}, args...)...))
	}
	if a.ID == "" || strings.ContainsAny(a.ID, "./\\\x00 ") {
		add("an app id must not be empty or contain dots, slashes or spaces; choose another with --app-id (appID in a template)")
	}
	switch strings.ToLower(a.AppProtocol) {
	case "", "http", "https", "h2c", "grpc", "grpcs":
	default:
		add("app protocol %q is unknown; use http, https, h2c, grpc or grpcs", a.AppProtocol)
	}
	for _, d := range []LogDestination{a.AppLogDestination, a.DaprdLogDestination} {
		switch d {
		case "", ToConsole, ToFile, ToFileAndConsole:
		default:
			add("log destination %q is unknown; use console, file or fileAndConsole", d)
		}
	}
	for _, p := range a.ports() {
		if *p.at > 65535 {
			add("%s %d is not a port; use 1 to 65535, or leave it out for a free one", p.name, *p.at)
		}
	}
	if a.AppPort < 0 || a.AppPort > 65535 {
		add("app port %d is not a port; use 1 to 65535, or leave it out if the app does not listen", a.AppPort)
	}
	return errors.Join(bad...)
}

// logDir is where a template's log files go.
func (a *App) logDir() string { return filepath.Join(a.Dir, ".dapr", "logs") }

// protocol is what APP_PROTOCOL says.
func (a *App) protocol() string { return cmp.Or(a.AppProtocol, "http") }

// channelAddress is what APP_CHANNEL_ADDRESS says.
func (a *App) channelAddress() string { return cmp.Or(a.ChannelAddress, "127.0.0.1") }
