package nativeapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mecha-project/mecha/api/grpcapi"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/api/nativeapi"
	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/runtime/about"
	"github.com/mecha-project/mecha/runtime/pubsub/engine"
)

// consumeEnv makes the test binary a consumer of the address it holds, for benchmarks that measure
// one side only.
const consumeEnv = "MECHA_BENCH_CONSUME"

// feed is an engine that delivers n messages as fast as they are acknowledged, from several partitions,
// a few at a time. It costs next to nothing itself.
type feed struct {
	*noMessaging
	n, parts, atonce int
	data             []byte
}

type noMessaging struct{ nativeapi.Messaging }

type feeding struct {
	nativeapi.Consumer
	f    *feed
	tell func(engine.Event)
	mu   sync.Mutex
	sent int
	done int
	next []uint64
	end  chan struct{}
}

const benchWindow = 1024

func (f *feed) OpenConsumer(_ context.Context, _ string, _ engine.ConsumeOptions, tell func(engine.Event)) (nativeapi.Consumer, engine.ConsumeInfo, error) {
	return &feeding{f: f, tell: tell, next: make([]uint64, f.parts), end: make(chan struct{})}, engine.ConsumeInfo{}, nil
}

func (c *feeding) Run(ctx context.Context) error {
	for p := range c.f.parts {
		for range max(1, benchWindow/c.f.parts/c.f.atonce) {
			c.more(int32(p), c.f.atonce)
		}
	}
	select {
	case <-c.end:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *feeding) more(p int32, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = min(n, c.f.n-c.sent)
	if n <= 0 {
		return
	}
	ms := make([]engine.Message, n)
	now := time.Now()
	for i := range ms {
		c.next[p]++
		ms[i] = engine.Message{LogRecord: block.LogRecord{Message: block.Message{Key: "customer-4711", Data: c.f.data}, Position: c.next[p], Time: now}, Attempt: 1}
	}
	c.sent += n
	c.tell(engine.Deliver{Part: engine.Part{Topic: "orders", ID: p}, Epoch: 1, Messages: ms})
}

func (c *feeding) Ack(p engine.Part, _ uint64, ranges []engine.Range) error {
	n := 0
	for _, r := range ranges {
		n += int(r.To-r.From) + 1
	}
	c.mu.Lock()
	c.done += n
	if c.done == c.f.n {
		close(c.end)
	}
	c.mu.Unlock()
	c.more(p.ID, n)
	return nil
}

func (c *feeding) Close(bool) {}

// consumeAll reads and acknowledges all there is, a frame at a time.
func consumeAll(ctx context.Context, target string) error {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	st, err := mechav1.NewMessagingClient(conn).Consume(ctx)
	if err != nil {
		return err
	}
	if err := st.Send(&mechav1.ConsumerFrame{Frame: &mechav1.ConsumerFrame_Open{Open: &mechav1.ConsumeOpen{PubsubName: "pubsub", Topics: []string{"orders"}}}}); err != nil {
		return err
	}
	for {
		f, err := st.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if d := f.GetDeliver(); d != nil {
			ms := d.GetMessages()
			if err := st.Send(ackFrame(d, ms[0].GetPosition(), ms[len(ms)-1].GetPosition())); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
		}
	}
}

// BenchmarkConsume is the cost of a message of 256 bytes from the engine to the app and of its
// acknowledgement, over TCP: cpu-µs is processor time of the edge and the app's gRPC client ("both"), or
// of the edge alone. atonce is how many messages the engine hands over together.
func BenchmarkConsume(b *testing.B) {
	for _, atonce := range []int{64, 16, 4, 1} {
		for _, side := range []string{"both", "edge"} {
			b.Run(fmt.Sprintf("%s/atonce=%d", side, atonce), func(b *testing.B) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					b.Fatal(err)
				}
				native := &nativeapi.Server{Messaging: &feed{n: b.N, parts: 16, atonce: atonce, data: make([]byte, 256)}}
				s := grpcapi.New(grpcapi.Options{Native: native.Register, MaxMessage: 4 << 20, About: &about.Sidecar{}})
				go func() { _ = s.Serve(context.Background(), l) }()
				defer func() {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					_ = s.Drain(ctx)
				}()
				b.ReportAllocs()
				before := cpuTime()
				b.ResetTimer()
				if side == "edge" {
					cmd := exec.CommandContext(b.Context(), os.Args[0])
					cmd.Env = append(os.Environ(), consumeEnv+"="+l.Addr().String())
					if out, err := cmd.CombinedOutput(); err != nil {
						b.Fatalf("%v: %s", err, out)
					}
				} else if err := consumeAll(b.Context(), l.Addr().String()); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				b.ReportMetric(float64((cpuTime()-before).Nanoseconds())/float64(b.N)/1e3, "cpu-µs/op")
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			})
		}
	}
}
