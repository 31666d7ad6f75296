// Package about is what a sidecar knows and says about itself: the metadata document, what it
// is still waiting for, and requests to shut down. Edges read it; the host writes it.
package about

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
)

// Document is the metadata API's answer. Field order is the order on the wire; the JSON
// names, the one snake_case name included, are Dapr's.
type Document struct {
	ID              string            `json:"id"`
	RuntimeVersion  string            `json:"runtimeVersion"`
	EnabledFeatures []string          `json:"enabledFeatures,omitempty"`
	Components      []Component       `json:"components,omitempty"`
	Extended        map[string]string `json:"extended,omitempty"`
	Subscriptions   []Subscription    `json:"subscriptions,omitempty"`
	HTTPEndpoints   []Endpoint        `json:"httpEndpoints,omitempty"`
	AppConnection   AppConnection     `json:"appConnectionProperties"`
	ActorRuntime    ActorRuntime      `json:"actorRuntime"`
}

// Component is one loaded component.
type Component struct {
	Name         string   `json:"name"`
	Type         string   `json:"type"`
	Version      string   `json:"version,omitempty"`
	Capabilities []string `json:"capabilities,omitempty"`
}

// Subscription is one subscription, whatever its source.
type Subscription struct {
	PubSubName      string            `json:"pubsubname"`
	Topic           string            `json:"topic"`
	Rules           []Rule            `json:"rules,omitempty"`
	DeadLetterTopic string            `json:"deadLetterTopic"`
	Type            string            `json:"type"` // DECLARATIVE, PROGRAMMATIC or STREAMING
	Metadata        map[string]string `json:"metadata,omitempty"`
}

// Rule is one routing rule.
type Rule struct {
	Match string `json:"match,omitempty"`
	Path  string `json:"path"`
}

// Endpoint is one HTTPEndpoint.
type Endpoint struct {
	Name string `json:"name"`
}

// AppConnection is how the app is reached.
type AppConnection struct {
	Port           int        `json:"port,omitempty"`
	Protocol       string     `json:"protocol,omitempty"`
	ChannelAddress string     `json:"channelAddress,omitempty"`
	MaxConcurrency int        `json:"maxConcurrency,omitempty"`
	Health         *AppHealth `json:"health,omitempty"`
}

// AppHealth is how the app's health is probed; times in Go's duration format.
type AppHealth struct {
	Path      string `json:"healthCheckPath,omitempty"`
	Interval  string `json:"healthProbeInterval,omitempty"`
	Timeout   string `json:"healthProbeTimeout,omitempty"`
	Threshold int    `json:"healthThreshold,omitempty"`
}

// ActorRuntime is the state of the actor runtime; DISABLED as long as there is none.
type ActorRuntime struct {
	RuntimeStatus string `json:"runtimeStatus"`
	HostReady     bool   `json:"hostReady"`
	Placement     string `json:"placement"`
}

// Sidecar is the live state. It is safe for concurrent use.
type Sidecar struct {
	appID    string
	describe func() Document // what the host knows; extended attributes are added here

	mu       sync.Mutex
	extended map[string]string
	pending  map[string]struct{} // parts that are not ready

	outbound atomic.Bool
	stop     chan Stop
}

// Stop is a request to end the sidecar.
type Stop struct {
	Force bool // exit at once, with status 1
}

// New makes the state of a sidecar that waits for the named parts.
func New(appID string, waitFor ...string) *Sidecar {
	s := &Sidecar{appID: appID, extended: map[string]string{}, pending: map[string]struct{}{}, stop: make(chan Stop, 2)}
	for _, p := range waitFor {
		s.pending[p] = struct{}{}
	}
	return s
}

// Describe sets the source of the metadata document.
func (s *Sidecar) Describe(f func() Document) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.describe = f
}

// AppID is the id of the app this sidecar serves.
func (s *Sidecar) AppID() string { return s.appID }

// Metadata is the current document.
func (s *Sidecar) Metadata() Document {
	s.mu.Lock()
	describe := s.describe
	extended := maps.Clone(s.extended)
	s.mu.Unlock()
	var d Document
	if describe != nil {
		d = describe()
	}
	d.ID = s.appID
	both := maps.Clone(d.Extended) // the host's map may be shared by readers
	if both == nil {
		both = map[string]string{}
	}
	maps.Copy(both, extended)
	d.Extended = both
	return d
}

// SetAttribute adds or replaces an extended attribute. It is kept in memory only.
func (s *Sidecar) SetAttribute(key, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extended[key] = value
}

// Ready marks a part as ready; Unready takes that back.
func (s *Sidecar) Ready(part string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, part)
}

// Unready marks a part as not ready.
func (s *Sidecar) Unready(part string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[part] = struct{}{}
}

// Pending lists the parts that are not ready, sorted; empty means the sidecar is healthy.
func (s *Sidecar) Pending() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.pending))
}

// SetOutbound says whether the app may use the sidecar's APIs.
func (s *Sidecar) SetOutbound(ready bool) { s.outbound.Store(ready) }

// Outbound reports whether components and API servers are up.
func (s *Sidecar) Outbound() bool { return s.outbound.Load() }

// Shutdown asks the host to end the sidecar. It returns at once.
func (s *Sidecar) Shutdown(force bool) {
	select {
	case s.stop <- Stop{Force: force}:
	default: // two requests are waiting already
	}
}

// Stops delivers requests to end.
func (s *Sidecar) Stops() <-chan Stop { return s.stop }
