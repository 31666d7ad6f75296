package grpcapi

import (
	"context"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"

	"github.com/mecha-project/mecha/api/apierr"
	"github.com/mecha-project/mecha/components/block"
)

// Lock is the lock service.
type Lock interface {
	TryLock(ctx context.Context, store, resource, owner string, seconds int32) (bool, error)
	Unlock(ctx context.Context, store, resource, owner string) (block.UnlockStatus, error)
}

// TryLockAlpha1 takes a free resource. One that is taken is no error.
func (s *Server) TryLockAlpha1(ctx context.Context, in *runtimev1.TryLockRequest) (*runtimev1.TryLockResponse, error) {
	ok, err := s.o.Lock.TryLock(ctx, in.GetStoreName(), in.GetResourceId(), in.GetLockOwner(), in.GetExpiryInSeconds())
	if err != nil {
		return nil, apierr.Lock(apierr.TryLock, in.GetStoreName(), err).Status().Err()
	}
	return &runtimev1.TryLockResponse{Success: ok}, nil
}

// UnlockAlpha1 gives a resource back.
func (s *Server) UnlockAlpha1(ctx context.Context, in *runtimev1.UnlockRequest) (*runtimev1.UnlockResponse, error) {
	status, err := s.o.Lock.Unlock(ctx, in.GetStoreName(), in.GetResourceId(), in.GetLockOwner())
	if err != nil {
		return nil, apierr.Lock(apierr.Unlock, in.GetStoreName(), err).Status().Err()
	}
	return &runtimev1.UnlockResponse{Status: runtimev1.UnlockResponse_Status(status)}, nil
}
