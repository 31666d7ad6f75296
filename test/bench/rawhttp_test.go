package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestReadReply(t *testing.T) {
	tests := []struct {
		name, in string
		status   int
		body     string
		fails    bool
	}{
		{"length", "HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\nhello", 200, "hello", false},
		{"no content", "HTTP/1.1 204 No Content\r\n\r\n", 204, "", false},
		{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n", 200, "hello", false},
		{"error with a body", "HTTP/1.1 500 -\r\nContent-Length: 2\r\n\r\nno", 500, "no", false},
		{"no length", "HTTP/1.1 200 OK\r\n\r\nhello", 0, "", true},
		{"short body", "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello", 0, "", true},
		{"not HTTP", "220 mail\r\n\r\n", 0, "", true},
		{"status that is no number", "HTTP/1.1 abc\r\nContent-Length: 0\r\n\r\n", 0, "", true},
		{"negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 0, "", true},
		{"huge length", "HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", 0, "", true},
		{"huge chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7fffffff\r\n", 0, "", true},
		{"bad chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 0, "", true},
		{"nothing", "", 0, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// What follows must be left for the next answer.
			br := bufio.NewReader(strings.NewReader(tt.in + "next"))
			if tt.fails {
				br = bufio.NewReader(strings.NewReader(tt.in))
			}
			status, body, err := readReply(br, nil, nil)
			if tt.fails {
				if err == nil {
					t.Fatalf("got %d %q, want an error", status, body)
				}
				return
			}
			if err != nil || status != tt.status || string(body) != tt.body {
				t.Fatalf("got %d %q, %v; want %d %q", status, body, err, tt.status, tt.body)
			}
			if rest, _ := io.ReadAll(br); string(rest) != "next" {
				t.Errorf("left %q, want %q", rest, "next")
			}
		})
	}
}

func FuzzReadReply(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 \r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		_, body, err := readReply(bufio.NewReader(bytes.NewReader(in)), nil, nil)
		if err == nil && len(body) > len(in) {
			t.Errorf("a body of %d bytes from %d", len(body), len(in))
		}
	})
}

// The app must be a right server in the eyes of net/http, and the client a right client.
func TestAgainstNetHTTP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go serveHTTP(l, echo)
	defer http.DefaultClient.CloseIdleConnections()
	for _, size := range []int{0, 1, 8 << 10, 8<<10 + 1, 64 << 10} {
		want := payload("head", size)
		// Of unknown length, so sent in chunks.
		for name, body := range map[string]io.Reader{"length": bytes.NewReader(want), "chunks": io.MultiReader(bytes.NewReader(want))} {
			resp, err := http.Post("http://"+l.Addr().String()+"/echo", "text/plain", body)
			if err != nil {
				t.Fatalf("%d bytes by %s: %v", size, name, err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || !bytes.Equal(got, want) {
				t.Errorf("%d bytes by %s: got %d and %d bytes, %v", size, name, resp.StatusCode, len(got), err)
			}
		}
	}
	if resp, err := http.Get("http://" + l.Addr().String() + "/dapr/subscribe"); err != nil || resp.StatusCode != 404 {
		t.Errorf("a sidecar's question: got %v, %v; want 404", resp, err)
	} else {
		resp.Body.Close()
	}

	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/k-00000003" {
			w.WriteHeader(http.StatusTeapot)
		}
		body, _ := io.ReadAll(r.Body) // a short one fails the length check
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	j := post(srv.Listener.Addr().String(), "/k-"+callerMark, payload("", 64<<10), 200, 64<<10)
	c, err := newHTTPCaller(t.Context(), j, "/k-"+number(3), j.Body)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for range 3 {
		if err := c.call(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	c.reply++
	if err := c.call(t.Context()); err == nil || !strings.Contains(err.Error(), "want 65537") {
		t.Errorf("a short answer: got %v", err)
	}
	c.status = 201
	if err := c.call(t.Context()); err == nil || !strings.Contains(err.Error(), "want 201") {
		t.Errorf("an unexpected status: got %v", err)
	}
}

func TestReadMessageEnd(t *testing.T) {
	if _, err := readMessage(bufio.NewReader(strings.NewReader("")), nil); !errors.Is(err, io.EOF) {
		t.Errorf("an idle connection that ends: got %v, want EOF", err)
	}
	if _, err := readMessage(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost")), nil); !errors.Is(err, errHead) {
		t.Errorf("half a head: got %v, want %v", err, errHead)
	}
}
