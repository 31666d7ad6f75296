package kafka_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// short is a context that ends soon.
func short(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// A broker that is away when everything starts is waited for.
func TestBrokerComesLate(t *testing.T) {
	k := servers.StartKafka(t)
	k.CreateTopic(t, "late", 1)
	k.Kill()
	b := opened(t, "brokers", k.Addr, "topics", "late", "publishTopic", "late", "initialOffset", "oldest", "writeTimeout", "1s")
	if err := b.Ping(within(t)); err != nil { // the sidecar may start
		t.Errorf("Ping: %v", err)
	}
	began := time.Now()
	_, err := b.(block.Output).Invoke(within(t), create("lost"))
	if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever || !strings.Contains(err.Error(), "refused") {
		t.Errorf("Invoke: %v (%v, sent %v), want unavailable, never sent, and why", err, fault.Of(err), fault.SentOf(err))
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Invoke took %v", took)
	}
	if _, err := b.(block.Output).Invoke(short(t, 200*time.Millisecond), create("lost too")); fault.Of(err) != fault.Deadline {
		t.Errorf("Invoke with a deadline: %v", err)
	}
	r := start(t, b, nil)
	k.Restart(t)
	waitFor(t, "a record can be appended", func() bool {
		_, err := b.(block.Output).Invoke(within(t), create("one"))
		return err == nil
	})
	r.until("one")
	if err := b.Ping(within(t)); err != nil {
		t.Errorf("Ping: %v", err)
	}
	k.Kill()
	waitFor(t, "Ping tells of a broker that has gone", func() bool { return fault.Of(b.Ping(within(t))) == fault.Unavailable })
}

// Under kills of the broker nothing that was acknowledged is lost, on the way in and on the way
// out, and each partition keeps its order.
func TestKilledBroker(t *testing.T) {
	k := servers.StartKafka(t)
	const partitions = 3
	k.CreateTopic(t, "kills", partitions)
	var said lines
	b := open(t, &said, "brokers", k.Addr, "topics", "kills", "publishTopic", "kills", "initialOffset", "oldest", "writeTimeout", "30s")
	t.Cleanup(func() {
		_ = b.Close(within(t))
		if t.Failed() {
			t.Logf("the component said:\n%s", said.String())
		}
	})
	life, end := context.WithCancel(context.Background()) // a test that fails ends its writers
	defer end()
	var mu sync.Mutex
	last, handled := map[string]int{}, map[string]bool{}
	r := start(t, b, func(_ context.Context, data string) error {
		var key string
		var n int
		if _, err := fmt.Sscanf(strings.Replace(data, "/", " ", 1), "%s %d", &key, &n); err != nil {
			t.Errorf("%q: %v", data, err)
		}
		mu.Lock()
		defer mu.Unlock()
		if n > last[key]+1 {
			t.Errorf("%s came after %s/%d", data, key, last[key])
		}
		last[key], handled[data] = max(last[key], n), true
		return nil
	})
	stop := make(chan struct{})
	var writers sync.WaitGroup
	written := make([][]string, 4)
	for w := range written {
		writers.Go(func() {
			for n := 1; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				data := fmt.Sprintf("key%d/%d", w, n)
				for { // as a policy that repeats would
					_, err := b.(block.Output).Invoke(life, create(data, "partitionKey", fmt.Sprint("key", w)))
					if err == nil {
						break
					}
					if life.Err() != nil {
						return
					}
				}
				written[w] = append(written[w], data)
			}
		})
	}
	progress := func() int { mu.Lock(); defer mu.Unlock(); return len(handled) }
	safe := func() (sum int64) {
		for p := range int32(partitions) {
			sum += max(committed(t, k, "app", "kills", p), 0)
		}
		return sum
	}
	for range 3 {
		before, was := safe(), progress()
		waitFor(t, "records flow and are committed", func() bool { return progress() > was+50 && safe() > before+50 })
		k.Kill()
		k.Restart(t)
	}
	before, was := safe(), progress()
	waitFor(t, "records flow again", func() bool { return progress() > was+50 && safe() > before })
	close(stop)
	writers.Wait()
	total := 0
	for _, all := range written {
		total += len(all)
		for _, data := range all {
			waitFor(t, data+" is handled", func() bool { mu.Lock(); defer mu.Unlock(); return handled[data] })
		}
	}
	_ = r.stop()
	t.Logf("%d records over three kills, %d deliveries", total, len(r.all()))
}

// A connection that is silent, and a broker that is frozen: calls end in time, and what was in doubt
// is said to be; all goes on by itself afterwards.
func TestSilence(t *testing.T) {
	k := servers.StartKafka(t)
	k.CreateTopic(t, "silence", 1)
	gate := k.Gate(t)
	b := opened(t, "brokers", gate.Addr, "topics", "silence", "publishTopic", "silence", "initialOffset", "oldest", "readTimeout", "500ms", "writeTimeout", "1s")
	out := b.(block.Output)
	r := start(t, b, nil)
	if _, err := out.Invoke(within(t), create("before")); err != nil {
		t.Fatal(err)
	}
	r.until("before")
	for name, fault := range map[string]struct{ begin, end func() }{
		"held":   {gate.Hold, gate.Release},
		"frozen": {k.Freeze, k.Thaw},
		"cut":    {gate.Cut, func() {}},
	} {
		fault.begin()
		if name != "cut" {
			silent(t, b)
		}
		fault.end()
		waitFor(t, name+": a record can be appended", func() bool {
			_, err := out.Invoke(within(t), create("after "+name))
			return err == nil
		})
		r.until("after " + name)
	}
}

// silent checks calls on a broker that does not answer.
func silent(t *testing.T, b block.Component) {
	t.Helper()
	out := b.(block.Output)
	began := time.Now()
	if _, err := out.Invoke(short(t, 100*time.Millisecond), create("x")); fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("a deadline: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("a deadline of 100 ms took %v", took)
	}
	began = time.Now()
	if _, err := out.Invoke(context.Background(), create("x")); fault.Of(err) != fault.Unavailable {
		t.Errorf("no deadline: %v (%v)", err, fault.Of(err))
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("writeTimeout of 1 s took %v", took)
	}
	if err := b.Ping(short(t, 100*time.Millisecond)); fault.Of(err) != fault.Deadline && fault.Of(err) != fault.Unavailable {
		t.Errorf("Ping: %v", err)
	}
}

// Reading ends in time although the broker is gone, and Close too.
func TestStopWithoutBroker(t *testing.T) {
	k := servers.StartKafka(t)
	k.CreateTopic(t, "gone", 1)
	b := open(t, io.Discard, "brokers", k.Addr, "topics", "gone", "publishTopic", "gone", "initialOffset", "oldest")
	r := start(t, b, nil)
	if _, err := b.(block.Output).Invoke(within(t), create("one")); err != nil {
		t.Fatal(err)
	}
	r.until("one")
	k.Kill()
	began := time.Now()
	if err := r.stop(); fault.Of(err) != fault.Canceled {
		t.Errorf("Read: %v", err)
	}
	if err := b.Close(within(t)); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the end took %v", took)
	}
}

func TestSignIn(t *testing.T) {
	k := sharedKafka(t)
	file := func(path string) string {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	topic := fresh("signed")
	user := func(mechanism, password string, more ...string) []string {
		return append([]string{"authType", "password", "saslUsername", servers.KafkaUser, "saslPassword", password, "saslMechanism", mechanism}, more...)
	}
	for name, tt := range map[string]struct {
		broker string
		items  []string
		code   fault.Code // OK: everything works
	}{
		"PLAINTEXT":            {k.SASL, user("PLAINTEXT", servers.KafkaPassword, "disableTls", "true"), fault.OK},
		"SHA-256":              {k.SASL, user("SHA-256", servers.KafkaPassword, "disableTls", "true"), fault.OK},
		"SHA-512 over TLS":     {k.SASLTLS, user("SHA-512", servers.KafkaPassword, "caCert", k.CA), fault.OK},
		"PLAINTEXT over TLS":   {k.SASLTLS, user("PLAINTEXT", servers.KafkaPassword, "caCert", file(k.CA)), fault.OK},
		"certificate":          {k.TLS, []string{"authType", "certificate", "caCert", k.CA}, fault.OK},
		"skipVerify":           {k.TLS, []string{"authType", "certificate", "skipVerify", "true"}, fault.OK},
		"mtls":                 {k.MTLS, []string{"authType", "mtls", "caCert", k.CA, "clientCert", k.ClientCert, "clientKey", file(k.ClientKey)}, fault.OK},
		"authRequired false":   {k.Addr, []string{"authRequired", "false", "authType", ""}, fault.OK},
		"a wrong password":     {k.SASL, user("PLAINTEXT", "wr0ng", "disableTls", "true"), fault.Unauthenticated},
		"a wrong scram":        {k.SASL, user("SHA-512", "wr0ng", "disableTls", "true"), fault.Unauthenticated},
		"an unknown authority": {k.TLS, []string{"authType", "certificate"}, fault.Unavailable},
		"no certificate":       {k.MTLS, []string{"authType", "certificate", "caCert", k.CA}, fault.Unavailable},
		"TLS to plaintext":     {k.Addr, []string{"authType", "certificate", "caCert", k.CA}, fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := opened(t, append(tt.items, "brokers", tt.broker, "publishTopic", topic, "writeTimeout", "1s")...)
			// What may pass does not keep a sidecar from starting.
			err := b.Ping(within(t))
			if want := tt.code; fault.Of(err) != want && (want != fault.Unavailable || err != nil) {
				t.Fatalf("Ping: %v (%v)", err, fault.Of(err))
			}
			if err != nil && strings.Contains(err.Error(), "wr0ng") {
				t.Errorf("the error holds the password: %v", err)
			}
			if _, err = b.(block.Output).Invoke(within(t), create("x")); (err == nil) != (tt.code == fault.OK) || err != nil && fault.Of(err) != tt.code && fault.Of(err) != fault.Unavailable {
				t.Errorf("Invoke: %v (%v)", err, fault.Of(err))
			}
		})
	}
}

// What a broker refuses is not tried again and again.
func TestRefusals(t *testing.T) {
	k := servers.StartKafka(t, "auto.create.topics.enable=false")
	out := opened(t, "brokers", k.Addr, "publishTopic", "none").(block.Output)
	began := time.Now()
	if _, err := out.Invoke(within(t), create("x")); fault.Of(err) != fault.NotFound || fault.SentOf(err) != fault.SentNever {
		t.Errorf("no topic: %v (%v)", err, fault.Of(err))
	}
	if took := time.Since(began); took > 9*time.Second {
		t.Errorf("no topic: after %v", took)
	}
	// A reader waits for its topic.
	r := start(t, opened(t, "brokers", k.Addr, "topics", "yet", "initialOffset", "oldest", "consumerGroup", "yet"), nil)
	k.CreateTopic(t, "yet", 1)
	put(t, client(t, k, kgo.RecordPartitioner(kgo.ManualPartitioner())), "yet", 0, "one")
	r.until("one")
}

// lines keeps a log for when it is wanted.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
