package h2_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/runtime/call"
)

// BenchmarkUnary is one unary echo of 1 KiB over TCP loopback, both ends in this process:
// cpu-µs/op and allocations are those of both together. With grpc-go on one end or both it
// tells what a leg costs: ours ↔ grpc-go less half of grpc-go ↔ grpc-go.
func BenchmarkUnary(b *testing.B) {
	for _, callers := range []int{1, 32} {
		b.Run(fmt.Sprintf("h2-h2/%d", callers), func(b *testing.B) {
			benchOurs(b, serve(b, &h2.Server{Handler: echo}), callers)
		})
		b.Run(fmt.Sprintf("h2client-grpc/%d", callers), func(b *testing.B) {
			addr, _ := grpcServer(b, grpcEcho)
			benchOurs(b, addr, callers)
		})
		b.Run(fmt.Sprintf("grpc-h2server/%d", callers), func(b *testing.B) {
			benchGRPC(b, serve(b, &h2.Server{Handler: echo}), callers)
		})
		b.Run(fmt.Sprintf("grpc-grpc/%d", callers), func(b *testing.B) {
			addr, _ := grpcServer(b, grpcEcho)
			benchGRPC(b, addr, callers)
		})
	}
}

func benchOurs(b *testing.B, addr string, callers int) {
	c := client(b, addr)
	payload := message(make([]byte, 1<<10))
	fields := call.Fields{{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}, {Name: "user-agent", Value: "bench"}}
	req := &h2.Request{Authority: "bench", Path: "/bench.Echo/Call", Fields: fields, Body: payload, End: true}
	run(b, callers, func(ctx context.Context) error {
		st, err := c.Do(ctx, req)
		if err != nil {
			return err
		}
		defer st.Close()
		got, ended := st.First()
		if !ended {
			rest, err := body(st)
			if err != nil {
				return err
			}
			got = append(append([]byte(nil), got...), rest...)
		}
		if len(got) != len(payload) || st.Trailer().Get("grpc-status") != "0" {
			return fmt.Errorf("%d bytes, trailer %v", len(got), st.Trailer())
		}
		return nil
	})
}

func benchGRPC(b *testing.B, addr string, callers int) {
	c := grpcClient(b, addr)
	payload := make([]byte, 1<<10)
	run(b, callers, func(ctx context.Context) error {
		var got []byte
		return c.Invoke(ctx, "/bench.Echo/Call", &payload, &got, grpc.WaitForReady(true))
	})
}

func run(b *testing.B, callers int, do func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := do(ctx); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	begin := cpuTime()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := do(ctx); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64((cpuTime()-begin).Microseconds())/float64(b.N), "cpu-µs/op")
}
