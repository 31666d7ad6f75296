package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/dapr/go-sdk/service/common"
	daprd "github.com/dapr/go-sdk/service/grpc"
)

// inbox keeps the events that the apps received.
type inbox struct {
	mu     sync.Mutex // guards events
	events []*common.TopicEvent
	more   chan struct{}
}

func newInbox() *inbox { return &inbox{more: make(chan struct{}, 1)} }

func (b *inbox) put(e *common.TopicEvent) {
	b.mu.Lock()
	b.events = append(b.events, e)
	b.mu.Unlock()
	select {
	case b.more <- struct{}{}:
	default:
	}
}

// take removes and returns the first event that fits, and waits for one.
func (b *inbox) take(ctx context.Context, what string, fits func(*common.TopicEvent) bool) (*common.TopicEvent, error) {
	for {
		b.mu.Lock()
		for i, e := range b.events {
			if fits(e) {
				b.events = append(b.events[:i:i], b.events[i+1:]...)
				b.mu.Unlock()
				return e, nil
			}
		}
		b.mu.Unlock()
		select {
		case <-b.more:
		case <-time.After(50 * time.Millisecond): // the wake-up may have gone to another taker
		case <-ctx.Done():
			return nil, fmt.Errorf("%s never arrived", what)
		}
	}
}

// from takes an event of a pubsub and topic.
func (b *inbox) from(ctx context.Context, pubsub, topic string) (*common.TopicEvent, error) {
	return b.take(ctx, "an event on "+pubsub+"/"+topic, func(e *common.TopicEvent) bool { return e.PubsubName == pubsub && e.Topic == topic })
}

// serveRPC serves the gRPC app with the SDK.
func serveRPC(address string, in *inbox) error {
	s, err := daprd.NewService(address)
	if err != nil {
		return err
	}
	keep := func(_ context.Context, e *common.TopicEvent) (bool, error) { in.put(e); return false, nil }
	errs := []error{
		s.AddHealthCheckHandler("", func(context.Context) error { return nil }),
		s.AddBindingInvocationHandler("tick", func(_ context.Context, e *common.BindingEvent) ([]byte, error) {
			in.put(&common.TopicEvent{PubsubName: "tick", Topic: "rpc", ID: e.Metadata["readTimeUTC"], RawData: e.Data})
			return nil, nil
		}),
		s.AddServiceInvocationHandler("echo", func(_ context.Context, e *common.InvocationEvent) (*common.Content, error) {
			return &common.Content{Data: e.Data, ContentType: e.ContentType, DataTypeURL: e.DataTypeURL}, nil
		}),
		s.AddServiceInvocationHandler("about", func(_ context.Context, e *common.InvocationEvent) (*common.Content, error) {
			return &common.Content{Data: []byte(e.Verb + " " + e.QueryString), ContentType: "text/plain"}, nil
		}),
		s.AddServiceInvocationHandler("empty", func(context.Context, *common.InvocationEvent) (*common.Content, error) { return nil, nil }),
		s.AddServiceInvocationHandler("fail", func(context.Context, *common.InvocationEvent) (*common.Content, error) {
			return nil, errors.New("the handler failed")
		}),
	}
	for _, pubsub := range []string{"mem-pubsub", "emb-pubsub"} {
		errs = append(errs,
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "plain", Route: "/plain"}, keep),
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "bulk", Route: "/bulk"}, keep),
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "raw", Route: "/raw", Metadata: map[string]string{"rawPayload": "true"}}, keep),
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "routed", Route: "/routed"}, keep),
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "routed", Route: "/special", Match: `event.type == "special"`, Priority: 1}, marked(keep, "special")),
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "retried", Route: "/retried"}, failFirst(keep)),
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "dropped", Route: "/dropped", DeadLetterTopic: "dead"},
				func(context.Context, *common.TopicEvent) (bool, error) { return false, errors.New("not wanted") }),
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "dead", Route: "/dead"}, keep),
			// Takes what the declarative subscription brings.
			s.AddTopicEventHandler(&common.Subscription{PubsubName: pubsub, Topic: "any", Route: "/any", DisableTopicValidation: true}, keep),
		)
	}
	go s.Start() // ends with the process
	return errors.Join(errs...)
}

func marked(next common.TopicEventHandler, route string) common.TopicEventHandler {
	return func(ctx context.Context, e *common.TopicEvent) (bool, error) {
		e.Subject = route
		return next(ctx, e)
	}
}

// failFirst asks for a second delivery of each event.
func failFirst(next common.TopicEventHandler) common.TopicEventHandler {
	var mu sync.Mutex
	seen := map[string]bool{}
	return func(ctx context.Context, e *common.TopicEvent) (bool, error) {
		mu.Lock()
		again := seen[e.ID]
		seen[e.ID] = true
		mu.Unlock()
		if !again {
			return true, errors.New("not now")
		}
		return next(ctx, e)
	}
}

// serveWeb serves the HTTP app.
func serveWeb(address string, in *inbox) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /dapr/subscribe", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode([]map[string]string{{"pubsubname": "emb-pubsub", "topic": "shared", "route": "/shared"}})
	})
	mux.HandleFunc("POST /shared", func(_ http.ResponseWriter, r *http.Request) {
		var e common.TopicEvent
		if json.NewDecoder(r.Body).Decode(&e) == nil {
			e.Subject = "web"
			in.put(&e)
		}
	})
	mux.HandleFunc("POST /tick", func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		in.put(&common.TopicEvent{PubsubName: "tick", Topic: "web", ID: r.Header.Get("readTimeUTC"), RawData: body})
	})
	mux.HandleFunc("/about", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(about{Verb: r.Method, Query: r.URL.RawQuery, Type: r.Header.Get("Content-Type"), Body: string(body),
			Caller: r.Header.Get("dapr-caller-app-id"), TokenOK: r.Header.Get("dapr-api-token") == os.Getenv("APP_API_TOKEN")})
	})
	for path, code := range map[string]int{"/missing": 404, "/broken": 500, "/busy": 503, "/teapot": 418} {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "status "+http.StatusText(code), code) })
	}
	mux.HandleFunc("/nothing", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go http.Serve(l, mux) // ends with the process
	return nil
}

// about is what the HTTP app tells of a request.
type about struct {
	Verb, Query, Type, Body, Caller string
	TokenOK                         bool
}
