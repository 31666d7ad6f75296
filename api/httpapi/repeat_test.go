package httpapi_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/invoke"
)

// TestARepeatedCallHasTheSameHeaders: a retry sends the very same request again. What an app
// does not get (binary metadata), and what an endpoint adds, must not change it.
func TestARepeatedCallHasTheSameHeaders(t *testing.T) {
	var got []http.Header
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = append(got, r.Header) }))
	defer origin.Close()
	req := &call.Request{Verb: "GET", Path: "m", Type: "text/plain",
		Header: append(make(call.Fields, 0, 8), fields("a", "1", "x-bin", "2", "y-bin", "3", "b", "4", "c", "5")...)}
	before := slices.Clone(req.Header)

	e := httpapi.NewExternal()
	defer e.Close()
	app := httpapi.NewAppChannel(httpapi.ChannelOptions{Address: origin.Listener.Addr().String()})
	defer app.Close()
	for name, send := range map[string]func() (*call.Response, error){
		"endpoint": func() (*call.Response, error) {
			return e.Invoke(context.Background(), invoke.Endpoint{BaseURL: origin.URL, Header: fields("Authorization", "secret")}, req)
		},
		"app": func() (*call.Response, error) { return app.Invoke(context.Background(), req) },
	} {
		got = nil
		for range 3 {
			resp, err := send()
			if err != nil {
				t.Fatal(name, err)
			}
			resp.Close()
		}
		for i, h := range got {
			if len(h["A"]) != 1 || len(h["B"]) != 1 || len(h["C"]) != 1 || len(h["Authorization"]) > 1 || h.Get("X-Bin")+h.Get("Y-Bin") != "" {
				t.Errorf("%s, try %d: %v", name, i+1, h)
			}
		}
		if !slices.Equal(req.Header, before) {
			t.Errorf("%s: the call's own headers became %v", name, req.Header)
		}
	}
}
