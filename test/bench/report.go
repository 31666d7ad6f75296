package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report collects what was measured and writes it.
type report struct {
	At       time.Time     `json:"at"`
	Cores    int           `json:"cores"`
	System   string        `json:"system"`
	Reps     int           `json:"reps"`
	Duration time.Duration `json:"duration_ns"`
	Seed     uint64        `json:"seed"`
	Idle     *idleFigures  `json:"idle,omitempty"`
	Start    *startFigures `json:"start,omitempty"`
	Cells    []*result     `json:"cells"`
	After    []weight      `json:"after"`
}

// weight is the memory of a process after all cells have run.
type weight struct {
	Process   string `json:"process"`
	Anonymous int64  `json:"anonymous_bytes"`
	PSS       int64  `json:"pss_bytes"`
}

// result is one cell.
type result struct {
	cell   *cell
	ID     string    `json:"id"`
	Error  string    `json:"error,omitempty"`
	Reps   []sample  `json:"reps"`
	Allocs []float64 `json:"allocs"` // objects per request in the sidecars, of each repetition
}

// weigh takes the memory of the sidecars, and of their embedded nodes, as the cells left it.
func (r *report) weigh(f *fleet) error {
	for _, name := range f.order {
		s := f.sidecars[name]
		pids := map[string]int{name: s.pid()}
		if s.node != 0 {
			pids["node of "+name] = s.node
		}
		for _, what := range slices.Sorted(maps.Keys(pids)) {
			w := weight{Process: what}
			var err error
			if w.Anonymous, w.PSS, err = memory(pids[what]); err != nil {
				return fmt.Errorf("memory of %s: %w", what, err)
			}
			r.After = append(r.After, w)
		}
	}
	return nil
}

func newReport(o *options) *report {
	return &report{At: time.Now(), Cores: runtime.NumCPU(), System: runtime.GOOS + "/" + runtime.GOARCH, Reps: o.reps, Duration: o.duration, Seed: o.seed}
}

// cell returns the result of a cell, made if need be.
func (r *report) cell(c *cell) *result {
	for _, have := range r.Cells {
		if have.cell == c {
			return have
		}
	}
	res := &result{cell: c, ID: c.id()}
	r.Cells = append(r.Cells, res)
	return res
}

func (r *result) add(s *sample, allocs float64, err error) {
	if err != nil {
		r.fail(err)
		return
	}
	r.Reps, r.Allocs = append(r.Reps, *s), append(r.Allocs, allocs)
}

func (r *result) fail(err error) { r.Error = err.Error() }

func (r *report) failures() int {
	n := 0
	for _, c := range r.Cells {
		if c.Error != "" {
			n++
		}
	}
	return n
}

// write prints the tables and, if asked, writes everything as JSON.
func (r *report) write(w io.Writer, file string) error {
	var b strings.Builder
	r.printHead(&b)
	r.printLone(&b)
	r.printCells(&b)
	r.printPolicy(&b)
	r.printWeights(&b)
	if _, err := io.WriteString(w, b.String()); err != nil || file == "" {
		return err
	}
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

func (r *report) printHead(b *strings.Builder) {
	fmt.Fprintf(b, "## What Mecha costs\n\n%s, %d cores, %s. Medians of %d repetitions of %v, in random order (seed %d).",
		r.At.UTC().Format(time.DateOnly), r.Cores, r.System, r.Reps, r.Duration, r.Seed)
	var others []float64
	for _, c := range r.Cells {
		for _, s := range c.Reps {
			others = append(others, float64(s.Others)/float64(s.Window))
		}
	}
	if len(others) > 0 {
		fmt.Fprintf(b, " Meanwhile everything else on the machine used %.2f cores: trust CPU-µs, not req/s and p99.", median(others))
	}
	b.WriteString("\n\n")
}

func (r *report) printLone(b *strings.Builder) {
	if r.Idle == nil && r.Start == nil {
		return
	}
	b.WriteString("### One sidecar, no app, no components\n\n| figure | measured | goal | budget | verdict |\n|---|---|---|---|---|\n")
	line := func(name string, v float64, note string) {
		if bud, ok := idleBudgets[name]; ok {
			fmt.Fprintf(b, "| %s | %s%s | %s | %s | %s |\n", name, figure(v), note, figure(bud.goal), figure(bud.limit), bud.verdict(v))
			return
		}
		fmt.Fprintf(b, "| %s | %s%s | – | – | – |\n", name, figure(v), note)
	}
	if g := r.Idle; g != nil {
		line("anonymous memory, MiB", float64(g.Anonymous)/(1<<20), "")
		line("proportional share (PSS), MiB", float64(g.PSS)/(1<<20), "")
		line("CPU, ms per second", g.CPU, "")
		line("wake-ups of its threads per second", g.Wakeups, "")
		line("binary, MB", float64(g.Binary)/1e6, "")
	}
	if g := r.Start; g != nil {
		ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		line("exec to healthy, ms", ms(quantile(g.Healthy, 0.5)), fmt.Sprintf(" (least %s, %d starts)", figure(ms(g.Healthy[0])), len(g.Healthy)))
		line("CPU of a start, ms", ms(quantile(g.CPU, 0.5)), "")
	}
	b.WriteString("\n")
}

func (r *report) printCells(b *strings.Builder) {
	if len(r.Cells) == 0 {
		return
	}
	b.WriteString("### Requests\n\nCPU-µs are per request. Below `sidecars` is their sum with the least and the greatest repetition, then each in the order of the way;\n" +
		"`+p50` is what the way adds to the median of the direct row; `allocs` are objects per request in the sidecars.\n\n" +
		"| workload | req/s | p50 µs | p99 µs | +p50 | load | app | node | sidecars | each | allocs | budget | verdict |\n" +
		"|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---|---|\n")
	for _, c := range r.Cells {
		if len(c.Reps) > 0 {
			r.printCell(b, c)
		}
	}
	b.WriteString("\n")
	for _, c := range r.Cells {
		if c.Error != "" {
			fmt.Fprintf(b, "- FAILED %s: %s\n", c.ID, c.Error)
		}
	}
}

// printPolicy compares each row under policy with the same row without. Rounds are compared one
// by one, for what else the machine does hits the two of a round alike.
func (r *report) printPolicy(b *strings.Builder) {
	var lines strings.Builder
	for _, c := range r.Cells {
		plain := r.plain(c)
		if plain == nil {
			continue
		}
		with, without := c.sidecars(), plain.sidecars()
		var adds []float64
		for i := range min(len(with), len(without)) {
			adds = append(adds, 100*(with[i]/without[i]-1))
		}
		if len(adds) > 0 {
			fmt.Fprintf(&lines, "| %s | %s | %s | %+.1f %% (%+.1f to %+.1f) | %+.1f |\n", c.ID, figure(median(without)), figure(median(with)),
				median(adds), slices.Min(adds), slices.Max(adds), median(c.Allocs)-median(plain.Allocs))
		}
	}
	if lines.Len() > 0 {
		b.WriteString("### What policy adds\n\nCPU-µs of the sidecars per request. `adds` is the median of the rounds, with the least and the greatest; `allocs` are objects.\n\n" +
			"| workload | without | with | adds | allocs |\n|---|---:|---:|---:|---:|\n" + lines.String() + "\n")
	}
}

// plain is the cell that says what another costs without policy; nil when there is none.
func (r *report) plain(c *result) *result {
	for _, p := range r.Cells {
		if c.cell.plain != "" && p.cell.name == c.cell.plain && p.cell.size == c.cell.size && p.cell.callers == c.cell.callers {
			return p
		}
	}
	return nil
}

func (r *report) printWeights(b *strings.Builder) {
	if len(r.After) == 0 {
		return
	}
	b.WriteString("### Memory after the requests\n\nAll run the same binary, so its pages are shared in the PSS.\n\n" +
		"| process | anonymous, MiB | PSS, MiB |\n|---|---:|---:|\n")
	for _, w := range r.After {
		fmt.Fprintf(b, "| %s | %s | %s |\n", w.Process, figure(float64(w.Anonymous)/(1<<20)), figure(float64(w.PSS)/(1<<20)))
	}
	b.WriteString("\n")
}

func (r *report) printCell(b *strings.Builder, c *result) {
	sum := c.sidecars()
	sidecars, each, allocs := "–", "–", "–"
	if names := c.names(); len(names) > 0 {
		sidecars = fmt.Sprintf("**%s** (%s–%s)", figure(median(sum)), figure(slices.Min(sum)), figure(slices.Max(sum)))
		var parts []string
		for _, n := range names {
			parts = append(parts, n+" "+figure(c.perRequest(n)))
		}
		each, allocs = strings.Join(parts, ", "), figure(median(c.Allocs))
	}
	added := "–"
	if v, ok := r.added(c); ok {
		added = fmt.Sprintf("%+.0f", v)
	}
	limit, verdict := r.judge(c)
	fmt.Fprintf(b, "| %s | %.0f | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", c.ID, c.rate(), c.quantileText(50), c.quantileText(99), added,
		c.figureOf(procLoad), c.figureOf(procApp), c.figureOf(procNode), sidecars, each, allocs, limit, verdict)
}

// judge holds a cell against its budget.
func (r *report) judge(c *result) (limit, verdict string) {
	bud := findBudget(c.cell)
	if bud == nil {
		return "–", "–"
	}
	if bud.measure == addedP50 {
		v, ok := r.added(c)
		if !ok {
			return fmt.Sprintf("+%s µs p50", figure(bud.limit)), "no direct row to compare with"
		}
		return fmt.Sprintf("+%s µs p50", figure(bud.limit)), bud.verdict(v)
	}
	return figure(bud.limit), bud.verdict(median(c.sidecars()))
}

// names are the sidecars of a cell in the order of the way.
func (c *result) names() []string {
	var out []string
	for _, s := range c.cell.sidecars {
		out = append(out, s.name)
	}
	return out
}

// sidecars is what all sidecars used per request, in each repetition.
func (c *result) sidecars() []float64 {
	out := make([]float64, len(c.Reps))
	for i, s := range c.Reps {
		for _, n := range c.names() {
			out[i] += s.perRequest(n)
		}
	}
	return out
}

// perRequest is what a process used per request, in µs.
func (s *sample) perRequest(name string) float64 {
	return float64(s.CPU[name]) / float64(time.Microsecond) / float64(s.Done)
}

func (c *result) perRequest(name string) float64 {
	return c.median(func(s *sample) float64 { return s.perRequest(name) })
}

// figureOf is perRequest for a process that may have no part in the cell.
func (c *result) figureOf(name string) string {
	if _, ok := c.Reps[0].CPU[name]; !ok {
		return "–"
	}
	return figure(c.perRequest(name))
}

func (c *result) rate() float64 {
	return c.median(func(s *sample) float64 { return float64(s.Done) / s.Window.Seconds() })
}

// latency is the median of the repetitions' quantile, in µs.
func (c *result) latency(percent int) float64 {
	return c.median(func(s *sample) float64 {
		if percent == 99 {
			return float64(s.P99) / float64(time.Microsecond)
		}
		return float64(s.P50) / float64(time.Microsecond)
	})
}

// quantileText is a latency, or a dash where calls are not timed.
func (c *result) quantileText(percent int) string {
	if v := c.latency(percent); v > 0 {
		return figure(v)
	}
	return "–"
}

func (c *result) median(of func(*sample) float64) float64 {
	v := make([]float64, len(c.Reps))
	for i := range c.Reps {
		v[i] = of(&c.Reps[i])
	}
	return median(v)
}

// added is the p50 of a cell beyond that of its direct row, in µs.
func (r *report) added(c *result) (float64, bool) {
	for _, base := range r.Cells {
		b := base.cell
		if c.cell.base != "" && b.name == c.cell.base && b.size == c.cell.size && b.callers == c.cell.callers && len(base.Reps) > 0 {
			return c.latency(50) - base.latency(50), true
		}
	}
	return 0, false
}

// median is the middle of the values, 0 of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// figure prints three digits or so.
func figure(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v < 1:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.0f", v)
}
