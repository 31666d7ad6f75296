package httpapi_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mecha-project/mecha/runtime/call"
)

// TestTrailersAfterTheAnswer: an app may answer before it has the whole body. What carries the
// body on then asks for its trailing fields when the request is over, and must get neither a
// panic nor those of the connection's next request.
func TestTrailersAfterTheAnswer(t *testing.T) {
	trailers := make(chan func() call.Fields, 2)
	k := newKit(withInvoke(func(ctx context.Context, req *call.Request, out call.Responder) error {
		trailers <- req.Trailer
		if _, err := io.Copy(io.Discard, req.Stream); err != nil {
			return err
		}
		if got := req.Trailer().Get("X-Sum"); got == "" {
			t.Error("no trailing fields during the call")
		}
		if len(trailers) == 2 {
			if late := (<-trailers)(); len(late) > 0 {
				t.Errorf("the first request has the trailing fields of the second: %v", late)
			}
		}
		return out.Respond(ctx, &call.Response{Status: 200})
	}))
	base, stop := serve(t, k)
	down := sync.OnceFunc(stop)
	defer down()
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	rd := bufio.NewReader(c)
	for range 2 {
		_, _ = io.WriteString(c, "POST /v1.0/invoke/a/method/m HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n")
		resp, err := http.ReadResponse(rd, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		resp.Body.Close()
	}
	c.Close()
	down() // the answer is here before the exchange is over
	if late := (<-trailers)(); len(late) > 0 {
		t.Errorf("trailing fields after the answer: %v", late)
	}
}
