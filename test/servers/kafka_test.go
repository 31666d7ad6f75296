package servers_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/test/servers"
)

// kafka is a broker that tests share.
var kafka servers.Shared[*servers.Kafka]

func TestMain(m *testing.M) { goleak.VerifyTestMain(kafka.Main(m)) }

// What was acknowledged is there after a kill, after a stop, and all the while for a client behind
// a gate that was held.
func TestKafka(t *testing.T) {
	start := time.Now()
	k := servers.StartKafka(t)
	t.Logf("started in %v", time.Since(start))
	k.CreateTopic(t, "orders", 3, "retention.ms=100000")
	gate := k.Gate(t)
	c, err := kgo.NewClient(kgo.SeedBrokers(gate.Addr), kgo.DefaultProduceTopic("orders"), kgo.ConsumeTopics("orders"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	put := func(text string) {
		t.Helper()
		if err := c.ProduceSync(ctx, kgo.StringRecord(text)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]bool{}
	for _, step := range []struct {
		name string
		do   func()
	}{
		{"first", func() {}},
		{"killed", func() { k.Kill(); k.Restart(t) }},
		{"stopped", func() { k.Stop(t); k.Restart(t) }},
		{"frozen", func() { k.Freeze(); time.AfterFunc(200*time.Millisecond, k.Thaw) }},
		{"held", func() { gate.Hold(); time.AfterFunc(200*time.Millisecond, gate.Release) }},
		{"cut", func() { gate.Cut() }},
	} {
		start := time.Now()
		step.do()
		did := time.Since(start)
		put(step.name)
		want[step.name] = true
		t.Logf("%s: %v, then a record in %v", step.name, did, time.Since(start)-did)
	}
	for len(want) > 0 {
		fetches := c.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			t.Fatal(err, want)
		}
		fetches.EachRecord(func(r *kgo.Record) { delete(want, string(r.Value)) })
	}
	startKafka := func(tb testing.TB) *servers.Kafka { return servers.StartKafka(tb) }
	if first, second := kafka.Get(t, startKafka), kafka.Get(t, startKafka); first != second {
		t.Error("two shared brokers")
	}
}

// The version is written twice.
func TestKafkaVersion(t *testing.T) {
	text, err := os.ReadFile("../../deploy/dev/kafka/pom.xml")
	if err != nil {
		t.Fatal(err)
	}
	if want := "<version>" + servers.KafkaVersion + "</version>"; !strings.Contains(string(text), want) {
		t.Errorf("deploy/dev/kafka/pom.xml has no %s", want)
	}
}
