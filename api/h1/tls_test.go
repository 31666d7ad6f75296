package h1_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/runtime/call"
)

// TestTLS: session tickets that follow the handshake do not make a connection look unusable,
// and large answers, which are written piece by piece, arrive.
func TestTLS(t *testing.T) {
	std := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = w.Write(body)
	}))
	defer std.Close()
	trust := std.Client().Transport.(*http.Transport).TLSClientConfig

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	large := bytes.Repeat([]byte("0123456789"), 50_000)
	s := &h1.Server{Handler: func(ex *h1.Exchange) {
		if ex.ContentLength() == call.Unknown {
			_, _ = io.Copy(io.Discard, ex.Body())
			_ = ex.Respond(200, nil, large)
			return
		}
		echo(ex)
	}}
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(context.Background(), tls.NewListener(ln, &tls.Config{Certificates: std.TLS.Certificates}))
	}()
	defer func() {
		_ = s.Close()
		<-served
	}()

	for name, addr := range map[string]string{"net/http": std.Listener.Addr().String(), "ours": ln.Addr().String()} {
		dials := 0
		c := &h1.Client{Addr: addr, Dial: func(ctx context.Context) (net.Conn, error) {
			dials++
			d := tls.Dialer{Config: trust}
			return d.DialContext(ctx, "tcp", addr)
		}}
		for range 5 {
			r, err := c.Do(t.Context(), &h1.Request{Method: "POST", Body: kib})
			if got := whole(t, r, err); got != string(kib) {
				t.Errorf("%s: %d bytes", name, len(got))
			}
		}
		if dials != 1 {
			t.Errorf("%s: %d connections", name, dials)
		}
		r, err := c.Do(t.Context(), &h1.Request{Method: "POST", Stream: bytes.NewReader(large), Length: call.Unknown})
		if got := whole(t, r, err); got != string(large) {
			t.Errorf("%s: %d bytes", name, len(got))
		}
		_ = c.Close()
	}
}
