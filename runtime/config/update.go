package config

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// sendTimeout bounds how long the app may take over one update, with all attempts that policy
// grants: those behind it wait.
const sendTimeout = time.Minute

// toApp sends updates to the app, one request for each changed key with the whole update in it.
// An update that the app does not take is told and passed over: the next one is newer.
func (sub *subscription) toApp() func(context.Context, map[string]block.ConfigItem) error {
	target := sub.s.o.Inbound(sub.req.Store)
	return func(ctx context.Context, items map[string]block.ConfigItem) error {
		body, err := json.Marshal(Update{ID: sub.id, Items: WireItems(items)})
		if err != nil {
			return fault.Wrap("config.update", fault.Internal, err)
		}
		for _, key := range slices.Sorted(maps.Keys(items)) {
			if err := sub.post(ctx, target, key, body); err != nil && ctx.Err() == nil {
				sub.s.o.Log.Error("error sending configuration item to the app: "+err.Error(), "component", sub.req.Store, "id", sub.id, "key", key)
			}
		}
		return nil
	}
}

func (sub *subscription) post(ctx context.Context, target *call.Target, key string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	desc := call.Desc{Op: "update", Resource: key, Key: key, Safety: call.Idempotent}
	_, err := call.Do(ctx, target, desc, func(ctx context.Context) (struct{}, error) {
		resp, err := sub.s.o.App.Invoke(ctx, &call.Request{Protocol: call.HTTP, Verb: "POST", Path: path(sub.req.Store, key),
			Type: "application/json", Data: body, Length: int64(len(body))})
		if err != nil {
			return struct{}{}, err
		}
		defer resp.Close()
		if resp.Stream != nil { // an answer that is not read to its end takes its connection with it
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Stream, maxAnswer))
		}
		if resp.Status != 200 {
			return struct{}{}, &fault.Error{Op: "config.update", Code: fault.Unavailable, Sent: fault.SentMaybe, Err: &StatusError{resp.Status}}
		}
		return struct{}{}, nil
	})
	return err
}

// maxAnswer bounds what is read of an answer, whose status says all.
const maxAnswer = 64 << 10

// StatusError is the cause of an update's failure when the app answered with a status other than
// 200, for policies that look at it.
type StatusError struct{ Status int }

func (e *StatusError) Error() string {
	return fmt.Sprintf("the app answered with status %d; want 200", e.Status)
}

// CallStatus implements call.Answered.
func (e *StatusError) CallStatus() call.Status { return call.HTTPStatus(e.Status) }

// path is /configuration/<store>/<key>. Slashes of a key stay, as apps' routes expect; segments
// that mean a step in a path do not.
func path(store, key string) string {
	parts := strings.Split(key, "/")
	for i, p := range parts {
		if parts[i] = url.PathEscape(p); p == "." || p == ".." {
			parts[i] = strings.ReplaceAll(p, ".", "%2E")
		}
	}
	return "configuration/" + url.PathEscape(store) + "/" + strings.Join(parts, "/")
}

// Update is the body of an update to the app.
type Update struct {
	ID    string              `json:"id"`
	Items map[string]WireItem `json:"items"`
}

// WireItem is an item in JSON, for updates and answers.
type WireItem struct {
	Value    string            `json:"value,omitempty"`
	Version  string            `json:"version,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// WireItems are items in JSON.
func WireItems(items map[string]block.ConfigItem) map[string]WireItem {
	out := make(map[string]WireItem, len(items))
	for k, it := range items {
		out[k] = WireItem(it)
	}
	return out
}
