package link_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/mecha-project/mecha/api/link"
)

// BenchmarkUnary is one echo call over TCP loopback with both ends in this process: cpu-µs/op and
// allocations are those of both together.
func BenchmarkUnary(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10} {
		for _, callers := range []int{1, 32} {
			b.Run(fmt.Sprintf("%dKiB/%d", size>>10, callers), func(b *testing.B) { benchUnary(b, tcpPair, size, callers) })
		}
	}
}

// BenchmarkUnaryTLS is BenchmarkUnary with 1 KiB over TLS 1.3, whose writes go through a goroutine.
func BenchmarkUnaryTLS(b *testing.B) {
	for _, callers := range []int{1, 32} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) { benchUnary(b, tlsPair, 1<<10, callers) })
	}
}

func benchUnary(b *testing.B, pair func(testing.TB) (net.Conn, net.Conn), size, callers int) {
	c, _ := sessions(b, pair, link.Config{}, link.Config{Handler: echo})
	head, body := make([]byte, 64), make([]byte, size)
	ctx := context.Background()
	b.ReportAllocs()
	b.SetBytes(int64(2 * size))
	begin := cpuTime()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if n, err := benchCall(ctx, c, head, body); err != nil || n != size {
					b.Errorf("call: %d bytes, %v", n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64((cpuTime()-begin).Microseconds())/float64(b.N), "cpu-µs/op")
}

// benchCall is a unary call whose answer is passed on, as a proxy does.
func benchCall(ctx context.Context, s *link.Session, head, body []byte) (int, error) {
	st, err := s.Open(ctx, head, body, true)
	if err != nil {
		return 0, err
	}
	_, first, final, err := st.RecvHead(ctx)
	if err != nil || final {
		return len(first), err
	}
	n, err := io.Copy(io.Discard, st)
	return len(first) + int(n), err
}

// BenchmarkUnaryWhole is BenchmarkUnary with 64 KiB, whose answer is gathered in one piece.
func BenchmarkUnaryWhole(b *testing.B) {
	c, _ := sessions(b, tcpPair, link.Config{}, link.Config{Handler: echo})
	ctx, body := context.Background(), make([]byte, 64<<10)
	b.ReportAllocs()
	begin := cpuTime()
	for b.Loop() {
		st, err := c.Open(ctx, nil, body, true)
		if err != nil {
			b.Fatal(err)
		}
		_, first, _, err := st.RecvHead(ctx)
		if err != nil {
			b.Fatal(err)
		}
		if got, err := st.ReadRest(first, 1<<20); err != nil || len(got) != len(body) {
			b.Fatal(len(got), err)
		}
	}
	b.ReportMetric(float64((cpuTime()-begin).Microseconds())/float64(b.N), "cpu-µs/op")
}

// BenchmarkStream moves b.N MiB one way.
func BenchmarkStream(b *testing.B) {
	for _, piece := range []int{4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("%dKiB", piece>>10), func(b *testing.B) {
			c, _ := sessions(b, tcpPair, link.Config{}, link.Config{Handler: func(st *link.Stream) {
				n, _ := io.Copy(io.Discard, st)
				_ = st.SendHead([]byte(fmt.Sprint(n)), nil, true, nil)
			}})
			ctx := context.Background()
			data := bytes.Repeat([]byte("x"), piece)
			b.SetBytes(1 << 20)
			begin := cpuTime()
			b.ResetTimer()
			st, err := c.Open(ctx, nil, nil, false)
			if err != nil {
				b.Fatal(err)
			}
			for range b.N * (1 << 20 / piece) {
				if _, err := st.Write(data); err != nil {
					b.Fatal(err)
				}
			}
			if err := st.CloseWrite(nil); err != nil {
				b.Fatal(err)
			}
			head, _, _, err := st.RecvHead(ctx)
			if want := fmt.Sprint(b.N << 20); err != nil || string(head) != want {
				b.Fatalf("receiver counted %s, %v; want %s", head, err, want)
			}
			b.StopTimer()
			b.ReportMetric(float64((cpuTime()-begin).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}
