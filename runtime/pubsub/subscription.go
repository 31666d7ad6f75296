package pubsub

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// Source says where a subscription comes from.
type Source uint8

// The sources of subscriptions.
const (
	Declarative  Source = iota // a Subscription resource
	Programmatic               // the app's own list
	Streaming                  // a stream the app opened
)

// String is the source's name in the metadata API.
func (s Source) String() string {
	return [...]string{"DECLARATIVE", "PROGRAMMATIC", "STREAMING"}[s]
}

// Rule routes events that match to a path. An empty Match takes every event; so a default
// route is a last rule without Match.
type Rule struct{ Match, Path string }

// BulkSubscribe asks for deliveries in batches.
type BulkSubscribe struct {
	Enabled     bool
	MaxMessages int           // 0 means 100
	MaxAwait    time.Duration // longest wait for a full batch; 0 means 1 s
}

const (
	defaultBatch = 100
	defaultAwait = time.Second
)

// Subscription is one topic the app wants.
type Subscription struct {
	PubSub, Topic   string
	DeadLetterTopic string            // empty: none; Topic itself counts as none
	Metadata        map[string]string // rawPayload, maxInFlight, and what the broker knows
	Rules           []Rule
	Bulk            BulkSubscribe
	Source          Source
}

func (s *Subscription) String() string {
	return fmt.Sprintf("topic %s on pubsub %s", s.Topic, s.PubSub)
}

func (s *Subscription) raw() bool {
	raw, _ := strconv.ParseBool(s.Metadata["rawPayload"])
	return raw
}

// buries tells whether messages given up go to a dead-letter topic. A copy on the topic itself
// would come again at once, and be copied again, for ever.
func (s *Subscription) buries() bool { return s.DeadLetterTopic != "" && s.DeadLetterTopic != s.Topic }

// inFlight is the number of messages worked on at once.
func (s *Subscription) inFlight(normal int) int {
	if n, err := strconv.Atoi(s.Metadata["maxInFlight"]); err == nil && n > 0 {
		return n
	}
	return normal
}

// bulk is the batch size and wait with defaults applied.
func (s *Subscription) bulk() (size int, await time.Duration) {
	size, await = s.Bulk.MaxMessages, s.Bulk.MaxAwait
	if size <= 0 {
		size = defaultBatch
	}
	if await <= 0 {
		await = defaultAwait
	}
	return size, await
}

// ParseHTTPSubscriptions reads an app's answer to GET /dapr/subscribe: a JSON list of
// {"pubsubname", "topic", "deadLetterTopic", "metadata", "route" | "routes", "bulkSubscribe"},
// names in any case. routes.default beats route. An entry without any route is left out and
// told of in warnings.
func ParseHTTPSubscriptions(body []byte) (subs []Subscription, warnings []string, err error) {
	var list []struct {
		PubSubName      string            `json:"pubsubname"`
		Topic           string            `json:"topic"`
		DeadLetterTopic string            `json:"deadLetterTopic"`
		Metadata        map[string]string `json:"metadata"`
		Route           string            `json:"route"`
		Routes          struct {
			Rules []struct {
				Match string `json:"match"`
				Path  string `json:"path"`
			} `json:"rules"`
			Default string `json:"default"`
		} `json:"routes"`
		BulkSubscribe struct {
			Enabled            bool  `json:"enabled"`
			MaxMessagesCount   int32 `json:"maxMessagesCount"`
			MaxAwaitDurationMs int32 `json:"maxAwaitDurationMs"`
		} `json:"bulkSubscribe"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, nil, fault.New("pubsub.ParseHTTPSubscriptions", fault.Invalid,
			"the app's answer to /dapr/subscribe is not a list of subscriptions").Because(err)
	}
	for _, e := range list {
		sub := Subscription{PubSub: e.PubSubName, Topic: e.Topic, DeadLetterTopic: e.DeadLetterTopic,
			Metadata: e.Metadata, Source: Programmatic, Bulk: BulkSubscribe{
				Enabled:     e.BulkSubscribe.Enabled,
				MaxMessages: int(e.BulkSubscribe.MaxMessagesCount),
				MaxAwait:    time.Duration(e.BulkSubscribe.MaxAwaitDurationMs) * time.Millisecond,
			}}
		for _, r := range e.Routes.Rules {
			sub.Rules = append(sub.Rules, Rule{r.Match, r.Path})
		}
		switch {
		case e.Routes.Default != "":
			sub.Rules = append(sub.Rules, Rule{Path: e.Routes.Default})
		case e.Route != "":
			sub.Rules = append(sub.Rules, Rule{Path: e.Route})
		}
		if len(sub.Rules) == 0 {
			warnings = append(warnings, fmt.Sprintf("subscription to %s has no route and is ignored", &sub))
			continue
		}
		subs = append(subs, sub)
	}
	return subs, warnings, nil
}

// merge puts the sources together: the first declarative subscription to a topic wins among
// declaratives, and a programmatic one replaces it. The first wins among programmatic ones too.
func merge(declarative, programmatic []*route) []*route {
	type name struct{ pubsub, topic string }
	seen := map[name]bool{}
	var out []*route
	add := func(list []*route) {
		for _, r := range list {
			if n := (name{r.sub.PubSub, r.sub.Topic}); !seen[n] {
				seen[n] = true
				out = append(out, r)
			}
		}
	}
	add(programmatic)
	fromApp := len(out)
	add(declarative)
	// Declaratives come first in lists, as they came first in time.
	return append(out[fromApp:len(out):len(out)], out[:fromApp]...)
}
