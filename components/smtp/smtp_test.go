package smtp_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/block/blocktest"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
	"github.com/mecha-project/mecha/components/smtp"
	"github.com/mecha-project/mecha/test/servers"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func within(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// open opens a binding to a server; items are more metadata.
func open(t testing.TB, s *servers.SMTP, items ...string) block.Output {
	t.Helper()
	c := smtp.DefaultConfig()
	items = append([]string{"host", s.Host, "port", strconv.Itoa(s.Port), "emailFrom", "shop@example.com"}, items...)
	if f := conf.Decode(conf.Items(items...), c); len(f) > 0 {
		t.Fatalf("configuration %q: %v", items, f)
	}
	b, err := smtp.New(block.Env{Log: slog.New(slog.DiscardHandler)}, c)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return b.(block.Output)
}

func create(data string, metadata ...string) block.BindingRequest {
	r := block.BindingRequest{Operation: "create", Data: []byte(data), Metadata: map[string]string{}}
	for i := 0; i < len(metadata); i += 2 {
		r.Metadata[metadata[i]] = metadata[i+1]
	}
	return r
}

// received is what matters of a mail: its envelope, headers and text.
type received struct {
	From, To string
	Header   map[string]string
	Text     string
}

func parse(t testing.TB, m servers.Mail) received {
	t.Helper()
	msg, err := mail.ReadMessage(bytes.NewReader(m.Data))
	if err != nil {
		t.Fatalf("%v\n%s", err, m.Data)
	}
	r := received{From: m.From, To: strings.Join(m.To, " "), Header: map[string]string{}}
	for name, values := range msg.Header {
		text, err := (&mime.WordDecoder{}).DecodeHeader(strings.Join(values, "|"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header[name] = text
	}
	for _, name := range []string{"Date", "Message-Id"} {
		if r.Header[name] == "" {
			t.Errorf("no header %s", name)
		}
		delete(r.Header, name)
	}
	text, err := io.ReadAll(quotedprintable.NewReader(msg.Body))
	if err != nil {
		t.Fatal(err)
	}
	r.Text = strings.TrimSuffix(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n")
	return r
}

func TestOutput(t *testing.T) {
	s := servers.StartSMTP(t, servers.SMTPOptions{})
	blocktest.Output(t, func(t *testing.T) blocktest.OutputPlace {
		return blocktest.OutputPlace{Open: func() block.Output { return open(t, s, "emailTo", "a@example.com") }, Works: create("data", "subject", "s")}
	})
}

// A mail is made of the request, with the configuration behind it.
func TestMail(t *testing.T) {
	s := servers.StartSMTP(t, servers.SMTPOptions{})
	b := open(t, s, "emailTo", "a@example.com; B <b@example.com> ;", "emailCC", "c@example.com", "emailBCC", "hidden@example.com", "subject", "From the shop", "priority", "2")
	common := func(more ...string) map[string]string {
		h := map[string]string{"From": "<shop@example.com>", "To": `<a@example.com>, "B" <b@example.com>`, "Cc": "<c@example.com>", "Subject": "From the shop", "X-Priority": "2",
			"Mime-Version": "1.0", "Content-Type": "text/html; charset=UTF-8", "Content-Transfer-Encoding": "quoted-printable"}
		for i := 0; i < len(more); i += 2 {
			if h[more[i]] = more[i+1]; more[i+1] == "" {
				delete(h, more[i])
			}
		}
		return h
	}
	const all = "a@example.com b@example.com c@example.com hidden@example.com"
	for i, tt := range []struct {
		r    block.BindingRequest
		want received
	}{
		{create(`"<p>\"Hello\" \u00fc\ud83d\ude00</p>\n"`), received{"shop@example.com", all, common(), "<p>\"Hello\" ü😀</p>"}},
		{create("plain <b>bytes</b>"), received{"shop@example.com", all, common(), "plain <b>bytes</b>"}},
		{create("`as in Go`"), received{"shop@example.com", all, common(), "as in Go"}},
		{create(`{"a":"b"}`), received{"shop@example.com", all, common(), `{"a":"b"}`}},
		{create(""), received{"shop@example.com", all, common(), ""}},
		{create("x\r\n.\r\nMAIL FROM:<evil@example.com>"), received{"shop@example.com", all, common(), "x\n.\nMAIL FROM:<evil@example.com>"}},
		{create("x", "emailFrom", "Ünal <u@example.com>", "emailTo", "only@example.com", "subject", "Grüße 😀", "priority", "5", "emailCC", "d@example.com", "emailBCC", "e@example.com"),
			received{"u@example.com", "only@example.com d@example.com e@example.com", common("From", "Ünal <u@example.com>", "To", "<only@example.com>", "Cc", "<d@example.com>", "Subject", "Grüße 😀", "X-Priority", "5"), "x"}},
	} {
		if answer, err := b.Invoke(within(t), tt.r); answer != nil || err != nil {
			t.Fatalf("%s: %v, %v", tt.r.Data, answer, err)
		}
		mails := s.Mails(t)
		if len(mails) != i+1 {
			t.Fatalf("%d mails, want %d", len(mails), i+1)
		}
		if d := cmp.Diff(tt.want, parse(t, mails[i])); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.r.Data, d)
		}
		if bytes.Contains(mails[i].Data, []byte("hidden@")) {
			t.Errorf("the hidden recipient is in the mail:\n%s", mails[i].Data)
		}
	}
}

// A request that makes no mail, or that would make more of it than one mail, is refused before
// anything is sent.
func TestBadRequests(t *testing.T) {
	s := servers.StartSMTP(t, servers.SMTPOptions{})
	b := open(t, s)
	good := []string{"emailTo", "a@example.com", "subject", "s"}
	for name, tt := range map[string]struct {
		metadata []string
		want     string
	}{
		"no recipient":           {[]string{"subject", "s"}, "emailTo is neither in"},
		"no subject":             {[]string{"emailTo", "a@example.com"}, "subject is neither in"},
		"blank recipients":       {[]string{"emailTo", " ; ", "subject", "s"}, "emailTo holds no address"},
		"a header in a subject":  {append(good[:2:2], "subject", "s\r\nBcc: evil@example.com"), "subject holds a line break"},
		"a line feed":            {append(good[:2:2], "subject", "s\nX: y"), "subject holds a line break"},
		"a zero":                 {append(good[:2:2], "subject", "s\x00"), "subject holds a line break"},
		"not UTF-8":              {append(good[:2:2], "subject", "s\xff"), "subject is not UTF-8"},
		"a header in an address": {append(good[2:4:4], "emailTo", "a@example.com\r\nBcc: evil@example.com"), "emailTo: "},
		"a command":              {append(good[2:4:4], "emailTo", "\"a> SIZE=1\"@example.com"), "emailTo: "},
		"no address":             {append(good[2:4:4], "emailTo", "nobody"), `emailTo: "nobody" is no mail address`},
		"a comma":                {append(good[2:4:4], "emailTo", "a@example.com,b@example.com"), "separated by semicolons"},
		"a bad copy":             {append(good[:4:4], "emailCC", "nobody"), "emailCC: "},
		"a bad hidden copy":      {append(good[:4:4], "emailBCC", "x\ny@example.com"), "emailBCC: "},
		"two senders":            {append(good[:4:4], "emailFrom", "a@example.com;b@example.com"), "emailFrom holds 2 addresses"},
		"a bad priority":         {append(good[:4:4], "priority", "6"), `priority "6" is not from 1 to 5`},
		"no priority":            {append(good[:4:4], "priority", "high"), `priority "high" is not from 1 to 5`},
	} {
		if _, err := b.Invoke(within(t), create("x", tt.metadata...)); fault.Of(err) != fault.Invalid || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v (%v), want %s", name, err, fault.Of(err), tt.want)
		}
	}
	if n := len(s.Mails(t)); n != 0 {
		t.Errorf("%d mails were sent", n)
	}
}

// What the server says is what the caller learns.
func TestRefusals(t *testing.T) {
	s := servers.StartSMTP(t, servers.SMTPOptions{})
	b := open(t, s, "subject", "s")
	for name, tt := range map[string]struct {
		to, data string
		code     fault.Code
		want     string
	}{
		"a recipient":   {"refused@example.com", "x", fault.Invalid, "no such mailbox"},
		"one of two":    {"a@example.com;refused@example.com", "x", fault.Invalid, "no such mailbox"},
		"for now":       {"later@example.com", "x", fault.Unavailable, "come again later"},
		"the mail":      {"a@example.com", "SPAM", fault.Denied, "looks like spam"},
		"a large mail":  {"a@example.com", strings.Repeat("0123456789", 200_000), fault.TooLarge, ""},
		"many and fine": {strings.Repeat("a@example.com;", 50), "x", fault.OK, ""},
	} {
		_, err := b.Invoke(within(t), create(tt.data, "emailTo", tt.to))
		if fault.Of(err) != tt.code || err != nil && (!strings.Contains(err.Error(), tt.want) || fault.SentOf(err) != fault.SentNever) {
			t.Errorf("%s: %v (%v, sent %v)", name, err, fault.Of(err), fault.SentOf(err))
		}
	}
	if n := len(s.Mails(t)); n != 1 {
		t.Errorf("%d mails were taken, want 1", n)
	}
}

// TLS is spoken where it is offered, and a password goes to no other host without.
func TestTLSAndPasswords(t *testing.T) {
	away := outside(t)
	user := []string{"user", "mecha", "password", "pa$$w0rd", "subject", "s", "emailTo", "a@example.com"}
	signed := servers.SMTPOptions{User: "mecha", Password: "pa$$w0rd"}
	with := func(o servers.SMTPOptions, change func(*servers.SMTPOptions)) servers.SMTPOptions {
		change(&o)
		return o
	}
	for name, tt := range map[string]struct {
		server servers.SMTPOptions
		items  []string
		code   fault.Code
		tls    bool
	}{
		"offered":                        {servers.SMTPOptions{STARTTLS: true}, append(user[4:8:8], "skipTLSVerify", "true"), fault.OK, true},
		"offered, not trusted":           {servers.SMTPOptions{STARTTLS: true}, user[4:], fault.Unavailable, false},
		"a password here":                {signed, user, fault.OK, false},
		"a password over TLS":            {with(signed, func(o *servers.SMTPOptions) { o.STARTTLS = true }), append(user[:8:8], "skipTLSVerify", "true"), fault.OK, true},
		"a wrong password":               {signed, append(user[4:8:8], "user", "mecha", "password", "wr0ng"), fault.Unauthenticated, false},
		"no password":                    {signed, user[4:], fault.Unauthenticated, false},
		"a password elsewhere":           {with(signed, func(o *servers.SMTPOptions) { o.Host = away }), user, fault.Unavailable, false},
		"a password elsewhere, over TLS": {with(signed, func(o *servers.SMTPOptions) { o.Host, o.STARTTLS = away, true }), append(user[:8:8], "skipTLSVerify", "true"), fault.OK, true},
		"no password elsewhere":          {servers.SMTPOptions{Host: away}, user[4:], fault.OK, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := servers.StartSMTP(t, tt.server)
			_, err := open(t, s, tt.items...).Invoke(within(t), create("x"))
			if fault.Of(err) != tt.code || err != nil && (strings.Contains(err.Error(), "pa$$w0rd") || strings.Contains(err.Error(), "wr0ng")) {
				t.Fatalf("Invoke: %v (%v), want %v", err, fault.Of(err), tt.code)
			}
			if err != nil {
				return
			}
			m := s.Mails(t)
			if len(m) != 1 || m[0].TLS != tt.tls || m[0].User != tt.server.User {
				t.Errorf("taken: %+v, want TLS %v as user %q", m, tt.tls, tt.server.User)
			}
		})
	}
}

// With TLS from the beginning, which is what port 465 has, a password may go anywhere.
func TestImplicitTLS(t *testing.T) {
	s := servers.StartSMTP(t, servers.SMTPOptions{Implicit: true, User: "mecha", Password: "pa$$w0rd", Host: outside(t)})
	for verified, want := range map[string]fault.Code{"false": fault.OK, "true": fault.Unavailable} {
		skip := "false"
		if verified == "false" {
			skip = "true"
		}
		b := open(t, s, "user", "mecha", "password", "pa$$w0rd", "skipTLSVerify", skip, "subject", "s", "emailTo", "a@example.com")
		smtp.SetImplicit(b)
		if _, err := b.Invoke(within(t), create("x")); fault.Of(err) != want {
			t.Errorf("certificate verified %s: %v (%v)", verified, err, fault.Of(err))
		}
	}
	if m := s.Mails(t); len(m) != 1 || !m[0].TLS || m[0].User != "mecha" {
		t.Errorf("taken: %+v", m)
	}
}

// outside is an address of this host that is not loopback.
func outside(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	t.Fatal("this host has loopback only; the test needs another address")
	return ""
}

// A server that is away, silent, or gone in the middle: the call ends in time and says what is
// known.
func TestFaults(t *testing.T) {
	s := servers.StartSMTP(t, servers.SMTPOptions{})
	b := open(t, s, "subject", "s", "emailTo", "a@example.com")
	short := func(d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		t.Cleanup(cancel)
		return ctx
	}
	begin := time.Now()
	if _, err := b.Invoke(short(500*time.Millisecond), create("HANG")); fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("no answer: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	s.Freeze()
	if _, err := b.Invoke(short(500*time.Millisecond), create("x")); fault.Of(err) != fault.Deadline || fault.SentOf(err) != fault.SentNever {
		t.Errorf("a frozen server: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	s.Thaw()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(300*time.Millisecond, cancel)
	if _, err := b.Invoke(ctx, create("HANG")); fault.Of(err) != fault.Canceled {
		t.Errorf("a caller that goes: %v (%v)", err, fault.Of(err))
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("all that took %v", took)
	}
	time.AfterFunc(300*time.Millisecond, s.Kill)
	if _, err := b.Invoke(within(t), create("HANG")); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentMaybe {
		t.Errorf("a server that is killed: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
	if _, err := b.Invoke(within(t), create("x")); fault.Of(err) != fault.Unavailable || fault.SentOf(err) != fault.SentNever {
		t.Errorf("a server that is away: %v (%v, sent %v)", err, fault.Of(err), fault.SentOf(err))
	}
}

func TestConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		items []string
		want  string
	}{
		"nothing":            {nil, "host: required"},
		"no port":            {[]string{"host", "h"}, "port: required"},
		"a URL":              {[]string{"host", "smtp://h", "port", "25"}, "host: is no name"},
		"a port":             {[]string{"host", "h", "port", "70000"}, "port: 70000 is not a port"},
		"a user alone":       {[]string{"host", "h", "port", "25", "user", "u"}, "password: required with user"},
		"a password alone":   {[]string{"host", "h", "port", "25", "password", "p"}, "user: required with password"},
		"a priority":         {[]string{"host", "h", "port", "25", "priority", "9"}, "priority: 9 is not from 1 to 5"},
		"an address":         {[]string{"host", "h", "port", "25", "emailCC", "nobody"}, "emailCC: "},
		"a broken subject":   {[]string{"host", "h", "port", "25", "subject", "a\nb"}, "subject: holds a line break"},
		"what is well":       {[]string{"host", "h", "port", "25", "emailTo", "a@b;c@d", "priority", "1"}, ""},
		"an unknown keyword": {[]string{"host", "h", "port", "25", "emailFor", "a@b"}, "emailFor: unknown key"},
	} {
		f := conf.Decode(conf.Items(tt.items...), smtp.DefaultConfig())
		if text := fmt.Sprint(f); (tt.want == "") != (len(f) == 0) || !strings.Contains(text, tt.want) {
			t.Errorf("%s: %s, want %q", name, text, tt.want)
		}
	}
	text, err := os.ReadFile("../../deploy/dev/smtp/requirements.txt")
	if err != nil || !strings.Contains(string(text), "aiosmtpd=="+servers.SMTPVersion) {
		t.Errorf("deploy/dev/smtp/requirements.txt has another version: %s, %v", text, err)
	}
}
