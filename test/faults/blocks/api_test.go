//go:build unix

package blocks

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/test/harness"
)

const (
	// deadline is what the sidecar is given for a call.
	deadline = 2 * time.Second
	// slack is how much later than its deadline a call may end on a busy machine.
	slack = 2 * time.Second
	// patience is how long the client waits for the sidecar's answer.
	patience = deadline + slack + 6*time.Second
)

// api calls the gRPC API of a sidecar with unary calls. A gRPC client would end them by itself at
// their deadline, whatever the sidecar does; this one waits for the sidecar to end them.
type api struct {
	target string
	client *http.Client
}

func newAPI(t testing.TB, s *harness.Sidecar) *api {
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: protocols, DialContext: s.Dial, DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &api{target: "http://" + s.Target(), client: &http.Client{Transport: tr}}
}

// call makes one call, once. An answer of the sidecar other than OK is a status error.
func (a *api) call(ctx context.Context, method string, in, out proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	msg, err := proto.Marshal(in)
	if err != nil {
		return err
	}
	frame := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(msg)))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, a.target+method, bytes.NewReader(append(frame, msg...)))
	if err != nil {
		return err
	}
	req.GetBody = nil // never sent again
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	req.Header.Set("Grpc-Timeout", strconv.FormatInt(deadline.Milliseconds(), 10)+"m")
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	end := resp.Trailer
	if end.Get("Grpc-Status") == "" {
		end = resp.Header // no message came
	}
	code, err := strconv.ParseUint(end.Get("Grpc-Status"), 10, 32)
	if err != nil {
		return fmt.Errorf("%s answered without a status: HTTP %d, %q", method, resp.StatusCode, body)
	}
	if code != 0 {
		text, err := url.PathUnescape(end.Get("Grpc-Message"))
		if err != nil {
			text = end.Get("Grpc-Message")
		}
		return status.Error(codes.Code(code), text)
	}
	if len(body) < 5 || int(binary.BigEndian.Uint32(body[1:])) != len(body)-5 {
		return fmt.Errorf("%w: %s has a damaged frame of %d bytes", errWrong, method, len(body))
	}
	return proto.Unmarshal(body[5:], out)
}
