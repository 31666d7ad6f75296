//go:build unix

package history

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	want := Setup{Name: "one", Seed: 7, TTL: time.Second, Groups: []string{"g"}}
	if err := want.Save(dir); err != nil {
		t.Fatal(err)
	}
	// Two writers of one sink: lines do not mix.
	var all sync.WaitGroup
	for _, proc := range []string{"x", "y"} {
		r, err := NewRecorder(filepath.Join(dir, SinkFile), proc)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			defer r.Close()
			for i := range 500 {
				if err := r.Add(Event{Kind: Effect, ID: fmt.Sprint(i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	r, err := NewRecorder(filepath.Join(dir, "x.jsonl"), "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Add(Event{Kind: Delivered, ID: "1", Part: NoPart}); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	cut, err := os.OpenFile(filepath.Join(dir, "x.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(cut, `{"t":5,"kind":"ack`) // killed in the middle
	cut.Close()

	h, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(h.Setup) != fmt.Sprint(want) || len(h.Events) != 1001 {
		t.Fatalf("%d events, setup %+v", len(h.Events), h.Setup)
	}
	order := map[int]bool{}
	for _, e := range h.Events {
		if e.T == 0 || e.Proc == "" {
			t.Fatalf("not stamped: %+v", e)
		}
		if e.Kind == Effect {
			order[e.Order] = true
		}
	}
	if len(order) != 1000 || !order[1] || !order[1000] {
		t.Error("the sink's order is not there")
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.jsonl"), []byte("{\n{}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil {
		t.Error("a damaged file was taken")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"t":1,"kind":"acked","part":0}` + "\n" + `{"t"`))
	f.Fuzz(func(t *testing.T, text []byte) {
		events, err := parse(text)
		if err == nil {
			Check(&History{Setup: Setup{Groups: []string{"g"}, TTL: time.Second, Handler: 1, Limit: 1, Exact: true}, Events: events})
		}
	})
}
