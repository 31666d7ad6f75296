package settings

import "github.com/mecha-project/mecha/components/conf"

// Subscription is a declarative subscription of the app to a topic.
type Subscription struct {
	Resource
	PubSub          string
	Topic           string
	Rules           []Rule // in the order they are tried
	Default         string // the route when no rule matches; empty means the event is dropped
	DeadLetterTopic string
	Metadata        map[string]string
	Bulk            BulkSubscribe
}

// Rule sends events that match an expression to a route.
type Rule struct {
	Match string `yaml:"match"` // a CEL expression over event; empty matches everything
	Path  string `yaml:"path"`
}

// BulkSubscribe asks for delivery of many events in one request. Zero limits mean the defaults.
type BulkSubscribe struct {
	Enabled            bool `yaml:"enabled"`
	MaxMessagesCount   int  `yaml:"maxMessagesCount"`
	MaxAwaitDurationMs int  `yaml:"maxAwaitDurationMs"`
}

type subscriptionSpec struct {
	PubSub          string            `yaml:"pubsubname"`
	Topic           string            `yaml:"topic"`
	DeadLetterTopic string            `yaml:"deadLetterTopic"`
	Metadata        map[string]string `yaml:"metadata"`
	Bulk            BulkSubscribe     `yaml:"bulkSubscribe"`
	Line            int               `yaml:"-"`
}

type subscriptionV1 struct {
	head `yaml:",inline"`
	Spec struct {
		subscriptionSpec `yaml:",inline"`
		Route            string `yaml:"route"`
	} `yaml:"spec"`
}

type subscriptionV2 struct {
	head `yaml:",inline"`
	Spec struct {
		subscriptionSpec `yaml:",inline"`
		Routes           struct {
			Rules   []Rule `yaml:"rules"`
			Default string `yaml:"default"`
		} `yaml:"routes"`
	} `yaml:"spec"`
}

func readSubscription(d document) (Subscription, conf.Findings, bool) {
	if d.apiVersion == "dapr.io/v2alpha1" {
		doc, found, ok := read(d, func(v *subscriptionV2, s *strict) {
			s.subscription(&v.head, &v.Spec.subscriptionSpec, v.Spec.Routes.Default != "" || len(v.Spec.Routes.Rules) > 0)
			for i, r := range v.Spec.Routes.Rules {
				if r.Path == "" {
					s.add(conf.Warning, v.Spec.Line, "spec.routes.rules", "rule %d has no path", i+1)
				}
			}
		})
		return subscription(doc.resource(), &doc.Spec.subscriptionSpec, doc.Spec.Routes.Rules, doc.Spec.Routes.Default), found, ok
	}
	doc, found, ok := read(d, func(v *subscriptionV1, s *strict) {
		s.subscription(&v.head, &v.Spec.subscriptionSpec, v.Spec.Route != "")
	})
	return subscription(doc.resource(), &doc.Spec.subscriptionSpec, nil, doc.Spec.Route), found, ok
}

func (s *strict) subscription(h *head, spec *subscriptionSpec, routed bool) {
	s.named(h)
	line := max(spec.Line, h.Line)
	if spec.PubSub == "" {
		s.add(conf.Error, line, "spec.pubsubname", "required, but not given")
	}
	if spec.Topic == "" {
		s.add(conf.Error, line, "spec.topic", "required, but not given")
	}
	if !routed {
		s.add(conf.Warning, line, "spec", "has no route; events cannot be delivered over HTTP")
	}
	if spec.Bulk.MaxMessagesCount < 0 || spec.Bulk.MaxAwaitDurationMs < 0 {
		s.add(conf.Error, line, "spec.bulkSubscribe", "limits cannot be negative")
	}
}

func subscription(r Resource, spec *subscriptionSpec, rules []Rule, fallback string) Subscription {
	return Subscription{Resource: r, PubSub: spec.PubSub, Topic: spec.Topic, Rules: rules, Default: fallback,
		DeadLetterTopic: spec.DeadLetterTopic, Metadata: spec.Metadata, Bulk: spec.Bulk}
}
