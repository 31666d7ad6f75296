package conf

import (
	"fmt"
	"log/slog"
)

// Secret is text that must not be seen: it masks itself wherever Go prints, logs or
// marshals values. Reveal is the only way to read it, so that uses are easy to find.
//
// Keep it in exported fields: fmt does not call methods on unexported ones.
type Secret string

// masked stands for any non-empty secret. Its length says nothing about the secret's.
const masked = "********"

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// Empty tells whether there is no secret at all.
func (s Secret) Empty() bool { return s == "" }

// String masks the secret; an empty one stays empty, so that "not set" can be seen.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return masked
}

// GoString masks the secret in %#v.
func (s Secret) GoString() string { return fmt.Sprintf("conf.Secret(%q)", s.String()) }

// Format masks the secret under every verb. Without it, a verb unfit for text (%d) would
// print the value in fmt's own complaint.
func (s Secret) Format(f fmt.State, verb rune) {
	switch {
	case verb == 'v' && f.Flag('#'):
		_, _ = fmt.Fprint(f, s.GoString())
	case verb == 'q':
		_, _ = fmt.Fprintf(f, "%q", s.String())
	default:
		_, _ = fmt.Fprint(f, s.String())
	}
}

// MarshalText masks the secret in JSON, YAML and text encodings.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue masks the secret in log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
