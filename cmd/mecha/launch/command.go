package launch

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// appEnv is the environment of an app: what `mecha run` inherited, what Dapr's SDKs read, and
// last, so that it wins, what the template says.
func (a *App) appEnv(inherited []string) []string {
	env := slices.Clone(inherited)
	env = append(env, "APP_ID="+a.ID)
	if a.AppPort > 0 {
		env = append(env, "APP_PORT="+strconv.Itoa(a.AppPort))
	}
	env = append(env,
		"APP_PROTOCOL="+a.protocol(),
		"APP_CHANNEL_ADDRESS="+a.channelAddress(),
		"DAPR_HTTP_PORT="+strconv.Itoa(a.HTTPPort),
		"DAPR_GRPC_PORT="+strconv.Itoa(a.GRPCPort),
	)
	if a.MetricsPort > 0 {
		env = append(env, "DAPR_METRICS_PORT="+strconv.Itoa(a.MetricsPort))
	}
	for k, v := range a.Env {
		env = append(env, k+"="+v)
	}
	return lastWins(env)
}

// sidecarEnv is the environment of a sidecar. In a template the sidecars find one another on
// loopback unless DAPR_HOST_IP says otherwise.
func sidecarEnv(inherited []string, multi bool) []string {
	env := append(slices.Clone(inherited), ImplicitEmbeddedEnv+"=1")
	if multi {
		env = append([]string{"DAPR_HOST_IP=127.0.0.1"}, env...)
	}
	return lastWins(env)
}

// lastWins drops all but the last entry of each name, for execve does not and programs
// disagree on which of two they read. The guard's own marker is never passed on: a process
// that inherited it would be spared by mistake.
func lastWins(env []string) []string {
	seen := map[string]bool{EmbeddedNodeEnv: true}
	out := make([]string, 0, len(env))
	for _, kv := range slices.Backward(env) {
		name, _, ok := strings.Cut(kv, "=")
		if runtime.GOOS == "windows" {
			name = strings.ToUpper(name)
		}
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		out = append(out, kv)
	}
	slices.Reverse(out)
	return out
}

// sidecarArgs are the daprd flags for an app, after the word "sidecar". What was not said is
// left out, so that the sidecar's own defaults stay in one place.
func (a *App) sidecarArgs(logAsJSON bool) []string {
	args := []string{"--app-id", a.ID}
	str := func(flag, v string) {
		if v != "" {
			args = append(args, "--"+flag, v)
		}
	}
	num := func(flag string, v int) {
		if v > 0 {
			args = append(args, "--"+flag, strconv.Itoa(v))
		}
	}
	yes := func(flag string, v bool) {
		if v {
			args = append(args, "--"+flag)
		}
	}
	num("app-port", a.AppPort)
	str("app-protocol", a.AppProtocol)
	str("app-channel-address", a.ChannelAddress)
	num("app-max-concurrency", a.AppMaxConcurrency)
	yes("app-ssl", a.AppSSL)
	num("dapr-http-port", a.HTTPPort)
	num("dapr-grpc-port", a.GRPCPort)
	num("dapr-internal-grpc-port", a.InternalPort)
	num("metrics-port", a.MetricsPort)
	str("dapr-listen-addresses", a.APIListenAddresses)
	str("unix-domain-socket", a.UnixSocketDir)
	str("config", a.ConfigFilePath)
	for _, p := range a.ResourcesPaths {
		str("resources-path", p)
	}
	for _, p := range []struct {
		flag string
		v    *string
	}{{"placement-host-address", a.PlacementHostAddress}, {"scheduler-host-address", a.SchedulerHostAddress}} {
		if p.v != nil {
			args = append(args, "--"+p.flag, *p.v) // an empty value is an answer too: off
		}
	}
	str("log-level", a.LogLevel)
	yes("log-as-json", logAsJSON)
	if a.EnableAPILogging != nil {
		args = append(args, "--enable-api-logging="+strconv.FormatBool(*a.EnableAPILogging))
	}
	if a.EnableProfiling {
		yes("enable-profiling", true)
		num("profile-port", a.ProfilePort)
	}
	yes("enable-app-health-check", a.EnableAppHealthCheck)
	str("app-health-check-path", a.AppHealthCheckPath)
	num("app-health-probe-interval", a.AppHealthProbeInterval)
	num("app-health-probe-timeout", a.AppHealthProbeTimeout)
	num("app-health-threshold", a.AppHealthThreshold)
	str("max-body-size", a.maxBodySize())
	str("read-buffer-size", a.readBufferSize())
	str("data-dir", a.DataDir)
	return args
}

func (a *App) maxBodySize() string {
	if a.MaxBodySize == "" && a.MaxRequestSizeMB != 0 {
		if a.MaxRequestSizeMB < 0 {
			return "-1"
		}
		return strconv.Itoa(a.MaxRequestSizeMB) + "Mi"
	}
	return a.MaxBodySize
}

func (a *App) readBufferSize() string {
	if a.ReadBufferSize == "" && a.ReadBufferSizeKB > 0 {
		return strconv.Itoa(a.ReadBufferSizeKB) + "Ki"
	}
	return a.ReadBufferSize
}

// lookCommand finds the program of an app as the app's own shell would: a name with a
// separator relative to the app's directory, a plain name on the PATH of the app's
// environment. It is found before anything starts, so that a typing error costs nothing.
func (a *App) lookCommand(env []string) (string, error) {
	name := a.Command[0]
	hint := "check the spelling, or install it"
	if filepath.Base(name) != name {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(a.Dir, path)
		}
		found, err := exec.LookPath(path)
		if err == nil {
			return found, nil
		}
		if info, statErr := os.Stat(path); statErr == nil && !info.IsDir() {
			hint = "make it executable"
		}
		return "", fmt.Errorf("app %q: cannot start %q: no such program at %s; %s", a.ID, name, path, hint)
	}
	path := os.Getenv("PATH")
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	if path == os.Getenv("PATH") {
		found, err := exec.LookPath(name)
		if err == nil {
			return found, nil
		}
		if errors.Is(err, exec.ErrDot) {
			hint = "write ./" + name + " to run the one in the current directory"
		}
	} else {
		for _, dir := range filepath.SplitList(path) {
			if !filepath.IsAbs(dir) {
				continue
			}
			if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return found, nil
			}
		}
	}
	if _, err := os.Stat(filepath.Join(a.Dir, name)); err == nil {
		hint = "write ./" + name + " to run the one in " + a.Dir
	}
	return "", fmt.Errorf("app %q: cannot start %q: not found on the PATH; %s", a.ID, name, hint)
}
