//go:build unix

package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/mecha-project/mecha/test/harness"
)

// What is streamed takes long enough to be cut off: pieces with pauses between them.
const (
	pieces    = 20
	pieceSize = 8 << 10
	pieceWait = 2 * time.Millisecond
)

// piece is the i-th part of a body that belongs to number n.
func piece(n int64, i int) []byte {
	b := make([]byte, pieceSize)
	for at := range b {
		b[at] = byte(int(n)*31 + i*7 + at)
	}
	return b
}

// stream answers a long body of unknown length.
func stream(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	for i := range pieces {
		if _, err := w.Write(piece(n, i)); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		time.Sleep(pieceWait)
	}
}

func (echoService) StreamingOutputCall(in *grpc_testing.StreamingOutputCallRequest, out grpc_testing.TestService_StreamingOutputCallServer) error {
	for range in.GetResponseParameters() {
		if err := out.Send(&grpc_testing.StreamingOutputCallResponse{Payload: in.GetPayload()}); err != nil {
			return err
		}
		time.Sleep(pieceWait)
	}
	return nil
}

// download reads a streamed answer. One that ends in order must be whole.
func download(t testing.TB, s *harness.Sidecar, app string) caller {
	client := newClient(t)
	return func(ctx context.Context, n int64) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL(fmt.Sprintf("/v1.0/invoke/%s/method/stream?n=%d", app, n)), nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			return err
		case resp.StatusCode != http.StatusOK:
			return fmt.Errorf("%d %s", resp.StatusCode, got)
		case len(got) != pieces*pieceSize:
			return fmt.Errorf("%w: a body of %d bytes instead of %d ended in order", errWrong, len(got), pieces*pieceSize)
		}
		for i := range pieces {
			if string(got[i*pieceSize:(i+1)*pieceSize]) != string(piece(n, i)) {
				return fmt.Errorf("%w: piece %d is another's", errWrong, i)
			}
		}
		return nil
	}
}

// serverStream reads a gRPC stream. One that ends in order must be whole.
func serverStream(t testing.TB, s *harness.Sidecar, app string) caller {
	client := grpc_testing.NewTestServiceClient(connect(t, s))
	return func(ctx context.Context, n int64) error {
		want := fmt.Sprintf("call %d", n)
		in := &grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: []byte(want)}, ResponseParameters: make([]*grpc_testing.ResponseParameters, pieces)}
		for i := range in.ResponseParameters {
			in.ResponseParameters[i] = &grpc_testing.ResponseParameters{}
		}
		ss, err := client.StreamingOutputCall(metadata.AppendToOutgoingContext(ctx, "dapr-app-id", app), in)
		if err != nil {
			return err
		}
		for got := 0; ; got++ {
			m, err := ss.Recv()
			if errors.Is(err, io.EOF) {
				if got != pieces {
					return fmt.Errorf("%w: a stream of %d messages instead of %d ended in order", errWrong, got, pieces)
				}
				return nil
			}
			if err != nil {
				return err
			}
			if string(m.GetPayload().GetBody()) != want {
				return fmt.Errorf("%w: %q to %q", errWrong, m.GetPayload().GetBody(), want)
			}
		}
	}
}

// Answers are cut off in the middle, by the death of the app and of each sidecar. Nobody may
// take what came so far for the whole.
func TestAnswersCutShort(t *testing.T) {
	s := newStage(t)
	l := begin(t, "streamed answers cut short", 16, download(t, s.caller, "web"), serverStream(t, s.caller, "rpc"))
	l.warm()
	s.webApp.kill()
	s.rpcApp.kill()
	s.webApp.start()
	s.rpcApp.start()
	l.awaitGood(10 * time.Second)
	s.web.Kill()
	s.rpc.Kill()
	s.webOpt.Ports, s.rpOpt.Ports = s.web.Ports(), s.rpc.Ports()
	s.mesh.Start(s.webOpt)
	s.mesh.Start(s.rpOpt)
	l.awaitGood(10 * time.Second)
	s.caller.Kill()
	s.mesh.Start(harness.Options{AppID: "caller", Ports: s.caller.Ports()})
	finish(t, l, l.now(), limits{failures: -1, outage: 5 * time.Second, recovery: 2 * time.Second})
}

// upload sends a body of unknown length, with the length it will have in a header.
func upload(t testing.TB, s *harness.Sidecar, app string) caller {
	client := newClient(t)
	return func(ctx context.Context, n int64) error {
		read, write := io.Pipe()
		go func() {
			for i := range pieces {
				if _, err := write.Write(piece(n, i)); err != nil {
					return
				}
				time.Sleep(pieceWait)
			}
			write.Close()
		}()
		defer read.Close()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL("/v1.0/invoke/"+app+"/method/upload"), read)
		if err != nil {
			return err
		}
		req.Header.Set("X-Number", strconv.FormatInt(n, 10))
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		switch {
		case err != nil:
			return err
		case resp.StatusCode != http.StatusOK:
			return fmt.Errorf("%d %s", resp.StatusCode, got)
		case string(got) != strconv.Itoa(pieces*pieceSize):
			return fmt.Errorf("%w: the app took %s bytes of %d", errWrong, got, pieces*pieceSize)
		}
		return nil
	}
}

// Requests are cut off in the middle, by the death of each sidecar. The app must see that they
// broke, and not take what came so far for the whole.
func TestRequestsCutShort(t *testing.T) {
	var short, broken atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		n, _ := strconv.ParseInt(r.Header.Get("X-Number"), 10, 64)
		switch {
		case err != nil:
			broken.Add(1)
			return
		case len(body) != pieces*pieceSize || body[len(body)-1] != piece(n, pieces-1)[pieceSize-1]:
			short.Add(1)
		}
		fmt.Fprint(w, len(body))
	})
	port := harness.Serve(t, mux)
	mesh := harness.NewMesh(t)
	options := harness.Options{AppID: "web", AppPort: port}
	callee, caller := mesh.Start(options), mesh.Start(harness.Options{AppID: "caller"})
	l := begin(t, "streamed requests cut short", 16, upload(t, caller, "web"), upload(t, callee, "web"))
	l.warm()
	caller.Kill()
	mesh.Start(harness.Options{AppID: "caller", Ports: caller.Ports()})
	l.awaitGood(10 * time.Second)
	callee.Kill()
	options.Ports = callee.Ports()
	mesh.Start(options)
	finish(t, l, l.now(), limits{failures: -1, outage: 5 * time.Second, recovery: 2 * time.Second})
	if n := short.Load(); n > 0 {
		t.Errorf("the app took %d broken requests for whole ones", n)
	}
	if broken.Load() == 0 {
		t.Error("no request broke in the middle: the test did not test")
	}
}
