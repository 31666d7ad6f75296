package launch

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The two health questions of a sidecar: can the app call out, and is everything ready.
const (
	healthOutbound = "/v1.0/healthz/outbound"
	healthAll      = "/v1.0/healthz"
)

// client asks one sidecar over its HTTP API.
type client struct {
	http  *http.Client
	base  string
	id    string // of the app
	token string // DAPR_API_TOKEN, which PUT metadata needs when it is set
}

func newClient(a *App, token string) *client {
	host := "127.0.0.1"
	for addr := range strings.SplitSeq(a.APIListenAddresses, ",") {
		ip := net.ParseIP(strings.Trim(strings.TrimSpace(addr), "[]"))
		if ip == nil || ip.IsUnspecified() || ip.IsLoopback() && ip.To4() != nil {
			break
		}
		host = ip.String()
		break
	}
	network, address := "tcp", net.JoinHostPort(host, strconv.Itoa(a.HTTPPort))
	if a.UnixSocketDir != "" {
		network, address = "unix", filepath.Join(a.UnixSocketDir, "dapr-"+a.ID+"-http.socket")
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	return &client{
		http: &http.Client{
			Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
			Timeout:   2 * time.Second,
		},
		base:  "http://sidecar",
		id:    a.ID,
		token: token,
	}
}

// healthy asks once. The app's id is part of the question, so that another run's sidecar, on
// a port that was ours a moment ago, cannot answer for ours.
func (c *client) healthy(ctx context.Context, path string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.base+path+"?appid="+url.QueryEscape(c.id), nil)
	if err != nil {
		return false
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode/100 == 2
}

// wait asks until the answer is yes or ctx ends: often at first, for a sidecar is up in
// milliseconds, and then ever more seldom, for an app may take its time to listen.
func (c *client) wait(ctx context.Context, path string) error {
	for pause := 10 * time.Millisecond; ; pause = min(pause+pause/4, time.Second) {
		if c.healthy(ctx, path) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// setMetadata tells the sidecar something that `dapr list` will ask it for.
func (c *client) setMetadata(ctx context.Context, key, value string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, c.base+"/v1.0/metadata/"+url.PathEscape(key), strings.NewReader(value))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/plain")
	if c.token != "" {
		req.Header.Set("dapr-api-token", c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("PUT metadata %s: the sidecar answered %s", key, resp.Status)
	}
	return nil
}
