// Package dns is a registry over the domain name system: an app id becomes a host name by a
// template, the host's addresses are the app's instances. It suits Kubernetes headless
// services, Consul's and other registries' DNS side, and plain zones.
//
// With a port in the template the name's A and AAAA records are asked for; without one its
// SRV records, which carry ports and weights themselves. Answers are kept as long as their
// TTL says and no longer; nothing is announced.
//
// Start reading at Config, then registry; template.go makes names, lookup.go asks the name
// servers, cache.go remembers.
package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

const (
	doc     = "Registry over DNS: app ids become host names by a template; A, AAAA or SRV records."
	kubeDoc = "Registry over the DNS of Kubernetes services, with Dapr's service names as default."
)

// Backend lists the parts: the registry, and the same with Dapr's defaults under the name
// that Dapr's Configuration resources use.
func Backend() block.Backend {
	return block.Backend{Name: "dns", Doc: doc, Parts: []block.Part{
		block.RegistryPart("dns", doc, DefaultConfig, New),
		block.RegistryPart("kubernetes", kubeDoc, DefaultKubernetesConfig, New),
	}}
}

// Config configures the registry over DNS.
type Config struct {
	// Template makes the name to ask for. It may hold {{.ID}} (the app id), {{.Namespace}},
	// {{.ClusterDomain}} and {{.Port}}. With a port, as in "host:{{.Port}}", addresses are
	// asked for; without one, SRV records.
	Template string `yaml:"template"`
	// ClusterDomain fills {{.ClusterDomain}}.
	ClusterDomain string `yaml:"clusterDomain"`
	// Port fills {{.Port}}: the peer port of the sidecars asked for.
	Port int `yaml:"port"`
	// Protocol is what the peer ports speak.
	Protocol string `yaml:"protocol" enum:"mecha,dapr"`
	// Family limits addresses to one IP version.
	Family string `yaml:"family" enum:"any,ipv4,ipv6"`
	// Resolvers are the name servers to ask, in order, as host:port or host. Empty means those of
	// /etc/resolv.conf, with its search list.
	Resolvers []string `yaml:"resolvers" alias:"resolver"`
	// Timeout bounds one question to one name server. A bare number counts seconds.
	Timeout time.Duration `yaml:"timeout" unit:"s"`
}

// DefaultConfig is the configuration with nothing set.
func DefaultConfig() *Config {
	return &Config{Template: "{{.ID}}-mecha.{{.Namespace}}.svc.{{.ClusterDomain}}:{{.Port}}", ClusterDomain: "cluster.local",
		Port: 50002, Protocol: "mecha", Family: "any", Timeout: 2 * time.Second}
}

// DefaultKubernetesConfig is DefaultConfig with the service names that Dapr's operator makes.
func DefaultKubernetesConfig() *Config {
	c := DefaultConfig()
	c.Template = "{{.ID}}-dapr.{{.Namespace}}.svc.{{.ClusterDomain}}:{{.Port}}"
	return c
}

// Validate reports every mistake in the configuration.
func (c *Config) Validate() error {
	var errs []error
	if c.Port < 1 || c.Port > 65535 {
		errs = append(errs, conf.Bad("port", "%d is not a port; want 1 to 65535", c.Port))
	}
	if c.Timeout <= 0 {
		errs = append(errs, conf.Bad("timeout", "%v is not a time to wait; want more than 0", c.Timeout))
	}
	if _, err := c.expand(block.Name{App: "app", Namespace: "ns"}); err != nil {
		errs = append(errs, conf.Bad("template", "%v", err))
	}
	for _, r := range c.Resolvers {
		if _, err := serverAddress(r); err != nil {
			errs = append(errs, conf.Bad("resolvers", "%v", err))
		}
	}
	return errors.Join(errs...)
}

// serverAddress completes a name server's address with port 53.
func serverAddress(s string) (string, error) {
	if net.ParseIP(s) != nil {
		return net.JoinHostPort(s, "53"), nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = s, "53"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return "", fmt.Errorf("%q is not a name server; write host or host:port", s)
	}
	return net.JoinHostPort(host, port), nil
}

var _ block.Registry = (*registry)(nil)

const (
	opPing    fault.Op = "dns.registry.Ping"
	opResolve fault.Op = "dns.registry.Resolve"
)

// registry asks name servers.
type registry struct {
	config Config
	ask    asker
	cache  *cache
	closed atomic.Bool
}

// New opens the registry. It asks nobody: the first use does.
func New(_ block.Env, c *Config) (block.Registry, error) {
	if err := c.Validate(); err != nil {
		return nil, fault.Wrap("dns.New", fault.Invalid, err)
	}
	r := &registry{config: *c, ask: asker{timeout: c.Timeout}, cache: newCache()}
	r.config.Resolvers = nil
	for _, s := range c.Resolvers {
		addr, _ := serverAddress(s) // validated above
		r.config.Resolvers = append(r.config.Resolvers, addr)
	}
	r.ask.fixed = r.config.Resolvers
	return r, nil
}

// Ping checks that a name server answers something.
func (r *registry) Ping(ctx context.Context) error {
	if err := r.ready(ctx, opPing); err != nil {
		return err
	}
	return fault.Wrap(opPing, fault.Unavailable, r.ask.ping(ctx))
}

func (r *registry) ready(ctx context.Context, op fault.Op) error {
	if r.closed.Load() {
		return fault.New(op, fault.Unavailable, "the registry is closed").WithSent(fault.SentNever)
	}
	return fault.Wrap(op, fault.Canceled, ctx.Err())
}

// Resolve looks the name up, or takes the answer that is still valid.
func (r *registry) Resolve(ctx context.Context, name block.Name) ([]block.Instance, error) {
	if err := r.ready(ctx, opResolve); err != nil {
		return nil, err
	}
	q, err := r.config.expand(name)
	if err != nil {
		return nil, fault.Wrap(opResolve, fault.Invalid, err)
	}
	a, ok := r.cache.get(q.String(), time.Now())
	if !ok {
		if a, err = r.lookup(ctx, q); err != nil {
			if ctx.Err() != nil {
				err = ctx.Err()
			}
			return nil, fault.Wrap(opResolve, fault.Unavailable, fmt.Errorf("look up %s: %w", q, err))
		}
		r.cache.put(q.String(), a, time.Now())
	}
	out := make([]block.Instance, 0, len(a.places))
	for _, p := range a.places {
		out = append(out, block.Instance{ID: name.App + "." + name.Namespace + "@" + p.address, App: name.App,
			Namespace: name.Namespace, Address: p.address, Protocol: r.config.Protocol, Weight: p.weight})
	}
	return out, nil
}

func (r *registry) lookup(ctx context.Context, q question) (answer, error) {
	if ip := net.ParseIP(q.host); ip != nil { // a template may be a fixed address
		return answer{places: []place{{q.String(), 1}}, ttl: maxTTL}, nil
	}
	if q.port == "" {
		return r.services(ctx, q.host)
	}
	a, err := r.addresses(ctx, q.host)
	if err != nil {
		return answer{}, err
	}
	return a.withPort(q.port, 1), nil
}

// services follows SRV records: the most wanted priority alone, each target with all of
// its addresses.
func (r *registry) services(ctx context.Context, host string) (answer, error) {
	targets, ttl, err := r.ask.srv(ctx, host, r.config.Family)
	if err != nil {
		return answer{}, err
	}
	out := answer{ttl: ttl}
	for _, t := range targets {
		a := t.known
		if len(a.places) == 0 {
			if a, err = r.addresses(ctx, t.host); err != nil {
				return answer{}, fmt.Errorf("its target %s: %w", t.host, err)
			}
		}
		a = a.withPort(t.port, t.weight)
		out.places = append(out.places, a.places...)
		out.ttl = min(out.ttl, a.ttl)
	}
	return out.sorted(), nil
}

func (r *registry) addresses(ctx context.Context, host string) (answer, error) {
	return r.ask.addresses(ctx, host, r.config.Family)
}

// Close forgets everything. Lookups in flight end by their own time limits.
func (r *registry) Close(context.Context) error {
	r.closed.Store(true)
	return nil
}

// answer is a list of places and how long it is valid.
type answer struct {
	places []place
	ttl    time.Duration
}

// place is one address: a bare IP until withPort, then host:port.
type place struct {
	address string
	weight  int
}

func (a answer) withPort(port string, weight int) answer {
	out := answer{ttl: a.ttl}
	for _, p := range a.places {
		out.places = append(out.places, place{net.JoinHostPort(p.address, port), max(weight, 1)})
	}
	return out.sorted()
}

// sorted removes doubles and gives a steady order: name servers rotate theirs.
func (a answer) sorted() answer {
	slices.SortFunc(a.places, func(x, y place) int {
		if x.address < y.address {
			return -1
		}
		if x.address > y.address {
			return 1
		}
		return y.weight - x.weight
	})
	a.places = slices.CompactFunc(a.places, func(x, y place) bool { return x.address == y.address })
	return a
}
