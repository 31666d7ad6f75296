//go:build unix

package policy

import (
	"flag"
	"math"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var results table

// atOnce is how many cells run side by side. They mostly wait, whatever the number of cores.
const atOnce = "8"

func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", atOnce); err != nil {
		panic(err)
	}
	code := m.Run()
	results.print()
	http.DefaultClient.CloseIdleConnections()
	if err := goleak.Find(); err != nil && code == 0 {
		os.Stderr.WriteString(err.Error() + "\n")
		code = 1
	}
	os.Exit(code)
}

// What the campaign takes on two cores: the faults as they are, and everything around them.
const (
	faultTime  = 12 * time.Second
	aroundTime = 15 * time.Second
)

// lengthened is d, or as much longer as FAULTS_FOR wants the campaign.
func lengthened(t testing.TB, d time.Duration) time.Duration {
	text := os.Getenv("FAULTS_FOR")
	if text == "" {
		return d
	}
	all, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal("FAULTS_FOR: ", err)
	}
	return max(d, time.Duration(float64(d)*float64(all-aroundTime)/float64(faultTime)))
}

// harm is a fault of an app's replicas.
type harm struct {
	name   string
	lasts  time.Duration
	strike func(*lane)
	heal   func(*lane)
	// cured tells that a TrafficPolicy keeps reads whole while two of three replicas are well.
	cured bool
	// ejects tells that it must take the replica out of the choice for that.
	ejects bool
}

// failing makes a share of one replica's calls fail.
func failing(name string, percent int64, ejects bool) harm {
	return harm{name: name, lasts: 2 * time.Second, cured: true, ejects: ejects,
		strike: func(l *lane) { l.victim().app.percent.Store(percent) },
		heal:   func(l *lane) { l.victim().app.percent.Store(0) }}
}

// overloaded is how long a call takes at apps that do one at a time: with three replicas, 60
// calls a second, when rate is more than twice as much.
const overloaded = 50 * time.Millisecond

var harms = []harm{
	failing("one app fails 20 %", 20, false),
	failing("one app fails 50 %", 50, false),
	failing("one app fails 100 %", 100, true),
	{name: "one app takes 200 ms", lasts: 2 * time.Second, cured: true,
		strike: func(l *lane) { l.victim().app.takes.Store(int64(200 * time.Millisecond)) },
		heal:   func(l *lane) { l.victim().app.takes.Store(int64(usual)) }},
	{name: "one app killed", lasts: 2 * time.Second, cured: true, ejects: true,
		strike: func(l *lane) { l.victim().app.kill() },
		heal:   func(l *lane) { l.must(l.victim().app.start()) }},
	{name: "one sidecar killed", lasts: 2 * time.Second, cured: true,
		strike: func(l *lane) { l.victim().side.Kill() },
		heal:   func(l *lane) { l.victim().restart() }},
	{name: "one sidecar stopped", lasts: 4 * time.Second, cured: true, ejects: true,
		strike: func(l *lane) { l.victim().side.Signal(syscall.SIGSTOP) },
		heal:   func(l *lane) { l.victim().side.Signal(syscall.SIGCONT) }},
	{name: "all apps fail 100 %", lasts: 2 * time.Second,
		strike: func(l *lane) { l.fail(100) },
		heal:   func(l *lane) { l.fail(0) }},
	{name: "all apps overloaded", lasts: 4 * time.Second,
		strike: func(l *lane) { l.serve(overloaded, true) },
		heal:   func(l *lane) { l.serve(usual, false) }},
}

// fail sets the share of calls that fail at all apps.
func (l *lane) fail(percent int64) {
	for _, r := range l.replicas {
		r.app.percent.Store(percent)
	}
}

// must ends the test on an error.
func (l *lane) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// serve sets the pace of all apps.
func (l *lane) serve(takes time.Duration, single bool) {
	for _, r := range l.replicas {
		r.app.takes.Store(int64(takes))
		r.app.oneAtATime(single)
	}
}

// before is how long a load runs before the fault, which the table does not show.
const before = 700 * time.Millisecond

func TestReplicas(t *testing.T) {
	for i, h := range harms {
		for k, under := range regimes {
			t.Run(h.name+"/"+under.name, func(t *testing.T) {
				t.Parallel()
				f := h.run(t, under)
				f.order, f.fault, f.under = i*len(regimes)+k, h.name, under.name
				results.add(f)
			})
		}
	}
}

// run does the fault to a lane of its own.
func (h harm) run(t *testing.T, under regime) figures {
	l := newLane(t, under)
	ld := begin(t, l.call)
	ld.await(t, 20*time.Second)
	time.Sleep(before)
	at := usageOf(t, l.caller)
	made, arrived, broke := ld.made.Load(), l.ledger.all.Load(), ld.now()
	h.strike(l)
	time.Sleep(lengthened(t, h.lasts))
	made, arrived = ld.made.Load()-made, l.ledger.all.Load()-arrived
	healed := ld.now()
	h.heal(l)
	ld.await(t, 20*time.Second)
	if under.returns {
		l.awaitUsed(t)
	}
	time.Sleep(300 * time.Millisecond)
	ld.end()
	f := ld.judge(t, broke, healed)
	f.reached, f.twice = float64(arrived)/float64(made), l.ledger.twice()
	f.ejections = strings.Count(l.caller.Log(), "outlier detection ejected")
	h.check(t, under, f)
	l.checkReached(t, under, ld)
	l.client.CloseIdleConnections()
	checkUsage(t, l.caller, at)
	return f
}

// awaitUsed waits until the replica that was broken has calls again: neither an ejection nor a
// list of bad instances may outlive what it is for.
func (l *lane) awaitUsed(t *testing.T) {
	t.Helper()
	was := l.victim().app.served.Load()
	for end := time.Now().Add(victimPatience); l.victim().app.served.Load() < was+5; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the replica has no calls %v after it was healed", victimPatience)
		}
	}
}

// check asserts what must hold under the policy.
func (h harm) check(t *testing.T, under regime, f figures) {
	t.Helper()
	if f.reads.all == 0 || f.writes.all == 0 {
		t.Fatalf("%d reads and %d writes were made during the fault", f.reads.all, f.writes.all)
	}
	if f.recovered == never {
		t.Errorf("reads do not succeed again after the end of the fault")
	}
	if !under.bounded {
		return
	}
	if limit := lengthened(t, h.lasts) / 2; h.cured && (f.adapted == never || f.adapted > limit) {
		t.Errorf("%.1f %% of the reads succeed, and the policy does not get them to %d %% within %v (but after %v), while two of three replicas are well",
			f.reads.percent(), restored, limit, f.adapted)
	}
	if h.ejects && under.returns && f.ejections == 0 {
		t.Error("the broken replica was not ejected")
	}
}

// checkReached asserts how often calls reach the apps: an unsafe one once, unless Resiliency
// says otherwise, and all together no oftener than the budget allows.
func (l *lane) checkReached(t *testing.T, under regime, ld *load) {
	t.Helper()
	if n := l.ledger.twice(); n > 0 && under.name != resiliency.name {
		t.Errorf("%d unsafe calls reached the apps more than once", n)
	}
	made, arrived := ld.made.Load(), l.ledger.all.Load()
	if most := float64(made)*(1+budgetRatio) + budgetReserve*math.Ceil(float64(ld.now())/float64(budgetMemory)); under.bounded && float64(arrived) > most {
		t.Errorf("%d calls reached the apps as %d attempts; the budget allows %.0f", made, arrived, most)
	}
}
