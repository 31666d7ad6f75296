package h1_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/runtime/call"
)

var (
	kib      = bytes.Repeat([]byte("m"), 1024)
	jsonType = call.Fields{{Name: "Content-Type", Value: "application/json"}}
)

func echo(ex *h1.Exchange) {
	_ = ex.Context()
	body, err := ex.ReadBody(4 << 20)
	if err != nil {
		_ = ex.Respond(400, nil, nil)
		return
	}
	_ = ex.Respond(200, jsonType, body)
}

// rawCall writes a fixed request and reads answers of a size learnt from the first: a caller
// that costs little but its system calls.
type rawCall struct {
	nc   net.Conn
	rd   *bufio.Reader
	size int
}

var rawRequest = append([]byte("POST /v1.0/state/store?metadata.a=b HTTP/1.1\r\nHost: localhost:3500\r\nUser-Agent: bench/1\r\nContent-Type: application/json\r\nAccept: */*\r\nContent-Length: 1024\r\n\r\n"), kib...)

func (c *rawCall) do() error {
	if _, err := c.nc.Write(rawRequest); err != nil {
		return err
	}
	if c.size > 0 {
		_, err := c.rd.Discard(c.size)
		return err
	}
	for {
		line, err := c.rd.ReadSlice('\n')
		if err != nil {
			return err
		}
		c.size += len(line)
		if len(line) == 2 {
			break
		}
	}
	c.size += len(kib)
	_, err := c.rd.Discard(len(kib))
	return err
}

// callers runs b.N raw calls over 32 connections.
func callers(b *testing.B, addr string) {
	b.Helper()
	b.ReportAllocs()
	b.SetParallelism(16) // times GOMAXPROCS 2 makes the 32 callers of the budget
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer nc.Close()
		c := rawCall{nc: nc, rd: bufio.NewReaderSize(nc, 8<<10)}
		for pb.Next() {
			if err := c.do(); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// rawServe answers every request of 1 KiB with 1 KiB, without looking at it.
func rawServe(b *testing.B) string {
	b.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ln.Close() })
	answer := append([]byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Fri, 20 Nov 2026 09:00:00 GMT\r\nContent-Length: 1024\r\n\r\n"), kib...)
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				rd := bufio.NewReader(nc)
				for {
					for {
						line, err := rd.ReadSlice('\n')
						if err != nil {
							return
						}
						if len(line) == 2 {
							break
						}
					}
					if _, err := rd.Discard(1024); err != nil {
						return
					}
					if _, err := nc.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return ln.Addr().String()
}

// BenchmarkServerEcho is one exchange of 1 KiB each way.
func BenchmarkServerEcho(b *testing.B) { callers(b, serve(b, echo)) }

// BenchmarkDirect is what the benchmark's own caller and origin cost, to be subtracted.
func BenchmarkDirect(b *testing.B) { callers(b, rawServe(b)) }

// BenchmarkProxyPair is a call through two proxies, as through two sidecars.
func BenchmarkProxyPair(b *testing.B) {
	b.Run("h1", func(b *testing.B) {
		addr := rawServe(b)
		for range 2 {
			c, _ := client(b, addr)
			addr = serve(b, func(ex *h1.Exchange) { forward(ex, c) })
		}
		callers(b, addr)
	})
	b.Run("nethttp", func(b *testing.B) {
		addr := rawServe(b)
		for range 2 {
			p := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
			tr := &http.Transport{MaxIdleConnsPerHost: 512, DisableCompression: true}
			b.Cleanup(tr.CloseIdleConnections)
			p.Transport = tr
			s := httptest.NewServer(p)
			b.Cleanup(s.Close)
			addr = s.Listener.Addr().String()
		}
		callers(b, addr)
	})
}

// BenchmarkClientDo is one call of 1 KiB each way.
func BenchmarkClientDo(b *testing.B) {
	ending, cancel := context.WithCancel(context.Background())
	defer cancel()
	for name, ctx := range map[string]context.Context{"endless": context.Background(), "cancellable": ending} {
		b.Run(name, func(b *testing.B) {
			c, _ := client(b, rawServe(b))
			b.ReportAllocs()
			defer reportCPU(b)()
			b.RunParallel(func(pb *testing.PB) {
				req := h1.Request{Method: "POST", Target: "/v1.0/x", Fields: jsonType, Body: kib}
				for pb.Next() {
					r, err := c.Do(ctx, &req)
					if err != nil || len(r.Data) != 1024 {
						b.Errorf("%v", err)
						return
					}
					r.Close()
				}
			})
		})
	}
}

// BenchmarkStream is 64 KiB each way through a streaming proxy.
func BenchmarkStream(b *testing.B) {
	body := make([]byte, 64<<10)
	origin := serve(b, func(ex *h1.Exchange) {
		_, _ = io.Copy(io.Discard, ex.Body())
		_ = ex.Start(200, nil, call.Unknown)
		_, _ = ex.Write(body)
		_ = ex.End(nil)
	})
	c, _ := client(b, origin)
	proxy, _ := client(b, serve(b, func(ex *h1.Exchange) { forward(ex, c) }))
	b.SetBytes(2 * int64(len(body)))
	b.ReportAllocs()
	defer reportCPU(b)()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r, err := proxy.Do(context.Background(), &h1.Request{Method: "POST", Stream: bytes.NewReader(body), Length: call.Unknown})
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, r.Stream)
			r.Close()
		}
	})
}
