package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/test/harness"
)

const nativeStores = `apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: state}
spec: {type: state.in-memory, version: v1}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: locks}
spec: {type: lock.in-memory, version: v1}
---
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: {name: cache}
spec: {type: cache.in-memory, version: v1}
`

func native(t *testing.T, config string) (*harness.Sidecar, *grpc.ClientConn) {
	t.Helper()
	s := harness.NewMesh(t).Start(harness.Options{AppID: "me", Files: map[string]string{"s.yaml": nativeStores}, Config: config})
	s.WaitOutbound()
	conn, err := grpc.NewClient(s.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return s, conn
}

// nativeJSON calls a method over HTTP and compares the answer, whose fields may be left out of want.
func nativeJSON(t *testing.T, s *harness.Sidecar, method, body string, code int, want string) map[string]any {
	t.Helper()
	resp, got := harness.Do(t, "POST", s.URL("/mecha/v1/"+method), []byte(body), "Content-Type", "application/json")
	if resp.StatusCode != code {
		t.Fatalf("%s %s: status %d, %s; want %d", method, body, resp.StatusCode, got, code)
	}
	var has, wanted map[string]any
	if err := json.Unmarshal(got, &has); err != nil {
		t.Fatalf("%s: the answer is no JSON: %s", method, got)
	}
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		t.Fatal(err)
	}
	for k, v := range wanted {
		if fmt.Sprint(has[k]) != fmt.Sprint(v) {
			t.Errorf("%s %s: %s is %v, want %v (answer %s)", method, body, k, has[k], v, got)
		}
	}
	return has
}

func TestNativeState(t *testing.T) {
	t.Parallel()
	s, conn := native(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	state := mechav1.NewStateClient(conn)
	watch, err := state.Watch(ctx, &mechav1.WatchRequest{StoreName: "state", Prefix: "order/"})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := watch.Recv(); err != nil || !m.GetStarted() {
		t.Fatalf("the watch begins with %v, %v", m, err)
	}
	// Items of Dapr's API and of ours are the same.
	if resp, body := harness.Do(t, "POST", s.URL("/v1.0/state/state"), []byte(`[{"key":"order/1","value":"one"},{"key":"other","value":1}]`)); resp.StatusCode != 204 {
		t.Fatalf("save: %d %s", resp.StatusCode, body)
	}
	nativeJSON(t, s, "state/write", `{"storeName":"state","operations":[{"set":{"key":"order/2","value":"dHdv","ifAbsent":true}},{"set":{"key":"order/3","value":"dHJlcw=="}},{"remove":{"key":"order/1"}}]}`, 200, `{}`)
	changed := map[string]string{}
	for len(changed) < 3 || changed["order/1"] != "removed" {
		m, err := watch.Recv()
		if err != nil {
			t.Fatalf("after %v: %v", changed, err)
		}
		for _, c := range m.GetChanges() {
			changed[c.GetItem().GetKey()] = string(c.GetItem().GetValue())
			if c.GetRemoved() {
				changed[c.GetItem().GetKey()] = "removed"
			}
		}
	}
	if changed["order/2"] != "two" || changed["order/3"] != "tres" {
		t.Errorf("the watch tells of %v", changed)
	}
	seen := ""
	page := &mechav1.ScanRequest{StoreName: "state", Prefix: "order/", PageSize: 1}
	for {
		out, err := state.Scan(ctx, page)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range out.GetItems() {
			seen += fmt.Sprintf("%s=%s ", it.GetKey(), it.GetValue())
			if it.GetEtag() == "" {
				t.Error("an item without an etag")
			}
		}
		if page.PageToken = out.GetNextPageToken(); page.PageToken == "" {
			break
		}
	}
	if seen != "order/2=two order/3=tres " {
		t.Errorf("the scan gives %s", seen)
	}
	if out := nativeJSON(t, s, "State/Scan", `{"storeName":"state","keysOnly":true}`, 200, `{"nextPageToken":""}`); len(out["items"].([]any)) != 3 {
		t.Errorf("all keys: %v", out)
	}
	// The fence.
	write := `{"storeName":"state","operations":[{"set":{"key":"f","value":"dg=="}}],"ifEpoch":{"topic":"orders","partition":3,"epoch":"%d"}}`
	nativeJSON(t, s, "state/write", fmt.Sprintf(write, 5), 200, `{}`)
	nativeJSON(t, s, "state/write", fmt.Sprintf(write, 4), 412, `{"errorCode":"FENCED"}`)
	_, err = state.Write(ctx, &mechav1.WriteRequest{StoreName: "state", IfEpoch: &mechav1.Epoch{Topic: "orders", Partition: 3, Epoch: 4}})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a lower epoch: %v", err)
	}
	nativeJSON(t, s, "state/write", `{"storeName":"state","operations":[{"set":{"key":"order/2","value":"","ifAbsent":true}}]}`, 409, `{"errorCode":"CONFLICT"}`)
	for body, code := range map[string]string{
		`{"storeName":"none"}`:                         "404 NO_SUCH_COMPONENT",
		`{"storeName":"state","prefix":"a||b"}`:        "400 ILLEGAL_KEY",
		`{"storeName":"state","pageSize":1001}`:        "400 BAD_OPTION",
		`{"storeName":"state","pageToken":"nonsense"}`: "400 BAD_PAGE_TOKEN",
		`{"store":"state"}`:                            "400 ERR_MALFORMED_REQUEST",
		`[`:                                            "400 ERR_MALFORMED_REQUEST",
	} {
		resp, got := harness.Do(t, "POST", s.URL("/mecha/v1/state/scan"), []byte(body))
		var e struct{ ErrorCode, Message string }
		if err := json.Unmarshal(got, &e); err != nil || fmt.Sprint(resp.StatusCode, " ", e.ErrorCode) != code || e.Message == "" {
			t.Errorf("scan %s: %d %s, want %s", body, resp.StatusCode, got, code)
		}
	}
	nativeJSON(t, s, "state/query", `{}`, 404, `{"errorCode":"NO_SUCH_METHOD"}`)
	nativeJSON(t, s, "state/watch", `{}`, 404, `{"errorCode":"NO_SUCH_METHOD"}`)
	// A sidecar that stops ends its watches.
	s.Signal(syscall.SIGTERM)
	for {
		if _, err = watch.Recv(); err != nil {
			break
		}
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
	if code := s.Wait(20 * time.Second); code != 0 {
		t.Errorf("exit code %d\n%s", code, s.Log())
	}
}

func TestNativeLock(t *testing.T) {
	t.Parallel()
	s, conn := native(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	locks := mechav1.NewLockClient(conn)
	first := nativeJSON(t, s, "lock/acquire", `{"storeName":"locks","resourceId":"r","owner":"a","ttl":"30s"}`, 200, `{"acquired":true}`)
	nativeJSON(t, s, "lock/acquire", `{"storeName":"locks","resourceId":"r","owner":"b","ttl":"30s"}`, 200, `{"acquired":false,"fencingToken":"0"}`)
	// Dapr's API sees the same lock.
	if _, body := harness.Do(t, "POST", s.URL("/v1.0-alpha1/lock/locks"), []byte(`{"resourceId":"r","lockOwner":"c","expiryInSeconds":5}`)); !strings.Contains(string(body), "false") {
		t.Errorf("Dapr's lock of what is taken: %s", body)
	}
	waited := make(chan *mechav1.AcquireResponse, 1)
	go func() {
		out, err := locks.Acquire(ctx, &mechav1.AcquireRequest{StoreName: "locks", ResourceId: "r", Owner: "b", Ttl: durationpb.New(time.Minute), Wait: durationpb.New(20 * time.Second)})
		if err != nil {
			t.Error(err)
		}
		waited <- out
	}()
	nativeJSON(t, s, "lock/renew", `{"storeName":"locks","resourceId":"r","owner":"a","ttl":"60s"}`, 200, `{"held":true}`)
	nativeJSON(t, s, "lock/renew", `{"storeName":"locks","resourceId":"r","owner":"b","ttl":"60s"}`, 200, `{"held":false}`)
	nativeJSON(t, s, "lock/release", `{"storeName":"locks","resourceId":"r","owner":"b"}`, 200, `{"released":false}`)
	nativeJSON(t, s, "lock/release", `{"storeName":"locks","resourceId":"r","owner":"a"}`, 200, `{"released":true}`)
	second := <-waited
	if !second.GetAcquired() || fmt.Sprint(second.GetFencingToken()) <= first["fencingToken"].(string) && len(fmt.Sprint(second.GetFencingToken())) <= len(first["fencingToken"].(string)) {
		t.Errorf("who waited got %v, after token %v", second, first["fencingToken"])
	}
	nativeJSON(t, s, "lock/acquire", `{"storeName":"locks","resourceId":"r","owner":"b","ttl":"0.5s"}`, 400, `{"errorCode":"BAD_EXPIRY"}`)
	nativeJSON(t, s, "lock/acquire", `{"storeName":"locks","resourceId":"","owner":"b","ttl":"5s"}`, 400, `{"errorCode":"EMPTY_NAME"}`)
	nativeJSON(t, s, "lock/acquire", `{"storeName":"x","resourceId":"r","owner":"b","ttl":"5s"}`, 404, `{"errorCode":"NO_SUCH_COMPONENT"}`)
}

func TestNativeCache(t *testing.T) {
	t.Parallel()
	s, conn := native(t, "")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cache := mechav1.NewCacheClient(conn)
	watch, err := cache.Watch(ctx, &mechav1.CacheWatchRequest{CacheName: "cache"})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := watch.Recv(); err != nil || !m.GetAll() {
		t.Fatalf("the watch begins with %v, %v", m, err)
	}
	set := nativeJSON(t, s, "cache/set", `{"cacheName":"cache","key":"k","value":"dg==","options":{"ttl":"60s","tags":["x"]}}`, 200, `{}`)
	nativeJSON(t, s, "cache/get", `{"cacheName":"cache","key":"k"}`, 200, `{"status":"CACHE_STATUS_HIT","value":"dg==","version":"`+set["version"].(string)+`"}`)
	nativeJSON(t, s, "cache/get", `{"cacheName":"cache","key":"none"}`, 200, `{"status":"CACHE_STATUS_MISS"}`)
	nativeJSON(t, s, "cache/getMulti", `{"cacheName":"cache","keys":["k","none"]}`, 200, `{}`)
	nativeJSON(t, s, "cache/increment", `{"cacheName":"cache","key":"n","delta":"5","initial":"10"}`, 200, `{"value":"15"}`)
	nativeJSON(t, s, "cache/touch", `{"cacheName":"cache","key":"k","ttl":"90s"}`, 200, `{"found":true}`)
	nativeJSON(t, s, "cache/compareAndSet", `{"cacheName":"cache","key":"k","value":"dw==","version":"1z"}`, 200, `{"swapped":false}`)
	nativeJSON(t, s, "cache/setMulti", `{"cacheName":"cache","items":[{"key":"a","value":"MQ=="}]}`, 200, `{}`)
	nativeJSON(t, s, "cache/invalidate", `{"cacheName":"cache","tags":{"tags":["x"]}}`, 200, `{}`)
	nativeJSON(t, s, "cache/get", `{"cacheName":"cache","key":"k"}`, 200, `{"status":"CACHE_STATUS_MISS"}`)
	nativeJSON(t, s, "cache/delete", `{"cacheName":"cache","key":"a"}`, 200, `{}`)
	// One of many loads.
	leases, values := 0, 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			out, err := cache.GetOrLoad(ctx, &mechav1.CacheGetOrLoadRequest{CacheName: "cache", Namespace: "products", Key: "7"})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if out.GetLease() != nil {
				leases++
				fill, err := cache.Fill(ctx, &mechav1.CacheFillRequest{CacheName: "cache", Namespace: "products", Key: "7", Lease: out.GetLease().GetId(), Result: &mechav1.CacheFillRequest_Value{Value: []byte("shoe")}})
				if err != nil || !fill.GetStored() {
					t.Errorf("Fill: %v, %v", fill, err)
				}
			} else if string(out.GetEntry().GetValue()) == "shoe" {
				values++
			}
		})
	}
	wg.Wait()
	if leases != 1 || values != 49 {
		t.Errorf("%d leases and %d values, want 1 and 49", leases, values)
	}
	stats := nativeJSON(t, s, "cache/stats", `{"cacheName":"cache","namespace":"products"}`, 200, `{"loads":"1","nearEntries":"0"}`)
	t.Logf("stats: %v", stats)
	for body, code := range map[string]string{
		`{"cacheName":"none","key":"k"}`:                                                          `404 NO_SUCH_COMPONENT`,
		`{"cacheName":"cache","key":""}`:                                                          `400 EMPTY_NAME`,
		`{"cacheName":"cache","key":"a||b"}`:                                                      `400 ILLEGAL_KEY`,
		`{"cacheName":"cache","key":"k","options":{"ttl":"0s"}}`:                                  `400 BAD_EXPIRY`,
		`{"cacheName":"cache","key":"k","options":{"ttl":"-5s"}}`:                                 `400 BAD_EXPIRY`,
		`{"cacheName":"cache","key":"k","options":{"jitter":3}}`:                                  `400 BAD_OPTION`,
		`{"cacheName":"cache","key":"k","options":{"tier":"CACHE_TIER_NEAR"}}`:                    `501 UNSUPPORTED`,
		`{"cacheName":"cache","key":"k","options":{"tier":"SOMEWHERE"}}`:                          `400 ERR_MALFORMED_REQUEST`,
		`{"cacheName":"cache","key":"k","options":{"tags":["` + strings.Repeat("x", 200) + `"]}}`: `400 ILLEGAL_KEY`,
	} {
		resp, got := harness.Do(t, "POST", s.URL("/mecha/v1/cache/set"), []byte(body))
		var e struct{ ErrorCode, Message string }
		if err := json.Unmarshal(got, &e); err != nil || fmt.Sprint(resp.StatusCode, " ", e.ErrorCode) != code || e.Message == "" {
			t.Errorf("set %s: %d %s, want %s", body, resp.StatusCode, got, code)
		}
	}
	for keys := ""; !strings.Contains(keys, "k"); {
		m, err := watch.Recv()
		if err != nil {
			t.Fatalf("the watch ended before it told of k: %v", err)
		}
		keys += strings.Join(m.GetKeys(), " ")
	}
}

// The API lists know our services: mecha for all, mecha.cache for one.
func TestNativeLists(t *testing.T) {
	t.Parallel()
	s, conn := native(t, `apiVersion: dapr.io/v1alpha1
kind: Configuration
metadata: {name: c}
spec:
  api:
    allowed:
    - {name: mecha, version: v1, protocol: http}
    - {name: mecha.state, version: v1, protocol: grpc}
    denied:
    - {name: mecha.cache, version: v1, protocol: http}
`)
	nativeJSON(t, s, "lock/acquire", `{"storeName":"locks","resourceId":"r","owner":"a","ttl":"30s"}`, 200, `{"acquired":true}`)
	if resp, body := harness.Do(t, "POST", s.URL("/mecha/v1/cache/get"), []byte(`{"cacheName":"cache","key":"k"}`)); resp.StatusCode != 404 {
		t.Errorf("what is denied: %d %s", resp.StatusCode, body)
	}
	if resp, body := harness.Do(t, "GET", s.URL("/v1.0/state/state/k"), nil); resp.StatusCode != 404 {
		t.Errorf("Dapr's API, which is not allowed: %d %s", resp.StatusCode, body)
	}
	if _, err := mechav1.NewStateClient(conn).Scan(t.Context(), &mechav1.ScanRequest{StoreName: "state"}); err != nil {
		t.Errorf("what is allowed over gRPC: %v", err)
	}
	if _, err := mechav1.NewCacheClient(conn).Get(t.Context(), &mechav1.CacheGetRequest{CacheName: "cache", Key: "k"}); status.Code(err) != codes.Unimplemented {
		t.Errorf("what is not allowed over gRPC: %v", err)
	}
}
