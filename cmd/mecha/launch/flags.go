package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/mecha-project/mecha/components/conf"
)

// Flags are the flags of `mecha run`, in the words of `dapr run`.
type Flags struct {
	set *pflag.FlagSet
	app App

	runFile              string
	apiLogging           bool
	placement, scheduler string
	logAsJSON            bool
	kubernetes           bool
	ignored              string
	grace                time.Duration
}

// inRunFile are the flags that mean something together with --run-file.
var inRunFile = []string{"run-file", "log-as-json", "shutdown-grace", "kubernetes", "runtime-path"}

// BindFlags defines the flags of `mecha run` on fs.
func BindFlags(fs *pflag.FlagSet) *Flags {
	f := &Flags{set: fs}
	a := &f.app
	fs.StringVarP(&a.ID, "app-id", "a", "", "id of the app; default: after the command")
	fs.IntVarP(&a.AppPort, "app-port", "p", 0, "port the app listens on; leave it out if it does not listen")
	fs.StringVarP(&a.AppProtocol, "app-protocol", "P", "http", "what the app speaks: http, https, h2c, grpc or grpcs")
	fs.StringVar(&a.ChannelAddress, "app-channel-address", "", "address the app listens on (default 127.0.0.1)")
	fs.IntVar(&a.AppMaxConcurrency, "app-max-concurrency", -1, "calls into the app at the same time; -1 for no limit")
	fs.BoolVar(&a.AppSSL, "app-ssl", false, "the app speaks TLS; older spelling of --app-protocol https or grpcs")
	fs.IntVarP(&a.HTTPPort, "dapr-http-port", "H", -1, "HTTP port of the sidecar; default: a free one")
	fs.IntVarP(&a.GRPCPort, "dapr-grpc-port", "G", -1, "gRPC port of the sidecar; default: a free one")
	fs.IntVarP(&a.InternalPort, "dapr-internal-grpc-port", "I", -1, "port for other sidecars; default: a free one")
	fs.IntVarP(&a.MetricsPort, "metrics-port", "M", -1, "metrics port of the sidecar; default: a free one")
	fs.StringVar(&a.APIListenAddresses, "dapr-listen-addresses", "", "addresses the sidecar's APIs listen on, separated by commas")
	fs.StringVarP(&a.UnixSocketDir, "unix-domain-socket", "u", "", "directory for the sidecar's API sockets, in place of ports")
	fs.StringVarP(&a.ConfigFilePath, "config", "c", "", "Dapr Configuration file (default ~/.dapr/config.yaml if it exists)")
	fs.StringSliceVarP(&a.ResourcesPaths, "resources-path", "d", nil, "directory of resource files, repeatable; also --components-path (default ~/.dapr/components if it exists)")
	fs.StringVarP(&f.runFile, "run-file", "f", "", "run template to start apps from: a file, a directory with a dapr.yaml, or - for stdin")
	fs.StringVar(&a.LogLevel, "log-level", "", "log level of the sidecar: debug, info, warn, error or fatal")
	fs.BoolVar(&f.logAsJSON, "log-as-json", false, "log as JSON")
	fs.BoolVar(&a.EnableProfiling, "enable-profiling", false, "serve pprof from the sidecar")
	fs.IntVar(&a.ProfilePort, "profile-port", -1, "pprof port of the sidecar; default: a free one")
	fs.BoolVar(&f.apiLogging, "enable-api-logging", false, "log every call to the sidecar's APIs")
	fs.BoolVar(&a.EnableAppHealthCheck, "enable-app-health-check", false, "probe the app's health")
	fs.StringVar(&a.AppHealthCheckPath, "app-health-check-path", "", "path of the health probe (default /healthz)")
	fs.IntVar(&a.AppHealthProbeInterval, "app-health-probe-interval", 0, "seconds between health probes (default 5)")
	fs.IntVar(&a.AppHealthProbeTimeout, "app-health-probe-timeout", 0, "milliseconds a health probe may take (default 500)")
	fs.IntVar(&a.AppHealthThreshold, "app-health-threshold", 0, "failed probes in a row that make an app unhealthy (default 3)")
	fs.StringVar(&a.MaxBodySize, "max-body-size", "", "largest request body, such as 4Mi; -1 for no limit (default 4Mi)")
	fs.StringVar(&a.ReadBufferSize, "read-buffer-size", "", "largest request head, such as 4Ki (default 4Ki)")
	fs.StringVar(&f.placement, "placement-host-address", "", "address of the placement service; empty for none")
	fs.StringVar(&f.scheduler, "scheduler-host-address", "", "address of the scheduler service; empty for none")
	fs.StringVar(&a.DataDir, "data-dir", "", "directory of the embedded node; default: its own")
	fs.DurationVar(&f.grace, "shutdown-grace", DefaultGrace, "how long the app may take to end, and then the sidecar")
	f.bindForeign(fs)
	fs.SortFlags = false
	fs.SetInterspersed(false) // the first word that is no flag starts the app's command
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "components-path" {
			name = "resources-path"
		}
		return pflag.NormalizedName(name)
	})
	return f
}

// bindForeign defines the flags of `dapr run` that have no meaning here or an older spelling.
func (f *Flags) bindForeign(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.kubernetes, "kubernetes", "k", false, "")
	fs.StringVar(&f.ignored, "runtime-path", "", "")
	fs.IntVar(&f.app.MaxRequestSizeMB, "dapr-http-max-request-size", 0, "")
	fs.IntVar(&f.app.ReadBufferSizeKB, "dapr-http-read-buffer-size", 0, "")
	for _, name := range []string{"kubernetes", "runtime-path", "dapr-http-max-request-size", "dapr-http-read-buffer-size"} {
		fs.Lookup(name).Hidden = true
	}
}

// Options makes Options of the parsed flags and the app's command, which may be empty. Stdin
// is where a run file named "-" is read from and what a single app gets.
func (f *Flags) Options(command []string, stdin *os.File) (Options, error) {
	if f.kubernetes {
		return Options{}, errors.New("mecha run starts apps on this machine and does not deploy to Kubernetes (-k); " +
			"leave -k out, or deploy with kubectl")
	}
	var o Options
	var err error
	if f.runFile != "" {
		if len(command) > 0 {
			return Options{}, fmt.Errorf("a run file and a command (%q) were both given; give one of them", command[0])
		}
		o, err = FromTemplate(f.runFile, stdin)
	} else {
		o, err = f.single(command, stdin)
	}
	o.LogAsJSON, o.Grace = f.logAsJSON, f.grace
	f.set.Visit(func(fl *pflag.Flag) {
		switch {
		case fl.Name == "runtime-path":
			o.Warnings = append(o.Warnings, "--runtime-path is ignored: the sidecar is in this very program")
		case f.runFile != "" && !slices.Contains(inRunFile, fl.Name):
			o.Warnings = append(o.Warnings, "--"+fl.Name+" is ignored: with --run-file the template decides")
		}
	})
	return o, err
}

func (f *Flags) single(command []string, stdin *os.File) (Options, error) {
	a := f.app
	a.Command = command
	dir, err := os.Getwd()
	if err != nil {
		return Options{}, fmt.Errorf("find the current directory: %w", err)
	}
	a.Dir = dir
	if a.ID == "" {
		a.ID = defaultAppID(command, dir)
	}
	if f.set.Changed("enable-api-logging") {
		a.EnableAPILogging = &f.apiLogging
	}
	if f.set.Changed("placement-host-address") {
		a.PlacementHostAddress = &f.placement
	}
	if f.set.Changed("scheduler-host-address") {
		a.SchedulerHostAddress = &f.scheduler
	}
	errs := []error{a.check()}
	home, _ := os.UserHomeDir() // without one its defaults do not exist either
	if len(a.ResourcesPaths) == 0 {
		a.ResourcesPaths = defaultResources(home)
	}
	if a.ConfigFilePath == "" {
		a.ConfigFilePath = defaultConfig(home)
	}
	for _, p := range append(slices.Clone(a.ResourcesPaths), a.ConfigFilePath) {
		if p != "" && !exists(p) {
			errs = append(errs, fmt.Errorf("%s does not exist or cannot be read (from --resources-path or --config, relative to %s)", p, dir))
		}
	}
	if a.UnixSocketDir != "" && !filepath.IsAbs(a.UnixSocketDir) {
		a.UnixSocketDir = filepath.Join(dir, a.UnixSocketDir)
	}
	return Options{Apps: []*App{&a}, Stdin: stdin}, errors.Join(errs...)
}

// FlagError makes an error of flag parsing teach: an unknown flag is answered with the nearest
// one, and with where the app's own flags belong.
func FlagError(fs *pflag.FlagSet, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return fmt.Errorf("%w; see mecha run --help", err)
	}
	name := strings.TrimLeft(unknown.GetSpecifiedName(), "-")
	candidates := []string{"components-path"}
	fs.VisitAll(func(fl *pflag.Flag) {
		if !fl.Hidden {
			candidates = append(candidates, fl.Name)
		}
	})
	if unknown.GetSpecifiedShortnames() != "" {
		return fmt.Errorf("unknown flag -%s; put the app's own command after --, and see mecha run --help", name)
	}
	hint := ""
	if n := conf.Nearest(name, candidates); n != "" {
		hint = "; did you mean --" + n + "?"
	}
	return fmt.Errorf("unknown flag --%s%s (flags of the app itself go after --)", name, hint)
}
