//go:build unix

package messaging

import "time"

// scenario is a kind of history.
type scenario struct {
	name   string
	takers int
	gates  bool // sidecars reach the broker through gates
	faults []fault
	// rounds is how many of the faults happen, in random order; 0 means each once, in order.
	rounds int

	poisoned    int // keys of each publisher with a message that fails
	fails       int // how often it does
	deadLetter  string
	slow        time.Duration // handlers; 0: fast ones
	maxInFlight int           // of a subscription; 0: the default
}

func (sc scenario) handler() time.Duration {
	if sc.slow > 0 {
		return sc.slow
	}
	return 3 * time.Millisecond
}

// limit is how many messages may be unresolved at one app.
func (sc scenario) limit() int {
	if sc.maxInFlight > 0 {
		return sc.maxInFlight
	}
	return 64
}

// keys is how many keys are published in all.
func (sc scenario) keys() int { return 24 }

// pause is the time between messages of a key.
func (sc scenario) pause() time.Duration {
	if sc.slow > 0 {
		return 100 * time.Millisecond
	}
	return 50 * time.Millisecond
}

// scenarios are what a run makes histories of, again and again while there is time.
var scenarios = []scenario{
	{name: "a message is refused three times", takers: 2, poisoned: 2, fails: 3, faults: []fault{calm}},
	{name: "refused messages go to the dead-letter topic", takers: 2, poisoned: 3, fails: -1, deadLetter: "dead", faults: []fault{calm, appKilled}},
	{name: "slow handlers eight at a time", takers: 2, slow: 40 * time.Millisecond, maxInFlight: 8, faults: []fault{calm}},
	{name: "apps killed", takers: 3, faults: []fault{appKilled, appKilled, bothKilled}},
	{name: "sidecars killed", takers: 3, faults: []fault{sidecarKilled, sidecarKilled, bothKilled}},
	{name: "stopped and continued", takers: 3, faults: []fault{sidecarStopped, appStopped, sidecarStopped}},
	{name: "leaves and joins", takers: 3, faults: []fault{restarted, joined}},
	{name: "rolling restart", takers: 3, faults: []fault{rolling}},
	{name: "connections cut and half-open", takers: 3, gates: true, faults: []fault{linkCut, halfOpen, linkCut, halfOpen}},
	{name: "broker killed and slow", takers: 3, faults: []fault{brokerKilled, brokerSlow, brokerKilled}},
	{name: "everything", takers: 3, gates: true, poisoned: 1, fails: 2, rounds: 5,
		faults: []fault{appKilled, sidecarKilled, bothKilled, sidecarStopped, appStopped, linkCut, halfOpen, brokerKilled, brokerSlow, publisherCut}},
}
