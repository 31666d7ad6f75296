package rabbitmq_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/rabbitmq"
	"github.com/mecha-project/mecha/test/servers"
)

var shared servers.Shared[*servers.RabbitMQ]

func TestMain(m *testing.M) { goleak.VerifyTestMain(shared.Main(m)) }

// server is the one that all tests share.
func server(t testing.TB) *servers.RabbitMQ {
	t.Helper()
	return shared.Get(t, servers.StartRabbitMQ)
}

// both is a queue in both directions.
type both interface {
	block.Input
	block.Output
}

// tryOpen opens a queue.
func tryOpen(log *slog.Logger, metadata ...string) (both, error) {
	c := rabbitmq.DefaultBindingConfig()
	if err := conf.Decode(conf.Items(metadata...), c, conf.Also(conf.ServiceKeys("bindings")...)).Err(); err != nil {
		return nil, err
	}
	b, err := rabbitmq.NewBinding(block.Env{Log: log, AppID: "app", Component: "queue"}, c)
	if err != nil {
		return nil, err
	}
	return b.(both), nil
}

// open opens a queue until the test ends.
func open(t testing.TB, url string, metadata ...string) both {
	t.Helper()
	return openLogged(t, slog.New(slog.DiscardHandler), url, metadata...)
}

func openLogged(t testing.TB, log *slog.Logger, url string, metadata ...string) both {
	t.Helper()
	b, err := tryOpen(log, append([]string{"host", url}, metadata...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

// queueName is the test's own.
func queueName(t testing.TB) string {
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

// reader reads a queue.
type reader struct {
	events chan block.BindingEvent
	stop   func() error
}

// read starts reading. answer says what the app does with an event; nil: it takes all.
func read(t testing.TB, b block.Input, answer func(context.Context, block.BindingEvent) error) *reader {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	r := &reader{events: make(chan block.BindingEvent, 10_000)}
	go func() {
		done <- b.Read(ctx, func(ctx context.Context, e block.BindingEvent) ([]byte, error) {
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
func (r *reader) next(t testing.TB) block.BindingEvent {
	t.Helper()
	select {
	case e := <-r.events:
		return e
	case <-time.After(30 * time.Second):
		t.Fatal("no event came")
		return block.BindingEvent{}
	}
}

type event = block.BindingEvent

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

// broker is a client of the test's own.
func broker(t testing.TB, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
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
	url := server(t).URL()
	t.Run("output", func(t *testing.T) {
		blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
			name := queueName(t)
			return blocktest.OutputPlace{Open: func() block.Output { return open(t, url, "queueName", name, "deleteWhenUnused", "true") },
				Works: block.BindingRequest{Operation: "create", Data: []byte("data"), Metadata: map[string]string{"a": "1"}}}
		})
	})
	t.Run("input", func(t *testing.T) {
		blocktest.Input(t, func(t *testing.T) blocktest.InputPlace {
			name := queueName(t)
			out := open(t, url, "queueName", name)
			return blocktest.InputPlace{Open: func() block.Input { return open(t, url, "queueName", name) }, Cause: func() { create(t, out, "event") }}
		})
	})
}
