package kafka_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/kafka"
	"github.com/mecha-project/mecha/test/servers"
)

// broker is one that all tests use, each with topics and groups of its own.
var broker servers.Shared[*servers.Kafka]

func sharedKafka(tb testing.TB) *servers.Kafka {
	tb.Helper()
	return broker.Get(tb, func(tb testing.TB) *servers.Kafka { return servers.StartKafka(tb) })
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(broker.Main(m)) }

const patience = 60 * time.Second

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %v", what, patience)
		}
	}
}

var counter atomic.Int64

// fresh is a name that nobody has.
func fresh(word string) string { return fmt.Sprintf("%s-%d", word, counter.Add(1)) }

// open opens a binding; items are its metadata, to which what is usual is added.
func open(t testing.TB, log io.Writer, items ...string) block.Component {
	t.Helper()
	for _, usual := range [][2]string{{"authType", "none"}, {"sessionTimeout", "6s"}, {"heartbeatInterval", "500ms"}, {"backOffMaxInterval", "100ms"}} {
		if !slices.Contains(items, usual[0]) {
			items = append(items, usual[0], usual[1])
		}
	}
	c := kafka.DefaultBindingConfig()
	if f := conf.Decode(conf.Items(items...), c, conf.Also(conf.ServiceKeys("bindings")...)); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	b, err := kafka.NewBinding(block.Env{Log: slog.New(slog.NewTextHandler(log, nil)), AppID: "app", Component: "records"}, c)
	if err != nil {
		t.Fatalf("NewBinding: %v", err)
	}
	return b
}

// opened is open, closed when the test ends.
func opened(t testing.TB, items ...string) block.Component {
	t.Helper()
	b := open(t, io.Discard, items...)
	t.Cleanup(func() {
		if err := b.Close(within(t)); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

// client is the client library itself.
func client(t testing.TB, k *servers.Kafka, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(k.Addr), kgo.MetadataMinAge(100 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// read is what a topic holds, n records of it.
func read(t testing.TB, k *servers.Kafka, topic string, n int) (out []*kgo.Record) {
	t.Helper()
	c := client(t, k, kgo.ConsumeTopics(topic), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	for len(out) < n {
		fetches := c.PollFetches(within(t))
		if err := fetches.Err(); err != nil {
			t.Fatalf("reading %s after %d records of %d: %v", topic, len(out), n, err)
		}
		out = append(out, fetches.Records()...)
	}
	return out
}

// committed is a group's offset of a partition; -1 when there is none.
func committed(t testing.TB, k *servers.Kafka, group, topic string, p int32) int64 {
	t.Helper()
	admin := k.Admin(t)
	defer admin.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second) // asked again by who waits
	defer cancel()
	offsets, err := admin.FetchOffsets(ctx, group)
	if err != nil {
		return -1
	}
	if o, ok := offsets.Lookup(topic, p); ok {
		return o.At
	}
	return -1
}

func create(data string, metadata ...string) block.BindingRequest {
	r := block.BindingRequest{Operation: "create", Data: []byte(data), Metadata: map[string]string{}}
	for i := 0; i < len(metadata); i += 2 {
		r.Metadata[metadata[i]] = metadata[i+1]
	}
	return r
}

// reader is an app behind an input.
type reader struct {
	t    testing.TB
	stop func() error // ends Read and returns its error

	mu   sync.Mutex
	seen []string // the data of all deliveries
	md   []map[string]string
}

func (r *reader) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

// start reads; handle may be nil, for an app that handles everything.
func start(t testing.TB, b block.Component, handle func(ctx context.Context, data string) error) *reader {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &reader{t: t}
	done := make(chan error, 1)
	go func() {
		done <- b.(block.Input).Read(ctx, func(ctx context.Context, e block.BindingEvent) ([]byte, error) {
			r.mu.Lock()
			r.seen, r.md = append(r.seen, string(e.Data)), append(r.md, e.Metadata)
			r.mu.Unlock()
			if handle == nil {
				return nil, nil
			}
			return nil, handle(ctx, string(e.Data))
		})
	}()
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			t.Error("Read does not end")
			return nil
		}
	})
	t.Cleanup(func() { _ = r.stop() })
	return r
}

// until waits for records, each at least once.
func (r *reader) until(want ...string) {
	r.t.Helper()
	waitFor(r.t, fmt.Sprintf("records %q", want), func() bool {
		seen := r.all()
		return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(seen, w) })
	})
}

func TestOutput(t *testing.T) {
	k := sharedKafka(t)
	blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
		return blocktest.OutputPlace{
			Open: func() block.Output {
				return open(t, io.Discard, "brokers", k.Addr, "publishTopic", "out").(block.Output)
			},
			Works: create("data", "partitionKey", "a", "h", "1"),
		}
	})
}

func TestInput(t *testing.T) {
	k := sharedKafka(t)
	blocktest.Input(t, func(t *testing.T) blocktest.InputPlace {
		topic := fresh("in")
		k.CreateTopic(t, topic, 2)
		c := client(t, k, kgo.DefaultProduceTopic(topic))
		return blocktest.InputPlace{
			Open: func() block.Input {
				return open(t, io.Discard, "brokers", k.Addr, "topics", topic, "consumerGroup", topic, "initialOffset", "oldest").(block.Input)
			},
			Cause: func() {
				if err := c.ProduceSync(within(t), kgo.StringRecord("event")).FirstErr(); err != nil {
					t.Error(err)
				}
			},
		}
	})
}

// The component is what its topics make of it.
func TestDirections(t *testing.T) {
	for _, tt := range []struct {
		items   []string
		in, out bool
	}{{[]string{"topics", "a"}, true, false}, {[]string{"publishTopic", "a"}, false, true}, {[]string{"topics", "a,b", "publishTopic", "c"}, true, true}} {
		b := opened(t, append(tt.items, "brokers", "127.0.0.1:1")...)
		_, in := b.(block.Input)
		_, out := b.(block.Output)
		if in != tt.in || out != tt.out {
			t.Errorf("%q: input %v, output %v", tt.items, in, out)
		}
	}
}

// A record is written, and told to the app, as by Dapr.
func TestRecords(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("records")
	k.CreateTopic(t, topic, 3)
	out := opened(t, "brokers", k.Addr, "publishTopic", topic, "excludeHeaderMetaRegex", "^secret-").(block.Output)
	for _, r := range []block.BindingRequest{
		create(`{"a":1}`, "partitionKey", "k", "x", "1", "secret-y", "2", "partitionNumber", "2"),
		create("null", "__key", "gone", "partitionNumber", "2"),
		create("", "partitionNumber", "2", "empty", ""),
	} {
		if answer, err := out.Invoke(within(t), r); answer != nil || err != nil {
			t.Fatalf("Invoke: %v, %v", answer, err)
		}
	}
	got := read(t, k, topic, 3)
	header := func(key, value string) kgo.RecordHeader { return kgo.RecordHeader{Key: key, Value: []byte(value)} }
	for i, want := range []*kgo.Record{
		{Key: []byte("k"), Value: []byte(`{"a":1}`), Headers: []kgo.RecordHeader{header("partitionKey", "k"), header("partitionNumber", "2"), header("x", "1")}},
		{Key: []byte("gone"), Headers: []kgo.RecordHeader{header("__key", "gone"), header("partitionNumber", "2")}},
		{Value: []byte{}, Headers: []kgo.RecordHeader{header("empty", ""), header("partitionNumber", "2")}},
	} {
		r := got[i]
		if r.Partition != 2 || r.Offset != int64(i) {
			t.Errorf("record %d is at %d/%d", i, r.Partition, r.Offset)
		}
		if d := cmp.Diff([]any{want.Key, want.Value, want.Headers}, []any{r.Key, r.Value, r.Headers}); d != "" {
			t.Errorf("record %d (-want +got):\n%s", i, d)
		}
	}
	for name, tt := range map[string]struct {
		r    block.BindingRequest
		code fault.Code
	}{
		"no number":    {create("x", "partitionNumber", "two"), fault.Invalid},
		"negative":     {create("x", "partitionNumber", "-1"), fault.Invalid},
		"no partition": {create("x", "partitionNumber", "3"), fault.Invalid},
		"a schema":     {create("x", "valueSchemaType", "Avro"), fault.Unsupported},
	} {
		if _, err := out.Invoke(within(t), tt.r); fault.Of(err) != tt.code || fault.SentOf(err) != fault.SentNever {
			t.Errorf("%s: %v (%v, sent %v)", name, err, fault.Of(err), fault.SentOf(err))
		}
	}

	// What other clients write reaches the app, whose name for the place nobody can forge.
	c := client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	at := time.UnixMilli(1_700_000_000_123)
	sent := &kgo.Record{Topic: topic, Partition: 1, Key: []byte("a b"), Value: []byte("v"), Timestamp: at,
		Headers: []kgo.RecordHeader{header("h", "1 2"), header("h", "3&"), header("__topic", "forged"), header("__offset", "9"), header("secret-z", "s")}}
	if err := c.ProduceSync(within(t), sent, &kgo.Record{Topic: topic, Partition: 1, Timestamp: at, Headers: []kgo.RecordHeader{header("__key", "forged")}}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	for escape, want := range map[string][]map[string]string{
		"false": {{"h": "3&", "__key": "a b", "__topic": topic, "__partition": "1", "__offset": "0", "__timestamp": "1700000000123"},
			{"__topic": topic, "__partition": "1", "__offset": "1", "__timestamp": "1700000000123"}},
		"true": {{"h": "3%26", "__key": "a+b", "__topic": topic, "__partition": "1", "__offset": "0", "__timestamp": "1700000000123"},
			{"__topic": topic, "__partition": "1", "__offset": "1", "__timestamp": "1700000000123"}},
	} {
		in := opened(t, "brokers", k.Addr, "topics", topic, "consumerGroup", fresh("g"), "initialOffset", "oldest", "excludeHeaderMetaRegex", "^secret-", "escapeHeaders", escape)
		r := start(t, in, nil)
		waitFor(t, "five records", func() bool { return len(r.all()) == 5 })
		_ = r.stop()
		var ours []map[string]string
		for i, md := range r.md {
			if md["__partition"] == "1" {
				ours = append(ours, r.md[i])
			}
		}
		if d := cmp.Diff(want, ours); d != "" {
			t.Errorf("escapeHeaders %s (-want +got):\n%s", escape, d)
		}
	}
}

// Keys go where Kafka's own client sends them, or with fnv1a where Dapr does.
func TestPartitioner(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("keys")
	k.CreateTopic(t, topic, 12)
	keys := []string{"", "a", "order-1", "order-2", "7f1c", "Schlüssel", strings.Repeat("long", 50)}
	for i := range 40 {
		keys = append(keys, fmt.Sprintf("customer-%d", i))
	}
	cmd := exec.Command("java", append([]string{"-cp", filepath.Join(k.Jars(), "*"), "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "testdata/Produce.java", k.Addr, topic}, keys...)...)
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("Kafka's own client: %v\n%s", err, text)
	}
	want := map[string]string{}
	for line := range strings.Lines(string(text)) {
		i := strings.LastIndexByte(line, ' ')
		want[line[:i]] = strings.TrimSpace(line[i:])
	}
	place := func(partitioner string) map[string]string {
		t.Helper()
		topic := fresh("keys")
		k.CreateTopic(t, topic, 12)
		out := opened(t, "brokers", k.Addr, "publishTopic", topic, "partitioner", partitioner).(block.Output)
		for _, key := range keys {
			if _, err := out.Invoke(within(t), create("v", "partitionKey", key)); err != nil {
				t.Fatal(err)
			}
		}
		got := map[string]string{}
		for _, r := range read(t, k, topic, len(keys)) {
			got[string(r.Key)] = fmt.Sprint(r.Partition)
		}
		return got
	}
	if d := cmp.Diff(want, place("murmur2")); d != "" || len(want) != len(keys) {
		t.Errorf("Kafka's own client and we (-Kafka +ours):\n%s", d)
	}
	// By the definition of FNV-1a: the hash as a signed number, its remainder without the sign.
	fnv := place("fnv1a")
	for key, got := range fnv {
		h := uint32(2166136261)
		for _, b := range []byte(key) {
			h = (h ^ uint32(b)) * 16777619
		}
		p := int32(h) % 12
		if p = max(p, -p); got != fmt.Sprint(p) {
			t.Errorf("fnv1a of %q: partition %s, want %d", key, got, p)
		}
	}
}

// Compressed and large records arrive as they were; too large ones are refused.
func TestSizes(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("sizes")
	k.CreateTopic(t, topic, 1, "max.message.bytes=4000000")
	large := strings.Repeat("0123456789", 300_000)
	var want []string
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		out := opened(t, "brokers", k.Addr, "publishTopic", topic, "compression", codec, "maxMessageBytes", "3500000").(block.Output)
		want = append(want, codec+large)
		if _, err := out.Invoke(within(t), create(codec+large)); err != nil {
			t.Fatalf("%s: %v", codec, err)
		}
		if _, err := out.Invoke(within(t), create(strings.Repeat("x", 3_600_000))); fault.Of(err) != fault.TooLarge || fault.SentOf(err) != fault.SentNever {
			t.Errorf("%s: too large for maxMessageBytes: %v", codec, err)
		}
	}
	for i, r := range read(t, k, topic, len(want)) {
		if string(r.Value) != want[i] {
			t.Errorf("record %d: %.10q… of %d bytes, want %.10q… of %d", i, r.Value, len(r.Value), want[i], len(want[i]))
		}
	}
	strict := fresh("strict")
	k.CreateTopic(t, strict, 1, "max.message.bytes=1000")
	out := opened(t, "brokers", k.Addr, "publishTopic", strict).(block.Output)
	if _, err := out.Invoke(within(t), create(strings.Repeat("x", 2000))); fault.Of(err) != fault.TooLarge {
		t.Errorf("too large for the topic: %v", err)
	}
	if _, err := out.Invoke(within(t), create("small")); err != nil {
		t.Errorf("after one that was refused: %v", err)
	}
}
