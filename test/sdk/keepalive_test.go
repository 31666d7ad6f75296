//go:build unix

package sdk

import (
	"context"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/mecha-project/mecha/test/harness"
)

// TestKeepalive pings as the SDKs do at most, every 10 s also without a call, until a server that
// takes it for abuse would have cut the connection: those allow the first ping and two more.
func TestKeepalive(t *testing.T) {
	t.Parallel() // it only waits
	sidecar := harness.NewMesh(t).Start(harness.Options{AppID: "idle"})
	conn, err := grpc.NewClient(sidecar.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 43*time.Second)
	defer cancel()
	if _, err := runtimev1.NewDaprClient(conn).GetMetadata(ctx, &runtimev1.GetMetadataRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := conn.GetState(); got != connectivity.Ready {
		t.Fatalf("the connection is %v after a call, want READY", got)
	}
	if start := time.Now(); conn.WaitForStateChange(ctx, connectivity.Ready) {
		t.Errorf("the connection became %v after %v of keepalive, want READY throughout", conn.GetState(), time.Since(start).Round(time.Second))
	}
}
