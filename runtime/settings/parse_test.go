package settings_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/runtime/settings"
)

func environment(m map[string]string) func(string) string {
	return func(n string) string { return m[n] }
}

func TestParseDefaults(t *testing.T) {
	got, err := settings.Parse([]string{"--app-id", "a"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := settings.Defaults()
	want.AppID = "a"
	if got.PeerPort < 47300 || got.PeerPort >= 48300 || got.PeerPortGiven {
		t.Errorf("peer port %d (given: %v)", got.PeerPort, got.PeerPortGiven)
	}
	want.PeerPort = got.PeerPort
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	again, _ := settings.Parse([]string{"--app-id", "a"}, nil)
	if again.PeerPort != got.PeerPort {
		t.Errorf("peer port %d, then %d for the same app", got.PeerPort, again.PeerPort)
	}
	ports := map[int]bool{}
	for i := range 20 {
		other, err := settings.Parse([]string{"--app-id", fmt.Sprint("app-", i)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		ports[other.PeerPort] = true
	}
	if len(ports) < 10 {
		t.Errorf("20 apps share %d peer ports", len(ports))
	}
}

func TestParseEveryFlag(t *testing.T) {
	args := strings.Fields(`-app-id a --app-port=3000 -app-protocol grpc --app-channel-address 10.0.0.1 --app-max-concurrency -1
		--app-ssl -dapr-http-port 3501 -dapr-grpc-port=0 --dapr-internal-grpc-port 50002 --dapr-public-port 3599 --dapr-listen-addresses [::1],127.0.0.1
		--dapr-public-listen-address 0.0.0.0 --dapr-internal-grpc-listen-address 0.0.0.0 --unix-domain-socket /s --max-body-size 16Mi
		--read-buffer-size 8Ki --resources-path r1 --resources-path r2,r3 -components-path r4 --config c1 --config c2 --log-level DEBUG
		--log-as-json=true --log-file f --enable-api-logging --allowed-origins * --enable-app-health-check --app-health-check-path /h
		--app-health-probe-interval 10 --app-health-probe-timeout 900 --app-health-threshold 5 --app-binding-options-timeout 1s
		--disable-init-endpoints config,subscribe --dapr-graceful-shutdown-seconds 7 --dapr-block-shutdown-duration 3s --enable-metrics=false
		--metrics-port 9091 --metrics-listen-address 0.0.0.0 --enable-profiling --profile-port 7778 --data-dir d --runtime-dir rd
		--disable-builtin-k8s-secret-store`)
	got, err := settings.Parse(args, nil)
	if err != nil {
		t.Fatal(err)
	}
	on := true
	want := settings.Defaults()
	want.AppID, want.AppPort, want.AppProtocol, want.AppChannelAddress = "a", 3000, "grpcs", "10.0.0.1"
	want.HTTPPort, want.GRPCPort, want.PeerPort, want.PeerPortGiven, want.PublicPort = 3501, 0, 50002, true, 3599
	want.ListenAddresses, want.PublicListenAddress, want.PeerListenAddress = []string{"[::1]", "127.0.0.1"}, "0.0.0.0", "0.0.0.0"
	want.UnixDomainSocket, want.MaxBodySize, want.ReadBufferSize = "/s", 16*conf.MiB, 8*conf.KiB
	want.ResourcesPaths, want.ConfigPaths = []string{"r1", "r2", "r3", "r4"}, []string{"c1", "c2"}
	want.LogLevel, want.LogAsJSON, want.LogFile, want.EnableAPILogging, want.AllowedOrigins = "debug", true, "f", &on, "*"
	want.AppHealth = settings.AppHealth{Enabled: true, Path: "/h", Interval: 10 * time.Second, Timeout: 900 * time.Millisecond, Threshold: 5}
	want.AppBindingOptionsTimeout, want.DisableInitEndpoints = time.Second, []string{"config", "subscribe"}
	want.GracefulShutdown, want.BlockShutdown = 7*time.Second, 3*time.Second
	want.EnableMetrics, want.MetricsPort, want.MetricsListenAddress, want.EnableProfiling, want.ProfilePort = false, 9091, "0.0.0.0", true, 7778
	want.DataDir, want.RuntimeDir = "d", "rd"
	want.Warnings = []string{"--app-ssl is deprecated; use --app-protocol grpcs", "--components-path is deprecated; use --resources-path",
		"the port for other sidecars listens on 0.0.0.0 without encryption or proof of identity: whoever reaches it can call the application"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if hosts := got.APIHosts(); !cmp.Equal(hosts, []string{"::1", "127.0.0.1"}) || got.PeerIsLocal() {
		t.Errorf("hosts %v, peer is local: %v", hosts, got.PeerIsLocal())
	}
}

func TestParseEnvironment(t *testing.T) {
	got, err := settings.Parse([]string{"--app-id", "a"}, environment(map[string]string{
		"NAMESPACE": "prod", "POD_NAME": "pod", "DAPR_API_TOKEN": "t1", "APP_API_TOKEN": "t2", "DAPR_HOST_IP": "10.1.1.1", "DAPR_TRUST_ANCHORS": "pem",
		"DAPR_CONTROLPLANE_NAMESPACE": "cp", "DAPR_CONTROLPLANE_TRUST_DOMAIN": "td", "DAPR_COMPONENTS_SOCKETS_FOLDER": "/f",
		"DAPR_HTTP_DISABLE_H2C": "yes", "DAPR_GRPC_MAX_CONN_IDLE": "5m", "MECHA_RUNTIME_DIR": "/run/m",
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := settings.Defaults()
	want.AppID, want.PeerPort, want.Namespace, want.NamespaceGiven, want.PodName, want.APIToken, want.AppToken = "a", got.PeerPort, "prod", "prod", "pod", "t1", "t2"
	want.HostIP, want.TrustAnchors, want.ControlPlaneNamespace, want.ControlPlaneTrustDomain = "10.1.1.1", "pem", "cp", "td"
	want.ComponentsSockets, want.HTTPDisableH2C, want.GRPCMaxConnIdle, want.RuntimeDir = "/f", true, 5*time.Minute, "/run/m"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if text := fmt.Sprintf("%+v", got); strings.Contains(text, "APIToken:t1") || strings.Contains(text, "AppToken:t2") {
		t.Errorf("the token shows: %s", text)
	}
	if got.HostAddress() != "10.1.1.1" || got.ProcessEnv(5)["DAPR_PORT"] != "5" {
		t.Error("host address or process environment is wrong")
	}
}

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct {
		name, args string
		code       int
		want       string
	}{
		{"no app id", "", 1, "parameter app-id cannot be empty"},
		{"dots", "--app-id a.b", 1, "parameter app-id cannot contain dots"},
		{"separator", "--app-id a/b", 1, "parameter app-id cannot contain '/'"},
		{"key separator", "--app-id a||b", 1, "parameter app-id cannot contain '|'"},
		{"log level", "--app-id a --log-level x", 1, "invalid value for --log-level: x"},
		{"protocol", "--app-id a --app-protocol x", 1, "invalid value for --app-protocol"},
		{"mode", "--app-id a --mode x", 1, "invalid value for --mode"},
		{"app port is the HTTP port", "--app-id a --app-port 3500", 1, "the 'dapr-http-port' argument value 3500 conflicts with 'app-port'"},
		{"app port is the gRPC port", "--app-id a --app-port 50001", 1, "the 'dapr-grpc-port' argument value 50001 conflicts with 'app-port'"},
		{"mTLS", "--app-id a --enable-mtls", 1, "--enable-mtls: this version of Mecha does not encrypt"},
		{"no body", "--app-id a --max-body-size 0", 1, "invalid value for --max-body-size"},
		{"no head", "--app-id a --read-buffer-size -1", 1, "invalid value for --read-buffer-size"},
		{"slow probe", "--app-id a --enable-app-health-check --app-health-probe-timeout 6000", 1, "must be shorter"},
		{"unknown flag", "--app-id a --nope", 2, "flag provided but not defined: -nope"},
		{"misspelt flag", "--app-idd a", 2, "flag provided but not defined: -app-idd; did you mean --app-id?"},
		{"short flag", "-a x", 2, "flag provided but not defined: -a"},
		{"no value", "--app-id", 2, "flag needs an argument: -app-id"},
		{"bad number", "--app-id a --app-health-probe-interval 5s", 2, `invalid value "5s" for flag -app-health-probe-interval: want a whole number, without a unit`},
		{"bad port", "--app-id a --dapr-http-port 70000", 2, `invalid value "70000" for flag -dapr-http-port: want a port from 0 to 65535`},
		{"bad bool", "--app-id a --log-as-json=maybe", 2, `invalid boolean value "maybe" for -log-as-json: want true or false`},
		{"bad size", "--app-id a --max-body-size 4MB", 2, "4Mi (powers of 1024)"},
		{"bad duration", "--app-id a --dapr-block-shutdown-duration 5", 2, `invalid value "5" for flag -dapr-block-shutdown-duration`},
		{"three dashes", "---app-id a", 2, "bad flag syntax: ---app-id"},
		{"nothing before =", "--=a", 2, "bad flag syntax: --=a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := settings.Parse(strings.Fields(tc.args), nil)
			exit, ok := errors.AsType[*settings.ExitError](err)
			if !ok || exit.Code != tc.code || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v (%+v), want code %d, %q", err, exit, tc.code, tc.want)
			}
			var out strings.Builder
			exit.Print(&out, "mecha sidecar")
			if usage := strings.Contains(out.String(), "Usage of mecha sidecar:\n"); usage != (tc.code == 2) || !strings.HasPrefix(out.String(), err.Error()+"\n") {
				t.Errorf("printed %q", out.String())
			}
			if !strings.HasSuffix(out.String(), err.Error()+"\n") {
				t.Errorf("the reason is not what is read last: %q", out.String())
			}
		})
	}
	_, err := settings.Parse([]string{"-h"}, nil)
	if exit, ok := errors.AsType[*settings.ExitError](err); !ok || exit.Code != 0 || !exit.Usage {
		t.Errorf("help: %v", err)
	}
}

func TestParseWarnings(t *testing.T) {
	for _, tc := range []struct {
		name, args string
		want       []string
	}{
		{"parts that are not there", "--placement-host-address localhost:50005 --scheduler-host-address= --sentry-address x --mode kubernetes", []string{
			"--placement-host-address has no effect: this version has no actors", "--sentry-address has no effect: this version has no control plane",
			"--mode kubernetes: resources are read from --resources-path and --config, not from the cluster"}},
		{"old sizes", "--dapr-http-max-request-size 16 --dapr-http-read-buffer-size 8", []string{
			"--dapr-http-max-request-size is deprecated; use --max-body-size", "--dapr-http-read-buffer-size is deprecated; use --read-buffer-size"}},
		{"value after a truth flag", "--log-as-json true --metrics-port 1", []string{
			`argument "true" is not a flag and is ignored; write a flag's true or false after an equals sign`}},
		{"arguments after --", "-- x", []string{`argument "x" is not a flag and is ignored; write a flag's true or false after an equals sign`}},
		{"public port", "--dapr-public-port 1", []string{"the public port listens on loopback only; give --dapr-public-listen-address to open it to others"}},
		{"unknown endpoint", "--disable-init-endpoints x", []string{`--disable-init-endpoints: "x" is not an endpoint; known are config and subscribe`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, err := settings.Parse(append([]string{"--app-id", "a"}, strings.Fields(tc.args)...), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, s.Warnings); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestParseSpecialModesNeedNoApp(t *testing.T) {
	for _, flag := range []string{"--version", "--build-info", "--wait", "-version"} {
		s, err := settings.Parse([]string{flag, "--dapr-http-port", "3555"}, nil)
		if err != nil || s.HTTPPort != 3555 || !(s.ShowVersion || s.ShowBuildInfo || s.Wait) {
			t.Errorf("%s: %+v, %v", flag, s, err)
		}
	}
}

func TestDeprecatedSizes(t *testing.T) {
	s, err := settings.Parse(strings.Fields("--app-id a --dapr-http-max-request-size -1 --dapr-http-read-buffer-size 8"), nil)
	if err != nil || s.MaxBodySize != conf.Unlimited || s.ReadBufferSize != 8*conf.KiB {
		t.Errorf("got %v, %v, %v", s.MaxBodySize, s.ReadBufferSize, err)
	}
}

func TestListenPeer(t *testing.T) {
	first, err := (&settings.Settings{PeerListenAddress: "127.0.0.1"}).ListenPeer() // port 0: any
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = first.Close() }()
	taken := first.Addr().(*net.TCPAddr).Port
	second, err := (&settings.Settings{PeerPort: taken}).ListenPeer()
	if err != nil {
		t.Fatalf("a default port that is taken must give way: %v", err)
	}
	defer func() { _ = second.Close() }()
	if a := second.Addr().(*net.TCPAddr); a.Port == taken || !a.IP.IsLoopback() {
		t.Errorf("listens on %v", a)
	}
	if l, err := (&settings.Settings{PeerPort: taken, PeerPortGiven: true}).ListenPeer(); err == nil {
		_ = l.Close()
		t.Error("a port that was asked for was replaced")
	} else if !strings.Contains(err.Error(), "--dapr-internal-grpc-port") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}

func TestLoopbackIsTheDefault(t *testing.T) {
	s, err := settings.Parse([]string{"--app-id", "a", "--dapr-public-port", "1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range append(s.APIHosts(), s.PeerHost(), s.PublicHost(), s.MetricsListenAddress) {
		if !net.ParseIP(h).IsLoopback() {
			t.Errorf("listens on %s", h)
		}
	}
	if !s.PeerIsLocal() {
		t.Error("the peer port is not seen as local")
	}
}

func FuzzParse(f *testing.F) {
	f.Add("--app-id\x00a\x00-app-port=1\x00--log-as-json\x00--\x00x")
	f.Add("-\x00--\x00---\x00--=\x00-max-body-size\x001e99")
	f.Fuzz(func(t *testing.T, joined string) {
		s, err := settings.Parse(strings.Split(joined, "\x00"), nil)
		exit, ok := errors.AsType[*settings.ExitError](err)
		switch {
		case err == nil && (s.EnableMTLS || (s.AppID == "" && !s.Wait && !s.ShowVersion && !s.ShowBuildInfo)):
			t.Errorf("accepted %q as %+v", joined, s)
		case err != nil && (!ok || exit.Code < 0 || exit.Code > 2):
			t.Errorf("%q: %v is no proper exit", joined, err)
		}
	})
}
