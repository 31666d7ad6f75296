package breaker

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/google/cel-go/cel"
)

// names are what an expression can read, in the order of Counts.
var names = [...]string{"requests", "totalSuccesses", "totalFailures", "consecutiveSuccesses", "consecutiveFailures"}

const (
	// defaultTrip is gobreaker's condition, and with it Dapr's.
	defaultTrip     = "consecutiveFailures > 5"
	defaultFailures = 5

	// longestTrip bounds what the compiler of expressions is given: far more than five numbers
	// are worth.
	longestTrip = 2048
	// costLimit bounds one evaluation. It runs with every failure; comparing all five counts
	// costs about 20.
	costLimit = 1000
)

// Trip is a condition on Counts. It is immutable. A nil Trip is the default condition.
type Trip struct {
	expr string
	// A comparison of one count with a number, which nearly every condition is, is done here.
	count int // index into names
	op    string
	than  int64
	// program evaluates all others.
	program cel.Program
}

// String is the expression.
func (t *Trip) String() string {
	if t == nil {
		return defaultTrip
	}
	return t.expr
}

// met tells whether the condition holds. An expression that fails, for instance by dividing by
// zero, does not hold, as in Dapr.
func (t *Trip) met(c Counts) bool {
	switch {
	case t == nil:
		return c.ConsecutiveFailures > defaultFailures
	case t.program != nil:
		out, _, err := t.program.Eval(c.variables())
		return err == nil && out.Value() == true
	}
	return compare(c.list()[t.count], t.op, t.than)
}

func (c Counts) list() [len(names)]int64 {
	return [...]int64{c.Requests, c.TotalSuccesses, c.TotalFailures, c.ConsecutiveSuccesses, c.ConsecutiveFailures}
}

func (c Counts) variables() map[string]any {
	v := make(map[string]any, len(names))
	for i, n := range c.list() {
		v[names[i]] = n
	}
	return v
}

func compare(n int64, op string, than int64) bool {
	switch op {
	case ">":
		return n > than
	case ">=":
		return n >= than
	case "<":
		return n < than
	case "<=":
		return n <= than
	case "==":
		return n == than
	}
	return n != than
}

// ParseTrip reads a condition in the Common Expression Language over the integers requests,
// totalSuccesses, totalFailures, consecutiveSuccesses and consecutiveFailures. It must give true
// or false. Errors tell the column, counted from 1, and what is known.
func ParseTrip(expr string) (*Trip, error) {
	if len(expr) > longestTrip {
		return nil, fmt.Errorf("trip: the expression has %d bytes, at most %d are read", len(expr), longestTrip)
	}
	if t := parseComparison(expr); t != nil {
		return t, nil
	}
	program, err := compile(expr)
	if err != nil {
		return nil, err
	}
	return &Trip{expr: expr, program: program}, nil
}

// parseComparison reads "count operator number"; nil means that the expression is of another
// form, right or wrong. Building the compiler takes megabytes that a sidecar with common
// conditions never needs.
func parseComparison(expr string) *Trip {
	const blank = " \t\r\n"
	rest := strings.Trim(expr, blank)
	end := strings.IndexAny(rest, "<>=!"+blank)
	if end < 0 {
		return nil
	}
	t := &Trip{expr: expr, count: -1}
	for i, name := range names {
		if rest[:end] == name {
			t.count = i
		}
	}
	rest = strings.TrimLeft(rest[end:], blank)
	number := strings.TrimLeft(rest, "<>=!")
	t.op = rest[:len(rest)-len(number)]
	number = strings.TrimLeft(number, blank)
	switch t.op {
	case "<", "<=", ">", ">=", "==", "!=":
	default:
		return nil
	}
	n, err := strconv.ParseUint(number, 10, 63)
	if err != nil || t.count < 0 {
		return nil
	}
	t.than = int64(n)
	return t
}

// celEnv is built with the first expression that needs it.
var celEnv = sync.OnceValues(func() (*cel.Env, error) {
	options := []cel.EnvOption{
		// Dapr does not declare its variables, so a count may be compared with 0.5 there.
		cel.CrossTypeNumericComparisons(true),
	}
	for _, name := range names {
		options = append(options, cel.Variable(name, cel.IntType))
	}
	return cel.NewEnv(options...)
})

func compile(expr string) (cel.Program, error) {
	env, err := celEnv()
	if err != nil {
		return nil, fmt.Errorf("trip: %w", err)
	}
	ast, issues := env.Compile(expr)
	if issues.Err() != nil {
		return nil, describe(expr, issues)
	}
	if ast.OutputType() != cel.BoolType {
		return nil, fmt.Errorf("trip %q: gives %v, must give true or false, as in %q", expr, ast.OutputType(), defaultTrip)
	}
	program, err := env.Program(ast, cel.CostLimit(costLimit))
	if err != nil {
		return nil, fmt.Errorf("trip %q: %w", expr, err)
	}
	return program, nil
}

// describe says where an expression cannot be understood, in one line.
func describe(expr string, issues *cel.Issues) error {
	var found []string
	for _, e := range issues.Errors() {
		where := fmt.Sprintf("column %d", max(e.Location.Column(), 0)+1) // an empty text has column -1
		if line := e.Location.Line(); line > 1 {
			where = fmt.Sprintf("line %d, %s", line, where)
		}
		found = append(found, where+": "+e.Message)
	}
	return fmt.Errorf("trip %q: %s; known are %s", expr, strings.Join(found, "; "), strings.Join(names[:], ", "))
}
