package conf

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes written as a quantity: 4Mi (binary), 4M (decimal), 4096.
// Negative values are kept; where a size may be unlimited, -1 says so.
type ByteSize int64

// Binary sizes, for defaults in code.
const (
	KiB ByteSize = 1 << 10
	MiB ByteSize = 1 << 20
	GiB ByteSize = 1 << 30
)

// Unlimited is the size that sets no bound, written -1.
const Unlimited ByteSize = -1

// Int64 is the plain number of bytes.
func (b ByteSize) Int64() int64 { return int64(b) }

// String is the shortest exact form: "4Mi", "4M", "4097".
func (b ByteSize) String() string {
	if b <= 0 {
		return strconv.FormatInt(int64(b), 10)
	}
	for _, u := range []struct {
		size ByteSize
		name string
	}{{1 << 60, "Ei"}, {1 << 50, "Pi"}, {1 << 40, "Ti"}, {GiB, "Gi"}, {MiB, "Mi"}, {KiB, "Ki"},
		{1e18, "E"}, {1e15, "P"}, {1e12, "T"}, {1e9, "G"}, {1e6, "M"}, {1e3, "k"}} {
		if b%u.size == 0 {
			return strconv.FormatInt(int64(b/u.size), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// MarshalText writes the quantity.
func (b ByteSize) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads a quantity.
func (b *ByteSize) UnmarshalText(text []byte) error {
	v, err := ParseByteSize(string(text))
	if err != nil {
		return err
	}
	*b = v
	return nil
}

// The lengths are bounded so that a hostile exponent cannot ask for endless digits.
var quantityForm = regexp.MustCompile(`^([+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30}))(?:[eE]([+-]?[0-9]{1,2})|([A-Za-z]{0,3}))$`)

var quantityUnits = map[string]*big.Rat{
	"": big.NewRat(1, 1), "n": big.NewRat(1, 1e9), "u": big.NewRat(1, 1e6), "m": big.NewRat(1, 1000),
	"k": big.NewRat(1e3, 1), "M": big.NewRat(1e6, 1), "G": big.NewRat(1e9, 1),
	"T": big.NewRat(1e12, 1), "P": big.NewRat(1e15, 1), "E": big.NewRat(1e18, 1),
	"Ki": big.NewRat(1<<10, 1), "Mi": big.NewRat(1<<20, 1), "Gi": big.NewRat(1<<30, 1),
	"Ti": big.NewRat(1<<40, 1), "Pi": big.NewRat(1<<50, 1), "Ei": big.NewRat(1<<60, 1),
}

// ParseByteSize reads a Kubernetes quantity as a number of bytes: an optional sign, a
// decimal number, and a suffix of Ki Mi Gi Ti Pi Ei, k M G T P E, m u n, or an exponent
// (4e6). Fractions of a byte are rounded away from zero, as Kubernetes does.
func ParseByteSize(text string) (ByteSize, error) {
	text = strings.TrimSpace(text)
	m := quantityForm.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%s is not a size; write for example 4Mi, 512Ki or a number of bytes", quote(text))
	}
	value, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, fmt.Errorf("%s is not a size; write for example 4Mi, 512Ki or a number of bytes", quote(text))
	}
	if m[2] != "" {
		exp, _ := strconv.Atoi(m[2]) // at most two digits
		value.Mul(value, pow10(exp))
	} else {
		unit, known := quantityUnits[m[3]]
		if !known {
			return 0, fmt.Errorf("%s has the unknown suffix %s%s", quote(text), m[3], suffixHint(m[1], m[3]))
		}
		value.Mul(value, unit)
	}
	n, ok := roundAway(value)
	if !ok {
		return 0, fmt.Errorf("%s is more bytes than a 64-bit number holds", quote(text))
	}
	return ByteSize(n), nil
}

func pow10(exp int) *big.Rat {
	n := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(exp, -exp))), nil)
	r := new(big.Rat).SetInt(n)
	if exp < 0 {
		r.Inv(r)
	}
	return r
}

func roundAway(r *big.Rat) (int64, bool) {
	q, rem := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if rem.Sign() != 0 {
		q.Add(q, big.NewInt(int64(r.Sign())))
	}
	return q.Int64(), q.IsInt64()
}

// suffixHint turns the usual mistakes (4MB, 4mb, 4KiB) into what to write.
func suffixHint(number, suffix string) string {
	lower := strings.TrimSuffix(strings.ToLower(suffix), "b")
	switch strings.TrimSuffix(lower, "i") {
	case "":
		return "; leave it out, sizes are bytes"
	case "k", "m", "g", "t", "p", "e":
		letter := strings.ToUpper(lower[:1])
		decimal := letter
		if letter == "K" {
			decimal = "k"
		}
		return fmt.Sprintf("; write %s%si (powers of 1024) or %s%s (powers of 1000)", number, letter, number, decimal)
	}
	return "; known are Ki, Mi, Gi and k, M, G"
}
