//go:build unix

// Package app is the applications of the messaging campaign: publishers and consumers that write
// down all they do, each a process of its own, so that they can be killed.
//
// Those for Dapr's API are written with the official SDK and nothing else, as users write them; native
// ones with the stubs alone, to see every frame. What they tell is in the words of package history.
// Start at Main, then consumer in consume.go.
package app

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/dapr/go-sdk/client"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/faults/messaging/history"
)

// Env is the variable with the Config of an app: a program that finds it is to call Main.
const Env = "MECHA_MESSAGING_APP"

// Config is what an app is to do, as JSON in Env.
type Config struct {
	// Role: publisher, stream (a streaming subscription) and callback (a gRPC app) use Dapr's SDK;
	// pipeline and native publish and consume with mecha.v1.Messaging on the bare stream, sdk-publisher
	// and sdk with the Go SDK.
	Role    string
	Proc    string // its name in the history
	Dir     string // of the history
	Sidecar string // address of the sidecar's gRPC port
	Listen  string // callback: address of its own server

	PubSub, Topic, Group string
	DeadLetter           string // topic; empty: none

	// Publishers: the keys, the pause between messages of a key, and what is to fail.
	Keys   []string
	Pause  time.Duration
	Poison map[string]Poison // by key
	Seed   uint64

	// Consumers: how long a message takes, at most.
	Handler time.Duration
	// MaxInFlight is the subscription's limit; 0 is the default.
	MaxInFlight int
	// Native consumers: the instance's name, deliveries before a message is set aside (0: it is
	// delivered for ever), the window (0: the default), credit to begin with (0: not credited).
	Instance                 string
	Attempts, Window, Credit int
	Ordering                 mechav1.Ordering
	// State is a store to which native consumers write each message, fenced by its epoch.
	State string
	// Wrong has pipelines publish what cannot be, now and then; Long, what takes so long to handle.
	Wrong bool
	Long  time.Duration
}

// Poison makes messages of a key fail: number Seq, as often as Fails says; negative is for ever.
type Poison struct {
	Seq, Fails int
}

// body is what is published.
type body struct {
	ID    string        `json:"id"`
	Key   string        `json:"key"`
	Seq   int           `json:"seq"`
	Fails int           `json:"fails,omitempty"`
	Long  time.Duration `json:"long,omitempty"` // how long it takes to handle; 0: Config.Handler
}

// worker is what all roles have.
type worker struct {
	Config
	record *history.Recorder
	sink   *history.Recorder
	dice   *rand.Rand
}

// Main is the app. It returns when it is told to end.
func Main() {
	if err := run(os.Getenv(Env)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(text string) error {
	w := &worker{}
	if err := json.Unmarshal([]byte(text), &w.Config); err != nil {
		return fmt.Errorf("%s: %w", Env, err)
	}
	client.SetLogger(log.New(io.Discard, "", 0))
	w.dice = rand.New(rand.NewPCG(w.Seed, 1))
	var err error
	if w.record, err = history.NewRecorder(filepath.Join(w.Dir, w.Proc+".jsonl"), w.Proc); err != nil {
		return err
	}
	if w.sink, err = history.NewRecorder(filepath.Join(w.Dir, history.SinkFile), w.Proc); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch w.Role {
	case "publisher":
		return w.publish(ctx)
	case "stream":
		return w.stream(ctx)
	case "callback":
		return w.callback(ctx)
	case "native":
		return w.native(ctx)
	case "pipeline":
		return w.pipeline(ctx)
	case "sdk":
		return w.sdk(ctx)
	case "sdk-publisher":
		return w.sdkPublisher(ctx)
	}
	return fmt.Errorf("%s: role %q is unknown", w.Proc, w.Role)
}

// note writes an event of the app's group and topic.
func (w *worker) note(e history.Event) {
	if e.Topic == "" {
		e.Topic = w.Topic
	}
	w.must(w.record.Add(e))
}

// must ends the process: a history with holes would judge wrongly.
func (w *worker) must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, w.Proc+":", err)
		os.Exit(1)
	}
}

// connect is Dapr's client.
func (w *worker) connect() (client.Client, error) {
	conn, err := w.dial()
	if err != nil {
		return nil, err
	}
	return client.NewClientWithConnection(conn), nil
}

// dial reaches the sidecar, however often that goes away and comes back.
func (w *worker) dial() (*grpc.ClientConn, error) {
	quick := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.3, Jitter: 0.2, MaxDelay: 200 * time.Millisecond}
	return grpc.NewClient("passthrough:///"+w.Sidecar, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: quick, MinConnectTimeout: time.Second}))
}

// rest waits, or returns false when the app is to end.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
