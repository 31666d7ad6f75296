package kafka

import (
	"context"
	"errors"
	"net"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mecha-project/mecha/components/fault"
)

// ended is the error of a call whose context ended.
func ended(op fault.Op, where string, cause error, sent bool) error {
	code := fault.Canceled
	if errors.Is(cause, context.DeadlineExceeded) {
		code = fault.Deadline
	}
	e := fault.New(op, code, "%s", where).Because(cause).WithSent(fault.SentNever)
	if sent {
		e.Sent = fault.SentMaybe
	}
	return e
}

// refusals say what a broker's error means. What is not listed is Unavailable when Kafka says that
// trying again may help, else Internal.
var refusals = []struct {
	err  error
	code fault.Code
	hint string
}{
	{kerr.SaslAuthenticationFailed, fault.Unauthenticated, "are saslUsername and saslPassword right?"},
	{kerr.UnsupportedSaslMechanism, fault.Unauthenticated, "is saslMechanism one that the brokers take?"},
	{kerr.IllegalSaslState, fault.Unauthenticated, "is this the address of a listener with sign-in?"},
	{kerr.TopicAuthorizationFailed, fault.Denied, "the user may not use the topic"},
	{kerr.GroupAuthorizationFailed, fault.Denied, "the user may not use the consumer group"},
	{kerr.ClusterAuthorizationFailed, fault.Denied, "the user may not write idempotently"},
	{kerr.PolicyViolation, fault.Denied, "a policy of the brokers forbids it"},
	{kerr.UnknownTopicOrPartition, fault.NotFound, "there is no such topic, and the brokers do not create it"},
	{kerr.UnknownTopicID, fault.NotFound, "the topic is gone"},
	{kerr.MessageTooLarge, fault.TooLarge, "maxMessageBytes, or the topic's max.message.bytes, is smaller"},
	{kerr.RecordListTooLarge, fault.TooLarge, "the topic's segments are smaller"},
	{kerr.InvalidTopicException, fault.Invalid, "the topic's name is not allowed"},
	{kerr.InvalidRecord, fault.Invalid, "does the topic want a key?"},
	{kerr.InvalidTimestamp, fault.Invalid, ""},
	{kerr.InvalidSessionTimeout, fault.Invalid, "sessionTimeout is outside of what the brokers allow"},
	{kerr.InconsistentGroupProtocol, fault.Invalid, "the group's other members use another consumerGroupRebalanceStrategy"},
	{kerr.ThrottlingQuotaExceeded, fault.Exhausted, ""},
	{kerr.GroupMaxSizeReached, fault.Exhausted, "the group has all the members it may have"},
}

// explain puts the client library's error into the house's words. sent says whether the request
// may have been carried out.
func (n *conn) explain(op fault.Op, err error, sent bool) error {
	e := &fault.Error{Op: op, Code: fault.Unavailable, Msg: n.where(), Err: err, Sent: fault.SentNever}
	if sent {
		e.Sent = fault.SentMaybe
	}
	say := func(code fault.Code, hint string) error {
		if e.Code = code; hint != "" {
			e.Msg += ": " + hint
		}
		return e
	}
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			// The broker has decided, so nothing was carried out.
			e.Sent = fault.SentNever
			return say(r.code, r.hint)
		}
	}
	var answer *kerr.Error
	var away net.Error
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		return say(fault.Unavailable, "the component is closed")
	case errors.Is(err, kgo.ErrMaxBuffered):
		e.Sent = fault.SentNever
		return say(fault.Exhausted, "too many records wait to be sent")
	case errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, kgo.ErrRecordRetries):
		// The library gives a record up only when it knows that no broker has it.
		e.Sent = fault.SentNever
		if why := n.health.why(); why != nil {
			e.Err = why
		}
		return say(fault.Unavailable, "the record could not be sent in time; are the brokers up, and are the addresses they tell reachable?")
	case errors.As(err, &answer) && !answer.Retriable:
		return say(fault.Internal, "")
	case errors.As(err, &away):
		return say(fault.Unavailable, "are the brokers up, and are address, authType and TLS right?")
	}
	return e
}
