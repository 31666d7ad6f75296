package history

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const (
	ms = time.Millisecond
	s  = time.Second
)

// script makes events, each a millisecond after the one before unless it says when.
func script(events ...Event) []Event {
	t := s
	for i := range events {
		e := &events[i]
		if e.T == 0 {
			t += ms
			e.T = t
		} else {
			e.T += s
			t = e.T
		}
		if e.Until > 0 {
			e.Until += s
		}
		if e.Topic == "" && e.Kind != Fault && e.Kind != Drained && e.Kind != Opened && e.Kind != Credit {
			e.Topic = "t"
		}
		if e.Group == "" && e.Kind != Published && e.Kind != Publishing && e.Kind != Fault {
			e.Group = "g"
		}
	}
	return events
}

// msg names message seq of a key, as it is in partition 0 at a position.
func msg(key string, seq int, pos uint64) Event {
	return Event{ID: fmt.Sprintf("%s-%d", key, seq), Key: key, Seq: seq, Pos: pos}
}

func of3(m Event, k Kind, proc string, epoch uint64) Event {
	m.Kind, m.Proc, m.Epoch = k, proc, epoch
	return m
}

func pub(m Event) Event                        { m.Kind, m.Outcome = Published, OK; return m }
func sent(m Event) Event                       { m.Kind = Publishing; return m }
func got(m Event, proc string, e uint64) Event { return of3(m, Delivered, proc, e) }
func did(m Event, proc string, e uint64) Event { return of3(m, Effect, proc, e) }
func ack(m Event, proc string, e uint64) Event { return of3(m, Acked, proc, e) }
func nack(m Event, proc string, e uint64, r Remedy) Event {
	n := of3(m, Nacked, proc, e)
	n.Remedy = r
	return n
}
func assigned(proc string, epoch, next uint64) Event {
	return Event{Kind: Assigned, Proc: proc, Epoch: epoch, Next: next}
}
func part(k Kind, proc string) Event { return Event{Kind: k, Proc: proc} }
func status(proc string, epoch, committed uint64) Event {
	return Event{Kind: Status, Proc: proc, Epoch: epoch, Committed: committed}
}
func at(t time.Duration, e Event) Event { e.T = t; return e }
func answered(m Event, o Outcome, stream string) Event {
	m.Kind, m.Outcome, m.Stream = Published, o, stream
	return m
}
func in(group string, e Event) Event { e.Group = group; return e }

var drained = Event{Kind: Drained}

// whole is a message that goes all the way.
func whole(m Event, proc string, epoch uint64) []Event {
	return []Event{pub(m), got(m, proc, epoch), did(m, proc, epoch), ack(m, proc, epoch)}
}

func join(parts ...[]Event) (out []Event) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

var a1, a2, a3, b1, b2 = msg("a", 1, 1), msg("a", 2, 2), msg("a", 3, 4), msg("b", 1, 3), msg("b", 2, 5)

// crowd are messages of one key each, published at t.
func crowd(n int, t time.Duration) (out []Event) {
	for i := range n {
		out = append(out, at(t+time.Duration(i)*ms, pub(msg(fmt.Sprintf("other%d", i), 1, uint64(100+i)))))
	}
	return out
}

var cases = []struct {
	name   string
	setup  Setup
	events []Event
	judged string // the invariant
	bad    string // part of the witness; empty: not violated
}{
	{"all handled", Setup{}, join(whole(a1, "x", 1), whole(a2, "x", 1), []Event{drained}), "I1", ""},
	{"not drained: nothing is lost yet", Setup{}, []Event{pub(a1)}, "I1", "-"},
	{"never delivered", Setup{}, join(whole(a1, "x", 1), []Event{pub(a2), drained}), "I1", "never delivered to group g"},
	{"delivered, no word", Setup{}, []Event{pub(a1), got(a1, "x", 1), drained}, "I1", "neither acknowledged"},
	{"dropped counts", Setup{}, []Event{pub(a1), got(a1, "x", 1), nack(a1, "x", 1, Drop), drained}, "I1", ""},
	{"a refusal does not count", Setup{}, []Event{pub(a1), got(a1, "x", 1), nack(a1, "x", 1, Retry), drained}, "I1", "neither acknowledged"},
	{"the copy has to arrive", Setup{DeadLetters: true}, []Event{pub(a1), got(a1, "x", 1), nack(a1, "x", 1, DeadLetter), drained}, "I1", "neither"},
	{"the copy arrived", Setup{DeadLetters: true}, []Event{pub(a1), got(a1, "x", 1), nack(a1, "x", 1, DeadLetter), of3(a1, DeadLettered, "y", 0), drained}, "I1", ""},
	{"unknown answers may be lost", Setup{}, join(whole(a2, "x", 1), []Event{answered(a1, Unknown, ""), drained}), "I1", ""},
	{"another group misses it", Setup{Groups: []string{"g", "h"}}, join(whole(a1, "x", 1), []Event{drained}), "I1", "to group h"},
	{"invented", Setup{}, []Event{got(a1, "x", 1)}, "I1", "nobody published"},
	{"refused and delivered", Setup{}, []Event{sent(a1), answered(a1, Failed, ""), got(a1, "x", 1)}, "I1", "publish was refused"},
	{"refused once, sent twice", Setup{}, join([]Event{sent(a1), answered(a1, Failed, ""), sent(a1)}, whole(a1, "x", 1), []Event{drained}), "I1", ""},
	{"swapped", Setup{}, []Event{pub(a1), got(Event{ID: "a-1", Key: "b", Seq: 1, Pos: 1}, "x", 1)}, "I1", "another's content"},

	{"in order", Setup{}, join(whole(a1, "x", 1), whole(a2, "x", 1), whole(b1, "x", 1)), "I2", ""},
	{"overtaken", Setup{}, []Event{pub(a1), pub(a2), got(a2, "x", 1), did(a2, "x", 1), got(a1, "y", 2), did(a1, "y", 2)}, "I2", "number 1 of key a took effect for the first time after number 2"},
	{"an old one again is no violation", Setup{}, join(whole(a1, "x", 1), whole(a2, "x", 1), []Event{did(a1, "z", 1)}), "I2", ""},
	{"the sink's order counts, not the clock", Setup{}, []Event{pub(a1), pub(a2),
		{Kind: Effect, ID: "a-2", Key: "a", Seq: 2, Order: 1, Proc: "x"}, {Kind: Effect, ID: "a-1", Key: "a", Seq: 1, Order: 2, Proc: "x"}}, "I2", "number 1"},
	{"a gap is I1's", Setup{}, []Event{pub(a1), pub(a2), pub(a3), did(a1, "x", 1), did(a3, "x", 1)}, "I2", ""},
	{"partition in order", Setup{Partition: true}, join(whole(a1, "x", 1), whole(a2, "x", 1), whole(b1, "x", 1), []Event{did(a1, "x", 1)}), "I2", ""},
	{"partition out of order", Setup{Partition: true}, join(whole(b1, "x", 1), whole(a2, "x", 1)), "I2", "position 2 took effect for the first time after position 3"},
	{"groups apart", Setup{}, []Event{did(a1, "x", 1), in("h", did(a2, "x", 1)), did(a2, "x", 1), in("h", did(a3, "x", 1))}, "I2", ""},

	{"handed over", Setup{}, []Event{assigned("x", 1, 1), part(Revoking, "x"), part(RevokeDone, "x"), assigned("y", 2, 1)}, "I3", ""},
	{"two owners", Setup{}, []Event{assigned("x", 1, 1), assigned("y", 1, 1)}, "I3", "two consumers"},
	{"two deliver", Setup{}, []Event{got(a1, "x", 3), got(a2, "y", 3)}, "I3", "two consumers"},
	{"an app that came back beside its member", Setup{}, []Event{{Kind: Assigned, Proc: "x.1", Member: "m", Epoch: 3}, {Kind: Opened, Proc: "x.2"}, {Kind: Assigned, Proc: "x.2", Member: "m", Epoch: 3}}, "I3", ""},
	{"epoch goes back", Setup{}, []Event{assigned("x", 5, 1), part(Lost, "x"), assigned("x", 4, 1)}, "I3", "did not grow"},
	{"the same epoch again", Setup{}, []Event{assigned("x", 5, 1), part(Lost, "x"), assigned("x", 5, 1)}, "I3", "did not grow"},
	{"a newcomer gets an old one", Setup{}, []Event{assigned("x", 5, 1), {Kind: Opened, Proc: "y"}, assigned("y", 4, 1)}, "I3", "after a later one was seen"},
	{"one who heard late", Setup{}, []Event{{Kind: Opened, Proc: "y"}, assigned("x", 5, 1), assigned("y", 4, 1)}, "I3", ""},
	{"fenced writes", Setup{}, []Event{at(10*ms, fenced(did(a1, "x", 1), 5*ms)), at(20*ms, fenced(did(a2, "y", 2), 15*ms))}, "I3", ""},
	{"fenced writes at the same time", Setup{}, []Event{at(20*ms, fenced(did(a2, "y", 2), 10*ms)), at(30*ms, fenced(did(a3, "x", 1), 15*ms))}, "I3", ""},
	{"a zombie's write is taken", Setup{}, []Event{at(20*ms, fenced(did(a2, "y", 2), 10*ms)), at(30*ms, fenced(did(a3, "x", 1), 25*ms))}, "I3", "epoch that was over"},

	{"fenced store", Setup{}, join(whole(a1, "x", 1), whole(a2, "y", 2), []Event{of3(a2, Stored, "", 0), drained}), "I3", ""},
	{"fenced store takes a zombie's", Setup{}, join(whole(a1, "x", 1), whole(a2, "y", 2), []Event{of3(a1, Stored, "", 0), drained}), "I3", "the store holds number 1"},

	{"quiet after the end", Setup{}, []Event{assigned("x", 1, 1), got(a1, "x", 1), part(Revoking, "x"), part(RevokeDone, "x"), assigned("x", 3, 2), got(a2, "x", 3)}, "I4", ""},
	{"after RevokeDone", Setup{}, []Event{assigned("x", 1, 1), part(Revoking, "x"), part(RevokeDone, "x"), got(a1, "x", 1)}, "I4", "taken back"},
	{"after Revoking", Setup{}, []Event{assigned("x", 1, 1), part(Revoking, "x"), got(a1, "x", 1)}, "I4", "taken back"},
	{"after Lost", Setup{}, []Event{assigned("x", 1, 1), part(Lost, "x"), got(a1, "x", 1)}, "I4", "taken back"},
	{"under an old epoch", Setup{}, []Event{assigned("x", 1, 1), part(Lost, "x"), assigned("x", 3, 1), got(a1, "x", 1)}, "I4", "under an epoch"},
	{"an older loss", Setup{}, []Event{assigned("x", 3, 1), {Kind: Lost, Proc: "x", Epoch: 1}, got(a1, "x", 3)}, "I4", ""},
	{"never assigned", Setup{}, []Event{got(a1, "x", 1)}, "I4", "never assigned"},

	{"watermark follows", Setup{}, join([]Event{assigned("x", 1, 1)}, whole(a1, "x", 1), []Event{status("x", 1, 2)}, whole(a2, "x", 1), []Event{status("x", 1, 3), assigned("y", 2, 3)}), "I5", ""},
	{"watermark passes what is under way", Setup{}, []Event{pub(a1), got(a1, "x", 1), status("x", 1, 2), ack(a1, "x", 1)}, "I5", "passed position 1"},
	{"watermark passes what was never delivered", Setup{}, []Event{pub(a1), status("x", 1, 2)}, "I5", "passed position 1"},
	{"watermark passes a refused one", Setup{Attempts: 3}, []Event{pub(a1), got(a1, "x", 1), nack(a1, "x", 1, Retry), status("x", 1, 2)}, "I5", "passed position 1"},
	{"set aside behind a parked one", Setup{}, []Event{pub(a1), pub(a2), got(a1, "x", 1), nack(a1, "x", 1, Park), status("x", 1, 3)}, "I5", ""},
	{"watermark goes back", Setup{}, join(whole(a1, "x", 1), []Event{status("x", 1, 2), status("x", 1, 1)}), "I5", "went back"},
	{"the next owner starts before it", Setup{}, join(whole(a1, "x", 1), []Event{status("x", 1, 2), assigned("y", 2, 1)}), "I5", "went back"},
	{"after a seek it may", Setup{}, join(whole(a1, "x", 1), []Event{status("x", 1, 2), {Kind: Seek}, status("x", 1, 1)}), "I5", ""},

	{"within the bound", Setup{Limit: 1}, []Event{pub(a1), got(a1, "x", 1), crash(20*ms, "x"), got(a1, "y", 2), ack(a1, "y", 2)}, "I6", ""},
	{"beyond the bound", Setup{Limit: 1}, []Event{pub(a1), pub(b1), got(a1, "x", 1), got(b1, "x", 1), crash(20*ms, "x"), got(a1, "y", 2), got(b1, "y", 2)}, "I6", "2 messages came again, and at most 1 may"},
	{"acknowledged long before", Setup{Limit: 1, CommitWindow: 100 * ms}, []Event{pub(a1), pub(b1), got(a1, "x", 1), ack(a1, "x", 1), got(b1, "x", 1), crash(2*s, "x"), got(a1, "y", 2), got(b1, "y", 2)}, "I6", "2 messages"},
	{"acknowledged just now", Setup{Limit: 1, CommitWindow: 100 * ms}, []Event{pub(a1), pub(b1), got(a1, "x", 1), ack(a1, "x", 1), got(b1, "x", 1), crash(20*ms, "x"), got(a1, "y", 2), got(b1, "y", 2)}, "I6", ""},
	{"asked for", Setup{Limit: 1, Exact: true}, []Event{pub(a1), got(a1, "x", 1), nack(a1, "x", 1, Retry), got(a1, "x", 1), pub(b1), got(b1, "x", 1), crash(20*ms, "x"), got(b1, "y", 2)}, "I6", ""},
	{"for no reason", Setup{Limit: 1, Exact: true}, []Event{pub(a1), got(a1, "x", 1), ack(a1, "x", 1), got(a1, "x", 1)}, "I6", "no visible reason"},
	{"an orderly leave is none", Setup{Limit: 1, Exact: true}, []Event{pub(a1), got(a1, "x", 1), {Kind: Fault, What: "leave", Graceful: true, Victims: []string{"x"}}, got(a1, "y", 2)}, "I6", "no visible reason"},
	{"an orderly leave of one whose partitions cannot be seen", Setup{Limit: 1}, []Event{pub(a1), got(a1, "x", 1), {Kind: Fault, What: "leave", Graceful: true, Victims: []string{"x"}}, got(a1, "y", 2)}, "I6", ""},
	{"a loss is a reason", Setup{Limit: 1, Exact: true}, []Event{assigned("x", 1, 1), pub(a1), got(a1, "x", 1), part(Lost, "x"), got(a1, "y", 2)}, "I6", ""},

	{"within what is allowed", Setup{Limit: 1}, []Event{got(a1, "x", 1), ack(a1, "x", 1), got(a2, "x", 1)}, "I7", ""},
	{"more than is allowed", Setup{Limit: 1}, []Event{got(a1, "x", 1), got(b1, "x", 1)}, "I7", "2 messages are unresolved"},
	{"credit", Setup{}, []Event{{Kind: Credit, Proc: "x", N: 2}, got(a1, "x", 1), got(b1, "x", 1)}, "I7", ""},
	{"beyond credit", Setup{}, []Event{{Kind: Credit, Proc: "x", N: 1}, got(a1, "x", 1), ack(a1, "x", 1), got(a2, "x", 1)}, "I7", "credit was given for 1"},
	{"a fault cuts off", Setup{Limit: 1}, []Event{got(a1, "x", 1), crash(20*ms, "x"), got(b1, "x", 2)}, "I7", ""},

	{"others go on", Setup{}, join([]Event{pub(a1), at(10*ms, got(a1, "x", 1)), at(20*ms, nack(a1, "x", 1, Retry))}, crowd(20, 30*ms), []Event{at(s, got(msg("other3", 1, 103), "x", 1)), at(3*s, nack(a1, "x", 1, Retry))}), "I8", ""},
	{"others wait", Setup{}, join([]Event{pub(a1), at(10*ms, got(a1, "x", 1)), at(20*ms, nack(a1, "x", 1, Retry))}, crowd(20, 30*ms), []Event{at(3*s, nack(a1, "x", 1, Retry)), at(4*s, got(msg("other3", 1, 103), "x", 1))}), "I8", "none of the 20"},
	{"beyond the window", Setup{Window: 1}, join([]Event{pub(a1), at(10*ms, got(a1, "x", 1)), at(20*ms, nack(a1, "x", 1, Retry))}, crowd(20, 30*ms),
		[]Event{at(s, got(msg("other3", 1, 103), "x", 1)), got(msg("other4", 1, 104), "x", 1), at(3*s, nack(a1, "x", 1, Retry))}), "I8", "the window is 1"},

	{"parked and back", Setup{}, []Event{pub(a1), pub(a2), got(a1, "x", 1), nack(a1, "x", 1, Park), got(b1, "x", 1), {Kind: Unparked, Key: "a"}, got(a1, "x", 1), ack(a1, "x", 1), got(a2, "x", 1), ack(a2, "x", 1)}, "I9", ""},
	{"a later one does not wait", Setup{}, []Event{pub(a1), pub(a2), got(a1, "x", 1), nack(a1, "x", 1, Park), got(a2, "x", 1)}, "I9", "parked key"},
	{"a newer one first", Setup{}, []Event{pub(a1), pub(a2), got(a1, "x", 1), nack(a1, "x", 1, Park), {Kind: Unparked, Key: "a"}, got(a2, "x", 1)}, "I9", "number 2 of a key came before number 1"},
	{"one is skipped", Setup{}, []Event{pub(a1), pub(a2), pub(a3), got(a1, "x", 1), nack(a1, "x", 1, Park), {Kind: Unparked, Key: "a"}, got(a1, "x", 1), got(a3, "x", 1)}, "I9", "number 3 of a key came before number 2"},
	{"the refusal was lost with its owner", Setup{}, []Event{pub(a1), pub(a2), got(a1, "x", 1), nack(a1, "x", 1, Park), got(a1, "y", 2), ack(a1, "y", 2), got(a2, "y", 2)}, "I9", ""},

	{"taken over in time", Setup{Exact: true, TTL: s}, []Event{assigned("x", 1, 1), crash(s, "x"), at(2200*ms, assigned("y", 2, 1)), at(6*s, drained)}, "I10", ""},
	{"taken over late", Setup{Exact: true, TTL: s}, []Event{assigned("x", 1, 1), crash(s, "x"), at(2600*ms, assigned("y", 2, 1)), at(6*s, drained)}, "I10", "took 1.6s"},
	{"never taken over", Setup{Exact: true, TTL: s}, []Event{assigned("x", 1, 1), crash(s, "x"), at(6*s, drained)}, "I10", "no new owner"},
	{"a busy machine", Setup{Exact: true, TTL: s, Allowance: s}, []Event{assigned("x", 1, 1), crash(s, "x"), at(2600*ms, assigned("y", 2, 1)), at(6*s, drained)}, "I10", ""},
	{"another fault on top", Setup{Exact: true, TTL: s}, []Event{assigned("x", 1, 1), crash(s, "x"), crash(1500*ms, "y"), at(4*s, assigned("z", 2, 1))}, "I10", "-"},
	{"handed over in time", Setup{Exact: true, TTL: s, Handler: 10 * ms}, []Event{assigned("x", 1, 1), at(s, part(Revoking, "x")), part(RevokeDone, "x"), at(1300*ms, assigned("y", 2, 1))}, "I10", ""},
	{"handed over late", Setup{Exact: true, TTL: s, Handler: 10 * ms}, []Event{assigned("x", 1, 1), at(s, part(Revoking, "x")), part(RevokeDone, "x"), at(1600*ms, assigned("y", 2, 1))}, "I10", "hand-over took 600ms"},

	{"held back until resumed", Setup{}, []Event{answered(a1, Failed, "p"), answered(a2, Preceding, "p"), {Kind: ResumeKey, Key: "a", Stream: "p"}, answered(a3, OK, "p")}, "I11", ""},
	{"let through", Setup{}, []Event{answered(a1, Failed, "p"), answered(b1, OK, "p"), answered(a2, OK, "p")}, "I11", "behind a failed one"},
	{"let through behind an unknown one", Setup{}, []Event{answered(a1, Unknown, "p"), answered(a2, OK, "p")}, "I11", "behind a failed one"},
	{"a new stream", Setup{}, []Event{answered(a1, Failed, "p"), answered(a2, Preceding, "p"), answered(a2, OK, "q")}, "I11", ""},
	{"refused and delivered all the same", Setup{}, []Event{answered(a1, Failed, "p"), answered(a2, Preceding, "p"), got(a2, "x", 1)}, "I11", "refused for a failed one"},

	{"resized in order", Setup{}, join(whole(a1, "x", 1), []Event{{Kind: Resized, N: 8}}, whole(a2, "x", 1)), "I12", ""},
	{"resized out of order", Setup{}, join([]Event{{Kind: Resized, N: 8}, pub(a1), pub(a2)}, []Event{did(a2, "x", 1), did(a1, "y", 1)}), "I12", "number 1"},
	{"not resized", Setup{}, []Event{did(a2, "x", 1), did(a1, "y", 1)}, "I12", "-"},

	{"the other group is left alone", Setup{}, []Event{pub(a1), got(a1, "x", 1), in("h", got(a1, "y", 1)), in("h", Event{Kind: Seek}), in("h", got(a1, "y", 1)), pub(a2), got(a2, "x", 1)}, "I13", ""},
	{"the other group is moved too", Setup{}, []Event{pub(a1), got(a1, "x", 1), in("h", got(a1, "y", 1)), in("h", Event{Kind: Seek}), got(a1, "x", 1)}, "I13", "not moved"},

	{"a stale word, then a good one", Setup{}, []Event{pub(a1), got(a1, "x", 1), assigned("y", 2, 1), ack(a1, "x", 1), got(a1, "y", 2), ack(a1, "y", 2), status("y", 2, 2), drained}, "I14", ""},
	{"a stale word is the last", Setup{}, []Event{pub(a1), got(a1, "x", 1), assigned("y", 2, 1), ack(a1, "x", 1), drained}, "I14", "last word"},
	{"the watermark believes it", Setup{}, []Event{pub(a1), got(a1, "x", 1), assigned("y", 2, 1), ack(a1, "x", 1), status("y", 2, 2), ack(a1, "y", 2)}, "I14", "on the word of a stale"},
}

func fenced(e Event, from time.Duration) Event { e.Fenced, e.From = true, s+from; return e }

func crash(t time.Duration, victims ...string) Event {
	return Event{T: t, Kind: Fault, What: "crash", Crash: true, Victims: victims}
}

func TestCheck(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.judged+" "+tt.name, func(t *testing.T) {
			if tt.setup.Groups == nil {
				tt.setup.Groups = []string{"g"}
			}
			// Cases share messages, and script stamps what it is given.
			events := script(append([]Event(nil), tt.events...)...)
			r := Check(&History{Setup: tt.setup, Events: events})
			v := r.Verdict(tt.judged)
			text := strings.Join(v.Witness, "\n")
			switch {
			case tt.bad == "-" && (v.Checks > 0 || !v.OK()):
				t.Errorf("judged, although there is nothing to judge: %+v", v)
			case tt.bad == "-":
			case tt.bad == "" && !v.OK():
				t.Errorf("a good history is said to violate it:\n%s", text)
			case tt.bad == "" && v.Checks == 0:
				t.Error("nothing was judged")
			case tt.bad != "" && v.OK():
				t.Error("the violation was not seen")
			case !strings.Contains(text, tt.bad):
				t.Errorf("the witness does not say %q:\n%s", tt.bad, text)
			}
		})
	}
}

// Every invariant is judged by a good history and by a bad one above.
func TestEveryInvariantCanFail(t *testing.T) {
	good, bad := map[string]bool{}, map[string]bool{}
	for _, tt := range cases {
		switch tt.bad {
		case "":
			good[tt.judged] = true
		case "-":
		default:
			bad[tt.judged] = true
		}
	}
	for _, c := range Claims {
		if !good[c.ID] || !bad[c.ID] {
			t.Errorf("%s: a good history %v, a bad one %v; both are needed", c.ID, good[c.ID], bad[c.ID])
		}
	}
}

// A history in which everything was seen is judged by all, and found good.
func TestWholeHistory(t *testing.T) {
	var events []Event
	add := func(e ...Event) { events = append(events, e...) }
	add(Event{Kind: Opened, Proc: "x"}, assigned("x", 1, 1))
	for i := range 200 {
		add(whole(msg("k", i+1, uint64(i+1)), "x", 1)...)
	}
	add(status("x", 1, 201), part(Revoking, "x"), part(RevokeDone, "x"), Event{Kind: Opened, Proc: "y"}, assigned("y", 2, 201))
	for i := range 200 {
		add(whole(msg("k", 201+i, uint64(201+i)), "y", 2)...)
	}
	add(status("y", 2, 401), drained)
	r := Check(&History{Setup: Setup{Groups: []string{"g"}, TTL: s, Handler: ms, Limit: 1, Exact: true}, Events: script(events...)})
	if !r.OK() {
		t.Errorf("a good history is said to be bad:\n%s", r)
	}
	for _, id := range []string{"I1", "I2", "I3", "I4", "I5", "I7", "I10"} {
		if r.Verdict(id).Checks == 0 {
			t.Errorf("%s was not judged", id)
		}
	}
	if len(r.Figures.Handovers) != 1 || r.Figures.Published != 400 {
		t.Errorf("figures: %+v", r.Figures)
	}
}

// The smallest witness is kept.
func TestWitnessIsSmall(t *testing.T) {
	// Key a needs four lines and key b six: with publishes.
	events := script(pub(b1), pub(b2), got(b2, "x", 1), did(b2, "x", 1), got(b1, "y", 2), did(b1, "y", 2), did(a2, "x", 1), did(a1, "x", 1))
	v := Check(&History{Events: events}).Verdict("I2")
	if v.Violations != 2 || len(v.Witness) != 3 || !strings.Contains(v.Witness[0], "key a") {
		t.Errorf("%d violations, witness:\n%s", v.Violations, strings.Join(v.Witness, "\n"))
	}
}

func TestReportText(t *testing.T) {
	text := Check(&History{Setup: Setup{Groups: []string{"g"}}, Events: script(pub(a1), pub(a2), did(a2, "x", 1), did(a1, "x", 1), drained)}).String()
	for _, want := range []string{"I1   VIOLATED 2× in 2", "I2   VIOLATED 1× in 1", "I3   not judged", "0.002 s  effect a/2", "a failed ordered publish"} {
		if !strings.Contains(text, want) {
			t.Errorf("the report does not say %q:\n%s", want, text)
		}
	}
}
