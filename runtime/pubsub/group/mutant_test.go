package group

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// mutants are mistakes that the model check must find: each is a change of one place of the machine,
// and what is said then. A check that finds nothing proves nothing.
var mutants = []struct {
	name     string
	file     string
	old, new string
	scenario string
	want     string
}{
	{"a claim does not write the progress back", "hold.go",
		"	h.state = taking\n	m.start(op{kind: opTake, seat: o.seat, part: o.part, key: progressKey(m.group, o.part), rev: e.Revision,\n		value: encodeProgress(h.epoch, body)}, now)\n",
		"	m.taken(s, o.part, h, e.Revision, encodeProgress(h.epoch, body), now)\n",
		"two_members", "I14"},
	{"a seat's record is removed before its partitions are released", "register.go",
		"case s.phase == leaving && len(s.holds) == 0 && !m.owns(s.sitting()):",
		"case s.phase == leaving && pl.rec.Leaving:",
		"two_members", "I4"},
	{"nobody fences itself", "machine.go",
		"return m.ttl * 4 / 5 }", "return m.ttl * 400 }",
		"two_members", "I4"},
	{"a member fences itself only when others may take over already", "machine.go",
		"return m.ttl * 4 / 5 }", "return m.ttl * 8 / 5 }",
		"two_members", "I4"},
	{"a new claim does not raise the epoch", "hold.go",
		"epoch := max(o.rec.Epoch, s.used[p]) + 1", "epoch := max(o.rec.Epoch, s.used[p], 1)",
		"two_members", "I3"},
	{"silence of the watch counts as death", "machine.go",
		"		m.start(op{kind: opCheck, key: key, rev: p.rev, get: true}, now)\n",
		"		p.dead = true\n		m.pulses[name] = p\n		m.dirty, m.stale = true, true\n		m.reconcile(now)\n",
		"two_members", "I4"},
	{"a claim does not wait for a living owner", "hold.go",
		"		case st != living:\n", "		default:\n",
		"a_third_may_come", "I4"},
	{"a generation is claimed before the one before it is drained", "hold.go",
		"		want = want && (len(m.layouts[p.Topic].Generations) == 0 || m.layouts[p.Topic].generationOf(p.ID) < n)\n", "		_ = n\n",
		"two_generations", "I12"},
	{"a commit goes on over a later epoch", "op.go",
		"case e.Revision != 0 && epoch > h.epoch:", "case e.Revision != 0 && epoch > h.epoch && o.kind == opTake:",
		"the_same_name_again", "I14"},
	{"ownership is given up before the last progress is written", "hold.go",
		"	case body != nil:\n		m.push(s, p, h, body, nil, now)\n", "	case body != nil:\n		m.push(s, p, h, body, nil, now)\n		m.yield(s, p, h, now)\n",
		"two_members", "I5"},
	{"a write without an answer counts as made", "op.go",
		"		case failed:\n			o.get = true\n			m.later(o, now)\n", "		case failed:\n			m.written(o, o.rev+1, now)\n",
		"two_members", ""},
	{"the successor is taken for a predecessor", "view.go",
		"		return suspect // it is a predecessor, or already a successor\n", "		return departed\n",
		"the_same_name_again", "liveness"},
	{"the dead who write stay dead", "view.go",
		"	case p.dead: // who writes lives\n", "	case false:\n",
		"a_third_may_come", "liveness"},
	{"a read that finds nothing is not believed", "op.go",
		"	} else if o.known != 0 {\n", "	} else if false {\n",
		"two_members", "liveness"},
	{"the records of the dead stay", "machine.go",
		"		m.remove(seatKey(m.group, id), pl.rev)\n", "",
		"two_members", "liveness"},
}

// TestMutants makes each mistake in a copy of the source and lets the model check find it. It takes
// minutes, and runs when MECHA_MUTANTS is 1, or a part of a name; whether the places to change are still
// there is always looked at.
func TestMutants(t *testing.T) {
	for _, mu := range mutants {
		source, err := os.ReadFile(mu.file)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(source), mu.old); n != 1 {
			t.Errorf("%s: %s has %d places like\n%s", mu.name, mu.file, n, mu.old)
			continue
		}
		if which := os.Getenv("MECHA_MUTANTS"); which == "" || which != "1" && !strings.Contains(mu.name, which) {
			continue
		}
		start := time.Now()
		said := mutate(t, mu.file, strings.Replace(string(source), mu.old, mu.new, 1), mu.scenario)
		verdict := "found"
		if said == "" || !strings.HasPrefix(said, mu.want) {
			verdict = "MISSED"
			t.Errorf("%s: want %q, the check says %q", mu.name, mu.want, said)
		}
		fmt.Printf("%-68s %-7s %5.1fs  %s\n", mu.name, verdict, time.Since(start).Seconds(), said)
	}
}

// mutate runs the model check over a changed file and returns what it says is wrong.
func mutate(t *testing.T, file, source, scenario string) string {
	dir := t.TempDir()
	changed := filepath.Join(dir, file)
	if err := os.WriteFile(changed, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(file)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {here: changed}})
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-count=1", "-timeout=5m", "-overlay", list, "-run", "^TestModel$/^"+scenario+"$", ".")
	cmd.Env = append(os.Environ(), "MECHA_MODEL_FAULTS=2", "MECHA_MODEL_STATES=400000", "MECHA_MUTANTS=")
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	for line := range strings.Lines(string(out)) {
		if _, said, ok := strings.Cut(line, "wrong: "); ok {
			return strings.TrimSpace(said)
		}
	}
	t.Errorf("the check did not run:\n%s", out)
	return ""
}
