package policy

import (
	"strings"
	"time"

	"github.com/mecha-project/mecha/runtime/policy/health"
	"github.com/mecha-project/mecha/runtime/policy/outlier"
)

// Spec is a traffic policy as users write it: which calls it is for, and what is to happen to
// them. A field that is not set leaves the matter to the next policy that matches, then to
// Resiliency resources, then to the defaults.
type Spec struct {
	// Priority orders policies that set the same field for the same call: the greater wins, of
	// equals the one read first.
	Priority int `yaml:"priority"`
	// Match says which calls the policy is for: those that fit any entry. Empty means all.
	Match []Match `yaml:"match"`

	// Authz says who may do what.
	Authz *Authz `yaml:"authz"`
	// Fault delays or fails a share of the calls, for tests.
	Fault *Fault `yaml:"fault"`
	// RateLimit bounds calls per time.
	RateLimit *RateLimit `yaml:"rateLimit"`
	// Headers rewrites the headers of invocations.
	Headers *Headers `yaml:"headers"`
	// Mirror sends copies elsewhere.
	Mirror *Mirror `yaml:"mirror"`
	// Timeout bounds the time of a call and of each attempt.
	Timeout *Timeout `yaml:"timeout"`
	// Retry repeats attempts that failed.
	Retry *Retry `yaml:"retry"`
	// Hedge makes a second attempt beside a slow one.
	Hedge *Hedge `yaml:"hedge"`
	// Route says where calls go instead of to the target's own name.
	Route []Destination `yaml:"route"`
	// Subsets names parts of a destination's endpoints by their labels, for Route.
	Subsets map[string]map[string]string `yaml:"subsets"`
	// Split says what decides between several routes.
	Split *Split `yaml:"split"`
	// WriteFailover lets writes go to a route of a later priority when the earlier ones are
	// down. They are refused otherwise: two stores would each hold a part of the data.
	WriteFailover *bool `yaml:"allowWriteFailover"`
	// Limits bounds what is in progress at once.
	Limits *Limits `yaml:"limits"`
	// Breaker refuses calls while most of them fail.
	Breaker *Breaker `yaml:"breaker"`
	// LB chooses among the endpoints of a service.
	LB *Balance `yaml:"lb"`
	// Outlier takes endpoints that fail out of the choice for a while.
	Outlier *outlier.Config `yaml:"outlier"`
	// Health asks endpoints how they are.
	Health *health.Config `yaml:"health"`
}

// Words is a list that may be written as one word.
type Words []string

// UnmarshalText reads the one word.
func (w *Words) UnmarshalText(text []byte) error {
	*w = Words{string(text)}
	return nil
}

// Match is one kind of call. All fields that are set must fit. Words may hold * for any run of
// characters.
type Match struct {
	// Kind is service, app, state, publish, deliver and so on; see Kinds.
	Kind Words `yaml:"kind"`
	// Dest is the app id or component name the call is for.
	Dest Words `yaml:"dest"`
	// Op is what is done: get, set, publish, an HTTP verb, a gRPC full method.
	Op Words `yaml:"op"`
	// Method is an HTTP verb. It fits invocations over HTTP only.
	Method Words `yaml:"method"`
	// Path is the method path of an invocation, a key, or a topic. A last /** fits everything
	// below.
	Path Words `yaml:"path"`
	// Headers of an invocation. The value * means that the header is there.
	Headers map[string]string `yaml:"headers"`
	// From is the calling app.
	From Words `yaml:"from"`
}

// Timeout bounds the time of a call. Zero means no limit. For invocations the time ends with
// the head of the answer: reading a streamed body is not bounded.
type Timeout struct {
	Total  time.Duration `yaml:"total"`  // of the call, with all attempts and the pauses between them
	PerTry time.Duration `yaml:"perTry"` // of each attempt
}

// Retry repeats failed attempts of calls that it is safe to repeat.
type Retry struct {
	// Max is how many attempts follow the first. Default 2.
	Max *int `yaml:"max"`
	// On is which outcomes are worth another attempt; see RetryNames. Default connect-failure,
	// reset, unavailable, throttled.
	On Words `yaml:"on"`
	// Statuses are answers worth another attempt, by HTTP status or gRPC code: "429,502-504".
	Statuses string `yaml:"statuses"`
	// Backoff is the pause before an attempt: a random time up to a bound that doubles with each.
	Backoff Backoff `yaml:"backoff"`
	// Budget bounds retries to a share of the calls.
	Budget *Budget `yaml:"budget"`
	// AtLeastOnce also repeats unsafe calls that may have had their effect already.
	AtLeastOnce bool `yaml:"atLeastOnce"`
	// Nested repeats even calls that are part of somebody else's retry.
	Nested bool `yaml:"nested"`
}

// Backoff is the pause between attempts. Defaults 25ms and 250ms, Envoy's.
type Backoff struct {
	Base time.Duration `yaml:"base"` // the first bound
	Max  time.Duration `yaml:"max"`  // the largest bound
}

// Budget bounds retries. Defaults 0.2 and 10, Linkerd's.
type Budget struct {
	Ratio        float64 `yaml:"ratio"`        // retries by calls, 0 to 1
	MinPerSecond int     `yaml:"minPerSecond"` // allowed beside, so that few calls can be retried too
}

// Hedge makes a safe call a second time when the first attempt has not answered after Delay.
type Hedge struct {
	// Delay is a duration, or a percentile of the latency seen lately, like p95.
	Delay string `yaml:"delay"`
	// Max is how many extra attempts there may be. Default 1.
	Max int `yaml:"max"`
}

// Destination is one way calls can go.
type Destination struct {
	// To is an app id or component name. Empty means the call's own.
	To string `yaml:"to"`
	// Subset names endpoints of To; see Spec.Subsets.
	Subset string `yaml:"subset"`
	// Weight is this route's share. Default 1; 0 takes none.
	Weight *int `yaml:"weight"`
	// Priority groups routes: those of a greater number are used when all before are down.
	Priority int `yaml:"priority"`
}

// Split says what decides between routes.
type Split struct {
	// By is key (the default for everything that holds data), random (the default for
	// services), caller, or header:NAME.
	By string `yaml:"by"`
	// ReadOnly promises that nothing is written, which makes random safe for data.
	ReadOnly bool `yaml:"readOnly"`
}

// Limits bounds what is in progress at once. Zero means no limit.
type Limits struct {
	// MaxRequests is how many attempts run at once.
	MaxRequests int `yaml:"maxRequests"`
	// MaxPending is how many more wait for their turn; -1 means that none does.
	MaxPending int `yaml:"maxPending"`
	// MaxRetries is how many of the attempts are retries.
	MaxRetries int `yaml:"maxRetries"`
}

// Breaker refuses calls while most of them fail. It opens when any condition that is set
// holds; with none set, after 5 failures in a row.
type Breaker struct {
	ConsecutiveFailures int           `yaml:"consecutiveFailures"` // opens after so many in a row
	FailureRate         int           `yaml:"failureRate"`         // opens when this percentage of a window's calls fails
	Window              time.Duration `yaml:"window"`              // of FailureRate; default 10s
	MinRequests         int           `yaml:"minRequests"`         // in the window, before FailureRate counts; default 20
	// Trip is an expression over requests, totalSuccesses, totalFailures, consecutiveSuccesses
	// and consecutiveFailures, as in Resiliency resources.
	Trip string `yaml:"trip"`
	// Open is how long calls are refused. Default 30s.
	Open time.Duration `yaml:"open"`
	// HalfOpen is how many calls then try, and must succeed. Default 1.
	HalfOpen int `yaml:"halfOpen"`
	// Per is target (one breaker per destination, the default) or operation.
	Per string `yaml:"per"`
}

// RateLimit bounds calls per time.
type RateLimit struct {
	Local *LocalRate `yaml:"local"` // kept by each sidecar by itself
}

// LocalRate is a limit that this sidecar keeps by itself.
type LocalRate struct {
	Tokens int           `yaml:"tokens"` // calls let through per time
	Per    time.Duration `yaml:"per"`    // the time; default 1s
	Burst  int           `yaml:"burst"`  // calls at one moment; default Tokens
	// Key divides the limit: every caller, op, resource or header:NAME has its own. Empty means
	// one for all.
	Key string `yaml:"key"`
	// MaxKeys bounds the memory of a divided limit; the key not used longest is forgotten.
	// Default 10000.
	MaxKeys int `yaml:"maxKeys"`
}

// Fault delays or fails calls on purpose.
type Fault struct {
	Delay *Delay `yaml:"delay"` // comes first where both are set
	Abort *Abort `yaml:"abort"` // fails them unmade
}

// Delay holds a share of the calls up.
type Delay struct {
	Fixed   time.Duration `yaml:"fixed"`   // for how long
	Percent *float64      `yaml:"percent"` // of the calls; default 100
	Header  string        `yaml:"header"`  // only calls that carry it
}

// Abort fails a share of the calls without making them.
type Abort struct {
	Outcome string   `yaml:"outcome"` // as what they fail, one of the outcomes; default unavailable
	Percent *float64 `yaml:"percent"` // of the calls; default 100
	Header  string   `yaml:"header"`  // only calls that carry it
}

// Mirror sends copies of calls elsewhere. They never slow down or fail the calls themselves.
type Mirror struct {
	// To is an app id, or a component of the same kind.
	To string `yaml:"to"`
	// Percent of the calls, default 100. Copies of writes to a store are chosen by key, so that
	// a key is copied always or never.
	Percent *float64 `yaml:"percent"`
	// Compare is the percentage of reads that are repeated on the copy and compared.
	Compare float64 `yaml:"compare"`
	// MaxPending bounds the copies waiting; more are dropped and counted. Default 1024.
	MaxPending int `yaml:"maxPending"`
}

// Balance chooses among the endpoints of a service.
type Balance struct {
	// Policy is round_robin (the default), least_request, peak_ewma, random, ring_hash or maglev.
	Policy string `yaml:"policy"`
	// Hash is what ring_hash and maglev look at; the first that the call has.
	Hash []HashKey `yaml:"hash"`
	// Choices is how many endpoints least_request compares. Default 2.
	Choices int `yaml:"choices"`
	// SlowStart is how long a new endpoint's share grows. Zero: at once.
	SlowStart time.Duration `yaml:"slowStart"`
	// Panic is the percentage of healthy endpoints below which health is ignored. Default 50.
	Panic *int `yaml:"panic"`
	// Locality is off (the default), failover or weighted.
	Locality string `yaml:"locality"`
	// Zone is where this sidecar is; default the variable MECHA_ZONE.
	Zone string `yaml:"zone"`
	// Sticky keeps a client at one endpoint.
	Sticky *Sticky `yaml:"sticky"`
}

// HashKey is one thing to hash: a header, a cookie, or one of key, caller, path.
type HashKey struct {
	Header string `yaml:"header"` // the header's value
	Cookie string `yaml:"cookie"` // the cookie's value
	Word   string `yaml:"-"`
}

// UnmarshalText reads key, caller or path.
func (h *HashKey) UnmarshalText(text []byte) error {
	h.Word = string(text)
	return nil
}

// Sticky keeps a client at one endpoint by what it sends: the endpoint's id, which answers
// carry in the same header, or in a cookie.
type Sticky struct {
	Header string        `yaml:"header"` // name of the header
	Cookie string        `yaml:"cookie"` // name of the cookie
	TTL    time.Duration `yaml:"ttl"`    // of the cookie; zero: of the session
}

// Headers rewrites headers.
type Headers struct {
	Request  Rewrite `yaml:"request"`  // of what is sent on
	Response Rewrite `yaml:"response"` // of the answer
}

// Rewrite changes headers: Remove first, then Set, then Add.
type Rewrite struct {
	Set    map[string]string `yaml:"set"`    // in place of what is there
	Add    map[string]string `yaml:"add"`    // beside what is there
	Remove Words             `yaml:"remove"` // names
}

func (r *Rewrite) empty() bool { return len(r.Set)+len(r.Add)+len(r.Remove) == 0 }

// Authz says who may do what. A call that fits a Deny rule is refused. Otherwise, where there
// is an Allow list, a call that fits none of it is refused; an empty list refuses all.
type Authz struct {
	Deny  []Rule `yaml:"deny"`  // refused when any fits
	Allow []Rule `yaml:"allow"` // refused when none fits
	// Shadow only reports what would be refused.
	Shadow bool `yaml:"shadow"`
}

// Rule is one kind of caller and operation. All fields that are set must fit.
type Rule struct {
	Name string `yaml:"name"` // for reports; default its place in the list
	// From is app ids ("checkout", or "checkout.shop" with the namespace). Who calls must be
	// proven for an allow rule to fit; whoever is not proven fits every deny rule.
	From Words `yaml:"from"`
	// Op is what is done, as in Match.
	Op Words `yaml:"op"`
	// Method is an HTTP verb.
	Method Words `yaml:"method"`
	// Path is a method path, key or topic.
	Path Words `yaml:"path"`
}

// headerKey reads "header:NAME".
func headerKey(s string) (name string, ok bool) {
	return strings.CutPrefix(s, "header:")
}
