package breaker

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestParseTrip(t *testing.T) {
	some := Counts{Requests: 10, TotalSuccesses: 4, TotalFailures: 6, ConsecutiveSuccesses: 0, ConsecutiveFailures: 3}
	tests := []struct {
		expr  string
		plain bool // without the compiler
		want  bool // for some
	}{
		{"consecutiveFailures > 2", true, true},
		{"consecutiveFailures > 3", true, false},
		{"consecutiveFailures>=3", true, true},
		{" \tconsecutiveFailures\n==  3 ", true, true},
		{"requests > 9", true, true},
		{"requests >= 11", true, false},
		{"requests != 10", true, false},
		{"totalSuccesses < 5", true, true},
		{"totalFailures <= 5", true, false},
		{"consecutiveSuccesses == 0", true, true},
		{"requests > 007", true, true},
		{"2 < consecutiveFailures", false, true},
		{"requests > 0x9", false, true},
		{"requests > 9 && totalFailures * 100 / requests >= 60", false, true},
		{"double(totalFailures) / double(requests) > 0.6", false, false},
		{"requests > 9.5", false, true}, // Dapr declares no types, so this works there
		{"consecutiveFailures > -1", false, true},
		{"totalFailures / consecutiveSuccesses > 1", false, false}, // division by zero
		{"[requests, totalFailures].exists(n, n == 6)", false, true},
		{"requests > 9 // enough", false, true},
		{"true", false, true},
		{"false", false, false},
		{"consecutiveFailures > 9223372036854775807", true, false},
	}
	for _, tt := range tests {
		t.Run(tt.expr, func(t *testing.T) {
			p, err := ParseTrip(tt.expr)
			if err != nil {
				t.Fatal(err)
			}
			if plain := p.program == nil; plain != tt.plain {
				t.Errorf("plain = %t, want %t", plain, tt.plain)
			}
			if got := p.met(some); got != tt.want {
				t.Errorf("met = %t, want %t", got, tt.want)
			}
			if p.String() != tt.expr {
				t.Errorf("String() = %q", p)
			}
		})
	}
}

func TestParseTripErrors(t *testing.T) {
	const known = "known are requests, totalSuccesses, totalFailures, consecutiveSuccesses, consecutiveFailures"
	tests := []struct {
		name, expr string
		want       []string // all of them in the error
	}{
		{"misspelt", "requests > 5 && consecutiveFailure > 5", []string{"column 17: ", "consecutiveFailure'", known}},
		{"misspelt and plain", "request > 5", []string{"column 1: ", "'request'", known}},
		{"second line", "requests > 5 &&\n  failures > 5", []string{"line 2, column 3: ", known}},
		{"two errors", "a > b", []string{"column 1: ", "column 5: "}},
		{"syntax", "requests >", []string{"column 11: ", known}},
		{"wrong operator", "requests => 5", []string{"column 10: "}},
		{"empty", "", []string{"column 1: "}},
		{"no number", "requests > many", []string{"column 12: "}},
		{"too large a number", "requests > 9223372036854775808", []string{"column 12: "}},
		{"a number", "requests + 1", []string{"gives int, must give true or false"}},
		{"a text", "'yes'", []string{"gives string, must give true or false"}},
		{"anything", "[true, 1][0]", []string{"gives dyn, must give true or false"}},
		{"endless", strings.Repeat("(", 3000), []string{"3000 bytes, at most 2048"}},
		{"deep", strings.Repeat("(", 1500) + "true" + strings.Repeat(")", 500), []string{"column "}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p, err := ParseTrip(tt.expr)
			if err == nil {
				t.Fatalf("understood as %v", p)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

// TestTripCost makes sure that an expression cannot hold up the calls: it counts as not met.
func TestTripCost(t *testing.T) {
	list := "[" + strings.Repeat("1,", 99) + "1]"
	p, err := ParseTrip(list + ".all(a, " + list + ".all(b, a == b))")
	if err != nil {
		t.Fatal(err)
	}
	if p.met(Counts{}) {
		t.Error("ten thousand steps were made")
	}
}

func TestNilTrip(t *testing.T) {
	var p *Trip
	if p.met(Counts{ConsecutiveFailures: 5, Requests: 99}) || !p.met(Counts{ConsecutiveFailures: 6}) {
		t.Error("want consecutiveFailures > 5")
	}
	if got, err := ParseTrip(p.String()); err != nil || got.met(Counts{ConsecutiveFailures: 5}) || !got.met(Counts{ConsecutiveFailures: 6}) {
		t.Errorf("String() = %q does not mean the default: %v", p, err)
	}
}

// TestPlainIsCEL compares plain comparisons with what the compiler makes of the same text.
func TestPlainIsCEL(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 9))
	operators := []string{">", ">=", "<", "<=", "==", "!="}
	for _, name := range names {
		for _, op := range operators {
			expr := fmt.Sprintf("%s %s %d", name, op, rnd.IntN(4))
			plain, err := ParseTrip(expr)
			if err != nil || plain.program != nil {
				t.Fatalf("%s: not plain, %v", expr, err)
			}
			compiled, err := ParseTrip("(" + expr + ")")
			if err != nil || compiled.program == nil {
				t.Fatalf("(%s): not compiled, %v", expr, err)
			}
			for range 50 {
				c := Counts{rnd.Int64N(5), rnd.Int64N(5), rnd.Int64N(5), rnd.Int64N(5), rnd.Int64N(5)}
				if got, want := plain.met(c), compiled.met(c); got != want {
					t.Errorf("%s for %+v: %t, CEL says %t", expr, c, got, want)
				}
			}
		}
	}
}

// FuzzParseTrip makes sure that no text breaks the parser, that what is understood can be
// evaluated, and that a plain comparison is one for the compiler too.
func FuzzParseTrip(f *testing.F) {
	for _, s := range []string{
		"consecutiveFailures > 5", "requests>=0x10", "requests > 3 && totalFailures * 2 > requests", "", "requests", "a.b[c](d)",
		"[1,2].exists(x, x > requests)", "requests > 5u", "requests >> 5", "requests > 00", "requests==5", "'\\u00e9' == 'é'", "requests\x00> 1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, expr string) {
		p, err := ParseTrip(expr)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "trip") {
				t.Errorf("error without a subject: %v", err)
			}
			return
		}
		c := Counts{Requests: 7, TotalSuccesses: 3, TotalFailures: 4, ConsecutiveFailures: 2}
		got := p.met(c)
		if p.program != nil {
			return
		}
		program, err := compile(expr)
		if err != nil {
			t.Fatalf("%q is plain to us and wrong to CEL: %v", expr, err)
		}
		if want := (&Trip{expr: expr, program: program}).met(c); got != want {
			t.Errorf("%q: %t, CEL says %t", expr, got, want)
		}
	})
}
