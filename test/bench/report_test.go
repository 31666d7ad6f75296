package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// measured is a repetition of 1000 requests.
func measured(p50, caller, callee time.Duration) *sample {
	return &sample{Done: 1000, Total: 1200, Window: time.Second, P50: p50, P99: 2 * p50,
		CPU: map[string]time.Duration{procLoad: 5 * time.Millisecond, procApp: 6 * time.Millisecond, "caller": 1000 * caller, "callee-http": 1000 * callee}}
}

func TestReport(t *testing.T) {
	rep := newReport(&options{reps: 3, duration: time.Second})
	rep.Idle = &idleFigures{Anonymous: 4 << 20, PSS: 50 << 20, CPU: 0.2, Wakeups: 1, Binary: 44e6}
	rep.Start = &startFigures{Healthy: []time.Duration{8e6, 11e6, 30e6}, CPU: []time.Duration{10e6, 10e6, 10e6}}
	for _, c := range selectCells(allRows(), regexp.MustCompile("^http/(direct|invoke|invoke-policy)/(1|64)KiB/(1|32)$")) {
		r := rep.cell(c)
		if c.id() == "http/invoke/64KiB/32" {
			r.fail(errors.New("refused"))
			continue
		}
		for i := range time.Duration(3) {
			us := time.Microsecond
			if c.name == "http/direct" {
				r.add(measured(20*us, 0, 0), 0, nil)
				continue
			}
			if c.name == "http/invoke-policy" {
				s := measured(160*us, 0, 31*us+2*i*us)
				s.CPU["caller-policy"] = 1000 * (32 + i) * us
				r.add(s, 40, nil)
				continue
			}
			r.add(measured(160*us, (29+i)*us, (31+2*i)*us), 38, nil)
		}
	}
	file := filepath.Join(t.TempDir(), "out.json")
	var b strings.Builder
	if err := rep.write(&b, file); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| anonymous memory, MiB | 4.0 | 8.0 | 12.0 | within, at the goal |",
		"| proportional share (PSS), MiB | 50.0 | 30.0 | 45.0 | over |",
		"| CPU, ms per second | 0.20 | 0 | 0.25 | within |",
		"| exec to healthy, ms | 11.0 (least 8.0, 3 starts) | 12.0 | 25.0 | within, at the goal |",
		"| http/direct/1KiB/32 | 1000 | 20.0 | 40.0 | – | 5.0 | 6.0 | – | – | – | – | – | – |",
		"| http/invoke/1KiB/32 | 1000 | 160 | 320 | +140 | 5.0 | 6.0 | – | **63.0** (60.0–66.0) | caller 30.0, callee-http 33.0 | 38.0 | 60.0 | over |",
		"| +120 µs p50 | over |",
		"| http/invoke-policy/1KiB/32 | 63.0 | 66.0 | +4.8 % (+4.5 to +5.0) | +2.0 |",
		"- FAILED http/invoke/64KiB/32: refused",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if got := rep.failures(); got != 1 {
		t.Errorf("got %d failures, want 1", got)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(text, &back); err != nil || len(back.Cells) != len(rep.Cells) || len(back.Cells[0].Reps) != 3 {
		t.Errorf("JSON: %v, %d cells", err, len(back.Cells))
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []float64
		want float64
	}{{"none", nil, 0}, {"one", []float64{3}, 3}, {"odd", []float64{9, 1, 5}, 5}, {"even", []float64{4, 1, 2, 9}, 3}} {
		if got := median(tt.in); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}
