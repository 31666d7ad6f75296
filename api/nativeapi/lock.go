package nativeapi

import (
	"context"
	"time"

	"github.com/mecha-project/mecha/api/apierr"
	mechav1 "github.com/mecha-project/mecha/api/mecha/v1"
	"github.com/mecha-project/mecha/components/block"
)

// Lock is the lock service.
type Lock interface {
	Acquire(ctx context.Context, store, resource, owner string, ttl, wait time.Duration) (token uint64, err error)
	Renew(ctx context.Context, store, resource, owner string, ttl time.Duration) (bool, error)
	Unlock(ctx context.Context, store, resource, owner string) (block.UnlockStatus, error)
}

type lockServer struct {
	mechav1.UnimplementedLockServer
	s Lock
}

// Acquire takes a resource, at once or within a time.
func (s *lockServer) Acquire(ctx context.Context, in *mechav1.AcquireRequest) (*mechav1.AcquireResponse, error) {
	ttl, err := duration("ttl", in.GetTtl())
	if err != nil {
		return nil, err
	}
	wait, err := duration("wait", in.GetWait())
	if err != nil {
		return nil, err
	}
	token, err := s.s.Acquire(ctx, in.GetStoreName(), in.GetResourceId(), in.GetOwner(), ttl, wait)
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.AcquireResponse{Acquired: token != 0, FencingToken: token}, nil
}

// Renew makes a lock last longer.
func (s *lockServer) Renew(ctx context.Context, in *mechav1.RenewRequest) (*mechav1.RenewResponse, error) {
	ttl, err := duration("ttl", in.GetTtl())
	if err != nil {
		return nil, err
	}
	held, err := s.s.Renew(ctx, in.GetStoreName(), in.GetResourceId(), in.GetOwner(), ttl)
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.RenewResponse{Held: held}, nil
}

// Release gives a resource back.
func (s *lockServer) Release(ctx context.Context, in *mechav1.ReleaseRequest) (*mechav1.ReleaseResponse, error) {
	status, err := s.s.Unlock(ctx, in.GetStoreName(), in.GetResourceId(), in.GetOwner())
	if err != nil {
		return nil, apierr.Native(err)
	}
	return &mechav1.ReleaseResponse{Released: status == block.Unlocked}, nil
}
