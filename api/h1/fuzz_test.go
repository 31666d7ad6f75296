package h1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/runtime/call"
)

// FuzzRequestHead: what we take for a request, net/http takes for the same request. We may be
// stricter.
func FuzzRequestHead(f *testing.F) {
	for _, seed := range []string{
		"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
		"POST /a%2Fb?c HTTP/1.1\r\nHost: h:1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\nabc",
		"PUT http://[::1]:80/x?y HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\nhost:\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
		"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET //a/../%zz HTTP/1.1\r\n Host: h\r\nX : y\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		end := bytes.Index(raw, crlfcrlf)
		if end < 0 {
			return
		}
		var h requestHead
		if h.parse(string(raw[:end+2])) != nil {
			return
		}
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw[:end+4])))
		if err != nil {
			t.Fatalf("we accept %q, net/http says %v", raw[:end+4], err)
		}
		length := h.length
		if h.chunked {
			length = -1
		} else if length < 0 {
			length = 0
		}
		if req.Method != h.method || req.RequestURI != h.target || req.Host != h.host || req.ContentLength != length {
			t.Errorf("%q: we read %s %s host %q length %d, net/http %s %s host %q length %d", raw[:end+4],
				h.method, h.target, h.host, length, req.Method, req.RequestURI, req.Host, req.ContentLength)
		}
		if h.path == "" && h.method != "CONNECT" {
			t.Errorf("%q: empty path", h.target)
		}
		if closing := h.closes || h.minor == 0 && !h.keeps; h.closes && !req.Close || closing && h.minor == 0 && !req.Close {
			t.Errorf("%q: we close, net/http does not", raw[:end+4])
		}
	})
}

// FuzzResponseHead is the same for answers.
func FuzzResponseHead(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
		"HTTP/1.0 404\r\n\r\n",
		"HTTP/1.1 204 \r\nTransfer-Encoding: chunked\r\n\r\n",
		"HTTP/1.1 999 a b c\r\nX: \tv \r\nConnection: close, upgrade\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		end := bytes.Index(raw, crlfcrlf)
		if end < 0 {
			return
		}
		var h responseHead
		if h.parse(string(raw[:end+2])) != nil {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(raw[:end+4])), nil)
		if err != nil {
			t.Fatalf("we accept %q, net/http says %v", raw[:end+4], err)
		}
		if resp.StatusCode != h.status || resp.ProtoMinor != h.minor {
			t.Errorf("%q: we read %d of 1.%d, net/http %d of 1.%d", raw[:end+4], h.status, h.minor, resp.StatusCode, resp.ProtoMinor)
		}
		if bodied := !noBody("GET", h.status); bodied && !h.chunked && h.length >= 0 && resp.ContentLength != h.length ||
			bodied && h.chunked != (len(resp.TransferEncoding) > 0) && h.minor == 1 {
			t.Errorf("%q: we read length %d, chunked %v; net/http %d, %v", raw[:end+4], h.length, h.chunked, resp.ContentLength, resp.TransferEncoding)
		}
	})
}

// FuzzChunks: whatever the bytes and however they arrive, decoding ends, gives the same data in
// pieces as at once, and agrees with net/http where both accept.
func FuzzChunks(f *testing.F) {
	for _, seed := range []string{
		"0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\nrest", "1;ext=\"a\"\r\na\r\nA \r\n0123456789\r\n0\r\nT: v\r\nU: w\r\n\r\n",
		"ffffffffffffffff\r\n", "3\r\nabcd\r\n", "3\nabc\n0\n\n", "\r\n", "0\r\n folded\r\n\r\n",
	} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, raw []byte, step uint8) {
		whole, wholeErr, rest := decode(bytes.NewReader(raw), 1<<16)
		pieces, piecesErr, _ := decode(&stepReader{raw, int(step%16) + 1}, int(step%7)+1)
		if string(whole) != string(pieces) || (wholeErr == nil) != (piecesErr == nil) {
			t.Fatalf("%q: at once %q %v, in pieces %q %v", raw, whole, wholeErr, pieces, piecesErr)
		}
		if wholeErr != nil {
			return
		}
		head := "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
		rd := bufio.NewReader(strings.NewReader(head + string(raw)))
		req, err := http.ReadRequest(rd)
		if err != nil {
			t.Fatal(err)
		}
		std, err := io.ReadAll(req.Body)
		if err != nil {
			t.Fatalf("we accept %q, net/http says %v", raw, err)
		}
		left, _ := io.ReadAll(rd)
		if string(std) != string(whole) || string(left) != string(rest) {
			t.Errorf("%q: we read %q and leave %q, net/http %q and %q", raw, whole, rest, std, left)
		}
	})
}

// decode reads a chunked body with reads of the given size, and what follows it.
//
//lint:ignore ST1008 data and rest are what is read before and after the error
func decode(src io.Reader, size int) (data []byte, err error, rest []byte) {
	rd := &reader{src: src}
	rd.acquire()
	defer rd.drop()
	var b body
	b.reset(rd, bodyChunked, 0)
	p := make([]byte, size)
	for {
		n, err := b.read(p)
		data = append(data, p[:n]...)
		if err == io.EOF {
			rest = append(bytes.Clone(rd.unread()), must(io.ReadAll(src))...)
			return data, nil, rest
		}
		if err != nil {
			return data, err, nil
		}
	}
}

func must(p []byte, _ error) []byte { return p }

type stepReader struct {
	p    []byte
	step int
}

func (r *stepReader) Read(p []byte) (int, error) {
	if len(r.p) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.p[:min(r.step, len(r.p))])
	r.p = r.p[n:]
	return n, nil
}

// FuzzFields: whatever is written comes back as one line per field, never more.
func FuzzFields(f *testing.F) {
	f.Add("Content-Type", "text/plain")
	f.Add("x-a\r\nEvil", "b\r\n\r\nGET /")
	f.Add("x", "\x00\x7f\xff\t ")
	f.Fuzz(func(t *testing.T, name, value string) {
		b := appendFields(nil, call.Fields{{Name: name, Value: value}}, inResponse)
		if len(b) == 0 {
			if validToken(name) && !owned(name, inResponse) {
				t.Fatalf("%q was dropped", name)
			}
			return
		}
		got, r := parseFields(nil, string(b), nil)
		if r != nil || len(got) != 1 || !same(got[0].Name, name) || len(got[0].Value) > len(value) {
			t.Fatalf("%q: %q became %q: %v", name, value, b, r)
		}
	})
}
