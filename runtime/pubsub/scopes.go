package pubsub

import (
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/catalog"
)

// rules are what a component's metadata says about topics. They are read once per component
// instance.
type rules struct {
	handle    *catalog.Handle[block.PubSub]
	allowed   []string            // empty: any topic
	protected []string            // need an explicit entry
	publish   map[string][]string // by app id; an entry without topics allows none
	subscribe map[string][]string
	prefix    string // put before every topic
	group     string // consumer group; empty: the app id
	ownTTL    bool   // the broker drops expired messages itself
}

// rulesOf returns the rules of a component, reading them when the instance is new.
func (s *Service) rulesOf(h *catalog.Handle[block.PubSub]) *rules {
	if r, ok := s.rules.Load(h.Name); ok && r.(*rules).handle == h {
		return r.(*rules)
	}
	r := readRules(h)
	if s.namespaced(h) {
		r.prefix = s.self.Namespace
	}
	s.rules.Store(h.Name, r)
	return r
}

// namespaced tells whether the component's topics get the namespace as prefix.
func (s *Service) namespaced(h *catalog.Handle[block.PubSub]) bool {
	if s.opts.Namespaced != nil {
		return s.opts.Namespaced(h.Name)
	}
	for _, v := range h.Raw {
		if strings.Contains(v, "{namespace}") {
			return true
		}
	}
	return false
}

func readRules(h *catalog.Handle[block.PubSub]) *rules {
	r := &rules{handle: h,
		allowed:   topics(h.Raw["allowedtopics"]),
		protected: topics(h.Raw["protectedtopics"]),
		publish:   scopes(h.Raw["publishingscopes"]),
		subscribe: scopes(h.Raw["subscriptionscopes"]),
		group:     h.Raw["consumerid"],
	}
	r.ownTTL = catalog.Able[block.PubSubTTL](h)
	return r
}

// mayPublish and maySubscribe judge a topic, as the app names it, for an app.
func (r *rules) mayPublish(app, topic string) bool   { return r.may(r.publish, app, topic) }
func (r *rules) maySubscribe(app, topic string) bool { return r.may(r.subscribe, app, topic) }

func (r *rules) may(scopes map[string][]string, app, topic string) bool {
	if len(r.allowed) > 0 && !slices.Contains(r.allowed, topic) {
		return false
	}
	if own, listed := scopes[app]; listed {
		return slices.Contains(own, topic)
	}
	return !slices.Contains(r.protected, topic)
}

// topics reads "t1, t2".
func topics(csv string) []string {
	var out []string
	for t := range strings.SplitSeq(strings.ReplaceAll(csv, " ", ""), ",") {
		if t != "" {
			out = append(out, t)
		}
	}
	return out
}

// scopes reads "app1=t1,t2;app2=". An app listed twice has the topics of both entries; an
// entry without '=' allows nothing, because a slip must not open a topic.
func scopes(text string) map[string][]string {
	text = strings.ReplaceAll(text, " ", "")
	if text == "" {
		return nil
	}
	out := map[string][]string{}
	for entry := range strings.SplitSeq(text, ";") {
		if app, list, _ := strings.Cut(entry, "="); app != "" {
			out[app] = append(out[app], topics(list)...)
		}
	}
	return out
}

func forbidden(op fault.Op, format string, args ...any) error {
	return fault.New(op, fault.Denied, format, args...).With(fault.ForbiddenTopic)
}
