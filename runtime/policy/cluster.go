package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/balance"
	"github.com/mecha-project/mecha/runtime/policy/health"
	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

// balancing chooses among the endpoints of a service, watches how they fare and asks them.
func balancing(b *builder) (does, field string) {
	if !b.service() || (b.r.LB == nil && b.r.Outlier == nil && b.r.Health == nil && !b.subsets()) {
		return "", ""
	}
	cfg, words := b.balanceConfig()
	p := &picker{e: b.e, target: b.t, cfg: cfg, outlier: b.r.Outlier, health: b.r.Health,
		name: b.stateKey("cluster", b.r.source("lb")+ruleSep+b.r.source("outlier")+ruleSep+b.r.source("health")), rule: b.r.source("outlier")}
	if b.r.LB != nil {
		p.hash, p.sticky = compileHash(b.r.LB.Hash), b.r.LB.Sticky
	}
	if p.sticky != nil {
		before := b.c.Answer
		b.c.Answer = func(c *call.Call, h *call.Fields) {
			if before != nil {
				before(c, h)
			}
			p.stick(c, h)
		}
	}
	b.c.Balance = p
	switch {
	case b.r.LB != nil:
		field = "lb"
	case b.r.Outlier != nil:
		field = "outlier"
	case b.r.Health != nil:
		field = "health"
	default:
		field = "route"
	}
	if b.r.Outlier != nil {
		words += ", ejects outliers"
	}
	if b.r.Health != nil {
		words += ", checks health"
	}
	return words, field
}

// subsets tells whether routes choose among a destination's endpoints.
func (b *builder) subsets() bool {
	return slices.ContainsFunc(b.r.Route, func(d Destination) bool { return d.Subset != "" })
}

// balanceConfig is LB in the balancer's own terms.
func (b *builder) balanceConfig() (balance.Config, string) {
	cfg := balance.Config{Panic: 50}
	l := b.r.LB
	if l == nil {
		return cfg, cfg.Policy.String()
	}
	if l.Policy != "" {
		cfg.Policy, _ = balance.ParsePolicy(l.Policy)
	}
	cfg.Choices, cfg.SlowStart, cfg.Zone = l.Choices, l.SlowStart, l.Zone
	if l.Panic != nil {
		cfg.Panic = *l.Panic
	}
	if l.Locality != "" {
		cfg.Locality, _ = balance.ParseLocality(l.Locality)
	}
	if cfg.Zone == "" {
		cfg.Zone = b.e.o.Zone
	}
	return cfg, cfg.Policy.String()
}

// picker is the balancer of one target's policy: a cluster for each destination its routes have.
type picker struct {
	e       *Engine
	known   sync.Map // destination → *cluster
	target  *call.Target
	name    string
	rule    string
	cfg     balance.Config
	outlier *outlier.Config
	health  *health.Config
	hash    []func(*call.Call) (string, bool)
	sticky  *Sticky
}

// Pick implements call.Balancer.
func (p *picker) Pick(c *call.Call, t *call.Try, dest string, from *call.Endpoints) (at int, pick call.Pick, ok bool) {
	cl := p.cluster(dest)
	v := cl.view(from)
	if cl.checks != nil {
		cl.checks.Used()
	}
	req := balance.Request{Sticky: p.stuck(c)}
	req.Hash, req.Hashed = p.hashOf(c)
	if subset := t.Subset; subset != nil {
		req.Filter = func(h *balance.Host) bool { return subset.In(v.labels(h.ID())) }
	}
	var tried [4]*balance.Host
	req.Tried = tried[:0]
	for _, id := range c.Tried() {
		if h, ok := cl.hosts.Host(id); ok {
			req.Tried = append(req.Tried, h)
		}
	}
	host, ok := cl.hosts.Pick(req)
	if !ok {
		return 0, nil, false
	}
	e := v.by[host.ID()]
	if e == nil { // it left the list a moment ago
		return 0, nil, false
	}
	if slices.Contains(t.Went(), host.ID()) {
		return 0, nil, false // all have been tried
	}
	return e.at, e, true
}

// cluster finds the cluster of a destination, which outlives chains.
func (p *picker) cluster(dest string) *cluster {
	if cl, ok := p.known.Load(dest); ok {
		return cl.(*cluster)
	}
	dest = strings.Clone(dest)
	cl := kept(p.e, p.name+"/"+dest, func() *cluster { return newCluster(p, dest) })
	cl.configure(p)
	p.known.Store(dest, cl)
	return cl
}

// cluster is a destination's endpoints and how they fare.
type cluster struct {
	name   string
	hosts  *balance.Cluster
	outs   *outlier.Detector // nil: no outlier detection
	checks *health.Checker   // nil: no checks
	now    atomic.Pointer[view]
	mu     sync.Mutex // serialises changes of now
	cfg    atomic.Pointer[balance.Config]
}

func newCluster(p *picker, dest string) *cluster {
	cl := &cluster{name: dest, hosts: balance.New(p.cfg)}
	cl.cfg.Store(&p.cfg)
	if p.outlier != nil {
		cl.outs = outlier.New(*p.outlier, func(id string, ejected bool) {
			if h, ok := cl.hosts.Host(id); ok {
				h.SetEjected(ejected)
			}
		}, func(e outlier.Event) { p.e.ejected(p.rule, dest, e) })
	}
	if p.health != nil && p.e.o.Probe != nil {
		path := p.health.Path
		cl.checks = health.New(*p.health, func(ctx context.Context, id string) error {
			v := cl.now.Load()
			if v == nil || v.by[id] == nil {
				return nil
			}
			return p.e.o.Probe(ctx, dest, v.from.All[v.by[id].at], path)
		}, func(id string, failing bool) {
			if h, ok := cl.hosts.Host(id); ok {
				h.SetFailing(failing)
			}
		}, func(ev health.Event) {
			// A check that reached the app proves more than a connection does.
			if ev.Err == nil && !ev.Failing && path != "" && cl.outs != nil {
				cl.outs.Uneject(ev.Host)
			}
			p.e.checked(dest, ev)
		})
	}
	return cl
}

// configure brings a cluster that was there before under a policy that may have changed.
func (cl *cluster) configure(p *picker) {
	cl.mu.Lock()
	defer cl.mu.Unlock()
	cl.cfg.Store(&p.cfg)
	cl.now.Store(nil) // the next pick updates the balancer
	if cl.outs != nil {
		cl.outs.Reconfigure(*p.outlier)
	}
	if cl.checks != nil {
		cl.checks.Reconfigure(*p.health)
	}
}

// Close ends what runs in the background.
func (cl *cluster) Close() {
	if cl.outs != nil {
		cl.outs.Close()
	}
	if cl.checks != nil {
		cl.checks.Close()
	}
}

// view is the cluster for one list of endpoints.
type view struct {
	from *call.Endpoints
	by   map[string]*endpoint
}

func (v *view) labels(id string) map[string]string {
	if e := v.by[id]; e != nil {
		return v.from.All[e.at].Labels
	}
	return nil
}

// view brings the cluster up to a list of endpoints.
func (cl *cluster) view(from *call.Endpoints) *view {
	if v := cl.now.Load(); v != nil && v.from == from {
		return v
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	old := cl.now.Load()
	if old != nil && old.from == from {
		return old
	}
	eps := make([]balance.Endpoint, len(from.All))
	ids := make([]string, len(from.All))
	for i, e := range from.All {
		eps[i] = balance.Endpoint{ID: e.ID, Weight: e.Weight, Zone: e.Zone}
		ids[i] = e.ID
	}
	cl.hosts.Update(*cl.cfg.Load(), eps)
	if cl.outs != nil {
		cl.outs.Keep(ids)
	}
	v := &view{from: from, by: make(map[string]*endpoint, len(ids))}
	for i, id := range ids {
		host, ok := cl.hosts.Host(id)
		if !ok {
			continue
		}
		e := &endpoint{at: i, host: host}
		if cl.outs != nil {
			e.out = cl.outs.Host(id)
		}
		v.by[id] = e
	}
	cl.now.Store(v)
	if cl.checks != nil {
		cl.checks.Keep(ids)
	}
	return v
}

// endpoint is one endpoint in a view: where its calls are counted.
type endpoint struct {
	at   int
	host *balance.Host
	out  *outlier.Host
}

// Begin implements call.Pick.
func (e *endpoint) Begin() { e.host.Begin() }

// End implements call.Pick.
func (e *endpoint) End(took time.Duration, o call.Outcome) {
	e.host.End(took, !o.Failed())
	if e.out != nil {
		e.out.Report(outlierResult(o))
	}
}

// outlierResult is an outcome in the words of outlier detection.
func outlierResult(o call.Outcome) outlier.Result {
	switch o {
	case call.AppError:
		return outlier.Failure5xx
	case call.Unavailable:
		return outlier.FailureGateway
	case call.ConnectFailure, call.Reset, call.Deadline:
		return outlier.FailureLocal
	case call.Canceled, call.Rejected:
		return outlier.Neutral
	}
	return outlier.Success
}

// compileHash reads what to hash.
func compileHash(keys []HashKey) (out []func(*call.Call) (string, bool)) {
	for _, k := range keys {
		switch {
		case k.Header != "":
			out = append(out, func(c *call.Call) (string, bool) { return lookup(c, k.Header) })
		case k.Cookie != "":
			out = append(out, func(c *call.Call) (string, bool) { return cookie(c, k.Cookie) })
		default:
			of := keyOf(k.Word)
			out = append(out, func(c *call.Call) (string, bool) { v := of(c); return v, v != "" })
		}
	}
	return out
}

func (p *picker) hashOf(c *call.Call) (uint64, bool) {
	for _, of := range p.hash {
		if v, ok := of(c); ok {
			return hashString(v), true
		}
	}
	return 0, false
}

func lookup(c *call.Call, header string) (string, bool) {
	if c.Attrs == nil {
		return "", false
	}
	return c.Attrs.Lookup(header)
}

// cookie finds one in the Cookie header.
func cookie(c *call.Call, name string) (string, bool) {
	all, ok := lookup(c, "cookie")
	if !ok {
		return "", false
	}
	for part := range strings.SplitSeq(all, ";") {
		if n, v, ok := strings.Cut(strings.TrimSpace(part), "="); ok && n == name {
			return v, true
		}
	}
	return "", false
}

// stuck is the endpoint a client belongs to, by what it sent.
func (p *picker) stuck(c *call.Call) string {
	if p.sticky == nil {
		return ""
	}
	if p.sticky.Header != "" {
		v, _ := lookup(c, p.sticky.Header)
		return v
	}
	v, _ := cookie(c, p.sticky.Cookie)
	return v
}

// stick tells a client which endpoint it belongs to from now on.
func (p *picker) stick(c *call.Call, h *call.Fields) {
	went := c.Try().Went()
	if len(went) == 0 {
		return
	}
	id := went[len(went)-1]
	switch {
	case p.sticky.Header != "":
		h.Set(p.sticky.Header, id)
	case p.stuck(c) != id:
		text := p.sticky.Cookie + "=" + id + "; Path=/; HttpOnly"
		if p.sticky.TTL > 0 {
			text += fmt.Sprintf("; Max-Age=%d", int(p.sticky.TTL.Seconds()))
		}
		h.Add("Set-Cookie", text)
	}
}
