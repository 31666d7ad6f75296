package grpcapi

import (
	"fmt"

	"google.golang.org/grpc"
)

// services is what this sidecar answers itself. It takes generated registrations, as a
// grpc.Server does, and tells the reflection service about them.
type services struct {
	methods map[string]method // by full method, "/service/method"
	info    map[string]grpc.ServiceInfo
}

// method is one of unary and stream.
type method struct {
	srv    any
	unary  *grpc.MethodDesc
	stream *grpc.StreamDesc
}

// RegisterService implements grpc.ServiceRegistrar.
func (s *services) RegisterService(desc *grpc.ServiceDesc, srv any) {
	if s.methods == nil {
		s.methods, s.info = map[string]method{}, map[string]grpc.ServiceInfo{}
	}
	if _, twice := s.info[desc.ServiceName]; twice {
		panic(fmt.Sprintf("grpcapi: service %s is registered twice", desc.ServiceName))
	}
	info := grpc.ServiceInfo{Metadata: desc.Metadata}
	for i := range desc.Methods {
		m := &desc.Methods[i]
		s.methods["/"+desc.ServiceName+"/"+m.MethodName] = method{srv: srv, unary: m}
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.MethodName})
	}
	for i := range desc.Streams {
		m := &desc.Streams[i]
		s.methods["/"+desc.ServiceName+"/"+m.StreamName] = method{srv: srv, stream: m}
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: m.StreamName, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams})
	}
	s.info[desc.ServiceName] = info
}

// GetServiceInfo implements reflection.ServiceInfoProvider.
func (s *services) GetServiceInfo() map[string]grpc.ServiceInfo { return s.info }
