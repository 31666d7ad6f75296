package grpcapi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/mecha-project/mecha/api/grpcapi"
	"github.com/mecha-project/mecha/components/fault"
)

// feed gives messages from a channel until it is closed.
type feed struct {
	ctx   context.Context
	msgs  chan string
	taken atomic.Int32
	end   error
}

func newFeed(ctx context.Context) *feed {
	return &feed{ctx: ctx, msgs: make(chan string, 100), end: io.EOF}
}

func (f *feed) recv() ([]byte, error) {
	select {
	case m, ok := <-f.msgs:
		if !ok {
			return nil, f.end
		}
		f.taken.Add(1)
		return []byte(m), nil
	case <-f.ctx.Done():
		return nil, f.ctx.Err()
	}
}

func TestPumpPassesMessagesInOrder(t *testing.T) {
	f := newFeed(t.Context())
	for i := range 50 {
		f.msgs <- fmt.Sprint("message ", i)
	}
	close(f.msgs)
	body, _ := grpcapi.Pump(t.Context(), f.recv, grpcapi.AppendMessage(nil, []byte("first")))
	got, err := grpcapi.ReadMessages(body, 0)
	if !errors.Is(err, io.EOF) || len(got) != 51 {
		t.Fatalf("%d messages, %v", len(got), err)
	}
	for i, m := range got {
		want := "first"
		if i > 0 {
			want = fmt.Sprint("message ", i-1)
		}
		if string(m) != want {
			t.Errorf("message %d is %q, want %q", i, m, want)
		}
	}
}

func TestPumpHoldsOneMessageBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(t.Context())
		for range 20 {
			f.msgs <- "m"
		}
		body, ended := grpcapi.Pump(t.Context(), f.recv, nil)
		synctest.Wait()
		if n := f.taken.Load(); n > 2 { // one in the buffer, one in the hand
			t.Errorf("%d messages were taken for a reader who reads nothing", n)
		}
		buf := make([]byte, 6)
		for want := int32(3); want < 6; want++ {
			if n, err := io.ReadFull(body, buf); n != 6 || err != nil {
				t.Fatal(n, err)
			}
			synctest.Wait()
			if n := f.taken.Load(); n > want {
				t.Errorf("%d messages were taken, want at most %d", n, want)
			}
		}
		if ended() {
			t.Error("ended, with messages to come")
		}
		close(f.msgs)
		if rest, err := grpcapi.ReadMessages(body, 0); len(rest) != 17 || !errors.Is(err, io.EOF) || !ended() {
			t.Errorf("%d more messages, %v, ended %v", len(rest), err, ended())
		}
	})
}

func TestPumpEnds(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name string
		end  func(f *feed, cancel func(), body io.Closer)
		want func(err error) bool
	}{
		{"in order", func(f *feed, _ func(), _ io.Closer) { close(f.msgs) }, func(err error) bool { return errors.Is(err, io.EOF) }},
		{"with an error", func(f *feed, _ func(), _ io.Closer) { f.end = broken; close(f.msgs) }, func(err error) bool { return errors.Is(err, broken) }},
		{"with the stream", func(_ *feed, cancel func(), _ io.Closer) { cancel() }, func(err error) bool { return errors.Is(err, context.Canceled) }},
		{"by its reader", func(_ *feed, _ func(), body io.Closer) { body.Close() }, func(err error) bool { return fault.Of(err) == fault.Canceled }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				f := newFeed(ctx)
				body, _ := grpcapi.Pump(ctx, f.recv, nil)
				got := make(chan error, 1)
				go func() { // waits in Read
					_, err := body.Read(make([]byte, 1))
					got <- err
				}()
				synctest.Wait()
				tt.end(f, cancel, body)
				if err := <-got; !tt.want(err) {
					t.Errorf("the waiting reader got %v", err)
				}
				if _, err := body.Read(make([]byte, 1)); !tt.want(err) {
					t.Errorf("then %v", err)
				}
				cancel() // the goroutine ends with the stream at the latest
			})
		})
	}
}

func TestPumpWaitingForRoomEndsWithItsStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := newFeed(ctx)
		f.msgs <- "one"
		f.msgs <- "two"
		body, _ := grpcapi.Pump(ctx, f.recv, nil)
		synctest.Wait()
		cancel()
		synctest.Wait() // synctest fails if the goroutine hangs
		got, err := grpcapi.ReadMessages(body, 0)
		if len(got) != 1 || !errors.Is(err, context.Canceled) {
			t.Errorf("%d messages, %v; what had arrived is still there, then the reason", len(got), err)
		}
	})
}

func TestClosingAPumpThatWaitsForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(t.Context())
		for range 3 {
			f.msgs <- "m"
		}
		body, _ := grpcapi.Pump(t.Context(), f.recv, nil)
		synctest.Wait()
		body.Close()
		body.Close()
		synctest.Wait()
		if n := f.taken.Load(); n > 2 {
			t.Errorf("%d messages were taken, the last ones for nobody", n)
		}
	})
}
