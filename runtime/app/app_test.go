package app_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/app"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestAnAppWithoutAPort(t *testing.T) {
	for name, a := range map[string]*app.App{"nil channel": app.New(nil, app.Options{Token: "t", MaxConcurrency: 1}), "nil app": nil} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Invoke(t.Context(), &call.Request{})
			if fault.Of(err) != fault.NotReady || fault.ReasonOf(err) != fault.NoApp || fault.SentOf(err) != fault.SentNever {
				t.Errorf("got %v, reason %q, sent %v", err, fault.ReasonOf(err), fault.SentOf(err))
			}
			if a.Exists() {
				t.Error("it is said to exist")
			}
			if err := a.Close(); err != nil {
				t.Errorf("closing it: %v", err)
			}
		})
	}
}

func TestToken(t *testing.T) {
	tests := []struct {
		name, token string
		header      call.Fields
		want        []string
	}{
		{"none configured: the caller's passes", "", call.Fields{{Name: "Dapr-Api-Token", Value: "callers"}}, []string{"callers"}},
		{"added", "secret", nil, []string{"secret"}},
		{"it replaces what a caller sent in any spelling", "secret", call.Fields{{Name: "DAPR-API-TOKEN", Value: "forged"}, {Name: "dapr-api-token", Value: "forged"}}, []string{"secret"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			a := app.New(&fake{invoke: func(_ context.Context, r *call.Request) (*call.Response, error) {
				for _, f := range r.Header {
					if strings.EqualFold(f.Name, app.TokenHeader) {
						got = append(got, f.Value)
					}
				}
				return &call.Response{}, nil
			}}, app.Options{Token: tt.token})
			if _, err := a.Invoke(t.Context(), &call.Request{Header: tt.header}); err != nil {
				t.Fatal(err)
			}
			if strings.Join(got, ",") != strings.Join(tt.want, ",") {
				t.Errorf("the app sees %q, want %q", got, tt.want)
			}
		})
	}
}

// How an answer ends decides when its slot is free again.
func TestSlotIsHeldUntilTheAnswerIsOver(t *testing.T) {
	failed := errors.New("failed")
	stream := func(s string) func(context.Context, *call.Request) (*call.Response, error) {
		return func(context.Context, *call.Request) (*call.Response, error) {
			return &call.Response{Stream: &body{Reader: strings.NewReader(s)}}, nil
		}
	}
	tests := []struct {
		name   string
		invoke func(context.Context, *call.Request) (*call.Response, error)
		end    func(t *testing.T, r *call.Response) // nil: free at once
	}{
		{"a whole answer", whole, nil},
		{"a failure", func(context.Context, *call.Request) (*call.Response, error) { return nil, failed }, nil},
		{"a stream that is closed unread", stream("abc"), func(_ *testing.T, r *call.Response) { r.Close() }},
		{"a stream read to its end, not closed", stream("abc"), func(_ *testing.T, r *call.Response) { _, _ = io.Copy(io.Discard, r.Stream) }},
		{"a stream read and closed twice", stream("abc"), func(_ *testing.T, r *call.Response) {
			_, _ = io.Copy(io.Discard, r.Stream)
			r.Stream.Close()
			r.Stream.Close()
		}},
		{"an upgraded connection", func(context.Context, *call.Request) (*call.Response, error) {
			return &call.Response{Status: 101, Upgrade: &body{Reader: strings.NewReader("raw")}}, nil
		}, func(t *testing.T, r *call.Response) {
			if b, _ := io.ReadAll(r.Upgrade); string(b) != "raw" {
				t.Errorf("read %q", b)
			}
			r.Close()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ch := &fake{invoke: tt.invoke}
				a := app.New(ch, app.Options{MaxConcurrency: 1})
				for round := range 3 { // a slot freed twice would show as a limit that grew
					resp, err := a.Invoke(t.Context(), &call.Request{})
					if (err != nil) != (tt.name == "a failure") {
						t.Fatalf("round %d: %v", round, err)
					}
					if tt.end == nil {
						continue
					}
					if admitted(t, a) {
						t.Fatalf("round %d: a second call was let in beside the first", round)
					}
					tt.end(t, resp)
				}
				ch.invoke = stream("last")
				if _, err := a.Invoke(t.Context(), &call.Request{}); err != nil {
					t.Fatal(err)
				}
				if admitted(t, a) {
					t.Error("the limit grew")
				}
			})
		})
	}
}

// admitted tries a call for an hour of fake time.
func admitted(t *testing.T, a *app.App) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	_, err := a.Invoke(ctx, &call.Request{})
	if err != nil && fault.Of(err) != fault.Deadline {
		t.Fatalf("a call that waits for a slot got %v", err)
	}
	return err == nil
}

func TestWaitingForASlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := app.New(&fake{invoke: func(context.Context, *call.Request) (*call.Response, error) {
			return &call.Response{Stream: &body{Reader: strings.NewReader("")}}, nil
		}}, app.Options{MaxConcurrency: 2})
		first, _ := a.Invoke(t.Context(), &call.Request{})
		if _, err := a.Invoke(t.Context(), &call.Request{}); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 1)
		go func() {
			_, err := a.Invoke(t.Context(), &call.Request{})
			got <- err
		}()
		synctest.Wait()
		select {
		case err := <-got:
			t.Fatalf("the third call did not wait: %v", err)
		default:
		}
		first.Close()
		if err := <-got; err != nil {
			t.Errorf("the third call got %v when a slot was free", err)
		}
	})
}

func TestACallerWhoLeavesWhileWaiting(t *testing.T) {
	a := app.New(&fake{invoke: func(context.Context, *call.Request) (*call.Response, error) {
		return &call.Response{Stream: &body{Reader: strings.NewReader("")}}, nil
	}}, app.Options{MaxConcurrency: 1})
	if _, err := a.Invoke(t.Context(), &call.Request{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := a.Invoke(ctx, &call.Request{})
	if fault.Of(err) != fault.Canceled || fault.SentOf(err) != fault.SentNever {
		t.Errorf("got %v (%v, sent %v); want canceled, never sent", err, fault.Of(err), fault.SentOf(err))
	}
}

// A defect in a channel (a middleware's, say) is its call's only: the slot must come back.
func TestAPanicGivesTheSlotBack(t *testing.T) {
	ch := &fake{invoke: func(context.Context, *call.Request) (*call.Response, error) { panic("boom") }}
	a := app.New(ch, app.Options{MaxConcurrency: 1})
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		_, _ = a.Invoke(t.Context(), &call.Request{})
	}()
	ch.invoke = whole
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := a.Invoke(ctx, &call.Request{}); err != nil {
		t.Errorf("after a panic the app is closed to all: %v", err)
	}
}

func TestConcurrencyIsBounded(t *testing.T) {
	const limit, callers = 3, 20
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		running, most := 0, 0
		count := func(by int) {
			mu.Lock()
			defer mu.Unlock()
			running += by
			most = max(most, running)
		}
		a := app.New(&fake{invoke: func(context.Context, *call.Request) (*call.Response, error) {
			count(1)
			time.Sleep(time.Second)
			count(-1)
			return &call.Response{}, nil
		}}, app.Options{MaxConcurrency: limit})
		done := make(chan error, callers)
		start := time.Now()
		for i := range callers {
			go func() {
				time.Sleep(time.Duration(i) * time.Millisecond)
				_, err := a.Invoke(t.Context(), &call.Request{})
				done <- err
			}()
		}
		for range callers {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if most != limit {
			t.Errorf("%d calls at once, want %d", most, limit)
		}
		if took := time.Since(start); took > 7100*time.Millisecond {
			t.Errorf("%d calls took %v: slots stayed empty", callers, took)
		}
	})
}

func TestCloseClosesTheChannel(t *testing.T) {
	ch := &fake{}
	if err := app.New(ch, app.Options{}).Close(); err != nil || ch.closed.Load() != 1 {
		t.Errorf("closed %d×, %v", ch.closed.Load(), err)
	}
}

// Calls in the app's own protocol have the same limits as others.
func TestEnter(t *testing.T) {
	for name, a := range map[string]*app.App{"nil channel": app.New(nil, app.Options{}), "nil app": nil} {
		if _, err := a.Enter(t.Context()); fault.ReasonOf(err) != fault.NoApp {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := app.New(&fake{invoke: whole}, app.Options{Health: true}).Enter(t.Context()); fault.ReasonOf(err) != fault.AppUnhealthy {
		t.Errorf("an app that is not healthy: %v", err)
	}
	leave, err := app.New(&fake{invoke: whole}, app.Options{}).Enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leave()
	a := app.New(&fake{invoke: whole}, app.Options{MaxConcurrency: 1})
	leave, err = a.Enter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Invoke(ctx, &call.Request{}); fault.Of(err) != fault.Canceled {
		t.Errorf("Invoke beside the only slot: %v", err)
	}
	if _, err := a.Enter(ctx); fault.Of(err) != fault.Canceled {
		t.Errorf("Enter beside the only slot: %v", err)
	}
	leave()
	if leave, err = a.Enter(t.Context()); err != nil {
		t.Errorf("a slot that was given back: %v", err)
	}
	leave()
}
