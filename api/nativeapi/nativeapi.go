// Package nativeapi gives the services of the runtime the form of mecha.v1, the API for what Dapr's
// lacks. It serves no port: Register hands it to the gRPC edge, which serves all of it, and to the
// HTTP edge, which serves its unary methods as JSON.
//
// It translates and decides nothing. Start at Server; each service has a file of its name.
//
// Errors are *apierr.Error, made by apierr.Native.
package nativeapi

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mecha-project/mecha/api/apierr"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/fault"
)

// Server answers mecha.v1. It is safe for concurrent use.
type Server struct {
	State State
	Lock  Lock
	Cache Cache
	// Messaging may be nil: then there is no such service.
	Messaging Messaging
}

// Register adds the services to an edge.
func (s *Server) Register(to grpc.ServiceRegistrar) {
	mechav1.RegisterStateServer(to, &stateServer{s: s.State})
	mechav1.RegisterLockServer(to, &lockServer{s: s.Lock})
	mechav1.RegisterCacheServer(to, &cacheServer{s: s.Cache})
	if s.Messaging != nil {
		mechav1.RegisterMessagingServer(to, &messagingServer{s: s.Messaging})
	}
}

// duration reads a time of a request; an absent one is 0.
func duration(name string, d *durationpb.Duration) (time.Duration, error) {
	if d == nil {
		return 0, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, apierr.Native(fault.New("nativeapi.duration", fault.Invalid, "%s: %v", name, err))
	}
	return d.AsDuration(), nil
}

// moment is a time of an answer; the zero time is left out.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
