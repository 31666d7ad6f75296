package telemetry

import (
	"strconv"
	"time"
)

// This file records what the edges see: requests to the API and calls to the app.

func (m *Metrics) makeHTTPGroups() {
	pathValues := func(k key) []string {
		return []string{k.a, label{k.b, k.c, k.d}.String(), strconv.Itoa(k.n)}
	}
	over := func(k key) key { return key{a: Overflow, b: Overflow, n: k.n} }

	m.pair(&m.httpServer, httpServerRequests, httpServerLatency, over, pathValues)
	if m.paths.low {
		m.families[httpServerResponses].from = nil
	} else if !m.derive(httpServerResponses, httpServerLatency) {
		build := m.httpServer.build
		m.setup(&m.httpServer, over, func(k key) entry {
			e := build(k)
			e.more[0] = m.families[httpServerResponses].at(pathValues(k)...)
			return e
		}, httpServerRequests, httpServerLatency, httpServerResponses)
	}

	m.pair(&m.httpClient, httpClientCompleted, httpClientLatency, over, pathValues)
	build := m.httpClient.build
	m.setup(&m.httpClient, over, func(k key) entry {
		e := build(k)
		v := pathValues(k)
		v[2] = "" // Dapr records sizes before it knows the status
		e.more[0] = m.families[httpClientSent].at(v...)
		return e
	}, httpClientCompleted, httpClientLatency, httpClientSent)

	m.pair(&m.httpProbe, httpProbes, httpProbeLatency, same, func(k key) []string {
		return []string{strconv.Itoa(k.n)}
	})
}

// same is the overflow key of groups whose keys are closed sets.
func same(k key) key { return k }

// verb is the method label.
func (m *Metrics) verb(method string) string {
	if m.noVerbs {
		return ""
	}
	return method
}

// HTTPServer records one finished request to the HTTP API: its path without query, the status
// answered, the bytes of both bodies and the time until the response had been written.
func (m *Metrics) HTTPServer(method, path string, status int, received, sent int64, d time.Duration) {
	if m == nil {
		return
	}
	l := m.paths.server(path)
	e := m.httpServer.entry(key{m.verb(method), l.head, l.mid, l.tail, status})
	shard := pick()
	e.latency.took(shard, d)
	if e.count != nil {
		e.count.inc(shard)
	}
	if e.more[0] != nil {
		e.more[0].inc(shard)
	}
	m.families[httpServerRequestBytes].only().bytes(shard, received)
	m.families[httpServerResponseBytes].only().bytes(shard, sent)
}

// HTTPClient records one request to an HTTP app: path, status answered, bytes of both bodies,
// time until the response was read. Health probes go to HTTPHealthProbe instead.
func (m *Metrics) HTTPClient(method, path string, status int, sent, received int64, d time.Duration) {
	if m == nil {
		return
	}
	l := m.paths.client(path)
	e := m.httpClient.entry(key{m.verb(method), l.head, l.mid, l.tail, status})
	shard := pick()
	e.latency.took(shard, d)
	if e.count != nil {
		e.count.inc(shard)
	}
	e.more[0].bytes(shard, sent)
	m.families[httpClientReceived].only().bytes(shard, received)
}

// HTTPHealthProbe records one answered health probe of an HTTP app.
func (m *Metrics) HTTPHealthProbe(status int, d time.Duration) {
	if m != nil {
		m.httpProbe.took(key{n: status}, d)
	}
}

// grpcCodes are the names of gRPC's status codes as labels.
var grpcCodes = [...]string{
	"OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
	"PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange",
	"Unimplemented", "Internal", "Unavailable", "DataLoss", "Unauthenticated",
}

// grpcCode names a status code; unknown numbers come from a peer and share one name.
func grpcCode(n int) string {
	if n >= 0 && n < len(grpcCodes) {
		return grpcCodes[n]
	}
	return "Unknown"
}

func (m *Metrics) makeGRPCGroups() {
	m.makeRPC(&m.grpcServer, grpcServerCompleted, grpcServerLatency, grpcServerReceived, grpcServerSent)
	m.makeRPC(&m.grpcClient, grpcClientCompleted, grpcClientLatency, grpcClientReceived, grpcClientSent)
	m.pair(&m.grpcProbe, grpcProbes, grpcProbeLatency, same, func(k key) []string {
		return []string{grpcCode(k.n)}
	})
}

func (m *Metrics) makeRPC(g *group, count, latency, received, sent metric) {
	over := func(k key) key { return key{a: Overflow, n: k.n} }
	m.pair(g, count, latency, over, func(k key) []string { return []string{k.a, grpcCode(k.n)} })
	build := g.build
	m.setup(g, over, func(k key) entry {
		e := build(k)
		e.more = [2]*series{m.families[received].at(k.a), m.families[sent].at(k.a)}
		return e
	}, count, latency, received, sent)
}

// rpc records one ended gRPC call.
func (g *group) rpc(method string, code uint32, received, sent int64, d time.Duration) {
	if code >= uint32(len(grpcCodes)) {
		code = 2 // unknown: a peer must not make series of arbitrary numbers
	}
	e := g.entry(key{a: method, n: int(code)})
	shard := pick()
	e.latency.took(shard, d)
	if e.count != nil {
		e.count.inc(shard)
	}
	e.more[0].bytes(shard, received)
	e.more[1].bytes(shard, sent)
}

// GRPCServer records one call of the gRPC API that ended: its full method with leading slash,
// the numeric status code, and the bytes of all messages in each direction.
func (m *Metrics) GRPCServer(fullMethod string, code uint32, received, sent int64, d time.Duration) {
	if m != nil {
		m.grpcServer.rpc(fullMethod, code, received, sent, d)
	}
}

// GRPCClient records one gRPC call to the app or the control plane that ended. Calls between
// sidecars are recorded by the Invoke methods instead.
func (m *Metrics) GRPCClient(fullMethod string, code uint32, sent, received int64, d time.Duration) {
	if m != nil {
		m.grpcClient.rpc(fullMethod, code, received, sent, d)
	}
}

// GRPCHealthProbe records one answered health probe of a gRPC app.
func (m *Metrics) GRPCHealthProbe(code uint32, d time.Duration) {
	if m != nil {
		m.grpcProbe.took(key{n: int(min(code, uint32(len(grpcCodes))))}, d)
	}
}
