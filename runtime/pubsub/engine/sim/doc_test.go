// Package sim_test proves the messaging engine by simulation: thousands of short histories, each
// with its own seed, in which several sidecars of one group, their apps, publishers and
// administrators work on one broker in memory while links, processes and handlers fail. The engine,
// the lanes and the group protocol are the real ones; only time is simulated (testing/synctest), so
// that a history of a minute takes milliseconds.
//
// A judge sees everything: what the broker accepted, what the ledger holds, what each app was told
// and what it answered. It holds that against the invariants:
//
//	I1  no loss: what is published is resolved by every group, soon after faults stop
//	I2  order of keys: a message is delivered when all earlier ones of its key are resolved
//	I3  one owner per epoch, epochs grow, and nobody delivers under an epoch that is over
//	I4  no delivery after Revoking, RevokeDone or Lost
//	I5  progress holds nothing that is not resolved, and never goes back but by a seek
//	I6  nothing comes again that was resolved, but for what a fault kept from being committed
//	I7  no more is at the app than limits, keys and credit allow
//	I8  a blocked key delays no other key, up to the window
//	I9  parked messages stay aside and come back in order, before newer ones of their key
//	I10 takeover within the session's TTL and half a second; a graceful one within half a second
//	I11 a failed ordered publish lets no later one of its key through
//	I12 a change of the number of partitions keeps the order of keys
//	I13 a seek moves its own group only
//	I14 a stale or false acknowledgement is refused and changes nothing
//
// What is broken: calls are slow, fail before or after their effect, hang until their context ends
// while the request still arrives; links are cut or half open; watches are late and start anew;
// readers stall; sidecars are halted for up to three TTLs, killed, replaced under the same name;
// apps are slow, fail, forget to answer, answer twice, late, or out of order.
//
// A halted sidecar sees no answer, no news, no record, and its app's answers do not reach it; what it
// had sent arrives. The timers inside the engine cannot be halted from outside: they fire in time
// here, where those of a stopped process would fire late. The mutant suite builds the engine
// with timers that a halt delays too (stall in mutants_test.go), and runs histories on that.
//
// A seed fixes what is done and broken and when. Which of several goroutines runs first at one
// instant is the scheduler's choice, so a rare failure may need some repetitions of its seed.
//
// Not judged, for the engine does not promise it: the order of a message that a publisher, halted through
// all of a resize, appends to a partition that was closed meanwhile, against later ones of its key; and the
// order of messages of a key that was parked before a resize against those published after it. What comes again
// because a consumer takes partitions from a later one of its own name, of which it has not heard yet, is not
// counted either; a consumer that such a one has put out joins again.
//
// Start at TestHistories, then world_test.go (a history), plan_test.go (what happens in it),
// driver_test.go (the broker as a sidecar sees it), app_test.go and judge_test.go.
package sim_test
