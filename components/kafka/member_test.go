package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
)

var errApp = errors.New("the app says no")

// put appends records to one partition.
func put(t testing.TB, c *kgo.Client, topic string, p int32, data ...string) {
	t.Helper()
	for _, d := range data {
		if err := c.ProduceSync(within(t), &kgo.Record{Topic: topic, Partition: p, Value: []byte(d)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// A record that the app does not handle comes again, and holds back its partition and no other.
// What is committed is behind what was handled.
func TestOrder(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("order")
	k.CreateTopic(t, topic, 2)
	c := client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	put(t, c, topic, 0, "a1", "a2", "a3")
	put(t, c, topic, 1, "b1", "b2")
	heal := make(chan struct{})
	in := opened(t, "brokers", k.Addr, "topics", topic, "consumerGroup", topic, "initialOffset", "oldest")
	r := start(t, in, func(_ context.Context, data string) error {
		select {
		case <-heal:
		default:
			if data == "a2" {
				return errApp
			}
		}
		return nil
	})
	r.until("a2", "b2")
	waitFor(t, "the failing record comes often", func() bool {
		return slices.Index(r.all(), "a2") >= 0 && strings.Count(strings.Join(r.all(), " "), "a2") >= 4
	})
	if slices.Contains(r.all(), "a3") {
		t.Errorf("a record overtook one that was not handled: %q", r.all())
	}
	waitFor(t, "what was handled is committed", func() bool {
		return committed(t, k, topic, topic, 0) == 1 && committed(t, k, topic, topic, 1) == 2
	})
	close(heal)
	r.until("a3")
	waitFor(t, "all is committed", func() bool { return committed(t, k, topic, topic, 0) == 3 })
	var a []string
	for _, s := range r.all() {
		if strings.HasPrefix(s, "a") && (len(a) == 0 || a[len(a)-1] != s) {
			a = append(a, s)
		}
	}
	if got := strings.Join(a, " "); got != "a1 a2 a3" {
		t.Errorf("partition 0 came as %s", got)
	}
}

// Reading that ends leaves nothing committed that was not handled: what was at the app, or behind
// it, comes to the next reader, also when the group had no offset yet and starts at the newest.
func TestNothingPassedOver(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("passed")
	k.CreateTopic(t, topic, 1)
	c := client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	put(t, c, topic, 0, "old")
	open := func() block.Component { return opened(t, "brokers", k.Addr, "topics", topic, "consumerGroup", topic) }
	first := start(t, open(), func(context.Context, string) error { return errApp })
	waitFor(t, "the group has a place", func() bool { return committed(t, k, topic, topic, 0) == 1 })
	put(t, c, topic, 0, "one", "two")
	first.until("one")
	if err := first.stop(); fault.Of(err) != fault.Canceled {
		t.Errorf("Read: %v", err)
	}
	if slices.Contains(first.all(), "old") || slices.Contains(first.all(), "two") {
		t.Errorf("the first reader saw %q", first.all())
	}
	if at := committed(t, k, topic, topic, 0); at != 1 {
		t.Errorf("committed is %d, want 1", at)
	}
	put(t, c, topic, 0, "three")
	second := start(t, open(), nil)
	second.until("one", "two", "three")
	_ = second.stop()
	if got := strings.Join(second.all(), " "); got != "one two three" {
		t.Errorf("the second reader saw %s", got)
	}
	third := start(t, open(), nil)
	put(t, c, topic, 0, "four")
	third.until("four")
	if got := strings.Join(third.all(), " "); got != "four" {
		t.Errorf("the third reader saw %s: what was handled had not been committed", got)
	}
}

// A record that was at the app when reading ended is committed when the app handles it in the end.
func TestHandledAtTheEnd(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("end")
	k.CreateTopic(t, topic, 1)
	put(t, client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner())), topic, 0, "one", "two")
	r := start(t, opened(t, "brokers", k.Addr, "topics", topic, "consumerGroup", topic, "initialOffset", "oldest"), func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return nil
	})
	r.until("one")
	_ = r.stop()
	if at := committed(t, k, topic, topic, 0); at != 1 || len(r.all()) != 1 {
		t.Errorf("committed is %d after %q, want 1", at, r.all())
	}
}

// Members share the partitions; one that comes or leaves takes no record away and doubles none, as
// long as apps answer.
func TestMembers(t *testing.T) {
	for _, strategy := range []string{"range", "sticky", "roundrobin", "cooperative-sticky"} {
		t.Run(strategy, func(t *testing.T) {
			t.Parallel()
			k := sharedKafka(t)
			topic := fresh("members")
			const partitions, each = 4, 50
			k.CreateTopic(t, topic, partitions)
			c := client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner()))
			var mu sync.Mutex
			var order [partitions][]string
			slow := func(_ context.Context, data string) error {
				time.Sleep(2 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				p := data[0] - '0'
				order[p] = append(order[p], data)
				return nil
			}
			member := func() *reader {
				return start(t, opened(t, "brokers", k.Addr, "topics", topic, "consumerGroup", topic, "initialOffset", "oldest", "consumerGroupRebalanceStrategy", strategy), slow)
			}
			handled := func() (n int) {
				mu.Lock()
				defer mu.Unlock()
				for p := range order {
					n += len(order[p])
				}
				return n
			}
			first := member()
			var want [partitions][]string
			for i := range each {
				for p := range partitions {
					want[p] = append(want[p], fmt.Sprintf("%d-%03d", p, i))
					put(t, c, topic, int32(p), want[p][i])
				}
				switch i {
				case each / 4:
					waitFor(t, "the first member reads", func() bool { return handled() > partitions })
					second := member()
					defer second.stop()
				case each / 2:
					_ = first.stop()
				}
			}
			waitFor(t, "all records", func() bool { return handled() >= partitions*each })
			mu.Lock()
			defer mu.Unlock()
			for p := range order {
				if !slices.Equal(order[p], want[p]) {
					t.Errorf("partition %d came as %q", p, order[p])
				}
			}
		})
	}
}

// An app that hangs keeps neither its sidecar from answering the group, nor other members from
// their partitions, and does not fill its sidecar.
func TestHangingApp(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("hang")
	k.CreateTopic(t, topic, 2)
	c := client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	settings := []string{"brokers", k.Addr, "topics", topic, "consumerGroup", topic, "initialOffset", "oldest", "consumerGroupRebalanceStrategy", "cooperative-sticky", "channelBufferSize", "4"}
	release := make(chan struct{})
	put(t, c, topic, 0, "0")
	put(t, c, topic, 1, "1")
	first := start(t, opened(t, settings...), func(context.Context, string) error { <-release; return nil })
	first.until("0", "1")
	sent := 2
	more := func(n int) {
		for range n {
			put(t, c, topic, 0, "0")
			put(t, c, topic, 1, "1")
			sent += 2
		}
	}
	more(50)
	second := start(t, opened(t, settings...), nil)
	time.AfterFunc(500*time.Millisecond, func() { close(release) })
	waitFor(t, "the second member reads", func() bool { more(1); return len(second.all()) > 0 })
	waitFor(t, "all records", func() bool { return len(first.all())+len(second.all()) >= sent })
	if n := len(first.all()) + len(second.all()); n != sent {
		t.Errorf("%d deliveries of %d records", n, sent)
	}
}

// Close ends Read.
func TestCloseEndsRead(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("close")
	k.CreateTopic(t, topic, 1)
	put(t, client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner())), topic, 0, "one")
	b := opened(t, "brokers", k.Addr, "topics", topic, "initialOffset", "oldest", "consumerGroup", topic)
	done := make(chan error, 1)
	seen := make(chan struct{}, 10)
	go func() {
		done <- b.(block.Input).Read(context.Background(), func(context.Context, block.BindingEvent) ([]byte, error) {
			seen <- struct{}{}
			return nil, nil
		})
	}()
	<-seen
	if err := b.Close(within(t)); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if fault.Of(err) != fault.Unavailable {
			t.Errorf("Read: %v (%v)", err, fault.Of(err))
		}
	case <-time.After(patience):
		t.Fatal("Read goes on after Close")
	}
}

// A topic that gets more partitions is read from the beginning of each.
func TestNewPartitions(t *testing.T) {
	k := sharedKafka(t)
	topic := fresh("grows")
	k.CreateTopic(t, topic, 1)
	r := start(t, opened(t, "brokers", k.Addr, "topics", topic, "consumerGroup", topic, "clientConnectionTopicMetadataRefreshInterval", "1s"), nil)
	waitFor(t, "the group has a place", func() bool { return committed(t, k, topic, topic, 0) == 0 })
	admin := k.Admin(t)
	defer admin.Close()
	if _, err := admin.CreatePartitions(within(t), 1, topic); err != nil {
		t.Fatal(err)
	}
	c := client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	waitFor(t, "the partition is known", func() bool {
		return c.ProduceSync(within(t), &kgo.Record{Topic: topic, Partition: 1, Value: []byte("early")}).FirstErr() == nil
	})
	r.until("early")
}

// Settings that cannot be honoured are told of.
func TestWarnings(t *testing.T) {
	var log bytes.Buffer
	b := open(t, &log, "brokers", "10.0.0.1", "authType", "password", "saslUsername", "u", "saslPassword", "hidden", "disableTls", "true", "topics", "a", "publishTopic", "b",
		"consumeRetryEnabled", "false", "producerRequiredAcks", "1", "producerRetryMax", "3", "backOffMaxRetries", "3", "schemaRegistryURL", "http://x")
	if err := b.Close(within(t)); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"consumeRetryEnabled", "producerRequiredAcks", "producerRetryMax", "backOffMaxRetries", "schemaRegistryURL", "without encryption"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("nothing is said of %s:\n%s", want, log.String())
		}
	}
	if strings.Contains(log.String(), "hidden") {
		t.Error("the password is in the log")
	}
}
