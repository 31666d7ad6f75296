package e2e

import (
	"bufio"
	"context"
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
	"net/http"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"

	"github.com/mecha-project/mecha/test/harness"
)

// selfSigned makes a certificate that nobody has reason to trust, and its PEM text.
func selfSigned(t *testing.T) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "app"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// serveTLS runs an HTTPS app.
func serveTLS(t *testing.T, h http.Handler, cert tls.Certificate) int {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, ErrorLog: quiet}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// serveH2C runs an app that speaks HTTP/2 with prior knowledge, and nothing else.
func serveH2C(t *testing.T, h http.Handler) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// TestHTTPProtocols: apps that speak HTTPS or h2c are called as those that speak HTTP.
func TestHTTPProtocols(t *testing.T) {
	t.Parallel()
	cert, _ := selfSigned(t)
	cancelled := make(chan struct{}, 4)
	began := make(chan struct{}, 4)
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/alive", "/dapr/config":
		case "/stream":
			w.Header().Set("Trailer", "X-After")
			w.Header().Set("Content-Type", "text/plain")
			for line := range strings.SplitSeq("one two three", " ") {
				fmt.Fprintln(w, line)
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
			w.Header().Set("X-After", "t")
		case "/hang":
			began <- struct{}{}
			<-r.Context().Done()
			cancelled <- struct{}{}
		case "/large":
			http.NewResponseController(w).EnableFullDuplex() // else net/http drops what is left of the body
			w.Header().Set("Content-Type", "a/b")
			io.Copy(w, r.Body)
		case "/break":
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "/teapot":
			w.WriteHeader(418)
		default:
			w.Header().Set("X-Proto", r.Proto)
			echo(w, r)
		}
	})
	for _, tt := range []struct {
		protocol string
		port     int
		proto    string
	}{{"https", serveTLS(t, app, cert), "HTTP/1.1"}, {"h2c", serveH2C(t, app), "HTTP/2.0"}} {
		mesh := harness.NewMesh(t)
		callee := mesh.Start(harness.Options{AppID: "callee", AppPort: tt.port, Protocol: tt.protocol, Args: []string{"--enable-app-health-check", "--app-health-check-path=/alive", "--app-health-probe-interval=1"}})
		caller := mesh.Start(harness.Options{AppID: "caller"})
		callee.WaitLog("App entered healthy status")
		for _, way := range bothWays(callee, caller) {
			t.Run(tt.protocol+"/"+way.name, func(t *testing.T) {
				resp, body := harness.Do(t, "PUT", invokeURL(way.via, "callee", "a%2520b?q=%2F"), []byte("data"), "X-Multi", "1", "X-Multi", "2", "Content-Type", "text/x", "Cookie", "a=1")
				got := decodeSeen(t, body)
				if got.Method != "PUT" || got.URI != "/a%20b?q=%2F" || got.Body != "data" || resp.Header.Get("X-Proto") != tt.proto {
					t.Errorf("app saw %+v over %s", got, resp.Header.Get("X-Proto"))
				}
				if strings.Join(got.Header.Values("X-Multi"), "|") != "1|2" || got.Header.Get("Content-Type") != "text/x" || got.Header.Get("Cookie") != "a=1" || got.Length != 4 {
					t.Errorf("app saw %v, length %d", got.Header, got.Length)
				}
				if resp, _ := harness.Do(t, "GET", invokeURL(way.via, "callee", "teapot"), nil); resp.StatusCode != 418 {
					t.Errorf("status %d, want 418", resp.StatusCode)
				}
				stream, text := raw(t, way.via.HTTP, "GET", get("GET", "/v1.0/invoke/callee/method/stream"))
				if text != "one\ntwo\nthree\n" || stream.Trailer.Get("X-After") != "t" {
					t.Errorf("stream %q, trailer %v", text, stream.Trailer)
				}
				want := pattern(3 << 20)
				for _, r := range []io.Reader{strings.NewReader(string(want)), io.MultiReader(strings.NewReader(string(want)))} {
					if _, got, err := fetch(t.Context(), "POST", invokeURL(way.via, "callee", "large"), r); err != nil {
						t.Error(err)
					} else {
						sameBytes(t, got, want)
					}
				}
				if status, body, err := fetch(t.Context(), "GET", invokeURL(way.via, "callee", "break"), nil); err == nil && status == 200 {
					t.Errorf("a broken body looked whole: %q", body)
				}
				ctx, cancel := context.WithCancel(t.Context())
				go fetch(ctx, "GET", invokeURL(way.via, "callee", "hang"), nil)
				within(t, 5*time.Second, "the app gets the call", began)
				cancel()
				within(t, 1500*time.Millisecond, "the app's request is cancelled", cancelled)
			})
		}
	}
}

// TestGRPCS: a gRPC app behind TLS.
func TestGRPCS(t *testing.T) {
	t.Parallel()
	cert, _ := selfSigned(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&cert)))
	grpc_testing.RegisterTestServiceServer(srv, testApp{})
	runtimev1.RegisterAppCallbackServer(srv, callbackApp{})
	go srv.Serve(l)
	t.Cleanup(srv.Stop)
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: l.Addr().(*net.TCPAddr).Port, Protocol: "grpcs"})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	for _, way := range bothWays(callee, caller) {
		out, err := dial(t, way.via.Target()).UnaryCall(callContext(t, "dapr-app-id", "callee"), &grpc_testing.SimpleRequest{Payload: &grpc_testing.Payload{Body: []byte("hi")}})
		if err != nil || string(out.GetPayload().GetBody()) != "hi" {
			t.Errorf("%s: %v, %v", way.name, out, err)
		}
		if resp, body := harness.Do(t, "GET", invokeURL(way.via, "callee", "untyped"), nil); resp.StatusCode != 200 || string(body) != "text" {
			t.Errorf("%s: got %d %s", way.name, resp.StatusCode, body)
		}
	}
}

// TestH2CCallers: callers may speak HTTP/2 with prior knowledge on the HTTP port.
func TestH2CCallers(t *testing.T) {
	t.Parallel()
	cancelled, began := make(chan struct{}, 4), make(chan struct{}, 4)
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hang":
			began <- struct{}{}
			<-r.Context().Done()
			cancelled <- struct{}{}
		case "/break":
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		default:
			echo(w, r)
		}
	}))
	client := &http.Client{Timeout: 10 * time.Second, Transport: h2c()}
	defer client.CloseIdleConnections()
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name, func(t *testing.T) {
			for _, body := range []string{"", "small", string(pattern(1 << 20))} {
				req, _ := http.NewRequest("POST", invokeURL(way.via, "callee", "x?q=1"), strings.NewReader(body))
				req.Header.Set("X-Mine", "1")
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				b, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				got := decodeSeen(t, b)
				if got.URI != "/x?q=1" || len(got.Body) < len(body) || got.Header.Get("X-Mine") != "1" || resp.ProtoMajor != 2 {
					t.Errorf("app saw %s, %d bytes, %v", got.URI, len(got.Body), got.Header)
				}
			}
			resp, err := client.Get(invokeURL(way.via, "callee", "break"))
			if err == nil {
				b, rerr := io.ReadAll(resp.Body)
				resp.Body.Close()
				if rerr == nil {
					t.Errorf("a broken body looked whole: %d %q", resp.StatusCode, b)
				}
			}
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "GET", invokeURL(way.via, "callee", "hang"), nil)
			go client.Do(req)
			within(t, 5*time.Second, "the app gets the call", began)
			cancel()
			within(t, 1500*time.Millisecond, "the app's request is cancelled", cancelled)
			if log := way.via.Log(); strings.Contains(log, "panic") {
				t.Errorf("the sidecar panicked:\n%s", log)
			}
		})
	}
	t.Run("off", func(t *testing.T) {
		mesh := harness.NewMesh(t)
		s := mesh.Start(harness.Options{AppID: "me", Env: []string{"DAPR_HTTP_DISABLE_H2C=true"}})
		if resp, err := client.Get(s.URL("/v1.0/healthz")); err == nil {
			resp.Body.Close()
			t.Errorf("HTTP/2 was answered with %d", resp.StatusCode)
		}
	})
}

// TestEndpointTLS: an HTTPEndpoint with a certificate authority of its own.
func TestEndpointTLS(t *testing.T) {
	t.Parallel()
	cert, ca := selfSigned(t)
	port := serveTLS(t, http.HandlerFunc(echo), cert)
	mesh := harness.NewMesh(t)
	endpoint := func(name, tls string) string {
		return fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {name: %s}\nspec:\n  baseUrl: https://127.0.0.1:%d\n%s", name, port, tls)
	}
	s := mesh.Start(harness.Options{AppID: "me", Files: map[string]string{
		"trusting.yaml": endpoint("trusting", "  clientTLS:\n    rootCA:\n      value: |\n        "+strings.ReplaceAll(strings.TrimSpace(ca), "\n", "\n        ")+"\n"),
		"strict.yaml":   endpoint("strict", "")}})
	for _, name := range []string{"trusting", "strict", "trusting"} { // connections must not be shared between the two
		resp, body := harness.Do(t, "GET", invokeURL(s, name, "x"), nil)
		if name == "strict" {
			wantError(t, resp, body, 500, "ERR_DIRECT_INVOKE", "certificate")
		} else if resp.StatusCode != 200 {
			t.Errorf("with its CA: %d %s", resp.StatusCode, body)
		}
	}
	resp, rawBody := raw(t, s.HTTP, "GET", get("GET", fmt.Sprintf("/v1.0/invoke/https://127.0.0.1:%d/method/x", port)))
	wantError(t, resp, []byte(rawBody), 500, "ERR_DIRECT_INVOKE", "certificate")
}

// TestUpgrade: an app may switch protocols (WebSocket and the like) with its caller.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "shout" {
			w.WriteHeader(426)
			return
		}
		conn, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: shout\r\nConnection: Upgrade\r\nX-Mine: yes\r\n\r\nHELLO\n")
		for {
			line, err := buf.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(conn, strings.ToUpper(line))
		}
	}))
	for _, way := range bothWays(callee, caller) {
		t.Run(way.name, func(t *testing.T) {
			conn := dialPort(t, way.via.HTTP)
			fmt.Fprint(conn, "GET /v1.0/invoke/callee/method/ws HTTP/1.1\r\nHost: s\r\nConnection: Upgrade\r\nUpgrade: shout\r\n\r\n")
			r := bufio.NewReader(conn)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "shout" || resp.Header.Get("X-Mine") != "yes" {
				body, _ := io.ReadAll(resp.Body)
				t.Fatalf("got %v %s, %v; want 101", resp, body, err)
			}
			if line, err := r.ReadString('\n'); line != "HELLO\n" {
				t.Fatalf("the app's first words: %q, %v", line, err)
			}
			for i := range 3 {
				fmt.Fprintf(conn, "line %d\n", i)
				if line, err := r.ReadString('\n'); line != fmt.Sprintf("LINE %d\n", i) {
					t.Fatalf("got %q, %v", line, err)
				}
			}
		})
	}
}
