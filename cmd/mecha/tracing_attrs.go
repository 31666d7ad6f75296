package main

import (
	"net/url"
	"strings"

	commonv1 "github.com/dapr/dapr/pkg/proto/common/v1"
	"google.golang.org/grpc/metadata"

	"github.com/mecha-project/mecha/runtime/call"
	"github.com/mecha-project/mecha/runtime/telemetry"
)

// describeHTTP gives a recorded span of the HTTP API its attributes, as Dapr names them.
func (t *tracing) describeHTTP(s telemetry.Span, method, path string, header call.Fields) {
	api := method + " " + path
	s.SetAttr(telemetry.AttrAPI, api)
	s.SetAttr(telemetry.AttrProtocol, "http")
	s.SetAttr(telemetry.AttrMethod, method)
	s.SetAttr(telemetry.AttrURL, path)
	s.SetAttr(telemetry.AttrServer, t.host)
	s.SetInt(telemetry.AttrPort, int64(t.httpPort))
	for i := range header {
		s.SetHeader(header[i].Name, header[i].Value)
	}
	if target := header.Get("dapr-app-id"); target != "" {
		describeInvocation(s, target)
		return
	}
	describePath(s, api, path)
}

// describePath reads block and component from an API path: /v1.0/<block>/<component>/….
func describePath(s telemetry.Span, api, path string) {
	parts := strings.SplitN(strings.TrimPrefix(path, "/"), "/", 5)
	if len(parts) < 3 {
		return
	}
	name := unescaped(parts[2])
	switch parts[1] {
	case "invoke":
		describeInvocation(s, name)
	case "state", "secrets":
		describeStore(s, parts[1], name, api)
	case "publish":
		topic := 3
		if parts[2] == "bulk" {
			topic = 4
		}
		if len(parts) > topic {
			describeTopic(s, unescaped(strings.Join(parts[topic:], "/")))
		}
	}
}

func unescaped(part string) string {
	if plain, err := url.PathUnescape(part); err == nil {
		return plain
	}
	return part
}

func describeInvocation(s telemetry.Span, target string) {
	s.SetAttr(telemetry.AttrRPCService, telemetry.InvocationMarker)
	s.SetAttr(telemetry.AttrPeer, target)
}

func describeStore(s telemetry.Span, system, name, statement string) {
	s.SetAttr(telemetry.AttrDBSystem, system)
	s.SetAttr(telemetry.AttrDBName, name)
	s.SetAttr(telemetry.AttrDBStatement, statement)
}

func describeTopic(s telemetry.Span, topic string) {
	s.SetAttr(telemetry.AttrMessaging, "pubsub")
	s.SetAttr(telemetry.AttrDestination, topic)
}

// describeGRPC gives a recorded span of the gRPC API its attributes.
func (t *tracing) describeGRPC(s telemetry.Span, method string, md metadata.MD) {
	s.SetAttr(telemetry.AttrAPI, method)
	s.SetAttr(telemetry.AttrProtocol, "grpc")
	s.SetAttr(telemetry.AttrServer, t.host)
	s.SetInt(telemetry.AttrPort, int64(t.grpcPort))
	for name, values := range md {
		for _, v := range values {
			s.SetHeader(name, v)
		}
	}
	if strings.HasPrefix(method, daprMethods) {
		return
	}
	target := one(md, "dapr-callee-app-id")
	if target == "" {
		target = one(md, "dapr-app-id")
	}
	if target != "" {
		describeInvocation(s, target)
	}
}

// Describe implements grpcapi.Span.
func (s grpcSpan) Describe(req any) {
	if !s.Recording() {
		return
	}
	switch r := req.(type) {
	case interface {
		GetId() string
		GetMessage() *commonv1.InvokeRequest
	}:
		describeInvocation(s.Span, r.GetId())
	case interface {
		GetPubsubName() string
		GetTopic() string
	}:
		describeTopic(s.Span, r.GetTopic())
	case interface{ GetStoreName() string }:
		if system := storeKind(s.method); system != "" {
			describeStore(s.Span, system, r.GetStoreName(), s.method)
		}
	}
}

// storeKind tells the methods of state and secret stores from the others that name a store.
func storeKind(method string) string {
	name := method[strings.LastIndexByte(method, '/')+1:]
	switch {
	case strings.Contains(name, "State"):
		return "state"
	case strings.Contains(name, "Secret"):
		return "secrets"
	}
	return ""
}
