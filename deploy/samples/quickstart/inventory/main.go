// Command inventory is the quickstart's other app. It uses nothing but the standard library: the
// sidecar's API is HTTP on localhost, and so is the app's side of it.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// order is what checkout sends, as a request and inside an event.
type order struct {
	ID         string `json:"id"`
	Item       string `json:"item"`
	Quantity   int    `json:"quantity"`
	ReceivedAt int64  `json:"receivedAt,omitempty"` // milliseconds since 1970
}

// maxReceived bounds the list of received orders.
const maxReceived = 100

type inventory struct {
	shelf shelf

	mu       sync.Mutex // guards received
	received []order    // newest last
}

func main() {
	log.SetFlags(0)
	inv := &inventory{shelf: shelf{api: "http://127.0.0.1:" + os.Getenv("DAPR_HTTP_PORT")}, received: []order{}}
	mux := http.NewServeMux()
	// The sidecar asks what to subscribe to, then posts each event to its route.
	mux.HandleFunc("GET /dapr/subscribe", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, []map[string]string{{"pubsubname": "pubsub", "topic": "orders", "route": "/orders"}})
	})
	mux.HandleFunc("POST /orders", inv.ordered)
	mux.HandleFunc("POST /reserve", inv.reserve)
	mux.HandleFunc("GET /received", func(w http.ResponseWriter, _ *http.Request) { reply(w, inv.list()) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) { reply(w, "ready") })
	if err := serve(mux); err != nil {
		log.Fatal(err)
	}
}

func serve(h http.Handler) error {
	l, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("APP_PORT"))
	if err != nil {
		return fmt.Errorf("%w; if the port is taken, change appPort in mecha.yaml", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// reserve takes goods off the shelf for a caller that waits for the answer.
func (inv *inventory) reserve(w http.ResponseWriter, r *http.Request) {
	var o order
	if err := json.NewDecoder(r.Body).Decode(&o); err != nil || o.Item == "" || o.Quantity < 1 {
		http.Error(w, `reserve wants {"item":"apple","quantity":2}`, http.StatusBadRequest)
		return
	}
	left, err := inv.shelf.take(r.Context(), o.Item, o.Quantity)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	reply(w, map[string]int{"left": left})
}

// ordered receives the event of a finished order. Any 2xx answer says it may be forgotten.
func (inv *inventory) ordered(w http.ResponseWriter, r *http.Request) {
	var event struct {
		Data order `json:"data"`
	}
	if err := json.NewDecoder(r.Body).Decode(&event); err != nil {
		log.Printf("an event that is no order was dropped: %v", err)
		reply(w, map[string]string{"status": "DROP"})
		return
	}
	o := event.Data
	o.ReceivedAt = time.Now().UnixMilli()
	inv.mu.Lock()
	inv.received = append(inv.received, o)
	inv.received = inv.received[max(0, len(inv.received)-maxReceived):]
	inv.mu.Unlock()
	log.Printf("packing order %s: %d %s", o.ID, o.Quantity, o.Item)
}

func (inv *inventory) list() []order {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	return append([]order{}, inv.received...)
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the caller may have gone
}
