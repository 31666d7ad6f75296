package telemetry

import (
	"net/http"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// The attributes of Dapr's spans.
const (
	AttrAPI          = "dapr.api"              // "GET /v1.0/state/s" or the full gRPC method
	AttrProtocol     = "dapr.protocol"         // http or grpc
	AttrStatusCode   = "dapr.status_code"      // set by EndHTTP and EndGRPC
	AttrMethod       = "http.request.method"   // GET
	AttrURL          = "url.full"              // the path
	AttrServer       = "server.address"        // host
	AttrPort         = "server.port"           // number
	AttrPeer         = "net.peer.name"         // the app or actor called
	AttrRPCService   = "rpc.service"           // ServiceInvocation
	AttrDBSystem     = "db.system"             // state or secrets
	AttrDBName       = "db.name"               // the component
	AttrDBStatement  = "db.statement"          // "GET /v1.0/state/s"
	AttrMessaging    = "messaging.system"      // pubsub
	AttrDestination  = "messaging.destination" // the topic
	InvocationMarker = "ServiceInvocation"     // the value of AttrRPCService
)

// CallLocalName is the span name of an invocation: CallLocal/<app>/<method>.
func CallLocalName(app, method string) string {
	return "CallLocal/" + app + "/" + strings.TrimPrefix(method, "/")
}

// CallActorName is the span name of an actor call: CallActor/<type>/<method>.
func CallActorName(actorType, method string) string { return "CallActor/" + actorType + "/" + method }

// PubSubName is the span name of a delivery: pubsub/<topic>.
func PubSubName(topic string) string { return "pubsub/" + topic }

// BindingName is the span name of an input binding's event: bindings/<name>.
func BindingName(name string) string { return "bindings/" + name }

// Span is one started span. The zero value is no span; all methods work on it. It is a small
// value and is passed as such; ending it ends it for all copies.
type Span struct {
	c   SpanContext
	rec trace.Span // nil unless recorded
}

// Context is what goes into headers.
func (s Span) Context() SpanContext { return s.c }

// Recording reports whether attributes are kept. Ask before building dear ones.
func (s Span) Recording() bool { return s.rec != nil }

// SetName replaces the name.
func (s Span) SetName(name string) {
	if s.rec != nil {
		s.rec.SetName(name)
	}
}

// SetAttr sets an attribute. Values must not be secret: spans leave the machine.
func (s Span) SetAttr(key, value string) {
	if s.rec != nil {
		s.rec.SetAttributes(attribute.String(key, value))
	}
}

// SetInt sets an attribute to a number.
func (s Span) SetInt(key string, value int64) {
	if s.rec != nil {
		s.rec.SetAttributes(attribute.Int64(key, value))
	}
}

// SetHeader sets an attribute from a request header whose name begins with dapr-, and ignores
// any other. The API token is never among them.
func (s Span) SetHeader(name, value string) {
	const prefix = "dapr-"
	if s.rec == nil || len(name) <= len(prefix) || !strings.EqualFold(name[:len(prefix)], prefix) {
		return
	}
	if name = strings.ToLower(name); strings.HasSuffix(name, "-token") {
		return
	}
	s.rec.SetAttributes(attribute.String(name, value))
}

// End ends the span. An error marks it failed, with the error's text.
func (s Span) End(err error) {
	if s.rec == nil {
		return
	}
	if err != nil {
		s.rec.SetStatus(codes.Error, err.Error())
	}
	s.rec.End()
}

// EndHTTP ends the span of a call that was answered with an HTTP status. Statuses from 400 on
// mark it failed.
func (s Span) EndHTTP(status int) {
	if s.rec == nil {
		return
	}
	s.SetAttr(AttrStatusCode, strconv.Itoa(status))
	if status >= 400 {
		s.rec.SetStatus(codes.Error, http.StatusText(status))
	}
	s.rec.End()
}

// EndGRPC ends the span of a call that was answered with a gRPC status code. Codes other than
// OK mark it failed.
func (s Span) EndGRPC(code uint32, message string) {
	if s.rec == nil {
		return
	}
	s.SetAttr(AttrStatusCode, strconv.FormatUint(uint64(code), 10))
	if code != 0 {
		s.rec.SetStatus(codes.Error, message)
	}
	s.rec.End()
}
