package rabbitmq

import (
	"context"
	"errors"
	"net"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/mecha-project/mecha/components/fault"
)

// ended is the error of a call whose context ended.
func ended(op fault.Op, where string, cause error, sent fault.Sent) error {
	code := fault.Canceled
	if errors.Is(cause, context.DeadlineExceeded) {
		code = fault.Deadline
	}
	return fault.New(op, code, "%s", where).Because(cause).WithSent(sent)
}

// shut is the error of a call to a closed component.
func (l *link) shut(op fault.Op) error {
	return fault.New(op, fault.Unavailable, "%s: the component is closed", l.where()).WithSent(fault.SentNever)
}

// handshakeError is a failure of TLS, before AMQP began.
type handshakeError struct{ error }

func (e *handshakeError) Unwrap() error { return e.error }

// refused is the error of an attempt to connect.
func (l *link) refused(op fault.Op, err error) error {
	fail := func(code fault.Code, text string) error {
		return fault.New(op, code, "%s: %s", l.where(), text).WithSent(fault.SentNever)
	}
	var answer *amqp.Error
	var shake *handshakeError
	switch {
	case errors.Is(err, amqp.ErrClosed), errors.Is(err, context.Canceled):
		return l.shut(op)
	case errors.Is(err, amqp.ErrCredentials):
		return fail(fault.Unauthenticated, "the server does not take the user's name and password in host; are they right?")
	case errors.Is(err, amqp.ErrSASL):
		return fail(fault.Unauthenticated, "the server has none of the ways to sign in that are wanted; does it have the plugin for externalSasl?")
	case errors.Is(err, amqp.ErrVhost):
		return fail(fault.Denied, "the user may not use the virtual host, or there is none of the name")
	case errors.Is(err, context.DeadlineExceeded):
		return fault.New(op, fault.Unavailable, "%s: is the server up, and is the address right?", l.where()).Because(errSilent).WithSent(fault.SentNever)
	case errors.As(err, &shake):
		return fault.New(op, fault.Unavailable, "%s: TLS", l.where()).Because(shake.error).WithSent(fault.SentNever)
	case errors.As(err, &answer) && answer.Server:
		return l.answered(op, answer, fault.SentNever)
	}
	return fault.New(op, fault.Unavailable, "%s: is the server up, and is the address right?", l.where()).Because(err).WithSent(fault.SentNever)
}

// broken is the error of an exchange on a connection that was there.
func (l *link) broken(op fault.Op, s *session, err error, sent fault.Sent) error {
	var answer *amqp.Error
	if errors.As(err, &answer) && answer.Server {
		return l.answered(op, answer, sent)
	}
	if s.lost() {
		<-s.gone
		switch {
		case s.why == nil:
			return fault.New(op, fault.Unavailable, "%s: the component is closed", l.where()).WithSent(sent)
		case s.why.Server:
			return l.answered(op, s.why, sent)
		}
		return fault.New(op, fault.Unavailable, "%s: the connection broke: %s", l.where(), s.why.Reason).WithSent(sent)
	}
	return fault.New(op, fault.Unavailable, "%s", l.where()).Because(err).WithSent(sent)
}

// answers says what the server's reasons for closing a channel or a connection mean.
var answers = map[int]struct {
	code fault.Code
	hint string
}{
	amqp.ContentTooLarge:    {fault.TooLarge, ""},
	amqp.ConnectionForced:   {fault.Unavailable, ""},
	amqp.InvalidPath:        {fault.NotFound, ""},
	amqp.AccessRefused:      {fault.Denied, "; may the user configure, write and read the queue?"},
	amqp.NotFound:           {fault.NotFound, ""},
	amqp.ResourceLocked:     {fault.Conflict, "; another connection has the queue for itself"},
	amqp.PreconditionFailed: {fault.Invalid, "; the queue exists with other settings: set durable, deleteWhenUnused, ttlInSeconds and maxPriority like its own, or delete it"},
	amqp.ResourceError:      {fault.Exhausted, ""},
	amqp.NotAllowed:         {fault.Denied, "; is there such a virtual host, and may the user use it?"},
	amqp.NotImplemented:     {fault.Unsupported, ""},
	amqp.InternalError:      {fault.Unavailable, ""},
}

// answered is the error of a channel or a connection that the server closed.
func (l *link) answered(op fault.Op, e *amqp.Error, sent fault.Sent) error {
	a, known := answers[e.Code]
	if !known {
		a.code = fault.Internal
	}
	if e.Code == amqp.PreconditionFailed && !strings.Contains(e.Reason, "inequivalent") {
		a.hint = ""
	}
	return fault.New(op, a.code, "%s answers %d %q%s", l.where(), e.Code, e.Reason, a.hint).WithSent(sent)
}

// errSilent is a server that took the connection and said nothing.
var errSilent = errors.New("no answer in time")

// absent tells the error of a server that is not there, from that of one that is and refuses.
func absent(err error) bool {
	var dial *net.OpError
	return errors.As(err, &dial) && dial.Op == "dial" || errors.Is(err, errSilent) || fault.Of(err) == fault.Deadline
}

// lasting tells an error that connecting again will not mend.
func lasting(err error) bool {
	switch fault.Of(err) {
	case fault.Invalid, fault.Denied, fault.Unauthenticated, fault.Unsupported, fault.NotFound, fault.Conflict:
		return true
	}
	return false
}
