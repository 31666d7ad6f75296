package grpcapi_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// selfSigned is a certificate nobody has reason to trust.
func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestAnAppOverTLS(t *testing.T) {
	s := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(new(selfSigned(t)))), grpc.ForceServerCodecV2(grpcapi.NewCodec()), grpc.UnknownServiceHandler(echo))
	l := listen(t)
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	defer func() { s.Stop(); served.Wait() }()
	c, err := grpcapi.NewAppChannel(grpcapi.ChannelOptions{Address: l.Addr().String(), TLS: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	body := grpcapi.AppendMessage(nil, []byte(strings.Repeat("a", 300<<10)))
	resp, err := c.Invoke(within(t), &call.Request{Protocol: call.GRPC, Path: "/a.B/C", Data: body})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Close()
	got := resp.Data
	if resp.Stream != nil {
		got, err = io.ReadAll(resp.Stream)
	}
	if err != nil || len(got) != len(body) || resp.Trailer().Get("grpc-status") != "0" {
		t.Errorf("%d bytes, %v, %v", len(got), err, resp.Trailer())
	}
	plain, err := grpcapi.NewAppChannel(grpcapi.ChannelOptions{Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if _, err := plain.Invoke(within(t), &call.Request{Protocol: call.GRPC, Path: "/a.B/C", Data: []byte{}}); fault.ReasonOf(err) != fault.AppUnreachable || !strings.Contains(err.Error(), "--app-protocol") {
		t.Errorf("without TLS: %v", err)
	}
}

// An HTTP app where a gRPC one is meant to be answers something; not what was asked.
func TestAnAppThatSpeaksPlainHTTP2(t *testing.T) {
	p := new(http.Protocols)
	p.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: p, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/ok" {
			_, _ = io.WriteString(w, "hello")
			return
		}
		http.NotFound(w, r)
	})}
	l := listen(t)
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	defer func() { s.Close(); served.Wait() }()
	c, err := grpcapi.NewAppChannel(grpcapi.ChannelOptions{Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for path, want := range map[string]string{"/ok": "2", "/a.B/C": "12"} {
		resp, err := c.Invoke(within(t), &call.Request{Protocol: call.GRPC, Path: path, Data: []byte{}})
		if err != nil || resp.Trailer().Get("grpc-status") != want {
			t.Errorf("%s: %v, want status %s", path, err, want)
		}
		resp.Close()
	}
}

func TestWhatTheAppSeesOfACallback(t *testing.T) {
	var md metadata.MD
	var left time.Duration
	c := channel(t, &grpcApp{invoke: func(ctx context.Context, _ *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
		md, _ = metadata.FromIncomingContext(ctx)
		if d, ok := ctx.Deadline(); ok {
			left = time.Until(d)
		}
		return &commonv1.InvokeResponse{}, nil
	}}, grpcapi.ChannelOptions{})
	if _, err := c.Invoke(within(t), &call.Request{Protocol: call.Unary, Path: "m", Header: fields("x-bin", "\x00", "x", "1", "x", "2")}); err != nil {
		t.Fatal(err)
	}
	if left < 5*time.Second || left > 10*time.Second || len(md["x"]) != 2 || md["x-bin"][0] != "\x00" || md["content-type"][0] != "application/grpc" || !strings.HasPrefix(md["user-agent"][0], "grpc-go/") {
		t.Errorf("%v left, metadata %v", left, md)
	}
}

func TestAnswersOverTheLimit(t *testing.T) {
	big := grpcapi.AppendMessage(nil, make([]byte, 2000))
	c := channel(t, &grpcApp{stream: echo, invoke: func(context.Context, *commonv1.InvokeRequest) (*commonv1.InvokeResponse, error) {
		return &commonv1.InvokeResponse{ContentType: strings.Repeat("x", 2000)}, nil
	}}, grpcapi.ChannelOptions{MaxMessage: 1000})
	resp, err := c.Invoke(within(t), &call.Request{Protocol: call.GRPC, Path: "/a.B/C", Data: big})
	if err != nil {
		t.Fatal(err)
	}
	if resp.Stream != nil {
		_, _ = io.Copy(io.Discard, resp.Stream)
	}
	if got := resp.Trailer().Get("grpc-status"); got != "8" {
		t.Errorf("proxied: status %s", got)
	}
	resp.Close()
	resp, err = c.Invoke(within(t), &call.Request{Verb: "GET"})
	if err != nil || resp.GRPCStatus == nil {
		t.Errorf("a callback: %+v, %v", resp, err)
	}
}

// How far a call got when the app dies decides whether it may be repeated.
func TestAnAppThatDies(t *testing.T) {
	began := make(chan struct{}, 2)
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, ss grpc.ServerStream) error {
		began <- struct{}{}
		<-ss.Context().Done()
		return nil
	}))
	l := listen(t)
	var served sync.WaitGroup
	served.Go(func() { _ = s.Serve(l) })
	c, err := grpcapi.NewAppChannel(grpcapi.ChannelOptions{Address: l.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() { <-began; s.Stop() }()
	_, err = c.Invoke(within(t), &call.Request{Protocol: call.GRPC, Path: "/a.B/C", Data: []byte{}})
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("in flight: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	served.Wait()
	for name, req := range map[string]*call.Request{"proxied": {Protocol: call.GRPC, Path: "/a.B/C", Data: []byte{}}, "a callback": {Verb: "GET"}} {
		if _, err := c.Invoke(within(t), req); fault.SentOf(err) != fault.SentNever || fault.ReasonOf(err) != fault.AppUnreachable {
			t.Errorf("afterwards, %s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.Invoke(ctx, &call.Request{Protocol: call.GRPC, Path: "/a.B/C", Data: []byte{}}); fault.Of(err) != fault.Canceled || !errors.Is(err, context.Canceled) {
		t.Errorf("nobody waits: %v", err)
	}
}

// observed keeps what the observer of calls into the app is told.
type observed struct {
	mu   sync.Mutex
	text []string
}

func (o *observed) GRPCCalled(method string, code codes.Code, sent, received int64, _ time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, method+" "+code.String()+" "+strings.Repeat("s", int(sent))+strings.Repeat("r", int(received)))
}

func (o *observed) GRPCProbed(code codes.Code, _ time.Duration) { o.GRPCCalled("probe", code, 0, 0, 0) }

func TestCallsIntoTheAppAreObserved(t *testing.T) {
	o := &observed{}
	a := &grpcApp{stream: echo, health: status.Error(codes.Aborted, "")}
	c := channel(t, a, grpcapi.ChannelOptions{Observe: o})
	msgs := grpcapi.AppendMessage(grpcapi.AppendMessage(nil, []byte("a")), []byte("bc"))
	for _, req := range []*call.Request{
		{Protocol: call.GRPC, Path: "/a.B/C", Data: msgs},
		{Protocol: call.GRPC, Path: "/a.B/C", Data: msgs, Header: fields("fail-late", "1")},
		{Protocol: call.GRPC, Path: "/a.B/C", Stream: io.NopCloser(strings.NewReader(string(msgs))), Length: call.Unknown},
	} {
		resp, err := c.Invoke(within(t), req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Stream != nil {
			_, _ = io.Copy(io.Discard, resp.Stream)
		}
		resp.Close()
	}
	_ = c.Probe(within(t))
	want := "/a.B/C OK sssrrr, /a.B/C Aborted sssrrr, /a.B/C OK sssrrr, probe Aborted "
	if got := strings.Join(o.text, ", "); got != want {
		t.Errorf("observed %q, want %q", got, want)
	}
}
