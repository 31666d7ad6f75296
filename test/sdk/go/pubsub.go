package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dapr/go-sdk/client"
	"github.com/dapr/go-sdk/service/common"
	"google.golang.org/grpc/codes"
)

func pubsubSteps(r *report, c client.Client, pubsub string, in *inbox) {
	r.step("a struct arrives as JSON", func(ctx context.Context) error {
		if err := c.PublishEvent(ctx, pubsub, "plain", map[string]any{"order": 17}); err != nil {
			return err
		}
		e, err := in.from(ctx, pubsub, "plain")
		if err != nil {
			return err
		}
		return errors.Join(expect("data", e.Data, map[string]any{"order": 17}), expect("raw data", string(e.RawData), `{"order":17}`), expect("content type", e.DataContentType, "application/json"),
			expect("source", e.Source, "go-rpc"), expect("type", e.Type, "com.dapr.event.sent"), expect("spec version", e.SpecVersion, "1.0"))
	})
	r.step("text arrives as text", func(ctx context.Context) error {
		if err := c.PublishEvent(ctx, pubsub, "plain", "hällo"); err != nil {
			return err
		}
		e, err := in.from(ctx, pubsub, "plain")
		if err != nil {
			return err
		}
		return errors.Join(expect("data", e.Data, "hällo"), expect("content type", e.DataContentType, "text/plain"))
	})
	r.step("bytes arrive as bytes", func(ctx context.Context) error {
		data := []byte{0, 255, 1, 254}
		if err := c.PublishEvent(ctx, pubsub, "plain", data, client.PublishEventWithContentType("application/octet-stream")); err != nil {
			return err
		}
		e, err := in.from(ctx, pubsub, "plain")
		if err != nil {
			return err
		}
		return expect("data", e.RawData, data)
	})
	r.step("an own CloudEvent keeps its fields", func(ctx context.Context) error {
		own := `{"specversion":"1.0","id":"own-1","source":"me","type":"mine","datacontenttype":"application/json","data":{"a":1}}`
		if err := c.PublishEvent(ctx, pubsub, "plain", own, client.PublishEventWithContentType("application/cloudevents+json")); err != nil {
			return err
		}
		e, err := in.from(ctx, pubsub, "plain")
		if err != nil {
			return err
		}
		return errors.Join(expect("id", e.ID, "own-1"), expect("source", e.Source, "me"), expect("type", e.Type, "mine"), expect("data", string(e.RawData), `{"a":1}`))
	})
	r.step("a raw payload", func(ctx context.Context) error {
		if err := c.PublishEvent(ctx, pubsub, "raw", "as it is", client.PublishEventWithRawPayload()); err != nil {
			return err
		}
		e, err := in.from(ctx, pubsub, "raw")
		if err != nil {
			return err
		}
		return errors.Join(expect("data", string(e.RawData), "as it is"), expect("content type", e.DataContentType, "application/octet-stream"))
	})
	r.step("rules route", func(ctx context.Context) error {
		for _, kind := range []string{"special", "common"} {
			if err := c.PublishEvent(ctx, pubsub, "routed", kind, client.PublishEventWithMetadata(map[string]string{"cloudevent.type": kind})); err != nil {
				return err
			}
			e, err := in.from(ctx, pubsub, "routed")
			if err != nil {
				return err
			}
			want := map[string]string{"special": "special", "common": ""}[kind]
			if err := errors.Join(expect("data", e.Data, kind), expect("the route", e.Subject, want)); err != nil {
				return err
			}
		}
		return nil
	})
	r.step("a declarative subscription", func(ctx context.Context) error {
		if err := c.PublishEvent(ctx, pubsub, "declared", "by file"); err != nil {
			return err
		}
		e, err := in.from(ctx, pubsub, "declared")
		if err != nil {
			return err
		}
		return expect("data", e.Data, "by file")
	})
	r.step("bulk publish", func(ctx context.Context) error {
		res := c.PublishEvents(ctx, pubsub, "bulk", []any{"one", map[string]int{"n": 2}, client.PublishEventsEvent{EntryID: "3", Data: []byte("three"), ContentType: "text/plain"}})
		if res.Error != nil {
			return res.Error
		}
		var got []string
		for range 3 {
			e, err := in.from(ctx, pubsub, "bulk")
			if err != nil {
				return err
			}
			got = append(got, string(e.RawData))
		}
		slices.Sort(got)
		return expect("the events", got, []string{"one", "three", `{"n":2}`})
	})
	r.step("retried until taken", func(ctx context.Context) error {
		if err := c.PublishEvent(ctx, pubsub, "retried", "again"); err != nil {
			return err
		}
		_, err := in.from(ctx, pubsub, "retried")
		return err
	})
	r.step("dropped to the dead-letter topic", func(ctx context.Context) error {
		if err := c.PublishEvent(ctx, pubsub, "dropped", "unwanted"); err != nil {
			return err
		}
		e, err := in.from(ctx, pubsub, "dead")
		if err != nil {
			return err
		}
		return expect("data", e.Data, "unwanted")
	})
	r.step("an unknown pubsub", func(ctx context.Context) error {
		return code(c.PublishEvent(ctx, "no-such-pubsub", "t", "x"), codes.InvalidArgument)
	})
}

// streamSteps are subscriptions that the client opens.
func streamSteps(r *report, c client.Client, pubsub string) {
	r.step("streaming: success, retry, drop", func(ctx context.Context) error {
		dead, err := c.Subscribe(ctx, client.SubscriptionOptions{PubsubName: pubsub, Topic: "stream-dead"})
		if err != nil {
			return err
		}
		defer dead.Close()
		letter := "stream-dead"
		sub, err := c.Subscribe(ctx, client.SubscriptionOptions{PubsubName: pubsub, Topic: "stream", DeadLetterTopic: &letter})
		if err != nil {
			return err
		}
		defer sub.Close()
		for _, text := range []string{"good", "bad"} {
			if err := c.PublishEvent(ctx, pubsub, "stream", text); err != nil {
				return err
			}
			m, err := sub.Receive()
			if err != nil {
				return err
			}
			if err := errors.Join(expect("data", m.Data, text), expect("topic", m.Topic, "stream")); err != nil {
				return err
			}
			if text == "good" {
				err = m.Success()
			} else {
				err = m.Drop()
			}
			if err != nil {
				return err
			}
		}
		m, err := dead.Receive()
		if err != nil {
			return fmt.Errorf("dead-letter topic: %w", err)
		}
		return errors.Join(expect("the dead letter", m.Data, "bad"), m.Success())
	})
	r.step("streaming: retry brings it again", func(ctx context.Context) error {
		sub, err := c.Subscribe(ctx, client.SubscriptionOptions{PubsubName: pubsub, Topic: "stream-again"})
		if err != nil {
			return err
		}
		defer sub.Close()
		if err := c.PublishEvent(ctx, pubsub, "stream-again", "twice"); err != nil {
			return err
		}
		for n := range 2 {
			m, err := sub.Receive()
			if err != nil {
				return err
			}
			if err := expect("data", m.Data, "twice"); err != nil {
				return err
			}
			if n == 0 {
				err = m.Retry()
			} else {
				err = m.Success()
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	r.step("streaming: with a handler", func(ctx context.Context) error {
		in := newInbox()
		stop, err := c.SubscribeWithHandler(ctx, client.SubscriptionOptions{PubsubName: pubsub, Topic: "handled"}, func(e *common.TopicEvent) common.SubscriptionResponseStatus {
			in.put(e)
			return common.SubscriptionResponseStatusSuccess
		})
		if err != nil {
			return err
		}
		for i := range 20 {
			if err := c.PublishEvent(ctx, pubsub, "handled", map[string]int{"n": i}); err != nil {
				return err
			}
		}
		for range 20 {
			if _, err := in.from(ctx, pubsub, "handled"); err != nil {
				return err
			}
		}
		return stop()
	})
	r.step("streaming: an unknown pubsub", func(ctx context.Context) error {
		_, err := c.Subscribe(ctx, client.SubscriptionOptions{PubsubName: "no-such-pubsub", Topic: "t"})
		if err == nil || !strings.Contains(err.Error(), "no-such-pubsub") {
			return fmt.Errorf("got %v, want an error that names it", err)
		}
		return nil
	})
}

// crossSteps publish in one app and receive in the other.
func crossSteps(r *report, web client.Client, in *inbox) {
	r.step("from the HTTP app to the gRPC app", func(ctx context.Context) error {
		if err := web.PublishEvent(ctx, "emb-pubsub", "plain", "over there"); err != nil {
			return err
		}
		e, err := in.from(ctx, "emb-pubsub", "plain")
		if err != nil {
			return err
		}
		return errors.Join(expect("data", e.Data, "over there"), expect("source", e.Source, "go-web"))
	})
	r.step("to the HTTP app", func(ctx context.Context) error {
		if err := web.PublishEvent(ctx, "emb-pubsub", "shared", map[string]any{"x": "y"}); err != nil {
			return err
		}
		e, err := in.from(ctx, "emb-pubsub", "shared")
		if err != nil {
			return err
		}
		return errors.Join(expect("data", e.Data, map[string]any{"x": "y"}), expect("the receiver", e.Subject, "web"))
	})
}
