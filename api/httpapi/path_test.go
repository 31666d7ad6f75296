package httpapi_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/call"
)

func TestAppTarget(t *testing.T) {
	tests := []struct{ path, query, want string }{
		{"", "", "/"},
		{"a/b", "", "/a/b"},
		{"a/b", "x=1&y=%20", "/a/b?x=1&y=%20"},
		{"a b", "", "/a%20b"},
		{"ü", "", "/%C3%BC"},
		{"a%20b", "", "/a%20b"}, // read as a URL once more, as Dapr does
		{`a"<>\^{|}` + "`", "", "/a%22%3C%3E%5C%5E%7B%7C%7D%60"},
		{"a[1]", "", "/a[1]"},
		{"a:b@c", "", "/a:b@c"},
	}
	for _, tt := range tests {
		got, err := httpapi.AppTarget(tt.path, tt.query)
		if err != nil || got != tt.want {
			t.Errorf("%q ? %q: %q, %v; want %q", tt.path, tt.query, got, err, tt.want)
		}
	}
	for _, bad := range []string{"100%", "a%zz", "%"} {
		if got, err := httpapi.AppTarget(bad, ""); err == nil || !strings.Contains(err.Error(), "invalid URL escape") {
			t.Errorf("%q: %q, %v", bad, got, err)
		}
	}
}

// What the app is asked for is always one valid request target for the same path.
func FuzzAppTarget(f *testing.F) {
	for _, s := range []string{"", "a/b", "a b", "100%", "%41", "//x", "a:b", "é", "\x80", "..", "*"} {
		f.Add(s, "")
		f.Add(s, "q=1")
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		path, err := call.CleanPath(path)
		if err != nil || strings.ContainsFunc(query, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }) {
			return // neither gets past the edge
		}
		got, err := httpapi.AppTarget(path, query)
		if err != nil {
			if !strings.Contains(path, "%") {
				t.Fatalf("%q was refused: %v", path, err)
			}
			return
		}
		if !strings.HasPrefix(got, "/") || strings.HasPrefix(got, "//") {
			t.Fatalf("%q became %q", path, got)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '#' }); i >= 0 {
			t.Fatalf("%q became %q, which no request line can hold", path, got)
		}
		u, err := url.ParseRequestURI(got)
		if err != nil {
			t.Fatalf("%q became %q: %v", path, got, err)
		}
		if u.RawQuery != query {
			t.Fatalf("query %q became %q", query, u.RawQuery)
		}
		if want, err := url.PathUnescape("/" + path); err != nil || u.Path != want {
			t.Fatalf("%q reaches the app as %q, want %q", path, u.Path, want)
		}
	})
}

// Escapes are judged as net/url judges them.
func FuzzEscapes(f *testing.F) {
	for _, s := range []string{"", "%", "%2", "%2f", "a%20b%", "%%20", "%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		_, err := url.PathUnescape(s)
		if got := httpapi.ValidEscapes(s); got != (err == nil) {
			t.Fatalf("%q: valid %v, net/url says %v", s, got, err)
		}
		c := httpapi.Collapse(s)
		if strings.Contains(c, "//") || strings.ReplaceAll(c, "/", "") != strings.ReplaceAll(s, "/", "") {
			t.Fatalf("%q collapsed to %q", s, c)
		}
	})
}

func TestQueryParameters(t *testing.T) {
	k := newKit()
	k.do("POST", "/v1.0/publish/p/t?metadata.a=1&metadata.a=2&metadata.B=%C3%BC+x&metadata.=e&other=3&metadata.bad=%zz&metadata.c=1;2&x.metadata.y=1", "d")
	want := map[string]string{"a": "1", "B": "ü x", "": "e"}
	if d := cmp.Diff(want, k.pubsub.one.Metadata); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	k.do("GET", "/v1.0/state/s/k?consistency=strong&consistency=x", "")
	if k.state.opts.Consistency != "strong" {
		t.Errorf("consistency %q", k.state.opts.Consistency)
	}
}

func TestCarriedHeaders(t *testing.T) {
	in := fields("Host", "h", "Connection", "keep-alive, X-Named", "Keep-Alive", "1", "X-Named", "1", "Proxy-Connection", "x", "Proxy-Authorization", "x", "Proxy-Authenticate", "x",
		"Transfer-Encoding", "chunked", "Upgrade", "u", "Te", "trailers", "Trailer", "X", "Http2-Settings", "x", "Content-Length", "5",
		"X-A", "1", "x-a", "2", "Cookie", "a", "Authorization", "b", "Proxy-Auth", "kept")
	want := fields("X-A", "1", "x-a", "2", "Cookie", "a", "Authorization", "b", "Proxy-Auth", "kept")
	if d := cmp.Diff(want, httpapi.Carried(nil, in)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// No header that belongs to one connection travels on, whatever else the caller sent.
func FuzzCarried(f *testing.F) {
	f.Add("X-A", "1", "close, X-A")
	f.Add("Keep-Alive", "1", "")
	f.Add("", "", ",,, ,")
	f.Fuzz(func(t *testing.T, name, value, connection string) {
		in := fields("Connection", connection, name, value, "X-Last", "1", "transfer-encoding", "chunked")
		for _, got := range httpapi.Carried(nil, in) {
			lower := strings.ToLower(got.Name)
			switch lower {
			case "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te", "trailer", "host", "content-length":
				t.Fatalf("%q travels on", got.Name)
			}
			for named := range strings.SplitSeq(connection, ",") {
				if strings.EqualFold(strings.Trim(named, " \t"), got.Name) {
					t.Fatalf("%q is named by Connection %q and travels on", got.Name, connection)
				}
			}
		}
	})
}

func TestRequestsToTheApp(t *testing.T) {
	tests := []struct {
		name string
		req  call.Request
		want call.Fields
	}{
		{"from HTTP", call.Request{Protocol: call.HTTP, Verb: "GET", Header: fields("X-A", "1", "Data-Bin", "x")}, fields("X-A", "1")},
		{"its type is added if it is missing", call.Request{Protocol: call.HTTP, Verb: "GET", Type: "a/b"}, fields("Content-Type", "a/b")},
		{"and not doubled", call.Request{Protocol: call.HTTP, Verb: "GET", Type: "a/b", Header: fields("content-type", "c/d")}, fields("content-type", "c/d")},
		{"from gRPC", call.Request{Protocol: call.Unary, Verb: "GET", Type: "a/b", Header: fields("x-a", "1", ":authority", "h", "grpc-timeout", "1S", "data-bin", "x", "te", "trailers", "content-type", "application/grpc")},
			fields("x-a", "1", "dapr-authority", "h", "dapr-grpc-timeout", "1S", "Content-Type", "a/b")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := httpapi.AppRequest(&tt.req)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got.Fields); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
	for _, verb := range []string{"", "NONE", "CONNECT"} {
		if _, err := httpapi.AppRequest(&call.Request{Verb: verb}); err == nil || !strings.Contains(err.Error(), "invalid HTTP verb") {
			t.Errorf("verb %q: %v", verb, err)
		}
	}
}
