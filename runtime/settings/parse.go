package settings

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/mecha-project/mecha/components/conf"
)

// ExitError ends the program: with Code, after telling why.
type ExitError struct {
	Code int // 0 when only the usage was asked for, 1 for settings that contradict each other, 2 for a wrong command line
	// Usage says that the list of flags belongs after the message.
	Usage bool
	Err   error // nil when all has been said
}

// Error is the reason without the usage.
func (e *ExitError) Error() string {
	if e.Err == nil {
		return ""
	}
	return e.Err.Error()
}

// Unwrap gives the reason to errors.Is and errors.As.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is what the process should exit with.
func (e *ExitError) ExitCode() int { return e.Code }

// Print writes the reason, and the usage if it belongs there, as the program's last words. The usage
// fills more than a screen, so the reason is written once more below it.
func (e *ExitError) Print(w io.Writer, program string) {
	if e.Err != nil {
		_, _ = fmt.Fprintln(w, e.Err) // nowhere left to report a failure to
	}
	if e.Usage {
		_, _ = fmt.Fprintf(w, "Usage of %s:\n%s", program, Usage())
		if e.Err != nil {
			_, _ = fmt.Fprintf(w, "\n%s: %v\n", program, e.Err)
		}
	}
}

// Usage lists all flags with their defaults.
func Usage() string {
	fs := pflag.NewFlagSet("sidecar", pflag.ContinueOnError)
	Flags(fs, Defaults())
	return fs.FlagUsages()
}

// Parse reads a sidecar's command line and environment (env gives a variable's value, empty
// when it is not set; nil means an empty environment).
//
// Long flags take one dash or two, their value after = or as the next argument; truth
// values only after =. An error is always an *ExitError: code 2 with usage for an unknown
// flag or a value of the wrong form, code 1 for settings that cannot go together or ask for
// protection this version does not give.
func Parse(args []string, env func(string) string) (*Settings, error) {
	if env == nil {
		env = func(string) string { return "" }
	}
	s := Defaults()
	s.readEnv(env)
	fs := pflag.NewFlagSet("sidecar", pflag.ContinueOnError)
	Flags(fs, s)
	if err := s.parseArgs(fs, args); err != nil {
		code := 2
		if errors.Is(err, errHelp) {
			code, err = 0, nil
		}
		return nil, &ExitError{Code: code, Usage: true, Err: err}
	}
	s.PeerPortGiven = fs.Changed("dapr-internal-grpc-port") && s.PeerPort != 0
	s.deprecated(fs)
	if s.ShowVersion || s.ShowBuildInfo || s.Wait {
		return s, nil // these need no app
	}
	if err := s.check(); err != nil {
		return nil, &ExitError{Code: 1, Err: err}
	}
	if err := s.readLabels(env); err != nil {
		return nil, &ExitError{Code: 1, Err: err}
	}
	if err := s.refuse(); err != nil {
		return nil, &ExitError{Code: 1, Err: err}
	}
	if !s.PeerPortGiven {
		s.PeerPort = defaultPeerPort(s.AppID)
	}
	s.caution(fs)
	return s, nil
}

var errHelp = errors.New("help requested")

// parseArgs walks the command line by the rules of Go's flag package. (pflag takes a single
// dash for a group of one-letter flags.)
func (s *Settings) parseArgs(fs *pflag.FlagSet, args []string) error {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		name := strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
		switch {
		case arg == "--":
			s.stray(args...)
			return nil
		case len(arg) < 2 || arg[0] != '-':
			s.stray(arg)
			continue
		case name == "" || name[0] == '-' || name[0] == '=':
			return fmt.Errorf("bad flag syntax: %s", arg)
		}
		name, value, hasValue := strings.Cut(name, "=")
		flag := fs.Lookup(name)
		switch {
		case flag == nil && (name == "help" || name == "h"):
			return errHelp
		case flag == nil:
			return unknownFlag(fs, name)
		case hasValue:
		case flag.NoOptDefVal != "":
			value = flag.NoOptDefVal
		case len(args) == 0:
			return fmt.Errorf("flag needs an argument: -%s", name)
		default:
			value, args = args[0], args[1:]
		}
		if err := fs.Set(name, value); err != nil {
			return badValue(flag, value, err)
		}
	}
	return nil
}

// stray notes arguments that are no flags. They are not fatal, since command lines like
// "--log-as-json true" are in use, where the flag alone decides.
func (s *Settings) stray(args ...string) {
	for _, a := range args {
		s.warn("argument %q is not a flag and is ignored; write a flag's true or false after an equals sign", a)
	}
}

func unknownFlag(fs *pflag.FlagSet, name string) error {
	var names []string
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	if near := conf.Nearest(name, names); near != "" {
		return fmt.Errorf("flag provided but not defined: -%s; did you mean --%s?", name, near)
	}
	return fmt.Errorf("flag provided but not defined: -%s", name)
}

func badValue(flag *pflag.Flag, value string, err error) error {
	reason := err
	if inner := errors.Unwrap(err); inner != nil {
		reason = inner
	}
	if flag.NoOptDefVal != "" {
		return fmt.Errorf("invalid boolean value %q for -%s: want true or false", value, flag.Name)
	}
	return fmt.Errorf("invalid value %q for flag -%s: %v", value, flag.Name, reason)
}

func (s *Settings) warn(format string, args ...any) {
	s.Warnings = append(s.Warnings, fmt.Sprintf(format, args...))
}

// deprecated maps old flags onto their successors.
func (s *Settings) deprecated(fs *pflag.FlagSet) {
	for old, successor := range map[string]string{"components-path": "--resources-path", "dapr-http-max-request-size": "--max-body-size", "dapr-http-read-buffer-size": "--read-buffer-size"} {
		if fs.Changed(old) {
			s.warn("--%s is deprecated; use %s", old, successor)
		}
	}
	if ssl, err := fs.GetBool("app-ssl"); err == nil && ssl {
		switch s.AppProtocol {
		case "http":
			s.AppProtocol = "https"
		case "grpc":
			s.AppProtocol = "grpcs"
		}
		s.warn("--app-ssl is deprecated; use --app-protocol %s", s.AppProtocol)
	}
	slices.Sort(s.Warnings)
}

// check finds settings that are wrong by themselves or together.
func (s *Settings) check() error {
	if err := checkAppID(s.AppID); err != nil {
		return err
	}
	level := strings.ToLower(s.LogLevel)
	if !slices.Contains([]string{"debug", "info", "warn", "error", "fatal"}, level) {
		return fmt.Errorf("invalid value for --log-level: %s", s.LogLevel)
	}
	s.LogLevel, s.AppProtocol = level, strings.ToLower(s.AppProtocol)
	if protocols := []string{"http", "https", "h2c", "grpc", "grpcs"}; !slices.Contains(protocols, s.AppProtocol) {
		return fmt.Errorf("invalid value for --app-protocol: %q; want one of %s", s.AppProtocol, strings.Join(protocols, ", "))
	}
	if s.Mode != "standalone" && s.Mode != "kubernetes" {
		return fmt.Errorf("invalid value for --mode: %q; want standalone", s.Mode)
	}
	if s.AppPort != 0 {
		for name, p := range map[string]int{"dapr-http-port": s.HTTPPort, "dapr-grpc-port": s.GRPCPort} {
			if p == s.AppPort {
				return fmt.Errorf("the '%s' argument value %d conflicts with 'app-port'", name, p)
			}
		}
	}
	return s.checkLimits()
}

func (s *Settings) checkLimits() error {
	switch h := s.AppHealth; {
	case s.MaxBodySize != conf.Unlimited && s.MaxBodySize <= 0:
		return fmt.Errorf("invalid value for --max-body-size: %s; want a positive size such as 4Mi, or -1 for no limit", s.MaxBodySize)
	case s.ReadBufferSize <= 0:
		return fmt.Errorf("invalid value for --read-buffer-size: %s; want a positive size such as 4Ki", s.ReadBufferSize)
	case s.AppMaxConcurrency < -1:
		return fmt.Errorf("invalid value for --app-max-concurrency: %d; want a number of calls, or -1 for no limit", s.AppMaxConcurrency)
	case s.GracefulShutdown < 0 || s.BlockShutdown < 0:
		return errors.New("--dapr-graceful-shutdown-seconds and --dapr-block-shutdown-duration cannot be negative")
	case h.Enabled && (h.Interval <= 0 || h.Timeout <= 0 || h.Threshold < 1):
		return errors.New("--app-health-probe-interval, --app-health-probe-timeout and --app-health-threshold must be positive")
	case h.Enabled && h.Timeout >= h.Interval:
		return fmt.Errorf("--app-health-probe-timeout (%v) must be shorter than --app-health-probe-interval (%v)", h.Timeout, h.Interval)
	}
	for _, e := range s.DisableInitEndpoints {
		if e != "config" && e != "subscribe" {
			s.warn("--disable-init-endpoints: %q is not an endpoint; known are config and subscribe", e)
		}
	}
	return nil
}

// checkAppID refuses names that would mean something else where they are used: in file
// names of sockets, in the keys of shared stores, in host names.
func checkAppID(id string) error {
	switch {
	case id == "":
		return errors.New("parameter app-id cannot be empty")
	case strings.Contains(id, "."):
		return errors.New("parameter app-id cannot contain dots")
	case len(id) > 200:
		return fmt.Errorf("parameter app-id cannot be longer than 200 bytes, got %d", len(id))
	}
	for _, r := range id {
		if r < ' ' || r == 0x7f || strings.ContainsRune(`/\|`, r) {
			return fmt.Errorf("parameter app-id cannot contain %q", r)
		}
	}
	return nil
}

// refuse finds what must not be ignored: running on would give less protection than asked.
func (s *Settings) refuse() error {
	if s.EnableMTLS {
		return errors.New("--enable-mtls: this version of Mecha does not encrypt traffic between sidecars; " +
			"remove the flag to run without encryption, on loopback or a network you trust")
	}
	return nil
}

// caution warns of settings that do nothing, or less or more than one may think.
func (s *Settings) caution(fs *pflag.FlagSet) {
	fs.Visit(func(f *pflag.Flag) {
		if flagStatus(f) == statusNoEffect && f.Value.String() != f.DefValue {
			s.warn("--%s has no effect: %s", f.Name, absent(f.Name))
		}
	})
	if s.Mode == "kubernetes" {
		s.warn("--mode kubernetes: resources are read from --resources-path and --config, not from the cluster")
	}
	if !s.PeerIsLocal() {
		s.warn("the port for other sidecars listens on %s without encryption or proof of identity: whoever reaches it can call the application", s.PeerHost())
	}
	if s.PublicPort != 0 && s.PublicListenAddress == "" {
		s.warn("the public port listens on loopback only; give --dapr-public-listen-address to open it to others")
	}
}

func flagStatus(f *pflag.Flag) string {
	if a := f.Annotations[statusKey]; len(a) > 0 {
		return a[0]
	}
	return statusWorks
}

// absent says which missing part makes a flag useless.
func absent(flag string) string {
	switch {
	case strings.HasPrefix(flag, "scheduler"), strings.HasPrefix(flag, "reminders"):
		return "this version has no jobs and reminders"
	case strings.HasPrefix(flag, "placement"), strings.HasPrefix(flag, "actors"):
		return "this version has no actors"
	case strings.HasPrefix(flag, "hot-reload"):
		return "folders of resources are watched, so nothing is compared in between"
	}
	return "this version has no control plane"
}
