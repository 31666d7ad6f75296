package invoke

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

// source is a body in pieces of random size.
type source struct {
	data   []byte
	rng    *rand.Rand
	end    error // instead of io.EOF
	closed bool
}

func (s *source) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		if s.end != nil {
			return 0, s.end
		}
		return 0, io.EOF
	}
	n := min(1+s.rng.IntN(4096), len(p), len(s.data))
	copy(p, s.data[:n])
	s.data = s.data[n:]
	return n, nil
}

func (s *source) Close() error { s.closed = true; return nil }

func body(n int) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

func TestEveryAttemptReadsTheBodyFromItsBeginning(t *testing.T) {
	tests := []struct {
		name  string
		size  int
		reads []int // how much each attempt before the last reads
		lost  bool  // there is no attempt after these
	}{
		{"nothing was read", 5000, []int{0}, false},
		{"a part was read", 50_000, []int{10_000, 3, 40_000}, false},
		{"all was read", 50_000, []int{50_000}, false},
		{"an empty body", 0, []int{0}, false},
		{"as much as is kept", maxReplay, []int{maxReplay}, false},
		{"more than is kept", maxReplay + 1, []int{maxReplay + 1}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			want := body(tt.size)
			src := &source{data: bytes.Clone(want), rng: rand.New(rand.NewPCG(2, 3))}
			r := newReplay(src)
			for _, n := range tt.reads {
				v := r.again()
				got := make([]byte, n)
				if _, err := io.ReadFull(v, got); err != nil || !bytes.Equal(got, want[:n]) {
					t.Fatalf("an attempt read %d bytes wrong: %v", n, err)
				}
			}
			if r.lost() != tt.lost {
				t.Fatalf("lost: got %v, want %v", r.lost(), tt.lost)
			}
			if tt.lost {
				return
			}
			got, err := io.ReadAll(iotest.OneByteReader(r.again()))
			if tt.size > 100_000 {
				got, err = io.ReadAll(r.again())
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("the last attempt read %d of %d bytes, %v", len(got), len(want), err)
			}
			if src.closed {
				t.Error("an attempt closed the source")
			}
			if r.done(); !src.closed {
				t.Error("the source is not closed at the end")
			}
		})
	}
}

func TestALargeBodyGoesThroughOnce(t *testing.T) {
	want := body(3 * maxReplay)
	r := newReplay(&source{data: bytes.Clone(want), rng: rand.New(rand.NewPCG(4, 5))})
	got, err := io.ReadAll(r.again())
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d of %d bytes, %v", len(got), len(want), err)
	}
	if !r.lost() {
		t.Error("it claims to have kept it")
	}
}

func TestABrokenBodyIsBrokenForEveryAttempt(t *testing.T) {
	broken := errors.New("caller left")
	r := newReplay(&source{data: body(100), rng: rand.New(rand.NewPCG(6, 7)), end: broken})
	for range 2 {
		got, err := io.ReadAll(r.again())
		if !errors.Is(err, broken) || len(got) != 100 {
			t.Errorf("read %d bytes, %v; want 100 and the source's error: half a body must not pass for a whole one", len(got), err)
		}
	}
}

// A read that an attempt left behind brings bytes that belong to the next one.
func TestAnAttemptThatEndsLeavesItsReadToTheNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		r := newReplay(pr)
		first := r.again()
		var wg sync.WaitGroup
		var firstErr error
		wg.Go(func() { _, firstErr = first.Read(make([]byte, 10)) })
		synctest.Wait() // it is reading
		second := r.again()
		var got []byte
		var err error
		wg.Go(func() { got, err = io.ReadAll(second) })
		synctest.Wait()
		_, _ = pw.Write([]byte("hello "))
		_, _ = pw.Write([]byte("world"))
		pw.Close()
		wg.Wait()
		if firstErr == nil {
			t.Error("the attempt that was over got bytes")
		}
		if err != nil || string(got) != "hello world" {
			t.Errorf("the attempt after it read %q, %v", got, err)
		}
	})
}

// Whoever closes an attempt's body waits for its reader to return, and the caller may not send
// more before it has an answer.
func TestAnAttemptCanBeLeftWhileTheCallerIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pr, pw := io.Pipe()
		r := newReplay(pr)
		first := r.again()
		var wg sync.WaitGroup
		var err error
		wg.Go(func() { _, err = first.Read(make([]byte, 10)) })
		synctest.Wait() // it is reading
		first.Close()
		wg.Wait()
		if err == nil {
			t.Error("a closed attempt got bytes")
		}
		second := r.again()
		wg.Go(func() { _, err = second.Read(make([]byte, 10)) })
		synctest.Wait()
		r.done() // wakes the source too
		wg.Wait()
		if _, werr := pw.Write([]byte("late")); err == nil || werr == nil {
			t.Errorf("after the end: read %v, write %v; want errors", err, werr)
		}
	})
}

func FuzzReplay(f *testing.F) {
	f.Add(uint64(1), 10_000, 3)
	f.Fuzz(func(t *testing.T, seed uint64, size, attempts int) {
		size, attempts = min(max(size, 0), 200_000), min(max(attempts, 0), 10)
		rng := rand.New(rand.NewPCG(seed, 1))
		want := body(size)
		r := newReplay(&source{data: bytes.Clone(want), rng: rng})
		for range attempts {
			v := r.again()
			got := make([]byte, rng.IntN(size+1))
			if _, err := io.ReadFull(v, got); err != nil || !bytes.Equal(got, want[:len(got)]) {
				t.Fatalf("%v", err)
			}
			if rng.IntN(2) == 0 {
				v.Close()
			}
		}
		if got, err := io.ReadAll(r.again()); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("read %d of %d bytes, %v", len(got), size, err)
		}
	})
}
