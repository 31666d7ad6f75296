package telemetry

import (
	"fmt"
	"hash/maphash"
	"regexp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/mecha-project/mecha/components/fault"
)

// DefaultSeries is the limit of series per metric when MetricsOptions sets none. It is far
// above what a well-labelled app needs and bounds each metric to a few megabytes.
const DefaultSeries = 2000

// MetricsOptions say how metrics are labelled. The zero value is Dapr's default.
type MetricsOptions struct {
	AppID     string
	Namespace string // the environment's NAMESPACE; empty stays empty

	// LowCardinality is metrics.http.increasedCardinality: false. Paths then have no label
	// unless they match a pattern, and dapr_http_server_response_count does not exist.
	LowCardinality bool
	// PathMatching are the patterns of metrics.http.pathMatching, like /orders/{id}.
	PathMatching []string
	// ExcludeVerbs leaves the method label of HTTP metrics empty.
	ExcludeVerbs bool
	// RecordErrorCodes turns dapr_error_code_total on.
	RecordErrorCodes bool
	// LatencyBuckets replace the default upper bounds of latency histograms, in milliseconds.
	LatencyBuckets []float64
	// Rules rewrite label values (metrics.rules).
	Rules []MetricRule
	// MaxSeries limits the series of each metric. Zero means DefaultSeries. What comes after is
	// counted under the label value Overflow.
	MaxSeries int
}

// MetricRule rewrites label values of one metric, named with or without its dapr_ prefix.
type MetricRule struct {
	Metric string
	Labels []LabelRule
}

// LabelRule rewrites the values of one label. In Regex the key is the replacement (which may
// use $1) and the value the expression, as in Dapr's Configuration.
type LabelRule struct {
	Name  string
	Regex map[string]string
}

// Metrics records under Dapr's metric names. A nil *Metrics records nothing; all methods are
// safe for concurrent use. Methods copy the strings they keep, so callers may pass strings that
// live in reused buffers. A series appears with its first event.
type Metrics struct {
	families   [numMetrics]family
	paths      paths
	noVerbs    bool
	errorCodes bool
	limit      int

	httpServer, httpClient, httpProbe group
	grpcServer, grpcClient, grpcProbe group

	state, config, secret, crypto, conversation      group
	inputBinding, outputBinding, job, cache          group
	ingress, egress, bulkIngress, bulkEgress         group
	answer                                           group // answers to invocations
	workflowOp, workflowRun, activityRun, activityOp group
	single                                           group // every metric that is recorded alone

}

const opMetrics fault.Op = "telemetry.metrics"

// NewMetrics makes the metrics of one sidecar. An error names the rule, pattern or bucket list
// that is wrong.
func NewMetrics(o MetricsOptions) (*Metrics, error) {
	m := &Metrics{noVerbs: o.ExcludeVerbs, errorCodes: o.RecordErrorCodes, limit: o.MaxSeries}
	if m.limit <= 0 {
		m.limit = DefaultSeries
	}
	var err error
	m.paths.low = o.LowCardinality
	if m.paths.patterns, err = parsePatterns(o.PathMatching); err != nil {
		return nil, err
	}
	latency, err := latencyBounds(o.LatencyBuckets)
	if err != nil {
		return nil, err
	}
	m.makeFamilies(o, latency)
	if err := m.applyRules(o.Rules); err != nil {
		return nil, err
	}
	m.makeGroups()
	return m, nil
}

// latencyBounds converts bounds to nanoseconds and checks their order.
func latencyBounds(ms []float64) ([]uint64, error) {
	if len(ms) == 0 {
		ms = millisecondBounds
	}
	out := make([]uint64, len(ms))
	for i, b := range ms {
		if !(b > 0) || b > 1e12 || i > 0 && b <= ms[i-1] {
			return nil, fault.New(opMetrics, fault.Invalid,
				"metrics.latencyDistributionBuckets: %v is out of place; write milliseconds above 0, each larger than the one before", b)
		}
		out[i] = uint64(b * float64(time.Millisecond))
	}
	return out, nil
}

func (m *Metrics) makeFamilies(o MetricsOptions, latency []uint64) {
	sizes := make([]uint64, len(byteBounds))
	for i, b := range byteBounds {
		sizes[i] = uint64(b)
	}
	shards := shardCount()
	for i := range m.families {
		f := &m.families[i]
		f.def, f.limit, f.shards = &defs[i], m.limit, shards
		f.fixed = fixedLabels(f.def, o)
		switch f.def.Kind {
		case Milliseconds:
			f.bounds = latency
		case Bytes:
			f.bounds = sizes
		case Gauge:
			f.shards = 1 // a gauge is set as a whole
		}
	}
}

// fixedLabels are the values this sidecar gives to the leading labels of a metric. On access
// policy metrics app_id is the caller's; the namespace is ours only where it follows app_id.
func fixedLabels(d *Def, o MetricsOptions) []string {
	switch {
	case slices.Contains(d.Labels, "trustDomain"):
		return nil
	case len(d.Labels) > 1 && d.Labels[1] == "namespace":
		return []string{o.AppID, o.Namespace}
	}
	return []string{o.AppID}
}

func (m *Metrics) applyRules(rules []MetricRule) error {
	for _, r := range rules {
		name := "dapr_" + strings.NewReplacer("/", "_", ".", "_").Replace(strings.TrimPrefix(r.Metric, "dapr_"))
		i := slices.IndexFunc(defs[:], func(d Def) bool { return d.Name == name })
		if i < 0 {
			continue // Dapr ignores rules for metrics it does not have; a check may warn with CheckRules
		}
		f := &m.families[i]
		for _, l := range r.Labels {
			at := slices.Index(f.def.Labels, l.Name)
			compiled, err := compileRegex(r.Metric, l)
			if err != nil {
				return err
			}
			if at < 0 {
				continue
			}
			for _, c := range compiled {
				c.label = at
				f.rules = append(f.rules, c)
			}
		}
	}
	return nil
}

// compileRegex compiles the expressions of one label in the order of their replacements, for a
// map has none and a start must not differ from the next.
func compileRegex(metric string, l LabelRule) ([]labelRule, error) {
	var out []labelRule
	for replace, expr := range l.Regex {
		re, err := regexp.Compile(expr)
		if err != nil {
			return nil, fault.New(opMetrics, fault.Invalid, "metrics.rules: metric %s, label %s, value %q", metric, l.Name, replace).Because(err)
		}
		out = append(out, labelRule{pattern: re, replace: replace})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].replace < out[j].replace })
	return out, nil
}

// CheckRules lists what in the rules has no effect: names of metrics and labels that do not exist.
func CheckRules(rules []MetricRule) []string {
	var out []string
	for _, r := range rules {
		name := "dapr_" + strings.NewReplacer("/", "_", ".", "_").Replace(strings.TrimPrefix(r.Metric, "dapr_"))
		i := slices.IndexFunc(defs[:], func(d Def) bool { return d.Name == name })
		if i < 0 {
			out = append(out, fmt.Sprintf("metrics.rules: there is no metric %q; see the metrics reference for the names", r.Metric))
			continue
		}
		for _, l := range r.Labels {
			if !slices.Contains(defs[i].Labels, l.Name) {
				out = append(out, fmt.Sprintf("metrics.rules: metric %s has no label %q; it has %s", r.Metric, l.Name, strings.Join(defs[i].Labels, ", ")))
			}
		}
	}
	return out
}

// makeGroups ties each recording call to its families.
func (m *Metrics) makeGroups() {
	m.makeHTTPGroups()
	m.makeGRPCGroups()
	m.makeComponentGroups()
	m.makeSingleGroup()
}

// setup fills one group. Uses names every family the group writes.
func (m *Metrics) setup(g *group, over func(key) key, build func(key) entry, uses ...metric) {
	g.seed = maphash.MakeSeed()
	g.limit, g.build, g.over = m.limit, build, over
	for _, id := range uses {
		g.ruled = g.ruled || len(m.families[id].rules) > 0
	}
	if g.ruled {
		g.limit *= 4 // many keys share a series once rules merge them
	}
}

// derive lets a count metric show the count of a latency histogram with the same labels, so
// that a call is recorded once. It reports false when rules treat the two differently.
func (m *Metrics) derive(count, latency metric) bool {
	c, l := &m.families[count], &m.families[latency]
	if len(c.rules) > 0 || len(l.rules) > 0 {
		return false
	}
	c.from = l
	return true
}

// pair sets up a group of a count and a latency metric. Values turns a key into label values.
func (m *Metrics) pair(g *group, count, latency metric, over func(key) key, values func(key) []string) {
	derived := m.derive(count, latency)
	m.setup(g, over, func(k key) entry {
		v := values(k)
		e := entry{latency: m.families[latency].at(v...)}
		if !derived {
			e.count = m.families[count].at(v...)
		}
		return e
	}, count, latency)
}

// took records one event in a group made by pair.
func (g *group) took(k key, d time.Duration) {
	e := g.entry(k)
	shard := pick()
	e.latency.took(shard, d)
	if e.count != nil {
		e.count.inc(shard)
	}
}
