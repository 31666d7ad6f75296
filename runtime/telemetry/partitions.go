package telemetry

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Partition is how this sidecar stands with a partition that it consumes.
type Partition struct {
	Component, Group, Topic string
	ID                      int32
	Lag                     uint64        // messages that are not resolved; where positions are not dense, an upper bound
	InFlight                int           // at the app
	Oldest                  time.Duration // age of the oldest at the app
	ParkedKeys              int
	Blocked                 bool // an unresolved message holds back the partition
}

// maxPartitionSeries bounds the partitions shown; those that lag most come first.
const maxPartitionSeries = DefaultSeries

// partitions shows what list tells when somebody asks: nothing is counted meanwhile.
type partitions struct {
	app  string
	list func() []Partition
}

// Partitions makes gauges of the partitions a sidecar consumes. list is called at each scrape.
func Partitions(appID string, list func() []Partition) prometheus.Collector {
	return &partitions{app: appID, list: list}
}

var partitionLabels = []string{"app_id", "component", "group", "topic", "partition"}

func partitionDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("mecha_pubsub_partition_"+name, help, partitionLabels, nil)
}

var (
	partitionLag      = partitionDesc("lag", "Messages of the partition that the group has not resolved; an upper bound where positions are not dense.")
	partitionInFlight = partitionDesc("in_flight", "Messages of the partition at the app.")
	partitionOldest   = partitionDesc("oldest_in_flight_seconds", "Age of the oldest message of the partition at the app.")
	partitionParked   = partitionDesc("parked_keys", "Keys of the partition whose messages are set aside.")
	partitionBlocked  = partitionDesc("blocked", "1 while an unresolved message holds back the partition, or the app takes no more.")
)

// Describe implements prometheus.Collector.
func (p *partitions) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{partitionLag, partitionInFlight, partitionOldest, partitionParked, partitionBlocked} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (p *partitions) Collect(ch chan<- prometheus.Metric) {
	all := p.list()
	slices.SortFunc(all, func(a, b Partition) int {
		return cmp.Or(cmp.Compare(b.Lag, a.Lag), cmp.Compare(a.Component, b.Component), cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Group, b.Group), cmp.Compare(a.ID, b.ID))
	})
	type name struct {
		component, group, topic string
		id                      int32
	}
	seen := map[name]bool{}
	for _, s := range all {
		at := name{s.Component, s.Group, s.Topic, s.ID}
		if seen[at] || len(seen) == maxPartitionSeries {
			continue // it is just changing hands within this sidecar
		}
		seen[at] = true
		blocked := 0.0
		if s.Blocked {
			blocked = 1
		}
		for _, g := range []struct {
			desc  *prometheus.Desc
			value float64
		}{
			{partitionLag, float64(s.Lag)}, {partitionInFlight, float64(s.InFlight)}, {partitionOldest, s.Oldest.Seconds()},
			{partitionParked, float64(s.ParkedKeys)}, {partitionBlocked, blocked},
		} {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value, p.app, s.Component, s.Group, s.Topic, strconv.Itoa(int(s.ID)))
		}
	}
}
