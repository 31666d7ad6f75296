package policy

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/policy/limit"
)

// limiting builds the layer that bounds calls per time.
func limiting(b *builder) (does, field string) {
	if b.r.RateLimit == nil || b.r.RateLimit.Local == nil {
		return "", ""
	}
	l := b.r.RateLimit.Local
	rate := limit.Rate{Tokens: l.Tokens, Per: cmp.Or(l.Per, time.Second), Burst: l.Burst}
	layer := &rateLimit{refuse: b.rejection("rate limit", b.r.source("rateLimit")), rate: rate}
	key := b.stateKey("rate", b.r.source("rateLimit"))
	does = fmt.Sprintf("%d per %v", rate.Tokens, rate.Per)
	if l.Key == "" {
		layer.one = kept(b.e, key, func() *limit.Limiter { return limit.NewLimiter(rate) })
		layer.one.SetRate(rate)
	} else {
		layer.key = keyOf(l.Key)
		layer.each = kept(b.e, key+"/"+l.Key, func() *limit.Keyed { return limit.NewKeyed(rate, cmp.Or(l.MaxKeys, 10000)) })
		layer.each.SetRate(rate)
		does += " for each " + l.Key
	}
	b.layer(layer)
	return does, "rateLimit"
}

type rateLimit struct {
	one    *limit.Limiter
	each   *limit.Keyed
	key    func(c *call.Call) string
	rate   limit.Rate
	refuse *refusal
}

func (l *rateLimit) Enter(ctx context.Context, c *call.Call) (context.Context, error) {
	if c.Shadow {
		return ctx, nil // the call it copies was charged
	}
	var ok bool
	var wait time.Duration
	if l.one != nil {
		ok, wait = l.one.Allow(limit.Nanotime())
	} else {
		ok, wait = l.each.Allow(l.key(c), limit.Nanotime())
	}
	if ok {
		return ctx, nil
	}
	return nil, l.refuse.fault(c, fault.Exhausted, "rate limit of policy %s reached: %d per %v; try again in %v",
		l.refuse.rule, l.rate.Tokens, l.rate.Per, wait.Round(time.Millisecond)).WithAfter(wait)
}

func (l *rateLimit) Exit(_ *call.Call, err error) error { return err }

// keyWords are what a limit, a split or a hash can look at, beside header:NAME.
var keyWords = []string{"caller", "op", "resource", "key"}

// keyOf reads a key by its word; a call that has none has "".
func keyOf(word string) func(*call.Call) string {
	if name, ok := headerKey(word); ok {
		return func(c *call.Call) string {
			if c.Attrs == nil {
				return ""
			}
			v, _ := c.Attrs.Lookup(name)
			return v
		}
	}
	switch word {
	case "caller":
		return func(c *call.Call) string { return c.Caller.App }
	case "op":
		return func(c *call.Call) string { return c.Op }
	case "resource", "path":
		return func(c *call.Call) string { return c.Resource }
	}
	return func(c *call.Call) string { return c.Key }
}

// capping builds the step that bounds what is in progress.
func capping(b *builder) (does, field string) {
	l := b.r.Limits
	if l == nil || *l == (Limits{}) {
		return "", ""
	}
	cfg := limit.Config{MaxRequests: l.MaxRequests, MaxPending: l.MaxPending, MaxRetries: l.MaxRetries}
	s := &caps{refuse: b.rejection("limits", b.r.source("limits")), max: l.MaxRequests}
	s.of = func(to string) *limit.Caps {
		c := kept(b.e, b.stateKey("caps", b.r.source("limits"))+"/"+to, func() *limit.Caps { return limit.NewCaps(cfg) })
		c.Reconfigure(cfg)
		return c
	}
	s.own = s.of(b.t.Name)
	s.others = map[string]*limit.Caps{}
	for _, to := range b.r.destinations(b.t) {
		if to != b.t.Name {
			s.others[to] = s.of(to)
		}
	}
	b.step(s)
	return fmt.Sprintf("%d at once, %d waiting, %d retries", l.MaxRequests, l.MaxPending, l.MaxRetries), "limits"
}

type caps struct {
	own    *limit.Caps
	others map[string]*limit.Caps
	of     func(to string) *limit.Caps
	max    int
	refuse *refusal
}

const heldRetry = 1

func (s *caps) Enter(c *call.Call, t *call.Try) (call.Token, error) {
	if c.Lasting {
		return call.Token{}, nil // it would take a place from the calls for good
	}
	cap, tok := s.own, call.Token{}
	if t.To != "" {
		if other, ok := s.others[t.To]; ok {
			cap = other
		}
	}
	tok.P = cap
	if c.Attempt > 1 || t.Extra {
		if !cap.AcquireRetry() {
			return tok, s.refuse.fault(c, fault.Exhausted, "too many retries in progress (policy %s)", s.refuse.rule)
		}
		tok.N = heldRetry
	}
	switch s.acquire(cap, t) {
	case limit.Acquired:
		return tok, nil
	case limit.Ended:
		s.give(cap, tok)
		err := t.Ctx.Err()
		return tok, fault.New("policy", fault.Of(err), "waiting for one of %d places (policy %s)", s.max, s.refuse.rule).WithSent(fault.SentNever).WithRule(s.refuse.rule).Because(err)
	}
	s.give(cap, tok)
	return tok, s.refuse.fault(c, fault.Exhausted, "%d calls are in progress and as many wait as may (policy %s)", s.max, s.refuse.rule)
}

// acquire takes a place. A hedge does not wait for one: it could be the one that the attempt
// beside it holds.
func (s *caps) acquire(cap *limit.Caps, t *call.Try) limit.Verdict {
	if !t.Extra {
		return cap.Acquire(t.Ctx)
	}
	if cap.TryAcquire() {
		return limit.Acquired
	}
	return limit.RefusedFull
}

func (s *caps) give(cap *limit.Caps, tok call.Token) {
	if tok.N == heldRetry {
		cap.ReleaseRetry()
	}
}

func (s *caps) Exit(_ *call.Call, _ *call.Try, tok call.Token) {
	cap, ok := tok.P.(*limit.Caps)
	if !ok {
		return
	}
	cap.Release()
	s.give(cap, tok)
}
