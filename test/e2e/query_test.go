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

// Items are found by their values over both APIs, the app's own and no others.
func TestQueryState(t *testing.T) {
	t.Parallel()
	pg, db := servers.Postgres(t), servers.StartRedis(t)
	sql := func(name, version, more string) string {
		return fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: %s}\nspec:\n  type: state.postgresql\n  version: %s\n  metadata:\n  - {name: host, value: 127.0.0.1}\n  - {name: port, value: '%d'}\n"+
			"  - {name: database, value: postgres}\n  - {name: user, value: postgres}\n  - {name: password, value: \"%s\"}\n%sauth: {secretStore: local}\n---\n",
			name, version, pg.Port, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(servers.SQLPassword), more)
	}
	secrets := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(secrets, []byte(keysText), 0o600); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"local.yaml": fmt.Sprintf(localStore, secrets),
		"stores.yaml": sql("orders", "v1", "") + sql("bytes", "v2", "  - {name: tablePrefix, value: bytes_}\n  - {name: metadataTableName, value: bytes_meta}\n") +
			sql("safe", "v1", "  - {name: tableName, value: safe}\n"+encryptionKey("primary", "old")+"\n") +
			fmt.Sprintf("apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: redis}\nspec:\n  type: state.redis\n  version: v1\n  metadata: [{name: redisHost, value: '%s'}]\n", db.Addr)}
	mesh := harness.NewMesh(t)
	s, other := mesh.Start(harness.Options{AppID: "me", Files: files}), mesh.Start(harness.Options{AppID: "other", Files: files})
	for _, one := range []*harness.Sidecar{s, other} {
		one.WaitOutbound()
		resp, body := harness.Do(t, "POST", one.URL("/v1.0/state/orders"), []byte(`[
			{"key":"1","value":{"person":{"org":"Dev Ops","id":1036},"city":"Seattle","state":"WA"}},
			{"key":"2","value":{"person":{"org":"Hardware","id":1028},"city":"Portland","state":"OR"}},
			{"key":"3","value":{"person":{"org":"Finance","id":107},"city":"Sacramento","state":"CA"}},
			{"key":"4","value":{"person":{"org":"Dev Ops","id":1042},"city":"Spokane","state":"WA"}}]`))
		if resp.StatusCode != 204 {
			t.Fatalf("saving: %d %s", resp.StatusCode, body)
		}
	}
	ask := func(method, store, query string, status int, want ...string) {
		t.Helper()
		resp, body := harness.Do(t, method, s.URL("/v1.0-alpha1/state/"+store+"/query"), []byte(query))
		text := string(body)
		if resp.StatusCode != status {
			t.Errorf("%s: %d %s, want %d", query, resp.StatusCode, text, status)
		}
		for _, w := range want {
			at := strings.Index(text, w)
			if at < 0 {
				t.Errorf("%s: %s\nlacks %s, or not in this order", query, body, w)
				return
			}
			text = text[at+len(w):]
		}
	}
	ask("POST", "orders", `{"filter":{"IN":{"state":["CA","WA"]}},"sort":[{"key":"state"},{"key":"person.id","order":"DESC"}]}`, 200,
		`{"results":[{"key":"3","data":{`, `"etag":"`, `{"key":"4","data":{`, `{"key":"1","data":{"city":"Seattle","state":"WA","person":{"id":1036,"org":"Dev Ops"}},"etag":"`, `}]}`)
	ask("PUT", "orders", `{"filter":{"GT":{"person.id":1000}},"sort":[{"key":"person.id"}],"page":{"limit":2}}`, 200, `[{"key":"2"`, `{"key":"1"`, `],"token":"2"}`)
	ask("PUT", "orders", `{"filter":{"GT":{"person.id":1000}},"sort":[{"key":"person.id"}],"page":{"limit":2,"token":"2"}}`, 200, `[{"key":"4"`, `}]}`)
	ask("POST", "orders", `{"filter":{"EQ":{"state":"XX"}}}`, 204)
	ask("POST", "orders", `{"filter":{"LIKE":{"state":"C"}}}`, 500, `"errorCode":"ERR_STATE_QUERY"`, "unsupported filter", "DAPR_STATE_QUERY_FAILED")
	ask("POST", "orders", `{`, 500, `"errorCode":"ERR_STATE_QUERY"`)
	ask("POST", "nosuch", `{`, 400, `"errorCode":"ERR_STATE_STORE_NOT_FOUND"`)
	ask("POST", "bytes", `{`, 500, `"errorCode":"ERR_STATE_STORE_NOT_SUPPORTED"`, "DAPR_STATE_QUERYING_NOT_SUPPORTED")
	ask("POST", "safe", `{}`, 500, `"errorCode":"ERR_STATE_STORE_NOT_SUPPORTED"`)
	ask("POST", "redis", `{}`, 500, `"errorCode":"ERR_STATE_QUERY"`, "items in Redis cannot be queried")
	_, metadata := harness.Do(t, "GET", s.URL("/v1.0/metadata"), nil)
	if !strings.Contains(string(metadata), `{"name":"orders","type":"state.postgresql","version":"v1","capabilities":["ETAG","TRANSACTIONAL","TTL","QUERY_API","ACTOR"]}`) || strings.Count(string(metadata), "QUERY_API") != 1 {
		t.Errorf("metadata: %s", metadata)
	}

	c, err := client.NewClientWithAddress(s.Target())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := c.SaveState(ctx, "orders", "5", []byte(`{"state":"TX"}`), map[string]string{"contentType": "application/json"}); err != nil {
		t.Fatal(err)
	}
	if err := c.SaveState(ctx, "orders", "6", []byte(`{"state":"TX"}`), nil); err != nil { // bytes
		t.Fatal(err)
	}
	found, err := c.QueryStateAlpha1(ctx, "orders", `{"filter":{"EQ":{"state":"TX"}},"page":{"limit":1}}`, nil)
	if err != nil || len(found.Results) != 1 || found.Results[0].Key != "5" || string(found.Results[0].Value) != `{"state": "TX"}` || found.Results[0].Etag == "" || found.Token != "1" {
		t.Errorf("the SDK found %+v, %v", found, err)
	}
	if _, err := c.QueryStateAlpha1(ctx, "bytes", `{}`, nil); err == nil || !strings.Contains(err.Error(), "doesn't support querying") {
		t.Errorf("the SDK, of a store without queries: %v", err)
	}
}
