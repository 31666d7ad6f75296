package h1_test

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/mecha-project/mecha/api/h1"
	"github.com/mecha-project/mecha/components/fault"
)

// TestAPartlyWrittenPostIsNotRepeated: the origin takes the head of a second request on a kept
// connection, acts on it and resets the connection, so that the rest of the body cannot be
// written. It has seen the request: a second one would act twice.
func TestAPartlyWrittenPostIsNotRepeated(t *testing.T) {
	const answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
	resetting := func(nc net.Conn, rd *bufio.Reader) {
		take(rd)
		_, _ = io.WriteString(nc, answer)
		if req, err := http.ReadRequest(rd); err == nil && req.Method != "" {
			_ = nc.(*net.TCPConn).SetLinger(0)
			_ = nc.Close()
		}
	}
	for _, method := range []string{"POST", "PATCH"} {
		t.Run(method, func(t *testing.T) {
			c, dials := client(t, script(t, resetting, answering(answer)))
			r, err := c.Do(t.Context(), &h1.Request{})
			whole(t, r, err)
			// Far beyond what socket buffers take, so that the write is cut.
			_, err = c.Do(t.Context(), &h1.Request{Method: method, Body: bytes.Repeat([]byte("x"), 16<<20)})
			if fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe || dials.Load() != 1 {
				t.Errorf("got %v over %d connections, want an error and no repetition", err, dials.Load())
			}
		})
	}
}
