package faults

import (
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/mecha-project/mecha/test/harness"
)

// The network between two hosts is cut: nothing arrives, and nobody says so. The caller's
// sidecar has to find out by itself, fail what hangs, and go on when the cut is mended.
func TestNetworkCut(t *testing.T) {
	a, b := harness.TwoNetworks(t)
	l, err := b.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Handler: http.HandlerFunc(echo)}
	go app.Serve(l)
	t.Cleanup(func() { app.Close() })
	open := []string{"--dapr-internal-grpc-listen-address", "0.0.0.0"}
	harness.NewMesh(t).Start(harness.Options{AppID: "web", AppPort: l.Addr().(*net.TCPAddr).Port, Args: open, Launch: b.Launch, Dial: b.Dial})
	caller := harness.NewMesh(t).Start(harness.Options{AppID: "caller", Args: open, Launch: a.Launch, Dial: a.Dial})

	load := begin(t, "network cut for 13 s", 16, overHTTP(t, caller, "web"), overInvokeService(t, caller, "web"))
	load.warm()
	b.SetLink(t, false)
	cut := load.now()
	found := time.Duration(0)
	for load.now()-cut < 13*time.Second {
		if found == 0 && strings.Contains(caller.Log(), "no sign of life") {
			found = load.now() - cut
			t.Logf("the cut was found after %v", found)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if found == 0 {
		t.Error("the cut was not found within 13 s")
	}
	b.SetLink(t, true)
	finish(t, load, load.now(), limits{failures: -1, outage: 25 * time.Second, recovery: 8 * time.Second})
}
