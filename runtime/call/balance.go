package call

import "time"

// Endpoint is one place where a service's calls can go.
type Endpoint struct {
	ID      string
	Address string
	Zone    string // locality; empty means unknown
	Weight  int    // share of the calls; below 1 counts as 1
	Labels  map[string]string
}

// Endpoints is an immutable list of endpoints. A changed list is another object.
type Endpoints struct{ All []Endpoint }

// Balancer chooses among the endpoints of a destination.
type Balancer interface {
	// Pick chooses one for an attempt at dest, leaving out those in c.Tried() while others are
	// left, and those in t.Went() in any case. at is its index; ok is false when there is none
	// left to try. The pick counts the attempt's load and health.
	Pick(c *Call, t *Try, dest string, from *Endpoints) (at int, p Pick, ok bool)
}

// Pick is an endpoint chosen for an attempt.
type Pick interface {
	Begin()
	End(took time.Duration, o Outcome)
}
