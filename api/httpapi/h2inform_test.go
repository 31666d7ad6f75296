package httpapi_test

import (
	"context"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/call"
)

// Interim answers come before Invoke returns or not at all: what they are written to belongs to
// the caller's request, which may be over then.
func TestNoInterimAnswerAfterTheCall(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	app := &http.Server{Protocols: new(http.Protocols), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			w.WriteHeader(103)
		}
	})}
	app.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan error, 1)
	go func() { done <- app.Serve(l) }()
	defer func() { app.Close(); <-done }()
	c := httpapi.NewAppChannel(httpapi.ChannelOptions{Address: l.Addr().String(), H2C: true})
	defer c.Close()
	var late atomic.Int32
	for range 200 {
		var over atomic.Bool
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := c.Invoke(ctx, &call.Request{Verb: "GET", Path: "m", Inform: func(int, call.Fields) {
			time.Sleep(50 * time.Microsecond) // as long as writing it on takes
			if over.Load() {
				late.Add(1)
			}
		}})
		over.Store(true)
		cancel()
		if err == nil {
			t.Fatal("an answer without end has ended")
		}
	}
	if n := late.Load(); n > 0 {
		t.Errorf("%d interim answers after their calls", n)
	}
}
