package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	commonpb "github.com/dapr/dapr/pkg/proto/common/v1"
	runtimepb "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// row is a workload: what is asked of which processes.
type row struct {
	name     string
	base     string // the direct row it is compared with; empty: none
	plain    string // the same row without policy; empty: there is none
	app      string // role of the app at the end of the way; empty: none, or that of the sidecar
	sidecars []sidecarSpec
	sizes    []int
	callers  []int // empty: callerCounts
	// job makes the request for a payload. The first sidecar is the one the load talks to.
	job func(app string, s []*sidecar, size int) (*job, error)
	// prepare is the row that must have run before, for the same payload.
	prepare string
}

// cell is a row with a payload and a number of callers.
type cell struct {
	*row
	size, callers int
}

func (c *cell) id() string { return fmt.Sprintf("%s/%s/%d", c.name, sizeName(c.size), c.callers) }

func sizeName(n int) string {
	if n >= 1<<10 && n%(1<<10) == 0 {
		return strconv.Itoa(n>>10) + "KiB"
	}
	return strconv.Itoa(n) + "B"
}

// callerCounts are how many callers each row runs with: one, for latency, and many, for the
// cost per request.
var callerCounts = []int{1, 32}

var (
	allSizes  = []int{0, 1 << 10, 64 << 10}
	smallSize = []int{1 << 10}
)

// select returns the cells whose id matches.
func selectCells(rows []row, want *regexp.Regexp) []*cell {
	var out []*cell
	for i := range rows {
		for _, size := range rows[i].sizes {
			counts := rows[i].callers
			if len(counts) == 0 {
				counts = callerCounts
			}
			for _, n := range counts {
				if c := (&cell{&rows[i], size, n}); want.MatchString(c.id()) {
					out = append(out, c)
				}
			}
		}
	}
	return out
}

// The sidecars. Every store and broker has one of its own, so that none pays for another.
var (
	callerSide = sidecarSpec{name: "caller"}
	httpSide   = sidecarSpec{name: "callee-http", app: roleHTTP, protocol: "http"}
	policySide = sidecarSpec{name: "caller-policy", resource: fmt.Sprintf(fullPolicy, "service", httpSide.name) + endpointPolicy}
	grpcSide   = sidecarSpec{name: "callee-grpc", app: roleGRPC, protocol: "grpc"}
)

// allRows is everything that can be measured, except what an idle sidecar costs.
func allRows() []row {
	rows := []row{
		{name: "http/direct", app: roleHTTP, sizes: allSizes, job: func(app string, _ []*sidecar, size int) (*job, error) {
			return post(app, "/echo", payload("", size), 200, size), nil
		}},
		{name: "http/invoke", base: "http/direct", app: roleHTTP, sidecars: []sidecarSpec{callerSide, httpSide}, sizes: allSizes, job: invokeHTTP},
		{name: "http/invoke-policy", base: "http/direct", plain: "http/invoke", app: roleHTTP, sidecars: []sidecarSpec{policySide, httpSide}, sizes: smallSize, job: invokeHTTP},
		{name: "http/self", base: "http/direct", app: roleHTTP, sidecars: []sidecarSpec{httpSide}, sizes: smallSize, job: invokeHTTP},
		{name: "grpc/direct", app: roleGRPC, sizes: allSizes, job: func(app string, _ []*sidecar, size int) (*job, error) {
			return unary(app, echoMethod, payload("", size), size), nil
		}},
		{name: "grpc/proxy", base: "grpc/direct", app: roleGRPC, sidecars: []sidecarSpec{callerSide, grpcSide}, sizes: allSizes, job: proxyGRPC},
		{name: "grpc/self", base: "grpc/direct", app: roleGRPC, sidecars: []sidecarSpec{grpcSide}, sizes: smallSize, job: proxyGRPC},
	}
	rows = append(rows, stateRows("memory", "state.in-memory")...)
	rows = append(rows, stateRows(statePolicy, "state.in-memory")[2:]...) // HTTP is enough to see what policy costs
	rows = append(rows, stateRows("embedded", "state.embedded")...)
	rows = append(rows, redisRows()...)
	rows = append(rows, stateRows(stateRedis, "state.redis")...)
	rows = append(rows, cacheRows("memory", "cache.in-memory")...)
	rows = append(rows, cacheRows("embedded", "cache.embedded")...)
	rows = append(rows, cacheRows(stateRedis, "cache.redis")...)
	rows = append(rows, pubsubRows("memory", "pubsub.in-memory")...)
	rows = append(rows, pubsubRows("embedded", "pubsub.embedded")...)
	rows = append(rows, messagingRows("memory", "pubsub.in-memory")...)
	return append(rows, messagingRows("embedded", "pubsub.embedded")...)
}

// payload is text of a size that needs no escaping, beginning with head.
func payload(head string, size int) []byte {
	return append([]byte(head), bytes.Repeat([]byte("x"), max(0, size-len(head)))...)
}

func post(addr, path string, body []byte, status, reply int) *job {
	return &job{Kind: kindHTTP, Addr: addr, Verb: "POST", Path: path, Header: "Content-Type: application/octet-stream\r\n", Body: body, Status: status, Reply: reply}
}

func unary(addr, method string, body []byte, reply int) *job {
	return &job{Kind: kindGRPC, Addr: addr, Call: method, Body: body, Reply: reply}
}

// invokeHTTP calls the last sidecar's app through the first sidecar.
func invokeHTTP(_ string, s []*sidecar, size int) (*job, error) {
	return post(s[0].http, "/v1.0/invoke/"+s[len(s)-1].name+"/method/echo", payload("", size), 200, size), nil
}

// proxyGRPC is the same with a gRPC call that the sidecars pass through.
func proxyGRPC(_ string, s []*sidecar, size int) (*job, error) {
	j := unary(s[0].grpc, echoMethod, payload("", size), size)
	j.Metadata = map[string]string{"dapr-app-id": s[len(s)-1].name}
	return j, nil
}

// fullPolicy sets every part of a policy that acts on a call which succeeds.
const fullPolicy = `---
apiVersion: mecha.io/v1
kind: TrafficPolicy
metadata: {name: full}
spec:
  match: [{kind: %s, dest: %s}]
  rateLimit: {local: {tokens: 10000000}}
  timeout: {total: 10s, perTry: 5s}
  retry: {max: 2, backoff: {base: 25ms, max: 250ms}, budget: {ratio: 0.2, minPerSecond: 10}}
  limits: {maxRequests: 1024, maxPending: 1024, maxRetries: 32}
  breaker: {consecutiveFailures: 5, failureRate: 50}
`

// endpointPolicy adds the parts for what has endpoints to choose from.
const endpointPolicy = `  lb: {policy: least_request}
  outlier: {consecutive5xx: 5, failurePercentage: {minHosts: 3}}
`

const component = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: %s}\nspec: {type: %s, version: v1, metadata: []}\n"

// stateKey is a caller's own key, so that callers do not wait for each other's writes. Keys of
// one payload size are apart from those of another.
func stateKey(size int) string { return "key-" + sizeName(size) + "-" + callerMark }

const daprMethod = "/dapr.proto.runtime.v1.Dapr/"

// statePolicy is memory under a policy.
const statePolicy = "memory-policy"

// stateRedis is a store on a redis-server that the fleet starts. redisAddr stands for its address.
const (
	stateRedis = "redis"
	redisAddr  = "REDIS-ADDRESS"
)

func stateRows(name, kind string) []row {
	resource := fmt.Sprintf(component, "store", kind)
	if name == stateRedis {
		resource = strings.Replace(resource, "metadata: []", "metadata: [{name: redisHost, value: \""+redisAddr+"\"}]", 1)
	}
	plain := func(string) string { return "" }
	if name == statePolicy {
		resource += fmt.Sprintf(fullPolicy, "state", "store")
		plain = func(op string) string { return "state/memory/" + op }
	}
	spec := []sidecarSpec{{name: "state-" + name, resource: resource, node: name == "embedded"}}
	prefix := "state/" + name
	base := func(string) string { return "" }
	if name == stateRedis {
		base = func(op string) string { return "redis/" + op }
	}
	return []row{
		{name: prefix + "/grpc-set", base: base("set"), plain: plain("grpc-set"), sidecars: spec, sizes: smallSize, job: func(_ string, s []*sidecar, size int) (*job, error) {
			body, err := proto.Marshal(&runtimepb.SaveStateRequest{StoreName: "store", States: []*commonpb.StateItem{
				{Key: stateKey(size), Value: payload("", size)}}})
			return unary(s[0].grpc, daprMethod+"SaveState", body, 0), err
		}},
		{name: prefix + "/grpc-get", base: base("get"), plain: plain("grpc-get"), prepare: prefix + "/grpc-set", sidecars: spec, sizes: smallSize, job: func(_ string, s []*sidecar, size int) (*job, error) {
			body, err := proto.Marshal(&runtimepb.GetStateRequest{StoreName: "store", Key: stateKey(size)})
			return unary(s[0].grpc, daprMethod+"GetState", body, size), err
		}},
		{name: prefix + "/http-set", base: base("set"), plain: plain("http-set"), sidecars: spec, sizes: smallSize, job: func(_ string, s []*sidecar, size int) (*job, error) {
			body := fmt.Sprintf(`[{"key":"%s","value":"%s"}]`, stateKey(size), payload("", size))
			j := post(s[0].http, "/v1.0/state/store", []byte(body), 204, 0)
			j.Header = "Content-Type: application/json\r\n"
			return j, nil
		}},
		{name: prefix + "/http-get", base: base("get"), plain: plain("http-get"), prepare: prefix + "/http-set", sidecars: spec, sizes: smallSize, job: func(_ string, s []*sidecar, size int) (*job, error) {
			return &job{Kind: kindHTTP, Addr: s[0].http, Verb: "GET", Path: "/v1.0/state/store/" + stateKey(size), Status: 200, Reply: size}, nil
		}},
	}
}

// redisRows ask Redis directly, with the client library that the sidecar uses too.
func redisRows() []row {
	ask := func(op string) func(string, []*sidecar, int) (*job, error) {
		return func(addr string, _ []*sidecar, size int) (*job, error) {
			return &job{Kind: kindRedis, Addr: addr, Call: op, Path: stateKey(size), Body: payload("", size), Reply: size}, nil
		}
	}
	return []row{
		{name: "redis/set", app: roleRedis, sizes: smallSize, job: ask("set")},
		{name: "redis/get", app: roleRedis, prepare: "redis/set", sizes: smallSize, job: ask("get")},
	}
}

const cacheMethod = "/mecha.v1.Cache/"

// cacheRows read near entries, or those of a cache in memory; keys that nobody wrote; and a key that
// all callers want and that ends every 50 ms, so that one of them loads it and the others wait.
func cacheRows(name, kind string) []row {
	resource := fmt.Sprintf(component, "cache", kind)
	base := func(string) string { return "" }
	if name == stateRedis {
		resource = strings.Replace(resource, "metadata: []", "metadata: [{name: redisHost, value: \""+redisAddr+"\"}]", 1)
		base = func(op string) string { return "redis/" + op }
	}
	spec := []sidecarSpec{{name: "cache-" + name, resource: resource, node: name == "embedded"}}
	prefix := "cache/" + name
	get := func(key string, reply func(int) int) func(string, []*sidecar, int) (*job, error) {
		return func(_ string, s []*sidecar, size int) (*job, error) {
			body, err := proto.Marshal(&mechav1.CacheGetRequest{CacheName: "cache", Key: strings.ReplaceAll(key, "SIZE", sizeName(size))})
			return unary(s[0].grpc, cacheMethod+"Get", body, reply(size)), err
		}
	}
	return []row{
		{name: prefix + "/grpc-set", base: base("set"), sidecars: spec, sizes: smallSize, job: func(_ string, s []*sidecar, size int) (*job, error) {
			body, err := proto.Marshal(&mechav1.CacheSetRequest{CacheName: "cache", Key: stateKey(size), Value: payload("", size)})
			return unary(s[0].grpc, cacheMethod+"Set", body, 0), err
		}},
		{name: prefix + "/grpc-hit", base: base("get"), prepare: prefix + "/grpc-set", sidecars: spec, sizes: smallSize, job: get("key-SIZE-"+callerMark, func(size int) int { return size })},
		{name: prefix + "/grpc-miss", base: base("get"), sidecars: spec, sizes: smallSize, job: get("none-"+callerMark, func(int) int { return 0 })},
		{name: prefix + "/grpc-stampede", sidecars: spec, sizes: smallSize, job: func(_ string, s []*sidecar, size int) (*job, error) {
			body, err := proto.Marshal(&mechav1.CacheGetOrLoadRequest{CacheName: "cache", Key: "wanted-" + sizeName(size),
				Options: &mechav1.CacheOptions{Ttl: durationpb.New(50 * time.Millisecond), Jitter: proto.Float64(0)}})
			j := unary(s[0].grpc, cacheMethod+"GetOrLoad", body, 0)
			j.Kind, j.Reply = kindLoad, size
			return j, err
		}},
	}
}

// Topics: nobody subscribes to the one, the load process to the other.
const (
	topicUnheard   = "unheard"
	topicDelivered = "delivered"
)

const subscription = "---\napiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata: {name: bench}\nspec: {pubsubname: broker, topic: " + topicDelivered + ", routes: {default: /event}}\n"

func pubsubRows(name, kind string) []row {
	spec := []sidecarSpec{{name: "pubsub-" + name, app: roleLoad, protocol: "http",
		resource: fmt.Sprintf(component, "broker", kind) + subscription, node: name == "embedded"}}
	publish := func(s []*sidecar, topic string, size int) *job {
		j := post(s[0].http, "/v1.0/publish/broker/"+topic, payload(eventText, size), 204, 0)
		j.Header = "Content-Type: text/plain\r\n"
		return j
	}
	return []row{
		{name: "pubsub/" + name + "/publish", sidecars: spec, sizes: smallSize, job: func(_ string, s []*sidecar, size int) (*job, error) {
			return publish(s, topicUnheard, size), nil
		}},
		{name: "pubsub/" + name + "/deliver", sidecars: spec, sizes: smallSize, job: func(_ string, s []*sidecar, size int) (*job, error) {
			j := publish(s, topicDelivered, size)
			j.Kind = kindDeliver
			return j, nil
		}},
	}
}

// messagingRows speak the native API: a consumer that acknowledges each frame, a publisher that sends batches
// ahead, and messages that are waited for.
func messagingRows(name, kind string) []row {
	component := func(metadata string) string {
		return strings.Replace(fmt.Sprintf(component, "broker", kind), "metadata: []", "metadata: ["+metadata+"]", 1)
	}
	keeps := `{name: partitions, value: "8"}`
	if name == "memory" { // what was consumed stays
		keeps += fmt.Sprintf(`, {name: history, value: "%d"}, {name: maxMessages, value: "%d"}, {name: maxBytes, value: 256Mi}`, 2*filled, 2*filled)
	}
	node := name == "embedded"
	spec := []sidecarSpec{{name: "messaging-" + name, resource: component(""), node: node}}
	full := []sidecarSpec{{name: "messaging-" + name + "-full", resource: component(keeps), node: node}}
	prefix := "messaging/" + name
	message := func(kind, topic string, body func(int) []byte) func(string, []*sidecar, int) (*job, error) {
		return func(_ string, s []*sidecar, size int) (*job, error) {
			return &job{Kind: kind, Addr: s[0].grpc, Topic: topic, Dir: s[0].data, Body: body(size), Patience: streamPatience}, nil
		}
	}
	plain := func(size int) []byte { return payload("", size) }
	marked := func(size int) []byte { return payload(eventText, size) }
	one, small := []int{1}, []int{256}
	rows := []row{
		{name: prefix + "/consume", sidecars: full, sizes: small, callers: one, job: message(kindRead, "filled", plain)},
		{name: prefix + "/publish", sidecars: spec, sizes: small, callers: one, job: message(kindStream, topicUnheard, plain)},
		{name: prefix + "/publish-deliver", sidecars: spec, sizes: small, job: message(kindPost, topicDelivered, marked)},
	}
	if node {
		rows[2].base = prefix + "/direct"
		rows = append(rows, row{name: rows[2].base, sidecars: spec, sizes: small, job: message(kindDirect, "", marked)})
	}
	return rows
}

// streamPatience is how long it may take beside what is measured: a topic is filled first.
const streamPatience = 60 * time.Second
