// Command go walks the official Go SDK through the scenario of test/sdk: "open" between an HTTP
// app and a gRPC app that it serves itself, "locked" through TLS with an API token. It prints one
// line per step and exits with 1 if any failed. The SDK's gRPC server half is used; its HTTP
// server half is a router on net/http, so the HTTP app here is plain net/http.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/dapr/go-sdk/client"
)

func main() {
	client.SetLogger(log.New(io.Discard, "", 0))
	r := &report{}
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	var err error
	switch mode {
	case "open":
		err = open(r)
	case "locked":
		err = locked(r)
	case "crypto":
		err = cryptoMode(r)
	default:
		err = fmt.Errorf("mode %q: use open, locked or crypto", mode)
	}
	if err != nil {
		r.step("setup", func(context.Context) error { return err })
	}
	fmt.Printf("DONE %d passed, %d failed\n", r.passed, r.failed)
	if r.failed > 0 {
		os.Exit(1)
	}
}

// report prints the outcome of steps.
type report struct {
	prefix         string
	passed, failed int
}

// stepLimit bounds one step.
const stepLimit = 15 * time.Second

func (r *report) step(name string, run func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), stepLimit)
	defer cancel()
	start := time.Now()
	if err := run(ctx); err != nil {
		r.failed++
		fmt.Printf("FAIL %s%s: %v\n", r.prefix, name, err)
		return
	}
	r.passed++
	fmt.Printf("PASS %s%s (%v)\n", r.prefix, name, time.Since(start).Round(time.Millisecond))
}

// under names the steps run in it.
func (r *report) under(prefix string, run func()) {
	old := r.prefix
	r.prefix += prefix + ": "
	run()
	r.prefix = old
}

func open(r *report) error {
	in := newInbox()
	if err := serveWeb("127.0.0.1:"+os.Getenv("WEB_APP_PORT"), in); err != nil {
		return err
	}
	if err := serveRPC("127.0.0.1:"+os.Getenv("RPC_APP_PORT"), in); err != nil {
		return err
	}
	web, err := client.NewClientWithPort(os.Getenv("WEB_GRPC_PORT"))
	if err != nil {
		return err
	}
	defer web.Close()
	rpc, err := client.NewClientWithPort(os.Getenv("RPC_GRPC_PORT"))
	if err != nil {
		return err
	}
	defer rpc.Close()
	r.step("wait for the sidecars", func(ctx context.Context) error {
		return errors.Join(rpc.Wait(ctx, 5*time.Second), web.Wait(ctx, 5*time.Second),
			healthy(ctx, os.Getenv("WEB_HTTP_PORT")), healthy(ctx, os.Getenv("RPC_HTTP_PORT")))
	})
	for _, store := range []string{"mem-state", "emb-state", "redis-state"} {
		r.under(store, func() { stateSteps(r, rpc, store) })
	}
	for _, pubsub := range []string{"mem-pubsub", "emb-pubsub"} {
		r.under(pubsub, func() { pubsubSteps(r, rpc, pubsub, in); streamSteps(r, rpc, pubsub) })
	}
	for _, store := range []string{"emb-config", "redis-config"} {
		r.under(store, func() { configurationSteps(r, rpc, store) })
	}
	for _, store := range []string{"emb-lock", "redis-lock"} {
		r.under(store, func() { lockSteps(r, rpc, store) })
	}
	r.under("secrets", func() { secretSteps(r, rpc) })
	r.under("bindings", func() { bindingSteps(r, rpc, in) })
	r.under("both", func() { crossSteps(r, web, in) })
	r.under("invoke", func() { invokeSteps(r, web, rpc) })
	r.under("metadata", func() { metadataSteps(r, rpc) })
	return nil
}

// healthy waits until a sidecar is ready, which includes its app's subscriptions.
func healthy(ctx context.Context, port string) error {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://127.0.0.1:"+port+"/v1.0/healthz", nil)
		if err != nil {
			return err
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusNoContent {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the sidecar on port %s did not become healthy: %w", port, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// expect compares what can be compared by its text.
func expect(what string, got, want any) error {
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		return fmt.Errorf("%s is %q, want %q", what, g, w)
	}
	return nil
}
