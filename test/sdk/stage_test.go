//go:build unix

package sdk

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

// Secrets of the stage: what an app sends its sidecar, and what a sidecar sends its app.
const (
	apiToken = "sesame-of-the-sidecar"
	appToken = "sesame-of-the-app"
)

// stage is what one program plays on: a sidecar for an HTTP app, one for a gRPC app, both of them
// served by the program, and one behind TLS that asks for a token. All share one embedded node. Each
// block has a component on an embedded backend and, where there is one, on Redis.
type stage struct {
	web, rpc, locked *harness.Sidecar
	webPort, rpcPort int // where the program listens
	dir              string
	lockedHTTP       string // https://…
	lockedGRPC       string
	roots            string // PEM file
	operator         string // URL, see newOperator
	listed           string // the components, as the metadata API has them
}

func newStage(t *testing.T, language string, redis *servers.Redis) *stage {
	t.Helper()
	mesh := harness.NewMesh(t)
	s := &stage{dir: mesh.Dir, webPort: harness.FreePort(t), rpcPort: harness.FreePort(t), operator: newOperator(t, mesh.Dir, redis)}
	if err := os.WriteFile(filepath.Join(s.dir, "secrets.json"), []byte(secrets), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens := []string{"APP_API_TOKEN=" + appToken}
	start := func(o harness.Options) *harness.Sidecar {
		o.AppID = language + "-" + o.AppID
		o.NoWait = true
		o.Args = append(o.Args, "--log-level", "debug")
		sidecar := mesh.Start(o)
		sidecar.WaitOutbound()
		return sidecar
	}
	s.web = start(harness.Options{AppID: "web", AppPort: s.webPort, Env: tokens, Files: s.resources("/", redis)})
	// The gRPC app is also asked for its health, which each SDK's server answers.
	s.rpc = start(harness.Options{AppID: "rpc", AppPort: s.rpcPort, Protocol: "grpc", Env: tokens, Files: s.resources("", redis), Args: []string{"--enable-app-health-check", "--app-health-probe-interval", "1"}})
	s.locked = start(harness.Options{AppID: "locked", Env: []string{"DAPR_API_TOKEN=" + apiToken}, Files: map[string]string{"state.yaml": component("mem-state", "state.in-memory")}})
	front := newFront(t)
	s.roots = front.roots
	s.lockedHTTP, s.lockedGRPC = front.before(t, s.locked.HTTP, "http/1.1"), front.before(t, s.locked.GRPC, "h2")
	return s
}

// secrets are those of the component file-secrets: one of a single value, one of two.
const secrets = `{"plain": "hidden", "pair": {"user": "u", "password": "p"}}`

// components are what each program finds, each with its settings: names and values.
func (s *stage) components(redis *servers.Redis) []string {
	return []string{
		component("mem-state", "state.in-memory"),
		component("emb-state", "state.embedded"),
		component("redis-state", "state.redis", "redisHost", redis.Addr),
		component("mem-pubsub", "pubsub.in-memory"),
		component("emb-pubsub", "pubsub.embedded"),
		component("emb-config", "configuration.embedded"),
		component("redis-config", "configuration.redis", "redisHost", redis.Addr),
		component("emb-lock", "lock.embedded"),
		component("redis-lock", "lock.redis", "redisHost", redis.Addr),
		component("file-secrets", "secretstores.local.file", "secretsFile", filepath.Join(s.dir, "secrets.json"), "multiValued", "true"),
		component("files", "bindings.localstorage", "rootPath", filepath.Join(s.dir, "files")),
		component("tick", "bindings.cron", "schedule", "@every 1s"),
	}
}

// resources are the components and a declarative subscription.
func (s *stage) resources(slash string, redis *servers.Redis) map[string]string {
	all := s.components(redis)
	s.listed = listed(all)
	return map[string]string{
		"components.yaml": strings.Join(all, "---\n"),
		"declared.yaml":   subscription("mem-pubsub", slash) + "---\n" + subscription("emb-pubsub", slash),
	}
}

func component(name, kind string, settings ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata:\n  name: %s\nspec:\n  type: %s\n  version: v1\n", name, kind)
	for i := 0; i+1 < len(settings); i += 2 {
		if i == 0 {
			b.WriteString("  metadata:\n")
		}
		fmt.Fprintf(&b, "  - {name: %s, value: %q}\n", settings[i], settings[i+1])
	}
	return b.String()
}

// listed is what the metadata API says of components, "name type version" each, in order.
func listed(components []string) string {
	var out []string
	for _, c := range components {
		f := strings.Fields(c)
		out = append(out, f[slices.Index(f, "name:")+1]+" "+f[slices.Index(f, "type:")+1]+" v1")
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}

func subscription(pubsub, slash string) string {
	return fmt.Sprintf(`apiVersion: dapr.io/v2alpha1
kind: Subscription
metadata:
  name: declared-%[1]s
spec:
  pubsubname: %[1]s
  topic: declared
  routes:
    rules:
      - match: event.type == "special"
        path: %[2]sdeclared-special
    default: %[2]sdeclared
`, pubsub, slash)
}

// env is what the program is given for the scenario between the two apps.
func (s *stage) env() []string {
	n := strconv.Itoa
	return []string{
		"WEB_APP_ID=" + s.web.AppID, "WEB_APP_PORT=" + n(s.webPort), "WEB_HTTP_PORT=" + n(s.web.HTTP), "WEB_GRPC_PORT=" + n(s.web.GRPC),
		"RPC_APP_ID=" + s.rpc.AppID, "RPC_APP_PORT=" + n(s.rpcPort), "RPC_HTTP_PORT=" + n(s.rpc.HTTP), "RPC_GRPC_PORT=" + n(s.rpc.GRPC),
		"APP_API_TOKEN=" + appToken, "OPERATOR=" + s.operator, "COMPONENTS=" + s.listed,
	}
}

// lockedEnv is what the SDK itself reads: endpoints with TLS, and the token. The rest tells each
// language's TLS library which roots to trust.
func (s *stage) lockedEnv() []string {
	return []string{
		"DAPR_HTTP_ENDPOINT=" + s.lockedHTTP, "DAPR_GRPC_ENDPOINT=" + s.lockedGRPC, "DAPR_API_TOKEN=" + apiToken,
		"LOCKED_APP_ID=" + s.locked.AppID, "LOCKED_HTTP_PORT=" + strconv.Itoa(s.locked.HTTP),
		"SSL_CERT_FILE=" + s.roots, "NODE_EXTRA_CA_CERTS=" + s.roots, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=" + s.roots, "DAPR_GRPC_TLS_CA_PATH=" + s.roots,
	}
}

// front ends TLS before a plain port, as an ingress does.
type front struct {
	cert  tls.Certificate
	roots string
}

func newFront(t *testing.T) *front {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	about := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sdk test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, about, about, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &front{cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots: roots}
}

// before listens in front of a local port until the test ends and returns the URL.
func (f *front) before(t *testing.T, port int, protocol string) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{f.cert}, NextProtos: []string{protocol}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	open := &connections{}
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { open.join(c, port) })
		}
	})
	t.Cleanup(func() { l.Close(); open.close(); wg.Wait() })
	return fmt.Sprintf("https://%s", net.JoinHostPort("127.0.0.1", strconv.Itoa(l.Addr().(*net.TCPAddr).Port)))
}

// connections are those to cut when the test ends.
type connections struct {
	mu     sync.Mutex // guards the rest
	open   []net.Conn
	closed bool
}

func (o *connections) add(c net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.open = append(o.open, c)
	if o.closed {
		c.Close()
	}
}

func (o *connections) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for _, c := range o.open {
		c.Close()
	}
}

// join carries bytes between a client and a local port until either side ends.
func (o *connections) join(c net.Conn, port int) {
	defer c.Close()
	o.add(c)
	back, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return
	}
	defer back.Close()
	o.add(back)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(back, c) // either end may go at any time
		back.Close()
	}()
	_, _ = io.Copy(c, back)
	c.Close()
	<-done
}
