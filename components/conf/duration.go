package conf

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Duration is a span of time as users write it: "5s", "1m30s", "250ms". As a field of a
// configuration struct it behaves like time.Duration, which Decode accepts as well.
type Duration time.Duration

// Std is the standard library's form.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String is Go's form, "1m30s".
func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText writes Go's form.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads Go's form; a bare number other than 0 is refused, its unit is unknown.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text), 0)
	if err != nil {
		return err
	}
	*d = Duration(v)
	return nil
}

var bareNumber = regexp.MustCompile(`^[+-]?[0-9]{1,18}(\.[0-9]{1,18})?$`)

// ParseDuration reads a Go duration, or a bare number counted in unit. With unit zero a
// bare number is refused unless it is 0. Blanks around the text are ignored.
func ParseDuration(text string, unit time.Duration) (time.Duration, error) {
	text = strings.TrimSpace(text)
	if bareNumber.MatchString(text) {
		n, err := strconv.ParseFloat(text, 64)
		switch {
		case err != nil:
			return 0, fmt.Errorf("%s is not a duration; write for example 30s or 250ms", quote(text))
		case n == 0:
			return 0, nil
		case unit <= 0:
			return 0, fmt.Errorf("%s has no unit; write for example %ss or %sms", quote(text), text, text)
		}
		if i, err := strconv.ParseInt(text, 10, 64); err == nil && math.Abs(n) <= float64(math.MaxInt64/int64(unit))-1 {
			return time.Duration(i) * unit, nil // whole numbers stay exact
		}
		if f := n * float64(unit); math.Abs(f) < math.MaxInt64 {
			return time.Duration(f), nil
		}
		return 0, fmt.Errorf("%s is longer than a duration can be (about 290 years)", quote(text))
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s is not a duration; write for example 30s, 250ms or 1h30m", quote(text))
	}
	return d, nil
}

// quoteMax bounds how much of a user's text is repeated in a message, in bytes.
const quoteMax = 80

// quote shows a user's text in a message: quoted, and cut when long.
func quote(s string) string {
	if len(s) > quoteMax {
		return fmt.Sprintf("%q… (%d bytes)", strings.ToValidUTF8(s[:quoteMax], ""), len(s))
	}
	return strconv.Quote(s)
}
