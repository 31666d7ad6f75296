package telemetry

import (
	"sort"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	dto "github.com/prometheus/client_model/go"
)

// Registry is what the metrics port serves: the Go and process collectors and, when recording
// is on, m. A nil m is fine.
func Registry(m *Metrics) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if m != nil {
		r.MustRegister(m)
	}
	return r
}

// Describe sends the description of every metric. It implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for i := range m.families {
		ch <- m.families[i].desc()
	}
}

// Collect sends every series. It implements prometheus.Collector. Work and memory are spent
// only here, when someone asks.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for i := range m.families {
		f := &m.families[i]
		src := f
		if f.from != nil {
			src = f.from
		}
		list := src.snapshot()
		if len(list) == 0 {
			continue
		}
		desc, order := f.desc(), f.sortedLabels()
		for _, s := range list {
			ch <- &sample{fam: f, series: s, desc: desc, order: order}
		}
	}
}

func (f *family) desc() *prometheus.Desc {
	return prometheus.NewDesc(f.def.Name, f.def.Help, f.def.Labels, nil)
}

// sortedLabels are the indices of the labels in the order of their names, which Prometheus
// requires of samples.
func (f *family) sortedLabels() []int {
	out := make([]int, len(f.def.Labels))
	for i := range out {
		out[i] = i
	}
	sort.Slice(out, func(i, j int) bool { return f.def.Labels[out[i]] < f.def.Labels[out[j]] })
	return out
}

// sample shows one series to Prometheus. The client's own constant metrics would want a map of
// buckets for each.
type sample struct {
	fam    *family // the metric to show, which may show the count of another's histogram
	series *series
	desc   *prometheus.Desc
	order  []int
}

func (s *sample) Desc() *prometheus.Desc { return s.desc }

func (s *sample) Write(to *dto.Metric) error {
	to.Label = make([]*dto.LabelPair, len(s.order))
	for i, at := range s.order {
		to.Label[i] = &dto.LabelPair{Name: &s.fam.def.Labels[at], Value: &s.series.values[at]}
	}
	switch s.fam.def.Kind {
	case Counter:
		n := s.series.count()
		to.Counter = &dto.Counter{Value: &n}
	case Gauge:
		n := float64(int64(s.series.read(0)))
		to.Gauge = &dto.Gauge{Value: &n}
	default:
		to.Histogram = s.series.histogram()
	}
	return nil
}

// count is the number of events: the counter itself or all buckets of a histogram.
func (s *series) count() float64 {
	words := s.fam.words()
	if words == 1 {
		return float64(s.read(0))
	}
	var n uint64
	for i := 1; i < words; i++ {
		n += s.read(uint32(i))
	}
	return float64(n)
}

func (s *series) histogram() *dto.Histogram {
	scale := 1.0
	if s.fam.def.Kind == Milliseconds {
		scale = float64(time.Millisecond)
	}
	bounds := s.fam.bounds
	buckets := make([]dto.Bucket, len(bounds))
	upper := make([]float64, len(bounds))
	counts := make([]uint64, len(bounds)+1)
	h := &dto.Histogram{Bucket: make([]*dto.Bucket, len(bounds))}
	var n uint64
	for i := range bounds {
		n += s.read(uint32(i + 1))
		upper[i], counts[i] = float64(bounds[i])/scale, n
		buckets[i].UpperBound, buckets[i].CumulativeCount = &upper[i], &counts[i]
		h.Bucket[i] = &buckets[i]
	}
	n += s.read(uint32(len(bounds) + 1))
	counts[len(bounds)] = n
	sum := float64(s.read(0)) / scale
	h.SampleCount, h.SampleSum = &counts[len(bounds)], &sum
	return h
}
