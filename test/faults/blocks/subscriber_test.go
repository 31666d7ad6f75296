//go:build unix

package blocks

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mecha-project/mecha/test/harness"
)

// subscriber is told of one configuration item.
type subscriber struct {
	mu   sync.Mutex
	told []string // guarded by mu
	err  error    // guarded by mu; the stream's end
}

// subscribe returns when the subscription stands.
func subscribe(t testing.TB, s *harness.Sidecar, store, key string) *subscriber {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+s.Target(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return s.Dial(ctx, "tcp", addr) }))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := runtimev1.NewDaprClient(conn).SubscribeConfiguration(ctx, &runtimev1.SubscribeConfigurationRequest{StoreName: store, Keys: []string{key}})
	if err == nil {
		_, err = stream.Recv() // the id comes first
	}
	if err != nil {
		t.Fatal("subscribing: ", err)
	}
	sub, done := &subscriber{}, make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := stream.Recv()
			sub.mu.Lock()
			if err != nil {
				sub.err = err
				sub.mu.Unlock()
				return
			}
			if it := m.GetItems()[key]; it != nil {
				sub.told = append(sub.told, it.GetValue())
			}
			sub.mu.Unlock()
		}
	}()
	t.Cleanup(func() { cancel(); <-done; conn.Close() })
	return sub
}

// hears waits until the last that was told is this.
func (s *subscriber) hears(t testing.TB, want string, limit time.Duration) time.Duration {
	t.Helper()
	return soon(t, limit, "being told of "+want, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			t.Fatal("the subscription ended: ", s.err)
		}
		return len(s.told) > 0 && s.told[len(s.told)-1] == want
	})
}
