package mqtt_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/mqtt"
	"github.com/mecha-project/mecha/test/servers"
)

var shared servers.Shared[*servers.Mosquitto]

func TestMain(m *testing.M) { goleak.VerifyTestMain(shared.Main(m)) }

// server is the one that all tests share.
func server(t testing.TB) *servers.Mosquitto {
	t.Helper()
	return shared.Get(t, func(tb testing.TB) *servers.Mosquitto { return servers.MosquittoWith(tb, servers.SaveAlways...) })
}

func address(t testing.TB) string { m := server(t); return m.URL("tcp", m.Port) }

type event = block.BindingEvent

// both is a topic in both directions.
type both interface {
	block.Input
	block.Output
}

func tryOpen(log *slog.Logger, metadata ...string) (both, error) {
	c := mqtt.DefaultBindingConfig()
	if err := conf.Decode(conf.Items(metadata...), c, conf.Also(conf.ServiceKeys("bindings")...)).Err(); err != nil {
		return nil, err
	}
	b, err := mqtt.NewBinding(block.Env{Log: log, AppID: "app", Component: "topic"}, c)
	if err != nil {
		return nil, err
	}
	return b.(both), nil
}

// open opens a topic until the test ends.
func open(t testing.TB, url string, metadata ...string) both {
	t.Helper()
	return openLogged(t, slog.New(slog.DiscardHandler), url, metadata...)
}

func openLogged(t testing.TB, log *slog.Logger, url string, metadata ...string) both {
	t.Helper()
	b, err := tryOpen(log, append([]string{"url", url}, metadata...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

// own is a name of the test's own.
func own(t testing.TB) string {
	return fmt.Sprintf("%s-%d", strings.ReplaceAll(t.Name(), "/", "-"), time.Now().UnixNano())
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func create(t testing.TB, b block.Output, data string, metadata ...string) {
	t.Helper()
	if err := tryCreate(soon(t), b, data, metadata...); err != nil {
		t.Fatalf("create %q: %v", data, err)
	}
}

func tryCreate(ctx context.Context, b block.Output, data string, metadata ...string) error {
	r := block.BindingRequest{Operation: "create", Data: []byte(data), Metadata: map[string]string{}}
	for i := 0; i+1 < len(metadata); i += 2 {
		r.Metadata[metadata[i]] = metadata[i+1]
	}
	answer, err := b.Invoke(ctx, r)
	if err == nil && answer != nil {
		return fmt.Errorf("an answer: %+v", answer)
	}
	return err
}

// reader reads a topic.
type reader struct {
	events chan event
	stop   func() error
}

// read starts reading. answer says what the app does with an event; nil: it takes all.
func read(t testing.TB, b block.Input, answer func(context.Context, event) error) *reader {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	r := &reader{events: make(chan event, 10_000)}
	go func() {
		done <- b.Read(ctx, func(ctx context.Context, e event) ([]byte, error) {
			var err error
			if answer != nil {
				err = answer(ctx, e)
			}
			r.events <- e
			return nil, err
		})
	}()
	r.stop = sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			t.Error("Read does not end with its context")
			return nil
		}
	})
	t.Cleanup(func() { _ = r.stop() })
	return r
}

// next is the next event.
func (r *reader) next(t testing.TB) event {
	t.Helper()
	select {
	case e := <-r.events:
		return e
	case <-time.After(30 * time.Second):
		t.Fatal("no event came")
		return event{}
	}
}

// begun waits until the reader of a topic gets what is sent: MQTT has no queue before somebody has
// subscribed. The events of this are gone then.
func (r *reader) begun(t testing.TB, out block.Output, topic string) {
	t.Helper()
	eventually(t, func() error {
		create(t, out, "begun?", "topic", topic)
		select {
		case <-r.events:
			return nil
		case <-time.After(100 * time.Millisecond):
			return fmt.Errorf("nobody reads %s", topic)
		}
	})
	create(t, out, "begun!", "topic", topic)
	for string(r.next(t).Data) != "begun!" {
	}
}

// eventually waits until check succeeds.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// logs keeps what is logged.
type logs struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func TestConformance(t *testing.T) {
	url := address(t)
	t.Run("output", func(t *testing.T) {
		blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
			n := 0
			return blocktest.OutputPlace{Open: func() block.Output { n++; return open(t, url, "topic", own(t), "consumerID", fmt.Sprint(own(t), n)) },
				Works: block.BindingRequest{Operation: "create", Data: []byte("data"), Metadata: map[string]string{"a": "1"}}}
		})
	})
	t.Run("input", func(t *testing.T) {
		blocktest.Input(t, func(t *testing.T) blocktest.InputPlace {
			topic := own(t)
			out := open(t, url, "topic", topic, "retain", "true", "consumerID", own(t))
			// Retained: it comes although it was sent before the reader subscribed.
			return blocktest.InputPlace{Open: func() block.Input { return open(t, url, "topic", topic, "consumerID", own(t)) }, Cause: func() { create(t, out, "event") }}
		})
	})
}
