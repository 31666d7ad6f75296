package telemetry

import (
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Overflow is the label value that stands for every value beyond a metric's series limit.
const Overflow = "__overflow__"

// spareSeries is how many overflow series a metric may have: one for each combination of its
// closed labels (status, success, …). Beyond it one last series takes everything.
const spareSeries = 256

// longestKey is the length of label text beyond which a key counts as overflow: a metric's memory
// is bounded in bytes, not only in series.
const longestKey = 1024

// openLabels are those whose values callers or apps choose, without bound. They are what
// overflow replaces; the others keep their value, so that errors stay visible.
var openLabels = map[string]bool{
	"path": true, "method": true, "grpc_server_method": true, "grpc_client_method": true, "topic": true,
	"component": true, "componentName": true, "operation": true, "dst_app_id": true, "src_app_id": true,
	"app_id": true, "trustDomain": true, "namespace": true, "name": true, "target": true,
	"workflow_name": true, "activity_name": true, "actor_type": true, "error_code": true,
}

// series is one line (or one histogram) of the exposition.
type series struct {
	fam    *family
	values []string // one for each label of the definition, fixed ones included
	cells
}

func (s *series) inc(shard uint32)            { s.add(shard, 1) }
func (s *series) bytes(shard uint32, n int64) { s.observe(shard, s.fam.bounds, uint64(max(n, 0))) }

func (s *series) took(shard uint32, d time.Duration) {
	s.observe(shard, s.fam.bounds, uint64(max(d, 0)))
}

// family is one metric: its definition and the series it has so far.
type family struct {
	def    *Def
	fixed  []string    // values of the leading labels that never change: app_id, then namespace
	rules  []labelRule // rewrite values before a series is chosen
	bounds []uint64    // histogram bounds in the unit of the cells: nanoseconds or bytes
	from   *family     // counts are those of this histogram; the family has no series of its own
	shards int         // copies of each series' cells
	limit  int         // series before overflow begins

	mu    sync.Mutex             // guards byKey and list
	byKey map[string]*series     // by the joined label values
	list  []*series              // in order of appearance; append only
	spare int                    // overflow series among list; guarded by mu
	one   atomic.Pointer[series] // the only series of a family without variable labels
}

// labelRule rewrites the values of one label.
type labelRule struct {
	label   int
	pattern *regexp.Regexp
	replace string
}

// words is the number of cells in one shard of a series.
func (f *family) words() int {
	if f.def.Kind == Milliseconds || f.def.Kind == Bytes {
		return len(f.bounds) + 2 // the sum, the buckets, the one above all bounds
	}
	return 1
}

// only is the series of a family that has fixed labels only.
func (f *family) only() *series {
	if s := f.one.Load(); s != nil {
		return s
	}
	s := f.at()
	f.one.Store(s)
	return s
}

// at returns the series with these values of the variable labels, making it if need be. It is
// the slow path: recording calls keep what it returns. The values are copied.
func (f *family) at(variable ...string) *series {
	values := make([]string, 0, len(f.def.Labels))
	values = append(append(values, f.fixed...), variable...)
	for _, r := range f.rules {
		if v := values[r.label]; v != "" { // an absent value is not a value to rewrite
			values[r.label] = r.pattern.ReplaceAllString(v, r.replace)
		}
	}
	for i, v := range values {
		values[i] = strings.ToValidUTF8(v, "\uFFFD") // one invalid byte would fail every scrape
	}

	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.byKey[strings.Join(values, "\xff")]; s != nil {
		return s
	}
	over := len(f.list)-f.spare >= f.limit
	for i := len(f.fixed); i < len(values); i++ {
		if values[i] == Overflow {
			over = true
		}
	}
	if over {
		return f.overflow(values)
	}
	return f.add(values)
}

// overflow returns the series that stands for values once the family is full. f.mu is held.
func (f *family) overflow(values []string) *series {
	for i := len(f.fixed); i < len(values); i++ {
		if openLabels[f.def.Labels[i]] || f.spare >= spareSeries {
			values[i] = Overflow
		}
	}
	if s := f.byKey[strings.Join(values, "\xff")]; s != nil {
		return s
	}
	f.spare++
	return f.add(values)
}

// add makes a series. f.mu is held.
func (f *family) add(values []string) *series {
	for i, v := range values {
		values[i] = strings.Clone(v)
	}
	s := &series{fam: f, values: values, cells: newCells(f.words(), f.shards)}
	if f.byKey == nil {
		f.byKey = make(map[string]*series)
	}
	f.byKey[strings.Join(values, "\xff")] = s
	f.list = append(f.list, s)
	return s
}

// snapshot is the list of series now.
func (f *family) snapshot() []*series {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list[:len(f.list):len(f.list)]
}

// group finds the series of one recording call. Its families share a key.
type group struct {
	table
	full  atomic.Bool     // new keys go to overflow
	limit int             // keys kept before full
	ruled bool            // some family has rules: many keys may share a series, none overflows by its key
	build func(key) entry // makes or finds the series of a key
	over  func(key) key   // the key that stands for k when the group is full
}

// entry is the hot path of every recording call.
func (g *group) entry(k key) *entry {
	if e := g.find(k); e != nil {
		return e
	}
	return g.miss(k)
}

func (g *group) miss(k key) *entry {
	if len(k.a)+len(k.b)+len(k.c)+len(k.d) > longestKey {
		k = g.over(k)
	}
	if g.full.Load() {
		if g.ruled {
			e := g.build(k) // keys are no longer remembered, series still merge by label
			return &e
		}
		k = g.over(k)
		if e := g.find(k); e != nil {
			return e
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.find(k); e != nil {
		return e
	}
	if g.n >= g.limit+spareSeries {
		e := g.build(k)
		return &e
	}
	e := g.put(k, g.build(k))
	if g.n >= g.limit {
		g.full.Store(true)
	}
	return e
}
