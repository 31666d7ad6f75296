package mesh

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"

	"github.com/mecha-project/mecha/test/harness"
)

// open are the arguments of a sidecar that other hosts may reach.
var open = []string{"--dapr-internal-grpc-listen-address", "0.0.0.0"}

// in describes a sidecar on another host.
func in(n *harness.Network, id string, appPort int, args ...string) harness.Options {
	return harness.Options{AppID: id, AppPort: appPort, Args: args, Launch: n.Launch, Dial: n.Dial}
}

// serveIn runs an app on another host.
func serveIn(t *testing.T, n *harness.Network, h http.Handler) int {
	t.Helper()
	l, err := n.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().(*net.TCPAddr).Port
}

// Sidecars on two hosts find each other without any configuration but that their peer ports
// are open: by the host's folder and by multicast, at once. The clear text is warned about.
func TestTwoHosts(t *testing.T) {
	a, b := harness.TwoNetworks(t)
	answer := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, name) })
	}
	meshA, meshB := harness.NewMesh(t), harness.NewMesh(t) // hosts share no folder
	front := meshA.Start(in(a, "front", serveIn(t, a, answer("front")), open...))
	meshA.Start(in(a, "near", serveIn(t, a, answer("near")), open...))
	far := meshB.Start(in(b, "far", serveIn(t, b, answer("far")), open...))
	for _, s := range []*harness.Sidecar{front, far} {
		s.WaitLog(`Initialized name resolution to hostdir and mdns`)
		s.WaitLog(`level=warning msg="the peer port is open beyond this host and carries calls in clear text`)
	}
	for _, c := range []struct {
		from *harness.Network
		via  *harness.Sidecar
		app  string
	}{{a, front, "near"}, {a, front, "far"}, {b, far, "front"}} {
		client := &http.Client{Transport: &http.Transport{DialContext: c.from.Dial, DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(context.Background(), "GET", c.via.URL("/v1.0/invoke/"+c.app+"/method/who"), nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req.WithContext(limited(t)))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got := make([]byte, 200)
		n, _ := resp.Body.Read(got)
		if resp.StatusCode != 200 || string(got[:n]) != c.app {
			t.Errorf("%s calls %s: %d %s", c.via.AppID, c.app, resp.StatusCode, got[:n])
		}
	}
}

// Without an open port a sidecar is not found from another host, and says so nowhere: it
// listens on loopback only.
func TestClosedPeerPort(t *testing.T) {
	a, b := harness.TwoNetworks(t)
	s := harness.NewMesh(t).Start(in(b, "closed", 0))
	conn, err := a.Dial(limited(t), "tcp", fmt.Sprintf("%s:%d", b.IP, s.Peer))
	if err == nil {
		conn.Close()
		t.Error("the peer port answers another host although no address was given")
	}
}
