package servers

import (
	_ "embed"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/mecha-project/mecha/test/untested"
)

// SMTPVersion is the release of aiosmtpd that StartSMTP runs, that of deploy/dev/smtp/requirements.txt.
const SMTPVersion = "1.4.6"

//go:embed smtp.py
var smtpScript string

// SMTPOptions say what a mail server offers and wants. The zero value has neither TLS nor sign-in.
type SMTPOptions struct {
	STARTTLS       bool   // offer it
	Implicit       bool   // TLS from the beginning
	User, Password string // wanted, also without TLS, when not empty
	Host           string // to listen on; empty: 127.0.0.1
}

// SMTP is a mail server that a test started. What becomes of a mail depends on it: recipients
// named refused@ do not exist, later@ is refused for now, a mail with the word SPAM is refused, and
// one with the word HANG is never answered.
type SMTP struct {
	*Process
	Host string
	Port int

	out string
}

// Mail is one that the server has taken.
type Mail struct {
	From string
	To   []string
	Data []byte
	TLS  bool
	User string
}

// StartSMTP runs a mail server.
func StartSMTP(tb testing.TB, o SMTPOptions) *SMTP {
	tb.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		untested.Skip(tb, "SMTP: %v", err)
	}
	home := filepath.Join(cache, "mecha", "aiosmtpd-"+SMTPVersion)
	if _, err := os.Stat(filepath.Join(home, "complete")); err != nil {
		untested.Skip(tb, "aiosmtpd %s is not there; deploy/dev/smtp/fetch gets it", SMTPVersion)
	}
	if o.Host == "" {
		o.Host = "127.0.0.1"
	}
	certs := &Kafka{dir: tb.TempDir()}
	certs.certify(tb)
	s := &SMTP{Host: o.Host, Port: Port(tb), out: filepath.Join(certs.dir, "mails")}
	args, err := json.Marshal(map[string]any{"host": o.Host, "port": s.Port, "out": s.out, "starttls": o.STARTTLS, "implicit": o.Implicit,
		"user": o.User, "password": o.Password, "cert": filepath.Join(certs.dir, "broker.pem"), "key": filepath.Join(certs.dir, "broker.pem")})
	if err != nil {
		tb.Fatal(err)
	}
	s.Process = Start(tb, exec.Command(filepath.Join(home, "venv", "bin", "python3"), "-c", smtpScript, string(args)), func() error {
		c, err := net.Dial("tcp", net.JoinHostPort(s.Host, strconv.Itoa(s.Port)))
		if err == nil {
			_ = c.Close()
		}
		return err
	})
	return s
}

// Mails are those taken so far.
func (s *SMTP) Mails(tb testing.TB) (out []Mail) {
	tb.Helper()
	text, err := os.ReadFile(s.out)
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var m Mail
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			tb.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}
