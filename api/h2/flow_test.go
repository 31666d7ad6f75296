package h2_test

import (
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/mecha-project/mecha/api/h2"
	"github.com/mecha-project/mecha/components/fault"
)

// A handler that gives the request up goes on answering, and its reader is not stuck.
func TestCloseRead(t *testing.T) {
	read := make(chan error, 1)
	c := grpcClient(t, serve(t, &h2.Server{Handler: func(st *h2.Stream) {
		go func() {
			var err error
			for buf := make([]byte, 1<<10); err == nil; {
				_, err = st.Read(buf)
			}
			read <- err
		}()
		time.Sleep(10 * time.Millisecond)
		st.CloseRead()
		if err := <-read; fault.Of(err) != fault.Canceled {
			t.Errorf("the read ended with %v", err)
		}
		_ = st.Respond(200, grpcHeader, message([]byte("enough")), grpcOK)
	}}))
	st, err := c.NewStream(within(t, 10*time.Second), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/s/m")
	if err != nil {
		t.Fatal(err)
	}
	in, out := make([]byte, 10<<10), []byte(nil)
	for range 100 {
		if st.SendMsg(&in) != nil {
			break
		}
	}
	if err := st.RecvMsg(&out); err != nil || string(out) != "enough" {
		t.Errorf("got %q, %v", out, err)
	}
}
