package block

import (
	"fmt"
	"net"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Limits of an Instance. They keep one announcement well inside one file, row or packet.
const (
	maxNameBytes  = 200  // app id, namespace, instance id
	maxLabelBytes = 1024 // all labels together
)

// Name is the name the instance answers to.
func (i Instance) Name() Name { return Name{App: i.App, Namespace: i.Namespace} }

// Validate says what is wrong with an instance that is to be announced, or that was read
// from outside: nil means a caller can use it. Registries call it on both ways.
func (i Instance) Validate() error {
	for _, f := range []struct {
		what, text string
		required   bool
	}{{"id", i.ID, true}, {"app", i.App, true}, {"namespace", i.Namespace, false}, {"protocol", i.Protocol, false}} {
		if f.required && f.text == "" {
			return fmt.Errorf("instance has no %s", f.what)
		}
		if err := checkText(f.text, maxNameBytes); err != nil {
			return fmt.Errorf("instance %s %q %w", f.what, clip(f.text), err)
		}
	}
	if err := checkAddress(i.Address); err != nil {
		return fmt.Errorf("instance %q: %w", i.ID, err)
	}
	if i.Weight < 0 {
		return fmt.Errorf("instance %q: weight %d is negative; use 0 or more", i.ID, i.Weight)
	}
	total := 0
	for k, v := range i.Labels {
		if k == "" {
			return fmt.Errorf("instance %q has a label without a name", i.ID)
		}
		if err := checkText(k+v, maxLabelBytes); err != nil {
			return fmt.Errorf("instance %q: label %q %w", i.ID, clip(k), err)
		}
		total += len(k) + len(v)
	}
	if total > maxLabelBytes {
		return fmt.Errorf("instance %q: its labels take %d bytes, at most %d are allowed", i.ID, total, maxLabelBytes)
	}
	return nil
}

func checkText(s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("is %d bytes long, at most %d are allowed", len(s), limit)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("is not valid UTF-8")
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fmt.Errorf("contains the control character %U", r)
		}
	}
	return nil
}

func checkAddress(addr string) error {
	if err := checkText(addr, 300); err != nil {
		return fmt.Errorf("address %w", err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || host == "" {
		return fmt.Errorf("address %q is not host:port", addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("address %q: port %q is not a number from 1 to 65535", addr, port)
	}
	return nil
}

// clip shortens text that is quoted in an error.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
