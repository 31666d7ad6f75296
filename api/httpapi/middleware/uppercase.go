package middleware

import (
	"context"
	"io"
	"unicode"
	"unicode/utf8"

	"github.com/mecha-project/mecha/api/httpapi"
	"github.com/mecha-project/mecha/runtime/call"
)

// UppercaseConfig says which bodies change.
type UppercaseConfig struct {
	// Direction is what is turned to upper case: the body of the request, of the response, or
	// of both.
	Direction string `yaml:"direction" enum:"request,response,both"`
}

func defaultUppercase() *UppercaseConfig { return &UppercaseConfig{Direction: "request"} }

func newUppercase(_ Env, c *UppercaseConfig) (*Middleware, error) {
	u := uppercase{in: c.Direction != "response", out: c.Direction != "request"}
	return &Middleware{API: u.api, App: u.app}, nil
}

// uppercase is a demonstration; it knows nothing of content types and encodings.
type uppercase struct{ in, out bool }

func (u uppercase) api(next httpapi.Handler) httpapi.Handler {
	return func(r *httpapi.Request) {
		if u.in {
			r.FilterRequest(upper)
		}
		if u.out {
			r.FilterResponse(upper)
		}
		next(r)
	}
}

func (u uppercase) app(next httpapi.CallHandler) httpapi.CallHandler {
	return func(ctx context.Context, req *call.Request) (*call.Response, error) {
		if req.Protocol == call.GRPC {
			return next(ctx, req)
		}
		if u.in {
			changed := *req // the caller may send its request again
			upperBody(&changed.Data, &changed.Stream, &changed.Length)
			req = &changed
		}
		resp, err := next(ctx, req)
		if err != nil || !u.out {
			return resp, err
		}
		upperBody(&resp.Data, &resp.Stream, &resp.Length)
		return resp, nil
	}
}

// upperBody changes a body, whole or streamed. A changed stream has an unknown length, because
// upper case may take more bytes or fewer.
func upperBody(data *[]byte, stream *io.ReadCloser, length *int64) {
	if s := *stream; s != nil {
		*stream, *length = readCloser{upper(s), s}, call.Unknown
		return
	}
	if len(*data) == 0 { // the length of an answer to HEAD is not that of its body
		return
	}
	*data, _ = appendUpper(make([]byte, 0, len(*data)), *data, true)
	*length = int64(len(*data))
}

type readCloser struct {
	io.Reader
	io.Closer
}

// upper reads a body in upper case. Bytes that are not UTF-8 stay as they are.
func upper(body io.Reader) io.Reader { return &upperReader{src: body} }

type upperReader struct {
	src  io.Reader
	err  error // of src; given once out is empty
	in   [4 << 10]byte
	n    int    // bytes in in
	held []byte // memory of out
	out  []byte // changed, not yet read
}

// Read implements io.Reader. It reads its source once before it has bytes to give, or oftener
// when that brings no whole character.
func (u *upperReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(u.out) == 0 {
		if u.err != nil {
			return 0, u.err
		}
		n, err := u.src.Read(u.in[u.n:])
		u.n, u.err = u.n+n, err
		var used int
		u.held, used = appendUpper(u.held[:0], u.in[:u.n], err != nil)
		u.out = u.held
		u.n = copy(u.in[:], u.in[used:u.n])
	}
	n := copy(p, u.out)
	u.out = u.out[n:]
	return n, nil
}

// appendUpper appends src in upper case to dst and tells how much of src it used: all of it,
// or all but the beginning of a last character when last is false.
func appendUpper(dst, src []byte, last bool) (out []byte, used int) {
	for used < len(src) {
		rest := src[used:]
		if c := rest[0]; c < utf8.RuneSelf {
			if 'a' <= c && c <= 'z' {
				c -= 'a' - 'A'
			}
			dst, used = append(dst, c), used+1
			continue
		}
		if !last && !utf8.FullRune(rest) {
			break
		}
		r, size := utf8.DecodeRune(rest)
		if r == utf8.RuneError {
			dst = append(dst, rest[:size]...)
		} else {
			dst = utf8.AppendRune(dst, unicode.ToUpper(r))
		}
		used += size
	}
	return dst, used
}
