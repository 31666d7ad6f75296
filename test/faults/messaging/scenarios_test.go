//go:build unix

package messaging

import (
	"time"

	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
)

// scenario is a kind of history.
type scenario struct {
	name string
	// api is what publishers and consumers use: dapr (the default); native, the bare stream; sdk, which
	// is the Go SDK beside consumers on the bare stream; mixed, which is publishers of Dapr's API and
	// consumers of both.
	api    string
	takers int
	gates  bool // sidecars reach the broker through gates
	faults []fault
	// rounds is how many of the faults happen, in random order; 0 means each once, in order.
	rounds int

	poisoned    int // keys of each publisher with a message that fails
	fails       int // how often it does
	deadLetter  string
	slow        time.Duration // handlers; 0: fast ones
	maxInFlight int           // of a consumer; 0: the default
	// Of native consumers and publishers:
	attempts int           // deliveries before a message is set aside
	window   int           // messages past an unresolved one
	credit   int           // consumers give credit for each message, this much to begin with
	wrong    bool          // publishers try what cannot be published
	long     time.Duration // some messages take so long
	replays  int           // consumers of another group
	ordering mechav1.Ordering
	stores   bool // consumers write to a store, fenced by epochs
}

// roles are the consumers, in turn.
func (sc scenario) roles() []string {
	switch sc.api {
	case "native":
		return []string{"native"}
	case "sdk":
		return []string{"sdk", "native"}
	case "mixed":
		return []string{"native", "callback", "stream"}
	}
	return []string{"stream", "callback"}
}

// parks tells that messages are parked, which somebody has to let go on.
func (sc scenario) parks() bool { return sc.attempts > 0 && sc.deadLetter == "" }

// usual is how long messages take, at most, that do not take long.
func (sc scenario) usual() time.Duration { return max(sc.slow, 3*time.Millisecond) }

// handler is how long any message takes, at most.
func (sc scenario) handler() time.Duration { return max(sc.usual(), sc.long) }

// limit is how many messages may be unresolved at one app.
func (sc scenario) limit() int {
	if sc.maxInFlight > 0 {
		return sc.maxInFlight
	}
	return 64
}

// keys is how many keys are published in all: enough for each partition to have some, and each
// consumer.
func (sc scenario) keys() int { return 48 }

// pause is the time between messages of a key.
func (sc scenario) pause() time.Duration {
	if sc.slow > 0 {
		return 200 * time.Millisecond
	}
	return 80 * time.Millisecond
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
	{name: "two faults at a time", takers: 3, gates: true, faults: []fault{together(sidecarStopped, sidecarKilled), together(halfOpen, bothKilled), together(sidecarStopped, sidecarStopped)}},
	{name: "everything", takers: 3, gates: true, poisoned: 1, fails: 2, rounds: 5,
		faults: all},

	{api: "native", name: "native: a message is refused three times", takers: 2, poisoned: 2, fails: 3, window: 100, faults: []fault{calm}},
	{api: "native", name: "native: refused messages are parked", takers: 2, poisoned: 3, fails: 5, attempts: 2, faults: []fault{calm, sidecarKilled}},
	{api: "native", name: "native: refused messages go to the dead-letter topic", takers: 2, poisoned: 3, fails: -1, attempts: 2, deadLetter: "dead", faults: []fault{calm, sidecarKilled}},
	{api: "native", name: "native: credit runs out", takers: 2, maxInFlight: 16, credit: 8, faults: []fault{calm}},
	{api: "native", name: "native: apps killed", takers: 3, faults: []fault{appKilled, appStopped, appKilled}},
	{api: "native", name: "native: sidecars killed", takers: 3, faults: []fault{calm, hostLost, sidecarKilled}},
	{api: "native", name: "native: sidecars stopped and continued", takers: 3, long: 2500 * time.Millisecond, faults: []fault{calm, sidecarOutlived, sidecarStopped, sidecarStopped}},
	{api: "native", name: "native: fenced writes of halted sidecars", takers: 2, stores: true, long: 2500 * time.Millisecond, faults: []fault{calm, sidecarOutlived, calm, sidecarOutlived}},
	{api: "native", name: "native: leaves and joins", takers: 3, faults: []fault{restarted, joined, rolling}},
	{api: "native", name: "native: connections cut and half-open", takers: 3, gates: true, faults: []fault{linkCut, halfOpen, linkCut, halfOpen}},
	{api: "native", name: "native: broker killed halted and slow", takers: 3, faults: []fault{brokerKilled, brokerHalted, brokerSlow}},
	{api: "native", name: "native: two faults at a time", takers: 3, gates: true, faults: []fault{together(sidecarStopped, sidecarKilled), together(halfOpen, bothKilled), together(brokerHalted, sidecarKilled)}},
	{api: "native", name: "native: resized", takers: 3, poisoned: 4, fails: 5, faults: []fault{resized}},
	{api: "native", name: "native: resized while a publisher is halted", takers: 2, faults: []fault{resizedUnnoticed, sidecarKilled}},
	{api: "native", name: "native: resized under faults", takers: 3, gates: true, faults: []fault{together(resized, together(sidecarStopped, bothKilled)), halfOpen}},
	{api: "mixed", name: "mixed: resized", takers: 3, faults: []fault{together(resized, brokerKilled)}},
	{api: "native", name: "native: parked under faults", takers: 3, gates: true, poisoned: 6, fails: 5, attempts: 2, faults: []fault{together(unparked, sidecarStopped), together(unparked, bothKilled), together(unparked, halfOpen)}},
	{api: "native", name: "native: whole partitions in order", takers: 3, gates: true, ordering: mechav1.Ordering_ORDERING_PARTITION, rounds: 3, faults: all},
	{api: "native", name: "native: another group is rewound", takers: 2, replays: 2, faults: []fault{rewound, sidecarStopped, rewound}},
	{api: "native", name: "native: some messages cannot be published", takers: 2, wrong: true, faults: []fault{calm, publisherCut}},
	{api: "sdk", name: "the Go SDK: everything", takers: 3, gates: true, poisoned: 1, fails: 2, rounds: 5, faults: all},
	{api: "mixed", name: "mixed: both APIs in one group", takers: 3, gates: true, rounds: 4, faults: all},
	{api: "native", name: "native: everything", takers: 3, gates: true, poisoned: 1, fails: 2, rounds: 5, faults: all},
}

var all = []fault{appKilled, sidecarKilled, bothKilled, sidecarStopped, appStopped, linkCut, halfOpen, brokerKilled, brokerSlow, brokerHalted, publisherCut}
