package middleware

import (
	"context"
	"net/http"
	"net/url"
	"strings"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/call"
)

// head is what a gate sees of a request.
type head struct {
	Header call.Fields
	// Path is decoded once and begins with a slash. On the way to the app it is the app's.
	Path string
	// Remote is the caller's address, Host the same without port; both are empty on the way
	// to the app.
	Remote, Host string
}

// verdict is what a gate decides. The zero value admits.
type verdict struct {
	Status int         // of the refusal; 0 means the request is admitted
	Text   string      // of the refusal
	Add    call.Fields // headers of the answer, whatever it is
}

// gate judges requests by their head. It may wait as long as ctx lasts.
type gate func(ctx context.Context, h head) verdict

// gated puts a gate in both places.
func gated(g gate) *Middleware {
	return &Middleware{API: g.api, App: g.app}
}

func (g gate) api(next httpapi.Handler) httpapi.Handler {
	return func(r *httpapi.Request) {
		v := g(r.Context(), head{Header: r.Header, Path: decoded(r.Path), Remote: r.RemoteAddr(), Host: r.RemoteHost()})
		for _, f := range v.Add {
			r.AddHeader(f.Name, f.Value)
		}
		if v.Status != 0 {
			r.Text(v.Status, v.Text)
			return
		}
		next(r)
	}
}

func (g gate) app(next httpapi.CallHandler) httpapi.CallHandler {
	return func(ctx context.Context, req *call.Request) (*call.Response, error) {
		if req.Protocol == call.GRPC {
			return next(ctx, req)
		}
		v := g(ctx, head{Header: req.Header, Path: "/" + req.Path})
		if v.Status != 0 {
			closeBody(req)
			return &call.Response{Status: v.Status, Type: textType, Data: []byte(v.Text), Length: int64(len(v.Text)),
				Header: append(call.Fields{{Name: "Content-Type", Value: textType}}, v.Add...)}, nil
		}
		resp, err := next(ctx, req)
		if err == nil {
			resp.Header = append(resp.Header, v.Add...)
		}
		return resp, err
	}
}

const textType = "text/plain; charset=utf-8"

// closeBody ends the use of a request's body that nobody is going to read.
func closeBody(req *call.Request) {
	if req.Stream != nil {
		_ = req.Stream.Close() // there is nobody to tell
	}
}

// decoded is a path with its escapes resolved once; a path with a bad escape stays as it is.
func decoded(path string) string {
	if strings.IndexByte(path, '%') < 0 {
		return path
	}
	out, err := url.PathUnescape(path)
	if err != nil {
		return path
	}
	return out
}

// refusal is the short text of a status.
func refusal(status int) verdict { return verdict{Status: status, Text: http.StatusText(status)} }
