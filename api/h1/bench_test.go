package h1_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/runtime/call"
)

var kib = bytes.Repeat([]byte("m"), 1024)

func echo(ex *h1.Exchange) {
	_ = ex.Context()
	body, err := ex.ReadBody(4 << 20)
	if err != nil {
		_ = ex.Respond(400, nil, nil)
		return
	}
	_ = ex.Respond(200, jsonType, body)
}

var jsonType = call.Fields{{Name: "Content-Type", Value: "application/json"}}

// BenchmarkServerEcho is one exchange of 1 KiB each way, against a caller that costs nothing
// but its system calls.
func BenchmarkServerEcho(b *testing.B) {
	addr := serve(b, echo)
	request := []byte("POST /v1.0/state/store?metadata.a=b HTTP/1.1\r\nHost: localhost:3500\r\nUser-Agent: bench/1\r\nContent-Type: application/json\r\nAccept: */*\r\nContent-Length: 1024\r\n\r\n")
	request = append(request, kib...)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer nc.Close()
		rd := bufio.NewReader(nc)
		size := 0
		for pb.Next() {
			if _, err := nc.Write(request); err != nil {
				b.Error(err)
				return
			}
			if size == 0 { // learn the size of the answer once
				for {
					line, err := rd.ReadSlice('\n')
					if err != nil {
						b.Error(err)
						return
					}
					size += len(line)
					if len(line) == 2 {
						break
					}
				}
				size += len(kib)
				_, _ = io.CopyN(io.Discard, rd, int64(len(kib)))
				continue
			}
			if _, err := rd.Discard(size); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
