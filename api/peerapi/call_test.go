package peerapi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestWholeCall(t *testing.T) {
	var got call.Request
	var from string
	p := newPair(t, func(ctx context.Context, req *call.Request, caller string, out call.Responder) error {
		got, from = *req, caller
		return out.Respond(ctx, &call.Response{Status: 201, Type: "text/plain", Header: call.Fields{{Name: "X-A", Value: "1"}, {Name: "X-A", Value: "2"}},
			Data: []byte("pong"), Trailer: func() call.Fields { return call.Fields{{Name: "X-T", Value: "t"}} }})
	})
	resp, err := p.Invoke(within(t), p.at, &call.Request{Target: "callee", Verb: "POST", Path: "a/b", Query: "q=1", Type: "text/x",
		Header: call.Fields{{Name: "dapr-caller-app-id", Value: "me"}}, Data: []byte("ping")})
	if err != nil {
		t.Fatal(err)
	}
	if got.Verb != "POST" || got.Path != "a/b" || got.Query != "q=1" || got.Type != "text/x" || string(got.Data) != "ping" || got.Length != 4 || got.Stream != nil || from != "me" {
		t.Errorf("the callee saw %+v from %q", got, from)
	}
	if resp.Status != 201 || resp.Type != "text/plain" || len(resp.Header) != 2 || resp.Length != 4 || resp.Stream != nil {
		t.Errorf("the caller saw %+v", resp)
	}
	if d := cmp.Diff(call.Fields{{Name: "X-T", Value: "t"}}, resp.Trailer()); d != "" {
		t.Errorf("trailer (-want +got):\n%s", d)
	}
	if body, _ := read(t, resp); body != "pong" {
		t.Errorf("body %q", body)
	}
}

func TestBodiesOfAllSizes(t *testing.T) {
	p := newPair(t, func(ctx context.Context, req *call.Request, _ string, out call.Responder) error {
		data := req.Data
		if req.Stream != nil {
			var err error
			if data, err = io.ReadAll(req.Stream); err != nil {
				return err
			}
		}
		resp := &call.Response{Status: 200, Data: data}
		if req.Query == "stream" {
			resp = &call.Response{Status: 200, Stream: io.NopCloser(bytes.NewReader(data)), Length: call.Unknown}
		}
		return out.Respond(ctx, resp)
	})
	for _, size := range []int{0, 1, 32 << 10, 64<<10 - 1, 64 << 10, 64<<10 + 1, 300 << 10, 5 << 20} {
		for _, up := range []string{"whole", "stream"} {
			for _, down := range []string{"whole", "stream"} {
				t.Run(fmt.Sprintf("%d up %s down %s", size, up, down), func(t *testing.T) {
					data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
					req := &call.Request{Target: "x", Verb: "POST", Query: down, Data: data}
					if up == "stream" {
						req.Data, req.Stream, req.Length = nil, io.NopCloser(bytes.NewReader(data)), call.Unknown
					}
					resp, err := p.Invoke(within(t), p.at, req)
					if err != nil {
						t.Fatal(err)
					}
					if (resp.Stream != nil) != (down == "stream") {
						t.Errorf("streamed: %v", resp.Stream != nil)
					}
					if body, err := read(t, resp); err != nil || body != string(data) {
						t.Errorf("%d bytes came back, %v", len(body), err)
					}
				})
			}
		}
	}
}

func TestAnswerToHEADKeepsItsLength(t *testing.T) {
	p := newPair(t, func(ctx context.Context, _ *call.Request, _ string, out call.Responder) error {
		return out.Respond(ctx, &call.Response{Status: 200, Length: 12345})
	})
	resp, err := p.Invoke(within(t), p.at, &call.Request{Target: "x", Verb: "HEAD"})
	if err != nil || resp.Length != 12345 || len(resp.Data) != 0 {
		t.Errorf("%+v, %v", resp, err)
	}
}

// Both bodies run at once, piece by piece: neither end may wait for the other's end.
func TestStreamsBothWaysWithTrailers(t *testing.T) {
	up := make(chan call.Fields, 1)
	p := newPair(t, func(ctx context.Context, req *call.Request, _ string, out call.Responder) error {
		r, w := pipe()
		go func() { // echoes in capitals
			buf := make([]byte, 100)
			for {
				n, err := req.Stream.Read(buf)
				if n > 0 {
					_, _ = w.Write(bytes.ToUpper(buf[:n]))
				}
				if err != nil {
					up <- req.Trailer()
					w.Close()
					return
				}
			}
		}()
		return out.Respond(ctx, &call.Response{Status: 200, Stream: r, Length: call.Unknown,
			Trailer: func() call.Fields { return call.Fields{{Name: "grpc-status", Value: "0"}} }})
	})
	body, w := pipe()
	resp, err := p.Invoke(within(t), p.at, &call.Request{Target: "x", Stream: body, Length: call.Unknown,
		Trailer: func() call.Fields { return call.Fields{{Name: "X-Sum", Value: "9"}} }})
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	for _, word := range []string{"one", "two", "three"} {
		if _, err := w.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		n, err := resp.Stream.Read(buf)
		if err != nil || string(buf[:n]) != strings.ToUpper(word) {
			t.Fatalf("wrote %q, read %q, %v", word, buf[:n], err)
		}
	}
	w.Close()
	if rest, err := io.ReadAll(resp.Stream); err != nil || len(rest) != 0 {
		t.Errorf("then %q, %v", rest, err)
	}
	if d := cmp.Diff(call.Fields{{Name: "grpc-status", Value: "0"}}, resp.Trailer()); d != "" {
		t.Errorf("trailer of the answer (-want +got):\n%s", d)
	}
	if d := cmp.Diff(call.Fields{{Name: "X-Sum", Value: "9"}}, <-up); d != "" {
		t.Errorf("trailer of the request (-want +got):\n%s", d)
	}
	resp.Close()
	if n, err := resp.Stream.Read(buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("reading on after the end: %d, %v", n, err)
	}
}

func TestErrorsKeepTheirMeaning(t *testing.T) {
	busy := fault.New("op", fault.Exhausted, "busy").WithSent(fault.SentNever)
	busy.After = 2 * time.Second
	tests := []struct {
		name string
		err  error
		want fault.Error
	}{
		{"a plain one", errors.New("boom"), fault.Error{Op: "peer", Code: fault.Internal, Reason: fault.PeerAnswered, Msg: "boom"}},
		{"code, reason and reach", fault.New("op", fault.NotReady, "no app").With(fault.NoApp).WithSent(fault.SentNever),
			fault.Error{Op: "peer", Code: fault.NotReady, Reason: fault.NoApp, Sent: fault.SentNever, Msg: "no app"}},
		{"maybe sent", fault.New("op", fault.Unavailable, "reset").WithSent(fault.SentMaybe), fault.Error{Op: "peer", Code: fault.Unavailable, Reason: fault.PeerAnswered, Sent: fault.SentMaybe, Msg: "reset"}},
		{"a retry hint", busy, fault.Error{Op: "peer", Code: fault.Exhausted, Reason: fault.PeerAnswered, Sent: fault.SentNever, After: 2 * time.Second, Msg: "busy"}},
	}
	for _, tt := range tests {
		for _, body := range []string{"whole", "streamed"} {
			t.Run(tt.name+", "+body, func(t *testing.T) {
				p := newPair(t, func(context.Context, *call.Request, string, call.Responder) error { return tt.err })
				req := &call.Request{Target: "x"}
				if body == "streamed" {
					r, w := pipe()
					defer w.Close()
					req.Stream, req.Length = r, call.Unknown
				}
				resp, err := p.Invoke(within(t), p.at, req)
				var got *fault.Error
				if resp != nil || !errors.As(err, &got) {
					t.Fatalf("got %v, %v", resp, err)
				}
				if d := cmp.Diff(&tt.want, got); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			})
		}
	}
}

// An answer whose body breaks off at the app must not look whole to the caller.
func TestABodyThatBreaksOffIsAnError(t *testing.T) {
	broken := fault.New("app", fault.Unavailable, "the app hung up").With(fault.AppUnreachable)
	p := newPair(t, func(ctx context.Context, _ *call.Request, _ string, out call.Responder) error {
		return out.Respond(ctx, &call.Response{Status: 200, Length: call.Unknown,
			Stream: io.NopCloser(io.MultiReader(strings.NewReader("half"), fails{broken}))})
	})
	resp, err := p.Invoke(within(t), p.at, &call.Request{Target: "x"})
	if err != nil {
		t.Fatal(err)
	}
	body, err := read(t, resp)
	if body != "half" || fault.Of(err) != fault.Unavailable || fault.ReasonOf(err) != fault.AppUnreachable || !strings.Contains(err.Error(), "hung up") {
		t.Errorf("read %q, %v (%v %q)", body, err, fault.Of(err), fault.ReasonOf(err))
	}
	if resp.Trailer() != nil {
		t.Errorf("it has the trailer %v", resp.Trailer())
	}
}

type fails struct{ err error }

func (f fails) Read([]byte) (int, error) { return 0, f.err }

func TestAPanicOnTheOtherSideIsAnError(t *testing.T) {
	p := newPair(t, func(context.Context, *call.Request, string, call.Responder) error { panic("boom") })
	_, err := p.Invoke(within(t), p.at, &call.Request{Target: "x"})
	if fault.Of(err) != fault.Internal || fault.SentOf(err) == fault.SentNever {
		t.Errorf("got %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
}

// An app that switches protocols unasked must not take the sidecar down.
func TestAnAppThatSwitchesProtocols(t *testing.T) {
	app := &switched{}
	p := newPair(t, func(ctx context.Context, _ *call.Request, _ string, out call.Responder) error {
		resp := &call.Response{Status: 101, Upgrade: app}
		defer resp.Close()
		return out.Respond(ctx, resp)
	})
	resp, err := p.Invoke(within(t), p.at, &call.Request{Target: "x"})
	if resp != nil || fault.Of(err) != fault.Unsupported || !strings.Contains(err.Error(), "101") {
		t.Errorf("got %+v, %v (%v)", resp, err, fault.Of(err))
	}
}

type switched struct{}

func (*switched) Read([]byte) (int, error)    { return 0, io.EOF }
func (*switched) Write(p []byte) (int, error) { return len(p), nil }
func (*switched) Close() error                { return nil }

// shouter is an app's side of an upgraded connection: it repeats in capitals, then hangs up.
func shouter() (app io.ReadWriteCloser, done chan struct{}) {
	ours, theirs := net.Pipe()
	done = make(chan struct{})
	go func() {
		defer close(done)
		defer theirs.Close()
		buf := make([]byte, 100)
		for {
			n, err := theirs.Read(buf)
			if err != nil {
				return
			}
			if _, err := theirs.Write(bytes.ToUpper(buf[:n])); err != nil {
				return
			}
		}
	}()
	return ours, done
}

func TestAnOfferToSwitchProtocols(t *testing.T) {
	for _, taken := range []bool{true, false} {
		t.Run(fmt.Sprintf("taken %v", taken), func(t *testing.T) {
			var offered string
			ended := make(chan struct{})
			p := newPair(t, func(ctx context.Context, req *call.Request, _ string, out call.Responder) error {
				defer close(ended)
				offered = req.Upgrade
				if !taken {
					return out.Respond(ctx, &call.Response{Status: 426, Data: []byte("no")})
				}
				app, done := shouter()
				err := out.Respond(ctx, &call.Response{Status: 101, Upgrade: app})
				<-done
				return err
			})
			resp, err := p.Invoke(within(t), p.at, &call.Request{Target: "x", Verb: "GET", Upgrade: "shouting"})
			if err != nil || offered != "shouting" {
				t.Fatalf("offered %q, %v", offered, err)
			}
			if !taken {
				if resp.Status != 426 || string(resp.Data) != "no" || resp.Upgrade != nil {
					t.Errorf("declined: %+v", resp)
				}
				resp.Close()
				eventually(t, "the end of the call", ended)
				return
			}
			if resp.Status != 101 || resp.Upgrade == nil {
				t.Fatalf("taken: %+v", resp)
			}
			buf := make([]byte, 100)
			for _, word := range []string{"one", "two"} {
				if _, err := resp.Upgrade.Write([]byte(word)); err != nil {
					t.Fatal(err)
				}
				n, err := resp.Upgrade.Read(buf)
				if err != nil || string(buf[:n]) != strings.ToUpper(word) {
					t.Fatalf("said %q, heard %q, %v", word, buf[:n], err)
				}
			}
			resp.Close()
			eventually(t, "the app's end of the connection", ended)
		})
	}
}

func TestAnUploadThatFailsIsTheCallersError(t *testing.T) {
	gone := fault.New("http", fault.Canceled, "the caller hung up")
	seen := make(chan error, 1)
	p := newPair(t, func(_ context.Context, req *call.Request, _ string, _ call.Responder) error {
		_, err := io.Copy(io.Discard, req.Stream)
		seen <- err
		return err
	})
	body := io.NopCloser(io.MultiReader(strings.NewReader("half"), fails{gone}))
	_, err := p.Invoke(within(t), p.at, &call.Request{Target: "x", Stream: body, Length: call.Unknown})
	if !errors.Is(err, gone) {
		t.Errorf("the caller's edge is told %v, want its own error", err)
	}
	if err := <-seen; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the callee read the broken body to a clean end: %v", err)
	}
}

// endless is a body that never ends by itself.
type endless struct {
	mu     sync.Mutex
	closed chan struct{}
	sent   int
}

func newEndless() *endless { return &endless{closed: make(chan struct{})} }

func (e *endless) Read(p []byte) (int, error) {
	select {
	case <-e.closed:
		return 0, io.ErrClosedPipe
	default:
	}
	e.mu.Lock()
	e.sent += len(p)
	e.mu.Unlock()
	return len(p), nil
}

func (e *endless) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.closed:
	default:
		close(e.closed)
	}
	return nil
}

func TestAnEarlyAnswerStopsTheUpload(t *testing.T) {
	for _, kind := range []string{"whole", "streamed"} {
		t.Run(kind, func(t *testing.T) {
			p := newPair(t, func(ctx context.Context, req *call.Request, _ string, out call.Responder) error {
				req.Stream.Close()
				resp := &call.Response{Status: 413, Data: []byte("too much")}
				if kind == "streamed" {
					resp = &call.Response{Status: 413, Stream: io.NopCloser(strings.NewReader("too much")), Length: call.Unknown}
				}
				return out.Respond(ctx, resp)
			})
			body := newEndless()
			resp, err := p.Invoke(within(t), p.at, &call.Request{Target: "x", Stream: body, Length: call.Unknown})
			if err != nil || resp.Status != 413 {
				t.Fatalf("%+v, %v", resp, err)
			}
			if got, err := read(t, resp); err != nil || got != "too much" {
				t.Errorf("%q, %v", got, err)
			}
			eventually(t, "closing the request body", body.closed)
		})
	}
}

// An app that answers early may go on reading what it already gets of the body. It must not
// take the end of the call for the end of the body: half an upload is not a whole one.
func TestABodyNeverEndsWellByTheEndOfItsCall(t *testing.T) {
	for _, closed := range []bool{false, true} {
		t.Run(fmt.Sprintf("closed %v", closed), func(t *testing.T) {
			kept := make(chan io.ReadCloser, 1)
			p := newPair(t, func(ctx context.Context, req *call.Request, _ string, out call.Responder) error {
				if _, err := io.ReadFull(req.Stream, make([]byte, 100)); err != nil {
					t.Errorf("beginning of the body: %v", err)
				}
				kept <- req.Stream
				if closed {
					req.Stream.Close()
				}
				return out.Respond(ctx, &call.Response{Status: 202, Data: []byte("later")})
			})
			resp, err := p.Invoke(within(t), p.at, &call.Request{Target: "x", Stream: newEndless(), Length: call.Unknown})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := read(t, resp); err != nil || got != "later" {
				t.Errorf("%q, %v", got, err)
			}
			if n, err := io.Copy(io.Discard, <-kept); err == nil {
				t.Errorf("the body ended well after %d more bytes", n)
			}
		})
	}
}

// The body is read only as fast as the callee takes it: nobody buffers an upload.
func TestUploadsWaitForTheReader(t *testing.T) {
	release := make(chan struct{})
	p := newPair(t, func(ctx context.Context, req *call.Request, _ string, out call.Responder) error {
		<-release
		return out.Respond(ctx, &call.Response{Status: 200})
	})
	body := newEndless()
	done := make(chan error, 1)
	go func() {
		resp, err := p.Invoke(context.Background(), p.at, &call.Request{Target: "x", Stream: body, Length: call.Unknown})
		resp.Close()
		done <- err
	}()
	var before int
	for range 100 { // until nothing more is taken
		time.Sleep(20 * time.Millisecond)
		body.mu.Lock()
		now := body.sent
		body.mu.Unlock()
		if now == before && now > 0 {
			break
		}
		before = now
	}
	if before > 5<<20 {
		t.Errorf("%d bytes were taken off a body nobody reads", before)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTheCallersEndReachesTheApp(t *testing.T) {
	for _, when := range []string{"waiting", "reading", "uploading"} {
		t.Run(when, func(t *testing.T) {
			started, ended := make(chan struct{}), make(chan struct{})
			p := newPair(t, func(ctx context.Context, req *call.Request, _ string, out call.Responder) error {
				defer close(ended)
				close(started)
				switch when {
				case "waiting":
					<-ctx.Done()
					return ctx.Err()
				case "uploading":
					_, err := io.Copy(io.Discard, req.Stream)
					return err
				}
				return out.Respond(ctx, &call.Response{Status: 200, Stream: newEndless(), Length: call.Unknown})
			})
			ctx, cancel := context.WithCancel(within(t))
			req := &call.Request{Target: "x"}
			if when == "uploading" {
				r, w := pipe()
				defer w.Close()
				req.Stream, req.Length = r, call.Unknown
			}
			go func() {
				<-started
				if when != "reading" {
					cancel()
				}
			}()
			resp, err := p.Invoke(ctx, p.at, req)
			if when == "reading" {
				if err != nil {
					t.Fatal(err)
				}
				_, _ = resp.Stream.Read(make([]byte, 10))
				resp.Close()
			} else if fault.Of(err) != fault.Canceled {
				t.Errorf("got %v", err)
			}
			eventually(t, "the end of the call at the callee", ended)
			cancel()
		})
	}
}

func TestADeadlineTravels(t *testing.T) {
	left := make(chan time.Duration, 1)
	p := newPair(t, func(ctx context.Context, _ *call.Request, _ string, _ call.Responder) error {
		d, ok := ctx.Deadline()
		if !ok {
			d = time.Now()
		}
		left <- time.Until(d)
		<-ctx.Done()
		return ctx.Err()
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := p.Invoke(ctx, p.at, &call.Request{Target: "x"})
	if fault.Of(err) != fault.Deadline {
		t.Errorf("got %v (%v)", err, fault.Of(err))
	}
	if got := <-left; got <= 0 || got > 300*time.Millisecond {
		t.Errorf("the callee had %v", got)
	}
}
