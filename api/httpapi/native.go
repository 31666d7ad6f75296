package httpapi

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mecha-project/mecha/api/apierr"
)

// natives are the unary methods of services of our own, by service and method in lower case. It
// takes generated registrations, as a grpc.Server does.
type natives struct {
	methods  map[string]nativeMethod
	services []string
}

type nativeMethod struct {
	name string // "mecha.v1.State/Scan"
	call func(ctx context.Context, decode func(any) error) (any, error)
}

// RegisterService implements grpc.ServiceRegistrar. Streams have no form in JSON and are left out.
func (n *natives) RegisterService(desc *grpc.ServiceDesc, srv any) {
	if n.methods == nil {
		n.methods = map[string]nativeMethod{}
	}
	short := desc.ServiceName[strings.LastIndexByte(desc.ServiceName, '.')+1:]
	n.services = append(n.services, strings.ToLower(short))
	for i := range desc.Methods {
		m := &desc.Methods[i]
		n.methods[strings.ToLower(short+"/"+m.MethodName)] = nativeMethod{name: desc.ServiceName + "/" + m.MethodName,
			call: func(ctx context.Context, decode func(any) error) (any, error) {
				return m.Handler(srv, ctx, decode, nil)
			}}
	}
}

// toJSON shows zeros: an answer of false says so.
var toJSON = protojson.MarshalOptions{EmitDefaultValues: true}

// native is POST /mecha/v1/<service>/<method>: a unary method of a service of our own, with the JSON
// forms of its messages. Names are those of the proto files, in any case.
func (s *Server) native(r *Request, a args) {
	m, ok := s.own.methods[strings.ToLower(a[0]+"/"+a[1])]
	if !ok {
		r.Fail(apierr.NoSuchMethod.Because("there is no method " + a[1] + " in service " + a[0] + " of /mecha/v1; streams are served over gRPC only. Services: " + strings.Join(s.own.services, ", ")))
		return
	}
	r.route = m.name
	out, err := m.call(r.Context(), func(v any) error {
		body, err := r.Body()
		if err == nil && len(body) > 0 {
			err = protojson.Unmarshal(body, v.(proto.Message))
		}
		if err != nil {
			return apierr.MalformedRequest.Because("the body is not the JSON form of " + string(v.(proto.Message).ProtoReflect().Descriptor().FullName()) + ": " + err.Error())
		}
		return nil
	})
	if err == nil {
		var body []byte
		if body, err = toJSON.Marshal(out.(proto.Message)); err == nil {
			r.JSON(200, body)
			return
		}
	}
	var e *apierr.Error
	if !errors.As(err, &e) {
		e = apierr.Internal.Because(status.Convert(err).Message())
	}
	r.Fail(e)
}
