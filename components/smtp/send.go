package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/textproto"
	"time"

	gomail "github.com/wneessen/go-mail"

	"github.com/mecha-project/mecha/components/fault"
)

const (
	// sendTimeout bounds connecting with signing in, and again the mail itself, beside the call's
	// own deadline. A server that checks a mail may take a while to answer.
	sendTimeout = 60 * time.Second
	dialTimeout = 10 * time.Second
	// tlsPort has TLS from the beginning.
	tlsPort = 465
)

// send hands a mail over. It succeeds when the server has taken it.
func (o *output) send(ctx context.Context, op fault.Op, m *gomail.Msg) error {
	line := &line{o: o, ctx: ctx}
	defer line.release()
	opts := []gomail.Option{gomail.WithPort(o.c.Port), gomail.WithTimeout(sendTimeout), gomail.WithTLSConfig(o.tls), gomail.WithoutNoop(),
		gomail.WithoutRset(), gomail.WithDialContextFunc(line.dial)}
	policy := gomail.TLSOpportunistic
	if !o.c.Password.Empty() {
		ways := []gomail.SMTPAuthType{gomail.SMTPAuthSCRAMSHA256PLUS, gomail.SMTPAuthSCRAMSHA256, gomail.SMTPAuthSCRAMSHA1PLUS, gomail.SMTPAuthSCRAMSHA1, gomail.SMTPAuthCramMD5}
		if o.local {
			ways = append(ways, gomail.SMTPAuthPlainNoEnc, gomail.SMTPAuthLoginNoEnc)
		} else {
			ways = append(ways, gomail.SMTPAuthPlain, gomail.SMTPAuthLogin)
			policy = gomail.TLSMandatory // no password without TLS, whatever the server offers
		}
		opts = append(opts, gomail.WithOpportunisticSMTPAuth(ways...), gomail.WithUsername(o.c.User), gomail.WithPassword(o.c.Password.Reveal()))
	}
	if o.implicit {
		policy = gomail.NoTLS // line has it already
	}
	client, err := gomail.NewClient(o.c.Host, append(opts, gomail.WithTLSPolicy(policy))...)
	if err != nil {
		return fault.Wrap(op, fault.Invalid, err)
	}
	err = client.DialAndSendWithContext(ctx, m)
	if err == nil || m.IsDelivered() { // a goodbye that fails takes nothing back
		return nil
	}
	return o.explain(ctx, op, err)
}

// line is the connection of one mail; it ends with the call.
type line struct {
	o    *output
	ctx  context.Context
	conn net.Conn
	stop func() bool
}

// dial connects, at port 465 with TLS.
func (l *line) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	// The library looks at the context only before it connects.
	l.conn, l.stop = c, context.AfterFunc(l.ctx, func() { _ = c.Close() })
	if !l.o.implicit {
		return c, nil
	}
	secure := tls.Client(c, l.o.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return secure, nil
}

// release closes what the library leaves open, as it does when signing in fails.
func (l *line) release() {
	if l.conn != nil {
		l.stop()
		_ = l.conn.Close()
	}
}

// explain puts the library's error into the house's words.
func (o *output) explain(ctx context.Context, op fault.Op, err error) error {
	e := &fault.Error{Op: op, Code: fault.Unavailable, Sent: fault.SentNever, Msg: o.where(), Err: err}
	var failed *gomail.SendError
	var answer *textproto.Error
	status := 0
	if errors.As(err, &failed) {
		status = failed.ErrorCode()
		// Without an answer to the end of the mail nobody knows whether the server has it.
		if failed.Reason == gomail.ErrSMTPDataClose && status == 0 {
			e.Sent = fault.SentMaybe
		}
	} else if errors.As(err, &answer) {
		status = answer.Code
	}
	if ctx.Err() != nil && status == 0 {
		e.Code, e.Err = fault.Canceled, ctx.Err()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			e.Code = fault.Deadline
		}
		return e
	}
	var name *tls.CertificateVerificationError
	switch {
	case status == 530, status == 534, status == 535, status == 538:
		e.Code, e.Msg = fault.Unauthenticated, e.Msg+": are user and password right?"
	case status == 552, status == 523:
		e.Code = fault.TooLarge
	case status >= 500 && failed != nil && (failed.Reason == gomail.ErrSMTPMailFrom || failed.Reason == gomail.ErrSMTPRcptTo):
		e.Code, e.Msg = fault.Invalid, e.Msg+" refuses an address"
	case status >= 500:
		e.Code, e.Msg = fault.Denied, e.Msg+" refuses the mail"
	case status >= 400: // again later
	case errors.As(err, &name):
		e.Msg += ": its certificate is not trusted; is host the name in it?"
	case status == 0 && failed == nil && !o.local && !o.c.Password.Empty() && !o.implicit:
		e.Msg += ": a password is sent over TLS only; is host right, and does the server offer STARTTLS?"
	}
	return e
}
