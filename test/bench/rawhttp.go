package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
)

// The HTTP app and client speak just enough HTTP/1.1 to talk to a sidecar: keep-alive, bodies
// of known length and in chunks. net/http would cost several times what the sidecar does and
// drown it.

// message is the part of an HTTP head that matters here.
type message struct {
	first   []byte // the request or status line; valid until the next read
	length  int    // Content-Length; -1 if not given
	chunked bool
}

var errHead = errors.New("not an HTTP head")

// readMessage reads a head. The first line is copied into line's storage.
func readMessage(br *bufio.Reader, line []byte) (message, error) {
	m := message{length: -1}
	for n := 0; ; n++ {
		s, err := br.ReadSlice('\n')
		if err != nil {
			if n == 0 && len(s) == 0 && err == io.EOF {
				return m, io.EOF
			}
			return m, fmt.Errorf("%w: %w", errHead, err)
		}
		s = bytes.TrimRight(s, "\r\n")
		switch {
		case n == 0:
			m.first = append(line[:0], s...)
		case len(s) == 0:
			return m, nil
		default:
			if err := m.field(s); err != nil {
				return m, err
			}
		}
	}
}

func (m *message) field(s []byte) error {
	name, value, ok := bytes.Cut(s, []byte(":"))
	if !ok {
		return fmt.Errorf("%w: header line %q", errHead, s)
	}
	switch {
	case len(name) == 14 && bytes.EqualFold(name, []byte("content-length")):
		n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
		if err != nil || n < 0 {
			return fmt.Errorf("%w: Content-Length %q", errHead, value)
		}
		m.length = n
	case len(name) == 17 && bytes.EqualFold(name, []byte("transfer-encoding")):
		m.chunked = bytes.EqualFold(bytes.TrimSpace(value), []byte("chunked"))
	}
	return nil
}

// maxBody bounds what a peer can make us read: the largest payload measured, with room.
const maxBody = 1 << 20

// readBody appends the body to buf. A message without a length has none.
func (m *message) readBody(br *bufio.Reader, buf []byte) ([]byte, error) {
	if !m.chunked {
		return appendN(br, buf, max(m.length, 0))
	}
	for {
		s, err := br.ReadSlice('\n')
		if err != nil {
			return buf, err
		}
		s, _, _ = bytes.Cut(bytes.TrimRight(s, "\r\n"), []byte(";"))
		n, err := strconv.ParseUint(string(s), 16, 31)
		if err != nil {
			return buf, fmt.Errorf("chunk size %q", s)
		}
		if n == 0 {
			return buf, skipTrailer(br)
		}
		if buf, err = appendN(br, buf, int(n)); err != nil {
			return buf, err
		}
		if _, err := br.Discard(2); err != nil {
			return buf, err
		}
	}
}

func skipTrailer(br *bufio.Reader) error {
	for {
		s, err := br.ReadSlice('\n')
		if err != nil || len(bytes.TrimRight(s, "\r\n")) == 0 {
			return err
		}
	}
}

func appendN(br *bufio.Reader, buf []byte, n int) ([]byte, error) {
	if len(buf)+n > maxBody {
		return buf, fmt.Errorf("a body of more than %d bytes", maxBody)
	}
	at := len(buf)
	if need := at + n; need > cap(buf) {
		buf = append(buf, make([]byte, n)...)
	} else {
		buf = buf[:need]
	}
	_, err := io.ReadFull(br, buf[at:])
	return buf, err
}

// handler answers a request. The body is valid until it returns; what it returns until the
// next call on the same connection.
type handler func(path, body []byte) (status int, reply []byte)

// serveHTTP serves until the listener fails.
func serveHTTP(l net.Listener, h handler) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serveConn(c, h)
		}()
	}
}

func serveConn(c net.Conn, h handler) {
	br := bufio.NewReaderSize(c, 16<<10)
	var line, body, out []byte
	for {
		m, err := readMessage(br, line)
		if err != nil {
			return
		}
		line = m.first
		if body, err = m.readBody(br, body[:0]); err != nil {
			return
		}
		_, path, _ := bytes.Cut(m.first, []byte(" "))
		path, _, _ = bytes.Cut(path, []byte(" "))
		status, reply := h(path, body)
		out = append(out[:0], "HTTP/1.1 "...)
		out = strconv.AppendInt(out, int64(status), 10)
		out = append(out, " -\r\nContent-Type: application/octet-stream\r\nContent-Length: "...)
		out = strconv.AppendInt(out, int64(len(reply)), 10)
		out = append(out, "\r\n\r\n"...)
		if len(reply) <= 8<<10 { // below that a copy is cheaper than a vector
			_, err = c.Write(append(out, reply...))
		} else {
			_, err = (&net.Buffers{out, reply}).WriteTo(c)
		}
		if err != nil {
			return
		}
	}
}

// echo answers with the body. A sidecar's own questions get 404: no subscriptions, no
// configuration.
func echo(path, body []byte) (int, []byte) {
	if bytes.HasPrefix(path, []byte("/dapr/")) {
		return 404, nil
	}
	return 200, body
}

// appendRequest appends an HTTP request. header holds whole lines.
func appendRequest(out []byte, verb, host, path, header string, body []byte) []byte {
	out = append(out, verb+" "+path+" HTTP/1.1\r\nHost: "+host+"\r\n"+header...)
	if verb != "GET" {
		out = append(out, "Content-Length: "...)
		out = strconv.AppendInt(out, int64(len(body)), 10)
		out = append(out, "\r\n"...)
	}
	return append(append(out, "\r\n"...), body...)
}

// readReply reads an answer and returns its status and body, which is read into buf.
func readReply(br *bufio.Reader, line, buf []byte) (status int, body []byte, err error) {
	m, err := readMessage(br, line)
	if err != nil {
		return 0, buf, err
	}
	if len(m.first) < 12 || !bytes.HasPrefix(m.first, []byte("HTTP/1.")) {
		return 0, buf, fmt.Errorf("%w: status line %q", errHead, m.first)
	}
	if status, err = strconv.Atoi(string(m.first[9:12])); err != nil {
		return 0, buf, fmt.Errorf("%w: status line %q", errHead, m.first)
	}
	if m.length < 0 && !m.chunked && status != 204 && status != 304 {
		return status, buf, fmt.Errorf("an answer %d without a length: a connection to be closed is not kept alive", status)
	}
	body, err = m.readBody(br, buf[:0])
	return status, body, err
}
