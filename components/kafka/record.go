package kafka

import (
	"bytes"
	"context"
	"hash/fnv"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/fault"
)

// Names in metadata, Dapr's.
const (
	keyEntry       = "partitionKey"
	keyMeta        = "__key"
	partitionEntry = "partitionNumber"
	schemaEntry    = "valueSchemaType"
	topicMeta      = "__topic"
	partitionMeta  = "__partition"
	offsetMeta     = "__offset"
	timestampMeta  = "__timestamp"
)

// anyPartition is the partition of a record whose producer does not name one.
const anyPartition = -1

// newRecord makes the record of a request, with memory of its own. All metadata become headers, as
// in Dapr. Data that are the word null are a record without a value: in a compacted topic, the end
// of its key.
func newRecord(op fault.Op, topic string, data []byte, metadata map[string]string, h *headers) (*kgo.Record, error) {
	if s := metadata[schemaEntry]; s != "" && s != "None" {
		return nil, fault.New(op, fault.Unsupported, "%s %q: schemas are not offered; leave it out and send the bytes that consumers expect", schemaEntry, s).With(fault.BadMetadata).WithSent(fault.SentNever)
	}
	r := &kgo.Record{Topic: topic, Partition: anyPartition, Value: []byte{}}
	switch {
	case string(data) == "null":
		r.Value = nil
	case len(data) > 0:
		r.Value = bytes.Clone(data)
	}
	if key, ok := metadata[keyEntry]; ok {
		r.Key = []byte(key)
	} else if key, ok := metadata[keyMeta]; ok {
		r.Key = []byte(key)
	}
	if text, ok := metadata[partitionEntry]; ok {
		n, err := strconv.ParseInt(text, 10, 32)
		if err != nil || n < 0 {
			return nil, fault.New(op, fault.Invalid, "%s %q is no partition; they are counted from 0", partitionEntry, text).With(fault.BadMetadata).WithSent(fault.SentNever)
		}
		r.Partition, r.Context = int32(n), context.WithValue(context.Background(), available{}, new(atomic.Int64))
	}
	for _, name := range slices.Sorted(maps.Keys(metadata)) {
		if !h.leftOut(name) {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: name, Value: []byte(metadata[name])})
		}
	}
	return r, nil
}

// metadataOf is what the app is told of a record: its headers and, stronger than headers of these
// names, its key and place.
func metadataOf(r *kgo.Record, h *headers) map[string]string {
	text := func(b []byte) string {
		if h.escape {
			return url.QueryEscape(string(b))
		}
		return string(b)
	}
	m := make(map[string]string, len(r.Headers)+5)
	for _, header := range r.Headers {
		if !h.leftOut(header.Key) {
			m[header.Key] = text(header.Value)
		}
	}
	delete(m, keyMeta)
	if r.Key != nil {
		m[keyMeta] = text(r.Key)
	}
	m[topicMeta] = r.Topic
	m[partitionMeta] = strconv.Itoa(int(r.Partition))
	m[offsetMeta] = strconv.FormatInt(r.Offset, 10)
	m[timestampMeta] = strconv.FormatInt(r.Timestamp.UnixMilli(), 10)
	return m
}

// available is the key of a record's context under which the partitioner notes how many partitions
// there are, when the record names another one.
type available struct{}

// misplaced is the number of partitions of a topic that does not have the one a record names; 0
// when that is not what went wrong.
func misplaced(r *kgo.Record) int64 {
	if r.Context != nil {
		if n, ok := r.Context.Value(available{}).(*atomic.Int64); ok {
			return n.Load()
		}
	}
	return 0
}

// partitioner chooses partitions: the one that is named, else by the key's hash, else any, the same
// for records that are sent together.
type partitioner struct{ hash kgo.PartitionerHasher }

// hash is the configured hash; nil is the library's murmur2.
func (c *ProducerConfig) hash() kgo.PartitionerHasher {
	if c.Partitioner != partitionFNV {
		return nil
	}
	return kgo.SaramaCompatHasher(func(key []byte) uint32 {
		h := fnv.New32a()
		_, _ = h.Write(key) // it cannot fail
		return h.Sum32()
	})
}

// ForTopic implements kgo.Partitioner.
func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	return &topicPartitioner{kgo.StickyKeyPartitioner(p.hash).ForTopic(topic)}
}

type topicPartitioner struct{ byKey kgo.TopicPartitioner }

// RequiresConsistency implements kgo.TopicPartitioner: such a record waits for its partition.
func (t *topicPartitioner) RequiresConsistency(r *kgo.Record) bool {
	return r.Partition >= 0 || t.byKey.RequiresConsistency(r)
}

// Partition implements kgo.TopicPartitioner. One that does not exist fails the record.
func (t *topicPartitioner) Partition(r *kgo.Record, n int) int {
	if r.Partition >= 0 {
		if note, ok := r.Context.Value(available{}).(*atomic.Int64); ok && int(r.Partition) >= n {
			note.Store(int64(n))
		}
		return int(r.Partition)
	}
	return t.byKey.Partition(r, n)
}

// OnNewBatch implements kgo.TopicPartitionerOnNewBatch.
func (t *topicPartitioner) OnNewBatch() {
	if b, ok := t.byKey.(kgo.TopicPartitionerOnNewBatch); ok {
		b.OnNewBatch()
	}
}
