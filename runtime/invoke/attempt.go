package invoke

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
)

// leg is what an attempt needs: a value, so that attempts can race on copies of it.
type leg struct {
	s    *Service
	c    *call.Call // its policy and description only: an attempt that lost may outlive the rest
	d    *destination
	req  *call.Request
	body *replay // nil: the body is sent as it is
}

// keepBody makes the request's body one that can be sent again.
func (l *leg) keepBody() {
	l.body = newReplay(l.req.Stream)
	l.c.Streamed = false
	l.c.Spent = l.body.lost
}

// keep copies a leg for attempts that may outlive the request.
func (l leg) keep() leg {
	l.req = cloneRequest(l.req)
	return l
}

// cloneRequest copies a request with a whole body.
func cloneRequest(req *call.Request) *call.Request {
	r := *req
	r.Target, r.Verb, r.Path, r.Query = strings.Clone(req.Target), strings.Clone(req.Verb), strings.Clone(req.Path), strings.Clone(req.Query)
	r.Type, r.TypeURL = strings.Clone(req.Type), strings.Clone(req.TypeURL)
	r.Data = bytes.Clone(req.Data)
	r.Header = make(call.Fields, len(req.Header))
	for i, f := range req.Header {
		r.Header[i] = call.Field{Name: strings.Clone(f.Name), Value: strings.Clone(f.Value)}
	}
	r.Inform = nil
	return &r
}

// drop closes an answer that nobody takes.
func drop(resp *call.Response) { _ = resp.Close() }

// attempt makes one try at where policy sends the call.
func attempt(ctx context.Context, t *call.Try, l leg) (*call.Response, call.Status, error) {
	d, req, fresh, err := l.destination(ctx, t)
	if err == nil {
		d, err = l.s.located(ctx, d)
	}
	if err != nil {
		return nil, call.Status{}, err
	}
	resp, err := l.send(ctx, t, d, req, fresh)
	return resp, statusOf(req, resp, err), err
}

// destination is where this attempt goes, and the request it sends: the caller's own, unless
// policy or another attempt needs it to differ. fresh tells that nobody has stamped it yet.
func (l *leg) destination(ctx context.Context, t *call.Try) (d *destination, req *call.Request, fresh bool, err error) {
	p := l.c.Policy()
	copies := t.To != "" || p.Hedge != nil || p.Request != nil || l.body != nil
	numbered := t.N > 1 && p.AttemptHeader != ""
	if !copies && !numbered {
		return l.d, l.req, t.N == 1, nil
	}
	d, req = l.d, l.req
	own := *req
	own.Header = append(make(call.Fields, 0, len(req.Header)+maxStamps), req.Header...)
	if l.body != nil {
		own.Stream = l.body.again()
	}
	if t.To != "" && t.To != d.target.Name {
		other, err := l.s.route(ctx, t.To)
		if err != nil {
			return nil, nil, false, err
		}
		d, own.Target = other, t.To
	}
	if p.Request != nil {
		p.Request(l.c, &own.Header)
	}
	if numbered {
		own.Header.Set(p.AttemptHeader, strconv.Itoa(t.N))
	}
	return d, &own, copies, nil // without a copy the first attempt has stamped the caller's own
}

// located is a destination whose instances are known, as far as anybody knows them.
func (s *Service) located(ctx context.Context, d *destination) (*destination, error) {
	switch {
	case d.names != nil:
		return s.resolver.find(ctx, d.names.name, nil)
	case d.unknown != nil:
		return s.resolver.find(ctx, *d.unknown, func() *call.Target { return d.target })
	}
	return d, nil
}

func (l *leg) send(ctx context.Context, t *call.Try, d *destination, req *call.Request, fresh bool) (*call.Response, error) {
	s := l.s
	switch {
	case d.endpoint != nil:
		s.stamp.clear(&req.Header)
		return s.o.External.Invoke(ctx, *d.endpoint, req)
	case d.names == nil:
		s.stamp.local(req, d.target.Name)
		return s.toSelf(ctx, req)
	}
	s.stamp.remote(req, d.target.Name, fresh)
	return s.remote(ctx, l.c, t, d, req)
}

// toSelf is a call of the app to itself. It passes the policy of calls that arrive as any other
// caller's does.
func (s *Service) toSelf(ctx context.Context, req *call.Request) (*call.Response, error) {
	if p := s.inbound.Chain(); p == nil || (p.Select == nil && p.About == nil) {
		return s.o.Local.Invoke(ctx, req)
	}
	c, err := call.Begin(ctx, s.inbound, s.describe(req, s.caller))
	if err != nil {
		return nil, err
	}
	resp, err := s.ownApp(c, req)
	if err != nil {
		return nil, c.End(err)
	}
	if rewrite := c.Policy().Answer; rewrite != nil {
		rewrite(c, &resp.Header)
	}
	resp.Held = &endOf{c: c, then: resp.Held} // the call lasts as long as its answer
	return resp, nil
}

// endOf ends a call when its answer is closed.
type endOf struct {
	c    *call.Call
	then interface{ Close() error }
}

func (e *endOf) Close() error {
	err := e.c.End(nil)
	if e.then != nil {
		_ = e.then.Close()
	}
	return err
}

// remote calls one of the peers of a name. An instance that certainly did not get the request
// costs nothing: the next one is tried at once, each at most once per attempt. A streamed body
// that somebody began to read cannot be offered again.
func (s *Service) remote(ctx context.Context, c *call.Call, t *call.Try, d *destination, req *call.Request) (*call.Response, error) {
	var body *touched
	if req.Stream != nil {
		body = &touched{ReadCloser: req.Stream}
		req.Stream = body
	}
	p := peers{s: s, c: c, t: t, d: d, balance: c.Policy().Balance}
	refreshed := false
	var last error
	for {
		to, ok := p.next()
		if !ok && !refreshed {
			refreshed = true
			if err := s.resolver.refresh(ctx, d.names); err != nil && last == nil {
				last = err
			}
			continue
		}
		switch {
		case ok:
		case last != nil:
			return nil, last
		default: // its last instance vanished as soon as it was found
			return nil, notFound(d.names.name)
		}
		start := time.Now()
		if s.o.Record != nil {
			s.o.Record.InvokeReqSent(d.target.Name, kindOf(req))
		}
		resp, err := s.o.Peers.Invoke(ctx, to, req)
		if err == nil {
			d.names.good(to)
			if s.o.Record != nil {
				s.o.Record.InvokeResRecv(d.target.Name, resp.Status, kindOf(req), time.Since(start))
			}
			return resp, nil
		}
		if fault.SentOf(err) != fault.SentNever || ctx.Err() != nil || body.begun() {
			return nil, err
		}
		d.names.bad(to)
		p.tried, last = append(p.tried, to.ID), err
	}
}

// peers chooses the instances that one attempt goes to: by policy, or in turn.
type peers struct {
	s       *Service
	c       *call.Call
	t       *call.Try
	d       *destination
	balance call.Balancer
	tried   []string
}

func (p *peers) next() (block.Instance, bool) {
	if p.balance == nil {
		return p.d.names.pick(p.tried)
	}
	list := p.d.names.list.Load()
	if len(list.all) == 0 {
		return block.Instance{}, false
	}
	at, pick, ok := p.balance.Pick(p.c, p.t, p.d.target.Name, &list.endpoints)
	if !ok {
		return block.Instance{}, false
	}
	p.t.Picked(pick)
	p.c.WentTo(p.t, list.all[at].ID)
	return list.all[at], true
}

// statusOf is what policy looks at in an answer.
func statusOf(req *call.Request, resp *call.Response, err error) call.Status {
	switch {
	case err != nil || resp == nil:
		return call.Status{}
	case len(resp.GRPCStatus) > 1 && resp.GRPCStatus[0] == 0x08: // google.rpc.Status, field code
		return call.GRPCStatus(uint32(resp.GRPCStatus[1]))
	case resp.FromGRPC:
		return call.GRPCStatus(0)
	case req.Protocol == call.GRPC && resp.Stream == nil && resp.Trailer != nil:
		return grpcStatus(resp.Trailer())
	}
	st := call.HTTPStatus(resp.Status)
	if req.Protocol == call.GRPC {
		st = call.Status{}
	}
	st.Open = resp.Stream != nil || resp.Upgrade != nil
	return st
}

// grpcStatus reads the code of a gRPC answer's trailer.
func grpcStatus(trailer call.Fields) call.Status {
	code, err := strconv.ParseUint(trailer.Get("grpc-status"), 10, 32)
	if err != nil {
		return call.GRPCStatus(2) // Unknown, as clients make of it
	}
	return call.GRPCStatus(uint32(code))
}

// mirror sends a copy of a request to where policy wants one, behind the call.
func (s *Service) mirror(c *call.Call, m call.Mirror, req *call.Request) {
	if req.Stream != nil || req.Upgrade != "" {
		return // it can be read once only
	}
	to, ok := m.Takes(c)
	if !ok {
		return
	}
	r := cloneRequest(req)
	r.Target, r.Shadow = to, true
	r.Header.Set(shadowHeader, "true")
	m.Go("", func(ctx context.Context) error { return s.Invoke(ctx, r, discard{}) })
}

// shadowHeader tells an app that it sees the copy of a call, whose answer nobody reads.
const shadowHeader = "x-mecha-mirror"

// discard is where the answers of copies go.
type discard struct{}

func (discard) Respond(_ context.Context, resp *call.Response) error { return resp.Close() }

// urls keeps the destinations of bare URLs. Callers can write any number of different ones, so
// it is bounded; beyond, each call makes its own.
type urls struct {
	mu   sync.Mutex
	kept map[string]*destination
}

const maxURLs = 256

func (s *Service) urlDestination(base string) *destination {
	s.urls.mu.Lock()
	defer s.urls.mu.Unlock()
	if d, ok := s.urls.kept[base]; ok {
		return d
	}
	base = strings.Clone(base)
	d := &destination{target: s.outTarget(base, ""), endpoint: &Endpoint{BaseURL: base}}
	if len(s.urls.kept) < maxURLs {
		if s.urls.kept == nil {
			s.urls.kept = map[string]*destination{}
		}
		s.urls.kept[base] = d
	}
	return d
}
