package smtp

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/mail"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	gomail "github.com/wneessen/go-mail"

	"github.com/mecha-project/mecha/components/block"
)

// Priorities.
const (
	highest = 1
	lowest  = 5
)

// newMessage makes the mail of a request, whose metadata go before the configuration. The data are
// the body, as HTML.
func newMessage(c MailConfig, r *block.BindingRequest) (*gomail.Msg, error) {
	for _, f := range []struct {
		name string
		into *string
	}{{"emailFrom", &c.From}, {"emailTo", &c.To}, {"emailCC", &c.CC}, {"emailBCC", &c.BCC}, {"subject", &c.Subject}} {
		if text := r.Metadata[f.name]; text != "" {
			*f.into = text
		}
		if *f.into == "" && (f.name == "emailFrom" || f.name == "emailTo" || f.name == "subject") {
			return nil, fmt.Errorf("%s is neither in the request's metadata nor in the configuration", f.name)
		}
	}
	if text := r.Metadata["priority"]; text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < highest || n > lowest {
			return nil, fmt.Errorf("priority %q is not from %d to %d", clip(text), highest, lowest)
		}
		c.Priority = n
	}
	if err := oneLine(c.Subject); err != nil {
		return nil, fmt.Errorf("subject %w", err)
	}
	m := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	for _, f := range []struct {
		name, text string
		most       int // 0: any number
		set        func(...string) error
	}{{"emailFrom", c.From, 1, func(a ...string) error { return m.From(a[0]) }}, {"emailTo", c.To, 0, m.To}, {"emailCC", c.CC, 0, m.Cc}, {"emailBCC", c.BCC, 0, m.Bcc}} {
		list, err := addresses(f.text)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", f.name, err)
		case len(list) == 0 && (f.name == "emailFrom" || f.name == "emailTo"):
			return nil, fmt.Errorf("%s holds no address", f.name)
		case len(list) == 0:
			continue
		case f.most > 0 && len(list) > f.most:
			return nil, fmt.Errorf("%s holds %d addresses, want one", f.name, len(list))
		}
		if err := f.set(list...); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	m.Subject(c.Subject)
	m.SetGenHeader("X-Priority", strconv.Itoa(c.Priority))
	m.SetDate()
	m.SetMessageID()
	m.SetBodyString(gomail.TypeTextHTML, body(r.Data))
	return m, nil
}

// body is the text of a request's data. Over HTTP they are JSON, and a text has quotes then.
func body(data []byte) string {
	text := string(data)
	var inner string
	if json.Unmarshal(data, &inner) == nil && strings.HasPrefix(strings.TrimSpace(text), `"`) {
		return inner
	}
	if inner, err := strconv.Unquote(text); err == nil { // as Dapr does
		return inner
	}
	return text
}

// addresses are those of a list with semicolons, each in a form that the server's protocol and a
// header can hold.
func addresses(text string) (out []string, err error) {
	for part := range strings.SplitSeq(text, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		if err := oneLine(part); err != nil {
			return nil, fmt.Errorf("%q %w", clip(part), err)
		}
		a, err := mail.ParseAddress(part)
		if err != nil {
			return nil, fmt.Errorf("%q is no mail address; want name@example.com, several separated by semicolons", clip(part))
		}
		// A quoted local part may hold what ends the address for a server.
		if oneLine(a.Address) != nil || strings.ContainsAny(a.Address, "<> ") || oneLine(a.Name) != nil {
			return nil, fmt.Errorf("%q is no mail address that a server takes", clip(part))
		}
		out = append(out, a.String())
	}
	return out, nil
}

var (
	errLines = errors.New("holds a line break or another control character")
	errUTF8  = errors.New("is not UTF-8")
)

// oneLine refuses text that could begin another header or another command.
func oneLine(text string) error {
	if !utf8.ValidString(text) {
		return errUTF8
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		return errLines
	}
	return nil
}

// clip shortens text that is quoted in an error.
func clip(s string) string {
	if len(s) > 60 {
		return s[:60] + "…"
	}
	return s
}
