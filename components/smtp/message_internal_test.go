package smtp

import (
	"bytes"
	"net/mail"
	"slices"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/components/block"
)

// Whatever a request holds, it makes no mail, or one with the headers and recipients it says.
func FuzzMessage(f *testing.F) {
	f.Add("a@example.com", "b@example.com; C <c@example.com>", "d@example.com", "e@example.com", "subject", "3", []byte(`"body"`))
	f.Add("a@b", "\"x\\\"y\"@b", "", "", "s\r\nBcc: evil@b", "9", []byte("\r\n.\r\n"))
	f.Add("Ü <a@b>", "a@b;;", ";", "x", "=?utf-8?q?=0D=0ABcc:_evil@b?=", "1", []byte("`x`"))
	f.Fuzz(func(t *testing.T, from, to, cc, bcc, subject, priority string, data []byte) {
		r := block.BindingRequest{Data: data, Metadata: map[string]string{"emailFrom": from, "emailTo": to, "emailCC": cc, "emailBCC": bcc, "subject": subject, "priority": priority}}
		m, err := newMessage(DefaultConfig().Mail, &r)
		if err != nil {
			return
		}
		var out bytes.Buffer
		if _, err := m.WriteTo(&out); err != nil {
			t.Fatal(err)
		}
		parsed, err := mail.ReadMessage(&out)
		if err != nil {
			t.Fatalf("no mail: %v", err)
		}
		known := []string{"Date", "Message-Id", "Mime-Version", "Subject", "From", "To", "Cc", "X-Priority", "Content-Type", "Content-Transfer-Encoding"}
		for name, values := range parsed.Header {
			if !slices.Contains(known, name) || len(values) != 1 {
				t.Errorf("header %s: %q", name, values)
			}
		}
		var want []string
		for _, text := range []string{to, cc, bcc} {
			list, err := addresses(text)
			if err != nil {
				t.Fatalf("%q made a mail: %v", text, err)
			}
			for _, a := range list {
				p, err := mail.ParseAddress(a)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, p.Address)
			}
		}
		got, err := m.GetRecipients()
		if err != nil {
			t.Fatal(err)
		}
		for i, a := range got { // as the server is told them
			got[i] = strings.TrimSuffix(strings.TrimPrefix(a, "<"), ">")
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
			t.Errorf("recipients %q, want %q", got, want)
		}
		for _, a := range got {
			if strings.ContainsAny(a, "\r\n<> ") {
				t.Errorf("recipient %q", a)
			}
		}
	})
}
