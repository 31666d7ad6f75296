// Package pubsub is the deciding half of messaging: it checks and wraps what the app
// publishes, knows the app's subscriptions, and sees every message through to an answer.
//
// It leaves to the edges: parsing requests, choosing status codes, the app's protocol (HTTP
// events go through app.Channel as ordinary requests built here; a gRPC app is an EventSink).
// It leaves to the backends: appending, fetching, redelivering.
//
// Start at Service. Publishing: publish.go, bulk.go, envelope.go (the CloudEvent around each
// message), scopes.go (who may use which topic). Subscribing: subscription.go (what a
// subscription is, and its three sources), routes.go (rules), manager.go (their lives),
// consumer.go (one message from fetch to answer), lanes.go (order and concurrency),
// deliver.go and batch.go (the HTTP app), stream.go (apps that subscribe by a stream).
//
// # The promise
//
// A message is acknowledged only when the app said it is done with it (success or drop), when
// it has expired, when no route wants it, or when the broker accepted its copy on the
// dead-letter topic. Whatever else happens it comes again, after a growing pause, for ever.
// Dapr acknowledges some failures and leaves others to each broker; see
// docs/reference/differences.md.
//
// # Errors
//
// Every error is a *fault.Error. Where the code does not say which answer a wire owes, the
// reason does:
//
//	Invalid,  fault.EmptyName        no pub/sub name
//	NotFound, fault.NoSuchComponent  no such pub/sub, also when none at all is configured
//	Invalid,  fault.NoTopic          no topic
//	Invalid,  fault.BadMetadata      rawPayload is not a boolean
//	Invalid,  fault.BadEnvelope      content type says CloudEvent and the body is none
//	Invalid,  NotEntries             a bulk body that is no list of entries
//	Invalid,  fault.BadEntries       an entryId missing or used twice
//	Invalid,  EventMismatch          a bulk event that does not fit its content type
//	Denied,   fault.ForbiddenTopic   scopes refuse the topic
//
// Any other error of a publish is the component's or the policy's.
package pubsub

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/catalog"
	"github.com/mecha-project/mecha/runtime/identity"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// Reasons of this block's own.
const (
	NotEntries    fault.Reason = "bulk_not_entries"
	EventMismatch fault.Reason = "bulk_event_mismatch"
)

// Recorder counts messages. process and status of an ingress are words of Dapr's metrics:
// success, retry or drop.
type Recorder interface {
	PubSubEgress(component, topic string, ok bool, took time.Duration)
	PubSubBulkEgress(component, topic string, ok bool, took time.Duration)
	PubSubIngress(component, topic, process, status string, took time.Duration)
	PubSubBulkIngress(topic string, took time.Duration)
	PubSubBulkIngressEvents(topic, status string, n int64)
}

// App is the part of app.App that delivery over HTTP needs.
type App interface {
	Invoke(ctx context.Context, req *call.Request) (*call.Response, error)
}

// EventSink delivers events to an app that does not take them as HTTP requests.
type EventSink interface {
	// Deliver hands over one event and returns the app's answer. An error means there was
	// none, or that the app failed; it is retriable. A sink whose app does not implement the
	// callback at all answers Success, for so does Dapr.
	Deliver(ctx context.Context, e *Event) (Answer, error)
	// DeliverBulk hands over a batch and returns one answer per event, in order; Retry for
	// those the app did not mention.
	DeliverBulk(ctx context.Context, b *Batch) ([]Answer, error)
}

// Options are what a Service may be lent. The zero value publishes only.
type Options struct {
	// App takes events over HTTP; unused when Sink is set.
	App App
	// Sink takes events in the app's own protocol (gRPC).
	Sink EventSink
	// Inbound gives the policy target of deliveries from a component; nil means no policy.
	Inbound func(component string) *call.Target
	// Namespaced tells whether a component's topics live in this sidecar's namespace, because
	// {namespace} occurs in its metadata as written; nil means to look for it in the metadata
	// as the catalog holds them.
	Namespaced func(component string) bool
	// Log is told of life events; nil means silence.
	Log *slog.Logger
	// Recorder may be nil.
	Recorder Recorder
	// Tracing may be nil: events then show the trace context they were published with.
	Tracing Tracing
	// MaxInFlight bounds the messages of one subscription being worked on; 0 means 64. A
	// subscription's metadata entry maxInFlight overrides it.
	MaxInFlight int
}

// defaultInFlight keeps an app busy without filling its sidecar: with handlers of 5 ms it
// passes 12 800 messages a second, and Dapr's brokers default to between 1 and 100. Up to
// windowFactor times as many are fetched.
const defaultInFlight = 64

// Service serves the pub/sub block. It is safe for concurrent use.
type Service struct {
	stores *catalog.Store[block.PubSub]
	self   identity.Self
	opts   Options
	log    *slog.Logger
	rules  sync.Map // component name to *rules: a reloaded component replaces its entry

	manager manager
	engines engines
	ending  chan struct{} // closed by EndStreams
	running running
}

// New makes the service. Subscriptions do not run before Resume.
func New(stores *catalog.Store[block.PubSub], self identity.Self, opts Options) *Service {
	s := &Service{stores: stores, self: self, opts: opts, log: opts.Log}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.opts.MaxInFlight <= 0 {
		s.opts.MaxInFlight = defaultInFlight
	}
	s.manager.init()
	s.ending = make(chan struct{})
	s.engines.all, s.engines.over = map[block.Log]*engine.Engine{}, make(chan struct{})
	return s
}

// Check judges the names of a publish. Edges call it before they read a body, because an
// unknown pub/sub wins over a malformed request.
func (s *Service) Check(pubsub, topic string) error {
	_, err := s.lookup(pubsub, topic)
	return err
}

func (s *Service) lookup(pubsub, topic string) (*catalog.Handle[block.PubSub], error) {
	const op fault.Op = "pubsub.lookup"
	if pubsub == "" {
		return nil, fault.New(op, fault.Invalid, "pubsub name is empty").With(fault.EmptyName)
	}
	h, err := s.stores.Lookup(pubsub)
	if err != nil {
		return nil, fault.New(op, fault.NotFound, "pubsub %s is not found", pubsub).With(fault.NoSuchComponent)
	}
	if topic == "" {
		return nil, fault.New(op, fault.Invalid, "topic is empty in pubsub %s", pubsub).With(fault.NoTopic)
	}
	return h, nil
}
