package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/mecha-project/mecha/test/harness"
)

func named(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, name) })
}

// TestReplicasShareCalls: calls spread over the replicas of an app.
func TestReplicasShareCalls(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	caller := mesh.Start(harness.Options{AppID: "caller"})
	for _, name := range []string{"one", "two", "three"} {
		mesh.Start(harness.Options{AppID: "svc", AppPort: harness.Serve(t, named(name))})
	}
	counts := map[string]int{}
	eventually(t, 5*time.Second, "all three are called", func() bool {
		_, body := harness.Do(t, "GET", invokeURL(caller, "svc", "x"), nil)
		counts[string(body)]++
		return len(counts) == 3
	})
	clear(counts)
	for range 90 {
		_, body := harness.Do(t, "GET", invokeURL(caller, "svc", "x"), nil)
		counts[string(body)]++
	}
	for name, n := range counts {
		if n < 20 || len(counts) != 3 {
			t.Errorf("%s got %d of 90 calls; all: %v", name, n, counts)
		}
	}
}

// TestReplicaKilled: when a replica dies under load, only calls it had in hand fail, and calls
// begun a little later all succeed.
func TestReplicaKilled(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	slow := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(5 * time.Millisecond)
			io.WriteString(w, name)
		})
	}
	victim := mesh.Start(harness.Options{AppID: "svc", AppPort: harness.Serve(t, slow("victim"))})
	mesh.Start(harness.Options{AppID: "svc", AppPort: harness.Serve(t, slow("other"))})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	eventually(t, 5*time.Second, "both are called", func() bool {
		_, body := harness.Do(t, "GET", invokeURL(caller, "svc", "x"), nil)
		return string(body) == "victim"
	})
	const callers = 8
	var stop atomic.Bool
	var killed atomic.Int64 // Unix nanoseconds
	var failed, late, after atomic.Int32
	var workers sync.WaitGroup
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	defer client.CloseIdleConnections()
	for range callers {
		workers.Go(func() {
			for !stop.Load() {
				start := time.Now()
				resp, err := client.Post(invokeURL(caller, "svc", "x"), "text/plain", strings.NewReader("x")) // not to be repeated
				ok := err == nil && resp.StatusCode == 200
				if err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				k := killed.Load()
				switch {
				case ok && k != 0 && start.UnixNano() > k:
					after.Add(1)
				case !ok:
					failed.Add(1)
					if k == 0 || start.UnixNano() > k+int64(100*time.Millisecond) {
						late.Add(1)
					}
				}
			}
		})
	}
	time.Sleep(300 * time.Millisecond)
	killed.Store(time.Now().UnixNano())
	victim.Kill()
	time.Sleep(1500 * time.Millisecond)
	stop.Store(true)
	workers.Wait()
	if late.Load() > 0 {
		t.Errorf("%d calls failed that began well after the kill, or before it", late.Load())
	}
	if failed.Load() > callers {
		t.Errorf("%d calls failed; at most the %d in hand may", failed.Load(), callers)
	}
	if after.Load() < 100 {
		t.Errorf("only %d calls succeeded in 1.5 s after the kill", after.Load())
	}
}

// TestReplicaStops: when a replica is told to end under load, no call fails.
func TestReplicaStops(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	leaving := mesh.Start(harness.Options{AppID: "svc", AppPort: harness.Serve(t, named("leaving"))})
	mesh.Start(harness.Options{AppID: "svc", AppPort: harness.Serve(t, named("staying"))})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	eventually(t, 5*time.Second, "both are called", func() bool {
		_, body := harness.Do(t, "GET", invokeURL(caller, "svc", "x"), nil)
		return string(body) == "leaving"
	})
	var stop atomic.Bool
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for !stop.Load() {
				if status, body, err := fetch(context.Background(), "POST", invokeURL(caller, "svc", "x"), strings.NewReader("x")); err != nil || status != 200 {
					t.Errorf("a call failed: %d %s %v", status, body, err)
					return
				}
			}
		})
	}
	time.Sleep(200 * time.Millisecond)
	leaving.Signal(syscall.SIGTERM)
	if code := leaving.Wait(8 * time.Second); code != 0 {
		t.Errorf("exit code %d", code)
	}
	time.Sleep(200 * time.Millisecond)
	stop.Store(true)
	workers.Wait()
}

// TestCalleeMoves: a callee that comes back on another port is found again, and a sidecar of
// another app on the old port is not given its calls.
func TestCalleeMoves(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	old := harness.FreePort(t)
	at := func(port int) []string {
		return []string{"--dapr-internal-grpc-port", fmt.Sprint(port)}
	}
	app := harness.Serve(t, named("svc"))
	first := mesh.Start(harness.Options{AppID: "svc", AppPort: app, Args: at(old)})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	if _, body := harness.Do(t, "GET", invokeURL(caller, "svc", "x"), nil); string(body) != "svc" {
		t.Fatalf("got %s", body)
	}
	first.Kill()
	mesh.Start(harness.Options{AppID: "thief", AppPort: harness.Serve(t, named("thief")), Args: at(old)})
	for range 3 {
		if status, body, err := fetch(t.Context(), "POST", invokeURL(caller, "svc", "x"), strings.NewReader("x")); err != nil || status == 200 {
			t.Errorf("nobody serves svc, yet a call got %d %s, %v", status, body, err)
		}
	}
	mesh.Start(harness.Options{AppID: "svc", AppPort: app})
	eventually(t, 5*time.Second, "the callee is found on its new port", func() bool {
		_, body := harness.Do(t, "GET", invokeURL(caller, "svc", "x"), nil)
		if string(body) == "thief" {
			t.Fatal("the call went to another app")
		}
		return string(body) == "svc"
	})
}

// TestDeadCallee: a caller learns within a few seconds that nobody answers.
func TestDeadCallee(t *testing.T) {
	t.Parallel()
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "svc", AppPort: harness.Serve(t, named("svc"))})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	harness.Do(t, "GET", invokeURL(caller, "svc", "x"), nil)
	callee.Kill()
	start := time.Now()
	resp, body := harness.Do(t, "GET", invokeURL(caller, "svc", "x"), nil)
	wantError(t, resp, body, 500, "ERR_DIRECT_INVOKE", "failed to invoke, id: svc")
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}

// TestAppDown: the callee's sidecar lives, its app does not.
func TestAppDown(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	srv := &http.Server{Handler: named("up")}
	go srv.Serve(l)
	mesh := harness.NewMesh(t)
	callee := mesh.Start(harness.Options{AppID: "callee", AppPort: port})
	caller := mesh.Start(harness.Options{AppID: "caller"})
	for _, way := range bothWays(callee, caller) {
		if _, body := harness.Do(t, "GET", invokeURL(way.via, "callee", "x"), nil); string(body) != "up" {
			t.Fatalf("%s: got %s", way.name, body)
		}
	}
	srv.Close()
	for _, way := range bothWays(callee, caller) {
		start := time.Now()
		resp, body := harness.Do(t, "POST", invokeURL(way.via, "callee", "x"), []byte("x"))
		wantError(t, resp, body, 500, "ERR_DIRECT_INVOKE", "the app cannot be reached", "connection refused")
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: it took %v; nothing is to be repeated", way.name, took)
		}
	}
	if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		t.Fatal(err)
	}
	srv = &http.Server{Handler: named("again")}
	go srv.Serve(l)
	defer srv.Close()
	for _, way := range bothWays(callee, caller) {
		if _, body := harness.Do(t, "GET", invokeURL(way.via, "callee", "x"), nil); string(body) != "again" {
			t.Errorf("%s: got %s", way.name, body)
		}
	}
}

// TestSidecarDies: when a sidecar is killed in the middle of a call, its caller sees a broken
// answer and its app a cancelled request, whatever the protocol.
func TestSidecarDies(t *testing.T) {
	t.Parallel()
	for _, which := range []string{"callee", "caller"} {
		t.Run("HTTP/"+which, func(t *testing.T) {
			t.Parallel()
			cancelled := make(chan struct{}, 1)
			callee, caller := pair(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/stream" {
					return
				}
				io.WriteString(w, "first\n")
				w.(http.Flusher).Flush()
				<-r.Context().Done()
				cancelled <- struct{}{}
			}))
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			req, _ := http.NewRequestWithContext(ctx, "GET", invokeURL(caller, "callee", "stream"), nil)
			resp, err := plain.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			resp.Body.Read(make([]byte, 6))
			map[string]*harness.Sidecar{"callee": callee, "caller": caller}[which].Kill()
			if rest, err := io.ReadAll(resp.Body); err == nil || ctx.Err() != nil {
				t.Errorf("the caller got %q to an end of %v", rest, err)
			}
			within(t, 2*time.Second, "the app's request is cancelled", cancelled)
		})
		t.Run("gRPC/"+which, func(t *testing.T) {
			t.Parallel()
			app := &mirrorApp{}
			mesh := harness.NewMesh(t)
			callee := mesh.Start(harness.Options{AppID: "callee", AppPort: app.serve(t), Protocol: "grpc"})
			caller := mesh.Start(harness.Options{AppID: "caller"})
			bs, err := dial(t, caller.Target()).FullDuplexCall(callContext(t, "dapr-app-id", "callee"))
			if err == nil {
				err = bs.Send(&grpc_testing.StreamingOutputCallRequest{})
			}
			if err != nil {
				t.Fatal(err)
			}
			within(t, 5*time.Second, "the app gets the call", app.began)
			map[string]*harness.Sidecar{"callee": callee, "caller": caller}[which].Kill()
			if _, err := bs.Recv(); status.Code(err) != codes.Unavailable {
				t.Errorf("the caller got %v, want Unavailable", err)
			}
			within(t, 2*time.Second, "the app's call is cancelled", app.cancelled)
		})
	}
}
