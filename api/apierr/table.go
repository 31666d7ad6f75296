package apierr

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"

	"github.com/mecha-project/mecha/components/fault"
)

func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }

// General rows.
var (
	BadRequest         = Row{"ERR_BAD_REQUEST", 400, codes.InvalidArgument, ""}
	MalformedRequest   = Row{"ERR_MALFORMED_REQUEST", 400, codes.InvalidArgument, ""}
	BodyRead           = Row{"ERR_BODY_READ", 400, codes.InvalidArgument, ""}
	Internal           = Row{"ERR_INTERNAL", 500, codes.Internal, ""}
	Unclassified       = Row{"ERROR", 500, codes.Unknown, ""}
	APIUnimplemented   = Row{"ERR_API_UNIMPLEMENTED", 501, codes.Unimplemented, ""}
	NoSuchMethod       = Row{"NO_SUCH_METHOD", 404, codes.Unimplemented, ""}
	NoInvokeTarget     = Row{"ERR_DIRECT_INVOKE", 404, codes.NotFound, ""}
	DirectInvoke       = Row{"ERR_DIRECT_INVOKE", 500, codes.Internal, ""}
	DirectInvokeDenied = Row{"ERR_DIRECT_INVOKE", 403, codes.Internal, ""}
	HealthNotReady     = Row{"ERR_HEALTH_NOT_READY", 500, codes.Unavailable, ""}
	OutboundNotReady   = Row{"ERR_OUTBOUND_HEALTH_NOT_READY", 500, codes.Unavailable, ""}
	HealthAppID        = Row{"ERR_HEALTH_APPID_NOT_MATCH", 500, codes.Unavailable, ""}
)

// Rows of blocks that are not part of this sidecar yet: the answers Dapr gives when nothing
// of the block is configured.
var (
	ConversationNotFound  = Row{"ERR_CONVERSATION_NOT_FOUND", 400, codes.InvalidArgument, ""}
	ActorNoPlacement      = Row{"ERR_ACTOR_NO_PLACEMENT", 400, codes.Unavailable, ""}
	SchedulerJob          = Row{"DAPR_SCHEDULER_SCHEDULE_JOB", 500, codes.Internal, "DAPR_SCHEDULER_SCHEDULE_JOB"}
	stateNotConfigured    = Row{"ERR_STATE_STORE_NOT_CONFIGURED", 500, codes.FailedPrecondition, "DAPR_STATE_NOT_CONFIGURED"}
	stateNotFound         = Row{"ERR_STATE_STORE_NOT_FOUND", 400, codes.InvalidArgument, "DAPR_STATE_NOT_FOUND"}
	stateIllegalKey       = Row{"ERR_MALFORMED_REQUEST", 400, codes.InvalidArgument, "DAPR_STATE_ILLEGAL_KEY"}
	stateNoTransactions   = Row{"ERR_STATE_STORE_NOT_SUPPORTED", 500, codes.Unimplemented, "DAPR_STATE_TRANSACTIONS_NOT_SUPPORTED"}
	stateNoQuery          = Row{"ERR_STATE_STORE_NOT_SUPPORTED", 500, codes.Internal, "DAPR_STATE_QUERYING_NOT_SUPPORTED"}
	stateTooManyOps       = Row{"ERR_STATE_STORE_TOO_MANY_TRANSACTIONS", 400, codes.InvalidArgument, "DAPR_STATE_TOO_MANY_TRANSACTIONS"}
	stateBadOperation     = Row{"ERR_NOT_SUPPORTED_STATE_OPERATION", 400, codes.Unimplemented, "ERR_NOT_SUPPORTED_STATE_OPERATION"}
	publishOutbox         = Row{"ERR_PUBLISH_OUTBOX", 500, codes.Internal, "DAPR_PUBSUB_OUTBOX"}
	pubsubEmpty           = Row{"ERR_PUBSUB_EMPTY", 404, codes.InvalidArgument, "DAPR_PUBSUB_NAME_EMPTY"}
	pubsubNotFound        = Row{"ERR_PUBSUB_NOT_FOUND", 404, codes.InvalidArgument, "DAPR_PUBSUB_NOT_FOUND"}
	pubsubTopicEmpty      = Row{"ERR_TOPIC_NAME_EMPTY", 404, codes.InvalidArgument, "DAPR_PUBSUB_TOPIC_NAME_EMPTY"}
	pubsubForbidden       = Row{"ERR_PUBSUB_FORBIDDEN", 403, codes.PermissionDenied, "DAPR_PUBSUB_FORBIDDEN"}
	pubsubPublish         = Row{"ERR_PUBSUB_PUBLISH_MESSAGE", 500, codes.Internal, "DAPR_PUBSUB_PUBLISH_MESSAGE"}
	pubsubMetadata        = Row{"ERR_PUBSUB_REQUEST_METADATA", 400, codes.InvalidArgument, "DAPR_PUBSUB_METADATA_DESERIALIZATION"}
	pubsubCloudEvent      = Row{"ERR_PUBSUB_CLOUD_EVENTS_SER", 500, codes.InvalidArgument, "DAPR_PUBSUB_CLOUD_EVENT_CREATION"}
	pubsubMarshalEnvelope = Row{"ERR_PUBSUB_EVENTS_SER", 400, codes.InvalidArgument, "DAPR_PUBSUB_MARSHAL_ENVELOPE"}
	pubsubMarshalEvents   = Row{"ERR_PUBSUB_EVENTS_SER", 400, codes.InvalidArgument, "DAPR_PUBSUB_MARSHAL_EVENTS"}
	pubsubUnmarshalEvents = Row{"ERR_PUBSUB_EVENTS_SER", 400, codes.InvalidArgument, "DAPR_PUBSUB_UNMARSHAL_EVENTS"}
	secretNotConfigured   = Row{"ERR_SECRET_STORES_NOT_CONFIGURED", 500, codes.FailedPrecondition, ""}
	secretNotFound        = Row{"ERR_SECRET_STORE_NOT_FOUND", 401, codes.InvalidArgument, ""}
	secretDenied          = Row{"ERR_PERMISSION_DENIED", 403, codes.PermissionDenied, ""}
	secretGet             = Row{"ERR_SECRET_GET", 500, codes.Internal, ""}
	lockNotConfigured     = Row{"ERR_LOCK_STORE_NOT_CONFIGURED", 500, codes.FailedPrecondition, ""}
	lockNotFound          = Row{"ERR_LOCK_STORE_NOT_FOUND", 400, codes.InvalidArgument, ""}
	configNotConfigured   = Row{"ERR_CONFIGURATION_STORE_NOT_CONFIGURED", 500, codes.FailedPrecondition, "ERR_CONFIGURATION_STORE_NOT_CONFIGURED"}
	configNotFound        = Row{"ERR_CONFIGURATION_STORE_NOT_FOUND", 400, codes.InvalidArgument, "ERR_CONFIGURATION_STORE_NOT_FOUND"}
	configGet             = Row{"ERR_CONFIGURATION_GET", 500, codes.Internal, "ERR_CONFIGURATION_GET"}
	configSubscribe       = Row{"ERR_CONFIGURATION_SUBSCRIBE", 500, codes.InvalidArgument, "ERR_CONFIGURATION_SUBSCRIBE"}
	invokeOutputBinding   = Row{"ERR_INVOKE_OUTPUT_BINDING", 500, codes.Internal, "ERR_INVOKE_OUTPUT_BINDING"}
	appChannelNil         = Row{"ERR_APP_CHANNEL_NIL", 500, codes.Internal, "ERR_APP_CHANNEL_NIL"}
	cryptoNotConfigured   = Row{"ERR_CRYPTO_PROVIDERS_NOT_CONFIGURED", 500, codes.Internal, ""}
	cryptoNotFound        = Row{"ERR_CRYPTO_PROVIDER_NOT_FOUND", 400, codes.InvalidArgument, ""}
	cryptoKey             = Row{"ERR_CRYPTO_KEY", 500, codes.Internal, ""}
	cryptoOperation       = Row{"ERR_CRYPTO", 500, codes.Internal, ""}
	stateTransactionsHelp = "https://docs.dapr.io/reference/components-reference/supported-state-stores/"
)

// policyRejected is the row of calls that a traffic policy refused. Dapr has no such thing, so
// the status is what the code means, not what Dapr would make of another error.
var policyRejected = Row{"ERR_POLICY_REJECTED", 503, codes.Unavailable, PolicyRejected}

// PolicyRejected is the reason in the details of calls that a traffic policy refused.
const PolicyRejected = "POLICY_REJECTED"

// rejected translates a refusal by policy; nil when err is none.
func rejected(message string, err error) *Error {
	switch fault.ReasonOf(err) {
	case fault.PolicyRejected, fault.PeerRejected:
	default:
		return nil
	}
	row := policyRejected
	switch fault.Of(err) {
	case fault.Exhausted:
		row.HTTP, row.GRPC = 429, codes.ResourceExhausted
	case fault.Denied:
		row.HTTP, row.GRPC = 403, codes.PermissionDenied
	case fault.Deadline:
		row.HTTP, row.GRPC = 504, codes.DeadlineExceeded
	case fault.NotFound:
		row.HTTP, row.GRPC = 404, codes.NotFound
	case fault.Conflict:
		row.HTTP, row.GRPC = 409, codes.Aborted
	case fault.Invalid:
		row.HTTP, row.GRPC = 400, codes.InvalidArgument
	case fault.Canceled:
		row.HTTP, row.GRPC = 408, codes.Canceled
	case fault.Internal:
		row.HTTP, row.GRPC = 500, codes.Internal
	}
	return &Error{Row: row, Message: message, Metadata: map[string]string{"policy": fault.RuleOf(err)}, Rule: fault.RuleOf(err), After: fault.AfterOf(err)}
}

// Rejected is the status of a proxied call that policy refused; nil when it was not.
func Rejected(err error) *Error { return rejected(err.Error(), err) }

// StateOp names a state operation on the wire.
type StateOp string

// The state operations; each is the errorCode of its plain failures.
const (
	StateGet         StateOp = "ERR_STATE_GET"
	StateBulkGet     StateOp = "ERR_STATE_BULK_GET"
	StateSave        StateOp = "ERR_STATE_SAVE"
	StateDelete      StateOp = "ERR_STATE_DELETE"
	StateBulkDelete  StateOp = "ERR_STATE_BULK_DELETE"
	StateTransaction StateOp = "ERR_STATE_TRANSACTION"
	StateQuery       StateOp = "ERR_STATE_QUERY"
)

// State translates an error of the state service.
func State(op StateOp, store, appID string, err error) *Error {
	if e := rejected(err.Error(), err); e != nil {
		return e
	}
	res := &Resource{Type: "state", Name: store, Owner: appID}
	switch fault.ReasonOf(err) {
	case fault.NoComponents:
		return &Error{Row: stateNotConfigured, Message: "state store is not configured", Metadata: map[string]string{"appID": appID}, Resource: res}
	case fault.NoSuchComponent:
		return &Error{Row: stateNotFound, Message: "state store " + store + " is not found", Metadata: map[string]string{"appID": appID}, Resource: res}
	case fault.IllegalKey:
		return &Error{Row: stateIllegalKey, Message: err.Error(), Resource: res, Field: &Field{Name: store, Description: err.Error()}}
	case fault.EmptyName:
		return &Error{Row: Row{"ERR_MALFORMED_REQUEST", 400, codes.InvalidArgument, string(op)}, Message: err.Error()}
	case fault.NoTransactions:
		return &Error{Row: stateNoTransactions, Message: "state store " + store + " doesn't support transactions", Resource: res, Help: stateTransactionsHelp}
	case fault.NoQuery:
		return &Error{Row: stateNoQuery, Message: "state store " + store + " doesn't support querying", Resource: res}
	case fault.TooManyOps:
		return &Error{Row: stateTooManyOps, Message: err.Error(), Resource: res}
	case fault.BadOperation:
		return &Error{Row: stateBadOperation, Message: err.Error()}
	case fault.OutboxFailed:
		return &Error{Row: publishOutbox, Message: err.Error()}
	}
	row := Row{string(op), 500, codes.Internal, string(op)}
	switch {
	case op == StateQuery:
		row.Info = "DAPR_STATE_QUERY_FAILED"
		return &Error{Row: row, Message: "failed query in state store " + store + ": " + err.Error(), Resource: res}
	case op == StateTransaction:
		// Always 500/Internal, even for an etag mismatch: as Dapr has it.
	case fault.Of(err) == fault.Conflict:
		row.HTTP, row.GRPC = 409, codes.Aborted
	case fault.Of(err) == fault.BadEtag:
		row.HTTP, row.GRPC = 400, codes.InvalidArgument
	}
	return &Error{Row: row, Message: err.Error()}
}

// Secret translates an error of reading one secret.
func Secret(store, name string, err error) *Error {
	return secret(store, "failed getting secret with key "+name+" from secret store "+store+": "+err.Error(), err)
}

// Secrets translates an error of reading all secrets.
func Secrets(store string, err error) *Error {
	return secret(store, "failed getting secrets from secret store "+store+": "+err.Error(), err)
}

func secret(store, message string, err error) *Error {
	if e := rejected(message, err); e != nil {
		return e
	}
	switch fault.ReasonOf(err) {
	case fault.NoComponents:
		return secretNotConfigured.Because("secret store is not configured")
	case fault.NoSuchComponent:
		return secretNotFound.Because("failed finding secret store with key " + store)
	case fault.ForbiddenSecret:
		return secretDenied.Because(err.Error())
	}
	return secretGet.Because(message)
}

// Binding translates an error of an output binding. All have one row: what the component says is in
// the message.
func Binding(name string, err error) *Error {
	message := "error invoking output binding " + name + ": " + err.Error()
	if e := rejected(message, err); e != nil {
		return e
	}
	return invokeOutputBinding.Because(message)
}

// Crypto translates an error of the cryptography service.
func Crypto(provider string, err error) *Error {
	return crypto(provider, cryptoOperation, "failed to perform operation: "+err.Error(), err)
}

// CryptoKey translates an error of reading a public key.
func CryptoKey(provider, key string, err error) *Error {
	return crypto(provider, cryptoKey, "failed to retrieve key "+key+": "+err.Error(), err)
}

func crypto(provider string, row Row, message string, err error) *Error {
	if e := rejected(message, err); e != nil {
		return e
	}
	switch fault.ReasonOf(err) {
	case fault.NoComponents:
		return cryptoNotConfigured.Because("crypto providers not configured")
	case fault.NoSuchComponent:
		return cryptoNotFound.Because("crypto provider " + provider + " not found")
	}
	return row.Because(message)
}

// LockOp names a lock operation on the wire.
type LockOp string

// The lock operations; each is the errorCode of its plain failures.
const (
	TryLock LockOp = "ERR_TRY_LOCK"
	Unlock  LockOp = "ERR_UNLOCK"
)

// Lock translates an error of the lock service.
func Lock(op LockOp, store string, err error) *Error {
	message := "failed to try acquiring lock: " + err.Error()
	if op == Unlock {
		message = "failed to release lock: " + err.Error()
	}
	if e := rejected(message, err); e != nil {
		return e
	}
	switch fault.ReasonOf(err) {
	case fault.NoComponents:
		return lockNotConfigured.Because("lock store is not configured")
	case fault.NoSuchComponent:
		return lockNotFound.Because("lock store " + store + " not found")
	case fault.EmptyName, fault.BadExpiry:
		return MalformedRequest.Because(err.Error())
	}
	return Row{string(op), 500, codes.Internal, ""}.Because(message)
}

// ConfigOp names a configuration operation.
type ConfigOp uint8

// The configuration operations.
const (
	ConfigGet ConfigOp = iota
	ConfigSubscribe
)

// Config translates an error of the configuration service.
func Config(op ConfigOp, store string, keys []string, err error) *Error {
	row, message := configGet, "failed to get "
	if op == ConfigSubscribe {
		row, message = configSubscribe, "failed to subscribe "
	}
	message += "[" + strings.Join(keys, " ") + "] from Configuration store " + store + ": " + err.Error()
	if e := rejected(message, err); e != nil {
		return e
	}
	switch fault.ReasonOf(err) {
	case fault.NoComponents:
		return configNotConfigured.Because("configuration stores not configured")
	case fault.NoSuchComponent:
		return configNotFound.Because("configuration store " + store + " not found")
	case fault.NoApp:
		return appChannelNil.Because("app channel is not initialized")
	}
	return row.Because(message)
}

// Publish translates an error of publishing.
func Publish(pubsub, topic, appID string, metadata map[string]string, err error) *Error {
	if e := rejected("error when publish to topic "+topic+" in pubsub "+pubsub+": "+err.Error(), err); e != nil {
		return e
	}
	about := map[string]string{"appID": appID, "error": err.Error(), "topic": topic}
	switch fault.ReasonOf(err) {
	case fault.NoComponents, fault.NoSuchComponent:
		return &Error{Row: pubsubNotFound, Message: "pubsub " + pubsub + " is not found"}
	case fault.EmptyName:
		return &Error{Row: pubsubEmpty, Message: "pubsub name is empty"}
	case fault.NoTopic:
		return &Error{Row: pubsubTopicEmpty, Message: "topic is empty in pubsub " + pubsub, Metadata: map[string]string{}}
	case fault.ForbiddenTopic:
		return &Error{Row: pubsubForbidden, Message: err.Error(), Metadata: about}
	case fault.BadMetadata:
		return &Error{Row: pubsubMetadata, Message: err.Error(), Metadata: metadata}
	case fault.BadEnvelope:
		return &Error{Row: pubsubCloudEvent, Message: "cannot create cloudevent: " + err.Error(), Metadata: map[string]string{"appID": appID, "error": err.Error()}}
	case fault.BadEntries:
		return &Error{Row: pubsubMarshalEvents, Message: err.Error(), Metadata: about}
	case fault.EventMismatch:
		return &Error{Row: pubsubMarshalEnvelope, Message: err.Error(), Metadata: about}
	case fault.NotEntries:
		return &Error{Row: pubsubUnmarshalEvents, Message: err.Error(), Metadata: about}
	}
	return &Error{Row: pubsubPublish, Message: "error when publish to topic " + topic + " in pubsub " + pubsub + ": " + err.Error(), Metadata: about}
}

// Invoke translates an error of service invocation.
func Invoke(target string, err error) *Error {
	if fault.ReasonOf(err) == fault.NoTarget && target == "" {
		return NoInvokeTarget.Because("failed getting app id either from the URL path or the header dapr-app-id")
	}
	message := "failed to invoke, id: " + target + ", err: " + err.Error()
	if e := rejected(message, err); e != nil {
		return e
	}
	row := DirectInvoke
	if fault.Of(err) == fault.Denied {
		row = DirectInvokeDenied
	}
	switch fault.Of(err) {
	case fault.Deadline:
		row.GRPC = codes.DeadlineExceeded
	case fault.TooLarge:
		row.GRPC = codes.ResourceExhausted
	}
	e := row.Because(message)
	e.Rule = fault.RuleOf(err)
	return e
}
