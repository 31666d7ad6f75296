package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dapr/go-sdk/client"

	"github.com/mecha-project/mecha/test/harness"
	"github.com/mecha-project/mecha/test/servers"
)

const encryptedStore = `apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: safe}
spec:
  type: state.redis
  version: v1
  metadata:
  - {name: redisHost, value: %s}
%s
auth: {secretStore: local}
`

const keysText = `{"old": "000102030405060708090a0b0c0d0e0f", "new": "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eee", "bad": "k3y-in-w0rds"}`

func encryptionKey(which, secret string) string {
	return fmt.Sprintf("  - {name: %sEncryptionKey, secretKeyRef: {name: %s}}", which, secret)
}

// What an app keeps is unreadable in the store and comes back as it was, over both APIs, while keys
// change; what cannot be opened is an error of its own.
func TestEncryptedState(t *testing.T) {
	t.Parallel()
	db := servers.StartRedis(t)
	secrets := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(secrets, []byte(keysText), 0o600); err != nil {
		t.Fatal(err)
	}
	component := func(entries ...string) string {
		return fmt.Sprintf(encryptedStore, db.Addr, strings.Join(entries, "\n"))
	}
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Args: []string{"--log-level=debug"},
		Files: map[string]string{"local.yaml": fmt.Sprintf(localStore, secrets), "safe.yaml": component(encryptionKey("primary", "old"))}})
	s.WaitOutbound()
	url := s.URL("/v1.0/state/safe")
	do := func(method, path, body string, status int, want string) {
		t.Helper()
		resp, got := harness.Do(t, method, url+path, []byte(body))
		if resp.StatusCode != status || (want != "-" && strings.TrimSpace(string(got)) != want) {
			t.Errorf("%s %s: %d %s\nwant %d %s", method, path, resp.StatusCode, got, status, want)
		}
	}
	do("POST", "", `[{"key":"object","value":{"card":  4711, "n":1.50}},{"key":"text","value":"hello"},{"key":"null"}]`, 204, "")
	do("POST", "/transaction", `{"operations":[{"operation":"upsert","request":{"key":"tx","value":[1,2]}},{"operation":"delete","request":{"key":"null"}}]}`, 204, "")
	do("GET", "/object", "", 200, `{"card":  4711, "n":1.50}`)
	do("GET", "/text", "", 200, `"hello"`)
	do("GET", "/tx", "", 200, `[1,2]`)
	do("GET", "/null", "", 204, "")
	for _, key := range []string{"object", "text", "tx"} {
		raw, err := servers.RedisCommand(db.Port, "HGET", "me||"+key, "data")
		if err != nil || !strings.HasSuffix(raw, "||old") || strings.Contains(raw, "4711") || strings.Contains(raw, "hello") {
			t.Errorf("%s is stored as %q, %v", key, raw, err)
		}
	}
	c, err := client.NewClientWithAddress(s.Target())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.SaveState(ctx, "safe", "bytes", []byte("\x00\xff"), map[string]string{"ttlInSeconds": "100"}); err != nil {
		t.Fatal(err)
	}
	item, err := c.GetState(ctx, "safe", "bytes", nil)
	if err != nil || string(item.Value) != "\x00\xff" || item.Etag == "" {
		t.Errorf("over gRPC: %+v, %v", item, err)
	}
	if ttl, err := servers.RedisCommand(db.Port, "TTL", "me||bytes"); err != nil || ttl == "-1" || ttl == "-2" {
		t.Errorf("its time to live is %q, %v", ttl, err)
	}
	if err := c.SaveStateWithETag(ctx, "safe", "bytes", []byte("2"), "1", nil); err == nil || !strings.Contains(err.Error(), "etag") {
		t.Errorf("a wrong etag: %v", err)
	}

	// The key changes: what is there stays readable, what is new has the new one.
	if err := os.WriteFile(filepath.Join(s.Dir, "safe.yaml"), []byte(component(encryptionKey("primary", "new"), encryptionKey("secondary", "old"))), 0o600); err != nil {
		t.Fatal(err)
	}
	s.WaitLog("new ones with the key of secret new")
	eventually(t, 20*time.Second, "the new key in use", func() bool {
		do("POST", "", `[{"key":"later","value":1}]`, 204, "")
		raw, err := servers.RedisCommand(db.Port, "HGET", "me||later", "data")
		return err == nil && strings.HasSuffix(raw, "||new")
	})
	do("GET", "/text", "", 200, `"hello"`)

	// Somebody writes in clear.
	for _, args := range [][]string{{"HSET", "me||clear", "data", "pr1vate", "version", "1"}, {"HSET", "me||other", "data", "pr1vate||old", "version", "1"}} {
		if _, err := servers.RedisCommand(db.Port, args...); err != nil {
			t.Fatal(err)
		}
	}
	do("GET", "/clear", "", 500, `{"errorCode":"ERR_STATE_GET","message":"the value of key \"me||clear\" is not encrypted: it was written before the store's encryption was set, or by somebody else; write it again","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"ERR_STATE_GET","domain":"dapr.io","metadata":null}]}`)
	do("POST", "/bulk", `{"keys":["text","clear","other","none"]}`, 200, "-")
	resp, body := harness.Do(t, "POST", url+"/bulk", []byte(`{"keys":["text","clear","other","none"]}`))
	for _, want := range []string{`{"key":"text","data":"hello","etag":`, `{"key":"clear","error":"the value of key`, `{"key":"other","error":"the value of key`, `{"key":"none"}`} {
		if resp.StatusCode != 200 || !strings.Contains(string(body), want) {
			t.Errorf("bulk get: %d %s\nlacks %s", resp.StatusCode, body, want)
		}
	}
	bulk, err := c.GetBulkState(ctx, "safe", []string{"text", "clear"}, nil, 1)
	if err != nil || len(bulk) != 2 || string(bulk[0].Value) != `"hello"` || bulk[1].Error == "" || len(bulk[1].Value) > 0 {
		t.Errorf("bulk get over gRPC: %+v, %v", bulk, err)
	}
	if strings.Contains(string(body)+s.Log(), "pr1vate") || strings.Contains(s.Log(), "0102030405") {
		t.Error("data or a key are in an answer or the log")
	}
	do("DELETE", "/clear", "", 204, "")
	if _, metadata := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil); !strings.Contains(string(metadata), `"capabilities":["ETAG","TRANSACTIONAL","TTL","ACTOR"]`) {
		t.Errorf("metadata: %s", metadata)
	}
}

// A store that was to be encrypted does not start without its key.
func TestNoStartInClear(t *testing.T) {
	t.Parallel()
	secrets := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(secrets, []byte(keysText), 0o600); err != nil {
		t.Fatal(err)
	}
	memory := func(entry, auth string) string {
		return "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: safe}\nspec:\n  type: state.in-memory\n  version: v1\n  metadata:\n" + entry + "\n" + auth
	}
	const auth = "auth: {secretStore: local}\n"
	for name, tt := range map[string]struct{ component, want string }{
		"a literal":       {memory("  - {name: primaryEncryptionKey, value: 000102030405060708090a0b0c0d0e0f}", auth), "must come from a secret store"},
		"no secret store": {memory(encryptionKey("primary", "old"), ""), "auth.secretStore does not say which store that is"},
		"no such secret":  {memory(encryptionKey("primary", "none"), auth), `secret \"none\" (key \"none\") of secret store \"local\" cannot be used`},
		"no key":          {memory(encryptionKey("primary", "bad"), auth), "the secret is not hexadecimal"},
		"no primary":      {memory(encryptionKey("secondary", "old"), auth), "primaryEncryptionKey, which new ones are written with, is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"local.yaml": fmt.Sprintf(localStore, secrets), "safe.yaml": tt.component}, NoWait: true})
			if code := s.Wait(20 * time.Second); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			if !strings.Contains(s.Log(), tt.want) || strings.Contains(s.Log(), "0102030405") || strings.Contains(s.Log(), "k3y-in") {
				t.Errorf("the log lacks %q, or shows a key:\n%s", tt.want, s.Log())
			}
		})
	}
}
