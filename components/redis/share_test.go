//go:build unix

package redis_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/test/servers"
)

// Callers whose commands travel together get each their own answer.
func TestSharedAnswers(t *testing.T) {
	srv := servers.StartRedis(t)
	s, r := opened(t, "redisHost", srv.Addr), direct(t, srv.Addr)
	const callers = 100
	for round := range 3 {
		srv.Freeze() // so that they meet
		var wg sync.WaitGroup
		for i := range callers {
			key := fmt.Sprint("k", i)
			wg.Go(func() {
				if i%3 == 0 {
					err := s.Set(t.Context(), block.StateWrite{Key: key, Value: []byte("x"), ETag: "7"})
					wantCode(t, "Set with a wrong etag", err, fault.Conflict)
					return
				}
				set(t, s, block.StateWrite{Key: key, Value: fmt.Append(nil, key, " in ", round)})
				if got := get(t, s, key); string(got.Value) != fmt.Sprint(key, " in ", round) {
					t.Errorf("%s = %q", key, got.Value)
				}
			})
		}
		time.Sleep(20 * time.Millisecond)
		srv.Thaw()
		wg.Wait()
		r.ScriptFlush(t.Context()) // the server forgets the scripts; the callers do not notice
	}
}

// Who leaves while commands wait to be written takes only its own along.
func TestSharedAbandoned(t *testing.T) {
	srv := servers.StartRedis(t)
	s := opened(t, "redisHost", srv.Addr, "readTimeout", "20s")
	fresh := opened(t, "redisHost", srv.Addr, "readTimeout", "20s")
	for name, store := range map[string]block.State{"new connections": fresh, "used connections": s} {
		set(t, s, block.StateWrite{Key: "k"})
		srv.Freeze()
		var left, stayed sync.WaitGroup
		var maybe [40]atomic.Bool
		ctx, cancel := context.WithCancel(t.Context())
		for i := range maybe {
			stayed.Go(func() { set(t, store, block.StateWrite{Key: fmt.Sprint(name, " stay ", i), Value: []byte("v")}) })
			left.Go(func() {
				err := store.Set(ctx, block.StateWrite{Key: fmt.Sprint(name, " leave ", i), Value: []byte("v")})
				wantCode(t, name, err, fault.Canceled)
				maybe[i].Store(fault.SentOf(err) != fault.SentNever)
			})
		}
		time.Sleep(50 * time.Millisecond)
		cancel()
		left.Wait()
		srv.Thaw()
		stayed.Wait()
		never := 0
		for i := range maybe {
			if got := get(t, s, fmt.Sprint(name, " stay ", i)); !got.Exists {
				t.Errorf("%s: write %d of one who stayed is lost", name, i)
			}
			if maybe[i].Load() {
				continue
			}
			never++
			if got := get(t, s, fmt.Sprint(name, " leave ", i)); got.Exists {
				t.Errorf("%s: write %d was certainly not sent, and happened", name, i)
			}
		}
		if never == 0 || name == "new connections" && never != len(maybe) {
			t.Errorf("%s: %d of %d certainly not sent", name, never, len(maybe))
		}
	}
}

// A connection that says nothing holds up those whose commands it took, not those who come later.
func TestSharedStuckLane(t *testing.T) {
	srv := servers.StartRedis(t)
	p := newStaller(t, srv.Addr)
	s := opened(t, "redisHost", p.Addr().String(), "readTimeout", "60s")
	set(t, s, block.StateWrite{Key: "k"})
	p.stall.Store(2)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for p.stall.Load() > 0 {
		wg.Go(func() { _ = s.Set(ctx, block.StateWrite{Key: "stuck"}) })
		time.Sleep(5 * time.Millisecond)
	}
	waitFor(t, "a call to get through", func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return s.Set(ctx, block.StateWrite{Key: "k"}) == nil
	})
	cancel()
	wg.Wait()
}

// staller stands between store and server. Told to, it keeps back the answers of a connection for
// good.
type staller struct {
	net.Listener
	stall atomic.Int32
}

func newStaller(t *testing.T, to string) *staller {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &staller{Listener: l}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			wg.Go(func() { _, _ = io.Copy(out, in); _ = out.Close() })
			wg.Go(func() { s.back(in, out); _ = in.Close() })
		}
	})
	return s
}

func (s *staller) back(in io.Writer, out io.Reader) {
	buf := make([]byte, 1<<16)
	silent := false
	for {
		n, err := out.Read(buf)
		if err != nil {
			return
		}
		if !silent && s.stall.Load() > 0 {
			s.stall.Add(-1)
			silent = true
		}
		if silent {
			continue
		}
		if _, err := in.Write(buf[:n]); err != nil {
			return
		}
	}
}
