package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// callerMark stands for the number of the caller in a request, serialMark for that of the
// request. The numbers have as many digits, so that no length around them changes.
const (
	callerMark = "@CALLER@"
	serialMark = "@SERIAL@"
	digits     = len(callerMark)
)

func number(n int) string { return fmt.Sprintf("%0*d", digits, n) }

// newCallers connects as many callers as the job wants: HTTP on a connection each, gRPC
// together on one, as an app does.
func newCallers(ctx context.Context, j *job, m *mailbox) ([]caller, error) {
	var out []caller
	closeAll := func() {
		for _, c := range out {
			c.close()
		}
	}
	if j.Kind == kindRedis {
		return newRedisCallers(j), nil
	}
	switch j.Kind {
	case kindStream, kindRead, kindPost, kindDirect:
		return newMessageCallers(ctx, j, m)
	}
	var shared *grpcConn
	if j.Kind == kindGRPC || j.Kind == kindLoad {
		cc, err := grpc.NewClient("passthrough:///"+j.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{})))
		if err != nil {
			return nil, err
		}
		shared = &grpcConn{cc: cc, users: j.Callers}
	}
	for i := range j.Callers {
		mark := strings.NewReplacer(callerMark, number(i))
		body := bytes.ReplaceAll(j.Body, []byte(callerMark), []byte(number(i)))
		if shared != nil {
			c := &grpcCaller{conn: shared, method: j.Call, body: body, reply: j.Reply}
			c.out = metadata.New(j.Metadata)
			if j.Kind == kindLoad {
				out = append(out, &loader{grpcCaller: c, value: bytes.Repeat([]byte("x"), j.Reply)})
				continue
			}
			out = append(out, c)
			continue
		}
		h, err := newHTTPCaller(ctx, j, mark.Replace(j.Path), body)
		if err != nil {
			closeAll()
			return nil, err
		}
		if j.Kind == kindDeliver {
			out = append(out, newPublisher(h, m, i))
			continue
		}
		out = append(out, h)
	}
	return out, nil
}

// httpCaller sends the same request again and again.
type httpCaller struct {
	c       net.Conn
	br      *bufio.Reader
	request []byte
	what    string
	line    []byte
	body    []byte
	status  int
	reply   int
	abort   func() bool
}

func newHTTPCaller(ctx context.Context, j *job, path string, body []byte) (*httpCaller, error) {
	c, err := net.DialTimeout("tcp", j.Addr, patience)
	if err != nil {
		return nil, err
	}
	h := &httpCaller{c: c, br: bufio.NewReaderSize(c, 16<<10), line: make([]byte, 0, 64), status: j.Status, reply: j.Reply,
		what: j.Verb + " " + j.Addr + path, request: appendRequest(nil, j.Verb, j.Addr, path, j.Header, body)}
	// The end of the job must end a read that waits.
	h.abort = context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	return h, nil
}

func (h *httpCaller) call(ctx context.Context) error {
	if _, err := h.c.Write(h.request); err != nil {
		return h.failed(ctx, err)
	}
	status, body, err := readReply(h.br, h.line, h.body)
	h.body = body
	switch {
	case err != nil:
		return h.failed(ctx, err)
	case status != h.status:
		return fmt.Errorf("%s: %d %.200s; want %d", h.what, status, body, h.status)
	case len(body) < h.reply:
		return fmt.Errorf("%s: an answer of %d bytes, %.100q; want %d", h.what, len(body), body, h.reply)
	}
	return nil
}

func (h *httpCaller) failed(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		err = cause // the read was aborted because of it
	}
	return fmt.Errorf("%s: %w", h.what, err)
}

func (h *httpCaller) close() {
	h.abort()
	h.c.Close()
}

// grpcConn is closed by the last of its users.
type grpcConn struct {
	cc    *grpc.ClientConn
	mu    sync.Mutex
	users int // guarded by mu
}

func (g *grpcConn) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.users--; g.users == 0 {
		g.cc.Close()
	}
}

// grpcCaller makes the same call again and again.
type grpcCaller struct {
	conn   *grpcConn
	method string
	out    metadata.MD
	body   []byte
	reply  int
}

func (g *grpcCaller) call(ctx context.Context) error {
	var got size
	err := g.conn.cc.Invoke(metadata.NewOutgoingContext(ctx, g.out), g.method, g.body, &got)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("%s: %w", g.method, err)
	}
	if int(got) < g.reply {
		return fmt.Errorf("%s: an answer of %d bytes; want %d", g.method, got, g.reply)
	}
	return nil
}

func (g *grpcCaller) close() { g.conn.leave() }

// eventMark begins the part of an event that says whose it is: the caller's number, a dash and
// the serial number of the event.
const eventMark = "bench-event-"

// eventText is what an event's payload begins with.
const eventText = eventMark + callerMark + "-" + serialMark

// publisher publishes an event and waits until it has come back.
type publisher struct {
	*httpCaller
	box    *box
	serial []byte // where the number stands in the request
}

func newPublisher(h *httpCaller, m *mailbox, n int) *publisher {
	p := &publisher{httpCaller: h, box: m.open(n)}
	if i := bytes.Index(h.request, []byte(serialMark)); i >= 0 {
		p.serial = h.request[i : i+digits]
	}
	return p
}

func (p *publisher) call(ctx context.Context) error {
	n := p.box.next()
	copy(p.serial, number(n))
	if err := p.httpCaller.call(ctx); err != nil {
		return err
	}
	select {
	case <-p.box.arrived:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: waiting for the delivery of event %d: %w", p.what, n, context.Cause(ctx))
	}
}

// mailbox sorts delivered events to the callers that wait for them.
type mailbox struct {
	mu    sync.Mutex
	boxes map[int]*box // guarded by mu
}

// box is where one caller waits. Numbers never repeat, so that an event delivered twice or late
// cannot be taken for the one awaited.
type box struct {
	mu      sync.Mutex
	serial  int // guarded by mu; of the awaited event
	arrived chan struct{}
}

func newMailbox() *mailbox { return &mailbox{boxes: map[int]*box{}} }

// open returns the box of a caller, empty.
func (m *mailbox) open(n int) *box {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.boxes[n]
	if b == nil {
		b = &box{}
		m.boxes[n] = b
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.arrived = make(chan struct{}, 1)
	return b
}

func (b *box) next() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.serial++
	return b.serial
}

func (b *box) put(serial int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if serial != b.serial {
		return
	}
	select {
	case b.arrived <- struct{}{}:
	default: // a second delivery of the same event
	}
}

// receive is the app's side: it takes events as HTTP requests.
func (m *mailbox) receive(path, body []byte) (int, []byte) {
	i := bytes.Index(body, []byte(eventMark))
	if i < 0 {
		return echo(path, nil)
	}
	rest := body[i+len(eventMark):]
	if len(rest) < 2*digits+1 {
		return 400, nil
	}
	n, err1 := strconv.Atoi(string(rest[:digits]))
	serial, err2 := strconv.Atoi(string(rest[digits+1 : 2*digits+1]))
	if err1 != nil || err2 != nil {
		return 400, nil
	}
	m.mu.Lock()
	b := m.boxes[n]
	m.mu.Unlock()
	if b != nil {
		b.put(serial)
	}
	return 200, nil
}
