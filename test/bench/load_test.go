package main

import (
	"errors"
	"net"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/test/untested"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// quickly makes a job short.
func quickly(j *job, callers int) *job {
	j.Callers, j.Warm, j.Window = callers, 5*time.Millisecond, 100*time.Millisecond
	j.Watch, j.Patience = map[string]int{procLoad: os.Getpid()}, 200*time.Millisecond
	return j
}

func TestRunJob(t *testing.T) {
	if err := canMeasure(); err != nil {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Fatal(err)
		}
		untested.Skip(t, "the load of the benchmark: %v", err)
	}
	web, rpc, app := listen(t), listen(t), listen(t)
	go serveHTTP(web, echo)
	go serveGRPC(rpc)
	m := newMailbox()
	go serveHTTP(app, m.receive) // who publishes here has it delivered at once
	deliver := post(app.Addr().String(), "/event", payload(eventText, 1<<10), 200, 0)
	deliver.Kind = kindDeliver
	for name, j := range map[string]*job{
		"http":    post(web.Addr().String(), "/echo", payload("", 1<<10), 200, 1<<10),
		"grpc":    unary(rpc.Addr().String(), echoMethod, payload("", 1<<10), 1<<10),
		"nothing": unary(rpc.Addr().String(), echoMethod, nil, 0),
		"deliver": deliver,
	} {
		t.Run(name, func(t *testing.T) {
			s, err := runJob(quickly(j, 3), m)
			if err != nil {
				t.Fatal(err)
			}
			if s.Done == 0 || s.Total < s.Done || s.P50 <= 0 || s.P99 < s.P50 || s.Window < 100*time.Millisecond || s.CPU[procLoad] <= 0 {
				t.Errorf("got %+v", s)
			}
			// Half of the requests took the median or longer, one after another in each caller.
			if spent, had := time.Duration(s.Done/2)*s.P50, 3*s.Window; spent > had+had/10 {
				t.Errorf("%d requests with a median of %v do not fit into %v of 3 callers", s.Done, s.P50, s.Window)
			}
		})
	}
}

func TestRunJobFails(t *testing.T) {
	web, rpc, dumb := listen(t), listen(t), listen(t)
	go serveHTTP(web, func([]byte, []byte) (int, []byte) { return 503, []byte("not today") })
	go serveGRPC(rpc)
	go serveHTTP(dumb, func([]byte, []byte) (int, []byte) { return 200, nil }) // takes events and delivers none
	lost := post(dumb.Addr().String(), "/event", payload(eventText, 1<<10), 200, 0)
	lost.Kind = kindDeliver
	for name, tt := range map[string]struct {
		j    *job
		want string
	}{
		"status":       {post(web.Addr().String(), "/echo", nil, 200, 0), "503 not today; want 200"},
		"method":       {unary(rpc.Addr().String(), "/mecha.bench.Echo/None", nil, 0), "unknown method None"},
		"short answer": {unary(rpc.Addr().String(), echoMethod, []byte("abc"), 4), "an answer of 3 bytes; want 4"},
		"lost event":   {lost, "waiting for the delivery of event 1: no answer for 200ms"},
		"nobody there": {post("127.0.0.1:1", "/echo", nil, 200, 0), "127.0.0.1:1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := runJob(quickly(tt.j, 2), newMailbox())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestMailbox(t *testing.T) {
	m := newMailbox()
	b := m.open(7)
	n := b.next()
	event := func(caller, serial string) []byte {
		return []byte(`{"data":"` + eventMark + caller + "-" + serial + `xxx"}`)
	}
	waiting := func() bool { return len(b.arrived) == 0 }
	for _, tt := range []struct {
		name   string
		body   []byte
		status int
		still  bool
	}{
		{"of another caller", event(number(8), number(n)), 200, true},
		{"an old one", event(number(7), number(n-1)), 200, true},
		{"cut off", event(number(7), "1")[:30], 400, true},
		{"no number", event("zzzzzzzz", number(n)), 400, true},
		{"the awaited", event(number(7), number(n)), 200, false},
		{"the awaited, again", event(number(7), number(n)), 200, false},
	} {
		if status, _ := m.receive([]byte("/event"), tt.body); status != tt.status || waiting() != tt.still {
			t.Errorf("%s: status %d, waiting %v; want %d, %v", tt.name, status, waiting(), tt.status, tt.still)
		}
	}
	if status, _ := m.receive([]byte("/dapr/subscribe"), nil); status != 404 {
		t.Errorf("a sidecar's question: got %d, want 404", status)
	}
}

func TestQuantile(t *testing.T) {
	v := []time.Duration{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
	for _, tt := range []struct {
		q    float64
		want time.Duration
	}{{0, 1}, {0.5, 6}, {0.99, 10}, {1, 10}} {
		if got := quantile(v, tt.q); got != tt.want {
			t.Errorf("quantile %v: got %v, want %v", tt.q, got, tt.want)
		}
	}
	if got := quantile(nil, 0.5); got != 0 {
		t.Errorf("of none: got %v", got)
	}
}

func TestCells(t *testing.T) {
	rows := allRows()
	names := map[string]bool{}
	for _, r := range rows {
		if names[r.name] {
			t.Errorf("two rows are called %s", r.name)
		}
		names[r.name] = true
	}
	for _, r := range rows {
		if r.base != "" && !names[r.base] || r.prepare != "" && !names[r.prepare] || r.plain != "" && !names[r.plain] {
			t.Errorf("row %s: no row %q, %q or %q", r.name, r.base, r.prepare, r.plain)
		}
	}
	all := selectCells(rows, regexp.MustCompile(""))
	budgeted := map[*budget]bool{}
	for _, c := range all {
		if b := findBudget(c); b != nil {
			budgeted[b] = true
			if b.goal > b.limit || b.source == "" {
				t.Errorf("budget of %s: goal %v, limit %v, source %q", c.id(), b.goal, b.limit, b.source)
			}
		}
	}
	if len(budgeted) != len(budgets) {
		t.Errorf("%d of %d budgets belong to a cell", len(budgeted), len(budgets))
	}
	if got := selectCells(rows, regexp.MustCompile("^http/invoke/1KiB/32$")); len(got) != 1 || got[0].id() != "http/invoke/1KiB/32" {
		t.Errorf("selected %v", got)
	}
}
