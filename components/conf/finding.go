package conf

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/mecha-project/mecha/components/fault"
)

// Severity says what a finding means for start-up.
type Severity uint8

const (
	// Warning is worth a log line; what was written is used as far as it goes.
	Warning Severity = iota
	// Error makes the configuration unusable.
	Error
)

// String is "warning" or "error".
func (s Severity) String() string {
	if s == Error {
		return "error"
	}
	return "warning"
}

// Finding is one thing wrong with a configuration.
type Finding struct {
	File     string // empty when unknown
	Line     int    // 1-based; 0 when unknown
	Key      string // the entry or field; empty when the finding is about the whole
	Msg      string // what is wrong and what would be right; never holds a secret
	Nearest  string // the known name closest to Key, or empty
	Severity Severity
	Of       string // the resource it is in, by kind and name, where that matters; not part of the text
}

// String is "file:line: error: key: message; did you mean …?" with absent parts left out.
func (f Finding) String() string {
	if pos := f.Position(); pos != "" {
		return pos + ": " + f.Severity.String() + ": " + f.Text()
	}
	return f.Severity.String() + ": " + f.Text()
}

// Position is "file:line", "file", "line n" or empty.
func (f Finding) Position() string {
	switch {
	case f.File != "" && f.Line > 0:
		return fmt.Sprintf("%s:%d", f.File, f.Line)
	case f.Line > 0:
		return fmt.Sprintf("line %d", f.Line)
	}
	return f.File
}

// Text is the finding without place and severity.
func (f Finding) Text() string {
	var b strings.Builder
	if f.Key != "" {
		b.WriteString(f.Key)
		b.WriteString(": ")
	}
	b.WriteString(f.Msg)
	if f.Nearest != "" {
		fmt.Fprintf(&b, "; did you mean %s?", f.Nearest)
	}
	return b.String()
}

// Findings are all that is wrong, in the order it was found.
type Findings []Finding

// Err joins the findings of severity Error into one fault.Invalid error, a line each, or
// gives nil when there is none.
func (fs Findings) Err() error {
	var lines []string
	for _, f := range fs {
		if f.Severity != Error {
			continue
		}
		if pos := f.Position(); pos != "" {
			lines = append(lines, pos+": "+f.Text())
		} else {
			lines = append(lines, f.Text())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fault.New("conf.Decode", fault.Invalid, "%s", strings.Join(lines, "\n"))
}

// Warnings are the findings that do not prevent use.
func (fs Findings) Warnings() Findings {
	var out Findings
	for _, f := range fs {
		if f.Severity == Warning {
			out = append(out, f)
		}
	}
	return out
}

// Sort orders findings by file, line and key, for people and for golden files.
func (fs Findings) Sort() {
	slices.SortStableFunc(fs, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Key, b.Key), cmp.Compare(a.Msg, b.Msg))
	})
}

// FieldError is an error about one key. A Validate method that returns FieldErrors (alone
// or joined) gets its findings placed on the line where the key was written.
type FieldError struct {
	Key string // the key as users write it
	Msg string
}

// Bad makes a FieldError, for use in Validate methods.
func Bad(key, format string, args ...any) error {
	return &FieldError{Key: key, Msg: fmt.Sprintf(format, args...)}
}

// Error is "key: message".
func (e *FieldError) Error() string { return e.Key + ": " + e.Msg }

// flatten splits an error made with errors.Join into its parts. Other errors with several
// causes stay whole: their own words matter.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var texts []string
	var out []error
	for _, e := range many.Unwrap() {
		texts = append(texts, e.Error())
		out = append(out, flatten(e)...)
	}
	if strings.Join(texts, "\n") != err.Error() {
		return []error{err}
	}
	return out
}
