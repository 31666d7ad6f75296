// Package smtp sends mail for the app through an SMTP server.
//
// Here are the configuration and the component; message.go makes a mail of a request, send.go
// hands it to the server.
package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/mecha-project/mecha/components/block"
	"github.com/mecha-project/mecha/components/conf"
	"github.com/mecha-project/mecha/components/fault"
)

const doc = "Mail through an SMTP server."

// Backend lists the parts: an output binding.
func Backend() block.Backend {
	return block.Backend{Name: "smtp", Doc: doc, Parts: []block.Part{block.BindingPart("smtp", doc, DefaultConfig, New)}}
}

// Config configures the server, and what mails have that do not say otherwise.
type Config struct {
	// Host is the server's name or address.
	Host string `yaml:"host" required:"true"`
	// Port is the server's: 587 or 25, with STARTTLS when the server offers it, or 465, with TLS
	// from the beginning.
	Port int `yaml:"port" required:"true"`
	// User and Password sign in. A password goes to another host over TLS only.
	User     string      `yaml:"user"`
	Password conf.Secret `yaml:"password"`
	// SkipTLSVerify accepts any server certificate. It gives up protection against interception.
	SkipTLSVerify bool `yaml:"skipTLSVerify"`
	Mail          MailConfig
}

// MailConfig is what a request's metadata can say too, by the same names.
type MailConfig struct {
	// From is the sender's address.
	From string `yaml:"emailFrom"`
	// To, CC and BCC are addresses, separated by semicolons.
	To  string `yaml:"emailTo"`
	CC  string `yaml:"emailCC"`
	BCC string `yaml:"emailBCC"`
	// Subject is the subject line.
	Subject string `yaml:"subject"`
	// Priority is from 1 (highest) to 5 (lowest), as the header X-Priority has it.
	Priority int `yaml:"priority"`
}

// DefaultConfig returns the defaults.
func DefaultConfig() *Config { return &Config{Mail: MailConfig{Priority: 3}} }

// Validate reports what cannot work.
func (c *Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) { errs = append(errs, conf.Bad(key, format, args...)) }
	if strings.ContainsAny(c.Host, "/@ \r\n") {
		bad("host", "is no name of a host; the port and credentials have keys of their own")
	}
	if c.Port < 0 || c.Port > 65535 {
		bad("port", "%d is not a port", c.Port)
	}
	switch {
	case c.User != "" && c.Password.Empty():
		bad("password", "required with user")
	case c.User == "" && !c.Password.Empty():
		bad("user", "required with password")
	}
	return errors.Join(errs...)
}

// Validate reports what cannot work.
func (c *MailConfig) Validate() error {
	var errs []error
	if c.Priority < highest || c.Priority > lowest {
		errs = append(errs, conf.Bad("priority", "%d is not from %d to %d", c.Priority, highest, lowest))
	}
	for _, f := range []struct{ key, text string }{{"emailFrom", c.From}, {"emailTo", c.To}, {"emailCC", c.CC}, {"emailBCC", c.BCC}} {
		if _, err := addresses(f.text); err != nil {
			errs = append(errs, conf.Bad(f.key, "%v", err))
		}
	}
	if err := oneLine(c.Subject); err != nil {
		errs = append(errs, conf.Bad("subject", "%v", err))
	}
	return errors.Join(errs...)
}

var _ block.Output = (*output)(nil)

// output sends mail through one server.
type output struct {
	c        Config
	tls      *tls.Config
	local    bool // the server is on this host, where nobody listens in
	implicit bool // TLS from the beginning
	closed   atomic.Bool
}

// New makes the component. It connects for each mail.
func New(env block.Env, c *Config) (block.Component, error) {
	if c.Host == "" || c.Port == 0 {
		return nil, fault.New("smtp.New", fault.Invalid, "host and port are required")
	}
	log := env.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if c.SkipTLSVerify {
		log.Warn("skipTLSVerify takes any certificate of the mail server")
	}
	return &output{c: *c, local: loopback(c.Host), implicit: c.Port == tlsPort,
		tls: &tls.Config{ServerName: c.Host, MinVersion: tls.VersionTLS12, InsecureSkipVerify: c.SkipTLSVerify}}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (o *output) where() string {
	return "mail server " + net.JoinHostPort(o.c.Host, strconv.Itoa(o.c.Port))
}

// Ping succeeds until Close: a mail server that is away must not keep a sidecar from starting.
func (o *output) Ping(ctx context.Context) error { return o.usable(ctx, "smtp.Ping") }

// Close refuses what comes after it.
func (o *output) Close(context.Context) error {
	o.closed.Store(true)
	return nil
}

func (o *output) usable(ctx context.Context, op fault.Op) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(op, fault.Canceled, err)
	}
	if o.closed.Load() {
		return fault.New(op, fault.Unavailable, "the binding to the %s is closed", o.where()).WithSent(fault.SentNever)
	}
	return nil
}

// create sends a mail.
const create = "create"

// Operations is create alone.
func (o *output) Operations() []string { return []string{create} }

// Invoke sends one mail and returns when the server has taken it for all recipients.
func (o *output) Invoke(ctx context.Context, r block.BindingRequest) (*block.BindingAnswer, error) {
	const op fault.Op = "smtp.Invoke"
	if err := o.usable(ctx, op); err != nil {
		return nil, err
	}
	if r.Operation != create {
		return nil, fault.New(op, fault.Unsupported, "invalid operation: %s; known is %s", r.Operation, create)
	}
	m, err := newMessage(o.c.Mail, &r)
	if err != nil {
		return nil, fault.Wrap(op, fault.Invalid, err)
	}
	return nil, o.send(ctx, op, m)
}
