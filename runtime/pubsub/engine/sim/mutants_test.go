package sim_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// edit is a change of a source, whose path is relative to runtime/pubsub.
type edit struct{ file, old, now string }

// mutant is a defect put into the engine. The simulation has to find it, as a violation of one of
// these invariants.
type mutant struct {
	name  string
	want  string
	edits []edit
	stall bool // only seen when a halt delays timers too
}

// stall makes an engine whose timers a halt delays, as it does those of a stopped process.
var stall = []edit{
	{"group/hub.go", "		case <-r.timer.C:\n", "		case <-r.timer.C:\n			if x, ok := r.ledger.(interface{ Stall() }); ok {\n				x.Stall()\n			}\n"},
	{"engine/consumer.go", "		ev, due := c.next(time.Now())\n", "		if x, ok := c.e.log.(interface{ Stall() }); ok {\n			x.Stall()\n		}\n		ev, due := c.next(time.Now())\n"},
}

var mutants = []mutant{
	// Lanes.
	{name: "a key is released while its message is at the app", want: "I2 I7", edits: []edit{
		{"lane/lane.go", "	if c := l.keys[key]; c != nil {\n		c.waiting.push(e)\n		return false", "	if c := l.keys[key]; c != nil && e == nil {\n		c.waiting.push(e)\n		return false"}}},
	{name: "a retry loses its place", want: "I2 I7", edits: []edit{
		{"lane/lane.go", "		e.due = now.Add(delay)\n		l.held.push(e)\n", "		e.due = now.Add(delay)\n		l.held.push(e)\n		l.release(e)\n"}}},
	{name: "the pause before a repetition is left out", want: "I2", edits: []edit{
		{"lane/lane.go", "			delay = l.opts.Backoff(e.attempts)\n", "			delay = l.opts.Backoff(e.attempts) / 4\n"}}},
	{name: "an order gap is not told", want: "I2", edits: []edit{
		{"lane/lane.go", "	if e.rec.Key != \"\" && len(l.gaps) < maxGaps {", "	if e.rec.Key == \"\" && len(l.gaps) < maxGaps {"}}},
	{name: "a parked key's later messages go on", want: "I9 I2", edits: []edit{
		{"lane/lane.go", "	parked := l.isParked(key)\n", "	parked := l.isParked(key) && e == nil\n"}}},
	{name: "messages behind a parked one go on", want: "I9 I2", edits: []edit{
		{"lane/lane.go", "	case l.isParked(key) && !next.replayed:", "	case next.replayed && l.isParked(key) && !next.replayed:"}}},
	{name: "unpark lets live messages pass parked ones", want: "I9 I2", edits: []edit{
		{"lane/parked.go", "	return p != nil && !p.tail\n", "	return p != nil && !p.replaying\n"}}},
	{name: "a key counts as back before the end of the park log", want: "I9 I1 I5", edits: []edit{
		{"engine/replay.go", "		if from >= bounds[0].Next || bounds[0].First >= bounds[0].Next {", "		if from+2 >= bounds[0].Next || bounds[0].First >= bounds[0].Next {"}}},
	{name: "a copy of another owner counts as this one's", want: "I9 I1 I2 I6", edits: []edit{
		{"lane/parked.go", "	if l.window.find(rec.Position) != nil || rec.Position >= l.window.next && !l.resolvedBefore.has(rec.Position) {\n		return\n	}\n", ""}}},
	{name: "a broker may forget what is parked", want: "I9 I1", edits: []edit{
		{"engine/aside.go", "		c.keepParked(cp.o, out.Topic)\n", ""},
		{"engine/commit.go", "				if parked[i] > 0 {\n", "				if parked[i] > 1<<60 {\n"},
		{"engine/owned.go", "if from := o.lane.ParkedFrom(); from > 0 {", "if from := o.lane.ParkedFrom(); from > 1<<60 {"}}},
	{name: "two returns of a key at once", want: "I9 I1", edits: []edit{
		{"engine/replay.go", "	if b := o.returns[key]; b != nil {\n", "	if b := o.returns[key]; b != nil && key == \"\" {\n"}}},
	{name: "the window is ignored", want: "I8", edits: []edit{
		{"lane/lane.go", "	records = l.opts.Window - l.window.len()\n", "	records = 1 << 20\n"}}},
	{name: "a blocked key blocks the others", want: "I8", edits: []edit{
		{"lane/lane.go", "	if l.opts.Ordering == OrderPartition && (l.out.n > 0", "	if l.held.len() > 0 && l.opts.Then == RemedyRetry || l.opts.Ordering == OrderPartition && (l.out.n > 0"}}},
	{name: "the handler's time has no end", want: "I1", edits: []edit{
		{"lane/lane.go", "	for l.opts.HandlerTimeout > 0 {\n		e := l.out.first()\n", "	for l.opts.HandlerTimeout > 1<<60 {\n		e := l.out.first()\n"}}},
	{name: "progress passes a gap", want: "I5", edits: []edit{
		{"lane/queue.go", "	return w.slots[w.head].position\n", "	return w.slots[len(w.slots)-1].position\n"}}},
	{name: "progress is written one too high", want: "I5", edits: []edit{
		{"lane/progress.go", "	b = binary.AppendUvarint(b, l.Watermark())\n	parked := l.Parked()", "	b = binary.AppendUvarint(b, l.Watermark()+1)\n	parked := l.Parked()"}}},
	{name: "what is resolved beyond the watermark is not written", want: "I5 I6", edits: []edit{
		{"lane/progress.go", "	l.window.resolved(note)\n", ""}}},
	{name: "the next owner forgets what was resolved beyond the watermark", want: "I5 I6", edits: []edit{
		{"lane/lane.go", "		if l.resolvedBefore.has(r.Position) {\n", "		if r.Position == 0 && l.resolvedBefore.has(r.Position) {\n"}}},
	// The consumer.
	{name: "what was not delivered can be acknowledged", want: "I14 I5", edits: []edit{
		{"engine/answers.go", "		if !o.lane.Delivered(r.From, r.To) {\n", "		if r.From > r.To && !o.lane.Delivered(r.From, r.To) {\n"}}},
	{name: "an acknowledgement under another epoch counts", want: "I14 I5", edits: []edit{
		{"engine/answers.go", "	case o != nil && o.told && o.epoch == epoch:\n", "	case o != nil && o.told:\n"}}},
	{name: "credit is not spent", want: "I7", edits: []edit{
		{"engine/owned.go", "		c.credit.spend(len(out), size)\n", ""}}},
	{name: "the limit of all partitions is ignored", want: "I7", edits: []edit{
		{"engine/consumer.go", "	messages = min(c.concurrency, l.Messages) - c.inFlight\n", "	messages = 1000\n"}}},
	{name: "a partition is released before the app has let go", want: "I4", edits: []edit{
		{"engine/owned.go", "		if o.c.hurry {\n			o.finish(\"\")\n", "		if true {\n			o.finish(\"\")\n"}}},
	{name: "a partition being revoked is delivered", want: "I4", edits: []edit{
		{"engine/owned.go", "	if o.listed || o.phase != owning || o.lane == nil {\n", "	if o.listed || o.lane == nil {\n"},
		{"engine/owned.go", "	c := o.c\n	if o.phase != owning {\n		return nil\n", "	c := o.c\n	if o.phase == opening || o.phase == gone {\n		return nil\n"}}},
	{name: "a message counts as set aside before its copy is safe", want: "I5 I9 I2", edits: []edit{
		{"engine/aside.go", "	results := c.e.log.Append(c.life, recs)\n", "	for _, cp := range sent {\n		c.copyDone(cp, block.AppendResult{})\n	}\n	results := c.e.log.Append(c.life, recs)\n"}}},
	{name: "a broker is told of more than is committed", want: "I5 I1", edits: []edit{
		{"engine/commit.go", "				keeper.Consumed(o.part.Topic, c.opts.Group, o.part.ID, marks[i])\n", "				keeper.Consumed(o.part.Topic, c.opts.Group, o.part.ID, o.lane.ReadTo())\n"}}},
	{name: "nothing is due while there is no room", want: "I1", edits: []edit{
		{"engine/owned.go", "	if o.expire(now) {\n		o.list()\n	}\n	at := o.lane.Due()\n", "	at := o.lane.Due()\n	if !at.IsZero() && !now.Before(at) {\n		o.list()\n		return now\n	}\n"}}},
	// Publishers and topics.
	{name: "two messages of a key are under way at once", want: "I11", edits: []edit{
		{"engine/publish.go", "			if busy[name] {\n", "			if busy[name] && name == \"\" {\n"}}},
	{name: "a key goes on after a failure", want: "I11", edits: []edit{
		{"engine/publish.go", "	if cause == nil && !full {\n", "	if !full {\n"}}},
	{name: "new partitions are opened before the old ones are drained", want: "I12", edits: []edit{
		{"group/machine.go", "; !o.rec.Drained {\n", "; !o.rec.Drained && topic == \"\" {\n"}}},
	{name: "a partition counts as drained too early", want: "I12", edits: []edit{
		{"engine/follow.go", "closed && (o.committed >= end || o.committed >= b.Next ||", "closed && (o.lane.ReadTo() >= end || o.lane.ReadTo() >= b.Next ||"}}},
	{name: "a reset moves another group", want: "I13", edits: []edit{
		{"engine/admin.go", "e.ask(ctx, groupName, Part{Topic: topic, ID: id}, func(o *order) { o.Seek = &to })", "e.ask(ctx, \"h\", Part{Topic: topic, ID: id}, func(o *order) { o.Seek = &to })"}}},
	// The group.
	{name: "a commit overwrites that of a later epoch", want: "I3", edits: []edit{
		{"group/op.go", "		case e.Revision != 0 && epoch > h.epoch:\n			m.overtaken", "		case e.Revision != 0 && epoch > h.epoch && h == nil:\n			m.overtaken"}}},
	{name: "a partition is given up without its last progress", want: "I6", edits: []edit{
		{"group/hold.go", "	case body != nil:\n		m.push(s, p, h, body, nil, now)\n", "	case body != nil && now < 0:\n		m.push(s, p, h, body, nil, now)\n"}}},
	{name: "an epoch is used twice", want: "I3", edits: []edit{
		{"group/hold.go", "	epoch := max(o.rec.Epoch, s.used[p]) + 1\n", "	epoch := max(o.rec.Epoch, s.used[p], 1)\n"}}},
	{name: "a silent member does not fence itself", want: "I3", edits: []edit{
		{"group/machine.go", "fenceAfter() time.Duration { return m.ttl * 4 / 5 }", "fenceAfter() time.Duration { return m.ttl * 5 }"}}},
	{name: "the living are taken for dead", want: "I3 I6", edits: []edit{
		{"group/op.go", "	if !ok || p.rev != o.rev || e.Revision != 0 && e.Revision != o.rev {\n", "	if !ok {\n"},
		{"group/machine.go", " now < p.seen+p.ttl || m.busy", " now < p.seen+p.ttl/8 || m.busy"}}},
	{name: "the dead are found late", want: "I10", edits: []edit{
		{"group/machine.go", " now < p.seen+p.ttl || m.busy", " now < p.seen+2*p.ttl || m.busy"},
		{"group/machine.go", "				soon(p.seen + p.ttl)\n", "				soon(p.seen + 2*p.ttl)\n"}}},
	{name: "a leaver is waited for like the dead", want: "I10 I1", edits: []edit{
		{"group/view.go", "	if o.rec.Seat == \"\" {\n		return nobody\n", "	if o.rec.Seat == \"\" && o.rec.Epoch == 0 {\n		return nobody\n"}}},
	{name: "an epoch that is over delivers after a halt", want: "I3", stall: true, edits: []edit{
		{"engine/owned.go", "	if !c.seat.Valid(o.part, o.epoch) {\n", "	if o.epoch == 0 {\n"}}},
}

// sources is runtime/pubsub.
func sources(t *testing.T) string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("where are the sources?")
	}
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

// apply writes the changed files and the overlay that puts them in place.
func apply(t *testing.T, dir string, edits []edit) (overlay string) {
	t.Helper()
	root := sources(t)
	changed := map[string]string{}
	for _, e := range edits {
		text, ok := changed[e.file]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		if n := strings.Count(text, e.old); n != 1 {
			t.Fatalf("%s holds this %d times, want once: follow the source\n%s", e.file, n, e.old)
		}
		changed[e.file] = strings.Replace(text, e.old, e.now, 1)
	}
	replace := map[string]string{}
	for file, text := range changed {
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, file)] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay = filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return overlay
}

func (m *mutant) all() []edit {
	if m.stall {
		return append(append([]edit(nil), stall...), m.edits...)
	}
	return m.edits
}

// TestMutantsApply keeps the list in step with the sources.
func TestMutantsApply(t *testing.T) {
	apply(t, t.TempDir(), stall)
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) { apply(t, t.TempDir(), m.all()) })
	}
}

var (
	verdictLine = regexp.MustCompile(`SIM VIOLATED (I\d+) seed (\d+) `)
	spinsLine   = regexp.MustCompile(`SIM SPINS: seed (\d+)`)
)

// hunt builds the simulation with edits and runs histories until one is violated: which invariant,
// and at what seed. Both are empty when none was.
func hunt(t *testing.T, edits []edit, seeds int) (inv, seed, out string) {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "sim.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-overlay", apply(t, dir, edits), "-o", bin, ".")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, b)
	}
	run := exec.CommandContext(t.Context(), bin, "-test.run", "^TestHistories$", "-test.v", "-until", "-show", "1", "-lines", "25", "-patience", "10s", "-seeds", fmt.Sprint(seeds))
	run.Env = append(os.Environ(), "MECHA_MUTANTS=", "GOMAXPROCS=1")
	b, err := run.CombinedOutput()
	out = string(b)
	if m := verdictLine.FindStringSubmatch(out); m != nil {
		return m[1], m[2], out
	}
	if m := spinsLine.FindStringSubmatch(out); m != nil {
		return "I1", m[1], out
	}
	if err != nil {
		return "panic", "?", out
	}
	return "", "", out
}

// TestMutants puts defects into the engine, one at a time, and wants each to be found. It takes
// minutes, and runs only when MECHA_MUTANTS is set; with another value than 1 it is a regular expression for
// the names.
func TestMutants(t *testing.T) {
	pick := os.Getenv("MECHA_MUTANTS")
	if pick == "" {
		t.Log("MECHA_MUTANTS=1 runs it")
		return
	}
	names, err := regexp.Compile(pick)
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	if pick == "1" || pick == "stall" {
		if inv, seed, out := hunt(t, stall, 3000); inv != "" {
			t.Errorf("with timers that a halt delays: %s, seed %s\n%s", inv, seed, out)
		}
	}
	caught := 0
	for _, m := range mutants {
		if pick != "1" && !names.MatchString(m.name) {
			continue
		}
		began := time.Now()
		inv, seed, out := hunt(t, m.all(), 4000)
		fmt.Fprintf(&table, "  %-66s want %-12s caught by %-5s seed %-6s %v\n", m.name, m.want, inv, seed, time.Since(began).Round(100*time.Millisecond))
		switch {
		case inv == "" || inv == "panic":
			t.Errorf("%s: not caught (%s)\n%s", m.name, inv, out[max(0, len(out)-2000):])
		case !strings.Contains(" "+m.want+" ", " "+inv+" "):
			t.Errorf("%s: caught by %s, want %s\n%s", m.name, inv, m.want, out[:min(len(out), 3000)])
			caught++
		default:
			caught++
		}
	}
	t.Logf("%d caught\n%s", caught, table.String())
}
