package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// fullShelf is how many of an item there are at first, and again when it runs out.
const fullShelf = 100

// shelf keeps how many there are of each item in the sidecar's state store. Etags make it safe
// for any number of inventories at once: a write that another one overtook is refused.
type shelf struct {
	api string // http://127.0.0.1:3500
}

type stock struct {
	Left int `json:"left"`
}

var client = &http.Client{Timeout: 5 * time.Second}

// take takes n of an item and returns how many are left.
func (s shelf) take(ctx context.Context, item string, n int) (int, error) {
	for range 10 {
		now, etag, err := s.read(ctx, item)
		if err != nil {
			return 0, err
		}
		if now.Left < n {
			now.Left = max(fullShelf, n) // the lorry has come
		}
		now.Left -= n
		saved, err := s.write(ctx, item, now, etag)
		if err != nil {
			return 0, err
		}
		if saved {
			return now.Left, nil
		}
	}
	return 0, fmt.Errorf("too many others are taking %s; try again", item)
}

func (s shelf) read(ctx context.Context, item string) (now stock, etag string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.api+"/v1.0/state/statestore/"+url.PathEscape(item), nil)
	if err != nil {
		return stock{}, "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return stock{}, "", err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNoContent: // nothing stored yet
		return stock{}, "", nil
	case http.StatusOK:
		err := json.NewDecoder(resp.Body).Decode(&now)
		return now, resp.Header.Get("ETag"), err
	}
	return stock{}, "", refusal(resp)
}

// write reports false if another wrote since etag was read. An empty etag stands for "there was
// nothing", which the store checks as well.
func (s shelf) write(ctx context.Context, item string, now stock, etag string) (bool, error) {
	entry := map[string]any{"key": item, "value": now}
	if etag != "" {
		entry["etag"] = etag
	} else {
		entry["options"] = map[string]string{"concurrency": "first-write"}
	}
	body, err := json.Marshal([]any{entry})
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.api+"/v1.0/state/statestore", bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusNoContent:
		return true, nil
	case http.StatusConflict:
		return false, nil
	}
	return false, refusal(resp)
}

func refusal(resp *http.Response) error {
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	return fmt.Errorf("the state store answered %s: %s", resp.Status, body)
}
